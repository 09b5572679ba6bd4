// The standard normal distribution in lanes of float: Φ(x) = ∫ φ from −∞ to x, φ(x) = e^(−x²/2) / √(2π). Exact GELU is
// x Φ(x), its derivative Φ(x) + x φ(x). Kernel sources only.
//
// Both stand on the tail Q(a) = Φ(−a), a = |x|: Φ(x) is Q for x < 0 and 1 − Q for x > 0, so that Φ keeps relative
// accuracy far into the negative side, and φ = −Q′. With AVX-512, Q is one of 32 polynomials of degree 5 whose
// coefficients vpermt2ps looks up, and φ the same polynomial's derivative: no exponential, no division. Elsewhere
// Q = e^(−a²/2) R(u) with u = 0.2875 a / (1 + 0.2875 a), and φ has the same exponential.
#pragma once

#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {

struct Normal {
    Vec cdf, density;
};

#if defined(__AVX512DQ__)
// Row j, column k: coefficient of d^j of Q(k / 4 + d), |d| ≤ 1/8; the last column, 0, serves all a > 7.625 (Q < 2e-14).
// Each column is the minimax fit (a linear program on 80 Chebyshev nodes, in float64, then rounded) of Q, weighted 4,
// and of −Q′ = φ, weighted 1, both relative to themselves. Error of Q ≤ 8e-9 (relative 9e-8 for a ≤ 2.6, 3e-5 for a
// ≤ 6.4), of φ ≤ 4e-8 (relative 4e-7, 2e-4), and rounding.
alignas(64) constexpr float kNormalTail[6][32] = {
    {0x1p-1f,         0x1.9aecbap-2f,  0x1.3bf144p-2f,  0x1.d02202p-3f,
     0x1.44ed0cp-3f,  0x1.b0bdd2p-4f,  0x1.11a46ep-4f,  0x1.482a24p-5f,
     0x1.74bcf6p-6f,  0x1.90924cp-7f,  0x1.96f4e4p-8f,  0x1.869044p-9f,
     0x1.61de22p-10f, 0x1.2e86fcp-11f, 0x1.e7dbc6p-13f, 0x1.72d96ep-14f,
     0x1.09ad76p-15f, 0x1.66a5b6p-17f, 0x1.c8079p-19f,  0x1.1105c4p-20f,
     0x1.33ca2ep-22f, 0x1.46a222p-24f, 0x1.463d04p-26f, 0x1.32a474p-28f,
     0x1.0f310ep-30f, 0x1.c34c74p-33f, 0x1.61409cp-35f, 0x1.0417dap-37f,
     0x1.683cc4p-40f, 0x1.d53f28p-43f, 0x1.1f69a4p-45f, 0},
    {-0x1.988454p-2f,  -0x1.8bf2bap-2f,  -0x1.6883dp-2f,   -0x1.345d5ep-2f,
     -0x1.ef8e58p-3f,  -0x1.7610bap-3f,  -0x1.094086p-3f,  -0x1.616454p-4f,
     -0x1.ba4b46p-5f,  -0x1.0402e2p-5f,  -0x1.1f2f06p-6f,  -0x1.29fa56p-7f,
     -0x1.227212p-8f,  -0x1.09f386p-9f,  -0x1.c9896p-11f,  -0x1.71b904p-12f,
     -0x1.18a956p-13f, -0x1.904a7cp-15f, -0x1.0c292p-16f,  -0x1.51855p-18f,
     -0x1.8f14f6p-20f, -0x1.bb4806p-22f, -0x1.ce8b2ap-24f, -0x1.c5666cp-26f,
     -0x1.a1825cp-28f, -0x1.692a4p-30f,  -0x1.257ea8p-32f, -0x1.c01adep-35f,
     -0x1.415a9cp-37f, -0x1.b0fbd4p-40f, -0x1.120548p-42f, 0},
    {-0x1.29ca3ep-25f, 0x1.8bf1cep-5f,  0x1.688314p-4f,  0x1.ce8b54p-4f,
     0x1.ef8ddep-4f,   0x1.d394c4p-4f,  0x1.8de0fp-4f,   0x1.353818p-4f,
     0x1.ba4be6p-5f,   0x1.2483b4p-5f,  0x1.66fb42p-6f,  0x1.99b86ep-7f,
     0x1.b3aab8p-8f,   0x1.b02a62p-9f,  0x1.9055aep-10f, 0x1.5a99c6p-11f,
     0x1.18a4cep-12f,  0x1.a94558p-14f, 0x1.2da4c6p-15f, 0x1.90bda4p-17f,
     0x1.f2bf82p-19f,  0x1.22d3acp-20f, 0x1.3de536p-22f, 0x1.45c0a2p-24f,
     0x1.38fbbap-26f,  0x1.1a006ep-28f, 0x1.dc9d82p-31f, 0x1.79ccdap-33f,
     0x1.18f032p-35f,  0x1.87ffe8p-38f, 0x1.009abp-40f,  0},
    {0x1.1059a4p-4f,   0x1.eeee42p-5f,   0x1.6882b6p-5f,   0x1.67c09ap-6f,
     -0x1.23e57cp-23f, -0x1.188bb4p-6f,  -0x1.ba141ep-6f,  -0x1.e5e742p-6f,
     -0x1.ba48bep-6f,  -0x1.601778p-6f,  -0x1.f690b2p-7f,  -0x1.45e9d4p-7f,
     -0x1.8344c4p-8f,  -0x1.a7e16cp-9f,  -0x1.acfa74p-10f, -0x1.9283c2p-11f,
     -0x1.5ee61cp-12f, -0x1.1ca9fp-13f,  -0x1.ae578cp-15f, -0x1.2f6596p-16f,
     -0x1.8f586cp-18f, -0x1.eb053cp-20f, -0x1.1a27cep-21f, -0x1.2f3e46p-23f,
     -0x1.30e76p-25f,  -0x1.1eec7p-27f,  -0x1.f98eb2p-30f, -0x1.a1192cp-32f,
     -0x1.4255fcp-34f, -0x1.d2c6ep-37f,  -0x1.3cb656p-39f, 0},
    {-0x1.4f27b4p-16f, -0x1.81d9fcp-7f, -0x1.490072p-6f, -0x1.765d32p-6f,
     -0x1.49679ep-6f,  -0x1.bf8b92p-7f, -0x1.8f200ap-8f, 0x1.745d66p-12f,
     0x1.244a2ep-8f,   0x1.905084p-8f,  0x1.83ea1p-8f,   0x1.3753fp-8f,
     0x1.b41512p-9f,   0x1.11148ap-9f,  0x1.35f5c6p-10f, 0x1.4187f8p-11f,
     0x1.32887p-12f,   0x1.0da4dcp-13f, 0x1.b6ffe6p-15f, 0x1.4b70d2p-16f,
     0x1.d0fabap-18f,  0x1.2f7464p-19f, 0x1.70ed18p-21f, 0x1.a229f4p-23f,
     0x1.ba3d84p-25f,  0x1.b4ad3p-27f,  0x1.92cfb6p-29f, 0x1.5b4b4ep-31f,
     0x1.17fbcep-33f,  0x1.a64746p-36f, 0x1.29f9a4p-38f, 0},
    {-0x1.434296p-7f,  -0x1.1440d8p-7f,  -0x1.2aac12p-8f,  0x1.458c5ap-13f,
     0x1.079bc2p-8f,   0x1.86c804p-8f,   0x1.7e9d58p-8f,   0x1.18a94ap-8f,
     0x1.24260ap-9f,   0x1.d8fed6p-12f,  -0x1.5e6cdcp-11f, -0x1.25535cp-10f,
     -0x1.20c95ep-10f, -0x1.c27ca4p-11f, -0x1.2cb28ep-11f, -0x1.62ecbap-12f,
     -0x1.78d308p-13f, -0x1.6b9b88p-14f, -0x1.410c2ep-15f, -0x1.049f34p-16f,
     -0x1.86637p-18f,  -0x1.0e774cp-19f, -0x1.5b62bep-21f, -0x1.9e46bcp-23f,
     -0x1.cb58p-25f,   -0x1.da03cep-27f, -0x1.c7b23cp-29f, -0x1.987108p-31f,
     -0x1.558b9p-33f,  -0x1.0a9852p-35f, -0x1.84b492p-38f, 0},
};

KDFAST_INLINE Vec normal_coefficient(int j, IVec index) {
    const float* row = kNormalTail[j];
    return (Vec)_mm512_permutex2var_ps((__m512)load(row), (__m512i)index, (__m512)load(row + 16));
}
#endif

// Error of Φ ≤ 9e-8, of φ ≤ 8e-8; relative error of both ≤ 1e-6 for −2.6 ≤ x, ≤ 6e-5 for −5.6 ≤ x. From |x| = 8 on they
// are exactly 0 or 1. For x = NaN, x Φ and x φ are NaN (Φ and φ themselves need not be).
KDFAST_INLINE Normal normal(Vec x) {
    Vec tail, density;
#if defined(__AVX512DQ__)
    const Vec a = (Vec)_mm512_range_ps((__m512)x, (__m512)broadcast(7.75f), 10);  // min(|x|, 7.75) in one instruction
    const IVec index = (IVec)(a + 0x1.8p21f);                // a to the nearest quarter, k / 4, with k in the low bits
    const Vec d = (Vec)_mm512_reduce_ps((__m512)a, 2 << 4);  // a − k / 4
    // Horner's rule for the polynomial and, from the same partial sums, for its derivative.
    Vec slope = normal_coefficient(5, index);
    tail = slope * d + normal_coefficient(4, index);
    slope = slope * d + tail;
    for (int j = 3; j >= 1; --j) {
        tail = tail * d + normal_coefficient(j, index);
        slope = slope * d + tail;
    }
    tail = tail * d + normal_coefficient(0, index);
    density = -slope;
#else
    // R(u) = e^(a²/2) Q(a) for a ≤ 8, minimax (fitted as above), relative error 1.2e-8.
    const Vec a = min(broadcast(8.0f), abs(x)), e = exp_nonpositive(-0.5f * a * a);
    const Vec scaled = a * 0.2875f, u = scaled / (scaled + 1.0f);
    Vec r = u * 0x1.55b7c4p-5f - 0x1.f9a5d4p-4f;
    r = r * u + 0x1.8fdce8p-5f;
    r = r * u + 0x1.585ae2p-3f;
    r = r * u + 0x1.9d6a02p-5f;
    r = r * u - 0x1.deb67ep-1f;
    r = r * u + 0x1.a3116p+0f;
    r = r * u - 0x1.633b76p+0f;
    r = r * u + 0.5f;
    const IVec far = a >= 8.0f;
    tail = select(far, Vec{}, e * r);
    density = select(far, Vec{}, e * 0.398942280f);
#endif
    return {select(x > 0.0f, 1.0f - tail, tail), density};
}

}  // namespace kdfast::KDFAST_ISA_NS
