// Dropout's decisions about a jet's n × n attention weights, as bits, in the order in which warps take tiles of 16
// queries and 16 keys (fragments.h): jet by jet, head by head, the tiles of 16 queries along the keys, then the next:
//
//     tile [8 words]    word r: bit j is key j for query r, bit 16 + j is key j for query r + 8; 1: kept
//
// Lane 4 g + c of a warp whose rows are queries finds its eight decisions in word g; one whose rows are keys finds them
// in words 2 c and 2 c + 1, which are one access.
#pragma once

#include <cstdint>

#include "core/gpu.h"
#include "core/philox.h"

namespace kdfast::gpu {
namespace {

constexpr int kMaskTile = 16, kMaskWords = 8;  // rows of a tile, and its words

__device__ __forceinline__ int64_t tiles_of(int n) { return (n + kMaskTile - 1) / kMaskTile; }

// Which weights of the tile of 16 queries and 16 keys from (query, key) on dropout keeps: bit j of the lane's number is
// key `key` + j, for query `query` + lane % 16. One Philox call a lane: lanes 0 … 15 the first eight keys.
__device__ __forceinline__ unsigned draw_keys(uint64_t seed, uint32_t threshold, int jet, int head, int query,
                                              int key) {
    const int lane = lane_index();
    const Philox4 bits =
        philox4x32(seed, static_cast<uint32_t>(jet), static_cast<uint32_t>(head),
                   static_cast<uint32_t>(query + lane % 16), static_cast<uint32_t>(key / 8 + lane / 16));
    const unsigned kept = dropout_kept(bits, threshold);
    const unsigned other = __shfl_xor_sync(kFullMask, kept, 16);
    return lane < 16 ? kept | other << 8 : other | kept << 8;
}

}  // namespace
}  // namespace kdfast::gpu
