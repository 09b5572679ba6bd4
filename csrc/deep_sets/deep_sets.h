// The network of models/deep_sets.py as one function of a batch: its training step (forward, loss, backward) and its
// evaluation. There is no norm over the batch, so a slice of jets goes through the step at once, forward and backward,
// while its activations are in the cache.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/isa.h"
#include "core/jet_batch.h"
#include "core/types.h"

namespace kdfast {

struct DeepSetsSizes {
    int64_t features;
    int64_t width, layers;            // of the layers on constituents
    int64_t head_width, head_layers;  // of those on a jet
    int64_t classes;
};

// Parameters of a model, which stand in the order of DeepSets.named_parameters().
KDFAST_INLINE int64_t deep_sets_parameters(const DeepSetsSizes& s) {
    const auto layers = [](int64_t num_in, int64_t num_out, int64_t number) __attribute__((always_inline)) {
        return (num_in + 1) * num_out + (number - 1) * (num_out + 1) * num_out;
    };
    return layers(s.features, s.width, s.layers) + layers(2 * s.width, s.head_width, s.head_layers) +
           layers(s.head_width, s.classes, 1);
}

struct DeepSetsStepParams {
    DeepSetsSizes sizes;  // classes: 1
    JetBatch batch;
    const float* parameters;  // [P]
    float* gradient;          // [P] out
    const float* labels;      // of the view, as are the next two
    const float* weights;
    const float* teacher_logits;  // null: no teacher
    double temperature, alpha;
    bool bf16;  // operands of the constituents' matrix products in bfloat16
    int num_threads;
    Arena* memory;
    double* terms;  // [3] out: the loss and its parts as weighted, α KL, (1 − α) BCE
    Outcome* outcome;
};

struct DeepSetsForwardParams {
    DeepSetsSizes sizes;
    JetBatch batch;
    const float* parameters;
    bool bf16;
    int num_threads;
    Arena* memory;
    float* logits;  // [num_jets, classes] out
    Outcome* outcome;
};

KDFAST_AMX_KERNEL(deep_sets_step, DeepSetsStepParams)
KDFAST_AMX_KERNEL(deep_sets_forward, DeepSetsForwardParams)

}  // namespace kdfast
