// Pooling of jets' constituents by one learned query on GPUs; what it is stands in ops/attention_pooling.py.
#pragma once

#include <cstdint>

#include "core/packed_rows.h"

namespace kdfast::gpu {

// All addresses are the device's. Nothing is read by the host: offsets and seed may change between replays of a
// captured graph. Rows behind offsets[B] are padding. Vectors of D begin at multiples of 16 bytes where D > 32.
struct PoolingRows {
    const int64_t* offsets;  // [B + 1], where each jet begins
    Dropout dropout;
    int64_t num_members, num_jets, capacity;  // K, B, M ≥ 1
    int num_heads, width;                     // H, D
};

struct AttentionPoolingParams {
    PoolingRows rows;
    const float* x;          // [K, M, D]
    const float* direction;  // [K, H, D]
    float* pooled;           // [K, B, H, D] out
    float* kept;             // [K, B, H] out
    float* attention;        // [K, M] out
    float* weights;          // [K, M, H] out, for the backward pass; padding is not written
};

struct AttentionPoolingBackwardParams {
    PoolingRows rows;
    const float *x, *direction, *pooled, *kept, *weights;  // as above
    const float* grad_pooled;                              // [K, B, H, D]
    const float* grad_kept;                                // [K, B, H]; null: zeros
    const float* grad_attention;                           // [K, M]; null: zeros
    float* grad_x;                                         // [K, M, D] out
    float* grad_direction;                                 // [K, H, D] out
    float* grad_weights;                                   // [K, M, H] workspace
    float* partial;                                        // attention_pooling_partials(B) of [K, H, D]; workspace
};

// Whether there is a kernel for these sizes.
bool attention_pooling_takes(int num_heads, int width);
void attention_pooling(const AttentionPoolingParams& params, void* stream);
int64_t attention_pooling_partials(int64_t num_jets);
void attention_pooling_backward(const AttentionPoolingBackwardParams& params, void* stream);

}  // namespace kdfast::gpu
