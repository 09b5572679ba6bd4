// A group of lanes has a row in registers: sum, mean and variance are shuffles, and each tensor is read or written
// once. With x̂ = (x' − mean) / σ, g the gradient by n, h that by x', and ⟨·⟩ the mean over a row's features, backward
// is
//
//     dx = h + (g γ − ⟨g γ⟩ − x̂ ⟨g γ x̂⟩) / σ,    dy = D(dx),    dγ = Σ g x̂,  dβ = Σ g,  dbias = Σ dy  over the rows,
//
// in one pass, the sums over rows by core/octets.h.
#include <cmath>

#include "core/gpu.h"
#include "core/octets.h"
#include "residual_norm/residual_norm_gpu.h"

namespace kdfast::gpu {
namespace {

constexpr float kEps = 1e-5f;
constexpr int kGradients = 3;  // γ, β, bias

template <int kOctets>
using ForwardWalk = Walk<256, 4, kOctets>;
template <int kOctets>
using BackwardWalk = Walk<128, 16, kOctets>;

template <class T, int kOctets>
__global__ void __launch_bounds__(ForwardWalk<kOctets>::kThreads)
    forward(const __grid_constant__ ResidualNormParams p, const __grid_constant__ ForwardWalk<kOctets> walk) {
    const int64_t count = p.rows.count[0], member = walk.member();
    const bool normalises = p.gamma.values != nullptr;
    const float num_features = static_cast<float>(p.rows.num_features);
    Octet bias[kOctets] = {}, gamma[kOctets] = {}, beta[kOctets] = {};
#pragma unroll
    for (int i = 0; i < kOctets; ++i) {
        const int octet = walk.octet(i);
        if (p.y != nullptr) bias[i] = load_vector(p.bias, member, octet, walk.has(octet));
        if (!normalises) continue;
        gamma[i] = load_vector(p.gamma, member, octet, walk.has(octet));
        beta[i] = load_vector(p.beta, member, octet, walk.has(octet));
    }
#pragma unroll 1
    for (int r = 0; r < walk.kRows; ++r) {
        const int64_t row = walk.row(r);
        Octet x[kOctets] = {};
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kOctets; ++i) {
            const int octet = walk.octet(i);
            if (row >= p.rows.capacity || !walk.has(octet)) continue;
            const int64_t at = walk.element(p.rows, row, octet);
            if (row < count) {
                x[i] = load_octet(p.x + at);
                if (p.y != nullptr) {
                    Octet y = load_octet(static_cast<const T*>(p.y) + at);
#pragma unroll
                    for (int e = 0; e < kOctet; ++e) y[e] += bias[i][e];
                    drop(y, p.dropout, p.rows, row, octet);
#pragma unroll
                    for (int e = 0; e < kOctet; ++e) x[i][e] += y[e];
                }
            }
            store_octet(p.sum + at, x[i]);
#pragma unroll
            for (int e = 0; e < kOctet; ++e) sum += x[i][e];
        }
        if (!normalises) continue;
        const float mean = walk.group_sum(sum) / num_features;
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kOctets; ++i)
#pragma unroll
            for (int e = 0; e < kOctet; ++e) {
                x[i][e] = walk.has(walk.octet(i)) ? x[i][e] - mean : 0.0f;
                squares = fmaf(x[i][e], x[i][e], squares);
            }
        const float inverse = rsqrtf(walk.group_sum(squares) / num_features + kEps);
        if (row >= p.rows.capacity) continue;
        if (row < count && walk.octet(0) == 0) {
            const int64_t at = member * p.rows.capacity + row;
            p.moments[at] = mean;
            p.moments[p.rows.num_members * p.rows.capacity + at] = inverse;
        }
#pragma unroll
        for (int i = 0; i < kOctets; ++i) {
            const int octet = walk.octet(i);
            if (!walk.has(octet)) continue;
            Octet n{};
            if (row < count)
#pragma unroll
                for (int e = 0; e < kOctet; ++e) n[e] = fmaf(x[i][e] * inverse, gamma[i][e], beta[i][e]);
            store_octet(static_cast<T*>(p.norm) + walk.element(p.rows, row, octet), n);
        }
    }
}

template <class T, int kOctets>
__global__ void __launch_bounds__(BackwardWalk<kOctets>::kThreads, 6 / kOctets)
    backward(const __grid_constant__ ResidualNormBackwardParams p, const __grid_constant__ BackwardWalk<kOctets> walk) {
    const int64_t count = p.rows.count[0], member = walk.member();
    const float num_features = static_cast<float>(p.rows.num_features);
    Octet gamma[kOctets] = {}, sums[kGradients][kOctets] = {};
#pragma unroll
    for (int i = 0; i < kOctets; ++i)
        if (p.grad_norm != nullptr) gamma[i] = load_vector(p.gamma, member, walk.octet(i), walk.has(walk.octet(i)));
#pragma unroll 1
    for (int r = 0; r < walk.kRows; ++r) {
        const int64_t row = walk.row(r);
        const bool valid = row < count;
        Octet grad[kOctets] = {}, normal[kOctets] = {};  // g γ, and x̂
        float mean_grad = 0.0f, mean_product = 0.0f, inverse = 0.0f;
        if (p.grad_norm != nullptr) {
            const int64_t at = member * p.rows.capacity + row;
            const float mean = valid ? p.moments[at] : 0.0f;
            inverse = valid ? p.moments[p.rows.num_members * p.rows.capacity + at] : 0.0f;
#pragma unroll
            for (int i = 0; i < kOctets; ++i) {
                const int octet = walk.octet(i);
                if (!valid || !walk.has(octet)) continue;
                const int64_t element = walk.element(p.rows, row, octet);
                grad[i] = load_octet(static_cast<const T*>(p.grad_norm) + element);
                normal[i] = load_octet(p.sum + element);
#pragma unroll
                for (int e = 0; e < kOctet; ++e) {
                    normal[i][e] = (normal[i][e] - mean) * inverse;
                    sums[0][i][e] = fmaf(grad[i][e], normal[i][e], sums[0][i][e]);
                    sums[1][i][e] += grad[i][e];
                    grad[i][e] *= gamma[i][e];
                    mean_grad += grad[i][e];
                    mean_product = fmaf(grad[i][e], normal[i][e], mean_product);
                }
            }
            mean_grad = walk.group_sum(mean_grad) / num_features;
            mean_product = walk.group_sum(mean_product) / num_features;
        }
        if (row >= p.rows.capacity) continue;
#pragma unroll
        for (int i = 0; i < kOctets; ++i) {
            const int octet = walk.octet(i);
            if (!walk.has(octet)) continue;
            const int64_t element = walk.element(p.rows, row, octet);
            Octet dx{};
            if (valid && p.grad_sum != nullptr) dx = load_octet(p.grad_sum + element);
#pragma unroll
            for (int e = 0; e < kOctet; ++e)
                dx[e] = fmaf(grad[i][e] - mean_grad - normal[i][e] * mean_product, inverse, dx[e]);
            store_octet(p.grad_x + element, dx);
            if (p.grad_y == nullptr) continue;
            if (valid) drop(dx, p.dropout, p.rows, row, octet);
            store_octet(static_cast<T*>(p.grad_y) + element, dx);
#pragma unroll
            for (int e = 0; e < kOctet; ++e) sums[2][i][e] += dx[e];
        }
    }
    sum_columns<kGradients>(sums, walk, p.rows, p.workspace);
}

// f(T{}, kOctets as a type) for the kernels of a type and a number of features.
template <class T, class F>
void with_octets(int64_t num_features, F&& f) {
    if (num_features <= kWarp * kOctet)
        f(T{}, std::integral_constant<int, 1>{});
    else if (num_features <= 2 * kWarp * kOctet)
        f(T{}, std::integral_constant<int, 2>{});
    else
        f(T{}, std::integral_constant<int, 4>{});
}
template <class F>
void with_kernel(DType dtype, int64_t num_features, F&& f) {
    switch (dtype) {
        case DType::f32:
            return with_octets<float>(num_features, f);
        case DType::bf16:
            return with_octets<bf16>(num_features, f);
        case DType::f16:
            return with_octets<f16>(num_features, f);
    }
}

}  // namespace

int64_t residual_norm_workspace(int64_t num_members, int64_t capacity, int64_t num_features) {
    int64_t chunks = 0;
    with_octets<float>(num_features, [&](auto, auto octets) {
        chunks = BackwardWalk<decltype(octets)::value>(num_features).chunks(capacity);
    });
    return num_members * chunks * kGradients * num_features;
}

void residual_norm(const ResidualNormParams& p, void* stream) {
    with_kernel(p.dtype, p.rows.num_features, [&](auto zero, auto octets) {
        constexpr int kOctets = decltype(octets)::value;
        const ForwardWalk<kOctets> walk(p.rows.num_features);
        launch(walk.grid(p.rows), dim3(walk.kThreads), 0, static_cast<cudaStream_t>(stream),
               forward<decltype(zero), kOctets>, p, walk);
    });
}

void residual_norm_backward(const ResidualNormBackwardParams& p, void* stream) {
    const auto s = static_cast<cudaStream_t>(stream);
    with_kernel(p.dtype, p.rows.num_features, [&](auto zero, auto octets) {
        constexpr int kOctets = decltype(octets)::value;
        const BackwardWalk<kOctets> walk(p.rows.num_features);
        launch(walk.grid(p.rows), dim3(walk.kThreads), 0, s, backward<decltype(zero), kOctets>, p, walk);
        const MemberGradients totals[kGradients] = {p.grad_gamma, p.grad_beta, p.grad_bias};
        launch_add_partial_sums(p.workspace, totals, p.rows, walk.chunks(p.rows.capacity), s);
    });
}

}  // namespace kdfast::gpu
