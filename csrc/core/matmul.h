// Products of small matrices that hand their result to an epilogue while it is in registers: bias, GELU, residual,
// dropout and whatever else follows cost no pass of their own. Kernel sources only.
//
// One register tile serves all products: kTileRows rows of A, broadcast from where they stand, times a panel of two
// vectors of B, packed beforehand. Rows of A are a multiple of kRowGranule (callers pad with zeros), whose stride is an
// odd number of cache lines, so that the rows of a tile do not compete for the same sets of a cache.
#pragma once

#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {

constexpr int kPanel = 2 * kLanes;
constexpr int kTileRows = kLanes == 16 ? 8 : 4;
constexpr int kRowGranule = 8;

// B [k, n] as panels of kPanel columns, [⌈n / kPanel⌉][k][kPanel], zeros beyond n.
KDFAST_INLINE int64_t packed_size(int64_t k, int64_t n) { return (n + kPanel - 1) / kPanel * kPanel * k; }

// B[i, j] = source[i · row_stride + j · column_stride] · (row_scale ? row_scale[i] : 1).
inline __attribute__((noinline)) void pack_panels(const float* source, int64_t row_stride, int64_t column_stride,
                                                  int64_t k, int64_t n, const float* row_scale, float* packed) {
    for (int64_t first = 0; first < n; first += kPanel)
        for (int64_t i = 0; i < k; ++i, packed += kPanel) {
            const float factor = row_scale ? row_scale[i] : 1.0f;
            const float* from = source + i * row_stride + first * column_stride;
            const int64_t columns = n - first < kPanel ? n - first : kPanel;
            for (int64_t j = 0; j < columns; ++j) packed[j] = from[j * column_stride] * factor;
            for (int64_t j = columns; j < kPanel; ++j) packed[j] = 0.0f;
        }
}

// C = A B for A [rows, k] with stride lda and B packed; epilogue(row, column, Vec of C from there on) takes the result.
// rows: a multiple of kRowGranule. The epilogue sees each vector that begins below n; lanes beyond n hold zeros.
template <class Epilogue>
KDFAST_INLINE void matmul(const float* a, int64_t lda, int64_t rows, const float* packed, int64_t k, int64_t n,
                          Epilogue&& epilogue) {
    for (int64_t column = 0; column < n; column += kPanel, packed += kPanel * k)
        for (int64_t row = 0; row < rows; row += kTileRows) {
            Vec c[kTileRows][2];
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) c[r][0] = c[r][1] = Vec{};
            const float* x = a + row * lda;
            const float* b = packed;
            for (int64_t i = 0; i < k; ++i, ++x, b += kPanel) {
                const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 8
                for (int r = 0; r < kTileRows; ++r) {
                    c[r][0] += b0 * x[r * lda];
                    c[r][1] += b1 * x[r * lda];
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) epilogue(row + r, column, c[r][0]);
            if (column + kLanes < n)
#pragma GCC unroll 8
                for (int r = 0; r < kTileRows; ++r) epilogue(row + r, column + kLanes, c[r][1]);
        }
}

// The gradient of a weight W [num_out, num_in] in y = x Wᵀ: sink(i, j, Σ_t dy[t, i] · x[t, j …]) for i < num_out and
// j < num_in in vectors (lanes beyond num_in, like columns of dy up to the next multiple of kTileRows, are read: rows
// must be as long). rows: any number.
template <class Sink>
KDFAST_INLINE void outer(const float* dy, int64_t ldy, int64_t num_out, const float* x, int64_t ldx, int64_t num_in,
                         int64_t rows, float*, Sink&& sink) {
    for (int64_t j = 0; j < num_in; j += kPanel) {
        const bool wide = j + kLanes < num_in;
        for (int64_t i = 0; i < num_out; i += kTileRows) {
            Vec c[kTileRows][2];
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) c[r][0] = c[r][1] = Vec{};
            const float *a = dy + i, *b = x + j;
            if (wide)
                for (int64_t t = 0; t < rows; ++t, a += ldy, b += ldx) {
                    const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 8
                    for (int r = 0; r < kTileRows; ++r) {
                        c[r][0] += b0 * a[r];
                        c[r][1] += b1 * a[r];
                    }
                }
            else
                for (int64_t t = 0; t < rows; ++t, a += ldy, b += ldx) {
                    const Vec b0 = load(b);
#pragma GCC unroll 8
                    for (int r = 0; r < kTileRows; ++r) c[r][0] += b0 * a[r];
                }
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r)
                if (i + r < num_out) {
                    sink(i + r, j, c[r][0]);
                    if (wide) sink(i + r, j + kLanes, c[r][1]);
                }
        }
    }
}

}  // namespace kdfast::KDFAST_ISA_NS
