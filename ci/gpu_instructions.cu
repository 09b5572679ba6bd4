// Every device function of core/gpu.h that stands for an instruction, so that ci/cuda-compile has its PTX assembled
// where no kernel uses it.
#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

template <class T>
__device__ void tensor_cores(float (&sums)[4], const T* global, Shared<T> shared, float x) {
    cp_async<16>(shared, global);
    cp_async<8>(shared + 8, global + 8, 4);
    cp_async<4>(shared + 12, global + 12);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    uint32_t one[1], two[2], four[4], transposed_one[1], transposed_two[2], transposed[4];
    ldmatrix(one, shared);
    ldmatrix(two, shared);
    ldmatrix(four, shared);
    ldmatrix<1, true>(transposed_one, shared);
    ldmatrix<2, true>(transposed_two, shared);
    ldmatrix<4, true>(transposed, shared);
    mma_16x8x16<T>(sums, four, two[0], two[1]);
    mma_16x8x16<T>(sums, transposed, one[0], movmatrix_transpose(transposed_one[0]));
    mma_16x8x8_tf32(sums, transposed, to_tf32(x), transposed_two[0]);
    sums[0] += unpack<T>(pack<T>(x, 1.0f)).y + to_float(from_float<T>(x));
}

}  // namespace

__global__ void every_instruction(const bf16* b, const f16* h, const float* x, float4* y) {
    float sums[4] = {};
    tensor_cores(sums, b, dynamic_shared<bf16>(0, 64), load<float>(x));
    tensor_cores(sums, h, dynamic_shared<f16>(128, 64), load_readonly<float>(x + 1));
    sums[1] += exp2_approx(load_streaming<float>(x + 2)) + log2_approx(load_latest<float>(x + 3));
    sums[2] = reciprocal_approx(warp_sum(sums[2])) + warp_max(sums[3]);
    store(y, make_float4(sums[0], sums[1], sums[2], sums[3]));
    store_streaming(y + 1, load<float4>(x));
}

}  // namespace kdfast::gpu
