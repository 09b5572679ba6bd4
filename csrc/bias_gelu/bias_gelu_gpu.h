// GELU behind a layer's first matrix, on GPUs: see ops/bias_gelu.py for the formulas.
#pragma once

#include <cstdint>

#include "core/packed_rows.h"
#include "core/types.h"

namespace kdfast::gpu {

struct BiasGeluParams {
    PackedRows rows;
    Dropout dropout;
    const void* u;  // [K, M, D] of dtype
    MemberVectors bias;
    void* out;  // [K, M, D] of dtype out
    DType dtype;
};

struct BiasGeluBackwardParams {
    PackedRows rows;
    Dropout dropout;
    const void *grad_out, *u;  // [K, M, D] of dtype
    MemberVectors bias;
    void* grad_u;  // [K, M, D] of dtype out
    MemberGradients grad_bias;
    float* workspace;  // bias_gelu_workspace floats
    DType dtype;
};

int64_t bias_gelu_workspace(int64_t num_members, int64_t capacity, int64_t num_features);
void bias_gelu(const BiasGeluParams& params, void* stream);
void bias_gelu_backward(const BiasGeluBackwardParams& params, void* stream);

}  // namespace kdfast::gpu
