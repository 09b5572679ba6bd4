// What follows the pooling, on one row per jet: value and output projections of the pooling attention, LayerNorm, three
// dense blocks (Linear → BatchNorm → GELU → dropout; the second one residual, the third to half the width), a linear
// layer. A few thousandths of a step's work, but BatchNorm needs the whole batch, so it stands between the slices'
// forward and backward passes.
//
// Buffers are [rows, ld] with rows a multiple of kRowGranule ≥ jets; columns beyond a layer's outputs hold zeros.
#pragma once

#include "encoder/embed.h"
#include "encoder/rows.h"

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

// What a dense block keeps: ŷ = (W x + b − mean) / deviation, and its output.
struct DenseStore {
    float *normal, *out;  // [rows, ld]
    float* inverse;       // 1 / deviation [ld]
    Keep keep;
};

// running: mean and variance [outputs] each, moved by a training batch (updated not null).
inline __attribute__((noinline)) void dense_forward(const HeadShape& s, const float* x, const float* parameters,
                                                    const Affine& linear_at, const Affine& norm_at, int64_t num_in,
                                                    int64_t num_out, const float* running, float* updated,
                                                    float* packed, const DenseStore& kept) {
    float* const y = kept.normal;
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
            const Vec normed = load(kept.normal + i * s.ld + j), z = normed * gamma + beta;
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
                  (load(dy + i * s.ld + j) - mean - load(kept.normal + i * s.ld + j) * slope) * factor);
    }
    back_linear(s, dy, x, parameters + linear_at.weight, num_in, num_out, scratch, gradient + linear_at.weight, dx);
}

struct HeadBuffers {
    float *mean, *r;      // of pooling.h, rows beyond the jets zero
    float *d_mean, *d_r;  // their gradients
    float *pooled, *normal, *normal_affine, *deviation;
    DenseStore dense[3];
    float* residual;  // h1 + h2
    float *d, *dy;
    float *packed, *outer;  // scratch of products
    float* logits;          // [jets, classes]
    float* d_logits;
};

inline void head_forward(const HeadShape& s, const ParameterMap& map, const float* parameters, const float* running,
                         float* updated, const HeadBuffers& b) {
    const int64_t w = s.width, heads = s.pooling_heads, d = w / heads, half = w / 2;
    for (int64_t h = 0; h < heads; ++h) {  // pooled = W_v x̄ + b_v r
        const float* const weight = parameters + map.pool_kv.weight + (w + h * d) * w;
        const float* const bias = parameters + map.pool_kv.bias + w + h * d;
        pack_panels(weight, 1, w, w, d, nullptr, b.packed);
        matmul(b.mean + h * w, heads * w, s.rows, b.packed, w, d,
               [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) {
                   const Vec y = sum + load_up_to(bias + j, d - j) * b.r[i * heads + h];
                   store_up_to(b.pooled + i * s.ld + h * d + j, y, d - j);
               });
    }
    linear(s, b.pooled, s.ld, parameters + map.pool_out.weight, parameters + map.pool_out.bias, w, w, b.packed, b.d);
    normalise_rows(b.d, s.ld, s.rows, w, b.normal, s.ld, b.deviation);
    for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < w; j += kLanes)
            store(b.normal_affine + i * s.ld + j,
                  load(b.normal + i * s.ld + j) * load(parameters + map.pool_norm.weight + j) +
                      load(parameters + map.pool_norm.bias + j));
    const int64_t outputs[3] = {w, w, half}, statistics[3] = {2 * w, 4 * w, 6 * w};
    const float* const inputs[3] = {b.normal_affine, b.dense[0].out, b.residual};
    for (int i = 0; i < 3; ++i) {
        dense_forward(s, inputs[i], parameters, map.dense[i], map.dense_norm[i], w, outputs[i], running + statistics[i],
                      updated ? updated + statistics[i] : nullptr, b.packed, b.dense[i]);
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
    const ProductScratch scratch{b.packed, b.outer};
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
    dense_backward(s, b.d, b.residual, parameters, gradient, map.dense[2], map.dense_norm[2], w, half, scratch,
                   b.dense[2], b.dy, b.d);
    float* const d2 = b.residual;  // whose values are done with
    dense_backward(s, b.d, b.dense[0].out, parameters, gradient, map.dense[1], map.dense_norm[1], w, w, scratch,
                   b.dense[1], b.dy, d2);
    for (int64_t e = 0; e < s.rows * s.ld; e += kLanes) store(b.d + e, load(b.d + e) + load(d2 + e));
    dense_backward(s, b.d, b.normal_affine, parameters, gradient, map.dense[0], map.dense_norm[0], w, w, scratch,
                   b.dense[0], b.dy, b.d);
    // LayerNorm
    for (int64_t j = 0; j < w; j += kLanes) {
        Vec sum = {}, along = {};
        const Vec gamma = load(parameters + map.pool_norm.weight + j);
        for (int64_t i = 0; i < s.rows; ++i) {
            const Vec g = load(b.d + i * s.ld + j);
            sum += g;
            along += g * load(b.normal + i * s.ld + j);
            store(b.d + i * s.ld + j, g * gamma);
        }
        store(gradient + map.pool_norm.weight + j, along);
        store(gradient + map.pool_norm.bias + j, sum);
    }
    std::memset(b.dy, 0, static_cast<size_t>(s.rows * s.ld) * sizeof(float));
    back_normalise_rows(b.d, s.ld, b.normal, s.ld, b.deviation, s.rows, w, b.dy, s.ld);
    back_linear(s, b.dy, b.pooled, parameters + map.pool_out.weight, w, w, scratch, gradient + map.pool_out.weight,
                b.d);
    sum_rows(b.dy, s.ld, s.rows, w,
             [&](int64_t j, Vec sum) __attribute__((always_inline)) { store(gradient + map.pool_out.bias + j, sum); });
    for (int64_t h = 0; h < heads; ++h) {
        const float* const d = b.d + h * dim;
        const float* const bias = parameters + map.pool_kv.bias + w + h * dim;
        outer(d, s.ld, dim, b.mean + h * w, heads * w, w, s.rows, b.outer,
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
        pack_panels(parameters + map.pool_kv.weight + (w + h * dim) * w, w, 1, dim, w, nullptr, b.packed);
        matmul(d, s.ld, s.rows, b.packed, dim, w, [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) {
            store(b.d_mean + (i * heads + h) * w + j, sum);
        });
    }
}

// W_kᵀ q / √d [heads, width], q = W_q query + b_q; q: out [width], with the factor 1 / √d.
inline void pooling_query(const EncoderSizes& sizes, const ParameterMap& map, const float* parameters, float* q,
                          float* query) {
    const int64_t w = sizes.width, d = w / sizes.pooling_heads;
    const float scale = 1.0f / sqrt(static_cast<float>(d));
    for (int64_t j = 0; j < w; ++j)
        q[j] = scale * (parameters[map.pool_q.bias + j] +
                        dot(parameters + map.pool_q.weight + j * w, parameters + map.query, w));
    for (int64_t h = 0; h < sizes.pooling_heads; ++h) {
        float* const to = query + h * w;
        for (int64_t c = 0; c < w; ++c) to[c] = 0.0f;
        for (int64_t j = h * d; j < (h + 1) * d; ++j) {
            const float* const key = parameters + map.pool_kv.weight + j * w;
            for (int64_t c = 0; c < w; ++c) to[c] += key[c] * q[j];
        }
    }
}

// Its gradient, from d_query [heads, width]. dq: scratch [width].
inline void back_pooling_query(const EncoderSizes& sizes, const ParameterMap& map, const float* parameters,
                               const float* q, const float* d_query, float* dq, float* gradient) {
    const int64_t w = sizes.width, d = w / sizes.pooling_heads;
    const float scale = 1.0f / sqrt(static_cast<float>(d));
    for (int64_t j = 0; j < w; ++j) {
        const float* const from = d_query + j / d * w;
        for (int64_t c = 0; c < w; ++c) gradient[map.pool_kv.weight + j * w + c] = q[j] * from[c];
        gradient[map.pool_kv.bias + j] = 0.0f;  // softmax does not see a constant
        dq[j] = scale * dot(parameters + map.pool_kv.weight + j * w, from, w);
        gradient[map.pool_q.bias + j] = dq[j];
        for (int64_t c = 0; c < w; ++c) gradient[map.pool_q.weight + j * w + c] = dq[j] * parameters[map.query + c];
    }
    for (int64_t c = 0; c < w; ++c) gradient[map.query + c] = 0.0f;
    for (int64_t j = 0; j < w; ++j)
        for (int64_t c = 0; c < w; ++c) gradient[map.query + c] += dq[j] * parameters[map.pool_q.weight + j * w + c];
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
