// An encoder layer, forward and backward, on a slice of jets. With x̂ = (x − mean) / deviation of each row (LayerNorm
// without its affine part γ, β, which is folded into the matrix behind it):
//
//   x ← x + D₁(attention(q, k, v) W_oᵀ + b_o),        (q, k, v) = x̂ (W_qkv γ)ᵀ + (b_qkv + W_qkv β)
//   x ← x + D₃(D₂(GELU(u)) W_outᵀ + b_out),           u = x̂ (W_in γ)ᵀ + (b_in + W_in β)
//
// D: dropout. Weight gradients are summed for the folded matrices, G = Σ dyᵀ x̂ and s = Σ dy, from which
// dW = G γ + s βᵀ, db = s, dγ = Σ_n W_n G_n and dβ = Wᵀ s follow once a step.
#pragma once

#include "constituent_attention/tiles.h"
#include "core/scratch.h"
#include "encoder/rows.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

// A layer's matrices as the products want them. E: float or bf16.
template <class E>
struct LayerWeights {
    const E *qkv, *out, *ffn_in, *ffn_out;                      // forward
    const E *back_qkv, *back_out, *back_ffn_in, *back_ffn_out;  // for the gradients of inputs (no γ)
    const float *qkv_bias, *out_bias, *ffn_in_bias, *ffn_out_bias, *gamma1, *gamma2;
};

// What the backward pass reads of a slice's forward pass; rows as the slice's.
template <class E>
struct LayerStore {
    E *norm1, *qkv, *attended, *norm2, *hidden;  // strides: row_stride of w, 3w, w, w, ffn
    float *deviation1, *deviation2, *lse;        // inverse deviations [rows], [rows, heads]
    Keep keep_out, keep_hidden, keep_ffn;
};

// A thread's buffers for one slice.
template <class E>
struct SliceScratch {
    float *x, *dx, *t;  // [rows, row_stride(w)]
    E *dz, *h, *du;     // [rows, row_stride(w), (ffn), (ffn)]
    E* dqkv;            // [rows, row_stride(3w)]
    float* attention;   // for its tiles
    float* outer;       // for transposed operands
};

struct LayerShape {
    int64_t width, heads, head_dim, ffn;
    int64_t ld_x, ld_w, ld_qkv, ld_ffn;  // of float rows of width, and of E rows
    float scale;
    uint64_t attention_seed;
    uint32_t threshold;
};

// Calls with(std::integral_constant-like D) for the head dimension.
template <class With>
KDFAST_INLINE void with_head_dim(int64_t d, With&& with) {
    switch (d) {
        case 8:
            return with(Constant<8>{});
        case 16:
            return with(Constant<16>{});
        case 24:
            return with(Constant<24>{});
        case 32:
            return with(Constant<32>{});
        default:
            return with(Constant<64>{});
    }
}

template <class E>
KDFAST_INLINE Head slice_head(const LayerShape& s, const LayerStore<E>& kept, float* scratch, int64_t longest) {
    Head h{};
    h.ld_q = h.ld_k = h.ld_v = h.ld_dq = h.ld_dk = h.ld_dv = s.ld_qkv;
    h.ld_out = s.ld_w;
    h.ld_grad_out = s.ld_x;
    h.lse = kept.lse;
    h.ld_lse = s.heads;
    h.scale = s.scale;
    h.keep_scale = 65536.0f / static_cast<float>(65536 - s.threshold);
    h.seed = s.attention_seed;
    h.threshold = s.threshold;
    h.q_t = scratch;
    h.grad_t = h.q_t + s.head_dim * kLanes;
    h.weights = h.grad_t + s.head_dim * kLanes;
    h.grads = h.weights + longest * kLanes;
    h.dropped = h.grads + longest * kLanes;
    return h;
}
KDFAST_INLINE int64_t attention_scratch(int64_t head_dim, int64_t longest) {
    return (2 * head_dim + 3 * longest) * kLanes;
}

// Attention of a slice's jets; kBackward: from the gradient `grad` [rows, ld_x] of its output to dqkv.
template <bool kBackward>
__attribute__((noinline)) void attend(const LayerShape& s, const LayerStore<float>& kept, const Slice& slice,
                                      const int64_t* first_row, const int64_t* counts, int64_t longest,
                                      const float* grad, float* dqkv, float* scratch) {
    with_head_dim(s.head_dim, [&](auto dim) __attribute__((always_inline)) {
        constexpr int D = dim.value;
        Head h = slice_head(s, kept, scratch, longest);
        for (int64_t jet = slice.jet; jet < slice.jet + slice.jets; ++jet) {
            h.n = counts[jet];
            h.jet = static_cast<uint32_t>(jet);
            const int64_t row = first_row[jet] - slice.row;
            for (int64_t head = 0; head < s.heads && h.n > 0; ++head) {
                h.head = static_cast<uint32_t>(head);
                h.lse = kept.lse + row * s.heads + head;
                const int64_t at = row * s.ld_qkv + head * D;
                h.q = kept.qkv + at;
                h.k = h.q + s.width;
                h.v = h.k + s.width;
                if constexpr (kBackward) {
                    h.grad_out = grad + row * s.ld_x + head * D;
                    h.dq = dqkv + at;
                    h.dk = h.dq + s.width;
                    h.dv = h.dk + s.width;
                } else {
                    h.out = kept.attended + row * s.ld_w + head * D;
                }
                run_head<D, kBackward>(h);
            }
        }
    });
    float* const written = kBackward ? dqkv : kept.attended;  // rows behind the jets are zero
    const int64_t ld = kBackward ? s.ld_qkv : s.ld_w;
    std::memset(written + slice.tokens * ld, 0, static_cast<size_t>((slice.rows - slice.tokens) * ld) * sizeof(float));
}

template <class E, class Tick>
void layer_forward(const LayerShape& s, const LayerWeights<E>& w, const LayerStore<E>& kept, const Slice& slice,
                   const int64_t* first_row, const int64_t* counts, int64_t longest, const SliceScratch<E>& scratch,
                   Tick&& tick) {
    const int64_t rows = slice.rows, ld_x = s.ld_x;
    float* const x = scratch.x;
    normalise_rows(x, ld_x, rows, s.width, kept.norm1, s.ld_w, kept.deviation1);
    tick(Part::norm);
    matmul(kept.norm1, s.ld_w, rows, w.qkv, s.width, 3 * s.width,
           [&](int64_t i, int64_t j, Vec y)
               __attribute__((always_inline)) { store(kept.qkv + i * s.ld_qkv + j, y + load(w.qkv_bias + j)); });
    tick(Part::qkv);
    attend<false>(s, kept, slice, first_row, counts, longest, nullptr, nullptr, scratch.attention);
    tick(Part::attention);
    matmul(kept.attended, s.ld_w, rows, w.out, s.width, s.width,
           [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
               float* const to = x + i * ld_x + j;
               store(to, load(to) + apply(kept.keep_out, i, j, y + load(w.out_bias + j)));
           });
    tick(Part::out);
    normalise_rows(x, ld_x, rows, s.width, kept.norm2, s.ld_w, kept.deviation2);
    tick(Part::norm);
    matmul(kept.norm2, s.ld_w, rows, w.ffn_in, s.width, s.ffn,
           [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
               const Vec u = y + load(w.ffn_in_bias + j);
               store(kept.hidden + i * s.ld_ffn + j, u);
               store(scratch.h + i * s.ld_ffn + j, apply(kept.keep_hidden, i, j, u * normal(u).cdf));
           });
    tick(Part::ffn_in);
    matmul(scratch.h, s.ld_ffn, rows, w.ffn_out, s.ffn, s.width,
           [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
               float* const to = x + i * ld_x + j;
               store(to, load(to) + apply(kept.keep_ffn, i, j, y + load(w.ffn_out_bias + j)));
           });
    tick(Part::ffn_out);
}

// dz = dropout's gradient of dx, and its sum over rows, the gradient of a bias.
template <class E>
KDFAST_INLINE void back_dropout(const Keep& keep, const float* dx, int64_t ld_x, int64_t rows, int64_t width, E* dz,
                                int64_t ld_z) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; j += kLanes)
            store(dz + i * ld_z + j, apply(keep, i, j, load(dx + i * ld_x + j)));
}

// scratch.dx: the gradient of the layer's output, replaced by that of its input. sums: positions as in LayerMap,
// relative to this layer's begin.
template <class E, class Tick>
void layer_backward(const LayerShape& s, const LayerMap& map, int64_t base, const LayerWeights<E>& w,
                    const LayerStore<E>& kept, const Slice& slice, const int64_t* first_row, const int64_t* counts,
                    int64_t longest, const SliceScratch<E>& scratch, const Sums& sums, Tick&& tick) {
    const int64_t rows = slice.rows, ld_x = s.ld_x;
    const auto weights = [&](const E* dy, int64_t ldy, int64_t num_out, const E* x, int64_t ldx, int64_t num_in,
                             const Affine& to) __attribute__((always_inline)) {
        outer(dy, ldy, num_out, x, ldx, num_in, rows, scratch.outer,
              [&](int64_t i, int64_t j, Vec g)
                  __attribute__((always_inline)) { sums.add(base + to.weight + i * num_in + j, g); });
        sum_rows(dy, ldy, rows, num_out,
                 [&](int64_t j, Vec g) __attribute__((always_inline)) { sums.add(base + to.bias + j, g); });
        tick(Part::back_weights);
    };
    back_dropout(kept.keep_ffn, scratch.dx, ld_x, rows, s.width, scratch.dz, s.ld_w);
    matmul(scratch.dz, s.ld_w, rows, w.back_ffn_out, s.width, s.ffn,
           [&](int64_t i, int64_t j, Vec dh) __attribute__((always_inline)) {
               const Vec u = load(kept.hidden + i * s.ld_ffn + j);
               const Normal n = normal(u);
               const Vec slope = n.cdf + u * n.density;
               store(scratch.h + i * s.ld_ffn + j, apply(kept.keep_hidden, i, j, u * n.cdf));
               store(scratch.du + i * s.ld_ffn + j, apply(kept.keep_hidden, i, j, dh * slope));
           });
    tick(Part::back_ffn_out);
    weights(scratch.dz, s.ld_w, s.width, scratch.h, s.ld_ffn, s.ffn, map.ffn_out);
    weights(scratch.du, s.ld_ffn, s.ffn, kept.norm2, s.ld_w, s.width, map.ffn_in);
    matmul(scratch.du, s.ld_ffn, rows, w.back_ffn_in, s.ffn, s.width,
           [&](int64_t i, int64_t j, Vec y)
               __attribute__((always_inline)) { store(scratch.t + i * ld_x + j, y * load(w.gamma2 + j)); });
    tick(Part::back_ffn_in);
    back_normalise_rows(scratch.t, ld_x, kept.norm2, s.ld_w, kept.deviation2, rows, s.width, scratch.dx, ld_x);
    tick(Part::back_norm);
    back_dropout(kept.keep_out, scratch.dx, ld_x, rows, s.width, scratch.dz, s.ld_w);
    matmul(scratch.dz, s.ld_w, rows, w.back_out, s.width, s.width,
           [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) { store(scratch.t + i * ld_x + j, y); });
    tick(Part::back_out);
    weights(scratch.dz, s.ld_w, s.width, kept.attended, s.ld_w, s.width, map.out);
    attend<true>(s, kept, slice, first_row, counts, longest, scratch.t, scratch.dqkv, scratch.attention);
    tick(Part::back_attention);
    weights(scratch.dqkv, s.ld_qkv, 3 * s.width, kept.norm1, s.ld_w, s.width, map.qkv);
    matmul(scratch.dqkv, s.ld_qkv, rows, w.back_qkv, 3 * s.width, s.width,
           [&](int64_t i, int64_t j, Vec y)
               __attribute__((always_inline)) { store(scratch.t + i * ld_x + j, y * load(w.gamma1 + j)); });
    tick(Part::back_qkv);
    back_normalise_rows(scratch.t, ld_x, kept.norm1, s.ld_w, kept.deviation1, rows, s.width, scratch.dx, ld_x);
    tick(Part::back_norm);
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
