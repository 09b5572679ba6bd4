// Element types that cross the boundary with Python, as (dtype code, untyped pointer), and sizes rounded up. 16-bit
// floats are stored, never computed with: kernels accumulate in float32.
#pragma once

#include <cstdint>

// Everything in a header that kernel sources use is inlined by force: an out-of-line copy would be merged with that of
// another instruction set when the module is linked. Kernels of GPUs may call it too.
#if defined(__CUDACC__)
#define KDFAST_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define KDFAST_INLINE inline __attribute__((always_inline))
#endif

namespace kdfast {

KDFAST_INLINE constexpr int64_t round_up(int64_t x, int64_t multiple) {
    return (x + multiple - 1) / multiple * multiple;
}

// The codes are those of ops/arrays.py.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

KDFAST_INLINE float to_float(float x) { return x; }
KDFAST_INLINE float to_float(bf16 x) { return __builtin_bit_cast(float, uint32_t{x.bits} << 16); }
KDFAST_INLINE float to_float(f16 x) {
    const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, magnitude = x.bits & 0x7FFFu;
    if (magnitude >= 0x7C00u)  // infinity, NaN
        return __builtin_bit_cast(float, sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
    // Scaling by 2^112 moves the exponent's bias and makes subnormals right as well.
    const float scaled = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
    return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, scaled));
}

// Round to nearest, ties to even; NaN stays NaN.
template <class T>
KDFAST_INLINE T from_float(float x);
template <>
KDFAST_INLINE float from_float<float>(float x) {
    return x;
}
template <>
KDFAST_INLINE bf16 from_float<bf16>(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}
template <>
KDFAST_INLINE f16 from_float<f16>(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
    if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // ≥ 65520 rounds to infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: subnormal, rounded by an addition
        const float aligned = __builtin_bit_cast(float, magnitude) + 0.5f;  // one unit = 2^-24
        return {static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, aligned) - 0x3F000000u))};
    }
    const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    return {static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13)};
}

}  // namespace kdfast
