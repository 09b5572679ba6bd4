// Work on rows of features: LayerNorm, GELU, dropout, sums over rows.
#pragma once

#include "core/matmul.h"
#include "core/matmul_bf16.h"
#include "core/normal.h"
#include "core/philox_lanes.h"
#include "core/simd.h"
#include "core/slices.h"
#include "core/threads.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

KDFAST_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }

KDFAST_INLINE float dot(const float* a, const float* b, int64_t n) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

// As in torch.nn.
constexpr float kLayerNormEps = 1e-5f, kBatchNormEps = 1e-5f, kBatchNormMomentum = 0.1f;

// Operands of products, E: float or bf16.
KDFAST_INLINE void put(float* to, Vec x) { store(to, x); }
KDFAST_INLINE void put(bf16* to, Vec x) { store_bf16(to, x); }
template <class E>
constexpr int64_t row_granule() {
    return __is_same(E, float) ? kRowGranule : kRowGranuleBf16;
}
template <class E>
KDFAST_INLINE int64_t packed_elements(int64_t k, int64_t n) {
    if constexpr (__is_same(E, float))
        return packed_size(k, n);
    else
        return packed_size_bf16(k, n);
}
template <class E>
KDFAST_INLINE int64_t outer_floats(int64_t num_out, int64_t num_in, int64_t rows) {
    if constexpr (__is_same(E, float))
        return outer_scratch(num_out);
    else
        return outer_scratch_bf16(num_out, num_in, rows);
}

// A row of `columns` elements in memory: an odd number of cache lines, as the products want it (core/matmul.h).
template <class E>
KDFAST_INLINE int64_t row_stride(int64_t columns) {
    constexpr int64_t kLine = 64 / sizeof(E);
    return ((columns + kLine - 1) / kLine | 1) * kLine;
}

// matmul and outer that ask for the epilogue's memory beforehand: for float before a tile's sums, for bf16, whose
// blocks of 32 × 32 take less time than memory does, 32 rows ahead.
template <class Epilogue, class Prefetch>
KDFAST_INLINE void product(const float* a, int64_t lda, int64_t rows, const float* packed, int64_t k, int64_t n,
                           Epilogue&& epilogue, Prefetch&& prefetch) {
    matmul(a, lda, rows, packed, k, n, epilogue, prefetch);
}
template <class Epilogue, class Prefetch>
KDFAST_INLINE void product(const bf16* a, int64_t lda, int64_t rows, const bf16* packed, int64_t k, int64_t n,
                           Epilogue&& epilogue, Prefetch&& prefetch) {
    matmul(a, lda, rows, packed, k, n, [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
        if (j % kPanel == 0) prefetch(i + 32, j);
        epilogue(i, j, y);
    });
}
template <class Sink, class Prefetch>
KDFAST_INLINE void weight_gradient(const float* dy, int64_t ldy, int64_t num_out, const float* x, int64_t ldx,
                                   int64_t num_in, int64_t rows, float* scratch, Sink&& sink, Prefetch&& prefetch) {
    outer(dy, ldy, num_out, x, ldx, num_in, rows, scratch, sink, prefetch);
}
template <class Sink, class Prefetch>
KDFAST_INLINE void weight_gradient(const bf16* dy, int64_t ldy, int64_t num_out, const bf16* x, int64_t ldx,
                                   int64_t num_in, int64_t rows, float* scratch, Sink&& sink, Prefetch&& prefetch) {
    outer(dy, ldy, num_out, x, ldx, num_in, rows, scratch,
          [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
              if (j % kPanel == 0) prefetch(i + 32, j);
              sink(i, j, y);
          });
}

// Asks for kPanel values of a row.
template <class E>
KDFAST_INLINE void fetch(const E* p, int for_write) {
    for (size_t byte = 0; byte < kPanel * sizeof(E); byte += 64)
        for_write ? __builtin_prefetch(reinterpret_cast<const char*>(p) + byte, 1)
                  : __builtin_prefetch(reinterpret_cast<const char*>(p) + byte, 0);
}

// Decisions of dropout as bits: bit f % 8 of bits[row · stride + f / 8] is set where feature f is kept. Without
// dropout one row of ones, with stride 0, serves all rows.
struct Keep {
    uint8_t* bits;
    int64_t stride;
    float scale;

    // Row 0 of what it returns is `row` of this.
    KDFAST_INLINE Keep from(int64_t row) const { return {bits + row * stride, stride, scale}; }
};

// Of a row of so many decisions.
KDFAST_INLINE int64_t bytes_of_bits(int64_t decisions) { return (decisions + 7) / 8; }

// x · scale where kept, else 0, for the features from column on.
KDFAST_INLINE Vec apply(const Keep& keep, int64_t row, int64_t column, Vec x) {
    const uint8_t* at = keep.bits + row * keep.stride + column / 8;
    x *= keep.scale;
#if defined(__AVX512F__)
    uint16_t mask;
    std::memcpy(&mask, at, sizeof mask);
    return (Vec)_mm512_maskz_mov_ps(mask, (__m512)x);
#else
    IVec bit;
    for (int i = 0; i < kLanes; ++i) bit[i] = 1 << i;
    const int32_t byte = kLanes == 8 ? *at : *at >> (column % 8);
    return select(((IVec{} + byte) & bit) != 0, x, Vec{});
#endif
}

// One byte of decisions from each eight of 16 bits.
KDFAST_INLINE void pack_bits(const uint16_t* bits, int counters, uint32_t threshold, uint8_t* out) {
#if defined(__AVX512BW__)
    const __m512i least = _mm512_set1_epi16(static_cast<short>(threshold));
    for (int i = 0; i < counters; i += 4) {
        const uint32_t mask = _mm512_cmpge_epu16_mask(_mm512_loadu_si512(bits + 8 * i), least);
        std::memcpy(out + i, &mask, sizeof mask);
    }
#elif defined(__SSE2__)
    const __m128i least = _mm_set1_epi16(static_cast<short>(threshold));
    for (int i = 0; i < counters; ++i) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bits + 8 * i));
        const __m128i kept = _mm_cmpeq_epi16(_mm_subs_epu16(least, x), _mm_setzero_si128());
        out[i] = static_cast<uint8_t>(_mm_movemask_epi8(_mm_packs_epi16(kept, kept)));
    }
#else
    for (int i = 0; i < counters; ++i) {
        int byte = 0;
        for (int e = 0; e < 8; ++e) byte |= (bits[8 * i + e] >= threshold) << e;
        out[i] = static_cast<uint8_t>(byte);
    }
#endif
}

// Decisions for `rows` rows of `groups` groups of eight features, at the counters (jet, 0, row, group), or, where each
// row is a jet, (jet + row, 0, 0, group). Nothing beyond the last is written: other threads' rows may stand there.
KDFAST_INLINE void draw_bits(uint64_t seed, uint32_t threshold, int64_t jet, int64_t rows, int64_t groups,
                             bool row_is_jet, uint8_t* out) {
    // t / groups by a multiplication, exact for t < 2^32 / groups.
    const WVec reciprocal = WVec{} + ((uint64_t{1} << 32) + groups - 1) / groups, lane = lane_numbers();
    const WVec number = WVec{} + static_cast<uint64_t>(jet), count = WVec{} + static_cast<uint64_t>(groups);
    alignas(64) uint16_t bits[8 * kPhiloxLanes < 32 ? 32 : 8 * kPhiloxLanes];
    for (int64_t t = 0; t < rows * groups; t += kPhiloxLanes) {
        const WVec at = lane + static_cast<uint64_t>(t);
        const WVec row = groups == 1 ? at : multiply_low32(at, reciprocal) >> 32;
        const WVec group = at - multiply_low32(row, count);
        if (row_is_jet)
            philox_bits16(seed, row + number, WVec{}, WVec{}, group, bits);
        else
            philox_bits16(seed, number, WVec{}, row, group, bits);
        if (t + kPhiloxLanes <= rows * groups) {
            pack_bits(bits, kPhiloxLanes, threshold, out + t);
        } else {
            uint8_t last[kPhiloxLanes < 4 ? 4 : kPhiloxLanes];
            pack_bits(bits, kPhiloxLanes, threshold, last);
            std::memcpy(out + t, last, static_cast<size_t>(rows * groups - t));
        }
    }
}

// y = (x − mean) / √(variance + ε) of each row, inverses[row] = 1 / √(variance + ε); the affine part is the caller's.
template <class E>
KDFAST_INLINE void normalise_rows(const float* x, int64_t ldx, int64_t rows, int64_t columns, E* y, int64_t ldy,
                                  float* inverses) {
    const float share = 1.0f / static_cast<float>(columns);
    for (int64_t row = 0; row < rows; ++row, x += ldx, y += ldy) {
        Vec sum = {};
        for (int64_t c = 0; c < columns; c += kLanes) sum += load(x + c);
        const Vec mean = broadcast(reduce_add(sum) * share);
        Vec squares = {};
        for (int64_t c = 0; c < columns; c += kLanes) {
            const Vec d = load(x + c) - mean;
            squares += d * d;
        }
        const float inverse = 1.0f / sqrt(reduce_add(squares) * share + kLayerNormEps);
        inverses[row] = inverse;
        for (int64_t c = 0; c < columns; c += kLanes) put(y + c, (load(x + c) - mean) * inverse);
    }
}

// dx += (dy − mean(dy) − y · mean(dy · y)) / deviation, for y of normalise_rows.
template <class E>
KDFAST_INLINE void back_normalise_rows(const float* dy, int64_t lddy, const E* y, int64_t ldy, const float* inverses,
                                       int64_t rows, int64_t columns, float* dx, int64_t lddx) {
    const float share = 1.0f / static_cast<float>(columns);
    for (int64_t row = 0; row < rows; ++row, dy += lddy, y += ldy, dx += lddx) {
        Vec sum = {}, along = {};
        for (int64_t c = 0; c < columns; c += kLanes) {
            const Vec g = load(dy + c);
            sum += g;
            along += g * load(y + c);
        }
        const Vec mean = broadcast(reduce_add(sum) * share), slope = broadcast(reduce_add(along) * share);
        const float inverse = inverses[row];
        for (int64_t c = 0; c < columns; c += kLanes)
            store(dx + c, load(dx + c) + (load(dy + c) - mean - load(y + c) * slope) * inverse);
    }
}

// sink(column, Σ over rows of x) for each vector of columns.
template <class E, class Sink>
KDFAST_INLINE void sum_rows(const E* x, int64_t ldx, int64_t rows, int64_t columns, Sink&& sink) {
    for (int64_t c = 0; c < columns; c += kLanes) {
        Vec sums[2] = {};
        int64_t row = 0;
        for (; row + 2 <= rows; row += 2) {
            sums[0] += load(x + row * ldx + c);
            sums[1] += load(x + (row + 1) * ldx + c);
        }
        if (row < rows) sums[0] += load(x + row * ldx + c);
        sink(c, sums[0] + sums[1]);
    }
}

// Where a slice's gradient sums go. A group's slices add to `group`; its last one, where one thread takes all groups,
// to `total`: Σ over groups of (Σ over the group's slices), in order, whichever way they are computed.
struct Sums {
    float* group;
    float* total;  // null: the group's sum stays in `group`
    bool first, last;

    KDFAST_INLINE void prefetch(int64_t at) const {
        for (int line = 0; line < kPanel; line += 16) {
            __builtin_prefetch(group + at + line, 1);
            if (last && total) __builtin_prefetch(total + at + line, 1);
        }
    }
    KDFAST_INLINE void add(int64_t at, Vec x) const {
        if (!first) x = load(group + at) + x;
        if (last && total)
            store(total + at, load(total + at) + x);
        else
            store(group + at, x);
    }
};

// total [num_sums] += the sums [kGroups, num_sums] of the groups that have jets, in order.
KDFAST_INLINE void add_groups(const Slicing& slicing, const float* group_sums, int64_t num_sums, int num_threads,
                              float* total) {
    constexpr int64_t kChunk = 8192;
    parallel_for((num_sums + kChunk - 1) / kChunk, num_threads, [&](int64_t chunk) {
        const int64_t begin = chunk * kChunk, end = begin + kChunk < num_sums ? begin + kChunk : num_sums;
        for (int64_t group = 0; group < kGroups; ++group) {
            if (slicing.group_begin[group] == slicing.group_begin[group + 1]) continue;
            const float* const from = group_sums + group * num_sums;
            for (int64_t at = begin; at < end; at += kLanes) store(total + at, load(total + at) + load(from + at));
        }
    });
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
