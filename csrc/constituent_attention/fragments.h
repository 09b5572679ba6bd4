// How a warp of a GPU holds and multiplies tiles of 16 rows. Lane 4 g + c has group g and column c.
//
// A product of tensor cores sums over features (q · k) or over rows (P v). The order of a sum's terms is free, and so
// is the order of a result's columns, so each lane takes neighbouring features and loads them from global memory with
// few wide accesses; nothing passes through shared memory:
//
//   Row      lane (g, c): features c D/4 … c D/4 + D/4 − 1 of row g              operand of q · k
//   Columns  lane (g, c): features g D/8 … g D/8 + D/8 − 1 of rows 2c, 2c + 1, 2c + 8, 2c + 9    right operand of P v
//   Scores   lane (g, c): columns 2c, 2c + 1, 2c + 8, 2c + 9 of rows g, g + 8    q · k, and left operand of P v
//   Sums     lane (g, c): features c D/4 … c D/4 + D/4 − 1 of rows g, g + 8      P v
//
// D = 24 does so for its first 16 features and then for the other 8, so that accesses stay aligned.
#pragma once

#include <type_traits>

#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

constexpr int kTile = 16;  // rows

__device__ __forceinline__ int lane_group() { return lane_index() / 4; }
__device__ __forceinline__ int lane_column() { return lane_index() % 4; }

// [u][2 h + e]: row g + 8 h, column 8 u + 2 c + e.
using Scores = float[2][4];
// [D / 8][2 h + e]: of row g + 8 h; which feature, see store_sums.
template <int D>
using Sums = float[D / 8][4];

// Over the lanes of a group, which share the rows of Scores.
__device__ __forceinline__ float row_sum(float x, [[maybe_unused]] Site site = Site::current()) {
    x += __shfl_xor_sync(kFullMask, x, 1, kWarp KDFAST_AT(site));
    return x + __shfl_xor_sync(kFullMask, x, 2, kWarp KDFAST_AT(site));
}
__device__ __forceinline__ float row_max(float x, [[maybe_unused]] Site site = Site::current()) {
    x = fmaxf(x, __shfl_xor_sync(kFullMask, x, 1, kWarp KDFAST_AT(site)));
    return fmaxf(x, __shfl_xor_sync(kFullMask, x, 2, kWarp KDFAST_AT(site)));
}

// ---- features of a row ----------------------------------------------------------------------------------------------

template <int D>
constexpr int kFirstPart = D == 24 ? 16 : D;

// part(begin, width) as integral constants, for each of the parts of D that lanes divide among them.
template <int kBegin, int kWidth>
struct Part {
    static constexpr int begin = kBegin, width = kWidth;
};
template <int D, class F>
__device__ __forceinline__ void for_each_part(F&& part) {
    part(Part<0, kFirstPart<D>>{});
    if constexpr (kFirstPart<D> < D) part(Part<kFirstPart<D>, D - kFirstPart<D>>{});
}

// N values of type V, in accesses of up to 16 bytes.
template <class V, int N, class T>
__device__ __forceinline__ void load_values(V* to, const T* from) {
    constexpr int kPiece = N * sizeof(V) <= 16 ? N : 16 / sizeof(V);
#pragma unroll
    for (int i = 0; i < N; i += kPiece) {
        const auto piece = load_readonly<Vec<V, kPiece>>(from + i * static_cast<int>(sizeof(V) / sizeof(T)));
#pragma unroll
        for (int j = 0; j < kPiece; ++j) to[i + j] = piece[j];
    }
}

// Row g + 8 h of `sums`, times factor.
template <class T, int D>
__device__ __forceinline__ void store_sums(T* row, const Sums<D>& sums, int h, float factor) {
    for_each_part<D>([&](auto part) {
        constexpr int kEach = part.width / 8, kValues = 2 * kEach;
        constexpr int kPiece = kValues * sizeof(T) <= 16 ? kValues : 16 / sizeof(T);
#pragma unroll
        for (int i = 0; i < kValues; i += kPiece) {
            Vec<T, kPiece> piece;
#pragma unroll
            for (int j = 0; j < kPiece; ++j) {
                const int e = i + j;
                piece[j] = from_float<T>(sums[part.begin / 8 + e % kEach][2 * h + e / kEach] * factor);
            }
            store(row + part.begin + lane_column() * kValues + i, piece);
        }
    });
}

// Whether code for a GPU holds the kernels with products of tensor cores, or the others. The emulator has both.
template <bool kTensorCores>
#if defined(__CUDA_ARCH__)
constexpr bool kIsCompiled = kTensorCores == (__CUDA_ARCH__ >= 800);
#else
constexpr bool kIsCompiled = true;
#endif

// ---- 16-bit types on tensor cores -----------------------------------------------------------------------------------

template <class T_, int kDim>
struct PackedFragments {
    using T = T_;
    static constexpr int D = kDim;
    static constexpr bool kTensorCores = true, kPacked = true;
    struct Row {
        uint32_t pairs[D / 8];
    };
    struct Columns {
        uint32_t pairs[D / 8][2];  // [feature][rows 2c and 2c + 1, or 8 below]
    };

    static __device__ __forceinline__ void load(Row& to, const T* row) {
        for_each_part<D>([&](auto part) {
            load_values<uint32_t, part.width / 8>(to.pairs + part.begin / 8,
                                                  row + part.begin + lane_column() * (part.width / 4));
        });
    }

    static __device__ __forceinline__ void load(Columns& to, const T* const (&rows)[4]) {
        for_each_part<D>([&](auto part) {
            constexpr int kEach = part.width / 8, kWords = kEach == 1 ? 1 : kEach / 2;
            const int first = part.begin + lane_group() * kEach;
            uint32_t words[4][kWords];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if constexpr (kEach == 1)
                    words[i][0] = load_readonly<uint16_t>(rows[i] + first);
                else
                    load_values<uint32_t, kWords>(words[i], rows[i] + first);
            }
#pragma unroll
            for (int j = 0; j < kEach; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    to.pairs[part.begin / 8 + j][h] =
                        __byte_perm(words[2 * h][j / 2], words[2 * h + 1][j / 2], j % 2 == 0 ? 0x5410 : 0x7632);
        });
    }

    // scores = a bᵀ, for a's rows g and g + 8, and b's rows in the same order. For the others, see product_tf32.
    template <bool kTransposed, bool kExponent>
    static __device__ __forceinline__ void dots(Scores& scores, const Row (&a)[2], const Row (&b)[2]) {
        constexpr int kPairs = D / 8;
#pragma unroll
        for (int u = 0; u < 2; ++u) {
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[u][i] = 0.0f;
#pragma unroll
            for (int s = 0; s < kPairs; s += 2) {  // an odd pair has zeros for a neighbour
                const bool both = s + 1 < kPairs;
                const uint32_t left[4] = {a[0].pairs[s], a[1].pairs[s], both ? a[0].pairs[both ? s + 1 : s] : 0u,
                                          both ? a[1].pairs[both ? s + 1 : s] : 0u};
                mma_16x8x16<T>(scores[u], left, b[u].pairs[s], both ? b[u].pairs[both ? s + 1 : s] : 0u);
            }
        }
    }

    // sums += weights · columns, the weights rounded to T.
    static __device__ __forceinline__ void accumulate(Sums<D>& sums, const Scores& weights, const Columns& columns) {
        const uint32_t left[4] = {pack<T>(weights[0][0], weights[0][1]), pack<T>(weights[0][2], weights[0][3]),
                                  pack<T>(weights[1][0], weights[1][1]), pack<T>(weights[1][2], weights[1][3])};
#pragma unroll
        for (int j = 0; j < D / 8; ++j) mma_16x8x16<T>(sums[j], left, columns.pairs[j][0], columns.pairs[j][1]);
    }
};

// ---- float32 --------------------------------------------------------------------------------------------------------

// D += A B for A [16, 8] and B [8, 8], with fragments as of mma.m16n8k8: a[0] row g, a[1] row g + 8, of term c; a[2]
// and a[3] of term c + 4; b[0] term c and b[1] term c + 4 of column g.

// On tensor cores: each operand as a sum of two tf32 numbers, with 22 of its 24 bits or more, and three of the four
// products; all of them where kExponent: what is then an exponent has to be right absolutely. They are added to d in
// float32 outside of the tensor cores, which round towards zero. kTransposed: A is the operand that is B elsewhere; the
// result has the same bits.
template <bool kTransposed, bool kExponent>
__device__ __forceinline__ void product_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
    uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        a_high[i] = to_tf32(a[i]);
        a_low[i] = to_tf32(a[i] - __uint_as_float(a_high[i]));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        b_high[i] = to_tf32(b[i]);
        b_low[i] = to_tf32(b[i] - __uint_as_float(b_high[i]));
    }
    float sum[4] = {};
    if (kExponent) mma_16x8x8_tf32(sum, a_low, b_low[0], b_low[1]);
    if (!kTransposed) mma_16x8x8_tf32(sum, a_low, b_high[0], b_high[1]);
    mma_16x8x8_tf32(sum, a_high, b_low[0], b_low[1]);
    if (kTransposed) mma_16x8x8_tf32(sum, a_low, b_high[0], b_high[1]);
    mma_16x8x8_tf32(sum, a_high, b_high[0], b_high[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
}

// On GPUs whose tensor cores have no such products: the lanes ask each other for their operands.
__device__ __forceinline__ void product_fma(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#pragma unroll 1  // unrolled, the kernels take an hour to compile
    for (int c = 0; c < 4; ++c) {
        const int row = 4 * lane_group() + c, column = 8 * lane_column() + c;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float a0 = __shfl_sync(kFullMask, a[2 * half], row);
            const float a8 = __shfl_sync(kFullMask, a[2 * half + 1], row);
            const float b0 = __shfl_sync(kFullMask, b[half], column);
            const float b1 = __shfl_sync(kFullMask, b[half], column + 4);
            d[0] = fmaf(a0, b0, d[0]);
            d[1] = fmaf(a0, b1, d[1]);
            d[2] = fmaf(a8, b0, d[2]);
            d[3] = fmaf(a8, b1, d[3]);
        }
    }
}

// Where registers can't hold them, Row and Columns are only places in memory, those of the first part's features, from
// which the products read.
template <class T_, int kDim, bool kTensorCores_>
struct FloatFragments {
    using T = T_;
    static constexpr int D = kDim;
    static constexpr bool kTensorCores = kTensorCores_, kPacked = false;
    static constexpr bool kHolds = D <= 16;
    struct HeldRow {
        float values[D / 4];
    };
    struct HeldColumns {
        float values[4][D / 8];  // [row][feature]
    };
    struct RowInMemory {
        const T* at;
    };
    struct ColumnsInMemory {
        const T* at[4];
    };
    using Row = std::conditional_t<kHolds, HeldRow, RowInMemory>;
    using Columns = std::conditional_t<kHolds, HeldColumns, ColumnsInMemory>;

    static __device__ __forceinline__ void load(Row& to, const T* row) {
        if constexpr (kHolds)
            load_floats<D / 4>(to.values, row + lane_column() * (D / 4));
        else
            to.at = row + lane_column() * (kFirstPart<D> / 4);
    }

    static __device__ __forceinline__ void load(Columns& to, const T* const (&rows)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (kHolds)
                load_floats<D / 8>(to.values[i], rows[i] + lane_group() * (D / 8));
            else
                to.at[i] = rows[i] + lane_group() * (kFirstPart<D> / 8);
        }
    }

    template <bool kTransposed, bool kExponent>
    static __device__ __forceinline__ void dots(Scores& scores, const Row (&a)[2], const Row (&b)[2]) {
#pragma unroll
        for (int u = 0; u < 2; ++u)
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[u][i] = 0.0f;
        for_each_part<D>([&](auto part) {
            constexpr int kEach = part.width / 4, kPiece = kEach < 4 ? kEach : 4;
            const int offset = part.begin + lane_column() * (kEach - kFirstPart<D> / 4);
            [[maybe_unused]] constexpr int kUnrolled =
                kHolds ? kEach / kPiece : 1;  // else the compiler reads ahead until it spills
#pragma unroll kUnrolled
            for (int s = 0; s < kEach; s += kPiece) {
                float left[2][kPiece], right[2][kPiece];
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    read(left[h], a[h], offset, s);
                    read(right[h], b[h], offset, s);
                }
#pragma unroll
                for (int i = 0; i < kPiece; i += 2)
#pragma unroll
                    for (int u = 0; u < 2; ++u)
                        product<kTransposed, kExponent>(scores[u],
                                                        {left[0][i], left[1][i], left[0][i + 1], left[1][i + 1]},
                                                        {right[u][i], right[u][i + 1]});
            }
        });
    }

    static __device__ __forceinline__ void accumulate(Sums<D>& sums, const Scores& weights, const Columns& columns) {
        for_each_part<D>([&](auto part) {
            constexpr int kEach = part.width / 8, kPiece = kEach < 4 ? kEach : 4;
            const int offset = part.begin + lane_group() * (kEach - kFirstPart<D> / 8);
#pragma unroll
            for (int j = 0; j < kEach; j += kPiece) {
                float right[4][kPiece];
#pragma unroll
                for (int i = 0; i < 4; ++i) read(right[i], columns, i, offset, j);
#pragma unroll
                for (int u = 0; u < 2; ++u)
#pragma unroll
                    for (int e = 0; e < kPiece; ++e)
                        product<false, false>(sums[part.begin / 8 + j + e],
                                              {weights[u][0], weights[u][2], weights[u][1], weights[u][3]},
                                              {right[2 * u][e], right[2 * u + 1][e]});
            }
        });
    }

  private:
    // The i-th and following of the lane's features of a part. offset: of the part, from the place in memory.
    template <int N>
    static __device__ __forceinline__ void read(float (&to)[N], const Row& row, [[maybe_unused]] int offset, int i) {
        if constexpr (kHolds) {
#pragma unroll
            for (int e = 0; e < N; ++e) to[e] = row.values[i + e];
        } else {
            load_floats<N>(to, row.at + offset + i);
        }
    }
    template <int N>
    static __device__ __forceinline__ void read(float (&to)[N], const Columns& columns, int row,
                                                [[maybe_unused]] int offset, int i) {
        if constexpr (kHolds) {
#pragma unroll
            for (int e = 0; e < N; ++e) to[e] = columns.values[row][i + e];
        } else {
            load_floats<N>(to, columns.at[row] + offset + i);
        }
    }

    template <int N>
    static __device__ __forceinline__ void load_floats(float* to, const T* from) {
        T values[N];
        load_values<T, N>(values, from);
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = to_float(values[i]);
    }

    template <bool kTransposed, bool kExponent>
    static __device__ __forceinline__ void product(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
        if constexpr (kTensorCores)
            product_tf32<kTransposed, kExponent>(d, a, b);
        else
            product_fma(d, a, b);
    }
};

}  // namespace
}  // namespace kdfast::gpu
