// The arithmetic of one head of one jet, a block of up to 3 vectors of queries at a time, with the queries in the
// lanes: softmax then runs down the lanes without a horizontal step. Scores stand transposed, [n keys][kWidth queries],
// in a buffer that stays in L1 or L2. Keys are computed in fours: rows that are n or more repeat the last one, and
// nobody reads what becomes of them. Surplus lanes of the last block hold finite numbers that nobody reads either.
#pragma once

#include "core/philox_lanes.h"
#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr int kBlockVectors = 3;
constexpr int kWidth = kBlockVectors * kLanes;  // floats from one key's scores to the next's
constexpr int kKeyStep = 4;
constexpr int64_t padded_keys(int64_t n) { return round_up(n, kKeyStep); }

// Memory that will be needed soon, asked for line by line while the tiles compute: asked for at once, it would hold up
// the loads that they wait for.
struct Ahead {
    const char *at[4], *end[4];
    int range, ranges;

    KDFAST_INLINE void step() {
        if (range == ranges) return;
        __builtin_prefetch(at[range], 0, 2);
        at[range] += 64;
        if (at[range] >= end[range]) ++range;
    }
};

// One head of one jet; D features a head.
struct Head {
    int64_t n;
    const float *q, *k, *v, *grad_out;  // [n][D]; k and v: [padded_keys(n)][D]
    float *out, *dq, *dk, *dv;          // rows with the strides below, in floats
    int64_t ld_out, ld_dq, ld_dk, ld_dv;
    bool stream;  // these rows go past the caches
    Ahead* ahead;
    float* lse;
    int64_t ld_lse;
    const float* bias;  // [n, n] or null
    float* dbias;       // [n, n] or null
    bool add_dbias;     // to what is there
    float scale, keep_scale;
    uint64_t seed;
    uint32_t threshold, jet, head;
    float *q_t, *grad_t;               // scratch: [D][kWidth]
    float *weights, *grads, *dropped;  // scratch: [padded_keys(n)][kWidth]
    float *q_rows, *grad_rows;         // scratch: [kWidth][D]
    float *dk_sum, *dv_sum;            // scratch: [n][D]
};

template <int L>
struct Lanes {
    typedef float F __attribute__((vector_size(4 * L)));
    typedef int32_t I __attribute__((vector_size(4 * L)));

    static KDFAST_INLINE F load(const float* p) {
        F v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static KDFAST_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
    // To a multiple of the vector's size, past the caches where the instruction set can.
    static KDFAST_INLINE void stream(float* p, F v) {
#if defined(__AVX512F__)
        if constexpr (L == 16) return _mm512_stream_ps(p, (__m512)v);
#endif
#if defined(__AVX__)
        if constexpr (L == 8) return _mm256_stream_ps(p, (__m256)v);
#endif
#if defined(__x86_64__)
        if constexpr (L == 4) return _mm_stream_ps(p, (__m128)v);
#endif
        store(p, v);
    }
};

// 2^t for t ≤ 1 or so, relative error 1.4e-7; 0 for t < -100, which spares the products of it from being subnormal
// (each costs some hundred cycles); NaN stays NaN.
KDFAST_INLINE Vec exp2_nonpositive(Vec t) {
#if defined(__AVX512DQ__)
    const Vec f = (Vec)_mm512_reduce_ps((__m512)t, 1);  // t − ⌊t⌋
#else
    const Vec n = (t - 0.5f) + 12582912.0f;  // 1.5·2^23: rounds to an integer in the low bits
    const Vec f = t - (n - 12582912.0f);
#endif
    Vec p = f * 0x1.e96912p-10f + 0x1.277c1cp-7f;  // minimax on [0, 1], exact at 0
    p = p * f + 0x1.c91c10p-5f;
    p = p * f + 0x1.ebdb6ap-3f;
    p = p * f + 0x1.62e4bap-1f;
    p = p * f + 1.0f;
#if defined(__AVX512DQ__)
    const __mmask16 counts = _mm512_cmp_ps_mask((__m512)t, _mm512_set1_ps(-100.0f), _CMP_NLT_UQ);
    return (Vec)_mm512_maskz_scalef_ps(counts, (__m512)p, (__m512)t);  // p · 2^⌊t⌋
#else
    return select(t >= -100.0f, (Vec)((IVec)p + ((IVec)n << 23)), max(Vec{}, t));  // the largest of 0 and NaN is NaN
#endif
}

constexpr float kLog2E = 1.44269504f;

// to[c * kWidth + i] = factor · rows[i * D + c] for i < count, 0 for the other lanes of V vectors.
template <int D, int V>
KDFAST_INLINE void transpose(const float* rows, int count, float factor, float* to) {
    if constexpr (kLanes < 8) {
        for (int c = 0; c < D; ++c)
            for (int i = 0; i < V * kLanes; ++i) to[c * kWidth + i] = i < count ? rows[i * D + c] * factor : 0.0f;
    } else {
        typedef typename Lanes<8>::F F;
        typedef typename Lanes<8>::I I;
        for (int i = 0; i < V * kLanes; i += 8)
            for (int c = 0; c < D; c += 8) {
                F a[8], b[8];
#pragma GCC unroll 8
                for (int r = 0; r < 8; ++r)
                    a[r] = i + r < count ? Lanes<8>::load(rows + (i + r) * D + c) * factor : F{};
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
                    Lanes<8>::store(to + (c + r) * kWidth + i,
                                    KDFAST_SHUFFLE(I, a[r], a[r + 4], 0, 1, 2, 3, 8, 9, 10, 11));
                    Lanes<8>::store(to + (c + r + 4) * kWidth + i,
                                    KDFAST_SHUFFLE(I, a[r], a[r + 4], 4, 5, 6, 7, 12, 13, 14, 15));
                }
            }
    }
}

// to[j * kWidth + i] = Σ_c x_t[c * kWidth + i] · rows[j * D + c] for J keys j and V vectors of queries i; top: the
// largest of them per query so far, where kTop.
template <int D, int V, int J, bool kTop>
KDFAST_INLINE void dot_tile(const float* x_t, const float* rows, float* to, Vec (&top)[V], Ahead& ahead) {
    Vec s[J][V];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) s[j][v] = Vec{};
    // By pairs of features: GCC would split off the odd rest of a loop that it unrolls itself.
    const float* const end = x_t + D * kWidth;
    do {
        ahead.step();
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
            Vec x[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) x[v] = load(x_t + c * kWidth + v * kLanes);
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) s[j][v] += x[v] * rows[j * D + c];
        }
        x_t += 2 * kWidth;
        rows += 2;
    } while (x_t != end);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            store(to + j * kWidth + v * kLanes, s[j][v]);
            if constexpr (kTop) top[v] = max(s[j][v], top[v]);  // of two of which one is NaN, the second
        }
}

// All keys of a block.
template <int D, int V, bool kTop = false>
KDFAST_INLINE void dot_products(const float* x_t, const float* rows, int64_t n, float* to, Vec (&top)[V],
                                Ahead& ahead) {
    constexpr int J = kLanes == 16 ? 8 : 4;
    int64_t j = 0;
    for (; j + J <= padded_keys(n); j += J) dot_tile<D, V, J, kTop>(x_t, rows + j * D, to + j * kWidth, top, ahead);
    if (J > kKeyStep && j < n) dot_tile<D, V, kKeyStep, kTop>(x_t, rows + j * D, to + j * kWidth, top, ahead);
}

// to[i] = factors[i] · rows[i].
template <int D>
KDFAST_INLINE void scale_rows(const float* rows, int count, const float* factors, float* to) {
    constexpr int L = D % kLanes == 0 ? kLanes : 8;
    for (int i = 0; i < count; ++i, rows += D, to += D)
#pragma GCC unroll 16
        for (int c = 0; c < D; c += L) Lanes<L>::store(to + c, Lanes<L>::load(rows + c) * factors[i]);
}

// Where the rows of a result go: [n][D] with a stride in floats; `add`: to the rows of `sum`, [n][D], which may be the
// same memory; `stream`: past the caches.
struct Target {
    float* out;
    int64_t ld;
    const float* sum;
    bool stream;
};

// out[a] = factor[a * factor_step] · Σ_b coef[a * SA + b * SB] · rows[b], + sum[a] where there is one, for A rows a, of
// which the first `valid` are stored, and the C vectors of L floats from feature c0 on.
template <int D, int L, int C, int A, int SA, int SB>
KDFAST_INLINE void combine_tile(const float* coef, int64_t count, const float* rows, int c0, const Target& to,
                                int64_t a0, const float* factor, int factor_step, int64_t valid) {
    typedef typename Lanes<L>::F F;
    F acc[A][C];
#pragma GCC unroll 24
    for (int a = 0; a < A; ++a)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) acc[a][c] = F{};
    coef += a0 * SA;
    rows += c0;
    for (int64_t b = 0; b < count; ++b, coef += SB, rows += D)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            const F row = Lanes<L>::load(rows + c * L);
#pragma GCC unroll 24
            for (int a = 0; a < A; ++a) acc[a][c] += row * coef[a * SA];
        }
    factor += a0 * factor_step;
    float* out = to.out + a0 * to.ld + c0;
    const float* const sum = to.sum ? to.sum + a0 * D + c0 : nullptr;
#pragma GCC unroll 24
    for (int a = 0; a < A; ++a, out += to.ld)
        if (a < valid)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                F x = acc[a][c] * factor[a * factor_step];
                if (sum) x += Lanes<L>::load(sum + a * D + c * L);
                if (to.stream)
                    Lanes<L>::stream(out + c * L, x);
                else
                    Lanes<L>::store(out + c * L, x);
            }
}

// combine_tile for all rows and features.
template <int D, int SA, int SB>
__attribute__((noinline)) void combine(const float* coef, int64_t num_out, int64_t count, const float* rows,
                                       const Target& to, const float* factor, int factor_step) {
    constexpr int L = D % kLanes == 0 ? kLanes : 8, V = D / L;
    constexpr int C = V % 4 == 0 ? 4 : V % 3 == 0 ? 3 : V;  // vectors of a row at a time
    // Rows that the registers hold.
    constexpr int kMost = kLanes == 16 ? 24 / C / 4 * 4 : C == 1 ? 8 : C == 2 ? 4 : 2;
    for (int64_t a = 0; a < num_out;) {
        // Tiles of nearly equal size: a small one waits for the latency of its additions.
        const int64_t left = num_out - a, tiles = (left + kMost - 1) / kMost, size = (left + tiles - 1) / tiles;
        const auto tile = [&]<int A>() __attribute__((always_inline)) {
            for (int c = 0; c < V; c += C)
                combine_tile<D, L, C, A, SA, SB>(coef, count, rows, c * L, to, a, factor, factor_step, left);
            a += A;
        };
        if constexpr (kMost < 4) {
            tile.template operator()<kMost>();
        } else {
            if (size <= 4)
                tile.template operator()<4>();
            else if (size <= 8)
                tile.template operator()<(kMost < 8 ? kMost : 8)>();
            else if (size <= 12)
                tile.template operator()<(kMost < 12 ? kMost : 12)>();
            else if (size <= 16)
                tile.template operator()<(kMost < 16 ? kMost : 16)>();
            else if (size <= 20)
                tile.template operator()<(kMost < 20 ? kMost : 20)>();
            else
                tile.template operator()<kMost>();
        }
    }
}

// Calls each(at, keep) for every key and the block's vectors, keep being a mask over the queries whose scores stand at
// `at` in the buffers.
template <int V, class Each>
KDFAST_INLINE void for_each_keep(const Head& h, int64_t first, Each&& each) {
    constexpr int kParts = kLanes / kPhiloxLanes;
    const UVec threshold = UVec{} + h.threshold, high_threshold = threshold << 16;
    const int64_t n = h.n;
    for (int64_t j = 0; j < n; j += 8)
        for (int v = 0; v < V; ++v) {
            UVec words[4];
#pragma GCC unroll 2
            for (int part = 0; part < kParts; ++part) {
                const int64_t query = first + v * kLanes + part * kPhiloxLanes;
                WVec c[4] = {WVec{} + h.jet, WVec{} + h.head, lane_numbers() + static_cast<uint64_t>(query),
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
                    const UVec word = words[e / 2];
                    each((j + e) * kWidth + v * kLanes,
                         e % 2 == 0 ? (word & 0xFFFFu) >= threshold : word >= high_threshold);
                }
        }
}

// The block's biases, transposed as the scores are, added to them; top: the largest of the sums per query.
template <int V>
void add_bias(const Head& h, int64_t first, int count, float* scores, Vec (&top)[V]) {
    for (int v = 0; v < V; ++v) top[v] = broadcast(-__builtin_inff());
    for (int64_t j = 0; j < h.n; ++j) {
        for (int i = 0; i < count; ++i) scores[j * kWidth + i] += h.bias[(first + i) * h.n + j];
        for (int v = 0; v < V; ++v) top[v] = max(load(scores + j * kWidth + v * kLanes), top[v]);
    }
}

template <int D, int V>
__attribute__((noinline)) void forward_block(const Head& h, int64_t first) {
    const int64_t n = h.n;  // copies in registers: stores through memcpy may alias h
    const int count = static_cast<int>(n - first < V * kLanes ? n - first : V * kLanes);
    float* const weights = h.weights;
    Ahead& ahead = *h.ahead;
    transpose<D, V>(h.q + first * D, count, h.scale, h.q_t);
    Vec top[V], sum[V];
    for (int v = 0; v < V; ++v) top[v] = broadcast(-__builtin_inff()), sum[v] = Vec{};
    dot_products<D, V, true>(h.q_t, h.k, n, weights, top, ahead);
    if (h.bias) add_bias<V>(h, first, count, weights, top);
    for (int64_t j = 0; j < n; ++j) {
        ahead.step();
        ahead.step();
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            float* const at = weights + j * kWidth + v * kLanes;
            const Vec e = exp2_nonpositive((load(at) - top[v]) * kLog2E);
            sum[v] += e;
            store(at, e);
        }
    }
    float lse[V * kLanes], inverses[V * kLanes];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        store(lse + v * kLanes, top[v] + log(sum[v]));
        store(inverses + v * kLanes, h.keep_scale / sum[v]);
    }
    if (h.threshold)
        for_each_keep<V>(h, first, [&](int64_t at, auto keep) __attribute__((always_inline)) {
            store(weights + at, keep ? load(weights + at) : Vec{});
        });
    for (int i = 0; i < count; ++i) h.lse[(first + i) * h.ld_lse] = lse[i];
    combine<D, 1, kWidth>(weights, count, n, h.v, {h.out + first * h.ld_out, h.ld_out, nullptr, h.stream}, inverses, 1);
}

template <int D, int V>
__attribute__((noinline)) void backward_block(const Head& h, int64_t first) {
    const int64_t n = h.n;  // copies in registers: stores through memcpy may alias h
    const int count = static_cast<int>(n - first < V * kLanes ? n - first : V * kLanes);
    const bool drops = h.threshold != 0;
    float *const weights = h.weights, *const grads = h.grads, *const dropped = drops ? h.dropped : weights;
    Ahead& ahead = *h.ahead;
    transpose<D, V>(h.q + first * D, count, h.scale, h.q_t);
    transpose<D, V>(h.grad_out + first * D, count, h.keep_scale, h.grad_t);
    Vec unused[V];
    dot_products<D, V>(h.q_t, h.k, n, weights, unused, ahead);
    dot_products<D, V>(h.grad_t, h.v, n, grads, unused, ahead);
    if (h.bias) add_bias<V>(h, first, count, weights, unused);
    float references[V * kLanes] = {}, inverses[V * kLanes], factors[V * kLanes], grad_factors[V * kLanes];
    for (int i = 0; i < count; ++i) references[i] = h.lse[(first + i) * h.ld_lse];
    // e_ij is P_ij but for a factor of the row, which the rounding of lse leaves near 1: 1 / Σ_j e_ij, `inverses`,
    // goes to the rows that e and dS are multiplied with.
    Vec reference[V], total[V], mean[V];  // lse; Σ_j e_ij; Σ_j e_ij dP_ij, then D_i
    for (int v = 0; v < V; ++v) reference[v] = load(references + v * kLanes), total[v] = mean[v] = Vec{};
    for (int64_t j = 0; j < n; ++j) {
        ahead.step();
        ahead.step();
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const int64_t at = j * kWidth + v * kLanes;
            const Vec e = exp2_nonpositive((load(weights + at) - reference[v]) * kLog2E);
            total[v] += e;
            mean[v] += e * load(grads + at);
            store(weights + at, e);
        }
    }
    if (drops) {
        for_each_keep<V>(h, first, [&](int64_t at, auto keep) __attribute__((always_inline)) {
            store(dropped + at, keep ? load(weights + at) : Vec{});
            store(grads + at, keep ? load(grads + at) : Vec{});
        });
        for (int v = 0; v < V; ++v) {
            mean[v] = Vec{};
            for (int64_t j = 0; j < n; ++j) {
                const int64_t at = j * kWidth + v * kLanes;
                mean[v] += load(weights + at) * load(grads + at);
            }
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const Vec inverse = 1.0f / total[v];
        mean[v] *= inverse;
        store(inverses + v * kLanes, inverse);
        store(factors + v * kLanes, inverse * h.scale);
        store(grad_factors + v * kLanes, inverse * h.keep_scale);
    }
    for (int64_t j = 0; j < n; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const int64_t at = j * kWidth + v * kLanes;
            store(grads + at, load(weights + at) * (load(grads + at) - mean[v]));
        }
    if (h.dbias)
        for (int i = 0; i < count; ++i)
            for (int64_t j = 0; j < n; ++j) {
                float& to = h.dbias[(first + i) * n + j];
                const float gradient = grads[j * kWidth + i] * inverses[i];
                to = h.add_dbias ? to + gradient : gradient;
            }
    scale_rows<D>(h.q + first * D, count, factors, h.q_rows);
    scale_rows<D>(h.grad_out + first * D, count, grad_factors, h.grad_rows);
    const float one = 1.0f;
    Target dk{h.dk_sum, D, first ? h.dk_sum : nullptr, false}, dv{h.dv_sum, D, first ? h.dv_sum : nullptr, false};
    if (first + count == n) {
        dk = {h.dk, h.ld_dk, dk.sum, h.stream};
        dv = {h.dv, h.ld_dv, dv.sum, h.stream};
    }
    combine<D, 1, kWidth>(grads, count, n, h.k, {h.dq + first * h.ld_dq, h.ld_dq, nullptr, h.stream}, factors, 1);
    combine<D, kWidth, 1>(grads, n, count, h.q_rows, dk, &one, 0);
    combine<D, kWidth, 1>(dropped, n, count, h.grad_rows, dv, &one, 0);
}

// All blocks of a head: of 3 vectors, but none of a single one unless the head has no more.
template <int D, bool kBackward>
KDFAST_INLINE void run_head(const Head& h) {
    const auto run = [&]<int V>(int64_t first) __attribute__((always_inline)) {
        kBackward ? backward_block<D, V>(h, first) : forward_block<D, V>(h, first);
    };
    for (int64_t first = 0; first < h.n;) {
        const int64_t left = (h.n - first + kLanes - 1) / kLanes, vectors = left == 4 ? 2 : left < 3 ? left : 3;
        if (vectors == 3)
            run.template operator()<3>(first);
        else if (vectors == 2)
            run.template operator()<2>(first);
        else
            run.template operator()<1>(first);
        first += vectors * kLanes;
    }
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
