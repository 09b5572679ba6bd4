// Where a model's parameters stand in their flat buffer.
#pragma once

#include "core/types.h"
#include "encoder/encoder.h"

namespace kdfast {

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
    int64_t total;    // parameters
    int64_t running;  // statistics of the BatchNorms: mean and variance of embed, dense[0], dense[1] and dense[2]

    explicit KDFAST_INLINE ParameterMap(const EncoderSizes& s) {
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
        running = 2 * (3 * w + half);
    }
};

}  // namespace kdfast
