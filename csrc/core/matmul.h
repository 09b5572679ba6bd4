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
KDFAST_INLINE int64_t packed_size(int64_t k, int64_t n) { return round_up(n, kPanel) * k; }

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

// Asks for what an epilogue reads or writes, while the product is still being computed.
struct Nothing {
    KDFAST_INLINE void operator()(int64_t, int64_t) const {}
};

// C = A B for A [rows, k] with stride lda and B packed; epilogue(row, column, Vec of C from there on) takes the result.
// rows: a multiple of kRowGranule. The epilogue sees each vector that begins below n; lanes beyond n hold zeros.
// prefetch(row, column) comes before the sums of a row of the tile, kPanel columns from there on.
//
// A tile's rows of A stay in the first-level cache while all panels pass by from the second level.
template <class Epilogue, class Prefetch = Nothing>
KDFAST_INLINE void matmul(const float* a, int64_t lda, int64_t rows, const float* packed, int64_t k, int64_t n,
                          Epilogue&& epilogue, Prefetch&& prefetch = {}) {
    constexpr int64_t kAhead = 16;  // rows of a panel
    for (int64_t row = 0; row < rows; row += kTileRows) {
        const float* b = packed;
        for (int64_t column = 0; column < n; column += kPanel) {
            Vec c[kTileRows][2];
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) c[r][0] = c[r][1] = Vec{};
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) prefetch(row + r, column);
            const float* x = a + row * lda;
            for (int64_t i = 0; i < k; ++i, ++x, b += kPanel) {
                const Vec b0 = load(b), b1 = load(b + kLanes);
                for (int line = 0; line < kPanel; line += 16) __builtin_prefetch(b + kAhead * kPanel + line);
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
}

// The gradient of a weight W [num_out, num_in] in y = x Wᵀ: sink(i, j, Σ_t dy[t, i] · x[t, j …]) for i < num_out and
// j < num_in in vectors (lanes beyond num_in, like columns of dy up to the next multiple of kTileRows, are read: rows
// must be as long). rows: any number. scratch: outer_scratch(num_out) floats, aligned to 64 bytes.
// prefetch(i, j) comes before the last sums of a row of the tile, kPanel columns from j on.
//
// Blocks of rows, so that those of a panel of x and of some columns of dy stay in the first-level cache; their sums
// wait in scratch.
KDFAST_INLINE int64_t outer_scratch(int64_t num_out) { return round_up(num_out, kTileRows) * kPanel; }

template <class Sink, class Prefetch = Nothing>
KDFAST_INLINE void outer(const float* dy, int64_t ldy, int64_t num_out, const float* x, int64_t ldx, int64_t num_in,
                         int64_t rows, float* scratch, Sink&& sink, Prefetch&& prefetch = {}) {
    constexpr int64_t kBlock = 128;
    for (int64_t j = 0; j < num_in; j += kPanel) {
        const bool wide = j + kLanes < num_in;
        for (int64_t begin = 0; begin == 0 || begin < rows; begin += kBlock) {
            const int64_t end = begin + kBlock < rows ? begin + kBlock : rows;
            // The next block of x: the next rows, or the first ones of the next panel.
            const float* const next = end < rows ? x + end * ldx + j : x + j + kPanel;
            const int64_t next_rows = end < rows ? rows - end : j + kPanel < num_in ? rows : 0;
            for (int64_t t = 0; t < next_rows && t < kBlock; ++t)
                for (int line = 0; line < kPanel; line += 16) __builtin_prefetch(next + t * ldx + line);
            for (int64_t i = 0; i < num_out; i += kTileRows) {
                Vec c[kTileRows][2];
                float* const sums = scratch + i * kPanel;
                if (begin == 0)
#pragma GCC unroll 8
                    for (int r = 0; r < kTileRows; ++r) c[r][0] = c[r][1] = Vec{};
                else
#pragma GCC unroll 8
                    for (int r = 0; r < kTileRows; ++r) {
                        c[r][0] = load(sums + r * kPanel);
                        c[r][1] = load(sums + r * kPanel + kLanes);
                    }
                if (end == rows)
#pragma GCC unroll 8
                    for (int r = 0; r < kTileRows; ++r) prefetch(i + r, j);
                const float *a = dy + begin * ldy + i, *b = x + begin * ldx + j;
                if (wide)
                    for (int64_t t = begin; t < end; ++t, a += ldy, b += ldx) {
                        const Vec b0 = load(b), b1 = load(b + kLanes);
                        __builtin_prefetch(a + kTileRows);  // the next tile's: a stride too long for the hardware
#pragma GCC unroll 8
                        for (int r = 0; r < kTileRows; ++r) {
                            c[r][0] += b0 * a[r];
                            c[r][1] += b1 * a[r];
                        }
                    }
                else
                    for (int64_t t = begin; t < end; ++t, a += ldy, b += ldx) {
                        const Vec b0 = load(b);
#pragma GCC unroll 8
                        for (int r = 0; r < kTileRows; ++r) c[r][0] += b0 * a[r];
                    }
                if (end < rows)
#pragma GCC unroll 8
                    for (int r = 0; r < kTileRows; ++r) {
                        store(sums + r * kPanel, c[r][0]);
                        store(sums + r * kPanel + kLanes, c[r][1]);
                    }
                else
#pragma GCC unroll 8
                    for (int r = 0; r < kTileRows; ++r)
                        if (i + r < num_out) {
                            sink(i + r, j, c[r][0]);
                            if (wide) sink(i + r, j + kLanes, c[r][1]);
                        }
            }
        }
    }
}

}  // namespace kdfast::KDFAST_ISA_NS
