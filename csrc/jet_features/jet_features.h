// The seven features of a constituent relative to its jet's axis. The formulas stand in
// python/kdfast/ops/jet_features.py; this computes them in float64 and rounds once.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace kdfast {

struct JetFeaturesParams {
    const float* constituents;  // [M, 4] pt, eta, phi, energy
    const int64_t* offsets;     // [B + 1]
    int64_t num_jets;           // B
    float* features;            // [M, 7]
    int num_threads;
};

KDFAST_KERNEL(jet_features, JetFeaturesParams)

}  // namespace kdfast
