// A thread keeps an octet of columns, and their biases in registers, over several rows. Backward computes the slope of
// GELU anew from u, which is less to read than what forward could have kept; the bias's gradient is the sum over rows
// of what it writes, by core/octets.h.
#include "bias_gelu/bias_gelu_gpu.h"
#include "core/gelu.h"
#include "core/gpu.h"
#include "core/octets.h"

namespace kdfast::gpu {
namespace {

using ForwardWalk = Walk<256, 4>;
using BackwardWalk = Walk<256, 16>;

template <class T>
__global__ void __launch_bounds__(ForwardWalk::kThreads)
    forward(const __grid_constant__ BiasGeluParams p, const __grid_constant__ ForwardWalk walk) {
    const int64_t count = p.rows.count[0];
    const int octet = walk.octet(0);
    if (!walk.has(octet)) return;
    const Octet bias = load_vector(p.bias, walk.member(), octet, true);
#pragma unroll
    for (int r = 0; r < walk.kRows; ++r) {
        const int64_t row = walk.row(r), at = walk.element(p.rows, row, octet);
        if (row >= p.rows.capacity) return;
        Octet z{};
        if (row < count) {
            z = load_octet(static_cast<const T*>(p.u) + at);
#pragma unroll
            for (int e = 0; e < kOctet; ++e) z[e] = gelu<T>(z[e] + bias[e]);
            drop(z, p.dropout, p.rows, row, octet);
        }
        store_octet(static_cast<T*>(p.out) + at, z);
    }
}

template <class T>
__global__ void __launch_bounds__(BackwardWalk::kThreads)
    backward(const __grid_constant__ BiasGeluBackwardParams p, const __grid_constant__ BackwardWalk walk) {
    const int64_t count = p.rows.count[0];
    const int octet = walk.octet(0);
    const Octet bias = load_vector(p.bias, walk.member(), octet, walk.has(octet));
    Octet sums[1][1] = {};
#pragma unroll 2
    for (int r = 0; r < walk.kRows; ++r) {
        const int64_t row = walk.row(r), at = walk.element(p.rows, row, octet);
        if (row >= p.rows.capacity || !walk.has(octet)) continue;
        Octet grad{};
        if (row < count) {
            grad = load_octet(static_cast<const T*>(p.grad_out) + at);
            const Octet u = load_octet(static_cast<const T*>(p.u) + at);
            drop(grad, p.dropout, p.rows, row, octet);
#pragma unroll
            for (int e = 0; e < kOctet; ++e) {
                grad[e] *= gelu_slope(u[e] + bias[e]);
                sums[0][0][e] += grad[e];
            }
        }
        store_octet(static_cast<T*>(p.grad_u) + at, grad);
    }
    sum_columns<1>(sums, walk, p.rows, p.workspace);
}

}  // namespace

int64_t bias_gelu_workspace(int64_t num_members, int64_t capacity, int64_t num_features) {
    return num_members * BackwardWalk(num_features).chunks(capacity) * num_features;
}

void bias_gelu(const BiasGeluParams& p, void* stream) {
    const ForwardWalk walk(p.rows.num_features);
    const auto kernel = p.dtype == DType::f32 ? forward<float> : p.dtype == DType::bf16 ? forward<bf16> : forward<f16>;
    launch(walk.grid(p.rows), dim3(walk.kThreads), 0, static_cast<cudaStream_t>(stream), kernel, p, walk);
}

void bias_gelu_backward(const BiasGeluBackwardParams& p, void* stream) {
    const BackwardWalk walk(p.rows.num_features);
    const auto s = static_cast<cudaStream_t>(stream);
    const auto kernel = p.dtype == DType::f32    ? backward<float>
                        : p.dtype == DType::bf16 ? backward<bf16>
                                                 : backward<f16>;
    launch(walk.grid(p.rows), dim3(walk.kThreads), 0, s, kernel, p, walk);
    launch_add_partial_sums(p.workspace, {p.grad_bias}, p.rows, walk.chunks(p.rows.capacity), s);
}

}  // namespace kdfast::gpu
