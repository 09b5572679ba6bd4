// The attention-transfer term on GPUs; what it is stands in ops/attention_transfer.py.
#pragma once

#include <cstdint>

namespace kdfast::gpu {

// All addresses are the device's. Nothing is read by the host: offsets may change between replays of a captured graph.
struct AttentionTransferParams {
    const float* attention;                   // [K, M]
    const int64_t* offsets;                   // [B + 1], where each jet begins; rows from the last one on are padding
    const float* teacher_entropy;             // [B]
    const float* teacher_maximum;             // [B]
    const float* weights;                     // [B]
    float* loss;                              // [K] out
    float* grad;                              // [K, M] out: of Σw · loss by attention; null: not wanted
    float* total_weight;                      // [1] out: Σw
    void* workspace;                          // attention_transfer_workspace bytes
    int64_t num_members, num_jets, capacity;  // K, B, M ≥ 1
};

int64_t attention_transfer_workspace(int64_t num_members, int64_t num_jets);
void attention_transfer(const AttentionTransferParams& params, void* stream);

}  // namespace kdfast::gpu
