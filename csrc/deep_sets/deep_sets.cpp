#include "deep_sets/deep_sets.h"

#include <initializer_list>

#include "core/scratch.h"
#include "core/threads.h"
#include "deep_sets/linear.h"
#include "distill_loss/distill_loss.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

// What buffers and passes follow from. E: of the constituents' operands; those of the jets' layers are float.
template <class E>
struct Setup {
    Extent extent;
    int64_t head_rows;                // a slice's jets, padded
    int64_t features, width, pooled;  // as parameters say, and two padded widths: mean and maximum of a jet
    int64_t layers, head_layers;      // on constituents; on a jet, the classifier included
    int64_t ld_features, ld_x, ld_h;  // of the inputs, of constituents' and of jets' rows
    int64_t num_sums, largest;        // of all layers; floats of the largest padded matrix
    int64_t outer;                    // scratch floats of the largest weight gradient
    bool training, threaded;
};

// The batch's: layers packed for the products, its slices, and sums over them.
template <class E>
struct Buffers {
    Slicing slicing;
    Linear<E>* layers;
    Linear<float>* head;
    float* padded;  // [largest]
    // Training only.
    float* group_sums;    // [kGroups, num_sums] on several threads, else [num_sums]
    float* total_sums;    // [num_sums]
    double* slice_terms;  // [slices, 3]
    size_t bytes;
};

// A thread's, for one slice.
template <class E>
struct SliceBuffers {
    E *inputs, *x[2];  // [rows, ld]; x: what evaluation uses in turns
    float* h[2];
    float *logits, *labels, *weights, *teacher, *d_logits;  // [jets]; logits: [jets, classes] in evaluation
    // Training only: each layer's result in x_kept and h_kept, where a gradient stands in x and h.
    E* x_kept;
    float* h_kept;
    float *ties, *outer;  // ties: [jets, ld_h / 2], how many constituents have a maximum
    size_t bytes;
};

// The shapes of all layers, in the order of the parameters: shape(number, LinearShape).
template <class E, class Take>
KDFAST_INLINE void each_shape(const DeepSetsSizes& sizes, Take&& take) {
    int64_t weight = 0, sums = 0, number = 0;
    const auto one = [&](int64_t num_in, int64_t num_out, int64_t blocks, bool exact) __attribute__((always_inline)) {
        const int64_t ld_in = blocks * round_up(num_in / blocks, kPad), outputs = round_up(num_out, kPad);
        const LinearShape shape{num_in, num_out, blocks, weight, exact ? num_in : ld_in, ld_in, outputs, sums};
        weight += (num_in + 1) * num_out;
        sums += shape.num_sums();
        take(number++, shape);
    };
    for (int64_t i = 0; i < sizes.layers; ++i)
        one(i ? sizes.width : sizes.features, sizes.width, 1, __is_same(E, float) && i == 0);
    for (int64_t i = 0; i < sizes.head_layers; ++i)
        one(i ? sizes.head_width : 2 * sizes.width, sizes.head_width, i ? 1 : 2, false);
    one(sizes.head_width, sizes.classes, 1, false);
}

template <class E>
KDFAST_INLINE Setup<E> set_up(const DeepSetsSizes& sizes, const JetBatch& batch, bool training, bool threaded) {
    Setup<E> s{};
    s.extent = slice_jets(batch, row_granule<E>(), nullptr);
    s.head_rows = round_up(s.extent.slice_jets, kRowGranule);
    s.features = sizes.features;
    s.width = sizes.width;
    s.pooled = 2 * round_up(sizes.width, kPad);
    s.layers = sizes.layers;
    s.head_layers = sizes.head_layers + 1;
    s.ld_features = row_stride<E>(round_up(sizes.features, kPad));
    s.training = training;
    s.threaded = threaded;
    int64_t widest = s.pooled;
    each_shape<E>(sizes, [&](int64_t number, const LinearShape& shape) __attribute__((always_inline)) {
        const int64_t outer = number < sizes.layers ? outer_floats<E>(shape.outputs, shape.ld_in, s.extent.slice_rows)
                                                    : outer_scratch(shape.outputs);
        const auto at_least = [](int64_t& to, int64_t x) __attribute__((always_inline)) { to = x > to ? x : to; };
        at_least(s.outer, outer);
        at_least(s.largest, shape.outputs * shape.ld_in);
        if (number >= sizes.layers) at_least(widest, shape.outputs);
        s.num_sums += shape.num_sums();
    });
    s.ld_x = row_stride<E>(s.pooled / 2);
    s.ld_h = row_stride<float>(widest);
    return s;
}

template <class E>
KDFAST_INLINE Buffers<E> lay_out(const Setup<E>& s, const DeepSetsSizes& sizes, char* memory) {
    Layout at{memory};
    Buffers<E> b{};
    b.slicing.slices = at.take<Slice>(s.extent.slices);
    b.slicing.first_row = at.take<int64_t>(s.extent.jets);
    b.slicing.counts = at.take<int64_t>(s.extent.jets);
    b.slicing.group_begin = at.take<int64_t>(kGroups + 1);
    b.layers = at.take<Linear<E>>(s.layers);
    b.head = at.take<Linear<float>>(s.head_layers);
    each_shape<E>(sizes, [&](int64_t number, const LinearShape& shape) __attribute__((always_inline)) {
        if (number < s.layers) {
            const Linear<E> layer = lay_out_linear<E>(shape, s.training && number > 0, at);
            if (memory) b.layers[number] = layer;
        } else {
            const Linear<float> layer = lay_out_linear<float>(shape, s.training, at);
            if (memory) b.head[number - s.layers] = layer;
        }
    });
    b.padded = at.take<float>(s.largest);
    if (s.training) {
        b.group_sums = at.take<float>(s.num_sums * (s.threaded ? kGroups : 1));
        b.total_sums = at.take<float>(s.num_sums);
        b.slice_terms = at.take<double>(s.extent.slices * 3);
    }
    b.bytes = at.used;
    return b;
}

template <class E>
KDFAST_INLINE SliceBuffers<E> lay_out_slice(const Setup<E>& s, int64_t classes, char* memory) {
    Layout at{memory};
    SliceBuffers<E> b{};
    const int64_t rows = s.extent.slice_rows, jets = s.head_rows;
    b.inputs = at.take<E>(rows * s.ld_features);
    for (E*& x : b.x) x = at.take<E>(rows * s.ld_x);
    for (float*& h : b.h) h = at.take<float>(jets * s.ld_h);
    b.logits = at.take<float>(jets * classes);
    if (s.training) {
        for (float** p : {&b.labels, &b.weights, &b.teacher, &b.d_logits}) *p = at.take<float>(jets);
        b.x_kept = at.take<E>(s.layers * rows * s.ld_x);
        b.h_kept = at.take<float>(s.head_layers * jets * s.ld_h);
        b.ties = at.take<float>(jets * (s.pooled / 2));
        b.outer = at.take<float>(s.outer);
    }
    b.bytes = at.used;
    return b;
}

// This thread's buffers, valid until its next call. False where memory is missing, which it notes.
template <class E>
KDFAST_INLINE bool thread_buffers(const Setup<E>& s, int64_t classes, bool& no_memory, SliceBuffers<E>& b) {
    const size_t bytes = lay_out_slice<E>(s, classes, nullptr).bytes;
    char* const memory = reinterpret_cast<char*>(scratch(bytes / sizeof(float)));
    if (memory == nullptr) __atomic_store_n(&no_memory, true, __ATOMIC_RELAXED);
    b = lay_out_slice<E>(s, classes, memory);
    return memory != nullptr;
}

// The batch in slices, memory for everything, the layers packed. False where memory is missing.
template <class E, class Params>
KDFAST_INLINE bool prepare(const Params& p, bool training, Setup<E>& s, Buffers<E>& b) {
    s = set_up<E>(p.sizes, p.batch, training, p.num_threads > 1);
    char* const memory = p.memory->reserve(lay_out<E>(s, p.sizes, nullptr).bytes);
    if (memory == nullptr) return false;
    b = lay_out<E>(s, p.sizes, memory);
    slice_jets(p.batch, row_granule<E>(), &b.slicing);
    for (int64_t i = 0; i < s.layers; ++i) pack_linear(b.layers[i], p.parameters, b.padded);
    for (int64_t i = 0; i < s.head_layers; ++i) pack_linear(b.head[i], p.parameters, b.padded);
    return true;
}

// Features of a slice's constituents, in its rows; zeros beyond them.
template <class E>
KDFAST_INLINE void gather(const Setup<E>& s, const JetBatch& batch, const Slicing& slicing, const Slice& slice, E* to) {
    std::memset(to, 0, static_cast<size_t>(slice.rows * s.ld_features) * sizeof(E));
    for (int64_t jet = slice.jet; jet < slice.jet + slice.jets; ++jet) {
        const float* from = batch.features + batch.offsets[position(batch, jet)] * s.features;
        for (int64_t t = 0; t < slicing.counts[jet]; ++t, from += s.features, to += s.ld_features)
            for (int64_t f = 0; f < s.features; ++f) to[f] = from_float<E>(from[f]);
    }
}

// Mean and maximum over each jet's constituents, [jets, ld_h] side by side; ties [jets, pooled / 2] (may be null): how
// many constituents have the maximum. x is a ReLU's result, so that 0 is below none: it is an empty jet's maximum.
template <class E>
inline __attribute__((noinline)) void pool(const Setup<E>& s, const Slicing& slicing, const Slice& slice, const E* x,
                                           float* h, float* ties) {
    const int64_t width = s.pooled / 2, rows = round_up(slice.jets, kRowGranule);
    std::memset(h + slice.jets * s.ld_h, 0, static_cast<size_t>((rows - slice.jets) * s.ld_h) * sizeof(float));
    for (int64_t i = 0; i < slice.jets; ++i, h += s.ld_h) {
        const int64_t n = slicing.counts[slice.jet + i];
        const float share = n > 0 ? 1.0f / static_cast<float>(n) : 0.0f;
        for (int64_t c = 0; c < width; c += kLanes) {
            Vec sums[2] = {}, top = {};
            for (int64_t t = 0; t < n; ++t) {
                const Vec v = load(x + t * s.ld_x + c);
                sums[t & 1] += v;
                top = max(top, v);
            }
            store(h + c, (sums[0] + sums[1]) * share);
            store(h + width + c, top);
            if (ties == nullptr) continue;
            Vec number = {};
            for (int64_t t = 0; t < n; ++t) number += select(load(x + t * s.ld_x + c) == top, broadcast(1.0f), Vec{});
            store(ties + i * width + c, number);
        }
        x += n * s.ld_x;
    }
}

// dx, through the ReLU that x is the result of, from the gradients dh of mean and maximum, of which constituents that
// share a maximum have equal parts. Rows beyond the jets get zeros.
template <class E>
inline __attribute__((noinline)) void pool_backward(const Setup<E>& s, const Slicing& slicing, const Slice& slice,
                                                    const E* x, const float* h, const float* ties, const float* dh,
                                                    E* dx) {
    const int64_t width = s.pooled / 2;
    for (int64_t i = 0; i < slice.jets; ++i, h += s.ld_h, dh += s.ld_h) {
        const int64_t n = slicing.counts[slice.jet + i];
        const float share = n > 0 ? 1.0f / static_cast<float>(n) : 0.0f;
        for (int64_t c = 0; c < width; c += kLanes) {
            const Vec top = load(h + width + c), mean = load(dh + c) * share;
            const Vec part = load(dh + width + c) / load(ties + i * width + c);
            for (int64_t t = 0; t < n; ++t) {
                const Vec v = load(x + t * s.ld_x + c);
                put(dx + t * s.ld_x + c, select(v > 0.0f, mean + select(v == top, part, Vec{}), Vec{}));
            }
        }
        x += n * s.ld_x;
        dx += n * s.ld_x;
    }
    std::memset(dx, 0, static_cast<size_t>((slice.rows - slice.tokens) * s.ld_x) * sizeof(E));
}

// Logits of a slice's jets, [jets, classes] of the batch or of the slice.
KDFAST_INLINE void take_logits(const float* h, int64_t ld_h, int64_t jets, int64_t classes, float* logits) {
    for (int64_t i = 0; i < jets; ++i)
        for (int64_t c = 0; c < classes; ++c) logits[i * classes + c] = h[i * ld_h + c];
}

// One slice of a training step: its part of the loss and of the gradient. False where values can't be.
template <class E>
KDFAST_INLINE bool step_slice(const DeepSetsStepParams& p, const Setup<E>& s, const Buffers<E>& b, const Slice& slice,
                              const SliceBuffers<E>& at, double weight_sum, const Sums& sums, double* terms) {
    const int64_t rows = slice.rows, jets = slice.jets, jet_rows = round_up(jets, kRowGranule);
    const auto x = [&](int64_t layer)
                       __attribute__((always_inline)) { return at.x_kept + layer * s.extent.slice_rows * s.ld_x; };
    const auto h = [&](int64_t layer)
                       __attribute__((always_inline)) { return at.h_kept + layer * s.head_rows * s.ld_h; };
    const auto input = [&](int64_t layer) __attribute__((always_inline)) { return layer ? x(layer - 1) : at.inputs; };
    const auto ld_input = [&](int64_t layer) __attribute__((always_inline)) { return layer ? s.ld_x : s.ld_features; };
    const int64_t last = s.layers - 1, classifier = s.head_layers - 1;
    gather(s, p.batch, b.slicing, slice, at.inputs);
    for (int64_t i = 0; i < jets; ++i) {
        const int64_t jet = position(p.batch, slice.jet + i);
        at.labels[i] = p.labels[jet];
        at.weights[i] = p.weights[jet];
        if (p.teacher_logits) at.teacher[i] = p.teacher_logits[jet];
    }
    for (int64_t i = 0; i < s.layers; ++i) linear_forward<true>(b.layers[i], input(i), ld_input(i), rows, x(i), s.ld_x);
    pool(s, b.slicing, slice, x(last), h(0), at.ties);
    for (int64_t i = 0; i < classifier; ++i) linear_forward<true>(b.head[i], h(i), s.ld_h, jet_rows, h(i + 1), s.ld_h);
    linear_forward<false>(b.head[classifier], h(classifier), s.ld_h, jet_rows, at.h[0], s.ld_h);
    take_logits(at.h[0], s.ld_h, jets, 1, at.logits);

    float loss, parts[2];
    bool valid = false;
    const double alpha = p.teacher_logits ? p.alpha : 0.0;
    kdfast::distill_loss(DistillLossParams{at.logits,
                                           p.teacher_logits ? at.teacher : nullptr,
                                           at.labels,
                                           at.weights,
                                           &p.temperature,
                                           &alpha,
                                           &loss,
                                           parts,
                                           at.d_logits,
                                           1,
                                           jets,
                                           1,
                                           0,
                                           DType::f32,
                                           DType::f32,
                                           DType::f32,
                                           true,
                                           1,
                                           &valid,
                                           weight_sum});
    if (!valid) return false;
    terms[0] = static_cast<double>(loss);
    terms[1] = alpha * static_cast<double>(parts[0]);
    terms[2] = (1.0 - alpha) * static_cast<double>(parts[1]);

    float *dh = at.h[0], *next = at.h[1];
    std::memset(dh, 0, static_cast<size_t>(jet_rows * s.ld_h) * sizeof(float));
    for (int64_t i = 0; i < jets; ++i) dh[i * s.ld_h] = at.d_logits[i];
    for (int64_t i = classifier; i >= 0; --i) {
        linear_weights(b.head[i], dh, s.ld_h, h(i), s.ld_h, jet_rows, at.outer, sums);
        if (i > 0)
            linear_backward<true>(b.head[i], dh, s.ld_h, jet_rows, h(i), next, s.ld_h);
        else
            linear_backward<false>(b.head[i], dh, s.ld_h, jet_rows, h(i), next, s.ld_h);
        float* const done = dh;
        dh = next;
        next = done;
    }
    E *dx = at.x[0], *dx_next = at.x[1];
    pool_backward(s, b.slicing, slice, x(last), h(0), at.ties, dh, dx);
    for (int64_t i = last; i >= 0; --i) {
        linear_weights(b.layers[i], dx, s.ld_x, input(i), ld_input(i), rows, at.outer, sums);
        if (i == 0) break;
        linear_backward<true>(b.layers[i], dx, s.ld_x, rows, input(i), dx_next, s.ld_x);
        E* const done = dx;
        dx = dx_next;
        dx_next = done;
    }
    return true;
}

template <class E>
Outcome step(const DeepSetsStepParams& p) {
    Setup<E> s{};
    Buffers<E> b{};
    if (!prepare<E>(p, true, s, b)) return Outcome::no_memory;
    double weight_sum = 0.0;
    for (int64_t jet = 0; jet < s.extent.jets; ++jet)
        weight_sum += static_cast<double>(p.weights[position(p.batch, jet)]);
    std::memset(b.total_sums, 0, static_cast<size_t>(s.num_sums) * sizeof(float));
    bool no_memory = false, bad_values = !(weight_sum > 0.0);
    parallel_for(kGroups, p.num_threads, [&](int64_t group) {
        SliceBuffers<E> at{};
        if (!thread_buffers(s, 1, no_memory, at)) return;
        for (int64_t i = b.slicing.group_begin[group]; i < b.slicing.group_begin[group + 1]; ++i) {
            const Slice& slice = b.slicing.slices[i];
            const Sums sums{b.group_sums + (s.threaded ? group * s.num_sums : 0), s.threaded ? nullptr : b.total_sums,
                            slice.first, slice.last};
            if (!step_slice(p, s, b, slice, at, weight_sum, sums, b.slice_terms + 3 * i))
                __atomic_store_n(&bad_values, true, __ATOMIC_RELAXED);
        }
    });
    if (no_memory) return Outcome::no_memory;
    if (bad_values) return Outcome::bad_values;
    if (s.threaded) add_groups(b.slicing, b.group_sums, s.num_sums, p.num_threads, b.total_sums);
    for (int64_t i = 0; i < s.layers; ++i) linear_gradient(b.layers[i].shape, b.total_sums, p.gradient);
    for (int64_t i = 0; i < s.head_layers; ++i) linear_gradient(b.head[i].shape, b.total_sums, p.gradient);
    for (int term = 0; term < 3; ++term) {
        p.terms[term] = 0.0;
        for (int64_t i = 0; i < s.extent.slices; ++i) p.terms[term] += b.slice_terms[3 * i + term];
    }
    return Outcome::done;
}

template <class E>
Outcome forward(const DeepSetsForwardParams& p) {
    Setup<E> s{};
    Buffers<E> b{};
    if (!prepare<E>(p, false, s, b)) return Outcome::no_memory;
    bool no_memory = false;
    parallel_for(s.extent.slices, p.num_threads, [&](int64_t number) {
        SliceBuffers<E> at{};
        if (!thread_buffers(s, p.sizes.classes, no_memory, at)) return;
        const Slice& slice = b.slicing.slices[number];
        const int64_t jet_rows = round_up(slice.jets, kRowGranule), classifier = s.head_layers - 1;
        gather(s, p.batch, b.slicing, slice, at.inputs);
        linear_forward<true>(b.layers[0], at.inputs, s.ld_features, slice.rows, at.x[0], s.ld_x);
        for (int64_t i = 1; i < s.layers; ++i)
            linear_forward<true>(b.layers[i], at.x[(i - 1) % 2], s.ld_x, slice.rows, at.x[i % 2], s.ld_x);
        pool(s, b.slicing, slice, at.x[(s.layers - 1) % 2], at.h[0], nullptr);
        for (int64_t i = 0; i < classifier; ++i)
            linear_forward<true>(b.head[i], at.h[i % 2], s.ld_h, jet_rows, at.h[(i + 1) % 2], s.ld_h);
        float* const logits = at.h[(classifier + 1) % 2];
        linear_forward<false>(b.head[classifier], at.h[classifier % 2], s.ld_h, jet_rows, logits, s.ld_h);
        take_logits(logits, s.ld_h, slice.jets, p.sizes.classes, p.logits + slice.jet * p.sizes.classes);
    });
    return no_memory ? Outcome::no_memory : Outcome::done;
}

}  // namespace

void deep_sets_step(const DeepSetsStepParams& p) { *p.outcome = p.bf16 ? step<bf16>(p) : step<float>(p); }

void deep_sets_forward(const DeepSetsForwardParams& p) { *p.outcome = p.bf16 ? forward<bf16>(p) : forward<float>(p); }

}  // namespace kdfast::KDFAST_ISA_NS
