// The compiler's side of core/gpu.h (nvcc): thin wrappers of PTX, and pointers for what the emulator watches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#define KDFAST_AT(site)

#define KDFAST_SHARED(T, name, count) __shared__ __align__(16) T name[count]

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define KDFAST_SM80 1
#else
#define KDFAST_SM80 0
#endif

namespace kdfast::gpu {

struct Site {
    static __host__ __device__ constexpr Site current() { return {}; }
};
template <class T>
using Shared = T*;

template <class T>
__device__ __forceinline__ Shared<T> dynamic_shared(size_t byte_offset, size_t) {
    extern __shared__ __align__(16) unsigned char kdfast_dynamic_shared[];
    return reinterpret_cast<T*>(kdfast_dynamic_shared + byte_offset);
}

namespace detail {
template <size_t kBytes>
struct Word;
template <>
struct Word<1> {
    using type = unsigned char;
};
template <>
struct Word<2> {
    using type = unsigned short;
};
template <>
struct Word<4> {
    using type = unsigned;
};
template <>
struct Word<8> {
    using type = uint2;
};
template <>
struct Word<16> {
    using type = uint4;
};
template <class V, class W>
__device__ __forceinline__ V as(W word) {
    V value;
    memcpy(&value, &word, sizeof(V));
    return value;
}
}  // namespace detail

template <class V, class T>
__device__ __forceinline__ V load(const T* p) {
    return detail::as<V>(*reinterpret_cast<const typename detail::Word<sizeof(V)>::type*>(p));
}
template <class V, class T>
__device__ __forceinline__ V load_readonly(const T* p) {
    return detail::as<V>(__ldg(reinterpret_cast<const typename detail::Word<sizeof(V)>::type*>(p)));
}
template <class V, class T>
__device__ __forceinline__ V load_streaming(const T* p) {
    return detail::as<V>(__ldcs(reinterpret_cast<const typename detail::Word<sizeof(V)>::type*>(p)));
}
template <class V, class T>
__device__ __forceinline__ V load_latest(const T* p) {
    return detail::as<V>(__ldcg(reinterpret_cast<const typename detail::Word<sizeof(V)>::type*>(p)));
}
template <class V, class T>
__device__ __forceinline__ void store(T* p, const V& value) {
    using W = typename detail::Word<sizeof(V)>::type;
    *reinterpret_cast<W*>(p) = detail::as<W>(value);
}
template <class V, class T>
__device__ __forceinline__ void store_streaming(T* p, const V& value) {
    using W = typename detail::Word<sizeof(V)>::type;
    __stcs(reinterpret_cast<W*>(p), detail::as<W>(value));
}

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
    return __float2half_rn(x);
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
    return detail::as<uint32_t>(__floats2bfloat162_rn(low, high));
}
template <>
__device__ __forceinline__ uint32_t pack<f16>(float low, float high) {
    return detail::as<uint32_t>(__floats2half2_rn(low, high));
}
template <class T>
__device__ __forceinline__ uint32_t add_pairs(uint32_t a, uint32_t b) {
    using Pair = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2>;
    return detail::as<uint32_t>(__hadd2(detail::as<Pair>(a), detail::as<Pair>(b)));
}
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack<bf16>(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 unpack<f16>(uint32_t pair) {
    return __half22float2(detail::as<__half2>(pair));
}

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Products of tensor cores. Where the code lacks one (code_capability() < 80), host code must choose another kernel.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
#if KDFAST_SM80
#define KDFAST_MMA(instruction)                                                                 \
    asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else
#define KDFAST_MMA(instruction) __trap()
#endif
template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    KDFAST_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
__device__ __forceinline__ void mma_16x8x16<f16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    KDFAST_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");
}
__device__ __forceinline__ void mma_16x8x8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    KDFAST_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef KDFAST_MMA
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if KDFAST_SM80
    uint32_t y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#else
    return __float_as_uint(x);
#endif
}

namespace detail {
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
}  // namespace detail

template <int kMatrices, bool kTranspose = false, class T>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[kMatrices], const T* row) {
    static_assert(sizeof(T) == 2 && (kMatrices == 1 || kMatrices == 2 || kMatrices == 4));
    const uint32_t address = detail::shared_address(row);
    if constexpr (kMatrices == 1 && !kTranspose)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
    else if constexpr (kMatrices == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(r[0])
                     : "r"(address)
                     : "memory");
    else if constexpr (kMatrices == 2 && !kTranspose)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address)
                     : "memory");
    else if constexpr (kMatrices == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address)
                     : "memory");
    else if constexpr (!kTranspose)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
}
__device__ __forceinline__ uint32_t movmatrix_transpose(uint32_t pair) {
    uint32_t result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
}

template <int kBytes, class T>
__device__ __forceinline__ void cp_async(T* destination, const T* source, int valid = kBytes) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if KDFAST_SM80
    const uint32_t address = detail::shared_address(destination);
    if constexpr (kBytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(valid)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(source), "n"(kBytes),
                     "r"(valid)
                     : "memory");
#else
    for (int i = 0; i < kBytes / static_cast<int>(sizeof(T)); ++i)
        destination[i] = i * static_cast<int>(sizeof(T)) < valid ? source[i] : from_float<T>(0.0f);
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#if KDFAST_SM80
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if KDFAST_SM80
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Throws std::runtime_error, with CUDA's own words.
inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

int code_capability();  // gpu_code.cu

template <class... Parameters, class... Arguments>
inline void launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t stream,
                   void (*kernel)(Parameters...), Arguments&&... arguments) {
    constexpr size_t kWithoutAsking = 48 << 10;
    if (dynamic_shared_bytes > kWithoutAsking)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(dynamic_shared_bytes)),
              "shared memory of a kernel");
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = dynamic_shared_bytes;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launch of a kernel");
}

}  // namespace kdfast::gpu
