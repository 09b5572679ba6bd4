// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11) and the splitmix64 chain that makes its keys.
// python/kdfast/ops/philox.py is the twin; tests/ops/test_philox.py holds both to the published vectors.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace kdfast {

struct Philox4 {
    uint32_t v[4];
};

// key: 64 bits (low word first); counter: (c0, c1, c2, c3).
KDFAST_INLINE Philox4 philox4x32(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
        const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c1 = static_cast<uint32_t>(p1);
        c3 = static_cast<uint32_t>(p0);
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return {{c0, c1, c2, c3}};
}

// One link of the chain: state ← splitmix64(state ^ value).
KDFAST_INLINE uint64_t splitmix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

// Dropout. One Philox call decides eight neighbours (keys or features 8g … 8g+7): element e uses 16 bits of word
// (e % 8) / 2, the low half where e is even. It is kept where those bits ≥ threshold(p); kept values are scaled by
// 1 / (1 − threshold / 2^16), so that the expectation is exact for the probability as quantised.
KDFAST_INLINE uint32_t dropout_threshold(double p) { return static_cast<uint32_t>(p * 65536.0 + 0.5); }
KDFAST_INLINE bool dropout_keep(const Philox4& bits, uint32_t element, uint32_t threshold) {
    return ((bits.v[(element % 8) / 2] >> (16 * (element % 2))) & 0xFFFF) >= threshold;
}
// All eight decisions of a call: bit e is element e's.
KDFAST_INLINE uint32_t dropout_kept(const Philox4& bits, uint32_t threshold) {
    uint32_t kept = 0;
    for (uint32_t e = 0; e < 8; ++e) kept |= dropout_keep(bits, e, threshold) ? 1u << e : 0u;
    return kept;
}

}  // namespace kdfast
