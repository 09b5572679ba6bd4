// The work of attention in pieces for warps: kItemRows rows of a jet (queries, or keys in the backward pass), those of
// long jets first, so that no long one is left for the end.
#pragma once

#include "constituent_attention/constituent_attention_gpu.h"
#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

constexpr int kItemRows = 32;
constexpr int kPlanThreads = 512;
constexpr int kLengths = 64;  // that are told apart: n in steps of 16; longer jets count as the longest

constexpr int kPadding = -1, kInvalid = -2;  // for a jet: rows behind the last one; all rows, where offsets can't be

struct alignas(16) WorkItem {
    int first, n;  // the jet's first constituent in the batch, and how many it has
    int row;       // the item's first row, in the jet
    int jet;
};

struct Plan {
    int* num_items;
    WorkItem* items;  // [max_items]
    int64_t* pairs;   // [num_jets]: Σ n² of the jets before
};

// What a batch has at most: every jet, and the padding, may have an item that is not full.
inline int64_t max_items(int64_t num_jets, int64_t num_constituents) {
    return num_constituents / kItemRows + num_jets + 1;
}

inline Plan plan_at(const void* memory, int64_t num_jets, int64_t num_constituents) {
    char* const begin = static_cast<char*>(const_cast<void*>(memory));
    WorkItem* const items = reinterpret_cast<WorkItem*>(begin + sizeof(WorkItem));
    return {reinterpret_cast<int*>(begin), items,
            reinterpret_cast<int64_t*>(items + max_items(num_jets, num_constituents))};
}

__device__ __forceinline__ int length_class(int n) { return min((n + 15) / 16, kLengths - 1); }
__device__ __forceinline__ int items_of(int n) { return (n + kItemRows - 1) / kItemRows; }

// One block. The order of jets in a class is that of the atomics; no result depends on it.
__global__ void __launch_bounds__(kPlanThreads) make_plan(const AttentionPlanParams p, const Plan plan) {
    KDFAST_SHARED(int, next, kLengths);  // per class: its items, then the place of the next of them
    KDFAST_SHARED(int, invalid, 1);
    KDFAST_SHARED(int64_t, warp_pairs, kPlanThreads / kWarp);
    const int thread = static_cast<int>(threadIdx.x), num_jets = static_cast<int>(p.num_jets);
    if (thread < kLengths) next[thread] = 0;
    if (thread == 0) invalid[0] = p.offsets[0] != 0 || p.offsets[num_jets] > p.num_constituents;
    __syncthreads();

    int64_t pairs_before = 0;  // of the jets before a round of the loop
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
        int64_t sum = n * n;  // of the warp's lanes up to this one
#pragma unroll
        for (int lanes = 1; lanes < kWarp; lanes *= 2) {
            const int64_t left = __shfl_up_sync(kFullMask, sum, lanes);
            if (lane_index() >= lanes) sum += left;
        }
        if (lane_index() == kWarp - 1) warp_pairs[warp_index()] = sum;
        __syncthreads();
        int64_t before = pairs_before;
        for (int w = 0; w < kPlanThreads / kWarp; ++w) {
            const int64_t pairs = warp_pairs[w];
            if (w < warp_index()) before += pairs;
            pairs_before += pairs;
        }
        if (jet < num_jets) plan.pairs[jet] = before + sum - n * n;
        __syncthreads();
    }

    // Rows from `padding` on belong to no jet.
    const int num_rows = static_cast<int>(p.num_constituents);
    const int padding = invalid[0] ? 0 : static_cast<int>(p.offsets[num_jets]);
    if (thread == 0) {
        int total = 0;
        for (int c = kLengths - 1; c > 0; --c) {
            const int count = next[c];
            next[c] = total;
            total += count;
        }
        next[0] = invalid[0] ? 0 : total;
        plan.num_items[0] = next[0] + items_of(num_rows - padding);
        p.report[0] = !invalid[0];
        p.report[1] = padding;
        p.report[2] = pairs_before;
    }
    __syncthreads();
    const int jets_items = next[0];
    for (int i = thread; i < items_of(num_rows - padding); i += kPlanThreads) {
        const int first = padding + i * kItemRows;
        store(plan.items + jets_items + i,
              WorkItem{first, min(num_rows - first, kItemRows), 0, invalid[0] ? kInvalid : kPadding});
    }
    if (invalid[0]) return;
    for (int jet = thread; jet < num_jets; jet += kPlanThreads) {
        const int first = static_cast<int>(p.offsets[jet]), n = static_cast<int>(p.offsets[jet + 1]) - first;
        if (n == 0) continue;
        const int at = atomicAdd(next + length_class(n), items_of(n));
        for (int i = 0; i < items_of(n); ++i) store(plan.items + at + i, WorkItem{first, n, i * kItemRows, jet});
    }
}

}  // namespace
}  // namespace kdfast::gpu
