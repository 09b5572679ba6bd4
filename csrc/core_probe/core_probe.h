// A way for the tests to call what core/simd.h offers to kernels, in the instruction set in use.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace kdfast {

enum class Probe : int { exp, exp_nonpositive, expm1, log, log1p, load_bf16, load_f16, store_bf16, store_f16, normal };

struct CoreProbeParams {
    Probe function;
    const void* x;  // [n] float32; 16-bit for the loads
    void* y;        // [n] float32; 16-bit for the stores
    float* rest;    // [n] the `rest` of expm1 and log1p, the density of normal; may be null
    int64_t n;
};

KDFAST_AMX_KERNEL(core_probe, CoreProbeParams);

}  // namespace kdfast
