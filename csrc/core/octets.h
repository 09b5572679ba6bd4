// How kernels walk packed rows (core/packed_rows.h): by octets, eight neighbouring features, which are one or two
// accesses of 16 bytes and one call of Philox.
#pragma once

#include "core/gpu.h"
#include "core/packed_rows.h"
#include "core/philox.h"

namespace kdfast::gpu {

constexpr int kOctet = 8;

struct Octet {
    float v[kOctet];
    __device__ __forceinline__ float& operator[](int i) { return v[i]; }
    __device__ __forceinline__ float operator[](int i) const { return v[i]; }
};

template <class T>
__device__ __forceinline__ Octet load_octet(const T* p) {
    Octet x;
    if constexpr (sizeof(T) == 4) {
        const float4 low = load<float4>(p), high = load<float4>(p + 4);
        x = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    } else {
        const uint4 words = load<uint4>(p);
        const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 pair = unpack<T>(pairs[i]);
            x[2 * i] = pair.x;
            x[2 * i + 1] = pair.y;
        }
    }
    return x;
}

template <class T>
__device__ __forceinline__ void store_octet(T* p, const Octet& x) {
    if constexpr (sizeof(T) == 4) {
        store(p, float4{x[0], x[1], x[2], x[3]});
        store(p + 4, float4{x[4], x[5], x[6], x[7]});
    } else {
        store(p, uint4{pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])});
    }
}

// Element by element: a member's vector need not be aligned to more. Zeros for an octet that there is not.
__device__ __forceinline__ Octet load_vector(const MemberVectors& vectors, int64_t member, int octet, bool exists) {
    Octet x{};
    if (exists) {
        const float* const p = vectors.values + member * vectors.stride + octet * kOctet;
#pragma unroll
        for (int e = 0; e < kOctet; ++e) x[e] = p[e];
    }
    return x;
}

// Dropout of a row's octet.
__device__ __forceinline__ void drop(Octet& x, const Dropout& dropout, const PackedRows& rows, int64_t row, int octet) {
    if (dropout.seed == nullptr) return;
    if (dropout.mask != nullptr) {
        const unsigned kept = load_readonly<uint8_t>(dropout.mask + row * (rows.num_features / kOctet) + octet);
#pragma unroll
        for (int e = 0; e < kOctet; ++e) x[e] = kept >> e & 1 ? x[e] * dropout.scale : 0.0f;
        return;
    }
    const Philox4 bits = philox4x32(static_cast<uint64_t>(dropout.seed[0]), static_cast<uint32_t>(rows.jet[row]), 0,
                                    static_cast<uint32_t>(rows.position[row]), static_cast<uint32_t>(octet));
#pragma unroll
    for (int e = 0; e < kOctet; ++e) x[e] = dropout_keep(bits, e, dropout.threshold) ? x[e] * dropout.scale : 0.0f;
}

// What each thread of a kernel has of [K, M, D]. The grid is (chunks of rows, chunks of columns, members). In a block,
// each group of `lanes` neighbouring lanes, a power of 2, takes a row at a time, kRows in all; each lane kOctets octets
// of it. Where a row has more octets than that, chunks of columns share it.
template <int kThreads_, int kRows_, int kOctets_ = 1>
struct Walk {
    static constexpr int kThreads = kThreads_, kRows = kRows_, kOctets = kOctets_;
    static constexpr int kMaxColumns = kWarp * kOctets * kOctet;  // of a block
    int lanes, num_octets;                                        // octets: of a row

    explicit Walk(int64_t num_features) : lanes(1), num_octets(static_cast<int>(num_features / kOctet)) {
        while (lanes < kWarp && lanes * kOctets < num_octets) lanes *= 2;
    }
    int64_t rows_of_block() const { return int64_t{kThreads / lanes * kRows}; }
    int64_t chunks(int64_t capacity) const { return (capacity + rows_of_block() - 1) / rows_of_block(); }
    dim3 grid(const PackedRows& rows) const {
        const int columns = lanes * kOctets;
        return dim3(static_cast<unsigned>(chunks(rows.capacity)),
                    static_cast<unsigned>((num_octets + columns - 1) / columns),
                    static_cast<unsigned>(rows.num_members));
    }

    __device__ __forceinline__ int64_t member() const { return blockIdx.z; }
    __device__ __forceinline__ int64_t row(int i) const {
        const int groups = kThreads / lanes, group = static_cast<int>(threadIdx.x) / lanes;
        return blockIdx.x * static_cast<int64_t>(groups * kRows) + i * groups + group;
    }
    __device__ __forceinline__ int octet(int i) const {
        const int lane = static_cast<int>(threadIdx.x) % lanes;
        return (static_cast<int>(blockIdx.y) * kOctets + i) * lanes + lane;
    }
    __device__ __forceinline__ bool has(int octet) const { return octet < num_octets; }
    // Of a row's octet in [K, M, D].
    __device__ __forceinline__ int64_t element(const PackedRows& rows, int64_t row, int octet) const {
        return (member() * rows.capacity + row) * rows.num_features + octet * kOctet;
    }
    // Over the lanes of a group; all lanes of the warp call.
    __device__ __forceinline__ float group_sum(float x) const {
        for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kFullMask, x, distance);
        return x;
    }
};

// ---- sums over rows, in two steps, each in a fixed order ------------------------------------------------------------

// First step: a block's sums of its threads' octets, to partial [K, chunks of rows, kSums, D].
template <int kSums, class Walk>
__device__ __forceinline__ void sum_columns(Octet (&sums)[kSums][Walk::kOctets], const Walk& walk,
                                            const PackedRows& rows, float* partial) {
    constexpr int kWarps = Walk::kThreads / kWarp, kColumns = Walk::kMaxColumns;
    KDFAST_SHARED(float, parts, kWarps* kColumns);
    const int columns = walk.lanes * Walk::kOctets * kOctet, first = static_cast<int>(blockIdx.y) * columns;
    const int num_features = static_cast<int>(rows.num_features);
    for (int distance = walk.lanes; distance < kWarp; distance *= 2)
#pragma unroll
        for (int s = 0; s < kSums; ++s)
#pragma unroll
            for (int i = 0; i < Walk::kOctets; ++i)
#pragma unroll
                for (int e = 0; e < kOctet; ++e) sums[s][i][e] += __shfl_xor_sync(kFullMask, sums[s][i][e], distance);
    partial += (walk.member() * gridDim.x + blockIdx.x) * kSums * rows.num_features;
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
        if (s > 0) __syncthreads();
        if (lane_index() < walk.lanes)
#pragma unroll
            for (int i = 0; i < Walk::kOctets; ++i) {
                const int at = warp_index() * kColumns + (i * walk.lanes + lane_index()) * kOctet;
                const Octet& x = sums[s][i];
                store(parts + at, float4{x[0], x[1], x[2], x[3]});
                store(parts + at + 4, float4{x[4], x[5], x[6], x[7]});
            }
        __syncthreads();
        for (int c = static_cast<int>(threadIdx.x); c < columns && first + c < num_features; c += Walk::kThreads) {
            float total = 0.0f;
            for (int w = 0; w < kWarps; ++w) total += parts[w * kColumns + c];
            partial[s * num_features + first + c] = total;
        }
    }
}

constexpr int kSumWarps = 8;  // of a block of add_partial_sums, which has 32 columns

constexpr int kMostSums = 3;
struct Totals {
    MemberGradients of[kMostSums];
};

// Second step: partial [K, chunks, sums, D] to each sum's total.
static __global__ void __launch_bounds__(kSumWarps* kWarp)
    add_partial_sums(const float* __restrict__ partial, const __grid_constant__ Totals totals, int64_t num_chunks,
                     int num_sums, int num_features) {
    KDFAST_SHARED(float, parts, kSumWarps* kWarp);
    const int num_columns = num_sums * num_features, column = static_cast<int>(blockIdx.x) * kWarp + lane_index();
    const int64_t member = blockIdx.y;
    float sum = 0.0f;
    if (column < num_columns)
#pragma unroll 4
        for (int64_t chunk = warp_index(); chunk < num_chunks; chunk += kSumWarps)
            sum += partial[(member * num_chunks + chunk) * num_columns + column];
    parts[warp_index() * kWarp + lane_index()] = sum;
    __syncthreads();
    if (warp_index() == 0 && column < num_columns) {
        sum = 0.0f;
        for (int w = 0; w < kSumWarps; ++w) sum += parts[w * kWarp + lane_index()];
        const MemberGradients& total = totals.of[column / num_features];
        if (total.values != nullptr) total.values[member * total.stride + column % num_features] = sum;
    }
}

template <int kSums>
void launch_add_partial_sums(const float* partial, const MemberGradients (&totals)[kSums], const PackedRows& rows,
                             int64_t num_chunks, cudaStream_t stream) {
    static_assert(kSums <= kMostSums);
    Totals all{};
    for (int s = 0; s < kSums; ++s) all.of[s] = totals[s];
    const int64_t columns = kSums * rows.num_features;
    launch(dim3(static_cast<unsigned>((columns + kWarp - 1) / kWarp), static_cast<unsigned>(rows.num_members)),
           dim3(kSumWarps * kWarp), 0, stream, add_partial_sums, partial, all, num_chunks, kSums,
           static_cast<int>(rows.num_features));
}

}  // namespace kdfast::gpu
