// Philox4x32-10 (core/philox.h) for several counters at once, one per 64-bit lane. Kernel sources only.
#pragma once

#include "core/philox.h"
#include "core/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kdfast::KDFAST_ISA_NS {

constexpr int kPhiloxLanes = kLanes / 2;
typedef uint64_t WVec __attribute__((vector_size(8 * kPhiloxLanes)));

// 64-bit products of the low halves; what stands in the high halves does not matter.
KDFAST_INLINE WVec multiply_low32(WVec a, WVec b) {
#if defined(__AVX512F__)
    return (WVec)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (WVec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (WVec)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// The four words of the counters (c0, c1, c2, c3), one counter per lane (the low 32 bits of each), in their place. Only
// the low halves of the results mean something.
KDFAST_INLINE void philox_rounds(uint64_t key, WVec& c0, WVec& c1, WVec& c2, WVec& c3) {
    const WVec m0 = WVec{} + 0xD2511F53u, m1 = WVec{} + 0xCD9E8D57u;
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const WVec p0 = multiply_low32(m0, c0), p1 = multiply_low32(m1, c2);
        c0 = (p1 >> 32) ^ c1 ^ k0;  // the high halves hold garbage from here on
        c1 = p1;
        c2 = (p0 >> 32) ^ c3 ^ k1;
        c3 = p0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
}

// The random bits of the counters as dropout reads them: element e of lane i is decided by bits[8 i + e], since the
// halves of the four words follow each other in memory.
KDFAST_INLINE void philox_bits16(uint64_t key, WVec c0, WVec c1, WVec c2, WVec c3, uint16_t* bits) {
    philox_rounds(key, c0, c1, c2, c3);
    const WVec low = (c0 & 0xFFFFFFFFu) | c1 << 32, high = (c2 & 0xFFFFFFFFu) | c3 << 32;
#if defined(__AVX512F__)
    const WVec first = KDFAST_SHUFFLE(WVec, low, high, 0, 8, 1, 9, 2, 10, 3, 11);
    const WVec second = KDFAST_SHUFFLE(WVec, low, high, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(__AVX2__)
    const WVec first = KDFAST_SHUFFLE(WVec, low, high, 0, 4, 1, 5);
    const WVec second = KDFAST_SHUFFLE(WVec, low, high, 2, 6, 3, 7);
#else
    const WVec first = {low[0], high[0]}, second = {low[1], high[1]};
#endif
    std::memcpy(bits, &first, sizeof first);
    std::memcpy(bits + 4 * kPhiloxLanes, &second, sizeof second);
}

KDFAST_INLINE WVec lane_numbers() {
    WVec lane;
    for (int i = 0; i < kPhiloxLanes; ++i) lane[i] = i;
    return lane;
}

}  // namespace kdfast::KDFAST_ISA_NS
