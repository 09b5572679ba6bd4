#include "encoder/encoder.h"

#include <time.h>

#include <initializer_list>

#include "core/scratch.h"
#include "core/threads.h"
#include "distill_loss/distill_loss.h"
#include "encoder/embed.h"
#include "encoder/head.h"
#include "encoder/layer.h"
#include "encoder/pooling.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

KDFAST_INLINE uint64_t fold_seed(uint64_t seed, uint64_t part) { return splitmix64(seed ^ part) >> 1; }

// Adds the processor time of this thread since the last call to a part of the step.
struct Ticker {
    double* seconds;
    double last;

    static KDFAST_INLINE double now() {
        timespec t;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
    }
    explicit KDFAST_INLINE Ticker(double* to) : seconds(to), last(to ? now() : 0.0) {}
    KDFAST_INLINE void operator()(Part part) {
        if (seconds == nullptr) return;
        const double t = now();
        seconds[static_cast<int>(part)] += t - last;
        last = t;
    }
};
constexpr int kParts = static_cast<int>(Part::count);

// Sizes that buffers follow from.
struct Extent {
    int64_t jets, slices, rows, slice_rows, longest_jet;
};

// The batch's jets in slices: fills those arrays that are there, and counts.
KDFAST_INLINE Extent slice_jets(const EncoderBatch& batch, int64_t granule, Slice* slices, int64_t* first_row,
                                int64_t* counts, int64_t* group_begin) {
    Extent e{};
    e.jets = batch.num_jets;
    const auto count_of = [&](int64_t jet) __attribute__((always_inline)) {
        const int64_t at = batch.jets ? batch.jets[jet] : batch.first + jet;
        return batch.offsets[at + 1] - batch.offsets[at];
    };
    for (int64_t group = 0; group < kGroups; ++group) {
        const int64_t end = batch.num_jets * (group + 1) / kGroups;
        if (group_begin) group_begin[group] = e.slices;
        bool first = true;
        for (int64_t jet = batch.num_jets * group / kGroups; jet < end;) {
            Slice slice{jet, 0, e.rows, 0, 0, first, false};
            do {
                const int64_t n = count_of(jet);
                if (slice.jets > 0 && slice.tokens + n > kSliceTokens) break;
                if (counts) {
                    counts[jet] = n;
                    first_row[jet] = slice.row + slice.tokens;
                }
                e.longest_jet = n > e.longest_jet ? n : e.longest_jet;
                slice.tokens += n;
                ++slice.jets;
                ++jet;
            } while (jet < end);
            slice.rows = round_up(slice.tokens, granule);
            slice.last = jet == end;
            e.rows += slice.rows;
            e.slice_rows = slice.rows > e.slice_rows ? slice.rows : e.slice_rows;
            if (slices) slices[e.slices] = slice;
            ++e.slices;
            first = false;
        }
    }
    if (group_begin) group_begin[kGroups] = e.slices;
    return e;
}

// Decisions of dropout are read as a whole vector's, beyond the last.
constexpr int64_t kSlack = 64;

// Everything that a call needs of memory, but for the threads' scratch.
template <class E>
struct Buffers {
    Slice* slices;
    int64_t *first_row, *counts, *group_begin;
    float* inputs;  // [rows, kMaxFeatures]
    uint8_t* ones;
    // The embedding and the pooling query
    float *scaled, *packed_embed, *shift, *factor, *deviation, *query, *q, *dq, *packed_query;
    LayerWeights<E>* weights;  // [layers]
    float* x;                  // [rows, ld_x], the encoder's result
    float *p, *pool_weights, *entropy, *maximum, *d_entropy, *d_maximum;
    uint8_t *keep_embed, *keep_pool;
    HeadBuffers head;
    uint8_t* keep_head[3];
    LayerStore<E>* stored;                  // [layers], of the whole batch; in evaluation not there
    float *labels, *jet_weights, *teacher;  // [jets]
    float *group_sums, *total_sums;
    double* seconds;  // [kGroups + 1, kParts]
    size_t bytes;
};

struct Setup {
    EncoderSizes sizes;
    Extent extent;
    LayerShape shape;
    HeadShape head;
    int64_t ld_p, num_sums, embed_sums, query_sums;
    int64_t attention_floats;
    bool training, threaded;
};

template <class E>
KDFAST_INLINE Setup set_up(const EncoderSizes& sizes, const Extent& extent, const ParameterMap& map, bool training,
                           bool threaded) {
    Setup s{};
    s.sizes = sizes;
    s.extent = extent;
    s.training = training;
    s.threaded = threaded;
    const int64_t w = sizes.width, d = w / sizes.heads;
    s.shape = {w,
               sizes.heads,
               d,
               sizes.ffn,
               row_stride<float>(w),
               row_stride<E>(w),
               row_stride<E>(3 * w),
               row_stride<E>(sizes.ffn),
               1.0f / sqrt(static_cast<float>(d)),
               0,
               0};
    s.head = {extent.jets,  round_up(extent.jets, kRowGranule), row_stride<float>(w), w, sizes.pooling_heads,
              sizes.classes};
    kdfast::jet_attention_scratch({extent.longest_jet, d, &s.attention_floats});
    s.ld_p = round_up(sizes.pooling_heads, 16);
    // Gradient sums: the layers' as in the flat buffer, then S and s of the embedding, then the pooling query's.
    s.embed_sums = sizes.layers * map.layer_size;
    s.query_sums = s.embed_sums + w * (kMaxFeatures + 1);
    s.num_sums = round_up(s.query_sums + sizes.pooling_heads * w, 16);
    return s;
}

template <class E>
KDFAST_INLINE Buffers<E> lay_out(const Setup& s, char* memory) {
    Layout at{memory};
    Buffers<E> b{};
    const int64_t w = s.sizes.width, ffn = s.sizes.ffn, rows = s.extent.rows, jets = s.extent.jets;
    const int64_t heads = s.sizes.pooling_heads, group_bytes = (heads + 7) / 8;
    b.slices = at.take<Slice>(s.extent.slices);
    b.first_row = at.take<int64_t>(jets);
    b.counts = at.take<int64_t>(jets);
    b.group_begin = at.take<int64_t>(kGroups + 1);
    b.inputs = at.take<float>(rows * kMaxFeatures);
    b.ones = at.take<uint8_t>((ffn > w ? ffn : w) / 8 + kSlack);
    b.scaled = at.take<float>(w * s.sizes.features);
    b.packed_embed = at.take<float>(packed_size(s.sizes.features, w));
    for (float** p : {&b.shift, &b.factor, &b.deviation, &b.q, &b.dq}) *p = at.take<float>(w);
    b.query = at.take<float>(heads * w);
    b.packed_query = at.take<float>(packed_size(w, heads));
    b.weights = at.take<LayerWeights<E>>(s.sizes.layers);
    for (int64_t layer = 0; layer < s.sizes.layers; ++layer) {
        LayerWeights<E> to{};
        to.qkv = at.take<E>(packed_elements<E>(w, 3 * w));
        to.out = at.take<E>(packed_elements<E>(w, w));
        to.ffn_in = at.take<E>(packed_elements<E>(w, ffn));
        to.ffn_out = at.take<E>(packed_elements<E>(ffn, w));
        to.qkv_bias = at.take<float>(3 * w);
        to.ffn_in_bias = at.take<float>(ffn);
        if (s.training) {
            to.back_qkv = at.take<E>(packed_elements<E>(3 * w, w));
            to.back_out = at.take<E>(packed_elements<E>(w, w));
            to.back_ffn_in = at.take<E>(packed_elements<E>(ffn, w));
            to.back_ffn_out = at.take<E>(packed_elements<E>(w, ffn));
        }
        if (memory) b.weights[layer] = to;
    }
    b.p = at.take<float>(rows * s.ld_p);
    b.pool_weights = at.take<float>(rows + kSlack);
    HeadBuffers& h = b.head;
    const int64_t cells = s.head.rows * s.head.ld;
    h.mean = at.take<float>(s.head.rows * heads * w);
    h.r = at.take<float>(s.head.rows * heads);
    for (float** p : {&h.pooled, &h.normal, &h.normal_affine, &h.residual, &h.d}) *p = at.take<float>(cells);
    h.deviation = at.take<float>(s.head.rows);
    for (DenseStore& dense : h.dense) {
        dense.normal = at.take<float>(cells);
        dense.out = at.take<float>(cells);
        dense.inverse = at.take<float>(s.head.ld);
    }
    h.packed = at.take<float>(packed_size(w, w));
    if (!s.training) {
        b.bytes = at.used;
        return b;
    }
    h.d_mean = at.take<float>(s.head.rows * heads * w);
    h.d_r = at.take<float>(s.head.rows * heads);
    h.dy = at.take<float>(cells);
    h.logits = at.take<float>(jets);
    h.outer = at.take<float>(outer_scratch(w));
    h.d_logits = at.take<float>(jets);
    for (uint8_t*& bits : b.keep_head) bits = at.take<uint8_t>(jets * w / 8 + kSlack);
    for (float** p : {&b.entropy, &b.maximum, &b.d_entropy, &b.d_maximum, &b.labels, &b.jet_weights, &b.teacher})
        *p = at.take<float>(jets);
    b.x = at.take<float>(rows * s.shape.ld_x);
    b.keep_embed = at.take<uint8_t>(rows * w / 8 + kSlack);
    b.keep_pool = at.take<uint8_t>(rows * group_bytes + kSlack);
    b.stored = at.take<LayerStore<E>>(s.sizes.layers);
    for (int64_t layer = 0; layer < s.sizes.layers; ++layer) {
        LayerStore<E> to{};
        for (E** p : {&to.norm1, &to.attended, &to.norm2}) *p = at.take<E>(rows * s.shape.ld_w);
        to.qkv = at.take<E>(rows * s.shape.ld_qkv);
        to.hidden = at.take<E>(rows * s.shape.ld_ffn);
        to.deviation1 = at.take<float>(rows);
        to.deviation2 = at.take<float>(rows);
        to.lse = at.take<float>(rows * s.sizes.heads);
        to.keep_out.bits = at.take<uint8_t>(rows * w / 8 + kSlack);
        to.keep_hidden.bits = at.take<uint8_t>(rows * ffn / 8 + kSlack);
        to.keep_ffn.bits = at.take<uint8_t>(rows * w / 8 + kSlack);
        if (memory) b.stored[layer] = to;
    }
    b.group_sums = at.take<float>(s.num_sums * (s.threaded ? kGroups : 1));
    b.total_sums = at.take<float>(s.num_sums);
    b.seconds = at.take<double>((kGroups + 1) * kParts);
    b.bytes = at.used;
    return b;
}

// A thread's scratch for one slice; in evaluation it also holds what the backward pass would read.
template <class E>
struct ThreadBuffers {
    SliceScratch<E> slice;
    LayerStore<E> stored;
    size_t bytes;
};

template <class E>
KDFAST_INLINE ThreadBuffers<E> lay_out_thread(const Setup& s, char* memory) {
    Layout at{memory};
    ThreadBuffers<E> b{};
    const int64_t rows = s.extent.slice_rows;
    const LayerShape& shape = s.shape;
    b.slice.t = at.take<float>(rows * (shape.ld_x > s.ld_p ? shape.ld_x : s.ld_p));
    b.slice.h = b.slice.d_attended = at.take<E>(rows * (shape.ld_ffn > shape.ld_w ? shape.ld_ffn : shape.ld_w));
    b.slice.attention = at.take<float>(s.attention_floats);
    if (s.training) {
        b.slice.dx = at.take<float>(rows * shape.ld_x);
        b.slice.dz = at.take<E>(rows * shape.ld_w);
        b.slice.du = at.take<E>(rows * shape.ld_ffn);
        b.slice.dqkv = at.take<E>(rows * shape.ld_qkv);
        int64_t floats = outer_scratch(shape.width);
        for (int64_t other :
             {outer_floats<E>(3 * shape.width, shape.width, rows), outer_floats<E>(shape.ffn, shape.width, rows),
              outer_floats<E>(shape.width, shape.ffn, rows)})
            floats = other > floats ? other : floats;
        b.slice.outer = at.take<float>(floats);
    } else {
        b.slice.x = at.take<float>(rows * shape.ld_x);
        for (E** p : {&b.stored.norm1, &b.stored.attended}) *p = at.take<E>(rows * shape.ld_w);
        b.stored.norm2 = b.stored.norm1;
        b.stored.qkv = at.take<E>(rows * shape.ld_qkv);
        b.stored.hidden = b.slice.h;
        b.stored.deviation1 = b.stored.deviation2 = at.take<float>(rows);
        b.stored.lse = at.take<float>(rows * shape.heads);
    }
    b.bytes = at.used;
    return b;
}

template <class E>
KDFAST_INLINE ThreadBuffers<E> thread_buffers(const Setup& s) {
    const size_t bytes = lay_out_thread<E>(s, nullptr).bytes + 64;
    return lay_out_thread<E>(s, reinterpret_cast<char*>(scratch(bytes / sizeof(float) + 1)));
}

// The layers' matrices, γ folded in, packed; biases with W β added.
template <class E>
void pack_layer(const EncoderSizes& sizes, const LayerMap& map, const float* parameters, bool training,
                LayerWeights<E>& w) {
    const int64_t width = sizes.width, ffn = sizes.ffn;
    const auto folded_bias = [&](const Affine& linear, const Affine& norm, int64_t num_out,
                                 float* to) __attribute__((always_inline)) {
        for (int64_t j = 0; j < num_out; ++j)
            to[j] = parameters[linear.bias + j] +
                    dot(parameters + linear.weight + j * width, parameters + norm.bias, width);
    };
    const auto pack = [&](const Affine& linear, int64_t num_in, int64_t num_out, const float* gamma,
                          const E* to) __attribute__((always_inline)) {
        pack_panels(parameters + linear.weight, 1, num_in, num_in, num_out, gamma, const_cast<E*>(to));
    };
    const auto pack_back = [&](const Affine& linear, int64_t num_in, int64_t num_out,
                               const E* to) __attribute__((always_inline)) {
        pack_panels(parameters + linear.weight, num_in, 1, num_out, num_in, nullptr, const_cast<E*>(to));
    };
    w.gamma1 = parameters + map.norm1.weight;
    w.gamma2 = parameters + map.norm2.weight;
    w.out_bias = parameters + map.out.bias;
    w.ffn_out_bias = parameters + map.ffn_out.bias;
    pack(map.qkv, width, 3 * width, w.gamma1, w.qkv);
    pack(map.out, width, width, nullptr, w.out);
    pack(map.ffn_in, width, ffn, w.gamma2, w.ffn_in);
    pack(map.ffn_out, ffn, width, nullptr, w.ffn_out);
    folded_bias(map.qkv, map.norm1, 3 * width, const_cast<float*>(w.qkv_bias));
    folded_bias(map.ffn_in, map.norm2, ffn, const_cast<float*>(w.ffn_in_bias));
    if (!training) return;
    pack_back(map.qkv, width, 3 * width, w.back_qkv);
    pack_back(map.out, width, width, w.back_out);
    pack_back(map.ffn_in, width, ffn, w.back_ffn_in);
    pack_back(map.ffn_out, ffn, width, w.back_ffn_out);
}

// Gradients of a layer's parameters from the sums of folded matrices (layer.h).
KDFAST_INLINE void layer_gradient(const EncoderSizes& sizes, const LayerMap& map, const float* parameters,
                                  const float* sums, float* gradient) {
    const int64_t w = sizes.width;
    const auto plain = [&](const Affine& linear, int64_t weights, int64_t biases) __attribute__((always_inline)) {
        std::memcpy(gradient + linear.weight, sums + linear.weight, static_cast<size_t>(weights) * sizeof(float));
        std::memcpy(gradient + linear.bias, sums + linear.bias, static_cast<size_t>(biases) * sizeof(float));
    };
    const auto folded = [&](const Affine& linear, const Affine& norm, int64_t num_out) __attribute__((always_inline)) {
        const float *const gamma = parameters + norm.weight, *const beta = parameters + norm.bias;
        float *const d_gamma = gradient + norm.weight, *const d_beta = gradient + norm.bias;
        for (int64_t j = 0; j < w; ++j) d_gamma[j] = d_beta[j] = 0.0f;
        for (int64_t i = 0; i < num_out; ++i) {
            const float* const weight = parameters + linear.weight + i * w;
            const float* const G = sums + linear.weight + i * w;
            float* const to = gradient + linear.weight + i * w;
            const float s = sums[linear.bias + i];
            for (int64_t j = 0; j < w; ++j) {
                to[j] = G[j] * gamma[j] + s * beta[j];
                d_gamma[j] += weight[j] * G[j];
                d_beta[j] += weight[j] * s;
            }
            gradient[linear.bias + i] = s;
        }
    };
    folded(map.qkv, map.norm1, 3 * w);
    plain(map.out, w * w, w);
    folded(map.ffn_in, map.norm2, sizes.ffn);
    plain(map.ffn_out, w * sizes.ffn, w);
}

// Features of the batch's jets in the rows of its slices, zeros elsewhere.
template <class E>
KDFAST_INLINE void gather(const EncoderBatch& batch, const EncoderSizes& sizes, const Extent& extent,
                          const Buffers<E>& b) {
    std::memset(b.inputs, 0, static_cast<size_t>(extent.rows * kMaxFeatures) * sizeof(float));
    for (int64_t jet = 0; jet < batch.num_jets; ++jet) {
        const int64_t at = batch.jets ? batch.jets[jet] : batch.first + jet;
        const float* from = batch.features + batch.offsets[at] * sizes.features;
        float* to = b.inputs + b.first_row[jet] * kMaxFeatures;
        for (int64_t t = 0; t < b.counts[jet]; ++t, from += sizes.features, to += kMaxFeatures)
            for (int64_t f = 0; f < sizes.features; ++f) to[f] = from[f];
    }
}

template <class E>
KDFAST_INLINE Pooling pooling_of(const Setup& s, const Buffers<E>& b, const Keep& keep) {
    return {s.sizes.width, s.sizes.pooling_heads,
            s.shape.ld_x,  s.ld_p,
            b.query,       b.packed_query,
            b.first_row,   b.counts,
            b.p,           keep,
            b.head.mean,   b.head.r,
            b.entropy,     b.maximum,
            b.pool_weights};
}

template <class E>
KDFAST_INLINE LayerStore<E> rows_of(const LayerShape& s, const LayerStore<E>& all, int64_t row) {
    LayerStore<E> at = all;
    at.norm1 += row * s.ld_w;
    at.qkv += row * s.ld_qkv;
    at.attended += row * s.ld_w;
    at.norm2 += row * s.ld_w;
    at.hidden += row * s.ld_ffn;
    at.deviation1 += row;
    at.deviation2 += row;
    at.lse += row * s.heads;
    for (Keep* keep : {&at.keep_out, &at.keep_hidden, &at.keep_ffn}) keep->bits += row * keep->stride;
    return at;
}

template <class E>
void step(const EncoderStepParams& p, const ParameterMap& map) {
    const EncoderSizes& sizes = p.sizes;
    const int64_t w = sizes.width, jets = p.batch.num_jets, granule = row_granule<E>();
    const bool threaded = p.num_threads > 1;
    const Setup s =
        set_up<E>(sizes, slice_jets(p.batch, granule, nullptr, nullptr, nullptr, nullptr), map, true, threaded);
    char* const memory = p.memory->reserve(lay_out<E>(s, nullptr).bytes + kSlack);
    *p.valid = memory != nullptr;
    if (!*p.valid) return;
    const Buffers<E> b = lay_out<E>(s, memory);
    slice_jets(p.batch, granule, b.slices, b.first_row, b.counts, b.group_begin);
    if (p.seconds) std::memset(b.seconds, 0, (kGroups + 1) * kParts * sizeof(double));
    Ticker tick(p.seconds ? b.seconds + kGroups * kParts : nullptr);

    // Inputs, and everything that depends on the parameters alone.
    gather(p.batch, sizes, s.extent, b);
    for (int64_t jet = 0; jet < jets; ++jet) {
        const int64_t at = p.batch.jets ? p.batch.jets[jet] : p.batch.first + jet;
        b.labels[jet] = p.labels[at];
        b.jet_weights[jet] = p.weights[at];
        if (p.teacher_logits) b.teacher[jet] = p.teacher_logits[at];
    }
    Moments moments;
    int64_t tokens = 0;
    for (int64_t i = 0; i < s.extent.slices; ++i) tokens += b.slices[i].tokens;
    const bool from_batch = tokens > 1;
    if (from_batch) centre(b.inputs, b.slices, s.extent.slices, sizes.features, moments);
    const EmbedParameters embed_parameters{p.parameters + map.embed.weight,
                                           p.parameters + map.embed.bias,
                                           p.parameters + map.embed_norm.weight,
                                           p.parameters + map.embed_norm.bias,
                                           p.running,
                                           sizes.features,
                                           w};
    const EmbedMap embed = embed_map(embed_parameters, from_batch ? &moments : nullptr, p.running, b.scaled,
                                     b.packed_embed, b.shift, b.factor, b.deviation);
    tick(Part::gather);
    parallel_for(sizes.layers, p.num_threads, [&](int64_t layer) {
        LayerMap at = map.layer;
        pack_layer<E>(sizes, at, p.parameters + map.layers + layer * map.layer_size, true, b.weights[layer]);
    });
    pooling_query(sizes, map, p.parameters, b.q, b.query);
    pack_panels(b.query, 1, w, w, sizes.pooling_heads, nullptr, b.packed_query);
    tick(Part::pack);

    // Dropout: seeds as in JetTransformer.forward and its layers.
    std::memset(b.ones, 0xFF, static_cast<size_t>((sizes.ffn > w ? sizes.ffn : w) / 8 + kSlack));
    const float scale = 65536.0f / static_cast<float>(65536 - p.threshold);
    const auto seed_of = [&](uint64_t layer, uint64_t part) __attribute__((always_inline)) {
        return fold_seed(fold_seed(p.dropout_seed, layer), part);
    };
    const auto keep_of = [&](uint8_t* bits, int64_t stride) __attribute__((always_inline)) {
        return p.threshold ? Keep{bits, stride, scale} : Keep{b.ones, 0, 1.0f};
    };
    const int64_t pool_bytes = (sizes.pooling_heads + 7) / 8;
    const Keep keep_embed = keep_of(b.keep_embed, w / 8);
    const Keep keep_pool = keep_of(b.keep_pool, pool_bytes);
    for (int64_t layer = 0; layer < sizes.layers; ++layer) {
        LayerStore<E>& at = b.stored[layer];
        at.keep_out = keep_of(const_cast<uint8_t*>(at.keep_out.bits), w / 8);
        at.keep_hidden = keep_of(const_cast<uint8_t*>(at.keep_hidden.bits), sizes.ffn / 8);
        at.keep_ffn = keep_of(const_cast<uint8_t*>(at.keep_ffn.bits), w / 8);
    }
    // A slice's decisions of one kind.
    const auto draw = [&](const Slice& slice, uint64_t seed, const Keep& keep) __attribute__((always_inline)) {
        for (int64_t jet = slice.jet; jet < slice.jet + slice.jets; ++jet)
            draw_bits(seed, p.threshold, jet, b.counts[jet], keep.stride, false,
                      const_cast<uint8_t*>(keep.bits) + b.first_row[jet] * keep.stride);
    };
    const Pooling pooling = pooling_of(s, b, keep_pool);
    const auto shape_of = [&](int64_t layer) __attribute__((always_inline)) {
        LayerShape shape = s.shape;
        shape.attention_seed = seed_of(static_cast<uint64_t>(5 + layer), 0);
        shape.threshold = p.threshold;
        return shape;
    };
    const auto keep_rows = [&](const Keep& keep, int64_t row) __attribute__((always_inline)) {
        return Keep{keep.bits + row * keep.stride, keep.stride, keep.scale};
    };

    parallel_for(kGroups, p.num_threads, [&](int64_t group) {
        Ticker tick(p.seconds ? b.seconds + group * kParts : nullptr);
        const ThreadBuffers<E> thread = thread_buffers<E>(s);
        for (int64_t i = b.group_begin[group]; i < b.group_begin[group + 1]; ++i) {
            const Slice& slice = b.slices[i];
            SliceScratch<E> scratch = thread.slice;
            scratch.x = b.x + slice.row * s.shape.ld_x;
            if (p.threshold) {
                draw(slice, seed_of(0, 0), keep_embed);
                draw(slice, seed_of(1, 0), keep_pool);
                for (int64_t layer = 0; layer < sizes.layers; ++layer) {
                    const uint64_t number = static_cast<uint64_t>(5 + layer);
                    draw(slice, seed_of(number, 1), b.stored[layer].keep_out);
                    draw(slice, seed_of(number, 2), b.stored[layer].keep_hidden);
                    draw(slice, seed_of(number, 3), b.stored[layer].keep_ffn);
                }
                tick(Part::dropout);
            }
            embed_forward(embed, sizes.features, w, b.inputs, slice, keep_rows(keep_embed, slice.row), scratch.x,
                          s.shape.ld_x);
            tick(Part::embed);
            for (int64_t layer = 0; layer < sizes.layers; ++layer)
                layer_forward(shape_of(layer), b.weights[layer], rows_of(s.shape, b.stored[layer], slice.row), slice,
                              b.first_row, b.counts, scratch, tick);
            pool_slice(pooling, slice, scratch.x);
            tick(Part::pooling);
        }
    });

    // Head and loss.
    if (p.seconds) tick.last = Ticker::now();
    HeadBuffers head = b.head;
    std::memset(head.mean + jets * sizes.pooling_heads * w, 0,
                static_cast<size_t>((s.head.rows - jets) * sizes.pooling_heads * w) * sizeof(float));
    std::memset(head.r + jets * sizes.pooling_heads, 0,
                static_cast<size_t>((s.head.rows - jets) * sizes.pooling_heads) * sizeof(float));
    for (float* cells : {head.pooled, head.d, head.normal, head.normal_affine, head.dy})
        std::memset(cells, 0, static_cast<size_t>(s.head.rows * s.head.ld) * sizeof(float));
    for (int i = 0; i < 3; ++i) {
        const int64_t outputs = i == 2 ? w / 2 : w;
        head.dense[i].keep = keep_of(b.keep_head[i], outputs / 8);
        if (p.threshold)
            draw_bits(seed_of(static_cast<uint64_t>(2 + i), 0), p.threshold, 0, jets, outputs / 8, true,
                      b.keep_head[i]);
        std::memset(head.dense[i].normal, 0, static_cast<size_t>(s.head.rows * s.head.ld) * sizeof(float));
        std::memset(head.dense[i].out, 0, static_cast<size_t>(s.head.rows * s.head.ld) * sizeof(float));
    }
    head_forward(s.head, map, p.parameters, p.running, p.running, head);
    float loss, terms[2];
    bool valid = false;
    const double alpha = p.teacher_logits ? p.alpha : 0.0;
    kdfast::distill_loss(DistillLossParams{head.logits, p.teacher_logits ? b.teacher : nullptr, b.labels, b.jet_weights,
                                           &p.temperature, &alpha, &loss, terms, head.d_logits, 1, jets, 1, 0,
                                           DType::f32, DType::f32, DType::f32, true, 1, &valid});
    *p.valid = valid;
    if (!valid) return;
    double transfer = 0.0;
    const bool transfers = p.teacher_entropy && p.teacher_maximum;
    if (transfers) {
        double total = 0.0;
        for (int64_t jet = 0; jet < jets; ++jet) total += static_cast<double>(b.jet_weights[jet]);
        for (int64_t jet = 0; jet < jets; ++jet) {
            const int64_t at = p.batch.jets ? p.batch.jets[jet] : p.batch.first + jet;
            const double share = p.attention_weight * static_cast<double>(b.jet_weights[jet]) / total;
            const double entropy = static_cast<double>(b.entropy[jet]) - static_cast<double>(p.teacher_entropy[at]);
            const double maximum = static_cast<double>(b.maximum[jet]) - static_cast<double>(p.teacher_maximum[at]);
            transfer += share * (entropy * entropy + maximum * maximum);
            b.d_entropy[jet] = static_cast<float>(2.0 * share * entropy);
            b.d_maximum[jet] = static_cast<float>(2.0 * share * maximum);
        }
    }
    p.terms[0] = static_cast<double>(loss) + transfer;
    p.terms[1] = alpha * static_cast<double>(terms[0]);
    p.terms[2] = (1.0 - alpha) * static_cast<double>(terms[1]);
    p.terms[3] = transfer;
    head_backward(s.head, map, p.parameters, p.gradient, head);
    tick(Part::head);

    // Backward. One thread adds each group's sum to the total at once, in order; several leave them for later.
    const PoolingGradient pooling_gradient{head.d_mean, head.d_r, transfers ? b.d_entropy : nullptr,
                                           transfers ? b.d_maximum : nullptr};
    std::memset(b.total_sums, 0, static_cast<size_t>(s.num_sums) * sizeof(float));
    parallel_for(kGroups, p.num_threads, [&](int64_t group) {
        Ticker tick(p.seconds ? b.seconds + group * kParts : nullptr);
        const ThreadBuffers<E> thread = thread_buffers<E>(s);
        const SliceScratch<E>& scratch = thread.slice;
        for (int64_t i = b.group_begin[group]; i < b.group_begin[group + 1]; ++i) {
            const Slice& slice = b.slices[i];
            const Sums sums{b.group_sums + (threaded ? group * s.num_sums : 0), threaded ? nullptr : b.total_sums,
                            slice.first, slice.last};
            const float* const x = b.x + slice.row * s.shape.ld_x;
            pool_slice_backward(pooling, pooling_gradient, slice, x, scratch.dx, scratch.t, scratch.outer, sums,
                                s.query_sums);
            tick(Part::back_pooling);
            for (int64_t layer = sizes.layers - 1; layer >= 0; --layer)
                layer_backward(shape_of(layer), map.layer, layer * map.layer_size, b.weights[layer],
                               rows_of(s.shape, b.stored[layer], slice.row), slice, b.first_row, b.counts, scratch,
                               sums, tick);
            embed_backward(embed, sizes.features, w, b.inputs, slice, keep_rows(keep_embed, slice.row), scratch.dx,
                           scratch.t, s.shape.ld_x, scratch.outer, sums, s.embed_sums);
            tick(Part::back_embed);
        }
    });

    if (p.seconds) tick.last = Ticker::now();
    if (threaded) {
        constexpr int64_t kChunk = 8192;
        parallel_for((s.num_sums + kChunk - 1) / kChunk, p.num_threads, [&](int64_t chunk) {
            const int64_t begin = chunk * kChunk, end = begin + kChunk < s.num_sums ? begin + kChunk : s.num_sums;
            for (int64_t group = 0; group < kGroups; ++group) {
                if (b.group_begin[group] == b.group_begin[group + 1]) continue;
                const float* const from = b.group_sums + group * s.num_sums;
                for (int64_t at = begin; at < end; at += kLanes)
                    store(b.total_sums + at, load(b.total_sums + at) + load(from + at));
            }
        });
    }
    parallel_for(sizes.layers, p.num_threads, [&](int64_t layer) {
        const int64_t at = layer * map.layer_size;
        layer_gradient(sizes, map.layer, p.parameters + map.layers + at, b.total_sums + at,
                       p.gradient + map.layers + at);
    });
    embed_gradient(embed_parameters, embed, moments, b.total_sums + s.embed_sums, p.gradient + map.embed.weight,
                   p.gradient + map.embed.bias, p.gradient + map.embed_norm.weight, p.gradient + map.embed_norm.bias);
    back_pooling_query(sizes, map, p.parameters, b.q, b.total_sums + s.query_sums, b.dq, p.gradient);
    tick(Part::gradient);
    if (p.seconds)
        for (int64_t i = 0; i < (kGroups + 1) * kParts; ++i) p.seconds[i % kParts] += b.seconds[i];
}

template <class E>
void forward(const EncoderForwardParams& p, const ParameterMap& map) {
    const EncoderSizes& sizes = p.sizes;
    const int64_t w = sizes.width, jets = p.batch.num_jets, granule = row_granule<E>();
    const Setup s =
        set_up<E>(sizes, slice_jets(p.batch, granule, nullptr, nullptr, nullptr, nullptr), map, false, false);
    char* const memory = p.memory->reserve(lay_out<E>(s, nullptr).bytes + kSlack);
    *p.valid = memory != nullptr;
    if (!*p.valid) return;
    const Buffers<E> b = lay_out<E>(s, memory);
    slice_jets(p.batch, granule, b.slices, b.first_row, b.counts, b.group_begin);
    gather(p.batch, sizes, s.extent, b);
    const EmbedParameters embed_parameters{p.parameters + map.embed.weight,
                                           p.parameters + map.embed.bias,
                                           p.parameters + map.embed_norm.weight,
                                           p.parameters + map.embed_norm.bias,
                                           p.running,
                                           sizes.features,
                                           w};
    const EmbedMap embed =
        embed_map(embed_parameters, nullptr, nullptr, b.scaled, b.packed_embed, b.shift, b.factor, b.deviation);
    for (int64_t layer = 0; layer < sizes.layers; ++layer)
        pack_layer<E>(sizes, map.layer, p.parameters + map.layers + layer * map.layer_size, false, b.weights[layer]);
    pooling_query(sizes, map, p.parameters, b.q, b.query);
    pack_panels(b.query, 1, w, w, sizes.pooling_heads, nullptr, b.packed_query);
    std::memset(b.ones, 0xFF, static_cast<size_t>((sizes.ffn > w ? sizes.ffn : w) / 8 + kSlack));
    const Keep all{b.ones, 0, 1.0f};
    const Pooling pooling = pooling_of(s, b, all);
    parallel_for(s.extent.slices, p.num_threads, [&](int64_t i) {
        const Slice& slice = b.slices[i];
        ThreadBuffers<E> thread = thread_buffers<E>(s);
        thread.stored.keep_out = thread.stored.keep_hidden = thread.stored.keep_ffn = all;
        embed_forward(embed, sizes.features, w, b.inputs, slice, all, thread.slice.x, s.shape.ld_x);
        for (int64_t layer = 0; layer < sizes.layers; ++layer)
            layer_forward(s.shape, b.weights[layer], thread.stored, slice, b.first_row, b.counts, thread.slice,
                          [](Part) {});
        pool_slice(pooling, slice, thread.slice.x);
    });
    HeadBuffers head = b.head;
    head.logits = p.logits;
    std::memset(head.mean + jets * sizes.pooling_heads * w, 0,
                static_cast<size_t>((s.head.rows - jets) * sizes.pooling_heads * w) * sizeof(float));
    std::memset(head.r + jets * sizes.pooling_heads, 0,
                static_cast<size_t>((s.head.rows - jets) * sizes.pooling_heads) * sizeof(float));
    for (float* cells : {head.pooled, head.d, head.normal, head.normal_affine})
        std::memset(cells, 0, static_cast<size_t>(s.head.rows * s.head.ld) * sizeof(float));
    for (DenseStore& dense : head.dense) {
        dense.keep = all;
        std::memset(dense.normal, 0, static_cast<size_t>(s.head.rows * s.head.ld) * sizeof(float));
        std::memset(dense.out, 0, static_cast<size_t>(s.head.rows * s.head.ld) * sizeof(float));
    }
    head_forward(s.head, map, p.parameters, p.running, nullptr, head);
    if (p.pooling) {
        float* to = p.pooling;
        for (int64_t jet = 0; jet < jets; ++jet) {
            for (int64_t t = 0; t < b.counts[jet]; ++t) to[t] = b.pool_weights[b.first_row[jet] + t];
            to += b.counts[jet];
        }
    }
}

}  // namespace

void encoder_step(const EncoderStepParams& p) {
    const ParameterMap map(p.sizes);
    p.bf16 ? step<bf16>(p, map) : step<float>(p, map);
}

void encoder_forward(const EncoderForwardParams& p) {
    const ParameterMap map(p.sizes);
    p.bf16 ? forward<bf16>(p, map) : forward<float>(p, map);
}

}  // namespace kdfast::KDFAST_ISA_NS
