// The distillation loss of K members and its gradient: see ops/distill_loss.py for the formulas.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace kdfast {

constexpr int kMaxClasses = 128;

struct DistillLossParams {
    const void* student;        // [K, B, C]
    const void* teacher;        // [B, C] or [K, B, C]; null where every α is 0
    const void* labels;         // [B] int64 classes, or float32 in [0, 1] (only for C = 1)
    const float* weights;       // [B]; null: all 1
    const double* temperature;  // [K]
    const double* alpha;        // [K]
    float* loss;                // [K] out
    float* terms;               // [K, 2] out: weighted means of T²·KL and of CE; null: not wanted
    void* grad;                 // [K, B, C] out; null: not wanted
    int64_t num_members, num_jets, num_classes;
    int64_t teacher_stride;  // elements from one member's teacher logits to the next's: 0 or B·C
    DType student_dtype, teacher_dtype, grad_dtype;
    bool float_labels;
    int num_threads;
    bool* valid;  // out: false where a temperature, α, label or weight can't be, or Σw is not between 2^−100 and 2^100;
                  // nothing else is written then
    double weight_sum = 0.0;  // Σw where these jets are part of a batch: loss, terms and grad are their share of the
                              // batch's; 0: these jets are the batch
};

KDFAST_KERNEL(distill_loss, DistillLossParams);

}  // namespace kdfast
