// Two launches:
//
//   transfer    a warp for each jet of a member: its two numbers, its error, its weights' gradients
//   add_errors  a block for each member adds up what the blocks before left, in their order, and divides by Σw
//
// Σw is known at the end only; the gradients come without it.
#include <stdexcept>

#include "attention_transfer/attention_transfer_gpu.h"
#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kJetsPerWarp = 4;
constexpr int kJets = kWarps * kJetsPerWarp;  // of a block
constexpr int kAddThreads = 256;

struct Arguments {
    AttentionTransferParams p;
    int64_t num_chunks;  // of kJets jets
    double* errors;      // [K, num_chunks]
};

// One jet's w_b times its error, the same in all lanes.
__device__ __forceinline__ float jet_error(const AttentionTransferParams& p, const float* attention, float* grad,
                                           int64_t jet) {
    const int64_t begin = p.offsets[jet], end = p.offsets[jet + 1];
    float entropy = 0.0f, maximum = 0.0f;
    for (int64_t t = begin + lane_index(); t < end; t += kWarp) {
        const float w = attention[t];
        entropy -= w * logf(w > 0.0f ? w : 1.0f);
        maximum = fmaxf(maximum, w);
    }
    entropy = warp_sum(entropy) - p.teacher_entropy[jet];
    maximum = warp_max(maximum);
    const float difference = maximum - p.teacher_maximum[jet], weight = p.weights[jet];
    if (grad != nullptr) {
        float equal = 0.0f;  // those that are the maximum share its gradient, as do zeros with the 0 of an empty jet
        for (int64_t t = begin + lane_index(); t < end; t += kWarp) equal += attention[t] == maximum ? 1.0f : 0.0f;
        equal = warp_sum(equal) + (maximum == 0.0f ? 1.0f : 0.0f);
        for (int64_t t = begin + lane_index(); t < end; t += kWarp) {
            const float w = attention[t];
            const float of_entropy = w == 0.0f ? 0.0f : -entropy * (logf(w) + 1.0f);
            const float of_maximum = w == maximum ? difference / equal : 0.0f;
            grad[t] = 2.0f * weight * (of_entropy + of_maximum);
        }
    }
    return weight * (entropy * entropy + difference * difference);
}

__global__ void __launch_bounds__(kThreads) transfer(const __grid_constant__ Arguments a) {
    KDFAST_SHARED(double, parts, kWarps);
    const AttentionTransferParams& p = a.p;
    const int64_t member = blockIdx.x / a.num_chunks, chunk = blockIdx.x % a.num_chunks;
    const float* const attention = p.attention + member * p.capacity;
    float* const grad = p.grad == nullptr ? nullptr : p.grad + member * p.capacity;
    double error = 0.0;
    for (int i = 0; i < kJetsPerWarp; ++i) {
        const int64_t jet = chunk * kJets + i * kWarps + warp_index();
        if (jet < p.num_jets) error += static_cast<double>(jet_error(p, attention, grad, jet));
    }
    if (lane_index() == 0) parts[warp_index()] = error;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (int w = 0; w < kWarps; ++w) sum += parts[w];
        a.errors[member * a.num_chunks + chunk] = sum;
    }
    if (grad != nullptr)
        for (int64_t t = p.offsets[p.num_jets] + chunk * kThreads + threadIdx.x; t < p.capacity;
             t += a.num_chunks * kThreads)
            grad[t] = 0.0f;
}

__global__ void __launch_bounds__(kAddThreads) add_errors(const __grid_constant__ Arguments a) {
    const AttentionTransferParams& p = a.p;
    const int64_t member = blockIdx.x;
    double error = 0.0, weight = 0.0;
    for (int64_t i = threadIdx.x; i < a.num_chunks; i += kAddThreads) error += a.errors[member * a.num_chunks + i];
    for (int64_t i = threadIdx.x; i < p.num_jets; i += kAddThreads) weight += static_cast<double>(p.weights[i]);
    error = block_sum<kAddThreads>(error);
    __syncthreads();
    weight = block_sum<kAddThreads>(weight);
    if (threadIdx.x == 0) {
        p.loss[member] = static_cast<float>(error / weight);
        if (member == 0) p.total_weight[0] = static_cast<float>(weight);
    }
}

int64_t chunks(int64_t num_jets) { return (num_jets + kJets - 1) / kJets; }

}  // namespace

int64_t attention_transfer_workspace(int64_t num_members, int64_t num_jets) {
    return num_members * chunks(num_jets) * static_cast<int64_t>(sizeof(double));
}

void attention_transfer(const AttentionTransferParams& p, void* stream) {
    const Arguments a{p, chunks(p.num_jets), static_cast<double*>(p.workspace)};
    const int64_t blocks = p.num_members * a.num_chunks;
    if (blocks > 0x7fffffff) throw std::invalid_argument("more jets and members than a launch takes");
    const auto s = static_cast<cudaStream_t>(stream);
    launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, s, transfer, a);
    launch(dim3(static_cast<unsigned>(p.num_members)), dim3(kAddThreads), 0, s, add_errors, a);
}

}  // namespace kdfast::gpu
