// Attention on packed jets, forward, and what both directions ask of the host. A warp takes 16 or 32 rows of one jet
// for one head and member, and goes through the jet in tiles of 16; warps share nothing, so there are no barriers and
// no shared memory (fragments.h). Scores are never kept: the backward pass computes them again.
//
// attend: rows are queries; softmax in one pass, with a running maximum. Each result is written by one lane, after sums
// in a fixed order: the same bits on every run.
#include "constituent_attention/attention_launch.h"
#include "constituent_attention/work_items.h"

namespace kdfast::gpu {
namespace {

// ---- the list of work -----------------------------------------------------------------------------------------------

constexpr int kPlanThreads = 512;
constexpr int kLengths = 64;  // that are told apart: n in steps of 16; longer jets count as the longest

__device__ __forceinline__ int length_class(int n) { return min((n + 15) / 16, kLengths - 1); }
__device__ __forceinline__ int items_of(int n) { return (n + kItemRows - 1) / kItemRows; }

// Over the lanes of a warp up to this one; all of them call.
__device__ __forceinline__ int64_t sum_up_to_lane(int64_t x) {
#pragma unroll
    for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const int64_t left = __shfl_up_sync(kFullMask, x, lanes);
        if (lane_index() >= lanes) x += left;
    }
    return x;
}

// One block. The order of jets in a class is that of the atomics; no result depends on it.
__global__ void __launch_bounds__(kPlanThreads) make_plan(const AttentionPlanParams p, const Plan plan) {
    KDFAST_SHARED(int, next, kLengths);  // per class: its items, then the place of the next of them
    KDFAST_SHARED(int, invalid, 1);
    KDFAST_SHARED(int64_t, warp_pairs, kPlanThreads / kWarp);
    KDFAST_SHARED(int64_t, warp_tiles, kPlanThreads / kWarp);
    const int thread = static_cast<int>(threadIdx.x), num_jets = static_cast<int>(p.num_jets);
    if (thread < kLengths) next[thread] = 0;
    if (thread == 0) invalid[0] = p.offsets[0] != 0 || p.offsets[num_jets] > p.num_constituents;
    __syncthreads();

    int64_t pairs_before = 0, tiles_before = 0;  // of the jets before a round of the loop
    for (int begin = 0; begin < num_jets; begin += kPlanThreads) {
        const int jet = begin + thread;
        int64_t n = 0;
        if (jet < num_jets) {
            n = p.offsets[jet + 1] - p.offsets[jet];
            if (n < 0 || n > p.num_constituents) {
                atomicOr(invalid, 1);
                n = 0;
            }
            atomicAdd(next + length_class(static_cast<int>(n)), items_of(static_cast<int>(n)));
        }
        const int64_t tiles = tiles_of(static_cast<int>(n)) * tiles_of(static_cast<int>(n));
        const int64_t pair_sum = sum_up_to_lane(n * n), tile_sum = sum_up_to_lane(tiles);
        if (lane_index() == kWarp - 1) {
            warp_pairs[warp_index()] = pair_sum;
            warp_tiles[warp_index()] = tile_sum;
        }
        __syncthreads();
        int64_t pairs = pairs_before + pair_sum - n * n, tiles_first = tiles_before + tile_sum - tiles;
        for (int w = 0; w < kPlanThreads / kWarp; ++w) {
            const int64_t more_pairs = warp_pairs[w], more_tiles = warp_tiles[w];
            if (w < warp_index()) {
                pairs += more_pairs;
                tiles_first += more_tiles;
            }
            pairs_before += more_pairs;
            tiles_before += more_tiles;
        }
        if (jet < num_jets) {
            plan.pairs[jet] = pairs;
            plan.tiles[jet] = tiles_first;
        }
        __syncthreads();
    }

    // Rows from `padding` on belong to no jet.
    const int num_rows = static_cast<int>(p.num_constituents);
    const bool is_valid = !invalid[0] && (p.most_pairs < 0 || pairs_before <= p.most_pairs) &&
                          (p.most_tiles < 0 || tiles_before <= p.most_tiles);
    const int padding = is_valid ? static_cast<int>(p.offsets[num_jets]) : 0;
    if (thread == 0) {
        int total = 0;
        for (int c = kLengths - 1; c > 0; --c) {
            const int count = next[c];
            next[c] = total;
            total += count;
        }
        next[0] = is_valid ? total : 0;
        plan.num_items[0] = next[0] + items_of(num_rows - padding);
        p.report[0] = is_valid;
        p.report[1] = padding;
        p.report[2] = pairs_before;
    }
    __syncthreads();
    const int jets_items = next[0];
    for (int i = thread; i < items_of(num_rows - padding); i += kPlanThreads) {
        const int first = padding + i * kItemRows;
        store(plan.items + jets_items + i,
              WorkItem{first, min(num_rows - first, kItemRows), 0, is_valid ? kPadding : kInvalid});
    }
    if (!is_valid) return;
    for (int jet = thread; jet < num_jets; jet += kPlanThreads) {
        const int first = static_cast<int>(p.offsets[jet]), n = static_cast<int>(p.offsets[jet + 1]) - first;
        if (n == 0) continue;
        const int at = atomicAdd(next + length_class(n), items_of(n));
        for (int i = 0; i < items_of(n); ++i) store(plan.items + at + i, WorkItem{first, n, i * kItemRows, jet});
    }
}

// ---- attention ------------------------------------------------------------------------------------------------------

// kTiles tiles of queries from work.item.row on.
template <class F, int kTiles, Extras kExtras>
__device__ __forceinline__ void attend_rows(const Arguments& a, const Work& work) {
    using T = typename F::T;
    constexpr int D = F::D;
    if (work.item.jet < 0) return fill_rows<F>(a.p.out, work, work.member);
    const int n = work.item.n, first = work.item.row;
    const JetRows<const T> q(a.p.q, work.item, work.head, work.member), k(a.p.k, work.item, work.head, work.member),
        v(a.p.v, work.item, work.head, work.member);
    const RowBias<F, kExtras> query_bias(a, work, work.member, kOfQueries);
    const ColumnsBias<F, kExtras> value_bias(a, work, work.member, kOfValues);
    const QueryMasks<kExtras> masks(a, work);
    const float* const bias =
        kExtras == kAny && a.p.bias != nullptr ? a.p.bias + pair_offset(a, work, work.member) : nullptr;

    typename F::Row queries[kTiles][2];
    Sums<D> sums[kTiles];
    float top[kTiles][2], total[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        load_rows<F, true>(queries[t], q, first + t * kTile, n);
        query_bias.add_to(queries[t]);
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
        value_bias.add_to(values);
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
            if (masks.drop()) {
                const unsigned kept = masks.of_tile(t, key);
#pragma unroll
                for (int h = 0; h < 2; ++h)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (!masks.keeps(kept, h, i)) x[i / 2][2 * h + i % 2] = 0.0f;
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
            store_sums<T, D>(out[row], sums[t], h, (kExtras != kNone ? a.keep_scale : 1.0f) / sum);
            if (lane_column() == 0)
                a.p.lse[(work.member * a.p.num_constituents + work.item.first + row) * a.p.num_heads + work.head] =
                    lse_of<F>(top[t][h], sum);
        }
}

template <class V>
__global__ void __launch_bounds__(kThreads, V::kBlocks) attend(const __grid_constant__ Arguments a) {
    with_work<typename V::F, V::kTiles>(
        a, [&](const Work& work, auto tiles) { attend_rows<typename V::F, tiles.value, V::kExtras>(a, work); });
}

template <class F, int kPass, Extras kExtras>
Choice choice_of() {
    using V = Variant<F, kPass, kExtras>;
    return {attend<V>, V::kTiles};
}

}  // namespace

int64_t attention_plan_bytes(int64_t num_jets, int64_t num_constituents) {
    return reinterpret_cast<char*>(plan_at(nullptr, num_jets, num_constituents).tiles + num_jets) -
           static_cast<char*>(nullptr);
}

void plan_attention(const AttentionPlanParams& p, void* stream) {
    if (p.num_jets > kMostInt || p.num_constituents > kMostInt)
        throw std::invalid_argument("more jets or constituents than a launch takes");
    launch(dim3(1), dim3(kPlanThreads), 0, static_cast<cudaStream_t>(stream), make_plan, p,
           plan_at(p.plan, p.num_jets, p.num_constituents));
}

bool attention_adds_projection_bias() { return code_capability() >= 80; }

int64_t attention_workspace_bytes(int64_t num_constituents, int64_t num_members, int64_t num_heads) {
    return num_constituents * num_members * num_heads * static_cast<int64_t>(sizeof(RowStatistics));
}

void constituent_attention_forward(const AttentionParams& p, void* stream) {
    for (const AttentionRows& rows : {p.q, p.k, p.v, p.out}) check_rows(rows, p.dtype);
    check_bias(p);
    run<kAttend>(p, static_cast<cudaStream_t>(stream));
}

}  // namespace kdfast::gpu
