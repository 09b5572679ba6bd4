// The arithmetic of one head of one jet, a block of W queries at a time, with the queries in the lanes: softmax then
// runs down the lanes without a horizontal step, no key is padding, and surplus lanes of a last block cost nothing but
// their place. Scores stand transposed, [n keys][W queries], in a buffer that stays in L1.
#pragma once

#include "core/philox_lanes.h"
#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

template <int N>
struct Constant {
    static constexpr int value = N;
};

template <int W>
struct Lanes {
    typedef float F __attribute__((vector_size(4 * W)));
    typedef int32_t I __attribute__((vector_size(4 * W)));
    typedef uint32_t U __attribute__((vector_size(4 * W)));

    static KDFAST_INLINE F load(const float* p) {
        F v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static KDFAST_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
    // e^x for x ≤ 0; 0 below the smallest normal number; NaN stays NaN.
    static KDFAST_INLINE F exp(F x) {
        F n = x * 1.44269504f + 12582912.0f;  // 1.5·2^23: rounds to an integer in the low bits
        const I power = ((I)n << 23) + 0x3F800000;
        n -= 12582912.0f;
        F f = x - n * 0.693359375f;  // ln 2 in two parts
        f -= n * -2.12194440e-4f;
        F p = f * 1.9875691e-4f + 1.3981999e-3f;
        p = p * f + 8.3334519e-3f;
        p = p * f + 4.1665796e-2f;
        p = p * f + 1.6666665e-1f;
        p = p * f + 0.5f;
        p = p * f * f + f + 1.0f;
        return x < -87.33655f ? F{} : p * (F)power;
    }
    // ln x for positive normal x; NaN stays NaN.
    static KDFAST_INLINE F log(F x) {
        const I exponent = ((I)x - 0x3F3504F3) >> 23;  // x = m · 2^exponent, m in [√½, √2)
        const F f = (F)((I)x - (exponent << 23)) - 1.0f, z = f * f;
        const F e = (F)(exponent + 0x4B400000) - 12582912.0f;  // an integer to float: 1.5·2^23 + e − 1.5·2^23
        F p = f * 7.0376836292e-2f - 1.1514610310e-1f;
        p = p * f + 1.1676998740e-1f;
        p = p * f - 1.2420140846e-1f;
        p = p * f + 1.4249322787e-1f;
        p = p * f - 1.6668057665e-1f;
        p = p * f + 2.0000714765e-1f;
        p = p * f - 2.4999993993e-1f;
        p = p * f + 3.3333331174e-1f;
        const F y = p * f * z - e * 2.12194440e-4f - z * 0.5f;
        return x == x ? f + y + e * 0.693359375f : x;
    }
};

// One head of one jet. Rows are float32 with a stride in elements.
struct Head {
    int64_t n;
    const float *q, *k, *v, *grad_out;
    int64_t ld_q, ld_k, ld_v, ld_grad_out;
    float *out, *dq, *dk, *dv;
    int64_t ld_out, ld_dq, ld_dk, ld_dv;
    float* lse;
    int64_t ld_lse;
    const float* bias;  // [n, n] or null
    float* dbias;       // [n, n] or null
    bool add_dbias;     // to what is there
    float scale, keep_scale;
    uint64_t seed;
    uint32_t threshold, jet, head;
    float *q_t, *grad_t;               // scratch: [D][W]
    float *weights, *grads, *dropped;  // scratch: [n][W]
};

// to[c * W + i] = factor · rows[i][c] for i < count, 0 for the other lanes.
template <int D, int W>
KDFAST_INLINE void transpose(const float* rows, int64_t ld, int count, float factor, float* to) {
    if constexpr (W < 8) {
        for (int c = 0; c < D; ++c)
            for (int i = 0; i < W; ++i) to[c * W + i] = i < count ? rows[i * ld + c] * factor : 0.0f;
    } else {
        typedef typename Lanes<8>::F F;
        typedef typename Lanes<8>::I I;
        for (int i = 0; i < W; i += 8)
            for (int c = 0; c < D; c += 8) {
                F a[8], b[8];
#pragma GCC unroll 8
                for (int r = 0; r < 8; ++r)
                    a[r] = i + r < count ? Lanes<8>::load(rows + (i + r) * ld + c) * factor : F{};
#pragma GCC unroll 4
                for (int r = 0; r < 8; r += 2) {
                    b[r] = KDFAST_SHUFFLE(I, a[r], a[r + 1], 0, 8, 2, 10, 4, 12, 6, 14);
                    b[r + 1] = KDFAST_SHUFFLE(I, a[r], a[r + 1], 1, 9, 3, 11, 5, 13, 7, 15);
                }
#pragma GCC unroll 4
                for (int r = 0; r < 8; r += 4)
#pragma GCC unroll 2
                    for (int s = r; s < r + 2; ++s) {
                        a[s] = KDFAST_SHUFFLE(I, b[s], b[s + 2], 0, 1, 8, 9, 4, 5, 12, 13);
                        a[s + 2] = KDFAST_SHUFFLE(I, b[s], b[s + 2], 2, 3, 10, 11, 6, 7, 14, 15);
                    }
#pragma GCC unroll 4
                for (int r = 0; r < 4; ++r) {
                    Lanes<8>::store(to + (c + r) * W + i, KDFAST_SHUFFLE(I, a[r], a[r + 4], 0, 1, 2, 3, 8, 9, 10, 11));
                    Lanes<8>::store(to + (c + r + 4) * W + i,
                                    KDFAST_SHUFFLE(I, a[r], a[r + 4], 4, 5, 6, 7, 12, 13, 14, 15));
                }
            }
    }
}

// s[j] += Σ_c x_t[c] · rows[j][c]: lanes are queries, J keys.
template <int D, int W, int J>
KDFAST_INLINE void dot_tile(const float* x_t, const float* rows, int64_t ld, typename Lanes<W>::F (&s)[J]) {
#pragma GCC unroll 4
    for (int c = 0; c < D; ++c) {
        const auto x = Lanes<W>::load(x_t + c * W);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) s[j] += x * rows[j * ld + c];
    }
}

// Calls tile(integral constant J, j) for j in [0, n) in steps of 8, then 4, 2, 1.
template <int Max, class Tile>
KDFAST_INLINE void in_tiles(int64_t n, Tile&& tile) {
    int64_t j = 0;
    for (; j + Max <= n; j += Max) tile(Constant<Max>{}, j);
    if constexpr (Max > 1) {
        if constexpr (Max > 4)
            if (n - j >= 4) tile(Constant<4>{}, j), j += 4;
        if constexpr (Max > 2)
            if (n - j >= 2) tile(Constant<2>{}, j), j += 2;
        if (n - j >= 1) tile(Constant<1>{}, j);
    }
}

// How many rows of V vectors each to accumulate at a time in the registers that there are.
constexpr int tile_rows(int V) {
    int rows = 8;
    while (rows > 1 && rows * V > (kLanes == 16 ? 16 : 8)) rows /= 2;
    return rows;
}

// out[a] (+)= factor[a · factor_step] · Σ_b coef[a · SA + b · SB] · rows[b] for a < num_out, b < count.
template <int D, int SA, int SB>
KDFAST_INLINE void combine(const float* coef, int64_t num_out, int64_t count, const float* rows, int64_t ld, float* out,
                           int64_t ld_out, const float* factor, int factor_step, bool add) {
    constexpr int L = D % kLanes == 0 ? kLanes : 8, V = D / L;
    constexpr int kMax = tile_rows(V);
    typedef typename Lanes<L>::F F;
    in_tiles<kMax>(num_out, [&](auto size, int64_t a0) __attribute__((always_inline)) {
        constexpr int A = size.value;
        F acc[A][V];
#pragma GCC unroll 8
        for (int a = 0; a < A; ++a)
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) acc[a][v] = F{};
        const float* c = coef + a0 * SA;
        const float* r = rows;
        for (int64_t b = 0; b < count; ++b, c += SB, r += ld) {
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) {
                const F row = Lanes<L>::load(r + v * L);
#pragma GCC unroll 8
                for (int a = 0; a < A; ++a) acc[a][v] += row * c[a * SA];
            }
        }
#pragma GCC unroll 8
        for (int a = 0; a < A; ++a)
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) {
                float* to = out + (a0 + a) * ld_out + v * L;
                F x = acc[a][v] * factor[(a0 + a) * factor_step];
                if (add) x += Lanes<L>::load(to);
                Lanes<L>::store(to, x);
            }
    });
}

// Calls each(j, keep) for every key, keep being a mask over the W queries from first on.
template <int W, class Each>
KDFAST_INLINE void for_each_keep(const Head& h, int64_t first, Each&& each) {
    typedef typename Lanes<W>::U U;
    constexpr int kParts = W / kPhiloxLanes > 0 ? W / kPhiloxLanes : 1;
    const U threshold = U{} + h.threshold, high_threshold = threshold << 16;
    const int64_t n = h.n;
    for (int64_t j = 0; j < n; j += 8) {
        U words[4];
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
            WVec c[4] = {WVec{} + h.jet, WVec{} + h.head,
                         lane_numbers() + static_cast<uint64_t>(first + part * kPhiloxLanes),
                         WVec{} + static_cast<uint64_t>(j / 8)};
            philox_rounds(h.seed, c[0], c[1], c[2], c[3]);
#pragma GCC unroll 4
            for (int w = 0; w < 4; ++w) {
                typedef uint32_t Half __attribute__((vector_size(4 * kPhiloxLanes)));
                const Half half = __builtin_convertvector(c[w], Half);
                std::memcpy(reinterpret_cast<char*>(&words[w]) + part * sizeof half, &half, sizeof half);
            }
        }
#pragma GCC unroll 8
        for (int e = 0; e < 8; ++e)
            if (j + e < n) {
                const U word = words[e / 2];
                each(j + e, e % 2 == 0 ? (word & 0xFFFFu) >= threshold : word >= high_threshold);
            }
    }
}

// The block's biases, transposed as the scores are: to[j * W + i].
template <int W>
KDFAST_INLINE void load_bias(const Head& h, int64_t first, int count, float* to) {
    for (int64_t j = 0; j < h.n; ++j)
        for (int i = 0; i < W; ++i) to[j * W + i] = i < count ? h.bias[(first + i) * h.n + j] : 0.0f;
}

template <int D, int W>
void forward_block(const Head& h, int64_t first) {
    typedef typename Lanes<W>::F F;
    typedef Lanes<W> L;
    const int64_t n = h.n;  // copies in registers: stores through memcpy may alias h
    const bool biased = h.bias != nullptr;
    const int count = static_cast<int>(n - first < W ? n - first : W);
    float* const weights = h.weights;
    transpose<D, W>(h.q + first * h.ld_q, h.ld_q, count, h.scale, h.q_t);
    if (biased) load_bias<W>(h, first, count, weights);
    F top = F{} - __builtin_inff();
    in_tiles<8>(n, [&](auto size, int64_t j0) __attribute__((always_inline)) {
        constexpr int J = size.value;
        F s[J];
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) s[j] = F{};
        dot_tile<D, W, J>(h.q_t, h.k + j0 * h.ld_k, h.ld_k, s);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) {
            if (biased) s[j] += L::load(weights + (j0 + j) * W);
            L::store(weights + (j0 + j) * W, s[j]);
            top = s[j] > top ? s[j] : top;
        }
    });
    F sum = F{};
    for (int64_t j = 0; j < n; ++j) {
        const F e = L::exp(L::load(weights + j * W) - top);
        sum += e;
        L::store(weights + j * W, e);
    }
    if (h.threshold)
        for_each_keep<W>(h, first, [&](int64_t j, auto keep) __attribute__((always_inline)) {
            L::store(weights + j * W, keep ? L::load(weights + j * W) : F{});
        });
    float lse[W], inverses[W];
    L::store(lse, top + L::log(sum));
    L::store(inverses, h.keep_scale / sum);
    for (int i = 0; i < count; ++i) h.lse[(first + i) * h.ld_lse] = lse[i];
    combine<D, 1, W>(weights, count, n, h.v, h.ld_v, h.out + first * h.ld_out, h.ld_out, inverses, 1, false);
}

template <int D, int W>
void backward_block(const Head& h, int64_t first) {
    typedef typename Lanes<W>::F F;
    typedef Lanes<W> L;
    const int64_t n = h.n;  // copies in registers: stores through memcpy may alias h
    const bool biased = h.bias != nullptr;
    const int count = static_cast<int>(n - first < W ? n - first : W);
    float *const weights = h.weights, *const grads = h.grads;
    const float* q = h.q + first * h.ld_q;
    const float* grad_out = h.grad_out + first * h.ld_grad_out;
    transpose<D, W>(q, h.ld_q, count, h.scale, h.q_t);
    transpose<D, W>(grad_out, h.ld_grad_out, count, h.keep_scale, h.grad_t);
    if (biased) load_bias<W>(h, first, count, weights);
    float lses[W] = {};
    for (int i = 0; i < count; ++i) lses[i] = h.lse[(first + i) * h.ld_lse];
    const F lse = L::load(lses);
    F total = F{}, mean = F{};  // Σ_j P_ij, which lse's rounding leaves near 1; D_i
    in_tiles<8>(n, [&](auto size, int64_t j0) __attribute__((always_inline)) {
        constexpr int J = size.value;
        F s[J], g[J];
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) s[j] = F{};
        dot_tile<D, W, J>(h.q_t, h.k + j0 * h.ld_k, h.ld_k, s);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) {
            if (biased) s[j] += L::load(weights + (j0 + j) * W);
            s[j] = L::exp(s[j] - lse);
            total += s[j];
            L::store(weights + (j0 + j) * W, s[j]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) g[j] = F{};
        dot_tile<D, W, J>(h.grad_t, h.v + j0 * h.ld_v, h.ld_v, g);
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) L::store(grads + (j0 + j) * W, g[j]);
    });
    if (h.threshold)
        for_each_keep<W>(h, first, [&](int64_t j, auto keep) __attribute__((always_inline)) {
            const F p = L::load(weights + j * W), g = L::load(grads + j * W);
            L::store(h.dropped + j * W, keep ? p : F{});
            L::store(grads + j * W, keep ? g : F{});
        });
    for (int64_t j = 0; j < n; ++j) mean += L::load(weights + j * W) * L::load(grads + j * W);
    const F inverse = 1.0f / total;
    mean *= inverse;
    float* const dropped = h.threshold ? h.dropped : weights;
    for (int64_t j = 0; j < n; ++j) {
        const F p = L::load(weights + j * W) * inverse;
        L::store(grads + j * W, p * (L::load(grads + j * W) - mean));
        L::store(dropped + j * W, L::load(dropped + j * W) * inverse);
    }
    if (h.dbias)
        for (int i = 0; i < count; ++i)
            for (int64_t j = 0; j < n; ++j) {
                float& to = h.dbias[(first + i) * n + j];
                to = h.add_dbias ? to + grads[j * W + i] : grads[j * W + i];
            }
    combine<D, 1, W>(grads, count, n, h.k, h.ld_k, h.dq + first * h.ld_dq, h.ld_dq, &h.scale, 0, false);
    combine<D, W, 1>(grads, n, count, q, h.ld_q, h.dk, h.ld_dk, &h.scale, 0, first > 0);
    combine<D, W, 1>(dropped, n, count, grad_out, h.ld_grad_out, h.dv, h.ld_dv, &h.keep_scale, 0, first > 0);
}

// All blocks of a head; a last block of few queries takes half the lanes.
template <int D, bool kBackward>
__attribute__((noinline)) void run_head(const Head& h) {
    for (int64_t first = 0; first < h.n;) {
        if constexpr (kLanes == 16)
            if (h.n - first <= 8) return kBackward ? backward_block<D, 8>(h, first) : forward_block<D, 8>(h, first);
        kBackward ? backward_block<D, kLanes>(h, first) : forward_block<D, kLanes>(h, first);
        first += kLanes;
    }
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
