// Vectors of float for the instruction set that this translation unit is compiled for, by the compilers' vector types:
// one source for AVX-512, AVX2, SSE, NEON and anything else. Kernel sources only (KDFAST_ISA_NS is set per ISA).
#pragma once

#include <cstdint>
#include <cstring>

#ifndef KDFAST_ISA_NS
#error "core/simd.h is for kernel sources, which are compiled once per instruction set"
#endif

#define KDFAST_INLINE inline __attribute__((always_inline))

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
KDFAST_INLINE Vec min(Vec a, Vec b) { return select(a < b, a, b); }
KDFAST_INLINE Vec max(Vec a, Vec b) { return select(a > b, a, b); }
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
KDFAST_INLINE float reduce_max(Vec v) {
    float m = v[0];
    for (int i = 1; i < kLanes; ++i) m = m > v[i] ? m : v[i];
    return m;
}

// e^x, relative error ≤ 2 units in the last place for x in [-87.3, 88.7]; 0 below, +inf above, NaN stays NaN.
KDFAST_INLINE Vec exp(Vec x) {
    const Vec clamped = min(max(x, broadcast(-88.0f)), broadcast(88.8f));  // a NaN falls to a bound; restored below
    Vec n = clamped * 1.44269504f + 12582912.0f;                           // 1.5·2^23: rounds to an integer in the low bits
    const IVec shift = (IVec)n << 23;
    n -= 12582912.0f;
    Vec f = clamped - n * 0.693359375f;  // ln 2 in two parts
    f -= n * -2.12194440e-4f;
    Vec p = broadcast(1.9875691e-4f);
    p = p * f + 1.3981999e-3f;
    p = p * f + 8.3334519e-3f;
    p = p * f + 4.1665796e-2f;
    p = p * f + 1.6666665e-1f;
    p = p * f + 0.5f;
    p = p * f * f + f + 1.0f;
    // 2^n in two steps of 2^(n/2): n may be 128, whose own bit pattern is infinity.
    const IVec half = (shift >> 1) & ~0x7FFFFF;
    Vec y = (Vec)((IVec)p + half);
    y = y * (Vec)((shift - half) + 0x3F800000);
    y = select(x < -87.33655f, Vec{}, y);
    return select(x == x, select(x > 88.72284f, broadcast(__builtin_inff()), y), x);
}

}  // namespace kdfast::KDFAST_ISA_NS
