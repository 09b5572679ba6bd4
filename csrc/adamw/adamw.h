// Gradient clipping and AdamW over flat parameters, in place: see ops/adamw.py for the formulas.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace kdfast {

struct AdamWParams {
    float* parameters;      // [K, P], as are the next three
    const float* gradient;  // clipping scales it on the fly
    float* moment1;
    float* moment2;
    float* norm;                 // [K] out: the gradient's norm before clipping; not finite: that member was left alone
    const float* learning_rate;  // [K]
    const float* weight_decay;   // [K]
    const int64_t* step;         // [K] updates so far, this one included
    double* scratch;             // [K, adamw_chunks(P)]
    int64_t num_members, num_parameters;
    double beta1, beta2, eps, clip_norm;
    int num_threads;
};

// The gradient's squares are summed chunk by chunk, then over chunks in their order: the same bits on any number of
// threads.
constexpr int64_t kAdamWChunk = 16384;
inline int64_t adamw_chunks(int64_t num_parameters) { return (num_parameters + kAdamWChunk - 1) / kAdamWChunk; }

KDFAST_KERNEL(adamw, AdamWParams);

}  // namespace kdfast
