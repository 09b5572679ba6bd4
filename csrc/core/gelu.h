// GELU, z Φ(z), and its derivative Φ(z) + z φ(z), on a GPU.
//
// Exact but for rounding in float32, by the twin of core/normal.h, whose fit of the normal distribution's tail it has:
// Q(a) = Φ(−a) = e^(−a²/2) R(u), u = 0.2875 a / (1 + 0.2875 a), a = |z|. One exponential serves Φ and φ, and Φ keeps
// relative accuracy on the negative side, where 1 + erf(z / √2) has none.
//
// A value that is rounded to a 16-bit type needs fewer digits: there Φ(z) = 1 / (1 + 2^(z q(z²))), q a polynomial of
// degree 4, half the instructions. The value's error is ≤ 3.2e-6 (bench/gelu_fit.py); bfloat16 rounds 1 by 2e-3,
// float16 by 2.4e-4. The last coefficient is negative, so that beyond the fit the exponent goes to ∓∞ and Φ to 1 or
// 0. The slope is exact for all types: the bias's gradient is a sum of slopes in float32.
#pragma once

#include "core/gpu.h"

namespace kdfast::gpu {
namespace detail {

struct Normal {
    float cdf, exponential;  // Φ(z), e^(−z²/2)
};

__device__ __forceinline__ Normal normal(float z) {
    const float e = exp2_approx(-0.72134752f * z * z);
    const float scaled = 0.2875f * fabsf(z), u = scaled * reciprocal_approx(1.0f + scaled);
    float r = fmaf(0x1.55b7c4p-5f, u, -0x1.f9a5d4p-4f);  // R: minimax for a ≤ 8, relative error 1.2e-8
    r = fmaf(r, u, 0x1.8fdce8p-5f);
    r = fmaf(r, u, 0x1.585ae2p-3f);
    r = fmaf(r, u, 0x1.9d6a02p-5f);
    r = fmaf(r, u, -0x1.deb67ep-1f);
    r = fmaf(r, u, 0x1.a3116p+0f);
    r = fmaf(r, u, -0x1.633b76p+0f);
    r = fmaf(r, u, 0.5f);
    const float tail = e * r;
    return {z > 0.0f ? 1.0f - tail : tail, e};
}

}  // namespace detail

// T: what the value is rounded to.
template <class T>
__device__ __forceinline__ float gelu(float z) {
    if constexpr (sizeof(T) == 4) {
        return z * detail::normal(z).cdf;
    } else {
        const float t = z * z;
        float q = fmaf(-0x1.af18eep-19f, t, 0x1.70e25ep-14f);
        q = fmaf(q, t, 0x1.7b476cp-12f);
        q = fmaf(q, t, -0x1.af04e4p-4f);
        q = fmaf(q, t, -0x1.26a96p+1f);
        return z * reciprocal_approx(1.0f + exp2_approx(z * q));
    }
}

__device__ __forceinline__ float gelu_slope(float z) {
    const detail::Normal n = detail::normal(z);
    return fmaf(0.39894228f * z, n.exponential, n.cdf);
}

}  // namespace kdfast::gpu
