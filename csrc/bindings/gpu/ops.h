// The ops that kdfast._cuda and kdfast._emu bind, each in a file of its own beside this one.
//
// A binding takes the addresses of inputs (0: none), the addresses of outputs, scalars, and last the stream.
#pragma once

#include <pybind11/pybind11.h>

#include "core/packed_rows.h"

namespace kdfast::gpu {

void bind_adamw(pybind11::module_&);
void bind_attention_pooling(pybind11::module_&);
void bind_attention_transfer(pybind11::module_&);
void bind_batch_norm_gelu(pybind11::module_&);
void bind_bias_gelu(pybind11::module_&);
void bind_constituent_attention(pybind11::module_&);
void bind_distill_loss(pybind11::module_&);
void bind_dropout_masks(pybind11::module_&);
void bind_residual_norm(pybind11::module_&);

inline void bind_ops(pybind11::module_& m) {
    bind_adamw(m);
    bind_attention_pooling(m);
    bind_attention_transfer(m);
    bind_batch_norm_gelu(m);
    bind_bias_gelu(m);
    bind_constituent_attention(m);
    bind_distill_loss(m);
    bind_dropout_masks(m);
    bind_residual_norm(m);
}

inline PackedRows packed_rows(uintptr_t count, uintptr_t jet, uintptr_t position, int64_t num_members, int64_t capacity,
                              int64_t num_features) {
    return {reinterpret_cast<const int64_t*>(count),
            reinterpret_cast<const int64_t*>(jet),
            reinterpret_cast<const int64_t*>(position),
            num_members,
            capacity,
            num_features};
}

inline MemberGradients member_gradients(uintptr_t values, int64_t stride) {
    return {reinterpret_cast<float*>(values), stride};
}

inline Dropout dropout_of(uintptr_t seed, uintptr_t mask, uint32_t threshold, float scale) {
    return {reinterpret_cast<const int64_t*>(seed), reinterpret_cast<const uint8_t*>(mask), threshold, scale};
}

}  // namespace kdfast::gpu
