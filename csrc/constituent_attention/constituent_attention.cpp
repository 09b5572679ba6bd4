#include "constituent_attention/constituent_attention.h"

#include "constituent_attention/tiles.h"
#include "core/scratch.h"
#include "core/threads.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr int64_t kSlices = 64;  // tasks for the threads; each has its own jets, of all members

// One head's rows of one jet as float32: the memory itself, or a contiguous copy in `copy` for 16-bit types.
template <class T, int D>
KDFAST_INLINE const float* read_rows(const AttentionRows& rows, int64_t member, int64_t first, int64_t n, int64_t head,
                                     float* copy, int64_t& ld) {
    const T* from = static_cast<const T*>(rows.data) + member * rows.member + first * rows.row + head * rows.head;
    if constexpr (__is_same(T, float)) {
        ld = rows.row;
        return from;
    } else {
        ld = D;
        for (int64_t i = 0; i < n; ++i)
            for (int c = 0; c < D; ++c) copy[i * D + c] = to_float(from[i * rows.row + c]);
        return copy;
    }
}

// Where a head's result goes: the memory itself, or for 16-bit types `copy`, which write_rows brings there.
template <class T, int D>
KDFAST_INLINE float* result_rows(const AttentionRows& rows, int64_t member, int64_t first, int64_t head, float* copy,
                                 int64_t& ld) {
    ld = __is_same(T, float) ? rows.row : D;
    if constexpr (__is_same(T, float))
        return static_cast<T*>(rows.data) + member * rows.member + first * rows.row + head * rows.head;
    else
        return copy;
}

template <class T, int D>
KDFAST_INLINE void write_rows(const AttentionRows& rows, int64_t member, int64_t first, int64_t n, int64_t head,
                              const float* copy) {
    if constexpr (!__is_same(T, float)) {
        T* to = static_cast<T*>(rows.data) + member * rows.member + first * rows.row + head * rows.head;
        for (int64_t i = 0; i < n; ++i)
            for (int c = 0; c < D; ++c) to[i * rows.row + c] = from_float<T>(copy[i * D + c]);
    }
}

// All heads of the jets [begin, end) of one member. pairs: Σ n² of the jets before begin, of all jets.
template <class T, int D, bool kBackward>
void run_jets(const AttentionParams& p, int64_t member, int64_t begin, int64_t end, int64_t pairs, int64_t all_pairs,
              int64_t longest) {
    constexpr int64_t kRowBuffers = __is_same(T, float) ? 0 : 7;
    float* memory = scratch(2 * D * kLanes + longest * (3 * kLanes + kRowBuffers * D));
    const auto take = [&](int64_t floats) {
        float* taken = memory;
        memory += floats;
        return taken;
    };
    Head h{};
    h.q_t = take(D * kLanes);
    h.grad_t = take(D * kLanes);
    h.weights = take(longest * kLanes);
    h.grads = take(longest * kLanes);
    h.dropped = take(longest * kLanes);
    float* copies[7] = {};
    if constexpr (kRowBuffers > 0)
        for (auto& copy : copies) copy = take(longest * D);
    h.scale = p.scale;
    h.keep_scale = 65536.0f / static_cast<float>(65536 - p.threshold);
    h.seed = p.seed;
    h.threshold = p.threshold;
    h.ld_lse = p.num_heads;
    const int64_t bias_member = p.bias_members > 1 ? member : 0;
    h.add_dbias = p.bias_members == 1 && member > 0;
    for (int64_t jet = begin; jet < end; ++jet) {
        const int64_t first = p.offsets[jet], n = p.offsets[jet + 1] - first;
        h.n = n;
        h.jet = static_cast<uint32_t>(jet);
        for (int64_t head = 0; head < p.num_heads && n > 0; ++head) {
            h.head = static_cast<uint32_t>(head);
            h.lse = p.lse + (member * p.num_constituents + first) * p.num_heads + head;
            const int64_t at_bias = (bias_member * p.num_heads + head) * all_pairs + pairs;
            if (p.bias) h.bias = p.bias + at_bias;
            h.q = read_rows<T, D>(p.q, member, first, n, head, copies[0], h.ld_q);
            h.k = read_rows<T, D>(p.k, member, first, n, head, copies[1], h.ld_k);
            h.v = read_rows<T, D>(p.v, member, first, n, head, copies[2], h.ld_v);
            if constexpr (kBackward) {
                if (p.dbias) h.dbias = p.dbias + at_bias;
                h.grad_out = read_rows<T, D>(p.grad_out, member, first, n, head, copies[3], h.ld_grad_out);
                h.dq = result_rows<T, D>(p.dq, member, first, head, copies[4], h.ld_dq);
                h.dk = result_rows<T, D>(p.dk, member, first, head, copies[5], h.ld_dk);
                h.dv = result_rows<T, D>(p.dv, member, first, head, copies[6], h.ld_dv);
                run_head<D, true>(h);
                write_rows<T, D>(p.dq, member, first, n, head, copies[4]);
                write_rows<T, D>(p.dk, member, first, n, head, copies[5]);
                write_rows<T, D>(p.dv, member, first, n, head, copies[6]);
            } else {
                h.out = result_rows<T, D>(p.out, member, first, head, copies[4], h.ld_out);
                run_head<D, false>(h);
                write_rows<T, D>(p.out, member, first, n, head, copies[4]);
            }
        }
        pairs += n * n;
    }
}

template <class T, int D, bool kBackward>
void run(const AttentionParams& p) {
    int64_t longest = 0, all_pairs = 0;
    for (int64_t jet = 0; jet < p.num_jets; ++jet) {
        const int64_t n = p.offsets[jet + 1] - p.offsets[jet];
        longest = n > longest ? n : longest;
        all_pairs += n * n;
    }
    const int64_t slices = p.num_jets < kSlices ? p.num_jets : kSlices;
    // Waking a thread costs more than little work.
    const int threads = p.num_members * p.num_heads * all_pairs * D < 200000 ? 1 : p.num_threads;
    parallel_for(slices, threads, [&](int64_t slice) {
        const int64_t begin = p.num_jets * slice / slices, end = p.num_jets * (slice + 1) / slices;
        int64_t pairs = 0;
        for (int64_t jet = 0; p.bias && jet < begin; ++jet) {
            const int64_t n = p.offsets[jet + 1] - p.offsets[jet];
            pairs += n * n;
        }
        // Members in order: a bias that they share sums its gradient in that order, whatever the number of threads.
        for (int64_t member = 0; member < p.num_members; ++member)
            run_jets<T, D, kBackward>(p, member, begin, end, pairs, all_pairs, longest);
    });
}

template <class T, bool kBackward>
void choose_head_dim(const AttentionParams& p) {
    switch (p.head_dim) {
        case 8:
            return run<T, 8, kBackward>(p);
        case 16:
            return run<T, 16, kBackward>(p);
        case 24:
            return run<T, 24, kBackward>(p);
        case 32:
            return run<T, 32, kBackward>(p);
        case 64:
            return run<T, 64, kBackward>(p);
    }
}

template <bool kBackward>
void choose_dtype(const AttentionParams& p) {
    switch (p.dtype) {
        case DType::f32:
            return choose_head_dim<float, kBackward>(p);
        case DType::bf16:
            return choose_head_dim<bf16, kBackward>(p);
        case DType::f16:
            return choose_head_dim<f16, kBackward>(p);
    }
}

}  // namespace

void constituent_attention_forward(const AttentionParams& p) { choose_dtype<false>(p); }
void constituent_attention_backward(const AttentionParams& p) { choose_dtype<true>(p); }

}  // namespace kdfast::KDFAST_ISA_NS
