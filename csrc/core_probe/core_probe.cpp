#include "core_probe/core_probe.h"

#include <cstdlib>

#include "core/matmul.h"
#include "core/matmul_bf16.h"
#include "core/normal.h"
#include "core/scratch.h"
#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

KDFAST_INLINE Vec apply(Probe function, Vec x, Vec& rest) {
    Split split;
    Normal at;
    switch (function) {
        case Probe::exp:
            return exp(x);
        case Probe::exp_nonpositive:
            return exp_nonpositive(x);
        case Probe::log:
            return log(x);
        case Probe::log1p_unit:
            return log1p_unit(x);
        case Probe::normal:
            at = normal(x);
            rest = at.density;
            return at.cdf;
        case Probe::expm1:
            split = expm1(x);
            break;
        default:
            split = log1p(x);
            break;
    }
    rest = split.rest;
    return split.value;
}

// T: the type on the 16-bit side of a load or store; n is a multiple of kLanes here, what is left over is not touched.
template <class T>
void convert(const CoreProbeParams& p, bool is_load) {
    for (int64_t i = 0; i + kLanes <= p.n; i += kLanes) {
        if (is_load)
            store(static_cast<float*>(p.y) + i, load(static_cast<const T*>(p.x) + i));
        else
            store(static_cast<T*>(p.y) + i, load(static_cast<const float*>(p.x) + i));
    }
}

}  // namespace

void core_probe(const CoreProbeParams& p) {
    switch (p.function) {
        case Probe::load_bf16:
            return convert<bf16>(p, true);
        case Probe::load_f16:
            return convert<f16>(p, true);
        case Probe::store_bf16:
            return convert<bf16>(p, false);
        case Probe::store_f16:
            return convert<f16>(p, false);
        default:
            break;
    }
    const float* x = static_cast<const float*>(p.x);
    float* y = static_cast<float*>(p.y);
    for (int64_t i = 0; i < p.n; i += kLanes) {
        const int left = static_cast<int>(p.n - i < kLanes ? p.n - i : kLanes);
        Vec rest = {};
        const Vec v = apply(p.function, load_partial(x + i, left, -1.5f), rest);
        store_partial(y + i, v, left);
        if (p.rest != nullptr) store_partial(p.rest + i, rest, left);
    }
}

void fma(const FmaParams& p) {
    constexpr int kChains = 12;  // two units of four cycles' latency need 8; 16 registers hold 12 and the operands
    const Vec factor = broadcast(p.factor), term = broadcast(p.term);
    Vec x[kChains];
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) x[c] = broadcast(static_cast<float>(c));
    for (int64_t done = 0; done < p.operations; done += 2 * kChains * kLanes)
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) x[c] = x[c] * factor + term;
    Vec sum = x[0];
#pragma GCC unroll 12
    for (int c = 1; c < kChains; ++c) sum += x[c];
    *p.sum = reduce_add(sum);
}

// A test's few kilobytes.
static float* memory_for(int64_t floats) {
    float* const memory = scratch(static_cast<size_t>(floats));
    if (memory == nullptr) std::abort();
    return memory;
}

void matmul_fp32(const MatmulParams& p) {
    float* const packed = memory_for(packed_size(p.k, p.n));
    pack_panels(p.b, p.row_stride, p.column_stride, p.k, p.n, nullptr, packed);
    for (int64_t i = 0; i < p.repeats; ++i)
        matmul(p.a, p.lda, p.rows, packed, p.k, p.n,
               [&](int64_t row, int64_t column, Vec sum)
                   __attribute__((always_inline)) { store(p.c + row * p.ldc + column, sum); });
}

void matmul_bf16(const MatmulBf16Params& p) {
    bf16* const packed = reinterpret_cast<bf16*>(memory_for(packed_size_bf16(p.k, p.n) / 2));
    pack_panels(p.b, p.row_stride, p.column_stride, p.k, p.n, p.row_scale, packed);
    for (int64_t repeat = 0; repeat < p.repeats; ++repeat)
        matmul(p.a, p.lda, p.rows, packed, p.k, p.n, [&](int64_t i, int64_t j, Vec sum) __attribute__((always_inline)) {
            store(p.c + i * p.ldc + j, sum);
            store_bf16(p.rounded + i * p.ldc + j, sum);
        });
}

void outer_bf16(const OuterBf16Params& p) {
    float* const memory = memory_for(outer_scratch_bf16(p.num_out, p.num_in, p.rows));
    outer(p.dy, p.ldy, p.num_out, p.x, p.ldx, p.num_in, p.rows, memory,
          [&](int64_t i, int64_t j, Vec sum)
              __attribute__((always_inline)) { store(p.gradient + i * p.num_in + j, sum); });
}

}  // namespace kdfast::KDFAST_ISA_NS
