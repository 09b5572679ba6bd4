// Dropout of rows of features with a mask that is a function of seed and position.
//
//   y[r, f] = keep(r, f) ? x[r, f] · scale : 0,   scale = 1 / (1 − threshold / 2^16)
//
// keep: core/philox.h, at the counter (jet, 0, constituent within the jet, f / 8).
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace kdfast {

struct DropoutParams {
    const void* x;  // [M, num_features], contiguous
    void* y;        // the same
    DType dtype;
    const int64_t* offsets;  // [num_jets + 1]; null: M = num_jets, each row is a jet with the one constituent 0
    int64_t num_jets;
    int64_t num_features;  // < 2^18
    uint64_t seed;
    uint32_t threshold;  // of 16 bits, < 2^16
    int num_threads;
};

KDFAST_KERNEL(dropout, DropoutParams)

}  // namespace kdfast
