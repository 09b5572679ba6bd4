#include "constituent_attention/constituent_attention.h"

#include "constituent_attention/jet_attention.h"
#include "constituent_attention/tiles.h"
#include "core/scratch.h"
#include "core/threads.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr int64_t kSlices = 64;  // tasks for the threads; each has its own jets, of all members
// From so many floats on, results do not stay in the cache until they are read.
constexpr int64_t kPastCache = 1 << 19;

// Rows of a buffer: a tile may read up to 15 past its end. Even, so that buffers begin at multiples of 64 bytes.
constexpr int64_t buffer_rows(int64_t n) { return (n + 16) / 2 * 2; }

int64_t scratch_floats(int64_t n, int64_t head_dim) {
    return buffer_rows(n) * (7 * head_dim + 3 * kWidth) + 4 * head_dim * kWidth;
}

// A head's rows as float32, [n][D], and the last one again until there are padded_keys(n).
template <class T, int D>
void pack(const HeadRows& from, int64_t n, int64_t head, float* to) {
    const T* row = static_cast<const T*>(from.data) + head * from.head;
    for (int64_t i = 0; i < n; ++i, row += from.row, to += D)
        for (int c = 0; c < D; ++c) to[c] = to_float(row[c]);
    for (int64_t i = n; i < padded_keys(n); ++i, to += D)
        for (int c = 0; c < D; ++c) to[c] = to[c - D];
}

// Where a head's result goes: the memory itself, or for 16-bit types `copy`, which unpack brings there.
template <class T, int D>
float* result(const HeadRows& rows, int64_t head, float* copy, int64_t& ld) {
    ld = __is_same(T, float) ? rows.row : D;
    return __is_same(T, float) ? static_cast<float*>(rows.data) + head * rows.head : copy;
}

template <class T, int D>
void unpack(const float* from, int64_t n, int64_t head, const HeadRows& to) {
    if constexpr (!__is_same(T, float)) {
        T* row = static_cast<T*>(to.data) + head * to.head;
        for (int64_t i = 0; i < n; ++i, row += to.row, from += D)
            for (int c = 0; c < D; ++c) row[c] = from_float<T>(from[c]);
    }
}

// The rows that follow a jet's own, of every input whose rows lie close together.
template <class T, int D, bool kBackward>
Ahead rows_ahead(const JetAttention& jet) {
    Ahead ahead{};
    const int64_t width = jet.num_heads * D;
    const auto add = [&](const HeadRows& rows, int64_t row) {
        const char* data = static_cast<const char*>(rows.data);
        if (jet.prefetch == 0 || rows.head != D || rows.row != row) return;
        ahead.at[ahead.ranges] = data + jet.n * row * sizeof(T);
        ahead.end[ahead.ranges++] = data + (jet.n + jet.prefetch) * row * sizeof(T);
    };
    if (jet.q.row == 3 * width) {  // slices of one projection
        add(jet.q, 3 * width);
    } else {
        add(jet.q, width);
        add(jet.k, width);
        add(jet.v, width);
    }
    if (kBackward) add(jet.grad_out, width);
    return ahead;
}

// Whether rows of whole cache lines can be written past the caches.
template <class T, int D>
bool streams(const HeadRows& rows) {
    return __is_same(T, float) && D % 16 == 0 &&
           ((reinterpret_cast<uintptr_t>(rows.data) | rows.row * 4 | rows.head * 4) & 63) == 0;
}

template <class T, int D, bool kBackward>
void run_jet(const JetAttention& jet) {
    const int64_t n = jet.n, rows = buffer_rows(n);
    float* memory = jet.scratch;
    const auto take = [&](int64_t floats) {
        float* taken = memory;
        memory += floats;
        return taken;
    };
    float *const q = take(rows * D), *const k = take(rows * D), *const v = take(rows * D);
    float* const grad_out = take(rows * D);
    float* const copies[3] = {take(rows * D), take(rows * D), take(rows * D)};
    Ahead ahead = rows_ahead<T, D, kBackward>(jet);
    Head h{};
    h.ahead = &ahead;
    h.n = n;
    h.q = q;
    h.k = k;
    h.v = v;
    h.grad_out = grad_out;
    h.dk_sum = copies[1];
    h.dv_sum = copies[2];
    h.q_t = take(D * kWidth);
    h.grad_t = take(D * kWidth);
    h.q_rows = take(D * kWidth);
    h.grad_rows = take(D * kWidth);
    h.weights = take(rows * kWidth);
    h.grads = take(rows * kWidth);
    h.dropped = take(rows * kWidth);
    h.ld_lse = jet.num_heads;
    h.add_dbias = jet.add_dbias;
    h.scale = jet.scale;
    h.keep_scale = 65536.0f / static_cast<float>(65536 - jet.threshold);
    h.seed = jet.seed;
    h.threshold = jet.threshold;
    h.jet = jet.jet;
    h.stream = jet.past_cache && (kBackward ? streams<T, D>(jet.dq) && streams<T, D>(jet.dk) && streams<T, D>(jet.dv)
                                            : streams<T, D>(jet.out));
    for (int64_t head = 0; head < jet.num_heads && n > 0; ++head) {
        h.head = static_cast<uint32_t>(head);
        h.lse = jet.lse + head;
        if (jet.bias) h.bias = jet.bias + head * jet.bias_head;
        pack<T, D>(jet.q, n, head, q);
        pack<T, D>(jet.k, n, head, k);
        pack<T, D>(jet.v, n, head, v);
        if constexpr (kBackward) {
            if (jet.dbias) h.dbias = jet.dbias + head * jet.bias_head;
            pack<T, D>(jet.grad_out, n, head, grad_out);
            h.dq = result<T, D>(jet.dq, head, copies[0], h.ld_dq);
            h.dk = result<T, D>(jet.dk, head, copies[1], h.ld_dk);
            h.dv = result<T, D>(jet.dv, head, copies[2], h.ld_dv);
            run_head<D, true>(h);
            unpack<T, D>(copies[0], n, head, jet.dq);
            unpack<T, D>(copies[1], n, head, jet.dk);
            unpack<T, D>(copies[2], n, head, jet.dv);
        } else {
            h.out = result<T, D>(jet.out, head, copies[0], h.ld_out);
            run_head<D, false>(h);
            unpack<T, D>(copies[0], n, head, jet.out);
        }
    }
}

template <class T, bool kBackward>
void choose_head_dim(const JetAttention& jet) {
    switch (jet.head_dim) {
        case 8:
            return run_jet<T, 8, kBackward>(jet);
        case 16:
            return run_jet<T, 16, kBackward>(jet);
        case 24:
            return run_jet<T, 24, kBackward>(jet);
        case 32:
            return run_jet<T, 32, kBackward>(jet);
        case 64:
            return run_jet<T, 64, kBackward>(jet);
    }
}

template <bool kBackward>
void choose_dtype(const JetAttention& jet) {
    switch (jet.dtype) {
        case DType::f32:
            return choose_head_dim<float, kBackward>(jet);
        case DType::bf16:
            return choose_head_dim<bf16, kBackward>(jet);
        case DType::f16:
            return choose_head_dim<f16, kBackward>(jet);
    }
}

HeadRows rows_at(const AttentionRows& rows, int64_t member, int64_t first, DType dtype) {
    const int64_t size = dtype == DType::f32 ? 4 : 2;
    return {static_cast<char*>(rows.data) + (member * rows.member + first * rows.row) * size, rows.row, rows.head};
}

// The jets [begin, end) of one member. pairs: Σ n² of the jets before begin, of all jets.
template <bool kBackward>
void run_jets(const AttentionParams& p, int64_t member, int64_t begin, int64_t end, int64_t pairs, int64_t all_pairs,
              float* memory) {
    JetAttention jet{};
    jet.num_heads = p.num_heads;
    jet.head_dim = p.head_dim;
    jet.dtype = p.dtype;
    jet.bias_head = all_pairs;
    jet.add_dbias = p.bias_members == 1 && member > 0;
    jet.scale = p.scale;
    jet.seed = p.seed;
    jet.threshold = p.threshold;
    jet.scratch = memory;
    jet.past_cache = p.num_members * p.num_constituents * p.num_heads * p.head_dim > kPastCache;
    for (int64_t b = begin; b < end; ++b) {
        const int64_t first = p.offsets[b];
        jet.n = p.offsets[b + 1] - first;
        jet.jet = static_cast<uint32_t>(b);
        jet.prefetch = b + 1 < end ? p.offsets[b + 2] - p.offsets[b + 1] : 0;
        jet.q = rows_at(p.q, member, first, p.dtype);
        jet.k = rows_at(p.k, member, first, p.dtype);
        jet.v = rows_at(p.v, member, first, p.dtype);
        jet.lse = p.lse + (member * p.num_constituents + first) * p.num_heads;
        const int64_t at_bias = (p.bias_members > 1 ? member : 0) * p.num_heads * all_pairs + pairs;
        if (p.bias) jet.bias = p.bias + at_bias;
        if constexpr (kBackward) {
            if (p.dbias) jet.dbias = p.dbias + at_bias;
            jet.grad_out = rows_at(p.grad_out, member, first, p.dtype);
            jet.dq = rows_at(p.dq, member, first, p.dtype);
            jet.dk = rows_at(p.dk, member, first, p.dtype);
            jet.dv = rows_at(p.dv, member, first, p.dtype);
        } else {
            jet.out = rows_at(p.out, member, first, p.dtype);
        }
        choose_dtype<kBackward>(jet);
        pairs += jet.n * jet.n;
    }
}

template <bool kBackward>
void run(const AttentionParams& p) {
    int64_t longest = 0, all_pairs = 0;
    for (int64_t jet = 0; jet < p.num_jets; ++jet) {
        const int64_t n = p.offsets[jet + 1] - p.offsets[jet];
        longest = n > longest ? n : longest;
        all_pairs += n * n;
    }
    const int64_t slices = p.num_jets < kSlices ? p.num_jets : kSlices;
    // Waking a thread costs more than little work.
    const int threads = p.num_members * p.num_heads * all_pairs * p.head_dim < 200000 ? 1 : p.num_threads;
    parallel_for(slices, threads, [&](int64_t slice) {
        const int64_t begin = p.num_jets * slice / slices, end = p.num_jets * (slice + 1) / slices;
        int64_t pairs = 0;
        for (int64_t jet = 0; p.bias && jet < begin; ++jet) {
            const int64_t n = p.offsets[jet + 1] - p.offsets[jet];
            pairs += n * n;
        }
        float* const memory = scratch(static_cast<size_t>(scratch_floats(longest, p.head_dim)));
        if (memory == nullptr) {
            __atomic_store_n(p.no_memory, true, __ATOMIC_RELAXED);
            return;
        }
        // Members in order: a bias that they share sums its gradient in that order, whatever the number of threads.
        for (int64_t member = 0; member < p.num_members; ++member)
            run_jets<kBackward>(p, member, begin, end, pairs, all_pairs, memory);
    });
}

}  // namespace

void jet_attention_scratch(const JetScratch& p) { *p.floats = scratch_floats(p.n, p.head_dim); }
void attention_forward_jet(const JetAttention& jet) { choose_dtype<false>(jet); }
void attention_backward_jet(const JetAttention& jet) { choose_dtype<true>(jet); }

void constituent_attention_forward(const AttentionParams& p) { run<false>(p); }
void constituent_attention_backward(const AttentionParams& p) { run<true>(p); }

}  // namespace kdfast::KDFAST_ISA_NS
