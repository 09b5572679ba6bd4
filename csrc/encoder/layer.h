// An encoder layer, forward and backward, on a slice of jets. With x̂ = (x − mean) / deviation of each row (LayerNorm
// without its affine part γ, β, which is folded into the matrix behind it):
//
//   x ← x + D₁(attention(q, k, v) W_oᵀ + b_o),        (q, k, v) = x̂ (W_qkv γ)ᵀ + (b_qkv + W_qkv β)
//   x ← x + D₃(D₂(GELU(u)) W_outᵀ + b_out),           u = x̂ (W_in γ)ᵀ + (b_in + W_in β)
//
// D: dropout. Weight gradients are summed for the folded matrices, G = Σ dyᵀ x̂ and s = Σ dy, from which
// dW = G γ + s βᵀ, db = s, dγ = Σ_n W_n G_n and dβ = Wᵀ s follow once a step.
#pragma once

#include "constituent_attention/jet_attention.h"
#include "core/rows.h"
#include "encoder/parameters.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

// A layer's matrices as the products want them. E: float or bf16.
template <class E>
struct LayerWeights {
    E *qkv, *out, *ffn_in, *ffn_out;                      // forward
    E *back_qkv, *back_out, *back_ffn_in, *back_ffn_out;  // for the gradients of inputs (no γ)
    float *qkv_bias, *ffn_in_bias;                        // folded
    const float *out_bias, *ffn_out_bias, *gamma1, *gamma2;
};

// What the backward pass reads of a slice's forward pass; rows as the slice's.
template <class E>
struct LayerStore {
    E *norm1, *qkv, *attended, *norm2, *hidden;  // x̂, q k v, attention's result, x̂, u; strides: LayerShape's
    float *inverse1, *inverse2, *lse;            // 1 / deviation [rows] of both norms; [rows, heads]
    Keep keep_out, keep_hidden, keep_ffn;
};

// A thread's buffers for one slice.
template <class E>
struct SliceScratch {
    float *x, *dx, *t;     // [rows, row_stride(w)]
    E *dz, *h, *du;        // [rows, row_stride(w), (ffn), (ffn)]
    E *d_attended, *dqkv;  // [rows, row_stride(w), (3w)]
    float* attention;      // for its tiles
    float* outer;          // for transposed operands
};

struct LayerShape {
    int64_t width, heads, head_dim, ffn;
    int64_t ld_x, ld_w, ld_qkv, ld_ffn;  // of float rows of width, and of E rows
    float scale;
    uint64_t attention_seed;
    uint32_t threshold;
};

// The matrices packed, γ folded in; the biases with W β added. training: those of the backward pass too.
template <class E>
void pack_layer(const EncoderSizes& sizes, const LayerMap& map, const float* parameters, bool training,
                LayerWeights<E>& w) {
    const int64_t width = sizes.width, ffn = sizes.ffn;
    const auto folded_bias = [&](const Affine& linear, const Affine& norm, int64_t num_out,
                                 float* to) __attribute__((always_inline)) {
        for (int64_t j = 0; j < num_out; ++j)
            to[j] = parameters[linear.bias + j] +
                    dot(parameters + linear.weight + j * width, parameters + norm.bias, width);
    };
    const auto pack = [&](const Affine& linear, int64_t num_in, int64_t num_out, const float* gamma, E* to)
                          __attribute__((always_inline)) {
                              pack_panels(parameters + linear.weight, 1, num_in, num_in, num_out, gamma, to);
                          };
    const auto pack_back = [&](const Affine& linear, int64_t num_in, int64_t num_out, E* to)
                               __attribute__((always_inline)) {
                                   pack_panels(parameters + linear.weight, num_in, 1, num_out, num_in, nullptr, to);
                               };
    w.gamma1 = parameters + map.norm1.weight;
    w.gamma2 = parameters + map.norm2.weight;
    w.out_bias = parameters + map.out.bias;
    w.ffn_out_bias = parameters + map.ffn_out.bias;
    pack(map.qkv, width, 3 * width, w.gamma1, w.qkv);
    pack(map.out, width, width, nullptr, w.out);
    pack(map.ffn_in, width, ffn, w.gamma2, w.ffn_in);
    pack(map.ffn_out, ffn, width, nullptr, w.ffn_out);
    folded_bias(map.qkv, map.norm1, 3 * width, w.qkv_bias);
    folded_bias(map.ffn_in, map.norm2, ffn, w.ffn_in_bias);
    if (!training) return;
    pack_back(map.qkv, width, 3 * width, w.back_qkv);
    pack_back(map.out, width, width, w.back_out);
    pack_back(map.ffn_in, width, ffn, w.back_ffn_in);
    pack_back(map.ffn_out, ffn, width, w.back_ffn_out);
}

// Attention of a slice's jets; kBackward: from the gradient `grad` [rows, ld_w] of its output to dqkv.
template <bool kBackward, class E>
void attend(const LayerShape& s, const LayerStore<E>& kept, const Slice& slice, const int64_t* first_row,
            const int64_t* counts, E* grad, E* dqkv, float* scratch) {
    JetAttention a{};
    a.num_heads = s.heads;
    a.head_dim = s.head_dim;
    a.dtype = __is_same(E, float) ? DType::f32 : DType::bf16;
    a.scale = s.scale;
    a.seed = s.attention_seed;
    a.threshold = s.threshold;
    a.scratch = scratch;
    for (int64_t jet = slice.jet; jet < slice.jet + slice.jets; ++jet) {
        a.n = counts[jet];
        if (a.n == 0) continue;
        a.jet = static_cast<uint32_t>(jet);
        const int64_t row = first_row[jet] - slice.row, at = row * s.ld_qkv;
        const auto rows = [&](E* data, int64_t ld)
                              __attribute__((always_inline)) { return HeadRows{data, ld, s.head_dim}; };
        a.q = rows(kept.qkv + at, s.ld_qkv);
        a.k = rows(kept.qkv + at + s.width, s.ld_qkv);
        a.v = rows(kept.qkv + at + 2 * s.width, s.ld_qkv);
        a.lse = kept.lse + row * s.heads;
        if constexpr (kBackward) {
            a.grad_out = rows(grad + row * s.ld_w, s.ld_w);
            a.dq = rows(dqkv + at, s.ld_qkv);
            a.dk = rows(dqkv + at + s.width, s.ld_qkv);
            a.dv = rows(dqkv + at + 2 * s.width, s.ld_qkv);
            kdfast::attention_backward_jet(a);
        } else {
            a.out = rows(kept.attended + row * s.ld_w, s.ld_w);
            kdfast::attention_forward_jet(a);
        }
    }
    E* const written = kBackward ? dqkv : kept.attended;  // rows behind the jets are zero
    const int64_t ld = kBackward ? s.ld_qkv : s.ld_w;
    std::memset(written + slice.tokens * ld, 0, static_cast<size_t>((slice.rows - slice.tokens) * ld) * sizeof(E));
}

template <class E, class Tick>
void layer_forward(const LayerShape& s, const LayerWeights<E>& w, const LayerStore<E>& kept, const Slice& slice,
                   const int64_t* first_row, const int64_t* counts, const SliceScratch<E>& scratch, Tick&& tick) {
    const int64_t rows = slice.rows, ld_x = s.ld_x;
    float* const x = scratch.x;
    normalise_rows(x, ld_x, rows, s.width, kept.norm1, s.ld_w, kept.inverse1);
    tick(Part::norm);
    product(
        kept.norm1, s.ld_w, rows, w.qkv, s.width, 3 * s.width,
        [&](int64_t i, int64_t j, Vec y)
            __attribute__((always_inline)) { put(kept.qkv + i * s.ld_qkv + j, y + load(w.qkv_bias + j)); },
        [&](int64_t i, int64_t j) __attribute__((always_inline)) { fetch(kept.qkv + i * s.ld_qkv + j, 1); });
    tick(Part::qkv);
    attend<false, E>(s, kept, slice, first_row, counts, nullptr, nullptr, scratch.attention);
    tick(Part::attention);
    product(
        kept.attended, s.ld_w, rows, w.out, s.width, s.width,
        [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
            float* const to = x + i * ld_x + j;
            store(to, load(to) + apply(kept.keep_out, i, j, y + load(w.out_bias + j)));
        },
        [&](int64_t i, int64_t j) __attribute__((always_inline)) { fetch(x + i * ld_x + j, 1); });
    tick(Part::out);
    normalise_rows(x, ld_x, rows, s.width, kept.norm2, s.ld_w, kept.inverse2);
    tick(Part::norm);
    product(
        kept.norm2, s.ld_w, rows, w.ffn_in, s.width, s.ffn,
        [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
            const Vec u = y + load(w.ffn_in_bias + j);
            put(kept.hidden + i * s.ld_ffn + j, u);
            put(scratch.h + i * s.ld_ffn + j, apply(kept.keep_hidden, i, j, u * normal(u).cdf));
        },
        [&](int64_t i, int64_t j) __attribute__((always_inline)) {
            fetch(kept.hidden + i * s.ld_ffn + j, 1);
            fetch(scratch.h + i * s.ld_ffn + j, 1);
        });
    tick(Part::ffn_in);
    product(
        scratch.h, s.ld_ffn, rows, w.ffn_out, s.ffn, s.width,
        [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
            float* const to = x + i * ld_x + j;
            store(to, load(to) + apply(kept.keep_ffn, i, j, y + load(w.ffn_out_bias + j)));
        },
        [&](int64_t i, int64_t j) __attribute__((always_inline)) { fetch(x + i * ld_x + j, 1); });
    tick(Part::ffn_out);
}

// dz = dx through dropout.
template <class E>
KDFAST_INLINE void back_dropout(const Keep& keep, const float* dx, int64_t ld_x, int64_t rows, int64_t width, E* dz,
                                int64_t ld_z) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; j += kLanes) put(dz + i * ld_z + j, apply(keep, i, j, load(dx + i * ld_x + j)));
}

// scratch.dx: the gradient of the layer's output, replaced by that of its input. sums: positions as in LayerMap,
// relative to this layer's begin.
template <class E, class Tick>
void layer_backward(const LayerShape& s, const LayerMap& map, int64_t base, const LayerWeights<E>& w,
                    const LayerStore<E>& kept, const Slice& slice, const int64_t* first_row, const int64_t* counts,
                    const SliceScratch<E>& scratch, const Sums& sums, Tick&& tick) {
    const int64_t rows = slice.rows, ld_x = s.ld_x;
    const auto weights = [&](const E* dy, int64_t ldy, int64_t num_out, const E* x, int64_t ldx, int64_t num_in,
                             const Affine& to) __attribute__((always_inline)) {
        weight_gradient(
            dy, ldy, num_out, x, ldx, num_in, rows, scratch.outer,
            [&](int64_t i, int64_t j, Vec g)
                __attribute__((always_inline)) { sums.add(base + to.weight + i * num_in + j, g); },
            [&](int64_t i, int64_t j)
                __attribute__((always_inline)) { sums.prefetch(base + to.weight + i * num_in + j); });
        sum_rows(dy, ldy, rows, num_out,
                 [&](int64_t j, Vec g) __attribute__((always_inline)) { sums.add(base + to.bias + j, g); });
        tick(Part::back_weights);
    };
    back_dropout(kept.keep_ffn, scratch.dx, ld_x, rows, s.width, scratch.dz, s.ld_w);
    product(
        scratch.dz, s.ld_w, rows, w.back_ffn_out, s.width, s.ffn,
        [&](int64_t i, int64_t j, Vec dh) __attribute__((always_inline)) {
            const Vec u = load(kept.hidden + i * s.ld_ffn + j);
            const Normal n = normal(u);
            const Vec slope = n.cdf + u * n.density;
            put(scratch.h + i * s.ld_ffn + j, apply(kept.keep_hidden, i, j, u * n.cdf));
            put(scratch.du + i * s.ld_ffn + j, apply(kept.keep_hidden, i, j, dh * slope));
        },
        [&](int64_t i, int64_t j) __attribute__((always_inline)) {
            fetch(kept.hidden + i * s.ld_ffn + j, 0);
            fetch(scratch.h + i * s.ld_ffn + j, 1);
            fetch(scratch.du + i * s.ld_ffn + j, 1);
        });
    tick(Part::back_ffn_out);
    weights(scratch.dz, s.ld_w, s.width, scratch.h, s.ld_ffn, s.ffn, map.ffn_out);
    weights(scratch.du, s.ld_ffn, s.ffn, kept.norm2, s.ld_w, s.width, map.ffn_in);
    product(
        scratch.du, s.ld_ffn, rows, w.back_ffn_in, s.ffn, s.width,
        [&](int64_t i, int64_t j, Vec y)
            __attribute__((always_inline)) { store(scratch.t + i * ld_x + j, y * load(w.gamma2 + j)); },
        [&](int64_t i, int64_t j) __attribute__((always_inline)) { fetch(scratch.t + i * ld_x + j, 1); });
    tick(Part::back_ffn_in);
    back_normalise_rows(scratch.t, ld_x, kept.norm2, s.ld_w, kept.inverse2, rows, s.width, scratch.dx, ld_x);
    tick(Part::back_norm);
    back_dropout(kept.keep_out, scratch.dx, ld_x, rows, s.width, scratch.dz, s.ld_w);
    product(
        scratch.dz, s.ld_w, rows, w.back_out, s.width, s.width,
        [&](int64_t i, int64_t j, Vec y)
            __attribute__((always_inline)) { put(scratch.d_attended + i * s.ld_w + j, y); },
        [&](int64_t i, int64_t j) __attribute__((always_inline)) { fetch(scratch.d_attended + i * s.ld_w + j, 1); });
    tick(Part::back_out);
    weights(scratch.dz, s.ld_w, s.width, kept.attended, s.ld_w, s.width, map.out);
    attend<true>(s, kept, slice, first_row, counts, scratch.d_attended, scratch.dqkv, scratch.attention);
    tick(Part::back_attention);
    weights(scratch.dqkv, s.ld_qkv, 3 * s.width, kept.norm1, s.ld_w, s.width, map.qkv);
    product(
        scratch.dqkv, s.ld_qkv, rows, w.back_qkv, 3 * s.width, s.width,
        [&](int64_t i, int64_t j, Vec y)
            __attribute__((always_inline)) { store(scratch.t + i * ld_x + j, y * load(w.gamma1 + j)); },
        [&](int64_t i, int64_t j) __attribute__((always_inline)) { fetch(scratch.t + i * ld_x + j, 1); });
    tick(Part::back_qkv);
    back_normalise_rows(scratch.t, ld_x, kept.norm1, s.ld_w, kept.inverse1, rows, s.width, scratch.dx, ld_x);
    tick(Part::back_norm);
}

// Gradients of the layer's parameters from the sums of the folded matrices.
KDFAST_INLINE void layer_gradient(const EncoderSizes& sizes, const LayerMap& map, const float* parameters,
                                  const float* sums, float* gradient) {
    const int64_t w = sizes.width;
    const auto plain = [&](const Affine& linear, int64_t weights, int64_t biases) __attribute__((always_inline)) {
        std::memcpy(gradient + linear.weight, sums + linear.weight, static_cast<size_t>(weights) * sizeof(float));
        std::memcpy(gradient + linear.bias, sums + linear.bias, static_cast<size_t>(biases) * sizeof(float));
    };
    const auto folded = [&](const Affine& linear, const Affine& norm, int64_t num_out) __attribute__((always_inline)) {
        const float *const gamma = parameters + norm.weight, *const beta = parameters + norm.bias;
        float *const d_gamma = gradient + norm.weight, *const d_beta = gradient + norm.bias;
        for (int64_t j = 0; j < w; ++j) d_gamma[j] = d_beta[j] = 0.0f;
        for (int64_t i = 0; i < num_out; ++i) {
            const float* const weight = parameters + linear.weight + i * w;
            const float* const G = sums + linear.weight + i * w;
            float* const to = gradient + linear.weight + i * w;
            const float s = sums[linear.bias + i];
            for (int64_t j = 0; j < w; ++j) {
                to[j] = G[j] * gamma[j] + s * beta[j];
                d_gamma[j] += weight[j] * G[j];
                d_beta[j] += weight[j] * s;
            }
            gradient[linear.bias + i] = s;
        }
    };
    folded(map.qkv, map.norm1, 3 * w);
    plain(map.out, w * w, w);
    folded(map.ffn_in, map.norm2, sizes.ffn);
    plain(map.ffn_out, w * sizes.ffn, w);
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
