// Attention within one jet, for engines that run inside a thread of their own: all heads, no allocation, no threads.
// The mathematics stands in constituent_attention.h.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace kdfast {

// [n, H, d] with strides in elements: feature c of head h of constituent i is data[i * row + h * head + c].
struct HeadRows {
    void* data;
    int64_t row, head;
};

struct JetAttention {
    int64_t n, num_heads, head_dim;  // head_dim: 8, 16, 24, 32 or 64
    DType dtype;                     // of all HeadRows
    HeadRows q, k, v;
    HeadRows out;                   // forward
    HeadRows grad_out, dq, dk, dv;  // backward
    float* lse;                     // [n, H]: written by the forward pass, read by the backward pass
    const float* bias = nullptr;    // or H blocks of [n, n]
    float* dbias = nullptr;         // backward: or the same shape
    int64_t bias_head = 0;          // floats from one head's block to the next's
    bool add_dbias = false;         // adds to dbias instead of writing it
    float scale;
    uint64_t seed = 0;
    uint32_t threshold = 0;  // dropout, of 16 bits; 0: none
    uint32_t jet = 0;        // its position in the batch, for dropout
    int64_t prefetch = 0;    // this many rows after the jet's own, of every input, are fetched into the cache meanwhile
    bool past_cache = false;  // results are not read soon: they need not stay in the cache
    float* scratch;           // jet_attention_scratch floats for at least n, aligned to 64 bytes
};

struct JetScratch {
    int64_t n, head_dim;
    int64_t* floats;  // out
};

KDFAST_KERNEL(jet_attention_scratch, JetScratch)
KDFAST_KERNEL(attention_forward_jet, JetAttention)
KDFAST_KERNEL(attention_backward_jet, JetAttention)

}  // namespace kdfast
