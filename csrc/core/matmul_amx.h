// The products of matmul_bf16.h by AMX: C in tiles of 16 × 16 float32, A in tiles of 16 rows × 32 k straight from its
// rows, B in tiles of 16 words of k × 16 columns straight from its panels. Included by matmul_bf16.h.
//
// The tile unit and the vector units run side by side as far as instructions that wait fit into the CPU's window
// (about 500), so the epilogue of the block before comes in small pieces between the products.
#pragma once

#include "core/matmul_bf16.h"

namespace kdfast::KDFAST_ISA_NS {

// All eight tiles are 16 rows of 64 bytes: C in 0 1 / 2 3, A in 4 / 5, B in 6 7.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTileConfig;

// The tiles of this thread for one call. To configure them takes 180 cycles and to release them 13, less than one block
// of 32 × 32 at k = 128; kept longer, they'd be at the mercy of other libraries and be saved at each switch of threads.
struct Tiles {
    KDFAST_INLINE Tiles() { asm volatile("ldtilecfg %0" ::"m"(kTileConfig)); }
    KDFAST_INLINE ~Tiles() { _tile_release(); }
};

// 32 × 32 of C: where its operands begin, and its place.
struct Block {
    const bf16 *a, *b;
    int64_t row, column;
};

// Which operand is loaded past the first cache, so that the other stays there.
enum class Stream { none, a, b };

// A's tiles: rows `stride` elements apart, the lower tile `lower` further, that of the next step `step` further. In the
// last step they're those of `tail`, [32][32], if that is not null.
struct Left {
    int64_t stride, lower, step;
    const bf16* tail;
};

// Blocks of C one after the other, each in `steps` ≥ 1 products of tiles.
//   next(): the next Block. finish(row, column, v): takes a vector of C, row < num_rows, column < num_columns.
template <class Next, class Finish>
KDFAST_INLINE void multiply_blocks(int64_t blocks, int64_t steps, Left left, Stream stream, int64_t num_rows,
                                   int64_t num_columns, Next&& next, Finish&& finish) {
    alignas(64) float c[32 * 32];  // the block before
    const Tiles tiles;
    // At the first step that block's last products are still under way; where few steps follow, wait for them all the
    // same, or the epilogue would stand in the way of the products behind it.
    const int64_t first_step = steps == 4 ? 1 : 0;
    const int64_t rows_per_step = (32 + steps - first_step - 1) / (steps - first_step);
    Block before = {};
    for (int64_t block = 0; block <= blocks; ++block) {
        const bool computes = block < blocks, finishes = block > 0;
        const Block now = computes ? next() : Block{};
        const bf16 *a = now.a, *b = now.b;
        const int64_t rows = !finishes ? 0 : num_rows - before.row < 32 ? num_rows - before.row : 32;
        const bool wide = before.column + kLanes < num_columns;
        int64_t row = 0;
        for (int64_t step = 0; step < steps; ++step) {
            if (computes) {
                asm volatile("" ::: "memory");  // what follows reads memory, which gcc is not told
                const bool last = left.tail != nullptr && step == steps - 1;
                const bf16 *upper = last ? left.tail : a, *lower = last ? left.tail + 16 * 32 : a + left.lower;
                const int64_t stride = last ? 64 : 2 * left.stride;  // in bytes
                if (stream == Stream::b) {
                    _tile_stream_loadd(6, b, 128);
                    _tile_stream_loadd(7, b + 32, 128);
                } else {
                    _tile_loadd(6, b, 128);
                    _tile_loadd(7, b + 32, 128);
                }
                if (stream == Stream::a) {
                    _tile_stream_loadd(4, upper, stride);
                    _tile_stream_loadd(5, lower, stride);
                } else {
                    _tile_loadd(4, upper, stride);
                    _tile_loadd(5, lower, stride);
                }
                asm volatile("" ::: "memory");
                a += left.step, b += 32 * 32;
            }
            if (step > 0 && computes) {
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            } else if (step == 0) {  // stores one by one between the products: four in a row would stall the tile unit
                if (finishes) _tile_stored(0, c, 128);
                _tile_zero(0);
                if (computes) _tile_dpbf16ps(0, 4, 6);
                if (finishes) _tile_stored(1, c + 16, 128);
                _tile_zero(1);
                if (computes) _tile_dpbf16ps(1, 4, 7);
                if (finishes) _tile_stored(2, c + 16 * 32, 128);
                _tile_zero(2);
                if (computes) _tile_dpbf16ps(2, 5, 6);
                if (finishes) _tile_stored(3, c + 16 * 32 + 16, 128);
                _tile_zero(3);
                if (computes) _tile_dpbf16ps(3, 5, 7);
            }
            const int64_t end = step < first_step ? 0 : row + rows_per_step < rows ? row + rows_per_step : rows;
            for (; row < end; ++row) {
                finish(before.row + row, before.column, load(c + 32 * row));
                if (wide) finish(before.row + row, before.column + kLanes, load(c + 32 * row + kLanes));
            }
        }
        before = now;
    }
}

template <class Epilogue>
KDFAST_INLINE void matmul(const bf16* a, int64_t lda, int64_t rows, const bf16* packed, int64_t k, int64_t n,
                          Epilogue&& epilogue) {
    const int64_t steps = (k + 31) / 32, panels = (n + kPanel - 1) / kPanel, panel_size = steps * 32 * kPanel;
    // What stays in the first cache (48 KB): two panels of B with A going by, or 32 rows of A with B going by.
    const bool small = steps <= 4;
    const int64_t group = small && panels > 2 ? 2 : panels;
    alignas(64) bf16 tail[32 * 32];  // A's last 16 columns and zeros, where tiles would read beyond k
    const bool has_tail = k % 32 != 0;
    int64_t row = 0, panel = 0, first = 0, end = group;
    multiply_blocks(
        rows / 32 * panels, steps, Left{lda, 16 * lda, 32, has_tail ? tail : nullptr}, small ? Stream::none : Stream::b,
        rows, n,
        [&]() __attribute__((always_inline)) {
            if (panel == end) {
                panel = first, row += 32;
                if (row == rows) {
                    row = 0, first = panel = end;
                    end = end + group < panels ? end + group : panels;
                }
            }
            if (has_tail && panel == first)
                for (int64_t i = 0; i < 32; ++i) {
                    const bf16* from = a + (row + i) * lda + k - 16;
                    const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
                    _mm512_store_si512(tail + 32 * i, _mm512_zextsi256_si512(part));
                }
            const Block block = {a + row * lda, packed + panel * panel_size, row, panel * kPanel};
            ++panel;
            return block;
        },
        epilogue);
}

// 32 rows t of dy, 8 columns i, transposed: [8 i][32 t].
inline __attribute__((noinline)) void transpose_part(const bf16* dy, int64_t ld, bf16* to) {
    __m512i r[8], s[8];  // r[e]: in 128-bit lane q, row t = 8 q + e
    const bf16 *row0 = dy, *row1 = dy + 8 * ld, *row2 = dy + 16 * ld, *row3 = dy + 24 * ld;
#pragma GCC unroll 8
    for (int e = 0; e < 8; ++e, row0 += ld, row1 += ld, row2 += ld, row3 += ld) {
        const auto part = [](const bf16* row) __attribute__((always_inline)) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
        };
        r[e] = _mm512_castsi128_si512(part(row0));
        r[e] = _mm512_mask_broadcast_i32x4(r[e], 0x00F0, part(row1));
        r[e] = _mm512_mask_broadcast_i32x4(r[e], 0x0F00, part(row2));
        r[e] = _mm512_mask_broadcast_i32x4(r[e], 0xF000, part(row3));
    }
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {  // words of t; columns 0…3, 4…7
        s[m] = _mm512_unpacklo_epi16(r[2 * m], r[2 * m + 1]);
        s[m + 4] = _mm512_unpackhi_epi16(r[2 * m], r[2 * m + 1]);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 8; half += 4, to += 4 * 32) {  // 4 × 4 words in every lane
        const __m512i *x = s + half, a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
        const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
        _mm512_storeu_si512(to, _mm512_unpacklo_epi64(a, c));
        _mm512_storeu_si512(to + 32, _mm512_unpackhi_epi64(a, c));
        _mm512_storeu_si512(to + 64, _mm512_unpacklo_epi64(b, d));
        _mm512_storeu_si512(to + 96, _mm512_unpackhi_epi64(b, d));
    }
}

// One operand as tiles, and one block of the other.
KDFAST_INLINE int64_t outer_scratch_bf16(int64_t num_out, int64_t num_in, int64_t rows) {
    return rows * (round_up(num_out < num_in ? num_out : num_in, 32) + 32) / 2;
}

template <class Sink>
KDFAST_INLINE void outer(const bf16* dy, int64_t ldy, int64_t num_out, const bf16* x, int64_t ldx, int64_t num_in,
                         int64_t rows, float* scratch, Sink&& sink) {
    if (rows == 0) {
        for (int64_t i = 0; i < num_out; ++i)
            for (int64_t j = 0; j < num_in; j += kLanes) sink(i, j, Vec{});
        return;
    }
    const int64_t steps = rows / 32, size = rows * 32;
    const int64_t num_rows = (num_out + 31) / 32, num_columns = (num_in + 31) / 32;  // of blocks
    // 32 columns of dy turned, [steps][32 i][32 t], of x in words, [rows / 2][32 j][2].
    const auto turn = [=](int64_t row, bf16* to) __attribute__((always_inline)) {
        for (int64_t t = 0; t < rows; t += 32, to += 32 * 32)
            for (int64_t i = 0; i < 32 && 32 * row + i < num_out; i += 8)
                transpose_part(dy + t * ldy + 32 * row + i, ldy, to + 32 * i);
    };
    const auto interleave = [=](int64_t column, bf16* to) __attribute__((always_inline)) {
        for (int64_t t = 0; t < rows; t += 8)
            interleave_part(x + t * ldx + 32 * column, ldx, num_in - 32 * column, to + 32 * t);
    };
    // The narrower operand is made ready as a whole and gone through for each block of the wider one, which takes its
    // turn in one place that stays in the first cache: stores that miss it would cost more than they could overlap.
    const bool dy_wide = num_out >= num_in;
    const int64_t num_fast = dy_wide ? num_columns : num_rows;
    bf16 *const slow_block = reinterpret_cast<bf16*>(scratch), *const fast_blocks = slow_block + size;
    for (int64_t fast = 0; fast < num_fast; ++fast) {
        if (dy_wide)
            interleave(fast, fast_blocks + fast * size);
        else
            turn(fast, fast_blocks + fast * size);
    }
    int64_t slow = -1, fast = num_fast - 1;
    multiply_blocks(
        num_rows * num_columns, steps, Left{32, 16 * 32, 32 * 32, nullptr},
        steps <= 4 ? Stream::none : (dy_wide ? Stream::b : Stream::a), num_out, num_in,
        [&]() __attribute__((always_inline)) {
            if (++fast == num_fast) {
                fast = 0, ++slow;
                if (dy_wide)
                    turn(slow, slow_block);
                else
                    interleave(slow, slow_block);
            }
            const bf16* const fast_block = fast_blocks + fast * size;
            return dy_wide ? Block{slow_block, fast_block, 32 * slow, 32 * fast}
                           : Block{fast_block, slow_block, 32 * fast, 32 * slow};
        },
        sink);
}

}  // namespace kdfast::KDFAST_ISA_NS
