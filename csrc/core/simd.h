// Vectors of float for the instruction set that this translation unit is compiled for, by the compilers' vector types:
// one source for AVX-512, AVX2, SSE, NEON and anything else. Kernel sources only (KDFAST_ISA_NS is set per ISA).
#pragma once

#include <cstdint>
#include <cstring>

#include "core/types.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef KDFAST_ISA_NS
#error "core/simd.h is for kernel sources, which are compiled once per instruction set"
#endif

// Lanes of a, then of b, picked by constant numbers; M: the integer vector type of the same width.
#if defined(__clang__)
#define KDFAST_SHUFFLE(M, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define KDFAST_SHUFFLE(M, a, b, ...) __builtin_shuffle(a, b, M{__VA_ARGS__})
#endif

namespace kdfast::KDFAST_ISA_NS {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UVec __attribute__((vector_size(4 * kLanes)));

KDFAST_INLINE Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
KDFAST_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
// By a subtraction, which the compiler drops: x − 0 is x for every x, but x + 0 is not for x = −0.
KDFAST_INLINE Vec broadcast(float x) { return x - Vec{}; }
// The first n lanes from memory, fill in the rest; 0 ≤ n ≤ kLanes.
KDFAST_INLINE Vec load_partial(const float* p, int n, float fill = 0.0f) {
    Vec v = broadcast(fill);
    for (int i = 0; i < n; ++i) v[i] = p[i];
    return v;
}
KDFAST_INLINE void store_partial(float* p, Vec v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v[i];
}

KDFAST_INLINE Vec select(IVec mask, Vec a, Vec b) { return mask ? a : b; }
// Where one of two is NaN, the second is taken. (Instructions by name: with a constant operand, compilers make a
// compare and a blend of the portable form.)
#if defined(__AVX512F__)
KDFAST_INLINE Vec min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
KDFAST_INLINE Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
KDFAST_INLINE Vec min(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
KDFAST_INLINE Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
#elif defined(__x86_64__)
KDFAST_INLINE Vec min(Vec a, Vec b) { return (Vec)_mm_min_ps((__m128)a, (__m128)b); }
KDFAST_INLINE Vec max(Vec a, Vec b) { return (Vec)_mm_max_ps((__m128)a, (__m128)b); }
#else
KDFAST_INLINE Vec min(Vec a, Vec b) { return select(a < b, a, b); }
KDFAST_INLINE Vec max(Vec a, Vec b) { return select(a > b, a, b); }
#endif
KDFAST_INLINE Vec abs(Vec a) {
    IVec bits = (IVec)a & 0x7FFFFFFF;
    return (Vec)bits;
}

// Sums and maxima over lanes: a fixed tree, halves first.
KDFAST_INLINE float reduce_add(Vec v) {
    float lanes[kLanes];
    std::memcpy(lanes, &v, sizeof v);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

// Alternate lanes of (a, b), and two vectors woven into one sequence a0 b0 a1 b1 …: its first and second half.
#if defined(__AVX512F__)
#define KDFAST_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define KDFAST_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define KDFAST_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define KDFAST_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define KDFAST_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define KDFAST_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define KDFAST_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define KDFAST_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define KDFAST_EVEN 0, 2, 4, 6
#define KDFAST_ODD 1, 3, 5, 7
#define KDFAST_LOW 0, 4, 1, 5
#define KDFAST_HIGH 2, 6, 3, 7
#endif
KDFAST_INLINE Vec even_lanes(Vec a, Vec b) { return KDFAST_SHUFFLE(IVec, a, b, KDFAST_EVEN); }
KDFAST_INLINE Vec odd_lanes(Vec a, Vec b) { return KDFAST_SHUFFLE(IVec, a, b, KDFAST_ODD); }
KDFAST_INLINE Vec weave_low(Vec a, Vec b) { return KDFAST_SHUFFLE(IVec, a, b, KDFAST_LOW); }
KDFAST_INLINE Vec weave_high(Vec a, Vec b) { return KDFAST_SHUFFLE(IVec, a, b, KDFAST_HIGH); }
#undef KDFAST_EVEN
#undef KDFAST_ODD
#undef KDFAST_LOW
#undef KDFAST_HIGH

// True where any lane of a comparison's result is.
KDFAST_INLINE bool any(IVec mask) {
#if defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__x86_64__)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    int32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= mask[i];
    return bits != 0;
#endif
}

// kLanes 16-bit floats as a Vec, and back (rounded to nearest, ties to even): to_float and from_float in lanes.
typedef uint16_t ShortVec __attribute__((vector_size(2 * kLanes)));
KDFAST_INLINE Vec load(const bf16* p) {
    ShortVec bits;
    std::memcpy(&bits, p, sizeof bits);
    return (Vec)(__builtin_convertvector(bits, UVec) << 16);
}
KDFAST_INLINE Vec load(const f16* p) {
    ShortVec bits;
    std::memcpy(&bits, p, sizeof bits);
    const UVec wide = __builtin_convertvector(bits, UVec), magnitude = wide & 0x7FFFu;
    const Vec finite = (Vec)(magnitude << 13) * 0x1p112f;
    const UVec special = 0x7F800000u | (magnitude & 0x3FFu) << 13;
    return (Vec)((UVec)select((IVec)(magnitude >= 0x7C00u), (Vec)special, finite) | (wide & 0x8000u) << 16);
}
KDFAST_INLINE void store(bf16* p, Vec v) {
    const UVec wide = (UVec)v;
    const UVec rounded = (wide + (0x7FFFu + (wide >> 16 & 1u))) >> 16, nan = wide >> 16 | 0x40u;
    const ShortVec bits = __builtin_convertvector((UVec)select(v == v, (Vec)rounded, (Vec)nan), ShortVec);
    std::memcpy(p, &bits, sizeof bits);
}
KDFAST_INLINE void store(f16* p, Vec v) {
    const UVec wide = (UVec)v, magnitude = wide & 0x7FFFFFFFu;
    const UVec normal = (magnitude + (0xFFFu + (magnitude >> 13 & 1u)) - 0x38000000u) >> 13;
    const UVec subnormal = (UVec)((Vec)magnitude + 0.5f) - 0x3F000000u;
    Vec half = select((IVec)(magnitude < 0x38800000u), (Vec)subnormal, (Vec)normal);
    half = select((IVec)(magnitude >= 0x477FF000u), (Vec)(UVec{} + 0x7C00u), half);
    half = select(v == v, half, (Vec)(UVec{} + 0x7E00u));
    const ShortVec bits = __builtin_convertvector((UVec)half | (wide >> 16 & 0x8000u), ShortVec);
    std::memcpy(p, &bits, sizeof bits);
}

// Polynomials by Estrin's scheme: shorter chains of dependent steps than Horner's, at the same accuracy.

// (e^f − 1 − f) / f² for |f| ≤ ln(2) / 2, relative error 6e-8: minimax.
KDFAST_INLINE Vec exp_polynomial(Vec f) {
    const Vec f2 = f * f;
    const Vec q0 = f * 0x1.555556p-3f + 0.5f, q2 = f * 0x1.11114cp-7f + 0x1.5554eap-5f;
    const Vec q4 = f * 0x1.a072acp-13f + 0x1.6d42d6p-10f;
    return (q4 * f2 + q2) * f2 + q0;
}
// n, an integer, and f with x = n ln 2 + f, |f| ≤ ln(2) / 2, for |x| ≤ 2^20; n << 23 in `shift`.
KDFAST_INLINE Vec reduce_exp(Vec x, Vec& n, IVec& shift) {
    n = x * 1.44269504f + 12582912.0f;  // 1.5·2^23: rounds to an integer in the low bits
    shift = (IVec)n << 23;
    n -= 12582912.0f;
    const Vec f = x - n * 0.693359375f;  // ln 2 in two parts
    return f - n * -2.12194440e-4f;
}

// e^x, relative error ≤ 2 units in the last place for x in [-87.3, 88.7]; 0 below, +inf above, NaN stays NaN.
KDFAST_INLINE Vec exp(Vec x) {
    const Vec clamped = min(max(x, broadcast(-88.0f)), broadcast(88.8f));  // a NaN falls to a bound; restored below
    Vec n;
    IVec shift;
    const Vec f = reduce_exp(clamped, n, shift);
    const Vec p = exp_polynomial(f) * f * f + f + 1.0f;
    // 2^n in two steps of 2^(n/2): n may be 128, whose own bit pattern is infinity.
    const IVec half = (shift >> 1) & ~0x7FFFFF;
    Vec y = (Vec)((IVec)p + half);
    y = y * (Vec)((shift - half) + 0x3F800000);
    y = select(x < -87.33655f, Vec{}, y);
    return select(x == x, select(x > 88.72284f, broadcast(__builtin_inff()), y), x);
}

// e^x for x ≤ 0, in fewer steps: relative error ≤ 2 units in the last place down to -87, and e^-87 below that; NaN
// stays NaN, which adding to the exponent's bits would not keep.
KDFAST_INLINE Vec exp_nonpositive(Vec x) {
    Vec n;
    IVec shift;
    const Vec f = reduce_exp(max(broadcast(-87.0f), x), n, shift);
    return (exp_polynomial(f) * f * f + f + 1.0f) * (Vec)(shift + 0x3F800000);
}

// A function near its first-order term: `value`, and `rest`, what is left of it without that term, which keeps its
// relative accuracy where it is tiny.
struct Split {
    Vec value, rest;
};

// value = e^x − 1, rest = e^x − 1 − x. Relative error ≤ 4 units in the last place of value, ≤ 12 of rest, for x ≤ 88;
// NaN stays NaN.
KDFAST_INLINE Split expm1(Vec x) {
    Vec n;
    IVec shift;
    const Vec f = reduce_exp(max(broadcast(-60.0f), x), n, shift);
    const Vec rest = exp_polynomial(f) * f * f;
    const Vec scale = (Vec)(shift + 0x3F800000);
    const IVec reduced = n != 0.0f;
    const Vec value = select(reduced, scale * (f + rest) + (scale - 1.0f), f + rest);
    return {value, select(reduced, value - x, rest)};
}

// x as 2^k · m with m in [√½, √2), for normal x > 0; returns m, k << 23 in `shift`.
KDFAST_INLINE Vec reduce_log(Vec x, IVec& shift) {
    shift = ((IVec)x - 0x3F3504F3) & ~0x7FFFFF;
    return (Vec)((IVec)x - shift);
}
// (f − ln(1 + f)) / f² for 1 + f in [√½, √2), relative error 7e-8: minimax.
KDFAST_INLINE Vec log_polynomial(Vec f) {
    const Vec f2 = f * f, f4 = f2 * f2;
    const Vec r0 = f * -0x1.55554ep-2f + 0.5f, r2 = f * -0x1.99a138p-3f + 0x1.0p-2f;
    const Vec r4 = f * -0x1.237be8p-3f + 0x1.555cecp-3f, r6 = f * -0x1.e352f8p-4f + 0x1.fc5862p-4f;
    const Vec r8 = f * -0x1.1925c6p-4f + 0x1.dba8c4p-4f;
    return (r8 * f4 + (r6 * f2 + r4)) * f4 + (r2 * f2 + r0);
}
// k ln 2 + f − square, ln 2 in two parts; k << 23 in `shift`.
KDFAST_INLINE Vec join_log(IVec shift, Vec f, Vec square) {
    const Vec k = __builtin_convertvector(shift >> 23, Vec);
    return k * 0.693359375f + (f - (square + k * 2.12194440e-4f));
}

// ln x within 2 units in the last place: −inf at 0, NaN below; subnormal x, +inf and NaN are right too.
KDFAST_INLINE Vec log(Vec x) {
    const IVec subnormal = x < 0x1p-126f;
    IVec shift;
    const Vec f = reduce_log(select(subnormal, x * 0x1p23f, x), shift) - 1.0f;
    shift -= subnormal & (23 << 23);
    Vec y = join_log(shift, f, log_polynomial(f) * f * f);
    y = select(x > 0.0f, y, select(x == 0.0f, broadcast(-__builtin_inff()), broadcast(__builtin_nanf(""))));
    return select(x < __builtin_inff(), y, x);
}

// value = ln(1 + x), rest = x − ln(1 + x), for −1 < x < 2^127 (no check). Relative error ≤ 3 units in the last place of
// value, ≤ 12 of rest; NaN stays NaN.
KDFAST_INLINE Split log1p(Vec x) {
    const Vec y = 1.0f + x;
    IVec shift;
    const Vec m = reduce_log(y, shift);
    // x − (y − 1) is what rounding 1 + x lost, scaled by 2^-k like m; where k = 0, f is x itself.
    const IVec reduced = shift != 0;
    const Vec f = select(reduced, (m - 1.0f) + (x - (y - 1.0f)) * (Vec)(0x3F800000 - shift), x);
    const Vec square = log_polynomial(f) * f * f;
    const Vec value = select(reduced, join_log(shift, f, square), f - square);
    return {value, select(reduced, x - value, square)};
}

// ln(1 + x) for 0 ≤ x ≤ 1 in fewer steps, relative error ≤ 3 units in the last place: 2 artanh w with
// w = x / (2 + x) ≤ 1/3, artanh w = w + w³ P(w²), P minimax.
KDFAST_INLINE Vec log1p_unit(Vec x) {
    const Vec w = x / (2.0f + x), w2 = w * w;
    const Vec p = (w2 * 0x1.1ef86ep-3f + 0x1.1eb612p-3f) * (w2 * w2) + (w2 * 0x1.99d27cp-3f + 0x1.5555p-2f);
    return 2.0f * (w * w2 * p + w);
}

}  // namespace kdfast::KDFAST_ISA_NS
