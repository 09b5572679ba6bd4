// What a call keeps in memory, and where: the batch's buffers in one block, a thread's in another. The sizes follow
// from the model and the slices of the batch; `lay_out` counts the bytes where it gets no memory to hand out.
#pragma once

#include <initializer_list>

#include "constituent_attention/jet_attention.h"
#include "core/layout.h"
#include "core/scratch.h"
#include "encoder/embed.h"
#include "encoder/head.h"
#include "encoder/layer.h"
#include "encoder/pooling.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr int kParts = static_cast<int>(Part::count);

// Features of the widest rows that dropout sees.
KDFAST_INLINE int64_t widest(const EncoderSizes& sizes) { return sizes.ffn > sizes.width ? sizes.ffn : sizes.width; }

// What buffers and passes follow from.
struct Setup {
    EncoderSizes sizes;
    Extent extent;
    LayerShape layer;
    HeadShape head;
    int64_t ld_p;  // of pooling's probabilities, and its scratch
    // Gradient sums: the layers' as in the flat buffer, S and s of the embedding, d_query of the pooling.
    int64_t num_sums, embed_sums, query_sums;
    int64_t attention_floats;  // scratch for the longest jet
    bool training, threaded;
};

template <class E>
KDFAST_INLINE Setup set_up(const EncoderSizes& sizes, const ParameterMap& map, const Extent& extent, bool training,
                           bool threaded) {
    Setup s{};
    s.sizes = sizes;
    s.extent = extent;
    s.training = training;
    s.threaded = threaded;
    const int64_t w = sizes.width;
    LayerShape& layer = s.layer;
    layer.width = w;
    layer.heads = sizes.heads;
    layer.head_dim = w / sizes.heads;
    layer.ffn = sizes.ffn;
    layer.ld_x = row_stride<float>(w);
    layer.ld_w = row_stride<E>(w);
    layer.ld_qkv = row_stride<E>(3 * w);
    layer.ld_ffn = row_stride<E>(sizes.ffn);
    layer.scale = 1.0f / sqrt(static_cast<float>(layer.head_dim));
    s.head = {extent.jets,  round_up(extent.jets, kRowGranule), row_stride<float>(w), w, sizes.pooling_heads,
              sizes.classes};
    s.ld_p = round_up(sizes.pooling_heads, 16);
    s.embed_sums = sizes.layers * map.layer_size;
    s.query_sums = s.embed_sums + w * (kMaxFeatures + 1);
    s.num_sums = round_up(s.query_sums + sizes.pooling_heads * w, 16);
    kdfast::jet_attention_scratch({extent.longest_jet, layer.head_dim, &s.attention_floats});
    return s;
}

template <class E>
struct Buffers {
    Slicing slicing;
    float* inputs;  // [rows, kMaxFeatures]
    // What depends on the parameters alone.
    EmbedBuffers embed;
    LayerWeights<E>* weights;              // [layers]
    float *q, *dq, *query, *packed_query;  // see pooling_query; dq: its gradient's scratch
    uint8_t* ones;                         // a row of decisions that keep everything
    float *pool_p, *pool_weights;          // [rows, ld_p], [rows]
    HeadBuffers head;
    // From here on in training only.
    float* x;               // [rows, ld_x], the encoder's result
    LayerStore<E>* stored;  // [layers], of the whole batch
    uint8_t *keep_embed, *keep_pool, *keep_head[3];
    float *labels, *jet_weights, *teacher;             // [jets]
    float *entropy, *maximum, *d_entropy, *d_maximum;  // [jets], of the pooling weights
    float* group_sums;                                 // [kGroups, num_sums] on several threads, else [num_sums]
    float* total_sums;                                 // [num_sums]
    double* seconds;  // [kGroups + 1, kParts], the last row: what runs outside of groups
    size_t bytes;
};

template <class E>
KDFAST_INLINE LayerWeights<E> lay_out_weights(const Setup& s, Layout& at) {
    const int64_t w = s.sizes.width, ffn = s.sizes.ffn;
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
    return to;
}

template <class E>
KDFAST_INLINE LayerStore<E> lay_out_store(const Setup& s, Layout& at) {
    const int64_t w = s.sizes.width, ffn = s.sizes.ffn, rows = s.extent.rows;
    LayerStore<E> to{};
    for (E** p : {&to.norm1, &to.attended, &to.norm2}) *p = at.take<E>(rows * s.layer.ld_w);
    to.qkv = at.take<E>(rows * s.layer.ld_qkv);
    to.hidden = at.take<E>(rows * s.layer.ld_ffn);
    to.inverse1 = at.take<float>(rows);
    to.inverse2 = at.take<float>(rows);
    to.lse = at.take<float>(rows * s.sizes.heads);
    to.keep_out.bits = at.take_bits(rows * bytes_of_bits(w));
    to.keep_hidden.bits = at.take_bits(rows * bytes_of_bits(ffn));
    to.keep_ffn.bits = at.take_bits(rows * bytes_of_bits(w));
    return to;
}

KDFAST_INLINE HeadBuffers lay_out_head(const HeadShape& s, bool training, Layout& at) {
    const int64_t cells = s.rows * s.ld, pooled = s.rows * s.pooling_heads;
    HeadBuffers h{};
    h.mean = at.take<float>(pooled * s.width);
    h.r = at.take<float>(pooled);
    for (float** p : {&h.pooled, &h.normed, &h.affine, &h.residual, &h.d}) *p = at.take<float>(cells);
    h.inverse = at.take<float>(s.rows);
    for (DenseStore& dense : h.dense) {
        dense.normed = at.take<float>(cells);
        dense.out = at.take<float>(cells);
        dense.inverse = at.take<float>(s.ld);
    }
    h.scratch.packed = at.take<float>(packed_size(s.width, s.width));
    if (training) {
        h.d_mean = at.take<float>(pooled * s.width);
        h.d_r = at.take<float>(pooled);
        h.dy = at.take<float>(cells);
        h.scratch.outer = at.take<float>(outer_scratch(s.width));
        h.logits = at.take<float>(s.jets * s.classes);
        h.d_logits = at.take<float>(s.jets * s.classes);
    }
    return h;
}

template <class E>
KDFAST_INLINE Buffers<E> lay_out(const Setup& s, char* memory) {
    Layout at{memory};
    Buffers<E> b{};
    const int64_t w = s.sizes.width, rows = s.extent.rows, jets = s.extent.jets;
    const int64_t heads = s.sizes.pooling_heads;
    b.slicing.slices = at.take<Slice>(s.extent.slices);
    b.slicing.first_row = at.take<int64_t>(jets);
    b.slicing.counts = at.take<int64_t>(jets);
    b.slicing.group_begin = at.take<int64_t>(kGroups + 1);
    b.inputs = at.take<float>(rows * kMaxFeatures);
    b.embed.scaled = at.take<float>(w * s.sizes.features);
    b.embed.packed = at.take<float>(packed_size(s.sizes.features, w));
    for (float** p : {&b.embed.shift, &b.embed.factor, &b.embed.deviation, &b.q, &b.dq}) *p = at.take<float>(w);
    b.weights = at.take<LayerWeights<E>>(s.sizes.layers);
    for (int64_t layer = 0; layer < s.sizes.layers; ++layer) {
        const LayerWeights<E> weights = lay_out_weights<E>(s, at);
        if (memory) b.weights[layer] = weights;
    }
    b.query = at.take<float>(heads * w);
    b.packed_query = at.take<float>(packed_size(w, heads));
    b.ones = at.take_bits(bytes_of_bits(widest(s.sizes)));
    b.pool_p = at.take<float>(rows * s.ld_p);
    b.pool_weights = at.take<float>(rows);
    b.head = lay_out_head(s.head, s.training, at);
    if (s.training) {
        b.x = at.take<float>(rows * s.layer.ld_x);
        b.stored = at.take<LayerStore<E>>(s.sizes.layers);
        for (int64_t layer = 0; layer < s.sizes.layers; ++layer) {
            const LayerStore<E> store = lay_out_store<E>(s, at);
            if (memory) b.stored[layer] = store;
        }
        b.keep_embed = at.take_bits(rows * bytes_of_bits(w));
        b.keep_pool = at.take_bits(rows * bytes_of_bits(heads));
        for (uint8_t*& bits : b.keep_head) bits = at.take_bits(jets * bytes_of_bits(w));
        for (float** p : {&b.labels, &b.jet_weights, &b.teacher, &b.entropy, &b.maximum, &b.d_entropy, &b.d_maximum})
            *p = at.take<float>(jets);
        b.group_sums = at.take<float>(s.num_sums * (s.threaded ? kGroups : 1));
        b.total_sums = at.take<float>(s.num_sums);
        b.seconds = at.take<double>((kGroups + 1) * kParts);
    }
    b.bytes = at.used;
    return b;
}

// A thread's memory for one slice. stored: what the backward pass would read, which evaluation does not keep.
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
    const LayerShape& layer = s.layer;
    b.slice.t = at.take<float>(rows * (layer.ld_x > s.ld_p ? layer.ld_x : s.ld_p));
    // h is done with where d_attended begins.
    b.slice.h = b.slice.d_attended = at.take<E>(rows * (layer.ld_ffn > layer.ld_w ? layer.ld_ffn : layer.ld_w));
    b.slice.attention = at.take<float>(s.attention_floats);
    if (s.training) {
        b.slice.dx = at.take<float>(rows * layer.ld_x);
        b.slice.dz = at.take<E>(rows * layer.ld_w);
        b.slice.du = at.take<E>(rows * layer.ld_ffn);
        b.slice.dqkv = at.take<E>(rows * layer.ld_qkv);
        int64_t floats = outer_scratch(layer.width);
        for (int64_t other :
             {outer_floats<E>(3 * layer.width, layer.width, rows), outer_floats<E>(layer.ffn, layer.width, rows),
              outer_floats<E>(layer.width, layer.ffn, rows)})
            floats = other > floats ? other : floats;
        b.slice.outer = at.take<float>(floats);
    } else {
        b.slice.x = at.take<float>(rows * layer.ld_x);
        for (E** p : {&b.stored.norm1, &b.stored.attended}) *p = at.take<E>(rows * layer.ld_w);
        b.stored.norm2 = b.stored.norm1;
        b.stored.qkv = at.take<E>(rows * layer.ld_qkv);
        b.stored.hidden = b.slice.h;
        b.stored.inverse1 = b.stored.inverse2 = at.take<float>(rows);
        b.stored.lse = at.take<float>(rows * layer.heads);
    }
    b.bytes = at.used;
    return b;
}

// What this thread's buffers are laid out in, valid until its next call. Null, which it notes, where memory is lacking.
template <class E>
KDFAST_INLINE char* thread_memory(const Setup& s, bool& no_memory) {
    char* const memory = reinterpret_cast<char*>(scratch(lay_out_thread<E>(s, nullptr).bytes / sizeof(float)));
    if (memory == nullptr) __atomic_store_n(&no_memory, true, __ATOMIC_RELAXED);
    return memory;
}

// A layer's store from one row of the batch on.
template <class E>
KDFAST_INLINE LayerStore<E> rows_of(const LayerShape& s, const LayerStore<E>& all, int64_t row) {
    LayerStore<E> at = all;
    at.norm1 += row * s.ld_w;
    at.qkv += row * s.ld_qkv;
    at.attended += row * s.ld_w;
    at.norm2 += row * s.ld_w;
    at.hidden += row * s.ld_ffn;
    at.inverse1 += row;
    at.inverse2 += row;
    at.lse += row * s.heads;
    // Field by field: assigned as a whole, GCC 12 keeps them in memory, where stores of epilogues may alias them.
    for (Keep* keep : {&at.keep_out, &at.keep_hidden, &at.keep_ffn}) keep->bits += row * keep->stride;
    return at;
}

template <class E>
KDFAST_INLINE Pooling pooling_of(const Setup& s, const Buffers<E>& b, const Keep& keep) {
    return {s.sizes.width,
            s.sizes.pooling_heads,
            s.layer.ld_x,
            s.ld_p,
            b.query,
            b.packed_query,
            b.slicing.first_row,
            b.slicing.counts,
            b.pool_p,
            keep,
            b.head.mean,
            b.head.r,
            b.entropy,
            b.maximum,
            b.pool_weights};
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
