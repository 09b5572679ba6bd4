// matmul.h for operands of bfloat16: products of small matrices, accumulated in float32, with an epilogue. Kernel
// sources only.
//
// There are three ways, by what the instruction set offers: tiles of AMX (matmul_amx.h), dot products of pairs
// (AVX512_BF16), and float32 arithmetic on widened operands. All take B in the same order, in which two consecutive k
// of one column are neighbours: one 32-bit word. Products are exact and sums are those of float32; but AMX and
// AVX512_BF16 take and give zero for what is below the smallest normal number (1.2e-38).
#pragma once

#include "core/matmul.h"
#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {

// Rows of A, and those that `outer` sums over, are a multiple of this (callers pad with zeros).
constexpr int64_t kRowGranuleBf16 = 32;

// What the depth of a packed matrix is padded to, with zeros.
#if defined(__AMX_BF16__)
constexpr int64_t kDepth = 32;
#else
constexpr int64_t kDepth = 2;
#endif

// v to nearest, ties to even; NaN stays NaN. Subnormal numbers become zero where the instruction set has a conversion.
KDFAST_INLINE void store_bf16(bf16* p, Vec v) {
#if defined(__AVX512BF16__)
    const __m256bh bits = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &bits, sizeof bits);
#else
    store(p, v);
#endif
}

KDFAST_INLINE UVec load_words(const bf16* p) {
    UVec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
KDFAST_INLINE void store_words(bf16* p, UVec v) { std::memcpy(p, &v, sizeof v); }

// Lane by lane the word (even, odd), rounded to nearest on every CPU, subnormal numbers too.
KDFAST_INLINE UVec word_of(Vec even, Vec odd) {
    const auto rounded = [](Vec v) __attribute__((always_inline)) {
        const UVec bits = (UVec)v;
        return (UVec)select(v == v, (Vec)(bits + (0x7FFFu + (bits >> 16 & 1u))), (Vec)(bits | 0x400000u));
    };
    return rounded(even) >> 16 | (rounded(odd) & 0xFFFF0000u);
}

// B [k, n] as panels of kPanel columns, [⌈n / kPanel⌉][⌈k⌉ / 2][kPanel][2], ⌈k⌉ being k padded to kDepth; zeros beyond
// k and n. Aligned to 64 bytes.
KDFAST_INLINE int64_t packed_size_bf16(int64_t k, int64_t n) { return round_up(k, kDepth) * round_up(n, kPanel); }

// B[i, j] = source[i · row_stride + j · column_stride] · (row_scale ? row_scale[i] : 1), then rounded.
inline __attribute__((noinline)) void pack_panels(const float* source, int64_t row_stride, int64_t column_stride,
                                                  int64_t k, int64_t n, const float* row_scale, bf16* packed) {
    const auto row = [=](int64_t i, int64_t j) __attribute__((always_inline)) {
        Vec v = {};
        if (i >= k) return v;
        const float* from = source + i * row_stride + j * column_stride;
        if (column_stride == 1 && j + kLanes <= n) {
            v = load(from);
        } else {
            for (int lane = 0; lane < kLanes; ++lane)
                if (j + lane < n) v[lane] = from[lane * column_stride];
        }
        return row_scale ? v * row_scale[i] : v;
    };
    for (int64_t first = 0; first < n; first += kPanel)
        for (int64_t i = 0; i < round_up(k, kDepth); i += 2)
            for (int64_t j = first; j < first + kPanel; j += kLanes, packed += 2 * kLanes)
                store_words(packed, word_of(row(i, j), row(i + 1, j)));
}

#if defined(__AVX512BF16__)
// 8 rows of x, 32 columns (16 where fewer are left), as four rows of words of a panel.
inline __attribute__((noinline)) void interleave_part(const bf16* x, int64_t ld, int64_t columns, bf16* packed) {
    const __mmask32 inside = columns < 32 ? 0xFFFFu : 0xFFFFFFFFu;
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 4
    for (int t = 0; t < 8; t += 2, x += 2 * ld, packed += 64) {
        const __m512i even = _mm512_maskz_loadu_epi16(inside, x), odd = _mm512_maskz_loadu_epi16(inside, x + ld);
        const __m512i a = _mm512_unpacklo_epi16(even, odd), b = _mm512_unpackhi_epi16(even, odd);
        _mm512_storeu_si512(packed, _mm512_permutex2var_epi64(a, low, b));
        _mm512_storeu_si512(packed + 32, _mm512_permutex2var_epi64(a, high, b));
    }
}
#endif

// What follows has the same meaning in all three ways:
//
// matmul(a, lda, rows, packed, k, n, epilogue): C = A B for A [rows, k] with stride lda and B packed;
// epilogue(row, column, Vec of C from there on) takes the result, in no order to rely on, and some of it before A and B
// are read to the end: it may not write there. rows: a multiple of kRowGranuleBf16; k, n: of 16. What stands beyond k
// in a row of A does not matter.
//
// outer(dy, ldy, num_out, x, ldx, num_in, rows, scratch, sink): the gradient of W [num_out, num_in] in y = x Wᵀ:
// sink(i, j, Σ_t dy[t, i] · x[t, j …]), once each. rows: a multiple of kRowGranuleBf16; num_out, num_in: of 16.
// scratch: outer_scratch_bf16(num_out, num_in, rows) floats, aligned to 64 bytes.
//
// Strides are a multiple of 32 elements, best an odd one, that of what the epilogue writes too: a quarter faster by
// AMX.

#if defined(__AMX_BF16__)
}  // namespace kdfast::KDFAST_ISA_NS
#include "core/matmul_amx.h"
namespace kdfast::KDFAST_ISA_NS {

#elif defined(__AVX512BF16__)

// c += the products of `pairs` words of kTileRows rows of A, row_stride apart, with a panel's. A's next word stands
// `step` elements further.
KDFAST_INLINE void multiply_pairs(const bf16* a, int64_t row_stride, int64_t step, const bf16* panel, int64_t pairs,
                                  __m512 (&c)[kTileRows][2]) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) c[r][0] = c[r][1] = __m512{};
    for (int64_t p = 0; p < pairs; ++p, a += step, panel += 2 * kPanel) {
        const __m512bh b0 = (__m512bh)load_words(panel), b1 = (__m512bh)load_words(panel + 2 * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r) {
            int32_t word;
            std::memcpy(&word, a + r * row_stride, sizeof word);
            const __m512bh x = (__m512bh)_mm512_set1_epi32(word);
            c[r][0] = _mm512_dpbf16_ps(c[r][0], x, b0);
            c[r][1] = _mm512_dpbf16_ps(c[r][1], x, b1);
        }
    }
}

template <class Epilogue>
KDFAST_INLINE void matmul(const bf16* a, int64_t lda, int64_t rows, const bf16* packed, int64_t k, int64_t n,
                          Epilogue&& epilogue) {
    for (int64_t column = 0; column < n; column += kPanel, packed += kPanel * k)
        for (int64_t row = 0; row < rows; row += kTileRows) {
            __m512 c[kTileRows][2];
            multiply_pairs(a + row * lda, lda, 2, packed, k / 2, c);
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) epilogue(row + r, column, (Vec)c[r][0]);
            if (column + kLanes < n)
#pragma GCC unroll 8
                for (int r = 0; r < kTileRows; ++r) epilogue(row + r, column + kLanes, (Vec)c[r][1]);
        }
}

// Both operands in words.
KDFAST_INLINE int64_t outer_scratch_bf16(int64_t num_out, int64_t num_in, int64_t rows) {
    return rows * (round_up(num_out, kPanel) + round_up(num_in, kPanel)) / 2;
}

template <class Sink>
KDFAST_INLINE void outer(const bf16* dy, int64_t ldy, int64_t num_out, const bf16* x, int64_t ldx, int64_t num_in,
                         int64_t rows, float* scratch, Sink&& sink) {
    bf16* const a = reinterpret_cast<bf16*>(scratch);
    bf16* const b = a + rows * round_up(num_out, kPanel);
    for (int64_t i = 0; i < num_out; i += kPanel)
        for (int64_t t = 0; t < rows; t += 8)
            interleave_part(dy + t * ldy + i, ldy, num_out - i, a + i * rows + t * kPanel);
    for (int64_t j = 0; j < num_in; j += kPanel) {
        for (int64_t t = 0; t < rows; t += 8)
            interleave_part(x + t * ldx + j, ldx, num_in - j, b + j * rows + t * kPanel);
        for (int64_t i = 0; i < num_out; i += kTileRows) {
            __m512 c[kTileRows][2];
            multiply_pairs(a + i / kPanel * kPanel * rows + i % kPanel * 2, 2, 2 * kPanel, b + j * rows, rows / 2, c);
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) sink(i + r, j, (Vec)c[r][0]);
            if (j + kLanes < num_in)
#pragma GCC unroll 8
                for (int r = 0; r < kTileRows; ++r) sink(i + r, j + kLanes, (Vec)c[r][1]);
        }
    }
}

#else

// rows × columns (a multiple of kLanes) of x as float32.
inline __attribute__((noinline)) void widen(const bf16* x, int64_t ld, int64_t rows, int64_t columns, float* to,
                                            int64_t ld_to) {
    for (int64_t row = 0; row < rows; ++row, x += ld, to += ld_to)
        for (int64_t j = 0; j < columns; j += kLanes) store(to + j, load(x + j));
}

template <class Epilogue>
KDFAST_INLINE void matmul(const bf16* a, int64_t lda, int64_t rows, const bf16* packed, int64_t k, int64_t n,
                          Epilogue&& epilogue) {
    constexpr int64_t kChunk = 512;  // of k, that one tile's rows of A are widened to
    alignas(64) float wide[kTileRows * kChunk];
    for (int64_t row = 0; row < rows; row += kTileRows) {
        const bf16* b = packed;
        for (int64_t column = 0; column < n; column += kPanel) {
            Vec c[kTileRows][2];
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) c[r][0] = c[r][1] = Vec{};
            for (int64_t first = 0; first < k; first += kChunk) {
                const int64_t count = k - first < kChunk ? k - first : kChunk;
                if (column == 0 || k > kChunk) widen(a + row * lda + first, lda, kTileRows, count, wide, kChunk);
                const float* x = wide;
                for (int64_t i = 0; i < count; i += 2, x += 2, b += 2 * kPanel) {
                    const UVec w0 = load_words(b), w1 = load_words(b + 2 * kLanes);
                    const Vec even0 = (Vec)(w0 << 16), odd0 = (Vec)(w0 & 0xFFFF0000u);
                    const Vec even1 = (Vec)(w1 << 16), odd1 = (Vec)(w1 & 0xFFFF0000u);
#pragma GCC unroll 8
                    for (int r = 0; r < kTileRows; ++r) {
                        c[r][0] += even0 * x[r * kChunk];
                        c[r][1] += even1 * x[r * kChunk];
                        c[r][0] += odd0 * x[r * kChunk + 1];
                        c[r][1] += odd1 * x[r * kChunk + 1];
                    }
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

// Both operands widened, the stride an odd number of cache lines.
KDFAST_INLINE int64_t wide_stride(int64_t n) { return (n / 16 | 1) * 16; }
KDFAST_INLINE int64_t outer_scratch_bf16(int64_t num_out, int64_t num_in, int64_t rows) {
    return rows * (wide_stride(num_out) + wide_stride(num_in)) + outer_scratch(num_out);
}

template <class Sink>
KDFAST_INLINE void outer(const bf16* dy, int64_t ldy, int64_t num_out, const bf16* x, int64_t ldx, int64_t num_in,
                         int64_t rows, float* scratch, Sink&& sink) {
    float* const wide_x = scratch + rows * wide_stride(num_out);
    widen(dy, ldy, rows, num_out, scratch, wide_stride(num_out));
    widen(x, ldx, rows, num_in, wide_x, wide_stride(num_in));
    outer(scratch, wide_stride(num_out), num_out, wide_x, wide_stride(num_in), num_in, rows,
          wide_x + rows * wide_stride(num_in), sink);
}

#endif

}  // namespace kdfast::KDFAST_ISA_NS
