// The backward pass of constituent_attention.cu, cut into warps as that is.
//
//   query_gradients    rows are queries, twice through the keys: D_i = Σ_j P_ij dP_ij and Σ_j P_ij; then dq and dbias
//   key_gradients      rows are keys; queries' statistics come from query_gradients
//
// Each result is written by one lane, after sums in a fixed order: the same bits on every run.
//
// Where scores are large, lse's rounding is not small against 1 in their exponent. So query_gradients sums exp(s − lse)
// again and both kernels divide by the sum; they compute a score with the same bits. D_i comes from the same dP_ij that
// it is subtracted from. dP is without dropout's 1 / (1 − p), which goes to the results.
#include "constituent_attention/attention_launch.h"

namespace kdfast::gpu {
namespace {

// ---- queries ----------------------------------------------------------------------------------------------

template <class F, int kTiles, Extras kExtras>
__device__ __forceinline__ void query_gradient_rows(const Arguments& a, const Work& work, int member) {
    using T = typename F::T;
    constexpr int D = F::D;
    if (work.item.jet < 0) return fill_rows<F>(a.p.dq, work, member);
    const int n = work.item.n, first = work.item.row;
    const JetRows<const T> q(a.p.q, work.item, work.head, member), k(a.p.k, work.item, work.head, member),
        v(a.p.v, work.item, work.head, member), g(a.p.grad_out, work.item, work.head, member);
    const RowBias<F, kExtras> query_bias(a, work, member, kOfQueries), value_bias(a, work, member, kOfValues);
    const QueryMasks<kExtras> masks(a, work);
    const int64_t pairs = kExtras == kAny && a.p.bias != nullptr ? pair_offset(a, work, member) : 0;
    const float* const bias = kExtras == kAny && a.p.bias != nullptr ? a.p.bias + pairs : nullptr;
    float* const dbias = kExtras == kAny && a.p.dbias != nullptr ? a.p.dbias + pairs : nullptr;
    const float keep_scale = kExtras != kNone ? a.keep_scale : 1.0f;

    typename F::Row queries[kTiles][2], grads[kTiles][2];
    float lse[kTiles][2], total[kTiles][2], mean[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        load_rows<F, true>(queries[t], q, first + t * kTile, n);
        query_bias.add_to(queries[t]);
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
        const unsigned kept = masks.of_tile(t, key);
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float &weight = weights[i / 2][2 * h + i % 2], &grad = grad_weights[i / 2][2 * h + i % 2];
                const bool exists = !kTail || key + lane_term(i) < n;
                weight = exists ? exp_of<F>(weight) : 0.0f;
                if (!exists || !masks.keeps(kept, h, i)) grad = 0.0f;
            }
    };

    for_each_tile(n, [&](int key, auto tail) {
        typename F::Row keys[2], values[2];
        load_rows<F, tail.value>(keys, k, key, n);
        load_rows<F, tail.value>(values, v, key, n);
        value_bias.add_to(values);
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
        value_bias.add_to(values);
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
    store_bias_sums<F, kExtras>(a, work, member, sums,
                                [&](int t, int h) { return inverse[t][h] * keep_scale * a.p.scale; });
}

// Members in order: those that share a bias add to its gradient in this order.
template <class F, int kTiles, Extras kExtras>
__device__ __forceinline__ void query_gradient_rows(const Arguments& a, const Work& work) {
    for (int member = work.member; member < work.member + (kExtras == kAny ? a.members_per_warp : 1); ++member)
        query_gradient_rows<F, kTiles, kExtras>(a, work, member);
}

// ---- keys and values --------------------------------------------------------------------------------------

template <class F, int kTiles, Extras kExtras>
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
    const RowBias<F, kExtras> query_bias(a, work, member, kOfQueries), value_bias(a, work, member, kOfValues);
    const ColumnsBias<F, kExtras> query_columns_bias(a, work, member, kOfQueries);
    const KeyMasks<kExtras> masks(a, work);
    const float* const bias =
        kExtras == kAny && a.p.bias != nullptr ? a.p.bias + pair_offset(a, work, member) : nullptr;
    const float keep_scale = kExtras != kNone ? a.keep_scale : 1.0f;

    typename F::Row keys[kTiles][2], values[kTiles][2];
    Sums<D> key_sums[kTiles], value_sums[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        load_rows<F, true>(keys[t], k, first + t * kTile, n);
        load_rows<F, true>(values[t], v, first + t * kTile, n);
        value_bias.add_to(values[t]);
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
        query_bias.add_to(queries);
        query_columns_bias.add_to(query_columns);
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
            const auto kept = masks.of_tile(query, t);
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float &weight = weights[j / 2][2 * h + j % 2], &grad = grad_scores[j / 2][2 * h + j % 2];
                    weight = exp_of<F>(weight) * inverse[j];
                    const bool keep = masks.keeps(kept, j, h);
                    grad = weight * ((keep ? grad : 0.0f) - mean[j]);
                    if (!keep) weight = 0.0f;
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
    store_bias_sums<F, kExtras>(a, work, member, value_sums, [&](int, int) { return keep_scale; });
}

// ---- the projection's bias ------------------------------------------------------------------------------------------

constexpr int kSumWarps = 8;

struct BiasSums {
    AttentionParams p;
    const WorkItem* items;
    const float* sums[2];  // [K, slots, H, d]: of q, of v
    int64_t slots[2];
    int rows_per_warp[2];
};

// The gradient of the bias, from what warps have stored: warps of a block take jets in turn. The grid is (chunks of 32
// features, members, q and v). That of k is zero.
__global__ void __launch_bounds__(kSumWarps* kWarp) add_bias_sums(const __grid_constant__ BiasSums b) {
    KDFAST_SHARED(float, parts, kSumWarps* kWarp);
    const int64_t member = blockIdx.y;
    const int which = static_cast<int>(blockIdx.z), rows = b.rows_per_warp[which];
    const int num_features = static_cast<int>(b.p.num_heads * b.p.head_dim);
    const int feature = static_cast<int>(blockIdx.x) * kWarp + lane_index();
    const bool is_valid = load_readonly<WorkItem>(b.items).jet != kInvalid;
    const float* const sums = b.sums[which] + member * b.slots[which] * num_features + feature;
    float sum = is_valid ? 0.0f : NAN;
    if (is_valid && feature < num_features)
        for (int jet = warp_index(); jet < static_cast<int>(b.p.num_jets); jet += kSumWarps) {
            const int first = static_cast<int>(b.p.offsets[jet]), n = static_cast<int>(b.p.offsets[jet + 1]) - first;
            const int64_t slot = jet + first / rows;
            for (int begin = 0; begin < n; begin += kItemRows) {
                float part = 0.0f;  // of an item, whose halves may have been two warps'
                for (int row = begin; row < min(begin + kItemRows, n); row += rows)
                    part += sums[(slot + row / rows) * num_features];
                sum += part;
            }
        }
    parts[warp_index() * kWarp + lane_index()] = sum;
    __syncthreads();
    if (warp_index() != 0 || feature >= num_features) return;
    sum = 0.0f;
    for (int w = 0; w < kSumWarps; ++w) sum += parts[w * kWarp + lane_index()];
    float* const grad = b.p.projection_bias.grad + member * b.p.projection_bias.grad_stride + feature;
    grad[(which == 0 ? kOfQueries : kOfValues) * num_features] = sum;
    if (which == 0) grad[num_features] = is_valid ? 0.0f : NAN;
}

// ---- kernels --------------------------------------------------------------------------------------------------------

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

template <class F, int kPass, Extras kExtras>
Choice choice_of() {
    using V = Variant<F, kPass, kExtras>;
    if constexpr (kPass == kQueryGradients)
        return {query_gradients<V>, V::kTiles};
    else
        return {key_gradients<V>, V::kTiles};
}

}  // namespace

int64_t projection_bias_workspace_bytes(int64_t num_jets, int64_t num_constituents, int64_t num_members,
                                        int64_t num_features) {
    return 2 * num_members * bias_slots(num_jets, num_constituents, kTile) * num_features *
           static_cast<int64_t>(sizeof(float));
}

void constituent_attention_backward(const AttentionParams& p, void* stream) {
    for (const AttentionRows& rows : {p.q, p.k, p.v, p.grad_out, p.dq, p.dk, p.dv}) check_rows(rows, p.dtype);
    check_bias(p);
    const auto s = static_cast<cudaStream_t>(stream);
    run<kQueryGradients>(p, s);
    run<kKeyGradients>(p, s);
    if (p.projection_bias.values == nullptr) return;
    const int rows[2] = {kTile * choose<kQueryGradients>(p).tiles, kTile * choose<kKeyGradients>(p).tiles};
    const BiasSums b{
        p,
        plan_at(p.plan, p.num_jets, p.num_constituents).items,
        {bias_sums_of<kQueryGradients>(p), bias_sums_of<kKeyGradients>(p)},
        {bias_slots(p.num_jets, p.num_constituents, rows[0]), bias_slots(p.num_jets, p.num_constituents, rows[1])},
        {rows[0], rows[1]}};
    const int64_t chunks = (p.num_heads * p.head_dim + kWarp - 1) / kWarp;
    launch(dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(p.num_members), 2), dim3(kSumWarps * kWarp), 0, s,
           add_bias_sums, b);
}

}  // namespace kdfast::gpu
