// Where everything is: parameters in their flat buffer, jets in slices, buffers in memory.
#pragma once

#include "core/types.h"
#include "encoder/encoder.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

struct Affine {
    int64_t weight, bias;  // positions in the flat buffer
};

struct LayerMap {
    Affine norm1, qkv, out, norm2, ffn_in, ffn_out;
};

// Positions of the parameters, in the order of JetTransformer.named_parameters().
struct ParameterMap {
    Affine embed, embed_norm;
    int64_t layers, layer_size;
    LayerMap layer;  // relative to a layer's begin, layers + number · layer_size
    int64_t query;
    Affine pool_q, pool_kv, pool_out, pool_norm;
    Affine dense[3], dense_norm[3], classify;
    int64_t total;

    explicit ParameterMap(const EncoderSizes& s) {
        int64_t at = 0;
        const auto affine = [&](int64_t weight, int64_t bias) __attribute__((always_inline)) {
            const Affine a{at, at + weight};
            at += weight + bias;
            return a;
        };
        const int64_t w = s.width, half = w / 2;
        embed = affine(w * s.features, w);
        embed_norm = affine(w, w);
        layers = at;
        at = 0;
        layer.norm1 = affine(w, w);
        layer.qkv = affine(3 * w * w, 3 * w);
        layer.out = affine(w * w, w);
        layer.norm2 = affine(w, w);
        layer.ffn_in = affine(s.ffn * w, s.ffn);
        layer.ffn_out = affine(w * s.ffn, w);
        layer_size = at;
        at = layers + s.layers * layer_size;
        query = at;
        at += w;
        pool_q = affine(w * w, w);
        pool_kv = affine(2 * w * w, 2 * w);
        pool_out = affine(w * w, w);
        pool_norm = affine(w, w);
        const int64_t inputs[3] = {w, w, w}, outputs[3] = {w, w, half};
        for (int i = 0; i < 3; ++i) {
            dense[i] = affine(outputs[i] * inputs[i], outputs[i]);
            dense_norm[i] = affine(outputs[i], outputs[i]);
        }
        classify = affine(s.classes * half, s.classes);
        total = at;
    }
};

// Jets that go through the layers together: their constituents stand in rows row … row + tokens − 1 of the batch's
// buffers, followed by zeros or other finite values up to row + rows.
struct Slice {
    int64_t jet, jets, row, rows, tokens;
    bool first, last;  // of its group
};

// Gradients of the weights are summed over the slices of a group, then over groups, in order: the same bits on any
// number of threads.
constexpr int64_t kGroups = 16;
constexpr int64_t kSliceTokens = 288;  // of which a layer's activations fit the second-level cache

// A row of `columns` floats or bfloat16 in memory: an odd number of cache lines.
template <class E>
KDFAST_INLINE int64_t row_stride(int64_t columns) {
    constexpr int64_t kLine = 64 / sizeof(E);
    return ((columns + kLine - 1) / kLine | 1) * kLine;
}

// Hands out memory; with a null start it only counts.
struct Layout {
    char* start;
    size_t used = 0;

    template <class T>
    KDFAST_INLINE T* take(int64_t number) {
        T* const taken = start ? reinterpret_cast<T*>(start + used) : nullptr;
        used += (static_cast<size_t>(number) * sizeof(T) + 63) / 64 * 64;
        return taken;
    }
};

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
