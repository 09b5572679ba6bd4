// BatchNorm over the rows present, GELU and dropout on GPUs: see ops/batch_norm_gelu.py for the formulas.
#pragma once

#include <cstdint>

#include "core/packed_rows.h"
#include "core/types.h"

namespace kdfast::gpu {

struct BatchNormGeluParams {
    PackedRows rows;
    Dropout dropout;
    const void* y;  // [K, M, D] of dtype
    MemberVectors gamma, beta;
    void* out;                               // [K, M, D] of dtype out
    float* statistics;                       // [3, K, D] out: the mean as a sum of two floats, and 1 / √(variance + ε)
    float *running_mean, *running_variance;  // [K, D] in, and out in training
    float* workspace;                        // batch_norm_gelu_workspace floats
    int64_t running_mean_stride, running_variance_stride;  // elements from one member's to the next's
    DType dtype;
    bool training;
};

struct BatchNormGeluBackwardParams {
    PackedRows rows;
    Dropout dropout;
    const void *grad_out, *y;  // [K, M, D] of dtype
    MemberVectors gamma, beta;
    const float* statistics;                // what forward gave
    void* grad_y;                           // [K, M, D] of dtype out
    MemberGradients grad_gamma, grad_beta;  // both wanted
    float* workspace;                       // batch_norm_gelu_workspace floats
    DType dtype;
    bool training;
};

int64_t batch_norm_gelu_workspace(int64_t num_members, int64_t capacity, int64_t num_features);
void batch_norm_gelu(const BatchNormGeluParams& params, void* stream);
void batch_norm_gelu_backward(const BatchNormGeluBackwardParams& params, void* stream);

}  // namespace kdfast::gpu
