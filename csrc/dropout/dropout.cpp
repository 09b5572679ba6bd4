#include "dropout/dropout.h"

#include "core/philox_lanes.h"
#include "core/simd.h"
#include "core/threads.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr int kChunk = 256;  // groups of eight features whose bits are made at a time: 4 KB, which stay in L1

template <class T>
KDFAST_INLINE void apply(const uint16_t* bits, int64_t count, uint32_t threshold, float scale, const T* x, T* y) {
    for (int64_t e = 0; e < count; ++e) y[e] = from_float<T>(bits[e] >= threshold ? to_float(x[e]) * scale : 0.0f);
}

// Rows [first, first + rows) of one jet (kOneRowEach false: counter (jet, 0, row, group)), or of as many jets
// (true: counter (jet + row, 0, 0, group)).
template <class T, bool kOneRowEach>
void drop_rows(const DropoutParams& p, int64_t jet, int64_t first, int64_t rows) {
    const int64_t features = p.num_features, groups = (features + 7) / 8;
    const float scale = 65536.0f / static_cast<float>(65536 - p.threshold);
    const T* x = static_cast<const T*>(p.x) + first * features;
    T* y = static_cast<T*>(p.y) + first * features;
    // t / groups by a multiplication, exact for t · groups < 2^32: here t < groups + kChunk and groups < 2^15.
    const WVec reciprocal = WVec{} + ((uint64_t{1} << 32) + groups - 1) / groups, lane = lane_numbers();
    alignas(64) uint16_t bits[8 * kChunk];
    for (int64_t base = 0; base < rows * groups; base += kChunk) {
        const int64_t row = base / groups, group = base % groups;
        const int count = static_cast<int>(rows * groups - base < kChunk ? rows * groups - base : kChunk);
        for (int i = 0; i < count; i += kPhiloxLanes) {
            const WVec t = lane + static_cast<uint64_t>(group + i);
            const WVec quotient = groups == 1 ? t : multiply_low32(t, reciprocal) >> 32;
            const WVec c_row = quotient + static_cast<uint64_t>(row),
                       c_group = t - multiply_low32(quotient, WVec{} + groups);
            if constexpr (kOneRowEach)
                philox_bits16(p.seed, c_row + static_cast<uint64_t>(jet), WVec{}, WVec{}, c_group, bits + 8 * i);
            else
                philox_bits16(p.seed, WVec{} + static_cast<uint64_t>(jet), WVec{}, c_row, c_group, bits + 8 * i);
        }
        if (features % 8 == 0) {
            apply(bits, 8 * count, p.threshold, scale, x + 8 * base, y + 8 * base);
            continue;
        }
        int64_t at = row * features, feature = 8 * group;
        for (int i = 0; i < count; ++i) {  // the last group of a row is not full
            const int64_t left = features - feature < 8 ? features - feature : 8;
            apply(bits + 8 * i, left, p.threshold, scale, x + at + feature, y + at + feature);
            feature += 8;
            if (feature >= features) {
                feature = 0;
                at += features;
            }
        }
    }
}

template <class T>
void run(const DropoutParams& p) {
    const int64_t rows = p.offsets ? p.offsets[p.num_jets] : p.num_jets;
    const int threads = rows * p.num_features < 32768 ? 1 : p.num_threads;  // waking a thread costs more than so few
    const int64_t slices = threads > 1 ? 16 : 1;
    parallel_for(slices, threads, [&](int64_t slice) {
        const int64_t begin = p.num_jets * slice / slices, end = p.num_jets * (slice + 1) / slices;
        if (p.offsets == nullptr) return drop_rows<T, true>(p, begin, begin, end - begin);
        for (int64_t jet = begin; jet < end; ++jet)
            drop_rows<T, false>(p, jet, p.offsets[jet], p.offsets[jet + 1] - p.offsets[jet]);
    });
}

}  // namespace

void dropout(const DropoutParams& p) {
    switch (p.dtype) {
        case DType::f32:
            return run<float>(p);
        case DType::bf16:
            return run<bf16>(p);
        case DType::f16:
            return run<f16>(p);
    }
}

}  // namespace kdfast::KDFAST_ISA_NS
