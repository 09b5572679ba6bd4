// How a kernel of attention is chosen and launched. A source that includes this defines choice_of for its passes.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <type_traits>

#include "constituent_attention/attention_kernels.h"

namespace kdfast::gpu {
namespace {

enum Pass { kAttend, kQueryGradients, kKeyGradients };

// How a kernel runs.
template <class Fragments, int kPass, Extras kExtras_>
struct Variant {
    using F = Fragments;
    static constexpr Extras kExtras = kExtras_;
    // Of 16 rows, that a warp takes at once, because what it loads serves all of them.
    static constexpr int kMostFeatures = kPass == kAttend ? 32 : kPass == kKeyGradients || kExtras != kAny ? 16 : 0;
    static constexpr int kTiles = F::kPacked && F::D <= kMostFeatures ? 2 : 1;
    // That a multiprocessor should hold, which limits registers: as many as go without spills.
    static constexpr int kWithoutExtras[2][3][5] = {
        // D = 8, 16, 24, 32, 64
        {{5, 4, 3, 3, 2}, {4, 3, 2, 2, 2}, {3, 2, 2, 2, 2}},  // floats: attend, query_gradients, key_gradients
        {{5, 5, 4, 4, 3}, {3, 3, 3, 3, 2}, {3, 3, 3, 3, 2}},  // packed
    };
    static constexpr int kDim = F::D == 64 ? 4 : F::D / 8 - 1;
    static constexpr bool kNeedsMore =
        kExtras == kAny || (kExtras == kMasked && F::kPacked && kPass == kAttend && F::D == 32);
    static constexpr int kBlocks = std::max(2, kWithoutExtras[F::kPacked][kPass][kDim] - kNeedsMore);
};

struct Choice {
    void (*kernel)(Arguments);
    int tiles;
};

template <class F, int kPass, Extras kExtras>
Choice choice_of();

template <class T, int D, int kPass>
Choice choose_products(Extras extras) {
    using OnTensorCores = std::conditional_t<sizeof(T) == 4, FloatFragments<T, D, true>, PackedFragments<T, D>>;
    if (code_capability() < 80) return choice_of<FloatFragments<T, D, false>, kPass, kAny>();
    return extras == kNone     ? choice_of<OnTensorCores, kPass, kNone>()
           : extras == kMasked ? choice_of<OnTensorCores, kPass, kMasked>()
                               : choice_of<OnTensorCores, kPass, kAny>();
}
template <class T, int kPass>
Choice choose_head_dim(int64_t head_dim, Extras extras) {
    switch (head_dim) {
        case 8:
            return choose_products<T, 8, kPass>(extras);
        case 16:
            return choose_products<T, 16, kPass>(extras);
        case 24:
            return choose_products<T, 24, kPass>(extras);
        case 32:
            return choose_products<T, 32, kPass>(extras);
        case 64:
            return choose_products<T, 64, kPass>(extras);
    }
    throw std::invalid_argument("head_dim is none of 8, 16, 24, 32, 64");
}
template <int kPass>
Choice choose(const AttentionParams& p) {
    const bool drops = p.threshold != 0;
    const Extras extras = p.bias != nullptr || (drops && p.masks == nullptr) ? kAny : drops ? kMasked : kNone;
    return p.dtype == DType::f32    ? choose_head_dim<float, kPass>(p.head_dim, extras)
           : p.dtype == DType::bf16 ? choose_head_dim<bf16, kPass>(p.head_dim, extras)
                                    : choose_head_dim<f16, kPass>(p.head_dim, extras);
}

constexpr int64_t kMostInt = 0x7fffffff;

// Parts of the gradient of a projection's bias, where each warp has so many rows.
int64_t bias_slots(int64_t num_jets, int64_t num_constituents, int rows_per_warp) {
    return num_jets + num_constituents / rows_per_warp + 1;
}

void check_rows(const AttentionRows& rows, DType dtype) {
    const int64_t size = dtype == DType::f32 ? 4 : 2;
    const int64_t bytes =
        reinterpret_cast<intptr_t>(rows.data) | rows.member * size | rows.row * size | rows.head * size;
    if (bytes % 16 != 0) throw std::invalid_argument("rows must begin at multiples of 16 bytes");
    if (std::abs(rows.row) > kMostInt) throw std::invalid_argument("rows are farther apart than a kernel can reach");
}

void check_bias(const AttentionParams& p) {
    if (p.projection_bias.values == nullptr) return;
    if (p.dtype == DType::f32 || p.threshold == 0 || p.masks == nullptr || p.bias != nullptr ||
        !attention_adds_projection_bias())
        throw std::invalid_argument("a projection's bias needs a 16-bit type, masks and compute capability 8.0");
    if ((reinterpret_cast<intptr_t>(p.projection_bias.values) | p.projection_bias.stride * 2) % 16 != 0)
        throw std::invalid_argument("the projection's biases must begin at multiples of 16 bytes");
}

// Those of query_gradients, then those of key_gradients, in the workspace.
template <int kPass>
float* bias_sums_of(const AttentionParams& p) {
    const int64_t slots = bias_slots(p.num_jets, p.num_constituents, kTile);
    return p.projection_bias.workspace +
           (kPass == kKeyGradients ? p.num_members * slots * p.num_heads * p.head_dim : 0);
}

template <int kPass>
void run(const AttentionParams& p, cudaStream_t stream) {
    if (p.num_constituents == 0 || p.num_heads == 0 || p.num_members == 0) return;
    const Choice choice = choose<kPass>(p);
    Arguments a{};
    a.p = p;
    a.plan = plan_at(p.plan, p.num_jets, p.num_constituents);
    a.statistics = static_cast<RowStatistics*>(p.workspace);
    a.score_scale = p.scale;
    a.keep_scale = 65536.0f / static_cast<float>(65536 - p.threshold);
    const bool shares_dbias = kPass == kQueryGradients && p.dbias != nullptr && p.bias_members == 1;
    a.members_per_warp = shares_dbias ? static_cast<int>(p.num_members) : 1;
    const int64_t warps = max_items(p.num_jets, p.num_constituents) * (kItemRows / kTile / choice.tiles) *
                          (p.num_members / a.members_per_warp) * p.num_heads;
    if (warps > kMostInt || p.num_constituents > kMostInt) throw std::invalid_argument("more work than a launch takes");
    a.num_work = static_cast<unsigned>(warps);
    a.rows_per_warp = kTile * choice.tiles;
    a.bias_slots = static_cast<int>(bias_slots(p.num_jets, p.num_constituents, a.rows_per_warp));
    a.bias_sums = kPass == kAttend || p.projection_bias.values == nullptr ? nullptr : bias_sums_of<kPass>(p);
    constexpr int kWarps = kThreads / kWarp;
    launch(dim3((a.num_work + kWarps - 1) / kWarps), dim3(kThreads), 0, stream, choice.kernel, a);
}

}  // namespace
}  // namespace kdfast::gpu
