// Attention among the constituents of a jet, on packed jets. For a jet with n constituents and each head:
//
//   s_ij = scale · q_i · k_j + bias_ij     lse_i = log Σ_j exp(s_ij)     P_ij = exp(s_ij − lse_i)
//   P̃_ij = keep_ij ? P_ij / (1 − p) : 0    out_i = Σ_j P̃_ij v_j
//
// and backward, with g_i the gradient of out_i, from q, k, v and lse (scores are computed again):
//
//   dP_ij = keep_ij ? g_i · v_j / (1 − p) : 0     D_i = Σ_j P_ij dP_ij     dS_ij = P_ij (dP_ij − D_i)
//   dq_i = scale · Σ_j dS_ij k_j     dk_j = scale · Σ_i dS_ij q_i     dv_j = Σ_i P̃_ij g_i     dbias_ij = dS_ij
//
// keep: core/philox.h, at the counter (jet, head, i, j / 8), the same for all members.
#pragma once

#include <cstdint>

#include "constituent_attention/attention_rows.h"
#include "core/isa.h"
#include "core/types.h"

namespace kdfast {

struct AttentionParams {
    AttentionRows q, k, v;
    AttentionRows out;         // forward
    AttentionRows grad_out;    // backward
    AttentionRows dq, dk, dv;  // backward
    float* lse;                // [K, M, H]: written by the forward pass, read by the backward pass
    const float* bias;         // [bias_members, H, Σ n²] or null; bias_members: K, or 1 for all
    float* dbias;              // backward: the same shape, or null
    const int64_t* offsets;    // [num_jets + 1]
    int64_t num_jets;
    int64_t num_constituents;
    int64_t num_members;
    int64_t num_heads;
    int64_t head_dim;  // 8, 16, 24, 32 or 64
    int64_t bias_members;
    DType dtype;  // of all AttentionRows
    float scale;
    uint64_t seed;
    uint32_t threshold;  // dropout, of 16 bits, < 2^16; 0: none
    int num_threads;
    bool* no_memory;  // out: whether scratch, which the longest jet needs, was lacking; the results are undefined then
};

KDFAST_KERNEL(constituent_attention_forward, AttentionParams)
KDFAST_KERNEL(constituent_attention_backward, AttentionParams)

}  // namespace kdfast
