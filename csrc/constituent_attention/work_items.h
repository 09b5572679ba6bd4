// The work of attention in pieces for warps: kItemRows rows of a jet (queries, or keys in the backward pass), those of
// long jets first, so that no long one is left for the end.
#pragma once

#include "constituent_attention/constituent_attention_gpu.h"
#include "constituent_attention/pair_masks.h"
#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

constexpr int kItemRows = 32;
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
    int64_t* tiles;   // [num_jets]: Σ tiles_of(n)² of the jets before
};

// What a batch has at most: every jet, and the padding, may have an item that is not full.
inline int64_t max_items(int64_t num_jets, int64_t num_constituents) {
    return num_constituents / kItemRows + num_jets + 1;
}

inline Plan plan_at(const void* memory, int64_t num_jets, int64_t num_constituents) {
    char* const begin = static_cast<char*>(const_cast<void*>(memory));
    WorkItem* const items = reinterpret_cast<WorkItem*>(begin + sizeof(WorkItem));
    int64_t* const pairs = reinterpret_cast<int64_t*>(items + max_items(num_jets, num_constituents));
    return {reinterpret_cast<int*>(begin), items, pairs, pairs + num_jets};
}

}  // namespace
}  // namespace kdfast::gpu
