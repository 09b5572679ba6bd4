// The loss of one jet and its gradient on a GPU; the forms are those of distill_loss.cpp, at whose head they are
// derived:
//
//     KL(p ‖ q) = ln(1 + S),   S = Σ_c p_c (e^x_c − 1 − x_c),   x_c = d_c − Σ p d,   d = (s − t) / T,
//     q_c − p_c = p_c (e^x_c − 1 − S) / (1 + S)
//
// for |x| ≤ kNear, where they keep their digits however close student and teacher are, and by q itself farther away.
#pragma once

#include "core/gpu.h"

namespace kdfast::gpu {

constexpr float kNear = 2.0f;

// One member's constants, made by prepare from its temperature and α.
struct alignas(16) Member {
    float reciprocal, reciprocal_rest;  // 1 / T as a sum of two
    float kd_scale, ce_scale;           // of the gradient: α T / Σw, (1 − α) / Σw
    double kd_mean, ce_mean;            // of the terms: T² / Σw, 1 / Σw
    double alpha;
};

// The part of it that rows need.
struct Scales {
    float reciprocal, reciprocal_rest, kd_scale, ce_scale;
};

// x / T, as well rounded as by a division.
__device__ __forceinline__ float divide(float x, const Scales& m) {
    return fmaf(x, m.reciprocal, x * m.reciprocal_rest);
}

// (e^x − 1 − x) / x² for |x| ≤ 2, relative error 1e-7: minimax.
__device__ __forceinline__ float exp_quotient(float x) {
    float r = fmaf(0x1.b74b02p-26f, x, 0x1.3e9a48p-22f);
    r = fmaf(r, x, 0x1.726ffep-19f);
    r = fmaf(r, x, 0x1.9ee1bap-16f);
    r = fmaf(r, x, 0x1.a00e92p-13f);
    r = fmaf(r, x, 0x1.6c1d7ep-10f);
    r = fmaf(r, x, 0x1.11114cp-7f);
    r = fmaf(r, x, 0x1.55553cp-5f);
    r = fmaf(r, x, 0x1.555554p-3f);
    return fmaf(r, x, 0.5f);
}

// ln(1 + u) = 2 artanh(w) = 2 w + w³ Q(w²) with w = u / (2 + u), Q minimax with a relative error of 1e-8.
// For 0 ≤ u ≤ 1:
__device__ __forceinline__ float log1p_unit(float u) {
    const float w = u * reciprocal_approx(2.0f + u), x = w * w;
    float q = fmaf(0x1.dbebcap-3f, x, 0x1.bc7d66p-3f);
    q = fmaf(q, x, 0x1.24c9aap-2f);
    q = fmaf(q, x, 0x1.9998d2p-2f);
    q = fmaf(q, x, 0x1.555556p-1f);
    return fmaf(w * x, q, 2.0f * w);
}
// u − ln(1 + u) for −0.45 ≤ u ≤ 3.2, right to some units in the last place where u is tiny: u − 2 w = u w.
__device__ __forceinline__ float log1p_rest(float u) {
    const float w = u * reciprocal_approx(2.0f + u), x = w * w;
    float q = fmaf(0x1.2af826p-1f, x, -0x1.f1a0fcp-3f);
    q = fmaf(q, x, 0x1.2af4f6p-2f);
    q = fmaf(q, x, 0x1.3dceacp-3f);
    q = fmaf(q, x, 0x1.ccac84p-3f);
    q = fmaf(q, x, 0x1.246f34p-2f);
    q = fmaf(q, x, 0x1.999a40p-2f);
    q = fmaf(q, x, 0x1.555556p-1f);
    return fmaf(u, w, -(w * x * q));
}

__device__ __forceinline__ float clamp_near(float x) { return fminf(fmaxf(x, -kNear), kNear); }

// a − b as a rounded difference and what rounding lost (Knuth).
struct Difference {
    float high, low;
};
__device__ __forceinline__ Difference exact_difference(float a, float b) {
    const float high = a - b, z = high - a;
    return {high, (a - (high - z)) - (b + z)};
}
// (s − t) − (s_ref − t_ref): exact where s ≈ t, and where a shift lies between student and teacher.
__device__ __forceinline__ float minus(Difference a, Difference reference) {
    return (a.high - reference.high) + (a.low - reference.low);
}

// KL(Bern(p) ‖ Bern(q)) and q − p, with p = σ(b), q = σ(a), d = a − b (given, since it has more digits than a − b).
// Of the two classes take the one with p ≤ ½ (b ≤ 0). With u = p (e^d − 1),
//     KL = p (e^d − 1 − d) − (u − ln(1 + u)),   q − p = (1 − p) u / (1 + u).
__device__ __forceinline__ void bernoulli(float a, float b, float d, float& kl, float& difference) {
    const bool flip = b > 0.0f;
    const float eb = expf(-fabsf(b)), inverse = reciprocal_approx(1.0f + eb), p = eb * inverse;
    d = flip ? -d : d;
    const float rest = d * d * exp_quotient(d), u = p * (d + rest);
    kl = fmaf(p, rest, -log1p_rest(u));
    difference = inverse * u * reciprocal_approx(1.0f + u);
    if (!(fabsf(d) <= kNear)) {  // NaN comes here too
        a = flip ? -a : a;
        const float ea = expf(-fabsf(a));
        kl = (fmaxf(a, 0.0f) - p * d) + (log1p_unit(ea) - log1p_unit(eb));
        difference = (a > 0.0f ? 1.0f : ea) * reciprocal_approx(1.0f + ea) - p;
    }
    difference = flip ? -difference : difference;
}

// Binary cross-entropy of logit s with label y, and its derivative σ(s) − y. Of the two sides of s take the one where
// the exponential is small: with h = 1 for s > 0, else 0,  CE = s (h − y) + ln(1 + e^−|s|),  σ(s) = h ∓ e^−|s| / (1 +
// e^−|s|).
__device__ __forceinline__ void binary_cross_entropy(float s, float y, float& ce, float& derivative) {
    const bool above = s > 0.0f;
    const float e = expf(-fabsf(s)), side = (above ? 1.0f : 0.0f) - y;
    ce = fmaf(s, side, log1p_unit(e));
    derivative = fmaf(above ? -1.0f : 1.0f, e * reciprocal_approx(1.0f + e), side);
}

struct RowTerms {
    float kl = 0.0f, ce = 0.0f;
};

// One jet of one or two classes (two: the softmax is the sigmoid of their difference). grad gets the gradient by each.
template <int C>
__device__ __forceinline__ RowTerms two_class_loss(const Scales& m, bool distils, const float (&s)[C],
                                                   const float (&t)[C], float y, float (&grad)[C]) {
    RowTerms terms;
    const float logit = C == 1 ? s[0] : s[C - 1] - s[0];
    float derivative;
    binary_cross_entropy(logit, y, terms.ce, derivative);
    float g = m.ce_scale * derivative;
    if (distils) {
        const float teacher = C == 1 ? t[0] : t[C - 1] - t[0];
        const float gap =
            C == 1 ? logit - teacher : minus(exact_difference(s[C - 1], t[C - 1]), exact_difference(s[0], t[0]));
        float difference;
        bernoulli(divide(logit, m), divide(teacher, m), divide(gap, m), terms.kl, difference);
        g = fmaf(m.kd_scale, difference, g);
    }
    grad[0] = C == 1 ? g : -g;
    grad[C - 1] = g;
    return terms;
}

// Reductions over the kLanes lanes that share a jet, each of whom gets the result.
template <int kLanes>
__device__ __forceinline__ int first_class(int c) {
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) c = min(c, __shfl_xor_sync(kFullMask, c, lanes));
    return c;
}

// The class of the largest of x; C where there is none (NaN).
template <int kLanes, int kValues>
__device__ __forceinline__ int top_class(const float (&x)[kValues], float largest, int lane, int num_classes) {
    int top = num_classes;
#pragma unroll
    for (int i = kValues - 1; i >= 0; --i) top = x[i] == largest ? i * kLanes + lane : top;
    return first_class<kLanes>(top);
}

// One jet of C ≥ 3 classes, on kLanes neighbouring lanes: value i of a lane is class i · kLanes + lane, −∞ beyond the
// last class. All lanes of the warp call.
template <int kLanes, int kValues>
__device__ __forceinline__ RowTerms many_class_loss(const Scales& m, bool distils, int num_classes,
                                                    const float (&s)[kValues], const float (&t)[kValues], int label,
                                                    float (&grad)[kValues]) {
    const int lane = lane_index() % kLanes;
    RowTerms terms;
    float s_max = s[0];
#pragma unroll
    for (int i = 1; i < kValues; ++i) s_max = fmaxf(s_max, s[i]);
    s_max = warp_max<kLanes>(s_max);

#pragma unroll
    for (int i = 0; i < kValues; ++i) grad[i] = 0.0f;
    if (distils) {
        float t_max = t[0];
#pragma unroll
        for (int i = 1; i < kValues; ++i) t_max = fmaxf(t_max, t[i]);
        t_max = warp_max<kLanes>(t_max);
        const int t_top = top_class<kLanes>(t, t_max, lane, num_classes);
        float s_ref = 0.0f;  // d counts from the teacher's favourite class, the heaviest in Σ p d
#pragma unroll
        for (int i = 0; i < kValues; ++i) s_ref += i * kLanes + lane == t_top ? s[i] : 0.0f;
        s_ref = warp_sum<kLanes>(s_ref);
        const Difference reference = exact_difference(s_ref, t_max);
        float p[kValues], x[kValues], p_sum = 0.0f, d_sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
            const bool is_class = i * kLanes + lane < num_classes;
            p[i] = is_class ? expf(divide(t[i] - t_max, m)) : 0.0f;
            x[i] = is_class ? divide(minus(exact_difference(s[i], t[i]), reference), m) : 0.0f;
            p_sum += p[i];
            d_sum = fmaf(p[i], x[i], d_sum);
        }
        p_sum = warp_sum<kLanes>(p_sum);
        const float p_norm = 1.0f / p_sum, mean = warp_sum<kLanes>(d_sum) * p_norm;
        float excess = 0.0f, drift = 0.0f;  // drift: what rounding the mean has left of Σ p (d − mean)
        bool wide = false;
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
            const float centred = x[i] - mean, near = clamp_near(centred), rest = near * near * exp_quotient(near);
            wide = wide || (i * kLanes + lane < num_classes && !(fabsf(centred) <= kNear));
            excess = fmaf(p[i], rest, excess);
            drift = fmaf(p[i], centred, drift);
            x[i] = near + rest;
        }
        excess = warp_sum<kLanes>(excess) * p_norm;
        terms.kl = log1pf(excess);
        const float near_scale = m.kd_scale * p_norm / (1.0f + excess);
#pragma unroll
        for (int i = 0; i < kValues; ++i) grad[i] = near_scale * p[i] * (x[i] - excess);
        const unsigned wide_lanes = __ballot_sync(kFullMask, wide);
        if (wide_lanes != 0) {  // the same for the whole warp: rows that are near go along and keep what they have
            const unsigned neighbours = kLanes == kWarp ? kFullMask : (1u << kLanes % kWarp) - 1u;
            const bool row_is_wide = wide_lanes >> (lane_index() - lane) & neighbours;
            float q_sum = 0.0f;
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
                x[i] = i * kLanes + lane < num_classes ? expf(divide(s[i] - s_max, m)) : 0.0f;
                q_sum += x[i];
            }
            q_sum = warp_sum<kLanes>(q_sum);
            const float q_norm = 1.0f / q_sum;
            // Where the teacher's favourite has p > ½, its q − p, perhaps 1 − 1, is minus the others' sum.
            float others = 0.0f;
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
                x[i] = m.kd_scale * (x[i] * q_norm - p[i] * p_norm);
                others += i * kLanes + lane == t_top ? 0.0f : x[i];
            }
            others = warp_sum<kLanes>(others);
            drift = warp_sum<kLanes>(drift) * p_norm;
            const Difference lead = exact_difference(s_max, s_ref);
            const float kl = (divide(lead.high, m) - mean) + (logf(q_sum * p_norm) + (divide(lead.low, m) - drift));
            terms.kl = row_is_wide ? kl : terms.kl;
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
                const bool replaced = p_norm > 0.5f && i * kLanes + lane == t_top;
                grad[i] = row_is_wide ? (replaced ? -others : x[i]) : grad[i];
            }
        }
    }

    const int s_top = top_class<kLanes>(s, s_max, lane, num_classes);
    float e[kValues], own = 0.0f, own_exp = 0.0f;
    float below_top = 0.0f, others = 0.0f;  // Σ e^(s − max s) without the top class, and without the label's
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
        const int c = i * kLanes + lane;
        const float shifted = s[i] - s_max;
        e[i] = c < num_classes ? expf(shifted) : 0.0f;
        own += c == label ? shifted : 0.0f;
        own_exp += c == label ? e[i] : 0.0f;
        below_top += c == s_top ? 0.0f : e[i];
        others += c == label ? 0.0f : e[i];
    }
    own = warp_sum<kLanes>(own);
    own_exp = warp_sum<kLanes>(own_exp);
    below_top = warp_sum<kLanes>(below_top);
    others = warp_sum<kLanes>(others);
    terms.ce = log1pf(below_top) - own;
    const float s_norm = 1.0f / (1.0f + below_top), own_softmax = own_exp * s_norm;
    const float own_grad = m.ce_scale * (own_softmax > 0.5f ? -others * s_norm : own_softmax - 1.0f);
#pragma unroll
    for (int i = 0; i < kValues; ++i) grad[i] += i * kLanes + lane == label ? own_grad : m.ce_scale * s_norm * e[i];
    return terms;
}

}  // namespace kdfast::gpu
