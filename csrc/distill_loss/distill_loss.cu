// The loss of K members and its gradient in one pass over the logits. Two launches, three for many weighted jets:
//
//   sum_weights   (many jets only) Σw of each slice of the weights
//   prepare       one block: Σw, every member's constants, the counters of finished blocks
//   loss kernel   grid = members × chunks of jets, members fastest, so that the teacher's chunk is read from the
//   second-level
//                 cache by all but one of them. Which kernel: two_classes for C ≤ 2 (16-byte accesses, several jets a
//                 thread), row_per_thread for C ≤ 16 (rows pass through shared memory, so that global accesses stay
//                 whole lines), lanes_per_row above (2 to 32 lanes, several rows a warp).
//
// A block leaves its sums in the workspace; the last block of a member to finish adds them up in the order of the
// chunks, in float64. So a result has the same bits on every run, whatever the order of blocks, and depends on no other
// member.
#include <stdexcept>
#include <type_traits>

#include "core/gpu.h"
#include "distill_loss/distill_loss_gpu.h"
#include "distill_loss/row_loss.h"

namespace kdfast::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kAccesses = 2;      // of 16 bytes, that a thread of two_classes has under way for each tensor
constexpr int kRowsPerGroup = 4;  // rows that a group of lanes takes in turn
constexpr int kPrepareThreads = 1024;
constexpr int64_t kWeightSlice = 16384;  // up to so many weights are summed by prepare itself

struct Sums {
    double kl, ce;
};

struct Arguments {
    DistillLossParams p;
    int64_t num_chunks, num_weight_slices;  // weight slices: 0 where prepare sums by itself
    bool wide;  // every tensor, and each member's part of it, begins at a multiple of 16 bytes
    // workspace
    Member* members;         // [K]
    Sums* sums;              // [K, num_chunks]
    double* weight_sums;     // [num_weight_slices]
    unsigned* num_finished;  // [K]
};

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }

// ---- Σw and members -------------------------------------------------------------------------------------------------

// The thread's share of Σ w[begin … end); NaN where a weight is negative or not finite.
__device__ __forceinline__ double sum_of_weights(const float* weights, int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t i = begin + thread_index(); i < end; i += kPrepareThreads) {
        const float w = weights[i];
        sum += w >= 0.0f && w < INFINITY ? static_cast<double>(w) : static_cast<double>(NAN);
    }
    return sum;
}

__global__ void __launch_bounds__(kPrepareThreads) sum_weights(const __grid_constant__ Arguments a) {
    const int64_t begin = blockIdx.x * kWeightSlice;
    const double sum =
        block_sum<kPrepareThreads>(sum_of_weights(a.p.weights, begin, min(begin + kWeightSlice, a.p.num_jets)));
    if (thread_index() == 0) a.weight_sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kPrepareThreads) prepare(const __grid_constant__ Arguments a) {
    const DistillLossParams& p = a.p;
    KDFAST_SHARED(double, weight_sum, 1);
    KDFAST_SHARED(int, invalid, 1);
    double sum = 0.0;
    if (p.weights != nullptr && a.num_weight_slices == 0)
        sum = sum_of_weights(p.weights, 0, p.num_jets);
    else if (p.weights != nullptr)
        for (int64_t i = thread_index(); i < a.num_weight_slices; i += kPrepareThreads) sum += a.weight_sums[i];
    sum = block_sum<kPrepareThreads>(sum);
    if (thread_index() == 0) {
        if (p.weights == nullptr) sum = static_cast<double>(p.num_jets);
        const bool good = sum > 0x1p-100 && sum < 0x1p100;  // so that 1 / Σw is a float32
        weight_sum[0] = good ? sum : static_cast<double>(NAN);
        invalid[0] = !good;
    }
    __syncthreads();
    const double total = weight_sum[0];
    for (int64_t k = thread_index(); k < p.num_members; k += kPrepareThreads) {
        const double alpha = p.alpha[k];
        double T = p.temperature[k];
        const bool good = T > 0.0 && T < static_cast<double>(INFINITY) && alpha >= 0.0 && alpha <= 1.0 &&
                          (p.teacher != nullptr || alpha == 0.0);
        if (!good) {
            T = static_cast<double>(NAN);
            atomicOr(invalid, 1);
        }
        const double reciprocal = 1.0 / T;
        Member m;
        m.reciprocal = static_cast<float>(reciprocal);
        m.reciprocal_rest = static_cast<float>(reciprocal - m.reciprocal);
        m.kd_scale = static_cast<float>(alpha * T / total);
        m.ce_scale = static_cast<float>(good ? (1.0 - alpha) / total : T);
        m.kd_mean = T * T / total;
        m.ce_mean = 1.0 / total;
        m.alpha = alpha;
        a.members[k] = m;
        a.num_finished[k] = 0u;
    }
    __syncthreads();
    if (thread_index() == 0) p.invalid[0] = invalid[0];
}

// ---- what the loss kernels share ------------------------------------------------------------------------------------

// Which member and which chunk of jets a block has.
struct Place {
    int64_t member, chunk;
};
__device__ __forceinline__ Place place(const Arguments& a) {
    const unsigned members = static_cast<unsigned>(a.p.num_members);
    return {static_cast<int64_t>(blockIdx.x % members), static_cast<int64_t>(blockIdx.x / members)};
}

__device__ __forceinline__ Scales scales_of(const Arguments& a, int64_t member) {
    return load_readonly<Scales>(&a.members[member].reciprocal);
}

// Whether the member looks at the teacher (α > 0; NaN where its constants can't be).
__device__ __forceinline__ bool distils(const Arguments& a, const Scales& m) {
    return a.p.teacher != nullptr && m.kd_scale != 0.0f;
}

// The label of a jet of C ≥ 3 classes, and its weight: NaN for a label that can't be, 0 for a jet that there is not.
struct LabelAndWeight {
    int label;
    float weight;
    bool bad;
};
__device__ __forceinline__ LabelAndWeight label_and_weight(const Arguments& a, int64_t jet) {
    if (jet >= a.p.num_jets) return {0, 0.0f, false};
    const int64_t label = static_cast<const int64_t*>(a.p.labels)[jet];
    const bool bad = label < 0 || label >= a.p.num_classes;
    const float weight = a.p.weights == nullptr ? 1.0f : a.p.weights[jet];
    return {static_cast<int>(label), bad ? NAN : weight, bad};
}

// f(T{}) for the element type T.
template <class F>
__device__ __forceinline__ void with_type(DType dtype, F&& f) {
    if (dtype == DType::f32)
        f(float{});
    else if (dtype == DType::bf16)
        f(bf16{});
    else
        f(f16{});
}

// Leaves the sums of a block, and those of the member where it is its last block. bad: the thread met a label that
// can't be.
__device__ __forceinline__ void finish(const Arguments& a, const Place& at, RowTerms terms, bool bad) {
    if (bad && at.member == 0) atomicOr(a.p.invalid, 1);
    KDFAST_SHARED(float, parts, 2 * (kThreads / kWarp));
    KDFAST_SHARED(int, is_last, 1);
    terms.kl = warp_sum(terms.kl);
    terms.ce = warp_sum(terms.ce);
    if (lane_index() == 0) {
        parts[2 * warp_index()] = terms.kl;
        parts[2 * warp_index() + 1] = terms.ce;
    }
    __syncthreads();
    Sums* const sums = a.sums + at.member * a.num_chunks;
    if (thread_index() == 0) {
        Sums block{0.0, 0.0};
        for (int w = 0; w < kThreads / kWarp; ++w) {
            block.kl += static_cast<double>(parts[2 * w]);
            block.ce += static_cast<double>(parts[2 * w + 1]);
        }
        sums[at.chunk] = block;
        __threadfence();
        is_last[0] = atomicAdd(a.num_finished + at.member, 1u) + 1 == static_cast<unsigned>(a.num_chunks);
    }
    __syncthreads();
    if (!is_last[0]) return;
    __threadfence();
    Sums mine{0.0, 0.0};
    for (int64_t i = thread_index(); i < a.num_chunks; i += kThreads) {
        const Sums block = load_latest<Sums>(sums + i);
        mine.kl += block.kl;
        mine.ce += block.ce;
    }
    const double kl = block_sum<kThreads>(mine.kl);
    __syncthreads();
    const double ce = block_sum<kThreads>(mine.ce);
    if (thread_index() == 0) {
        const Member& m = a.members[at.member];
        const double kd_term = kl * m.kd_mean, ce_term = ce * m.ce_mean;
        a.p.loss[at.member] = static_cast<float>(m.alpha * kd_term + (1.0 - m.alpha) * ce_term);
        if (a.p.terms != nullptr) {
            a.p.terms[2 * at.member] = static_cast<float>(kd_term);
            a.p.terms[2 * at.member + 1] = static_cast<float>(ce_term);
        }
    }
}

// ---- C ≤ 2: a thread takes 16 bytes of logits at a time, 2 to 8 whole rows ------------------------------------------

// N neighbours from p on, `count` of which exist; `wide` where p is aligned to 16 bytes. kOnce: nobody reads them
// again.
template <int N, bool kOnce = false, class T>
__device__ __forceinline__ Vec<T, N> read(const T* p, int64_t count, bool wide) {
    constexpr int kPiece = 16 / sizeof(T) < N ? 16 / sizeof(T) : N;
    Vec<T, N> x = {};
    if (wide && count >= N) {
#pragma unroll
        for (int i = 0; i < N; i += kPiece) {
            using Piece = Vec<T, kPiece>;
            const Piece piece = kOnce ? load_streaming<Piece>(p + i) : load_readonly<Piece>(p + i);
#pragma unroll
            for (int j = 0; j < kPiece; ++j) x[i + j] = piece[j];
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (i < count) x[i] = p[i];
    }
    return x;
}

template <class T, int N>
__device__ __forceinline__ void write(T* p, const float (&x)[N], int count, bool wide) {
    constexpr int kPiece = 16 / sizeof(T) < N ? 16 / sizeof(T) : N;
    if (wide && count >= N) {
#pragma unroll
        for (int i = 0; i < N; i += kPiece) {
            Vec<T, kPiece> piece;
#pragma unroll
            for (int j = 0; j < kPiece; ++j) piece[j] = from_float<T>(x[i + j]);
            store_streaming(p + i, piece);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (i < count) p[i] = from_float<T>(x[i]);
    }
}

template <class Logit, class Label, int C>
__global__ void __launch_bounds__(kThreads) two_classes(const __grid_constant__ Arguments a) {
    constexpr int kLogits = 16 / sizeof(Logit), kRows = kLogits / C;  // of one access
    const DistillLossParams& p = a.p;
    const Place at = place(a);
    const Scales m = scales_of(a, at.member);
    const bool distil = distils(a, m);
    const Logit* const student = static_cast<const Logit*>(p.student) + at.member * p.num_jets * C;
    const Logit* const teacher = static_cast<const Logit*>(p.teacher) + at.member * p.teacher_stride;
    const int64_t first = (at.chunk * kAccesses * kThreads + thread_index()) * kRows;

    // Everything is asked for before anything is used.
    Vec<Logit, kLogits> s[kAccesses], t[kAccesses] = {};
    Vec<float, kRows> w[kAccesses];
    Vec<Label, kRows> y[kAccesses];
    int rows[kAccesses];  // that there are
#pragma unroll
    for (int i = 0; i < kAccesses; ++i) {
        const int64_t row = first + i * kThreads * kRows;
        rows[i] = row + kRows <= p.num_jets ? kRows : static_cast<int>(max(p.num_jets - row, int64_t{0}));
        s[i] = read<kLogits, true>(student + row * C, rows[i] * C, a.wide);
        if (distil) t[i] = read<kLogits>(teacher + row * C, rows[i] * C, a.wide);
        y[i] = read<kRows>(static_cast<const Label*>(p.labels) + row, rows[i], a.wide);
        if (p.weights != nullptr) w[i] = read<kRows>(p.weights + row, rows[i], a.wide);
    }

    RowTerms sums;
    bool any_bad = false;
#pragma unroll
    for (int i = 0; i < kAccesses; ++i) {
        float grad[kLogits];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const float label = static_cast<float>(y[i][r]);
            const bool bad =
                std::is_same_v<Label, float> ? !(label >= 0.0f && label <= 1.0f) : static_cast<uint64_t>(y[i][r]) > 1u;
            any_bad = any_bad || bad;
            float weight = p.weights == nullptr ? 1.0f : w[i][r];
            weight = r < rows[i] ? weight : 0.0f;
            weight = bad ? NAN : weight;
            float own_s[C], own_t[C], own_grad[C];
#pragma unroll
            for (int c = 0; c < C; ++c) {
                own_s[c] = to_float(s[i][r * C + c]);
                own_t[c] = to_float(t[i][r * C + c]);
            }
            const RowTerms terms = two_class_loss(m, distil, own_s, own_t, label, own_grad);
            sums.kl = fmaf(weight, terms.kl, sums.kl);
            sums.ce = fmaf(weight, terms.ce, sums.ce);
#pragma unroll
            for (int c = 0; c < C; ++c) grad[r * C + c] = own_grad[c] * weight;
        }
        if (p.grad == nullptr) continue;
        const int64_t element = (at.member * p.num_jets + first + i * kThreads * kRows) * C;
        with_type(p.grad_dtype,
                  [&](auto zero) { write(static_cast<decltype(zero)*>(p.grad) + element, grad, rows[i] * C, a.wide); });
    }
    finish(a, at, sums, any_bad);
}

// ---- 3 ≤ C ≤ 16: a thread takes a row, which comes and goes through shared memory -----------------------------------

// Floats from row to row in shared memory: odd, so that the rows of neighbouring threads lie in different banks.
template <int C>
constexpr int kPitch = C | 1;

// kThreads rows of C neighbouring elements to shared memory; the first `count` elements exist, zeros behind them.
template <int C, bool kOnce, class T>
__device__ __forceinline__ void rows_to_shared(const T* from, int count, bool wide, Shared<float> rows) {
    constexpr int kPiece = 16 / sizeof(T), kPieces = (C + kPiece - 1) / kPiece;  // of a thread
    Vec<T, kPiece> x[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int e = (i * kThreads + thread_index()) * kPiece;
        if (e < kThreads * C) x[i] = read<kPiece, kOnce>(from + e, count - e, wide);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
        const int e = (i * kThreads + thread_index()) * kPiece;
        if (e < kThreads * C)
#pragma unroll
            for (int j = 0; j < kPiece; ++j) rows[(e + j) / C * kPitch<C> + (e + j) % C] = to_float(x[i][j]);
    }
}

template <int C, class T>
__device__ __forceinline__ void rows_from_shared(Shared<float> rows, T* to, int count, bool wide) {
    constexpr int kPiece = 16 / sizeof(T);
    for (int e = thread_index() * kPiece; e < kThreads * C; e += kThreads * kPiece) {
        float x[kPiece];
#pragma unroll
        for (int j = 0; j < kPiece; ++j) x[j] = rows[(e + j) / C * kPitch<C> + (e + j) % C];
        write(to + e, x, count - e, wide);
    }
}

// Blocks of a multiprocessor that there must be registers for: so the compiler does not spill some for yet more of
// them.
template <int C>
constexpr int kResident = C <= 7 ? 8 : 4;

template <int C>
__global__ void __launch_bounds__(kThreads, kResident<C>) row_per_thread(const __grid_constant__ Arguments a) {
    KDFAST_SHARED(float, student, kThreads* kPitch<C>);
    KDFAST_SHARED(float, teacher, kThreads* kPitch<C>);
    const DistillLossParams& p = a.p;
    const Place at = place(a);
    const Scales m = scales_of(a, at.member);
    const bool distil = distils(a, m);
    const int64_t first = at.chunk * kThreads, row = first + thread_index();
    const int count = static_cast<int>(min(p.num_jets - first, int64_t{kThreads})) * C;
    const int64_t element = (at.member * p.num_jets + first) * C;
    with_type(p.logits_dtype, [&](auto zero) {
        using Logit = decltype(zero);
        rows_to_shared<C, true>(static_cast<const Logit*>(p.student) + element, count, a.wide, student);
        if (distil)
            rows_to_shared<C, false>(static_cast<const Logit*>(p.teacher) + at.member * p.teacher_stride + first * C,
                                     count, a.wide, teacher);
    });
    const LabelAndWeight jet = label_and_weight(a, row);
    __syncthreads();

    float s[C], t[C], grad[C];
    const int own = thread_index() * kPitch<C>;
#pragma unroll
    for (int c = 0; c < C; ++c) {
        s[c] = student[own + c];
        t[c] = distil ? static_cast<float>(teacher[own + c]) : 0.0f;
    }
    RowTerms terms = many_class_loss<1>(m, distil, C, s, t, jet.label, grad);
    terms.kl *= jet.weight;
    terms.ce *= jet.weight;
    if (p.grad != nullptr) {
#pragma unroll
        for (int c = 0; c < C; ++c) student[own + c] = grad[c] * jet.weight;
        __syncthreads();
        with_type(p.grad_dtype, [&](auto zero) {
            rows_from_shared<C>(student, static_cast<decltype(zero)*>(p.grad) + element, count, a.wide);
        });
    }
    finish(a, at, terms, jet.bad);
}

// ---- C > 16: kLanes lanes take a row, lane l its classes l, l + kLanes …
// ---------------------------------------------

template <int kLanes, int kValues>
__global__ void __launch_bounds__(kThreads, kValues <= 8 ? 4 : 2) lanes_per_row(const __grid_constant__ Arguments a) {
    constexpr int kRows = kThreads / kLanes;  // at a time
    const DistillLossParams& p = a.p;
    const int num_classes = static_cast<int>(p.num_classes), lane = lane_index() % kLanes;
    const Place at = place(a);
    const Scales m = scales_of(a, at.member);
    const bool distil = distils(a, m);
    RowTerms sums;
    bool any_bad = false;
    for (int i = 0; i < kRowsPerGroup; ++i) {
        const int64_t row = (at.chunk * kRowsPerGroup + i) * kRows + thread_index() / kLanes;
        const int64_t element = (at.member * p.num_jets + row) * num_classes;
        float s[kValues], t[kValues], grad[kValues];
        with_type(p.logits_dtype, [&](auto zero) {
            using Logit = decltype(zero);
            const Logit* const student = static_cast<const Logit*>(p.student) + element;
            const Logit* const teacher =
                static_cast<const Logit*>(p.teacher) + at.member * p.teacher_stride + row * num_classes;
#pragma unroll
            for (int v = 0; v < kValues; ++v) {
                const int c = v * kLanes + lane;
                s[v] = t[v] = c < num_classes ? 0.0f : -INFINITY;  // zeros for rows that there are not
                if (c < num_classes && row < p.num_jets) {
                    s[v] = to_float(load_streaming<Logit>(student + c));
                    if (distil) t[v] = to_float(load_readonly<Logit>(teacher + c));
                }
            }
        });
        const LabelAndWeight jet = label_and_weight(a, row);
        const RowTerms terms = many_class_loss<kLanes>(m, distil, num_classes, s, t, jet.label, grad);
        any_bad = any_bad || jet.bad;
        if (lane == 0) {
            sums.kl = fmaf(jet.weight, terms.kl, sums.kl);
            sums.ce = fmaf(jet.weight, terms.ce, sums.ce);
        }
        if (p.grad == nullptr || row >= p.num_jets) continue;
        with_type(p.grad_dtype, [&](auto zero) {
            using Grad = decltype(zero);
            Grad* const to = static_cast<Grad*>(p.grad) + element;
#pragma unroll
            for (int v = 0; v < kValues; ++v) {
                const int c = v * kLanes + lane;
                if (c < num_classes) store_streaming(to + c, from_float<Grad>(grad[v] * jet.weight));
            }
        });
    }
    finish(a, at, sums, any_bad);
}

// ---- the choice -----------------------------------------------------------------------------------------------------

struct Choice {
    void (*kernel)(Arguments);
    int64_t rows;  // jets of a chunk
};

template <class Logit, class Label, int C>
Choice two_classes_of() {
    return {two_classes<Logit, Label, C>, static_cast<int64_t>(kAccesses * kThreads * (16 / sizeof(Logit) / C))};
}
template <class Label, int C>
Choice two_classes_choice(DType logits) {
    return logits == DType::f32    ? two_classes_of<float, Label, C>()
           : logits == DType::bf16 ? two_classes_of<bf16, Label, C>()
                                   : two_classes_of<f16, Label, C>();
}
template <int C>
Choice row_choice() {
    return {row_per_thread<C>, kThreads};
}
template <int kLanes, int kValues>
Choice lanes_choice() {
    return {lanes_per_row<kLanes, kValues>, kThreads / kLanes * kRowsPerGroup};
}

Choice choose(int64_t num_classes, DType logits, bool float_labels) {
    switch (num_classes) {
        case 1:
            return float_labels ? two_classes_choice<float, 1>(logits) : two_classes_choice<int64_t, 1>(logits);
        case 2:
            return two_classes_choice<int64_t, 2>(logits);
        case 3:
            return row_choice<3>();
        case 4:
            return row_choice<4>();
        case 5:
            return row_choice<5>();
        case 6:
            return row_choice<6>();
        case 7:
            return row_choice<7>();
        case 8:
            return row_choice<8>();
        case 9:
            return row_choice<9>();
        case 10:
            return row_choice<10>();
        case 11:
            return row_choice<11>();
        case 12:
            return row_choice<12>();
        case 13:
            return row_choice<13>();
        case 14:
            return row_choice<14>();
        case 15:
            return row_choice<15>();
        case 16:
            return row_choice<16>();
    }
    if (num_classes <= 32) return lanes_choice<8, 4>();
    if (num_classes <= 64) return lanes_choice<16, 4>();
    if (num_classes <= 128) return lanes_choice<32, 4>();
    if (num_classes <= 256) return lanes_choice<32, 8>();
    if (num_classes <= 512) return lanes_choice<32, 16>();
    return lanes_choice<32, 32>();
}

int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Every member's part of a tensor begins at a multiple of 16 bytes.
bool is_wide(const void* p, int64_t member_bytes = 0) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && member_bytes % 16 == 0;
}

// The arguments of the kernels. Workspace: members, sums, weight sums, counters, each of them aligned by the one
// before.
Arguments arguments_of(const DistillLossParams& p, int64_t rows_per_chunk) {
    Arguments a{};
    a.p = p;
    a.num_chunks = (p.num_jets + rows_per_chunk - 1) / rows_per_chunk;
    if (p.weights != nullptr && p.num_jets > kWeightSlice)
        a.num_weight_slices = (p.num_jets + kWeightSlice - 1) / kWeightSlice;
    const int64_t elements = p.num_jets * p.num_classes;
    a.wide = is_wide(p.student, elements * size_of(p.logits_dtype)) && is_wide(p.labels) && is_wide(p.weights) &&
             is_wide(p.teacher, p.teacher_stride * size_of(p.logits_dtype)) &&
             is_wide(p.grad, elements * size_of(p.grad_dtype));
    a.members = static_cast<Member*>(p.workspace);
    a.sums = reinterpret_cast<Sums*>(a.members + p.num_members);
    a.weight_sums = reinterpret_cast<double*>(a.sums + p.num_members * a.num_chunks);
    a.num_finished = reinterpret_cast<unsigned*>(a.weight_sums + a.num_weight_slices);
    return a;
}

}  // namespace

int64_t distill_loss_workspace(int64_t num_members, int64_t num_jets, int64_t num_classes, DType logits_dtype) {
    DistillLossParams p{};
    p.num_members = num_members;
    p.num_jets = num_jets;
    p.weights = reinterpret_cast<const float*>(&p);  // some: more than without
    const Arguments a = arguments_of(p, choose(num_classes, logits_dtype, false).rows);
    return reinterpret_cast<char*>(a.num_finished + num_members) - static_cast<char*>(nullptr);
}

void distill_loss(const DistillLossParams& p, void* stream) {
    const Choice choice = choose(p.num_classes, p.logits_dtype, p.float_labels);
    const Arguments a = arguments_of(p, choice.rows);
    const int64_t blocks = p.num_members * a.num_chunks;
    if (blocks > 0x7fffffff) throw std::invalid_argument("more jets and members than a launch takes");
    const auto s = static_cast<cudaStream_t>(stream);
    if (a.num_weight_slices > 0)
        launch(dim3(static_cast<unsigned>(a.num_weight_slices)), dim3(kPrepareThreads), 0, s, sum_weights, a);
    launch(dim3(1), dim3(kPrepareThreads), 0, s, prepare, a);
    launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, s, choice.kernel, a);
}

}  // namespace kdfast::gpu
