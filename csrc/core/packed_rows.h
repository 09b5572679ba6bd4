// Rows of K members' features [K, M, D], and dropout of them, as the kernels of the lock-step engine take them; what
// they mean stands in python/kdfast/ops/packed_rows.py. All addresses are the device's, and what is found there may
// change between replays of a captured graph.
#pragma once

#include <cstdint>

namespace kdfast::gpu {

struct PackedRows {
    const int64_t* count;                         // [1]: the rows behind it are padding
    const int64_t *jet, *position;                // [M]: dropout's counters
    int64_t num_members, capacity, num_features;  // K, M, D; D a multiple of 8
};

struct Dropout {
    const int64_t* seed;  // [1]; null: no dropout
    const uint8_t* mask;  // [M, ⌈D/8⌉], ops/dropout_masks.py; null: drawn by the kernels
    uint32_t threshold;   // core/philox.h
    float scale;          // of what is kept
};

// [K, D], a vector for each member, `stride` elements from one to the next.
struct MemberVectors {
    const float* values;
    int64_t stride;
};

// The same where a kernel writes them; null: not wanted.
struct MemberGradients {
    float* values;
    int64_t stride;
};

}  // namespace kdfast::gpu
