// A trigger's view of jets: pT threshold → merging → smearing → efficiency loss. The formulas and the use of random
// numbers stand in python/kdfast/ops/hlt_emulation.py, whose reference this equals up to rounding in float64.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace kdfast {

struct HltEmulationParams {
    const float* constituents;  // [M, 4] pt, eta, phi, energy; in falling pt within a jet
    const int64_t* offsets;     // [B + 1]
    const int64_t* index;       // [B], keys the random numbers
    int64_t num_jets;           // B
    float pt_threshold;
    double merge_radius, pt_resolution, angular_resolution, loss;
    uint64_t seed;
    float* scratch;        // [M, 4]: the result, in the order of jets, with gaps after every slice of jets
    int64_t* out_offsets;  // [B + 1]
    int64_t* removed;      // [3]: below the threshold, merged, lost
    int64_t* first_bad;    // first jet with values that are not finite, negative or not in falling pt; −1: none
    int num_threads;
};

// The result's size is known only afterwards, hence two steps: hlt_emulation fills scratch and counts, hlt_compact
// moves the constituents to their places in out [M', 4], M' = out_offsets[B].
struct HltCompactParams {
    const float* scratch;
    const int64_t* offsets;
    const int64_t* out_offsets;
    int64_t num_jets;
    float* out;
    int num_threads;
};

KDFAST_KERNEL(hlt_emulation, HltEmulationParams)
KDFAST_KERNEL(hlt_compact, HltCompactParams)

}  // namespace kdfast
