// Attention on packed jets, forward and backward. A warp takes 16 or 32 rows of one jet for one head and member, and
// goes through the jet in tiles of 16; warps share nothing, so there are no barriers and no shared memory
// (fragments.h). Scores are never kept: the backward pass computes them again.
//
//   attend             rows are queries; softmax in one pass, with a running maximum
//   query_gradients    rows are queries, twice through the keys: D_i = Σ_j P_ij dP_ij and Σ_j P_ij; then dq and dbias
//   key_gradients      rows are keys; queries' statistics come from query_gradients
//
// Each result is written by one lane, after sums in a fixed order: the same bits on every run.
//
// Where scores are large, lse's rounding is not small against 1 in their exponent. So query_gradients sums exp(s − lse)
// again and both kernels divide by the sum; they compute a score with the same bits. D_i comes from the same dP_ij that
// it is subtracted from. dP is without dropout's 1 / (1 − p), which goes to the results.
#include "constituent_attention/constituent_attention_gpu.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <type_traits>

#include "constituent_attention/attention_kernels.h"

namespace kdfast::gpu {
namespace {

// Scores and their bias, in units that exp_of takes, less `reference` of their query. kTransposed: rows are keys and
// columns are queries.
//
// Floats round the scaled score before they subtract: where one key has all the weight, lse is its score, and the
// weight comes out as 1 and its gradient as 0, exactly. 16-bit types save instructions: units of ln 2, one rounding.
template <class F, bool kExtras, bool kTransposed, bool kTail>
__device__ __forceinline__ void scale_scores(const Arguments& a, const float* bias, int n, int row, int column,
                                             Scores& scores, const float (&reference)[4]) {
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float own_bias = 0.0f;
            if (kExtras && bias != nullptr) {
                const int own_row = existing<true>(row + lane_group() + i / 2 * 8, n);
                const int own_column = existing<kTail>(column + lane_term(2 * u + i % 2), n);
                const int query = kTransposed ? own_column : own_row, key = kTransposed ? own_row : own_column;
                own_bias = load_readonly<float>(bias + static_cast<int64_t>(query) * n + key);
            }
            float& score = scores[u][i];
            const float subtracted = reference[kTransposed ? 2 * u + i % 2 : i / 2];
            if constexpr (F::kPacked)
                score =
                    fmaf(score, a.score_scale * kLog2E, kExtras ? fmaf(own_bias, kLog2E, -subtracted) : -subtracted);
            else
                score = (kExtras ? __fmul_rn(score, a.score_scale) + own_bias : __fmul_rn(score, a.score_scale)) -
                        subtracted;
        }
}

template <class F>
__device__ __forceinline__ float exp_of(float x) {
    return exp2_approx(F::kPacked ? x : x * kLog2E);
}
template <class F>
__device__ __forceinline__ float lse_of(float top, float sum) {
    return F::kPacked ? (top + log2_approx(sum)) * kLn2 : fmaf(log2_approx(sum), kLn2, top);
}

// ---- forward --------------------------------------------------------------------------------------------------------

// kTiles tiles of queries from work.item.row on.
template <class F, int kTiles, bool kExtras>
__device__ __forceinline__ void attend_rows(const Arguments& a, const Work& work) {
    using T = typename F::T;
    constexpr int D = F::D;
    if (work.item.jet < 0) return fill_rows<F>(a.p.out, work, work.member);
    const int n = work.item.n, first = work.item.row;
    const JetRows<const T> q(a.p.q, work.item, work.head, work.member), k(a.p.k, work.item, work.head, work.member),
        v(a.p.v, work.item, work.head, work.member);
    const bool drops = kExtras && a.p.threshold != 0;
    const float* const bias = kExtras && a.p.bias != nullptr ? a.p.bias + pair_offset(a, work, work.member) : nullptr;

    typename F::Row queries[kTiles][2];
    Sums<D> sums[kTiles];
    float top[kTiles][2], total[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        load_rows<F, true>(queries[t], q, first + t * kTile, n);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            top[t][h] = -1e30f;  // finite, so that a key of bias −∞ may come first
            total[t][h] = 0.0f;
        }
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[t][j][i] = 0.0f;
    }

    for_each_tile(n, [&](int key, auto tail) {
        constexpr bool kTail = tail.value;
        typename F::Row keys[2];
        typename F::Columns values;
        load_rows<F, kTail>(keys, k, key, n);
        load_columns<F, kTail>(values, v, key, n);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            Scores x;
            F::template dots<false>(x, queries[t], keys);
            scale_scores<F, kExtras, false, kTail>(a, bias, n, first + t * kTile, key, x, {0.0f, 0.0f, 0.0f, 0.0f});
            const auto exists = [&](int u, int e) { return !kTail || key + lane_term(2 * u + e) < n; };
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float largest = top[t][h];
#pragma unroll
                for (int u = 0; u < 2; ++u)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        if (exists(u, e)) largest = fmaxf(largest, x[u][2 * h + e]);
                largest = row_max(largest);
                const float shrink = exp_of<F>(top[t][h] - largest);
                top[t][h] = largest;
                total[t][h] *= shrink;
#pragma unroll
                for (int j = 0; j < D / 8; ++j) {
                    sums[t][j][2 * h] *= shrink;
                    sums[t][j][2 * h + 1] *= shrink;
                }
#pragma unroll
                for (int u = 0; u < 2; ++u)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float& weight = x[u][2 * h + e];
                        weight = exists(u, e) ? exp_of<F>(weight - largest) : 0.0f;
                        total[t][h] += weight;
                    }
            }
            if (drops) {
                const unsigned kept = kept_keys(a, work, first + t * kTile, key);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const unsigned own = __shfl_sync(kFullMask, kept, lane_group() + 8 * h);
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if ((own >> lane_term(i) & 1) == 0) x[i / 2][2 * h + i % 2] = 0.0f;
                }
            }
            F::accumulate(sums[t], x, values);
        }
    });

    const JetRows<T> out(a.p.out, work.item, work.head, work.member);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float sum = row_sum(total[t][h]);
            const int row = first + t * kTile + lane_group() + 8 * h;
            if (row >= n) continue;
            store_sums<T, D>(out[row], sums[t], h, (kExtras ? a.keep_scale : 1.0f) / sum);
            if (lane_column() == 0)
                a.p.lse[(work.member * a.p.num_constituents + work.item.first + row) * a.p.num_heads + work.head] =
                    lse_of<F>(top[t][h], sum);
        }
}

// ---- backward: queries ----------------------------------------------------------------------------------------------

template <class F, int kTiles, bool kExtras>
__device__ __forceinline__ void query_gradient_rows(const Arguments& a, const Work& work, int member) {
    using T = typename F::T;
    constexpr int D = F::D;
    if (work.item.jet < 0) return fill_rows<F>(a.p.dq, work, member);
    const int n = work.item.n, first = work.item.row;
    const JetRows<const T> q(a.p.q, work.item, work.head, member), k(a.p.k, work.item, work.head, member),
        v(a.p.v, work.item, work.head, member), g(a.p.grad_out, work.item, work.head, member);
    const bool drops = kExtras && a.p.threshold != 0;
    const int64_t pairs = kExtras && a.p.bias != nullptr ? pair_offset(a, work, member) : 0;
    const float* const bias = kExtras && a.p.bias != nullptr ? a.p.bias + pairs : nullptr;
    float* const dbias = kExtras && a.p.dbias != nullptr ? a.p.dbias + pairs : nullptr;
    const float keep_scale = kExtras ? a.keep_scale : 1.0f;

    typename F::Row queries[kTiles][2], grads[kTiles][2];
    float lse[kTiles][2], total[kTiles][2], mean[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        load_rows<F, true>(queries[t], q, first + t * kTile, n);
        load_rows<F, true>(grads[t], g, first + t * kTile, n);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = work.item.first + existing<true>(first + t * kTile + lane_group() + 8 * h, n);
            lse[t][h] = a.p.lse[(member * a.p.num_constituents + row) * a.p.num_heads + work.head] *
                        (F::kPacked ? kLog2E : 1.0f);
            total[t][h] = mean[t][h] = 0.0f;
        }
    }

    // weights: P but for a factor of the row; grad_weights: dP but for keep_scale; 0 for keys that there are not.
    const auto tile = [&](int key, auto tail, int t, const auto& keys, const auto& values, Scores& weights,
                          Scores& grad_weights) {
        constexpr bool kTail = tail.value;
        F::template dots<false>(weights, queries[t], keys);
        F::template dots<false>(grad_weights, grads[t], values);
        scale_scores<F, kExtras, false, kTail>(a, bias, n, first + t * kTile, key, weights,
                                               {lse[t][0], lse[t][1], 0.0f, 0.0f});
        const unsigned kept = drops ? kept_keys(a, work, first + t * kTile, key) : 0u;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const unsigned own = drops ? __shfl_sync(kFullMask, kept, lane_group() + 8 * h) : 0xffffu;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float &weight = weights[i / 2][2 * h + i % 2], &grad = grad_weights[i / 2][2 * h + i % 2];
                const bool exists = !kTail || key + lane_term(i) < n;
                weight = exists ? exp_of<F>(weight) : 0.0f;
                if (!exists || (kExtras && (own >> lane_term(i) & 1) == 0)) grad = 0.0f;
            }
        }
    };

    for_each_tile(n, [&](int key, auto tail) {
        typename F::Row keys[2], values[2];
        load_rows<F, tail.value>(keys, k, key, n);
        load_rows<F, tail.value>(values, v, key, n);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            Scores weights, grad_weights;
            tile(key, tail, t, keys, values, weights, grad_weights);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float weight = weights[i / 2][2 * h + i % 2];
                    total[t][h] += weight;
                    mean[t][h] = fmaf(weight, grad_weights[i / 2][2 * h + i % 2], mean[t][h]);
                }
        }
    });

    float inverse[kTiles][2];
    Sums<D> sums[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            inverse[t][h] = 1.0f / row_sum(total[t][h]);
            mean[t][h] = row_sum(mean[t][h]) * inverse[t][h];
            const int row = first + t * kTile + lane_group() + 8 * h;
            if (lane_column() == 0 && row < n)
                store(
                    a.statistics + (member * a.p.num_heads + work.head) * a.p.num_constituents + work.item.first + row,
                    RowStatistics{lse[t][h], inverse[t][h], mean[t][h], 0.0f});
        }
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[t][j][i] = 0.0f;
    }

    for_each_tile(n, [&](int key, auto tail) {
        constexpr bool kTail = tail.value;
        typename F::Row keys[2], values[2];
        typename F::Columns key_columns;
        load_rows<F, kTail>(keys, k, key, n);
        load_rows<F, kTail>(values, v, key, n);
        load_columns<F, kTail>(key_columns, k, key, n);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            Scores weights, grad_scores;
            tile(key, tail, t, keys, values, weights, grad_scores);
#pragma unroll
            for (int u = 0; u < 2; ++u)
#pragma unroll
                for (int i = 0; i < 4; ++i) grad_scores[u][i] = weights[u][i] * (grad_scores[u][i] - mean[t][i / 2]);
            if (dbias != nullptr) {
#pragma unroll
                for (int u = 0; u < 2; ++u)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int query = first + t * kTile + lane_group() + i / 2 * 8;
                        const int own_key = key + lane_term(2 * u + i % 2);
                        if (query >= n || own_key >= n) continue;
                        float& to = dbias[static_cast<int64_t>(query) * n + own_key];
                        const float grad = grad_scores[u][i] * (inverse[t][i / 2] * keep_scale);
                        to = member == work.member ? grad : to + grad;
                    }
            }
            F::accumulate(sums[t], grad_scores, key_columns);
        }
    });

    const JetRows<T> dq(a.p.dq, work.item, work.head, member);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = first + t * kTile + lane_group() + 8 * h;
            if (row < n) store_sums<T, D>(dq[row], sums[t], h, inverse[t][h] * keep_scale * a.p.scale);
        }
}

// Members in order: those that share a bias add to its gradient in this order.
template <class F, int kTiles, bool kExtras>
__device__ __forceinline__ void query_gradient_rows(const Arguments& a, const Work& work) {
    for (int member = work.member; member < work.member + (kExtras ? a.members_per_warp : 1); ++member)
        query_gradient_rows<F, kTiles, kExtras>(a, work, member);
}

// ---- backward: keys and values --------------------------------------------------------------------------------------

template <class F, int kTiles, bool kExtras>
__device__ __forceinline__ void key_gradient_rows(const Arguments& a, const Work& work) {
    using T = typename F::T;
    constexpr int D = F::D;
    const int n = work.item.n, first = work.item.row, member = work.member;
    if (work.item.jet < 0) {
        fill_rows<F>(a.p.dk, work, member);
        return fill_rows<F>(a.p.dv, work, member);
    }
    const JetRows<const T> q(a.p.q, work.item, work.head, member), k(a.p.k, work.item, work.head, member),
        v(a.p.v, work.item, work.head, member), g(a.p.grad_out, work.item, work.head, member);
    const RowStatistics* const statistics =
        a.statistics + (member * a.p.num_heads + work.head) * a.p.num_constituents + work.item.first;
    const bool drops = kExtras && a.p.threshold != 0;
    const float* const bias = kExtras && a.p.bias != nullptr ? a.p.bias + pair_offset(a, work, member) : nullptr;
    const float keep_scale = kExtras ? a.keep_scale : 1.0f;

    typename F::Row keys[kTiles][2], values[kTiles][2];
    Sums<D> key_sums[kTiles], value_sums[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        load_rows<F, true>(keys[t], k, first + t * kTile, n);
        load_rows<F, true>(values[t], v, first + t * kTile, n);
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) key_sums[t][j][i] = value_sums[t][j][i] = 0.0f;
    }

    for_each_tile(n, [&](int query, auto tail) {
        constexpr bool kTail = tail.value;
        typename F::Row queries[2], grads[2];
        typename F::Columns query_columns, grad_columns;
        load_rows<F, kTail>(queries, q, query, n);
        load_rows<F, kTail>(grads, g, query, n);
        load_columns<F, kTail>(query_columns, q, query, n);
        load_columns<F, kTail>(grad_columns, g, query, n);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            Scores weights, grad_scores;
            F::template dots<true>(weights, keys[t], queries);
            F::template dots<true>(grad_scores, values[t], grads);
            float lse[4], inverse[4], mean[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = query + lane_term(i);
                const auto s = load_readonly<RowStatistics>(statistics + existing<kTail>(row, n));
                lse[i] = s.lse;
                inverse[i] = kTail && row >= n ? 0.0f : s.inverse;  // a query that there is not has no weights
                mean[i] = s.mean;
            }
            scale_scores<F, kExtras, true, kTail>(a, bias, n, first + t * kTile, query, weights, lse);
            const unsigned kept = drops ? kept_keys(a, work, query, first + t * kTile) : 0u;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const unsigned own = drops ? __shfl_sync(kFullMask, kept, lane_term(j)) : 0xffffu;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float &weight = weights[j / 2][2 * h + j % 2], &grad = grad_scores[j / 2][2 * h + j % 2];
                    weight = exp_of<F>(weight) * inverse[j];
                    const bool keep = !kExtras || (own >> (lane_group() + 8 * h) & 1) != 0;
                    grad = weight * ((keep ? grad : 0.0f) - mean[j]);
                    if (!keep) weight = 0.0f;
                }
            }
            F::accumulate(value_sums[t], weights, grad_columns);
            F::accumulate(key_sums[t], grad_scores, query_columns);
        }
    });

    const JetRows<T> dk(a.p.dk, work.item, work.head, member), dv(a.p.dv, work.item, work.head, member);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = first + t * kTile + lane_group() + 8 * h;
            if (row >= n) continue;
            store_sums<T, D>(dk[row], key_sums[t], h, keep_scale * a.p.scale);
            store_sums<T, D>(dv[row], value_sums[t], h, keep_scale);
        }
}

// ---- kernels --------------------------------------------------------------------------------------------------------

enum Pass { kAttend, kQueryGradients, kKeyGradients };

// How a kernel runs. kExtras_: with a bias, or dropout.
template <class Fragments, int kPass, bool kExtras_>
struct Variant {
    using F = Fragments;
    static constexpr bool kExtras = kExtras_;
    // Of 16 rows, that a warp takes at once, because what it loads serves all of them.
    static constexpr int kMostFeatures = kPass == kAttend ? 32 : kPass == kKeyGradients || !kExtras ? 16 : 0;
    static constexpr int kTiles = F::kPacked && F::D <= kMostFeatures ? 2 : 1;
    // That a multiprocessor should hold, which limits registers: as many as go without spills.
    static constexpr int kWithoutExtras[2][3][5] = {
        // D = 8, 16, 24, 32, 64
        {{5, 4, 3, 3, 2}, {4, 3, 2, 2, 2}, {3, 2, 2, 2, 2}},  // floats: attend, query_gradients, key_gradients
        {{5, 5, 4, 4, 3}, {3, 3, 3, 3, 2}, {3, 3, 3, 3, 2}},  // packed
    };
    static constexpr int kDim = F::D == 64 ? 4 : F::D / 8 - 1;
    static constexpr int kBlocks = std::max(2, kWithoutExtras[F::kPacked][kPass][kDim] - kExtras);
};

template <class V>
__global__ void __launch_bounds__(kThreads, V::kBlocks) attend(const __grid_constant__ Arguments a) {
    with_work<typename V::F, V::kTiles>(
        a, [&](const Work& work, auto tiles) { attend_rows<typename V::F, tiles.value, V::kExtras>(a, work); });
}
template <class V>
__global__ void __launch_bounds__(kThreads, V::kBlocks) query_gradients(const __grid_constant__ Arguments a) {
    with_work<typename V::F, V::kTiles>(
        a, [&](const Work& work, auto tiles) { query_gradient_rows<typename V::F, tiles.value, V::kExtras>(a, work); });
}
template <class V>
__global__ void __launch_bounds__(kThreads, V::kBlocks) key_gradients(const __grid_constant__ Arguments a) {
    with_work<typename V::F, V::kTiles>(
        a, [&](const Work& work, auto tiles) { key_gradient_rows<typename V::F, tiles.value, V::kExtras>(a, work); });
}

// ---- the choice -----------------------------------------------------------------------------------------------------

struct Choice {
    void (*kernel)(Arguments);
    int tiles;
};

template <class F, int kPass, bool kExtras>
Choice choice_of() {
    using V = Variant<F, kPass, kExtras>;
    if constexpr (kPass == kAttend)
        return {attend<V>, V::kTiles};
    else if constexpr (kPass == kQueryGradients)
        return {query_gradients<V>, V::kTiles};
    else
        return {key_gradients<V>, V::kTiles};
}

template <class T, int D, int kPass>
Choice choose_products(bool extras) {
    using OnTensorCores = std::conditional_t<sizeof(T) == 4, FloatFragments<T, D, true>, PackedFragments<T, D>>;
    if (compute_capability() < 80) return choice_of<FloatFragments<T, D, false>, kPass, true>();
    return extras ? choice_of<OnTensorCores, kPass, true>() : choice_of<OnTensorCores, kPass, false>();
}
template <class T, int kPass>
Choice choose_head_dim(int64_t head_dim, bool extras) {
    switch (head_dim) {
        case 8:
            return choose_products<T, 8, kPass>(extras);
        case 16:
            return choose_products<T, 16, kPass>(extras);
        case 24:
            return choose_products<T, 24, kPass>(extras);
        case 32:
            return choose_products<T, 32, kPass>(extras);
        case 64:
            return choose_products<T, 64, kPass>(extras);
    }
    throw std::invalid_argument("head_dim is none of 8, 16, 24, 32, 64");
}
template <int kPass>
Choice choose(const AttentionParams& p) {
    const bool extras = p.bias != nullptr || p.threshold != 0;
    return p.dtype == DType::f32    ? choose_head_dim<float, kPass>(p.head_dim, extras)
           : p.dtype == DType::bf16 ? choose_head_dim<bf16, kPass>(p.head_dim, extras)
                                    : choose_head_dim<f16, kPass>(p.head_dim, extras);
}

// ---- host -----------------------------------------------------------------------------------------------------------

constexpr int64_t kMostInt = 0x7fffffff;

void check_rows(const AttentionRows& rows, DType dtype) {
    const int64_t size = dtype == DType::f32 ? 4 : 2;
    const int64_t bytes =
        reinterpret_cast<intptr_t>(rows.data) | rows.member * size | rows.row * size | rows.head * size;
    if (bytes % 16 != 0) throw std::invalid_argument("rows must begin at multiples of 16 bytes");
    if (std::abs(rows.row) > kMostInt) throw std::invalid_argument("rows are farther apart than a kernel can reach");
}

template <int kPass>
void run(const AttentionParams& p, cudaStream_t stream) {
    if (p.num_constituents == 0 || p.num_heads == 0 || p.num_members == 0) return;
    const Choice choice = choose<kPass>(p);
    Arguments a{};
    a.p = p;
    a.plan = plan_at(p.plan, p.num_jets, p.num_constituents);
    a.statistics = static_cast<RowStatistics*>(p.workspace);
    a.score_scale = p.scale;
    a.keep_scale = 65536.0f / static_cast<float>(65536 - p.threshold);
    const bool shares_dbias = kPass == kQueryGradients && p.dbias != nullptr && p.bias_members == 1;
    a.members_per_warp = shares_dbias ? static_cast<int>(p.num_members) : 1;
    const int64_t warps = max_items(p.num_jets, p.num_constituents) * (kItemRows / kTile / choice.tiles) *
                          (p.num_members / a.members_per_warp) * p.num_heads;
    if (warps > kMostInt || p.num_constituents > kMostInt) throw std::invalid_argument("more work than a launch takes");
    a.num_work = static_cast<unsigned>(warps);
    constexpr int kWarps = kThreads / kWarp;
    launch(dim3((a.num_work + kWarps - 1) / kWarps), dim3(kThreads), 0, stream, choice.kernel, a);
}

}  // namespace

int64_t attention_plan_bytes(int64_t num_jets, int64_t num_constituents) {
    return reinterpret_cast<char*>(plan_at(nullptr, num_jets, num_constituents).pairs + num_jets) -
           static_cast<char*>(nullptr);
}

void plan_attention(const AttentionPlanParams& p, void* stream) {
    if (p.num_jets > kMostInt || p.num_constituents > kMostInt)
        throw std::invalid_argument("more jets or constituents than a launch takes");
    launch(dim3(1), dim3(kPlanThreads), 0, static_cast<cudaStream_t>(stream), make_plan, p,
           plan_at(p.plan, p.num_jets, p.num_constituents));
}

int64_t attention_workspace_bytes(int64_t num_constituents, int64_t num_members, int64_t num_heads) {
    return num_constituents * num_members * num_heads * static_cast<int64_t>(sizeof(RowStatistics));
}

void constituent_attention_forward(const AttentionParams& p, void* stream) {
    for (const AttentionRows& rows : {p.q, p.k, p.v, p.out}) check_rows(rows, p.dtype);
    run<kAttend>(p, static_cast<cudaStream_t>(stream));
}

void constituent_attention_backward(const AttentionParams& p, void* stream) {
    for (const AttentionRows& rows : {p.q, p.k, p.v, p.grad_out, p.dq, p.dk, p.dv}) check_rows(rows, p.dtype);
    run<kQueryGradients>(p, static_cast<cudaStream_t>(stream));
    run<kKeyGradients>(p, static_cast<cudaStream_t>(stream));
}

}  // namespace kdfast::gpu
