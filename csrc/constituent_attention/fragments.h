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

// The sum over the rows of tiles of Sums, times factor(tile, h) each, by the warp: D floats. Tile by tile, so that the
// number of tiles that a warp takes changes no bits.
template <int D, int kTiles, class Factor>
__device__ __forceinline__ void store_column_sums(float* to, const Sums<D> (&sums)[kTiles], Factor&& factor) {
    Sums<D> columns;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float total = 0.0f;
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                float sum = sums[t][j][e] * factor(t, 0) + sums[t][j][2 + e] * factor(t, 1);
#pragma unroll
                for (int lanes = 4; lanes < kWarp; lanes *= 2) sum += __shfl_xor_sync(kFullMask, sum, lanes);
                total += sum;
            }
            columns[j][e] = total;
        }
    if (lane_group() == 0) store_sums<float, D>(to, columns, 0, 1.0f);
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

    static __device__ __forceinline__ void add(Row& to, const Row& other) {
#pragma unroll
        for (int i = 0; i < D / 8; ++i) to.pairs[i] = add_pairs<T>(to.pairs[i], other.pairs[i]);
    }
    static __device__ __forceinline__ void add(Columns& to, const Columns& other) {
#pragma unroll
        for (int i = 0; i < D / 8; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) to.pairs[i][h] = add_pairs<T>(to.pairs[i][h], other.pairs[i][h]);
    }

    // scores = a bᵀ, for a's rows g and g + 8, and b's rows in the same order. kTransposed: see TensorCoreProducts.
    template <bool kTransposed>
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

// Operands of D += A B for A [16, 8 kHalves] and B [8 kHalves, 8], in the order of mma.m16n8k16, of which one half may
// be left out: left[2 s + h] holds terms 2 c, 2 c + 1 of half s, of row g + 8 h; right[s] the same of column g.
template <int kHalves>
using Left = float[2 * kHalves][2];
template <int kHalves>
using Right = float[kHalves][2];

// On tensor cores: a float is the sum of three numbers of bfloat16, exactly, since 24 bits are 3 × 8; six of the nine
// products miss some 2^-25 of the largest. The products are exact as well and the large ones, which have 16 bits, come
// last, so that a sum, which tensor cores cut off, loses little but its last bit; sums of 16 terms are added in float32
// outside of them. (Two numbers of tf32 hold 22 bits: scores of 10^4 are then wrong in an exponent.)
struct TensorCoreProducts {
    template <int kHalves>
    struct LeftOperand {
        uint32_t parts[3][4];  // high, middle, low
        __device__ __forceinline__ explicit LeftOperand(const Left<kHalves>& x) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                if (r < 2 * kHalves)
                    split(x[r < 2 * kHalves ? r : 0], parts[0][r], parts[1][r], parts[2][r]);
                else
                    parts[0][r] = parts[1][r] = parts[2][r] = 0u;
            }
        }
    };
    template <int kHalves>
    struct RightOperand {
        uint32_t parts[3][2];
        __device__ __forceinline__ explicit RightOperand(const Right<kHalves>& x) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                if (r < kHalves)
                    split(x[r < kHalves ? r : 0], parts[0][r], parts[1][r], parts[2][r]);
                else
                    parts[0][r] = parts[1][r] = parts[2][r] = 0u;
            }
        }
    };

    // kTransposed: A is the operand that is B elsewhere; the result has the same bits.
    template <bool kTransposed, int kHalves>
    static __device__ __forceinline__ void multiply(float (&d)[4], const LeftOperand<kHalves>& left,
                                                    const RightOperand<kHalves>& right) {
        constexpr int kOrder[6][2] = {{1, 1}, {2, 0}, {0, 2}, {1, 0}, {0, 1}, {0, 0}};
        float sum[4] = {};
#pragma unroll
        for (int i = 0; i < 6; ++i) {
            const uint32_t(&b)[2] = right.parts[kOrder[i][kTransposed ? 0 : 1]];
            mma_16x8x16<bf16>(sum, left.parts[kOrder[i][kTransposed ? 1 : 0]], b[0], b[1]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) d[i] += sum[i];
    }

  private:
    static __device__ __forceinline__ void split(const float (&x)[2], uint32_t& high, uint32_t& middle, uint32_t& low) {
        high = pack<bf16>(x[0], x[1]);
        const float2 h = unpack<bf16>(high);
        const float rest[2] = {x[0] - h.x, x[1] - h.y};
        middle = pack<bf16>(rest[0], rest[1]);
        const float2 m = unpack<bf16>(middle);
        low = pack<bf16>(rest[0] - m.x, rest[1] - m.y);
    }
};

// On GPUs whose tensor cores have no such products: the lanes ask each other for their operands.
struct FmaProducts {
    template <int kHalves>
    struct LeftOperand {
        const Left<kHalves>& x;
    };
    template <int kHalves>
    struct RightOperand {
        const Right<kHalves>& x;
    };

    template <bool kTransposed, int kHalves>
    static __device__ __forceinline__ void multiply(float (&d)[4], const LeftOperand<kHalves>& left,
                                                    const RightOperand<kHalves>& right) {
#pragma unroll
        for (int s = 0; s < kHalves; ++s) {
#pragma unroll 1  // unrolled, the kernels take an hour to compile
            for (int c = 0; c < 4; ++c) {
                const int row = 4 * lane_group() + c, column = 8 * lane_column() + c;
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float a0 = __shfl_sync(kFullMask, left.x[2 * s][e], row);
                    const float a8 = __shfl_sync(kFullMask, left.x[2 * s + 1][e], row);
                    const float b0 = __shfl_sync(kFullMask, right.x[s][e], column);
                    const float b1 = __shfl_sync(kFullMask, right.x[s][e], column + 4);
                    d[0] = fmaf(a0, b0, d[0]);
                    d[1] = fmaf(a0, b1, d[1]);
                    d[2] = fmaf(a8, b0, d[2]);
                    d[3] = fmaf(a8, b1, d[3]);
                }
            }
        }
    }
};

// Where registers can't hold them, Row and Columns are only places in memory, those of the first part's features, from
// which the products read.
template <class T_, int kDim, bool kTensorCores_>
struct FloatFragments {
    using T = T_;
    static constexpr int D = kDim;
    static constexpr bool kTensorCores = kTensorCores_, kPacked = false;
    static constexpr bool kHolds = D <= 16;
    using Products = std::conditional_t<kTensorCores, TensorCoreProducts, FmaProducts>;
    template <int kHalves>
    using LeftOperand = typename Products::template LeftOperand<kHalves>;
    template <int kHalves>
    using RightOperand = typename Products::template RightOperand<kHalves>;
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

    template <bool kTransposed>
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
                constexpr int kHalves = kPiece / 2;
                Left<kHalves> terms;
#pragma unroll
                for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
                    for (int e = 0; e < 2; ++e) terms[r][e] = left[r % 2][r / 2 * 2 + e];
                const LeftOperand<kHalves> operand{terms};
#pragma unroll
                for (int u = 0; u < 2; ++u) {
                    Right<kHalves> others;
#pragma unroll
                    for (int r = 0; r < kHalves; ++r)
#pragma unroll
                        for (int e = 0; e < 2; ++e) others[r][e] = right[u][2 * r + e];
                    Products::template multiply<kTransposed, kHalves>(scores[u], operand,
                                                                      RightOperand<kHalves>{others});
                }
            }
        });
    }

    static __device__ __forceinline__ void accumulate(Sums<D>& sums, const Scores& weights, const Columns& columns) {
        const Left<2> terms = {{weights[0][0], weights[0][1]},
                               {weights[0][2], weights[0][3]},
                               {weights[1][0], weights[1][1]},
                               {weights[1][2], weights[1][3]}};
        const LeftOperand<2> operand{terms};
        for_each_part<D>([&](auto part) {
            constexpr int kEach = part.width / 8, kPiece = kEach < 4 ? kEach : 4;
            const int offset = part.begin + lane_group() * (kEach - kFirstPart<D> / 8);
#pragma unroll
            for (int j = 0; j < kEach; j += kPiece) {
                float right[4][kPiece];
#pragma unroll
                for (int i = 0; i < 4; ++i) read(right[i], columns, i, offset, j);
#pragma unroll
                for (int e = 0; e < kPiece; ++e) {
                    const Right<2> others = {{right[0][e], right[1][e]}, {right[2][e], right[3][e]}};
                    Products::template multiply<false, 2>(sums[part.begin / 8 + j + e], operand,
                                                          RightOperand<2>{others});
                }
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
};

}  // namespace
}  // namespace kdfast::gpu
