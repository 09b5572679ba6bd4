#include "encoder/encoder.h"

#include <time.h>

#include <initializer_list>

#include "core/threads.h"
#include "distill_loss/distill_loss.h"
#include "encoder/buffers.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

// Adds the processor time of this thread since the last call to a part of the step.
struct Ticker {
    double* seconds;  // [kParts]; null: not measured
    double last = 0.0;

    static KDFAST_INLINE double now() {
        timespec t;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
    }
    explicit KDFAST_INLINE Ticker(double* to) : seconds(to) { skip(); }
    KDFAST_INLINE void operator()(Part part) {
        if (seconds == nullptr) return;
        const double t = now();
        seconds[static_cast<int>(part)] += t - last;
        last = t;
    }
    // What passed since the last call is counted elsewhere.
    KDFAST_INLINE void skip() {
        if (seconds) last = now();
    }
};

// Decisions of dropout, with the seeds of JetTransformer.forward and its layers.
struct Dropout {
    uint64_t seed;       // the step's
    uint32_t threshold;  // 0: none
    float scale;
    uint8_t* ones;

    static constexpr uint64_t kEmbed = 0, kPool = 1, kDense = 2, kLayers = 5;
    enum LayerPart : uint64_t { kAttention, kOut, kHidden, kFfn };

    KDFAST_INLINE uint64_t seed_of(uint64_t module, uint64_t part = 0) const {
        const auto fold = [](uint64_t s, uint64_t n) __attribute__((always_inline)) { return splitmix64(s ^ n) >> 1; };
        return fold(fold(seed, module), part);
    }
    KDFAST_INLINE Keep keep(uint8_t* bits, int64_t features) const {
        return threshold ? Keep{bits, bytes_of_bits(features), scale} : Keep{ones, 0, 1.0f};
    }
    // Those of a slice's constituents, of one kind.
    KDFAST_INLINE void draw(const Slicing& slicing, const Slice& slice, uint64_t from, const Keep& to) const {
        for (int64_t jet = slice.jet; jet < slice.jet + slice.jets; ++jet)
            draw_bits(from, threshold, jet, slicing.counts[jet], to.stride, false,
                      to.bits + slicing.first_row[jet] * to.stride);
    }
};

// The batch in slices, memory for everything, inputs in their rows. False where memory is lacking.
template <class E, class Params>
KDFAST_INLINE bool prepare(const Params& p, const ParameterMap& map, bool training, Setup& s, Buffers<E>& b) {
    const Extent extent = slice_jets(p.batch, row_granule<E>(), nullptr);
    s = set_up<E>(p.sizes, map, extent, training, p.num_threads > 1);
    char* const memory = p.memory->reserve(lay_out<E>(s, nullptr).bytes);
    if (memory == nullptr) return false;
    b = lay_out<E>(s, memory);
    slice_jets(p.batch, row_granule<E>(), &b.slicing);
    std::memset(b.ones, 0xFF, static_cast<size_t>(bytes_of_bits(widest(s.sizes))));
    // Zeros beyond a jet's features and in rows that belong to no jet.
    std::memset(b.inputs, 0, static_cast<size_t>(extent.rows * kMaxFeatures) * sizeof(float));
    const int64_t features = p.sizes.features;
    for (int64_t jet = 0; jet < extent.jets; ++jet) {
        const float* from = p.batch.features + p.batch.offsets[position(p.batch, jet)] * features;
        float* to = b.inputs + b.slicing.first_row[jet] * kMaxFeatures;
        for (int64_t t = 0; t < b.slicing.counts[jet]; ++t, from += features, to += kMaxFeatures)
            for (int64_t f = 0; f < features; ++f) to[f] = from[f];
    }
    return true;
}

// Matrices and the pooling's query as the passes over slices want them.
template <class E>
KDFAST_INLINE void pack(const Setup& s, const ParameterMap& map, const float* parameters, int num_threads,
                        const Buffers<E>& b) {
    parallel_for(s.sizes.layers, num_threads, [&](int64_t layer) {
        pack_layer<E>(s.sizes, map.layer, parameters + map.layers + layer * map.layer_size, s.training,
                      b.weights[layer]);
    });
    pooling_query(s.sizes, map, parameters, b.q, b.query);
    pack_panels(b.query, 1, s.sizes.width, s.sizes.width, s.sizes.pooling_heads, nullptr, b.packed_query);
}

// Zeros in rows beyond the jets and columns beyond a layer's outputs, which the head's products read.
KDFAST_INLINE void clear(const HeadShape& s, const HeadBuffers& head) {
    const int64_t pooled = s.pooling_heads * (s.rows - s.jets);
    std::memset(head.mean + s.jets * s.pooling_heads * s.width, 0,
                static_cast<size_t>(pooled * s.width) * sizeof(float));
    std::memset(head.r + s.jets * s.pooling_heads, 0, static_cast<size_t>(pooled) * sizeof(float));
    const auto all = [&](float* cells) __attribute__((always_inline)) {
        if (cells) std::memset(cells, 0, static_cast<size_t>(s.rows * s.ld) * sizeof(float));
    };
    for (float* cells : {head.pooled, head.d, head.normed, head.affine, head.dy}) all(cells);
    for (const DenseStore& dense : head.dense) {
        all(dense.normed);
        all(dense.out);
    }
}

// The attention-transfer term Σ_b w_b [(H_b − H_b^teacher)² + (m_b − m_b^teacher)²] / Σ w, H and m being entropy and
// maximum of the pooling weights, and its gradients by these.
template <class E>
KDFAST_INLINE double attention_transfer(const EncoderStepParams& p, const Buffers<E>& b) {
    const int64_t jets = p.batch.num_jets;
    double total = 0.0, sum = 0.0;
    for (int64_t jet = 0; jet < jets; ++jet) total += static_cast<double>(b.jet_weights[jet]);
    for (int64_t jet = 0; jet < jets; ++jet) {
        const int64_t at = position(p.batch, jet);
        const double share = p.attention_weight * static_cast<double>(b.jet_weights[jet]) / total;
        const double entropy = static_cast<double>(b.entropy[jet]) - static_cast<double>(p.teacher_entropy[at]);
        const double maximum = static_cast<double>(b.maximum[jet]) - static_cast<double>(p.teacher_maximum[at]);
        sum += share * (entropy * entropy + maximum * maximum);
        b.d_entropy[jet] = static_cast<float>(2.0 * share * entropy);
        b.d_maximum[jet] = static_cast<float>(2.0 * share * maximum);
    }
    return sum;
}

template <class E>
Outcome step(const EncoderStepParams& p, const ParameterMap& map) {
    const EncoderSizes& sizes = p.sizes;
    const int64_t w = sizes.width, jets = p.batch.num_jets;
    Setup s{};
    Buffers<E> b{};
    if (!prepare<E>(p, map, true, s, b)) return Outcome::no_memory;
    const Slicing& slicing = b.slicing;
    if (p.seconds) std::memset(b.seconds, 0, (kGroups + 1) * kParts * sizeof(double));
    Ticker tick(p.seconds ? b.seconds + kGroups * kParts : nullptr);
    for (int64_t jet = 0; jet < jets; ++jet) {
        const int64_t at = position(p.batch, jet);
        b.labels[jet] = p.labels[at];
        b.jet_weights[jet] = p.weights[at];
        if (p.teacher_logits) b.teacher[jet] = p.teacher_logits[at];
    }
    Moments moments;
    const bool from_batch = s.extent.tokens > 1;
    if (from_batch) centre(b.inputs, slicing.slices, s.extent.slices, sizes.features, moments);
    const EmbedMap embed =
        embed_map(sizes, map, p.parameters, p.running, from_batch ? &moments : nullptr, p.running, b.embed);
    tick(Part::gather);
    pack(s, map, p.parameters, p.num_threads, b);
    tick(Part::pack);

    const Dropout dropout{p.dropout_seed, p.threshold, 65536.0f / static_cast<float>(65536 - p.threshold), b.ones};
    const Keep keep_embed = dropout.keep(b.keep_embed, w);
    const Keep keep_pool = dropout.keep(b.keep_pool, sizes.pooling_heads);
    for (int64_t layer = 0; layer < sizes.layers; ++layer) {
        LayerStore<E>& at = b.stored[layer];
        at.keep_out = dropout.keep(at.keep_out.bits, w);
        at.keep_hidden = dropout.keep(at.keep_hidden.bits, sizes.ffn);
        at.keep_ffn = dropout.keep(at.keep_ffn.bits, w);
    }
    const auto shape_of = [&](int64_t layer) __attribute__((always_inline)) {
        LayerShape shape = s.layer;
        shape.attention_seed = dropout.seed_of(Dropout::kLayers + static_cast<uint64_t>(layer), Dropout::kAttention);
        shape.threshold = p.threshold;
        return shape;
    };
    const Pooling pooling = pooling_of(s, b, keep_pool);

    bool no_memory = false;
    parallel_for(kGroups, p.num_threads, [&](int64_t group) {
        Ticker tick(p.seconds ? b.seconds + group * kParts : nullptr);
        char* const memory = thread_memory<E>(s, no_memory);
        if (memory == nullptr) return;
        const ThreadBuffers<E> thread = lay_out_thread<E>(s, memory);
        for (int64_t i = slicing.group_begin[group]; i < slicing.group_begin[group + 1]; ++i) {
            const Slice& slice = slicing.slices[i];
            SliceScratch<E> scratch = thread.slice;
            scratch.x = b.x + slice.row * s.layer.ld_x;
            if (p.threshold) {
                dropout.draw(slicing, slice, dropout.seed_of(Dropout::kEmbed), keep_embed);
                dropout.draw(slicing, slice, dropout.seed_of(Dropout::kPool), keep_pool);
                for (int64_t layer = 0; layer < sizes.layers; ++layer) {
                    const uint64_t number = Dropout::kLayers + static_cast<uint64_t>(layer);
                    const LayerStore<E>& at = b.stored[layer];
                    dropout.draw(slicing, slice, dropout.seed_of(number, Dropout::kOut), at.keep_out);
                    dropout.draw(slicing, slice, dropout.seed_of(number, Dropout::kHidden), at.keep_hidden);
                    dropout.draw(slicing, slice, dropout.seed_of(number, Dropout::kFfn), at.keep_ffn);
                }
                tick(Part::dropout);
            }
            embed_forward(embed, sizes.features, w, b.inputs, slice, keep_embed.from(slice.row), scratch.x,
                          s.layer.ld_x);
            tick(Part::embed);
            for (int64_t layer = 0; layer < sizes.layers; ++layer)
                layer_forward(shape_of(layer), b.weights[layer], rows_of(s.layer, b.stored[layer], slice.row), slice,
                              slicing.first_row, slicing.counts, scratch, tick);
            pool_slice(pooling, slice, scratch.x);
            tick(Part::pooling);
        }
    });
    if (no_memory) return Outcome::no_memory;

    // The head and the loss, on the whole batch.
    tick.skip();
    HeadBuffers& head = b.head;
    clear(s.head, head);
    for (int i = 0; i < 3; ++i) {
        const int64_t outputs = i == 2 ? w / 2 : w;
        head.dense[i].keep = dropout.keep(b.keep_head[i], outputs);
        if (p.threshold)
            draw_bits(dropout.seed_of(Dropout::kDense + static_cast<uint64_t>(i)), p.threshold, 0, jets,
                      bytes_of_bits(outputs), true, b.keep_head[i]);
    }
    head_forward(s.head, map, p.parameters, p.running, p.running, head);
    float loss, terms[2];
    bool valid = false;
    const double alpha = p.teacher_logits ? p.alpha : 0.0;
    kdfast::distill_loss(DistillLossParams{head.logits, p.teacher_logits ? b.teacher : nullptr, b.labels, b.jet_weights,
                                           &p.temperature, &alpha, &loss, terms, head.d_logits, 1, jets, 1, 0,
                                           DType::f32, DType::f32, DType::f32, true, 1, &valid});
    if (!valid) return Outcome::bad_values;
    const bool transfers = p.teacher_entropy && p.teacher_maximum;
    const double transfer = transfers ? attention_transfer(p, b) : 0.0;
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
        char* const memory = thread_memory<E>(s, no_memory);
        if (memory == nullptr) return;
        const SliceScratch<E> scratch = lay_out_thread<E>(s, memory).slice;
        for (int64_t i = slicing.group_begin[group]; i < slicing.group_begin[group + 1]; ++i) {
            const Slice& slice = slicing.slices[i];
            const Sums sums{b.group_sums + (s.threaded ? group * s.num_sums : 0), s.threaded ? nullptr : b.total_sums,
                            slice.first, slice.last};
            const float* const x = b.x + slice.row * s.layer.ld_x;
            pool_slice_backward(pooling, pooling_gradient, slice, x, scratch.dx, scratch.t, scratch.outer, sums,
                                s.query_sums);
            tick(Part::back_pooling);
            for (int64_t layer = sizes.layers - 1; layer >= 0; --layer)
                layer_backward(shape_of(layer), map.layer, layer * map.layer_size, b.weights[layer],
                               rows_of(s.layer, b.stored[layer], slice.row), slice, slicing.first_row, slicing.counts,
                               scratch, sums, tick);
            embed_backward(embed, sizes.features, w, b.inputs, slice, keep_embed.from(slice.row), scratch.dx, scratch.t,
                           s.layer.ld_x, scratch.outer, sums, s.embed_sums);
            tick(Part::back_embed);
        }
    });
    if (no_memory) return Outcome::no_memory;

    tick.skip();
    if (s.threaded) add_groups(slicing, b.group_sums, s.num_sums, p.num_threads, b.total_sums);
    parallel_for(sizes.layers, p.num_threads, [&](int64_t layer) {
        const int64_t at = layer * map.layer_size;
        layer_gradient(sizes, map.layer, p.parameters + map.layers + at, b.total_sums + at,
                       p.gradient + map.layers + at);
    });
    embed_gradient(sizes, map, p.parameters, p.running, embed, b.total_sums + s.embed_sums, p.gradient);
    back_pooling_query(sizes, map, p.parameters, b.q, b.total_sums + s.query_sums, b.dq, p.gradient);
    tick(Part::gradient);
    if (p.seconds)
        for (int64_t i = 0; i < (kGroups + 1) * kParts; ++i) p.seconds[i % kParts] += b.seconds[i];
    return Outcome::done;
}

template <class E>
Outcome forward(const EncoderForwardParams& p, const ParameterMap& map) {
    const EncoderSizes& sizes = p.sizes;
    Setup s{};
    Buffers<E> b{};
    if (!prepare<E>(p, map, false, s, b)) return Outcome::no_memory;
    const Slicing& slicing = b.slicing;
    const EmbedMap embed = embed_map(sizes, map, p.parameters, p.running, nullptr, nullptr, b.embed);
    pack(s, map, p.parameters, p.num_threads, b);
    const Keep all{b.ones, 0, 1.0f};
    const Pooling pooling = pooling_of(s, b, all);
    bool no_memory = false;
    parallel_for(s.extent.slices, p.num_threads, [&](int64_t i) {
        const Slice& slice = slicing.slices[i];
        char* const memory = thread_memory<E>(s, no_memory);
        if (memory == nullptr) return;
        ThreadBuffers<E> thread = lay_out_thread<E>(s, memory);
        thread.stored.keep_out = thread.stored.keep_hidden = thread.stored.keep_ffn = all;
        embed_forward(embed, sizes.features, sizes.width, b.inputs, slice, all, thread.slice.x, s.layer.ld_x);
        for (int64_t layer = 0; layer < sizes.layers; ++layer)
            layer_forward(s.layer, b.weights[layer], thread.stored, slice, slicing.first_row, slicing.counts,
                          thread.slice, [](Part) {});
        pool_slice(pooling, slice, thread.slice.x);
    });
    if (no_memory) return Outcome::no_memory;
    HeadBuffers& head = b.head;
    clear(s.head, head);
    for (DenseStore& dense : head.dense) dense.keep = all;
    head.logits = p.logits;
    head_forward(s.head, map, p.parameters, p.running, nullptr, head);
    if (p.pooling) {
        float* to = p.pooling;
        for (int64_t jet = 0; jet < s.extent.jets; ++jet) {
            for (int64_t t = 0; t < slicing.counts[jet]; ++t) to[t] = b.pool_weights[slicing.first_row[jet] + t];
            to += slicing.counts[jet];
        }
    }
    return Outcome::done;
}

}  // namespace

void encoder_step(const EncoderStepParams& p) {
    const ParameterMap map(p.sizes);
    *p.outcome = p.bf16 ? step<bf16>(p, map) : step<float>(p, map);
}

void encoder_forward(const EncoderForwardParams& p) {
    const ParameterMap map(p.sizes);
    *p.outcome = p.bf16 ? forward<bf16>(p, map) : forward<float>(p, map);
}

}  // namespace kdfast::KDFAST_ISA_NS
