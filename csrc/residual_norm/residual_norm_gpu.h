// Residual sum and LayerNorm on GPUs: see ops/residual_norm.py for the formulas.
#pragma once

#include <cstdint>

#include "core/packed_rows.h"
#include "core/types.h"

namespace kdfast::gpu {

constexpr int kMaxNormFeatures = 1024;

struct ResidualNormParams {
    PackedRows rows;  // D ≤ kMaxNormFeatures
    Dropout dropout;
    const float* x;                   // [K, M, D]
    const void* y;                    // [K, M, D] of dtype; null: x' is x
    MemberVectors bias, gamma, beta;  // null γ: no norm
    float* sum;                       // [K, M, D] out: x'
    void* norm;                       // [K, M, D] of dtype out: n
    float* moments;                   // [2, K, M] out: mean and 1 / √(variance + ε) of each row that is there
    DType dtype;
};

struct ResidualNormBackwardParams {
    PackedRows rows;
    Dropout dropout;
    const float* grad_sum;       // [K, M, D]; null: zeros
    const void* grad_norm;       // [K, M, D] of dtype; null: zeros
    const float *sum, *moments;  // what forward gave; null where grad_norm is
    MemberVectors gamma;
    float* grad_x;  // [K, M, D] out
    void* grad_y;   // [K, M, D] of dtype out; null: there was no y
    MemberGradients grad_gamma, grad_beta, grad_bias;
    float* workspace;  // residual_norm_workspace floats
    DType dtype;
};

int64_t residual_norm_workspace(int64_t num_members, int64_t capacity, int64_t num_features);
void residual_norm(const ResidualNormParams& params, void* stream);
void residual_norm_backward(const ResidualNormBackwardParams& params, void* stream);

}  // namespace kdfast::gpu
