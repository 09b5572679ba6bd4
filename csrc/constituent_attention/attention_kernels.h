// What the kernels of attention share: arguments, a warp's work, a lane's view of a tile.
#pragma once

#include "constituent_attention/constituent_attention_gpu.h"
#include "constituent_attention/fragments.h"
#include "constituent_attention/pair_masks.h"
#include "constituent_attention/work_items.h"
#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

template <auto kValue>
struct Constant {
    static constexpr auto value = kValue;
};

constexpr int kThreads = 128;
static_assert(kMaskTile == kTile);
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// What a kernel is compiled for besides plain attention. kMasked: dropout by masks. kAny: a bias, or dropout, by masks
// or without.
enum Extras { kNone, kMasked, kAny };

// Of a query, from the first kernel of the backward pass to the second.
struct alignas(16) RowStatistics {
    float lse;      // in the units of scale_scores
    float inverse;  // 1 / Σ_j exp(s_ij − lse_i), which takes back the rounding of lse
    float mean;     // D_i = Σ_j P_ij dP_ij, dP without dropout's factor
    float unused;
};

struct Arguments {
    AttentionParams p;
    Plan plan;
    RowStatistics* statistics;  // [K, H, M]
    float score_scale;
    float keep_scale;   // 1 / (1 − dropout probability)
    unsigned num_work;  // warps
    int rows_per_warp;
    float* bias_sums;  // [K, bias_slots, H, d] of the projection's bias: its gradient's parts by warps; or null
    int bias_slots;
    int members_per_warp;  // K where they add to one bias gradient, in order; else 1
};

// Some rows of one jet, one head, and the members [member, member + members_per_warp).
struct Work {
    WorkItem item;
    int head, member;
};

// The warp's work, of items that are split into kItemRows / kRows; false where there is none.
template <int kRows>
__device__ __forceinline__ bool take_work(const Arguments& a, Work& work) {
    constexpr unsigned kSplit = kItemRows / kRows;
    unsigned w = blockIdx.x * (kThreads / kWarp) + static_cast<unsigned>(warp_index());
    if (w >= a.num_work) return false;
    // Heads vary fastest: they share the rows' cache lines.
    const unsigned heads = static_cast<unsigned>(a.p.num_heads);
    work.head = static_cast<int>(w % heads);
    w /= heads;
    const int begin = static_cast<int>(w % kSplit) * kRows;
    w /= kSplit;
    const unsigned groups = static_cast<unsigned>(a.p.num_members) / static_cast<unsigned>(a.members_per_warp);
    work.member = static_cast<int>(w % groups) * a.members_per_warp;
    w /= groups;
    if (w >= static_cast<unsigned>(load_readonly<int>(a.plan.num_items))) return false;
    work.item = load_readonly<WorkItem>(a.plan.items + w);
    work.item.row += begin;
    return work.item.row < work.item.n;
}

// run(work, tiles): for kTiles tiles, or for one where the item has no more.
template <class F, int kTiles, class Run>
__device__ __forceinline__ void with_work(const Arguments& a, Run&& run) {
    if constexpr (kIsCompiled<F::kTensorCores>) {
        Work work;
        if (!take_work<kTiles * kTile>(a, work)) return;
        if (kTiles == 1 || work.item.n - work.item.row <= kTile)
            run(work, Constant<1>{});
        else
            run(work, Constant<kTiles>{});
    }
}

// The rows of a jet, of one head and member, in a tensor.
template <class T>
struct JetRows {
    T* data;
    int stride;

    __device__ __forceinline__ JetRows(const AttentionRows& rows, const WorkItem& item, int head, int member)
        : data(static_cast<T*>(rows.data) + member * rows.member + item.first * rows.row + head * rows.head),
          stride(static_cast<int>(rows.row)) {}
    __device__ __forceinline__ T* operator[](int row) const { return data + static_cast<int64_t>(row) * stride; }
};

// Rows that a jet doesn't have are read as its last one: what becomes of them is masked, or not stored.
template <bool kTail>
__device__ __forceinline__ int existing(int row, int n) {
    return kTail ? min(row, n - 1) : row;
}

// The lane's rows of the 16 from `row` on, as an operand of q · k.
template <class F, bool kTail>
__device__ __forceinline__ void load_rows(typename F::Row (&to)[2], const JetRows<const typename F::T>& x, int row,
                                          int n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) F::load(to[h], x[existing<kTail>(row + 8 * h + lane_group(), n)]);
}

// Row, or column of Scores, that the lane's i-th of four is: 2c, 2c + 1, 2c + 8, 2c + 9.
__device__ __forceinline__ int lane_term(int i) { return 2 * lane_column() + i % 2 + i / 2 * 8; }

// The 16 rows from `row` on, as the right operand of P v.
template <class F, bool kTail>
__device__ __forceinline__ void load_columns(typename F::Columns& to, const JetRows<const typename F::T>& x, int row,
                                             int n) {
    const typename F::T* rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = x[existing<kTail>(row + lane_term(i), n)];
    F::load(to, rows);
}

// The projection's bias of q or v, for what load_rows and load_columns load; zero where there is none. Of 16-bit types
// with masks, as a lock-step engine trains: other kernels would pay for additions of zeros.
template <class F, Extras kExtras>
constexpr bool kAddsBias = F::kPacked && kExtras == kMasked;
enum Projection { kOfQueries = 0, kOfValues = 2 };
template <class F, Extras kExtras, class Fragment>
struct FragmentBias {
    Fragment values;

    __device__ __forceinline__ FragmentBias(const Arguments& a, const Work& work, int member, Projection projection) {
        if constexpr (kAddsBias<F, kExtras>) {
            using T = typename F::T;
            values = {};
            if (a.p.projection_bias.values == nullptr) return;
            const T* const bias = static_cast<const T*>(a.p.projection_bias.values) +
                                  member * a.p.projection_bias.stride + (projection * a.p.num_heads + work.head) * F::D;
            if constexpr (std::is_same_v<Fragment, typename F::Row>)
                F::load(values, bias);
            else
                F::load(values, {bias, bias, bias, bias});
        }
    }
    __device__ __forceinline__ void add_to(Fragment& x) const {
        if constexpr (kAddsBias<F, kExtras>) F::add(x, values);
    }
    __device__ __forceinline__ void add_to(Fragment (&rows)[2]) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) add_to(rows[h]);
    }
};
template <class F, Extras kExtras>
using RowBias = FragmentBias<F, kExtras, typename F::Row>;
template <class F, Extras kExtras>
using ColumnsBias = FragmentBias<F, kExtras, typename F::Columns>;

// The warp's part of the gradient of the projection's bias of q or v: the sum of the rows that are written. Its slot
// depends on the jet and the row alone; a jet's are neighbours, those of the next jets follow (add_bias_sums).
template <class F, Extras kExtras, int kTiles, class Factor>
__device__ __forceinline__ void store_bias_sums(const Arguments& a, const Work& work, int member,
                                                const Sums<F::D> (&sums)[kTiles], Factor&& factor) {
    if constexpr (kAddsBias<F, kExtras>) {
        if (a.bias_sums == nullptr) return;
        const int slot = work.item.jet + (work.item.first + work.item.row) / a.rows_per_warp;
        const int64_t at = static_cast<int64_t>(member) * a.bias_slots + slot;
        store_column_sums<F::D>(a.bias_sums + (at * a.p.num_heads + work.head) * F::D, sums, [&](int t, int h) {
            return work.item.row + t * kTile + lane_group() + 8 * h < work.item.n ? factor(t, h) : 0.0f;
        });
    }
}

// tile(first row, whether it has fewer than 16 rows) for all tiles of n rows.
template <class F>
__device__ __forceinline__ void for_each_tile(int n, F&& tile) {
    int row = 0;
    for (; row + kTile <= n; row += kTile) tile(row, Constant<false>{});
    if (row < n) tile(row, Constant<true>{});
}

// The warp's rows that belong to no jet: zeros behind the last jet, NaN where offsets can't be.
template <class F>
__device__ __forceinline__ void fill_rows(const AttentionRows& rows, const Work& work, int member) {
    using T = typename F::T;
    constexpr int kPiece = 16 / sizeof(T), kPieces = F::D / kPiece;
    const JetRows<T> to(rows, work.item, work.head, member);
    Vec<T, kPiece> piece;
#pragma unroll
    for (int e = 0; e < kPiece; ++e) piece[e] = from_float<T>(work.item.jet == kPadding ? 0.0f : NAN);
    const int count = min(work.item.n - work.item.row, kItemRows);
    for (int i = lane_index(); i < count * kPieces; i += kWarp)
        store(to[work.item.row + i / kPieces] + i % kPieces * kPiece, piece);
}

// Where the masks of the work's jet and head begin.
__device__ __forceinline__ const uint32_t* masks_of(const Arguments& a, const Work& work) {
    const int64_t tiles = tiles_of(work.item.n);
    const int64_t before = load_readonly<int64_t>(a.plan.tiles + work.item.jet) * a.p.num_heads;
    return a.p.masks + (before + work.head * tiles * tiles) * kMaskWords;
}
__device__ __forceinline__ unsigned drawn_keys(const Arguments& a, const Work& work, int query, int key) {
    const uint64_t seed = a.p.device_seed == nullptr ? a.p.seed : *a.p.device_seed;
    return draw_keys(seed, a.p.threshold, work.item.jet, work.head, query, key);
}

// Dropout's decisions about a lane's Scores, where rows are queries: from the masks (pair_masks.h), or drawn.
template <Extras kExtras>
struct QueryMasks {
    const Arguments& a;
    const Work& work;
    const uint32_t* words;  // of the lane, in the first tile of the warp's queries
    int tiles;              // of keys

    __device__ __forceinline__ QueryMasks(const Arguments& arguments, const Work& own)
        : a(arguments), work(own), words(nullptr), tiles(static_cast<int>(tiles_of(own.item.n))) {
        if (kExtras != kNone && (kExtras == kMasked || a.p.masks != nullptr))
            words = masks_of(a, work) + work.item.row / kTile * tiles * kMaskWords + lane_group();
    }
    __device__ __forceinline__ bool drop() const {
        return kExtras == kMasked || (kExtras == kAny && a.p.threshold != 0);
    }
    // Of the warp's t-th tile of queries, and the keys from `key` on: what keeps() takes.
    __device__ __forceinline__ unsigned of_tile(int t, int key) const {
        if (!drop()) return ~0u;
        if (kExtras == kMasked || words != nullptr)
            return load_readonly<uint32_t>(words + (t * tiles + key / kTile) * kMaskWords) >> 2 * lane_column();
        const unsigned kept = drawn_keys(a, work, work.item.row + t * kTile, key);
        const unsigned low = __shfl_sync(kFullMask, kept, lane_group());
        return (low | __shfl_sync(kFullMask, kept, lane_group() + 8) << 16) >> 2 * lane_column();
    }
    // Of row g + 8 h and column lane_term(i).
    __device__ __forceinline__ bool keeps(unsigned kept, int h, int i) const {
        return kExtras == kNone || (kept >> (16 * h + 8 * (i / 2) + i % 2) & 1) != 0;
    }
};

// The same where rows are keys, and columns queries.
template <Extras kExtras>
struct KeyMasks {
    using Words = Vec<uint32_t, 2>;
    const Arguments& a;
    const Work& work;
    const uint32_t* words;  // of the lane, in the first tile of queries and the first of the warp's keys
    int tiles;              // of keys

    __device__ __forceinline__ KeyMasks(const Arguments& arguments, const Work& own)
        : a(arguments), work(own), words(nullptr), tiles(static_cast<int>(tiles_of(own.item.n))) {
        if (kExtras != kNone && (kExtras == kMasked || a.p.masks != nullptr))
            words = masks_of(a, work) + work.item.row / kTile * kMaskWords + 2 * lane_column();
    }
    // Of the queries from `query` on, and the warp's t-th tile of keys: what keeps() takes.
    __device__ __forceinline__ Words of_tile(int query, int t) const {
        if (kExtras == kNone || (kExtras == kAny && a.p.threshold == 0)) return {~0u, ~0u};
        Words kept;
        if (kExtras == kMasked || words != nullptr) {
            kept = load_readonly<Words>(words + (query / kTile * tiles + t) * kMaskWords);
        } else {
            const unsigned drawn = drawn_keys(a, work, query, work.item.row + t * kTile);
            unsigned of_query[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) of_query[j] = __shfl_sync(kFullMask, drawn, lane_term(j));
            kept = {of_query[0] | of_query[2] << 16, of_query[1] | of_query[3] << 16};
        }
        return {kept[0] >> lane_group(), kept[1] >> lane_group()};
    }
    // Of column lane_term(j) and row g + 8 h.
    __device__ __forceinline__ bool keeps(const Words& kept, int j, int h) const {
        return kExtras == kNone || (kept[j % 2] >> (16 * (j / 2) + 8 * h) & 1) != 0;
    }
};

// Where the jet's block of a head and member begins in the bias, or in its gradient.
__device__ __forceinline__ int64_t pair_offset(const Arguments& a, const Work& work, int member) {
    const int64_t matrix = a.p.bias_members == 1 ? work.head : member * a.p.num_heads + work.head;
    return matrix * a.p.num_pairs + a.plan.pairs[work.item.jet];
}

// Scores and their bias, in units that exp_of takes, less `reference` of their query. kTransposed: rows are keys and
// columns are queries.
//
// Floats round the scaled score before they subtract: where one key has all the weight, lse is its score, and the
// weight comes out as 1 and its gradient as 0, exactly. 16-bit types save instructions: units of ln 2, one rounding.
template <class F, Extras kExtras, bool kTransposed, bool kTail>
__device__ __forceinline__ void scale_scores(const Arguments& a, const float* bias, int n, int row, int column,
                                             Scores& scores, const float (&reference)[4]) {
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float own_bias = 0.0f;
            if (kExtras == kAny && bias != nullptr) {
                const int own_row = existing<true>(row + lane_group() + i / 2 * 8, n);
                const int own_column = existing<kTail>(column + lane_term(2 * u + i % 2), n);
                const int query = kTransposed ? own_column : own_row, key = kTransposed ? own_row : own_column;
                own_bias = load_readonly<float>(bias + static_cast<int64_t>(query) * n + key);
            }
            float& score = scores[u][i];
            const float subtracted = reference[kTransposed ? 2 * u + i % 2 : i / 2];
            if constexpr (F::kPacked)
                score = fmaf(score, a.score_scale * kLog2E,
                             kExtras == kAny ? fmaf(own_bias, kLog2E, -subtracted) : -subtracted);
            else
                score =
                    (kExtras == kAny ? __fmul_rn(score, a.score_scale) + own_bias : __fmul_rn(score, a.score_scale)) -
                    subtracted;
        }
}

template <class F>
__device__ __forceinline__ float exp_of(float x) {
    return exp2_approx(F::kPacked ? x : x * kLog2E);
}
template <class F>
__device__ __forceinline__ float lse_of(float top, float sum) {
    return F::kPacked ? (top + log2_approx(sum)) * kLn2 : fmaf(log2_approx(sum), kLn2, top);
}

}  // namespace
}  // namespace kdfast::gpu
