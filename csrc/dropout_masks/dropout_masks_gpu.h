// What a step's dropout keeps, as bits; their layout stands at the head of ops/dropout_masks.py.
#pragma once

#include <cstdint>

#include "core/packed_rows.h"

namespace kdfast::gpu {

constexpr int kMaskUses = 32;  // that one launch draws

// One use of dropout in a step. of: 0: rows of constituents, 1: jets, 2: pairs of constituents. columns: features, or
// heads of pairs. offset: where its bits begin, a multiple of 16 bytes.
struct MaskUse {
    int64_t offset;
    int32_t of, columns;
};

struct DropoutMasksParams {
    PackedRows rows;  // of constituents; members and features are not read
    int64_t num_jets;
    const void* plan;      // of plan_attention, for pairs; null where there are none
    const int64_t* seeds;  // [num_uses]
    uint8_t* masks;        // out
    MaskUse uses[kMaskUses];
    int num_uses;
    uint32_t threshold;
};

void dropout_masks(const DropoutMasksParams& params, void* stream);

}  // namespace kdfast::gpu
