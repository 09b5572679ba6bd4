// What follows the pooling, on one row per jet: value and output projections of the pooling attention, LayerNorm, three
// dense blocks (Linear → BatchNorm → GELU → dropout; the second one residual, the third to half the width), a linear
// layer. A few thousandths of a step's work, but BatchNorm needs the whole batch, so it stands between the slices'
// forward and backward passes.
//
// Buffers are [rows, ld] with rows a multiple of kRowGranule ≥ jets; columns beyond a layer's outputs hold zeros.
#pragma once

#include "core/rows.h"
#include "encoder/parameters.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

KDFAST_INLINE Vec load_up_to(const float* p, int64_t n) {
    return n >= kLanes ? load(p) : load_partial(p, static_cast<int>(n > 0 ? n : 0));
}
KDFAST_INLINE void store_up_to(float* p, Vec x, int64_t n) {
    n >= kLanes ? store(p, x) : store_partial(p, x, static_cast<int>(n > 0 ? n : 0));
}

struct HeadShape {
    int64_t jets, rows, ld, width, pooling_heads, classes;
};

struct ProductScratch {
    float *packed, *outer;  // packed_size(w, w) and outer_scratch(w) floats
};

// y = x Wᵀ + b for W [num_out, num_in]. packed: scratch.
inline __attribute__((noinline)) void linear(const HeadShape& s, const float* x, int64_t ldx, const float* weight,
                                             const float* bias, int64_t num_in, int64_t num_out, float* packed,
                                             float* y) {
    pack_panels(weight, 1, num_in, num_in, num_out, nullptr, packed);
    matmul(x, ldx, s.rows, packed, num_in, num_out, [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) {
        store(y + i * s.ld + j, sum + load_up_to(bias + j, num_out - j));
    });
}

// From dy: dW, and dx = dy W.
inline __attribute__((noinline)) void back_linear(const HeadShape& s, const float* dy, const float* x,
                                                  const float* weight, int64_t num_in, int64_t num_out,
                                                  const ProductScratch& scratch, float* d_weight, float* dx) {
    outer(dy, s.ld, num_out, x, s.ld, num_in, s.rows, scratch.outer,
          [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) { store(d_weight + i * num_in + j, sum); });
    pack_panels(weight, num_in, 1, num_out, num_in, nullptr, scratch.packed);
    matmul(dy, s.ld, s.rows, scratch.packed, num_out, num_in,
           [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) { store(dx + i * s.ld + j, sum); });
}

// What a dense block keeps, with ŷ = (W x + b − mean) / deviation.
struct DenseStore {
    float *normed, *out;  // ŷ and D(GELU(γ ŷ + β)), [rows, ld]
    float* inverse;       // 1 / deviation, [ld]
    Keep keep;
};

// running: mean and variance [outputs] each, moved by a training batch (updated not null).
inline __attribute__((noinline)) void dense_forward(const HeadShape& s, const float* x, const float* parameters,
                                                    const Affine& linear_at, const Affine& norm_at, int64_t num_in,
                                                    int64_t num_out, const float* running, float* updated,
                                                    float* packed, const DenseStore& kept) {
    float* const y = kept.normed;
    linear(s, x, s.ld, parameters + linear_at.weight, parameters + linear_at.bias, num_in, num_out, packed, y);
    const float share = 1.0f / static_cast<float>(s.jets), n = static_cast<float>(s.jets);
    for (int64_t j = 0; j < num_out; j += kLanes) {
        const int64_t left = num_out - j;
        Vec mean = {}, variance = {};
        if (updated) {
            for (int64_t i = 0; i < s.jets; ++i) mean += load(y + i * s.ld + j);
            mean *= share;
            for (int64_t i = 0; i < s.jets; ++i) {
                const Vec d = load(y + i * s.ld + j) - mean;
                variance += d * d;
            }
            variance *= share;
            const auto move = [&](float* to, Vec value) __attribute__((always_inline)) {
                store_up_to(to, load_up_to(to, left) * (1.0f - kBatchNormMomentum) + value * kBatchNormMomentum, left);
            };
            move(updated + j, mean);
            move(updated + num_out + j, variance * (n / (n - 1.0f)));
        } else {
            mean = load_up_to(running + j, left);
            variance = load_up_to(running + num_out + j, left);
        }
        Vec inverse;
        for (int lane = 0; lane < kLanes; ++lane) inverse[lane] = 1.0f / sqrt(variance[lane] + kBatchNormEps);
        store(kept.inverse + j, inverse);
        const Vec gamma = load_up_to(parameters + norm_at.weight + j, left);
        const Vec beta = load_up_to(parameters + norm_at.bias + j, left);
        for (int64_t i = 0; i < s.rows; ++i) {
            const Vec normed = (load(y + i * s.ld + j) - mean) * inverse, z = normed * gamma + beta;
            store(y + i * s.ld + j, normed);
            store(kept.out + i * s.ld + j, apply(kept.keep, i, j, z * normal(z).cdf));
        }
    }
}

// From d, the gradient of the block's output, to dx (which may be d). The batch's moments are the norm's.
inline __attribute__((noinline)) void dense_backward(const HeadShape& s, float* d, const float* x,
                                                     const float* parameters, float* gradient, const Affine& linear_at,
                                                     const Affine& norm_at, int64_t num_in, int64_t num_out,
                                                     const ProductScratch& scratch, const DenseStore& kept, float* dy,
                                                     float* dx) {
    const float share = 1.0f / static_cast<float>(s.jets);
    std::memset(dy + s.jets * s.ld, 0, static_cast<size_t>((s.rows - s.jets) * s.ld) * sizeof(float));
    for (int64_t j = 0; j < num_out; j += kLanes) {
        const int64_t left = num_out - j;
        const Vec gamma = load_up_to(parameters + norm_at.weight + j, left);
        const Vec beta = load_up_to(parameters + norm_at.bias + j, left);
        Vec sum = {}, along = {};
        for (int64_t i = 0; i < s.jets; ++i) {
            const Vec normed = load(kept.normed + i * s.ld + j), z = normed * gamma + beta;
            const Normal n = normal(z);
            const Vec dz = apply(kept.keep, i, j, load(d + i * s.ld + j)) * (n.cdf + z * n.density);
            store(dy + i * s.ld + j, dz);
            sum += dz;
            along += dz * normed;
        }
        store_up_to(gradient + norm_at.weight + j, along, left);
        store_up_to(gradient + norm_at.bias + j, sum, left);
        store_up_to(gradient + linear_at.bias + j, Vec{}, left);  // the norm takes its mean away
        const Vec factor = gamma * load(kept.inverse + j), mean = sum * share, slope = along * share;
        for (int64_t i = 0; i < s.jets; ++i)
            store(dy + i * s.ld + j,
                  (load(dy + i * s.ld + j) - mean - load(kept.normed + i * s.ld + j) * slope) * factor);
    }
    back_linear(s, dy, x, parameters + linear_at.weight, num_in, num_out, scratch, gradient + linear_at.weight, dx);
}

struct HeadBuffers {
    float *mean, *r;                   // of pooling.h, rows beyond the jets zero
    float *d_mean, *d_r;               // their gradients
    float* pooled;                     // the pooling attention's result before its output projection
    float *normed, *affine, *inverse;  // LayerNorm: x̂ and γ x̂ + β [rows, ld], 1 / deviation [rows]
    DenseStore dense[3];
    float* residual;  // the sum of the first two blocks' outputs
    float *d, *dy;    // gradients on their way back; d also holds the output projection's result on the way forward
    ProductScratch scratch;
    float *logits, *d_logits;  // [jets, classes]
};

inline void head_forward(const HeadShape& s, const ParameterMap& map, const float* parameters, const float* running,
                         float* updated, const HeadBuffers& b) {
    const int64_t w = s.width, heads = s.pooling_heads, d = w / heads, half = w / 2;
    for (int64_t h = 0; h < heads; ++h) {  // pooled = W_v x̄ + b_v r
        const float* const weight = parameters + map.pool_kv.weight + (w + h * d) * w;
        const float* const bias = parameters + map.pool_kv.bias + w + h * d;
        pack_panels(weight, 1, w, w, d, nullptr, b.scratch.packed);
        matmul(b.mean + h * w, heads * w, s.rows, b.scratch.packed, w, d,
               [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) {
                   const Vec y = sum + load_up_to(bias + j, d - j) * b.r[i * heads + h];
                   store_up_to(b.pooled + i * s.ld + h * d + j, y, d - j);
               });
    }
    linear(s, b.pooled, s.ld, parameters + map.pool_out.weight, parameters + map.pool_out.bias, w, w, b.scratch.packed,
           b.d);
    normalise_rows(b.d, s.ld, s.rows, w, b.normed, s.ld, b.inverse);
    for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < w; j += kLanes)
            store(b.affine + i * s.ld + j, load(b.normed + i * s.ld + j) * load(parameters + map.pool_norm.weight + j) +
                                               load(parameters + map.pool_norm.bias + j));
    const int64_t outputs[3] = {w, w, half}, statistics[3] = {2 * w, 4 * w, 6 * w};
    const float* const inputs[3] = {b.affine, b.dense[0].out, b.residual};
    for (int i = 0; i < 3; ++i) {
        dense_forward(s, inputs[i], parameters, map.dense[i], map.dense_norm[i], w, outputs[i], running + statistics[i],
                      updated ? updated + statistics[i] : nullptr, b.scratch.packed, b.dense[i]);
        if (i == 1)
            for (int64_t e = 0; e < s.rows * s.ld; e += kLanes)
                store(b.residual + e, load(b.dense[0].out + e) + load(b.dense[1].out + e));
    }
    for (int64_t i = 0; i < s.jets; ++i)
        for (int64_t c = 0; c < s.classes; ++c)
            b.logits[i * s.classes + c] =
                parameters[map.classify.bias + c] +
                dot(parameters + map.classify.weight + c * half, b.dense[2].out + i * s.ld, half);
}

// From d_logits to d_mean, d_r and the gradients of the head's parameters.
inline void head_backward(const HeadShape& s, const ParameterMap& map, const float* parameters, float* gradient,
                          const HeadBuffers& b) {
    const int64_t w = s.width, heads = s.pooling_heads, dim = w / heads, half = w / 2;
    std::memset(b.d, 0, static_cast<size_t>(s.rows * s.ld) * sizeof(float));
    for (int64_t c = 0; c < s.classes; ++c) {
        const float* const weight = parameters + map.classify.weight + c * half;
        float* const d_weight = gradient + map.classify.weight + c * half;
        for (int64_t e = 0; e < half; ++e) d_weight[e] = 0.0f;
        float total = 0.0f;
        for (int64_t i = 0; i < s.jets; ++i) {
            const float g = b.d_logits[i * s.classes + c];
            const float* const out = b.dense[2].out + i * s.ld;
            total += g;
            for (int64_t e = 0; e < half; ++e) d_weight[e] += g * out[e];
            for (int64_t e = 0; e < half; ++e) b.d[i * s.ld + e] += g * weight[e];
        }
        gradient[map.classify.bias + c] = total;
    }
    dense_backward(s, b.d, b.residual, parameters, gradient, map.dense[2], map.dense_norm[2], w, half, b.scratch,
                   b.dense[2], b.dy, b.d);
    float* const d2 = b.residual;  // whose values are done with
    dense_backward(s, b.d, b.dense[0].out, parameters, gradient, map.dense[1], map.dense_norm[1], w, w, b.scratch,
                   b.dense[1], b.dy, d2);
    for (int64_t e = 0; e < s.rows * s.ld; e += kLanes) store(b.d + e, load(b.d + e) + load(d2 + e));
    dense_backward(s, b.d, b.affine, parameters, gradient, map.dense[0], map.dense_norm[0], w, w, b.scratch, b.dense[0],
                   b.dy, b.d);
    // LayerNorm
    for (int64_t j = 0; j < w; j += kLanes) {
        Vec sum = {}, along = {};
        const Vec gamma = load(parameters + map.pool_norm.weight + j);
        for (int64_t i = 0; i < s.rows; ++i) {
            const Vec g = load(b.d + i * s.ld + j);
            sum += g;
            along += g * load(b.normed + i * s.ld + j);
            store(b.d + i * s.ld + j, g * gamma);
        }
        store(gradient + map.pool_norm.weight + j, along);
        store(gradient + map.pool_norm.bias + j, sum);
    }
    std::memset(b.dy, 0, static_cast<size_t>(s.rows * s.ld) * sizeof(float));
    back_normalise_rows(b.d, s.ld, b.normed, s.ld, b.inverse, s.rows, w, b.dy, s.ld);
    back_linear(s, b.dy, b.pooled, parameters + map.pool_out.weight, w, w, b.scratch, gradient + map.pool_out.weight,
                b.d);
    sum_rows(b.dy, s.ld, s.rows, w,
             [&](int64_t j, Vec sum) __attribute__((always_inline)) { store(gradient + map.pool_out.bias + j, sum); });
    for (int64_t h = 0; h < heads; ++h) {
        const float* const d = b.d + h * dim;
        const float* const bias = parameters + map.pool_kv.bias + w + h * dim;
        outer(d, s.ld, dim, b.mean + h * w, heads * w, w, s.rows, b.scratch.outer,
              [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) {
                  store(gradient + map.pool_kv.weight + (w + h * dim + i) * w + j, sum);
              });
        for (int64_t e = 0; e < dim; ++e) gradient[map.pool_kv.bias + w + h * dim + e] = 0.0f;
        for (int64_t i = 0; i < s.jets; ++i) {
            const float* const row = d + i * s.ld;
            for (int64_t e = 0; e < dim; ++e)
                gradient[map.pool_kv.bias + w + h * dim + e] += row[e] * b.r[i * heads + h];
            b.d_r[i * heads + h] = dot(row, bias, dim);
        }
        pack_panels(parameters + map.pool_kv.weight + (w + h * dim) * w, w, 1, dim, w, nullptr, b.scratch.packed);
        matmul(d, s.ld, s.rows, b.scratch.packed, dim, w,
               [&](int64_t i, int64_t j, Vec sum)
                   __attribute__((always_inline)) { store(b.d_mean + (i * heads + h) * w + j, sum); });
    }
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
