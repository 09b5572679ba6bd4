// Attention among the constituents of a jet on GPUs: see constituent_attention.h for the formulas.
//
// All addresses are the device's, and nothing behind them is read by the host: what they hold may change between
// replays of a captured graph. Calls only launch kernels.
#pragma once

#include <cstdint>

#include "constituent_attention/attention_rows.h"
#include "core/types.h"

namespace kdfast::gpu {

// What the warps of all calls on a batch need to know about its jets: made once by plan_attention, which launches one
// block. Rows from the last offset up to num_constituents are padding: results have zeros there, and what inputs hold
// is not read. Where offsets don't rise from 0 to num_constituents or less, or Σ n² is more than most_pairs, all
// results are NaN, but for dbias, which is not written; likewise where masks have fewer tiles than the jets.
struct AttentionPlanParams {
    const int64_t* offsets;  // [num_jets + 1]
    int64_t num_jets, num_constituents;
    int64_t most_pairs;  // that a bias has; negative: there is none
    int64_t most_tiles;  // that masks have; negative: there are none
    void* plan;          // out: attention_plan_bytes bytes, aligned to 16
    int64_t* report;     // [3] out: whether it can be, 1 or 0; the last of them; Σ n²
};
int64_t attention_plan_bytes(int64_t num_jets, int64_t num_constituents);
void plan_attention(const AttentionPlanParams& params, void* stream);

// The bias of the layer that q, k and v come from, where that has not been added; for 16-bit types, with masks. Kernels
// add it to q and v as they load them, each sum rounded. That of k has no effect and no gradient: it adds the same to
// all of a query's scores.
struct ProjectionBias {
    const void* values;  // [K, 3, H, d] of dtype, rows at multiples of 16 bytes; null: none
    int64_t stride;      // elements from one member's to the next's
    float* grad;         // backward: [K, 3, H, d]
    int64_t grad_stride;
    float* workspace;  // backward: projection_bias_workspace_bytes bytes
};

// Rows begin at multiples of 16 bytes: so do their addresses and strides.
struct AttentionParams {
    AttentionRows q, k, v;
    AttentionRows out;         // forward
    AttentionRows grad_out;    // backward
    AttentionRows dq, dk, dv;  // backward
    ProjectionBias projection_bias;
    float* lse;              // [K, M, H]: written by the forward pass, read by the backward pass
    const float* bias;       // [bias_members, H, Σ n²] or null; bias_members: K, or 1 for all
    float* dbias;            // backward: the same shape, or null
    const void* plan;        // of this batch
    void* workspace;         // backward: attention_workspace_bytes bytes, aligned to 16
    const int64_t* offsets;  // backward, with a projection's bias: [num_jets + 1]
    int64_t num_jets, num_constituents, num_members, num_heads;
    int64_t num_pairs;  // Σ n²; read where there is a bias
    int64_t head_dim;   // 8, 16, 24, 32 or 64
    int64_t bias_members;
    DType dtype;  // of all AttentionRows
    float scale;
    uint64_t seed;
    const uint64_t* device_seed;  // read instead of seed, where not null
    uint32_t threshold;           // dropout, of 16 bits, < 2^16; 0: none
    const uint32_t* masks;        // its decisions, as ops/dropout_masks.py has them; null: drawn by the kernels
};
int64_t attention_workspace_bytes(int64_t num_constituents, int64_t num_members, int64_t num_heads);
bool attention_adds_projection_bias();  // whether the kernels for this GPU do
int64_t projection_bias_workspace_bytes(int64_t num_jets, int64_t num_constituents, int64_t num_members,
                                        int64_t num_features);
void constituent_attention_forward(const AttentionParams& params, void* stream);
void constituent_attention_backward(const AttentionParams& params, void* stream);

}  // namespace kdfast::gpu
