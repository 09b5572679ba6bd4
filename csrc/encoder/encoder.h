// The tagger of models/jet_transformer.py as one function of a batch: its training step (forward, loss, backward) and
// its evaluation. The formulas of the layers are at the head of layer.h, embed.h, pooling.h and head.h.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/isa.h"
#include "core/jet_batch.h"

namespace kdfast {

struct EncoderSizes {
    int64_t features;                   // ≤ kMaxFeatures
    int64_t width, layers, heads, ffn;  // width and ffn: multiples of 16; width / heads: 8, 16, 24, 32 or 64
    int64_t pooling_heads, classes;
};

constexpr int64_t kMaxFeatures = 16;

// What a training step spends its time on.
enum class Part : int {
    gather,
    pack,
    dropout,
    embed,
    norm,
    qkv,
    attention,
    out,
    ffn_in,
    ffn_out,
    pooling,
    head,
    back_pooling,
    back_ffn_out,
    back_ffn_in,
    back_out,
    back_attention,
    back_qkv,
    back_norm,
    back_weights,
    back_embed,
    gradient,
    count
};

struct EncoderStepParams {
    EncoderSizes sizes;
    JetBatch batch;           // at least two jets
    const float* parameters;  // [P] in the order of JetTransformer.named_parameters()
    float* gradient;          // [P] out
    float* running;       // of the BatchNorms (embed, dense1 … 3): mean, variance of each, one after the other; updated
    const float* labels;  // of the view, as are the next four
    const float* weights;
    const float* teacher_logits;   // null: no teacher
    const float* teacher_entropy;  // null: no attention-transfer term
    const float* teacher_maximum;
    double temperature, alpha, attention_weight;
    uint64_t dropout_seed;
    uint32_t threshold;  // of dropout, of 16 bits; 0: none
    bool bf16;           // operands of the layers' matrix products in bfloat16
    int num_threads;
    Arena* memory;
    double* terms;    // [4] out: the loss and its parts as weighted, α KL, (1 − α) BCE, attention transfer
    double* seconds;  // [Part::count] added to; null: not measured
    Outcome* outcome;
};

struct EncoderForwardParams {
    EncoderSizes sizes;
    JetBatch batch;
    const float* parameters;
    const float* running;
    bool bf16;
    int num_threads;
    Arena* memory;
    float* logits;   // [num_jets, classes] out
    float* pooling;  // [constituents of the batch] out: pooling weights, averaged over heads; null: not wanted
    Outcome* outcome;
};

KDFAST_AMX_KERNEL(encoder_step, EncoderStepParams)
KDFAST_AMX_KERNEL(encoder_forward, EncoderForwardParams)

}  // namespace kdfast
