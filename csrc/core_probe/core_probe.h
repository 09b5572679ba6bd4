// A way for the tests to call what csrc/core offers to kernels, in the instruction set in use.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace kdfast {

enum class Probe : int {
    exp,
    exp_nonpositive,
    expm1,
    log,
    log1p,
    log1p_unit,
    load_bf16,
    load_f16,
    store_bf16,
    store_f16,
    normal
};

struct CoreProbeParams {
    Probe function;
    const void* x;  // [n] float32; 16-bit for the loads
    void* y;        // [n] float32; 16-bit for the stores
    float* rest;    // [n] the `rest` of expm1 and log1p, the density of normal; may be null
    int64_t n;
};

KDFAST_AMX_KERNEL(core_probe, CoreProbeParams);

// Multiplications and additions in registers alone: the peak that a step is measured against.
struct FmaParams {
    float factor, term;  // x ← x · factor + term, over and over
    int64_t operations;  // at least; two for each lane of each x
    float* sum;          // of all x, so that none is left out
};

// The product of core/matmul.h, `repeats` times with the same packed b: a step's weights serve many slices of jets.
struct MatmulParams {
    const float* a;  // [rows, k] with stride lda
    int64_t lda, rows;
    const float* b;  // [k, n] with the strides given
    int64_t row_stride, column_stride, k, n;
    float* c;  // [rows, n] with stride ldc
    int64_t ldc, repeats;
};

KDFAST_AMX_KERNEL(fma, FmaParams);
KDFAST_AMX_KERNEL(matmul_fp32, MatmulParams);

// The products of core/matmul_bf16.h, of which this is the documentation.
struct MatmulBf16Params {
    const bf16* a;  // [rows, k] with stride lda
    int64_t lda, rows;
    const float* b;  // [k, n] with the strides given
    int64_t row_stride, column_stride;
    const float* row_scale;  // [k] or null
    int64_t k, n;
    float* c;       // [rows, n] with stride ldc
    bf16* rounded;  // c by store_bf16
    int64_t ldc, repeats;
};
struct OuterBf16Params {
    const bf16* dy;  // [rows, num_out] with stride ldy
    int64_t ldy, num_out;
    const bf16* x;  // [rows, num_in] with stride ldx
    int64_t ldx, num_in, rows;
    float* gradient;  // [num_out, num_in]
};

KDFAST_AMX_KERNEL(matmul_bf16, MatmulBf16Params);
KDFAST_AMX_KERNEL(outer_bf16, OuterBf16Params);

}  // namespace kdfast
