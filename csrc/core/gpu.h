// What a kernel source (csrc/<op>/<op>.cu) includes. nvcc compiles it for GPUs; any C++20 compiler compiles the same
// source over csrc/emulator/, which runs it on a CPU and finds what a GPU would not forgive
// (docs/explanation/emulator.md).
//
// Kernels are written in CUDA's own words (__global__, threadIdx, __syncthreads, __shfl_xor_sync, __ballot_sync,
// atomicAdd, float4 …), but for these, in kdfast::gpu on both sides:
//
//   KDFAST_SHARED(float, name, count);          a static shared array, one-dimensional
//   Shared<float> s = dynamic_shared<float>(byte_offset, count);   part of the launch's shared memory
//                                               s[i], s + i; instead of a pointer. `float x = s[i]`, never `auto`
//   load<float4>(p), store(p, value)            1 to 16 bytes of global or shared memory, aligned to their size
//   load_readonly, load_streaming, store_streaming   the same of global memory: nobody writes it; it is used once
//   load_latest                                 of global memory that other blocks wrote (behind their __threadfence)
//   Vec<T, N>                                   N neighbours, for load and store
//   bf16, f16, to_float(x), from_float<T>(x), pack<T>(low, high), unpack<T>(pair), add_pairs<T>(pair, pair), rounded
//   exp2_approx, log2_approx, reciprocal_approx one instruction each, two units in the last place
//   mma_16x8x16<bf16 or f16>, mma_16x8x8_tf32, to_tf32, ldmatrix<matrices, transpose>, movmatrix_transpose
//   cp_async<bytes>(shared, global, valid bytes), cp_async_commit(), cp_async_wait<pending>()
//   warp_sum, warp_max, block_sum, lane_index, warp_index
//   launch(grid, block, dynamic_shared_bytes, stream, kernel<…>, arguments …)   on the host; never <<<>>>
//   code_capability()                           on the host: the compute capability, 75, 80, 90 …, that the kernels for
//                                               the current device were compiled for; 0: this build has none for it
//
// Not to be used: raw pointers into shared memory, arrays of it with more than one dimension, `return` before a barrier
// that others reach, blocks that are not whole warps.
#pragma once

#if defined(__CUDACC__)
#include "core/gpu_cuda.h"
#else
#include "emulator/gpu_emulated.h"
#endif

namespace kdfast::gpu {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarp = 32;

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
    T v[N];
    __device__ __forceinline__ T& operator[](int i) { return v[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x / kWarp); }

// Over each kLanes neighbouring lanes of a warp, all of whose lanes call; every lane gets the result.
template <int kLanes = kWarp, class T>
__device__ __forceinline__ T warp_sum(T x, [[maybe_unused]] Site site = Site::current()) {
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2)
        x += __shfl_xor_sync(kFullMask, x, lanes, kWarp KDFAST_AT(site));
    return x;
}
template <int kLanes = kWarp>
__device__ __forceinline__ float warp_max(float x, [[maybe_unused]] Site site = Site::current()) {
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2)
        x = fmaxf(x, __shfl_xor_sync(kFullMask, x, lanes, kWarp KDFAST_AT(site)));
    return x;
}

// Over a block of kThreads, in a fixed order; thread 0 gets it. A barrier must lie between two calls.
template <int kThreads>
__device__ __forceinline__ double block_sum(double x) {
    KDFAST_SHARED(double, parts, kThreads / kWarp);
    x = warp_sum(x);
    if (lane_index() == 0) parts[warp_index()] = x;
    __syncthreads();
    double total = 0.0;
    if (threadIdx.x == 0)
        for (int w = 0; w < kThreads / kWarp; ++w) total += parts[w];
    return total;
}

}  // namespace kdfast::gpu
