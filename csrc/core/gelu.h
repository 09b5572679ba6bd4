// The exact GELU, z Φ(z), and its derivative Φ(z) + z φ(z), on a GPU; the twin of core/normal.h, whose fit of the
// normal distribution's tail it has: Q(a) = Φ(−a) = e^(−a²/2) R(u), u = 0.2875 a / (1 + 0.2875 a), a = |z|. One
// exponential serves both and Φ keeps relative accuracy on the negative side, where 1 + erf(z / √2) has none.
#pragma once

#include "core/gpu.h"

namespace kdfast::gpu {

struct Gelu {
    float value, slope;
};

__device__ __forceinline__ Gelu gelu(float z) {
    const float e = exp2_approx(-0.72134752f * z * z);  // e^(−z²/2)
    const float scaled = 0.2875f * fabsf(z), u = scaled * reciprocal_approx(1.0f + scaled);
    float r = fmaf(0x1.55b7c4p-5f, u, -0x1.f9a5d4p-4f);  // R: minimax for a ≤ 8, relative error 1.2e-8
    r = fmaf(r, u, 0x1.8fdce8p-5f);
    r = fmaf(r, u, 0x1.585ae2p-3f);
    r = fmaf(r, u, 0x1.9d6a02p-5f);
    r = fmaf(r, u, -0x1.deb67ep-1f);
    r = fmaf(r, u, 0x1.a3116p+0f);
    r = fmaf(r, u, -0x1.633b76p+0f);
    r = fmaf(r, u, 0.5f);
    const float tail = e * r, cdf = z > 0.0f ? 1.0f - tail : tail;
    return {z * cdf, fmaf(0.39894228f * z, e, cdf)};
}

}  // namespace kdfast::gpu
