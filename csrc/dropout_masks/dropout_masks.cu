// The grid is (pieces, uses of dropout). A thread draws the byte of an octet, or a warp a tile of 16 × 16 pairs: one
// Philox call a lane either way.
#include "dropout_masks/dropout_masks_gpu.h"

#include <algorithm>
#include <stdexcept>

#include "constituent_attention/pair_masks.h"
#include "constituent_attention/work_items.h"
#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kOctet = 8;             // features that a call of Philox decides
constexpr int64_t kMostBlocks = 256;  // of a use; each then has several pieces of work
enum Of { kRows, kJets, kPairs };

// A byte for each row and octet of features; rows behind the last one get none.
__device__ __forceinline__ void draw_octets(const DropoutMasksParams& p, const MaskUse& use, uint64_t seed) {
    const unsigned octets = static_cast<unsigned>(use.columns + kOctet - 1) / kOctet;
    const int64_t count = use.of == kRows ? min(p.rows.count[0], p.rows.capacity) : p.num_jets;
    const unsigned rows = static_cast<unsigned>(count);
    for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < rows * octets; i += gridDim.x * kThreads) {
        const unsigned row = i / octets;
        const int64_t jet = use.of == kRows ? p.rows.jet[row] : row;
        const int64_t position = use.of == kRows ? p.rows.position[row] : 0;
        const Philox4 bits =
            philox4x32(seed, static_cast<uint32_t>(jet), 0, static_cast<uint32_t>(position), i % octets);
        p.masks[use.offset + i] = static_cast<uint8_t>(dropout_kept(bits, p.threshold));
    }
}

// A warp takes 32 queries of a jet, for one head.
__device__ __forceinline__ void draw_pairs(const DropoutMasksParams& p, const Plan& plan, const MaskUse& use,
                                           uint64_t seed) {
    const unsigned heads = static_cast<unsigned>(use.columns), count = static_cast<unsigned>(plan.num_items[0]) * heads;
    uint32_t* const masks = reinterpret_cast<uint32_t*>(p.masks + use.offset);
    for (unsigned w = blockIdx.x * kWarps + static_cast<unsigned>(warp_index()); w < count; w += gridDim.x * kWarps) {
        const auto item = load_readonly<WorkItem>(plan.items + w / heads);
        if (item.jet < 0) continue;
        const int head = static_cast<int>(w % heads);
        const int64_t tiles = tiles_of(item.n);
        uint32_t* words =
            masks + ((plan.tiles[item.jet] * heads + head * tiles * tiles) + item.row / kMaskTile * tiles) * kMaskWords;
        const int end = min(item.n, item.row + kItemRows);
        for (int query = item.row; query < end; query += kMaskTile)
            for (int key = 0; key < item.n; key += kMaskTile, words += kMaskWords) {
                const unsigned kept = draw_keys(seed, p.threshold, item.jet, head, query, key);
                const unsigned below = __shfl_down_sync(kFullMask, kept, kMaskWords);  // of query + lane + 8
                if (lane_index() < kMaskWords) words[lane_index()] = kept | below << kMaskTile;
            }
    }
}

__global__ void __launch_bounds__(kThreads) draw(const __grid_constant__ DropoutMasksParams p, const Plan plan) {
    const MaskUse use = p.uses[blockIdx.y];
    const uint64_t seed = static_cast<uint64_t>(p.seeds[blockIdx.y]);
    if (use.of == kPairs)
        draw_pairs(p, plan, use, seed);
    else
        draw_octets(p, use, seed);
}

}  // namespace

void dropout_masks(const DropoutMasksParams& p, void* stream) {
    if (p.num_uses < 1 || p.num_uses > kMaskUses) throw std::invalid_argument("a launch draws 1 to 32 masks");
    int64_t blocks = 1;
    for (int u = 0; u < p.num_uses; ++u) {
        const MaskUse& use = p.uses[u];
        const int64_t octets = (use.of == kJets ? p.num_jets : p.rows.capacity) * ((use.columns + kOctet - 1) / kOctet);
        const int64_t warps = max_items(p.num_jets, p.rows.capacity) * use.columns;
        const int64_t work = use.of == kPairs ? warps * kWarp : octets;
        if (work > 0x7fffffff) throw std::invalid_argument("more work than a launch takes");
        blocks = std::max(blocks, (work + kThreads - 1) / kThreads);
    }
    launch(dim3(static_cast<unsigned>(std::min(blocks, kMostBlocks)), static_cast<unsigned>(p.num_uses)),
           dim3(kThreads), 0, static_cast<cudaStream_t>(stream), draw, p, plan_at(p.plan, p.num_jets, p.rows.capacity));
}

}  // namespace kdfast::gpu
