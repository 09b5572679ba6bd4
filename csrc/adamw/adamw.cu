// Two launches, both with a block for each slice of a member's parameters:
//
//   sum_squares   the squares of the gradient's slice, added up
//   update        adds up the member's sums again, each block in the same order, so that all get the same norm without
//                 waiting for one another; then moments and parameters, every array read and written once, and the
//                 parameters in bf16 for the products of the next step
//
// Neighbouring threads take neighbouring elements, one by one: a member's parameters begin anywhere, and whole vectors
// would gain nothing where memory limits.
#include <cmath>
#include <stdexcept>

#include "adamw/adamw_gpu.h"
#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kSlice = 8192;  // parameters of a block
constexpr int kAhead = 4;     // elements of each array that a thread has under way

struct Arguments {
    AdamWParams p;
    int64_t num_slices;
    double log_beta1, log_beta2;
    double* squares;  // [K, num_slices]
};

// The part of a member that a block has.
struct Place {
    int64_t member, slice, first;  // first: element of [K, P]
    int count;
};
__device__ __forceinline__ Place place(const Arguments& a) {
    const int64_t member = blockIdx.x / a.num_slices, slice = blockIdx.x % a.num_slices;
    const int64_t begin = slice * kSlice, left = a.p.num_parameters - begin;
    return {member, slice, member * a.p.num_parameters + begin, static_cast<int>(left < kSlice ? left : kSlice)};
}

__global__ void __launch_bounds__(kThreads) sum_squares(const __grid_constant__ Arguments a) {
    const Place at = place(a);
    const float* const gradient = a.p.gradient + at.first;
    float sums[kAhead] = {};  // of at most kSlice / (kThreads · kAhead) squares
    for (int i = static_cast<int>(threadIdx.x); i < at.count; i += kAhead * kThreads)
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
            const int e = i + j * kThreads;
            const float g = e < at.count ? gradient[e] : 0.0f;
            sums[j] = fmaf(g, g, sums[j]);
        }
    double sum = 0.0;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) sum += static_cast<double>(sums[j]);
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) a.squares[at.member * a.num_slices + at.slice] = sum;
}

struct Coefficients {
    float gradient_scale, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, inverse_root_correction2, eps;
    int is_finite;
};

__device__ __forceinline__ Coefficients coefficients_of(const AdamWParams& p, const Arguments& a, int64_t member,
                                                        float norm) {
    const double steps = static_cast<double>(p.step[member]), rate = p.learning_rate[member];
    const double clip = p.clip_norm / (norm + 1e-6);
    Coefficients c;
    c.gradient_scale = static_cast<float>(clip < 1.0 ? clip : 1.0);
    c.one_minus_beta1 = static_cast<float>(1.0 - p.beta1);
    c.beta2 = static_cast<float>(p.beta2);
    c.one_minus_beta2 = static_cast<float>(1.0 - p.beta2);
    c.decay = static_cast<float>(1.0 - rate * p.weight_decay[member]);
    c.step_size = static_cast<float>(rate / -expm1(steps * a.log_beta1));  // η / (1 − β₁ⁿ)
    c.inverse_root_correction2 = static_cast<float>(1.0 / sqrt(-expm1(steps * a.log_beta2)));
    c.eps = static_cast<float>(p.eps);
    c.is_finite = norm < INFINITY;  // false for NaN
    return c;
}

// 4 blocks a multiprocessor: fewer have too few bytes on their way from memory.
__global__ void __launch_bounds__(kThreads, 4) update(const __grid_constant__ Arguments a) {
    KDFAST_SHARED(Coefficients, shared, 1);
    const AdamWParams& p = a.p;
    const Place at = place(a);
    const int thread = static_cast<int>(threadIdx.x);
    double total = 0.0;
    for (int64_t i = thread; i < a.num_slices; i += kThreads) total += a.squares[at.member * a.num_slices + i];
    total = block_sum<kThreads>(total);
    if (thread == 0) {
        const float norm = static_cast<float>(sqrt(total));
        if (at.slice == 0) p.norm[at.member] = norm;
        shared[0] = coefficients_of(p, a, at.member, norm);
    }
    __syncthreads();
    const Coefficients c = shared[0];
    if (!c.is_finite) return;
    const float* const gradient = p.gradient + at.first;
    float *const parameters = p.parameters + at.first, *const moment1 = p.moment1 + at.first;
    float* const moment2 = p.moment2 + at.first;
    bf16* const rounded = p.rounded == nullptr ? nullptr : static_cast<bf16*>(p.rounded) + at.first;
    for (int i = thread; i < at.count; i += kAhead * kThreads) {
        float g[kAhead], m[kAhead], v[kAhead], x[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
            const int e = i + j * kThreads;
            if (e < at.count) {
                g[j] = load_streaming<float>(gradient + e);
                m[j] = load_streaming<float>(moment1 + e);
                v[j] = load_streaming<float>(moment2 + e);
                x[j] = load_streaming<float>(parameters + e);
            }
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
            const int e = i + j * kThreads;
            if (e < at.count) {
                const float clipped = g[j] * c.gradient_scale;
                m[j] += c.one_minus_beta1 * (clipped - m[j]);
                v[j] = c.beta2 * v[j] + c.one_minus_beta2 * (clipped * clipped);
                x[j] = x[j] * c.decay - c.step_size * (m[j] / (sqrtf(v[j]) * c.inverse_root_correction2 + c.eps));
                store_streaming(moment1 + e, m[j]);
                store_streaming(moment2 + e, v[j]);
                store_streaming(parameters + e, x[j]);
                if (rounded != nullptr) rounded[e] = from_float<bf16>(x[j]);
            }
        }
    }
}

int64_t slices(int64_t num_parameters) { return (num_parameters + kSlice - 1) / kSlice; }

}  // namespace

int64_t adamw_workspace(int64_t num_members, int64_t num_parameters) {
    return num_members * slices(num_parameters) * static_cast<int64_t>(sizeof(double));
}

void adamw(const AdamWParams& p, void* stream) {
    const Arguments a{p, slices(p.num_parameters), std::log(p.beta1), std::log(p.beta2),
                      static_cast<double*>(p.workspace)};
    const int64_t blocks = p.num_members * a.num_slices;
    if (blocks > 0x7fffffff) throw std::invalid_argument("more members and parameters than a launch takes");
    const auto s = static_cast<cudaStream_t>(stream);
    launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, s, sum_squares, a);
    launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, s, update, a);
}

}  // namespace kdfast::gpu
