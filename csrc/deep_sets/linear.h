// A linear layer on rows, y = W x + b, its ReLU, and their gradients. The products see matrices that are padded with
// zeros to multiples of kPad in both directions, so that layers may have any width; what is padded stays zero.
#pragma once

#include "core/layout.h"
#include "core/rows.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr int64_t kPad = 16;

// A layer's sizes and places. Inputs are `blocks` of num_in / blocks columns, each padded by itself.
struct LinearShape {
    int64_t num_in, num_out, blocks;
    int64_t weight;        // W [num_out, num_in] in the flat parameters, b behind it
    int64_t depth, ld_in;  // columns of x that products read; those of a padded row of W
    int64_t outputs;       // num_out, padded
    int64_t sums;          // where the gradient's sums begin: [outputs, ld_in], then [outputs]

    KDFAST_INLINE int64_t num_sums() const { return outputs * (ld_in + 1); }
};

// E: of the operands, float or bf16.
template <class E>
struct Linear {
    LinearShape shape;
    E *packed, *back;  // panels of Wᵀ, and of W; back is null where no gradient of x is wanted
    float* bias;       // [outputs]
};

template <class E>
KDFAST_INLINE Linear<E> lay_out_linear(const LinearShape& s, bool backward, Layout& at) {
    Linear<E> to{s, nullptr, nullptr, nullptr};
    to.packed = at.take<E>(packed_elements<E>(s.depth, s.outputs));
    if (backward) to.back = at.take<E>(packed_elements<E>(s.outputs, s.ld_in));
    to.bias = at.take<float>(s.outputs);
    return to;
}

// row(j, b, from, to): W's block b of row j stands at `from` in the flat parameters, at `to` of the padded matrix.
template <class Row>
KDFAST_INLINE void each_block(const LinearShape& s, Row&& row) {
    const int64_t block = s.num_in / s.blocks, padded = s.ld_in / s.blocks;
    for (int64_t j = 0; j < s.num_out; ++j)
        for (int64_t b = 0; b < s.blocks; ++b)
            row(s.weight + j * s.num_in + b * block, j * s.ld_in + b * padded, static_cast<size_t>(block));
}

// padded: scratch [outputs, ld_in].
template <class E>
inline __attribute__((noinline)) void pack_linear(const Linear<E>& layer, const float* parameters, float* padded) {
    const LinearShape& s = layer.shape;
    std::memset(padded, 0, static_cast<size_t>(s.outputs * s.ld_in) * sizeof(float));
    each_block(s, [&](int64_t from, int64_t to, size_t columns) __attribute__((always_inline)) {
        std::memcpy(padded + to, parameters + from, columns * sizeof(float));
    });
    pack_panels(padded, 1, s.ld_in, s.depth, s.outputs, nullptr, layer.packed);
    if (layer.back) pack_panels(padded, s.ld_in, 1, s.outputs, s.ld_in, nullptr, layer.back);
    std::memset(layer.bias, 0, static_cast<size_t>(s.outputs) * sizeof(float));
    std::memcpy(layer.bias, parameters + s.weight + s.num_out * s.num_in,
                static_cast<size_t>(s.num_out) * sizeof(float));
}

// The layer's gradient out of the sums.
inline void linear_gradient(const LinearShape& s, const float* sums, float* gradient) {
    each_block(s, [&](int64_t to, int64_t from, size_t columns) __attribute__((always_inline)) {
        std::memcpy(gradient + to, sums + s.sums + from, columns * sizeof(float));
    });
    std::memcpy(gradient + s.weight + s.num_out * s.num_in, sums + s.sums + s.outputs * s.ld_in,
                static_cast<size_t>(s.num_out) * sizeof(float));
}

// y = ReLU(W x + b), or without the ReLU, on `rows` rows. NaN stays NaN.
template <bool kRelu, class E>
inline __attribute__((noinline)) void linear_forward(const Linear<E>& layer, const E* x, int64_t ld_x, int64_t rows,
                                                     E* y, int64_t ld_y) {
    product(
        x, ld_x, rows, layer.packed, layer.shape.depth, layer.shape.outputs,
        [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) {
            const Vec z = sum + load(layer.bias + j);
            put(y + i * ld_y + j, kRelu ? max(Vec{}, z) : z);
        },
        Nothing{});
}

// Adds the gradients of W and b to the sums, from dy.
template <class E>
inline __attribute__((noinline)) void linear_weights(const Linear<E>& layer, const E* dy, int64_t ld_dy, const E* x,
                                                     int64_t ld_x, int64_t rows, float* scratch, const Sums& sums) {
    const LinearShape& s = layer.shape;
    weight_gradient(
        dy, ld_dy, s.outputs, x, ld_x, s.depth, rows, scratch,
        [&](int64_t i, int64_t j, Vec g) __attribute__((always_inline)) { sums.add(s.sums + i * s.ld_in + j, g); },
        Nothing{});
    sum_rows(dy, ld_dy, rows, s.outputs,
             [&](int64_t j, Vec g) __attribute__((always_inline)) { sums.add(s.sums + s.outputs * s.ld_in + j, g); });
}

// dx = dy W. kRelu: through the ReLU that x is the result of.
template <bool kRelu, class E>
inline __attribute__((noinline)) void linear_backward(const Linear<E>& layer, const E* dy, int64_t ld_dy, int64_t rows,
                                                      const E* x, E* dx, int64_t ld_x) {
    product(
        dy, ld_dy, rows, layer.back, layer.shape.outputs, layer.shape.ld_in,
        [&](int64_t i, int64_t j, Vec g) __attribute__((always_inline)) {
            if constexpr (kRelu) g = select(load(x + i * ld_x + j) > 0.0f, g, Vec{});
            put(dx + i * ld_x + j, g);
        },
        Nothing{});
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
