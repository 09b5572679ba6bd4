// Gradient clipping and AdamW on GPUs, in place: see ops/adamw.py for the formulas.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace kdfast::gpu {

// All addresses are the device's. Nothing is read by the host: steps and rates may change between replays of a captured
// graph.
struct AdamWParams {
    const float* gradient;       // [K, P]; clipping scales it on the fly
    const float* learning_rate;  // [K]
    const float* weight_decay;   // [K]
    const int64_t* step;         // [K] updates so far, this one included
    float* parameters;           // [K, P] in and out, as are the moments
    float* moment1;
    float* moment2;
    void* rounded;    // [K, P] bf16 out: the parameters; null: not wanted. Of a member that is left alone as it was
    float* norm;      // [K] out: the gradient's norm before clipping; not finite: that member was left alone
    void* workspace;  // adamw_workspace bytes
    int64_t num_members, num_parameters;  // ≥ 1
    double beta1, beta2, eps, clip_norm;
};

int64_t adamw_workspace(int64_t num_members, int64_t num_parameters);
void adamw(const AdamWParams& params, void* stream);

}  // namespace kdfast::gpu
