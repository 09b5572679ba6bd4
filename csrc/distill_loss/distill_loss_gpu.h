// The distillation loss on GPUs: see ops/distill_loss.py for the formulas.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace kdfast::gpu {

constexpr int kMaxClasses = 1024;

// All addresses are the device's. Nothing is read by the host: temperatures, weights and labels may change between
// replays of a captured graph.
struct DistillLossParams {
    const void* student;        // [K, B, C]
    const void* teacher;        // [B, C] or [K, B, C], of the student's type; null where every α is 0
    const void* labels;         // [B] int64 classes, or float32 in [0, 1] (only for C = 1)
    const float* weights;       // [B]; null: all 1
    const double* temperature;  // [K]
    const double* alpha;        // [K]
    float* loss;                // [K] out
    float* terms;               // [K, 2] out: weighted means of T²·KL and of CE; null: not wanted
    void* grad;                 // [K, B, C] out; null: not wanted
    // out: 1 where a temperature, α, label or weight can't be, else 0; what it concerns is NaN then.
    int32_t* invalid;
    void* workspace;                             // distill_loss_workspace bytes
    int64_t num_members, num_jets, num_classes;  // K ≥ 1, B ≥ 1, 1 ≤ C ≤ kMaxClasses
    int64_t teacher_stride;                      // elements from one member's teacher logits to the next's: 0 or B·C
    DType logits_dtype, grad_dtype;
    bool float_labels;
};

int64_t distill_loss_workspace(int64_t num_members, int64_t num_jets, int64_t num_classes, DType logits_dtype);
void distill_loss(const DistillLossParams& params, void* stream);

}  // namespace kdfast::gpu
