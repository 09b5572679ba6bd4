// Pooling by one learned query: per head, softmax(q · k_t) over a jet's constituents, dropout D of these weights, and
// Σ_t D(p)_t v_t. Keys and values are never computed, since both are linear in x:
//
//   q · k_t = x_t · (W_kᵀ q) + constant     Σ_t D(p)_t v_t = W_v (Σ_t D(p)_t x_t) + b_v Σ_t D(p)_t
//
// so that a slice gives x̄ = Σ_t D(p)_t x_t and r = Σ_t D(p)_t of each jet and head, and the head does the rest.
#pragma once

#include "core/rows.h"
#include "encoder/parameters.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

// W_kᵀ q / √d [heads, width], q = W_q query + b_q; q: out [width], with the factor 1 / √d.
inline void pooling_query(const EncoderSizes& sizes, const ParameterMap& map, const float* parameters, float* q,
                          float* query) {
    const int64_t w = sizes.width, d = w / sizes.pooling_heads;
    const float scale = 1.0f / sqrt(static_cast<float>(d));
    for (int64_t j = 0; j < w; ++j)
        q[j] = scale * (parameters[map.pool_q.bias + j] +
                        dot(parameters + map.pool_q.weight + j * w, parameters + map.query, w));
    for (int64_t h = 0; h < sizes.pooling_heads; ++h) {
        float* const to = query + h * w;
        for (int64_t c = 0; c < w; ++c) to[c] = 0.0f;
        for (int64_t j = h * d; j < (h + 1) * d; ++j) {
            const float* const key = parameters + map.pool_kv.weight + j * w;
            for (int64_t c = 0; c < w; ++c) to[c] += key[c] * q[j];
        }
    }
}

struct Pooling {
    int64_t width, heads, ld_x, ld_p;  // ld_p: of p, a multiple of 16
    const float* query;                // W_kᵀ q [heads, width]
    const float* packed_query;         // the same, packed
    const int64_t *first_row, *counts;
    float* p;                  // [rows of the batch, ld_p]: before dropout
    Keep keep;                 // of the batch's rows
    float *mean, *r;           // x̄ [jets, heads, width], r [jets, heads]
    float *entropy, *maximum;  // [jets] of the head-averaged p; null: not wanted
    float* weights;            // [rows of the batch] head-averaged p
};

KDFAST_INLINE bool kept(const Keep& keep, int64_t row, int64_t head) {
    return keep.bits[row * keep.stride + head / 8] >> (head % 8) & 1;
}

// x: the slice's rows.
inline __attribute__((noinline)) void pool_slice(const Pooling& s, const Slice& slice, const float* x) {
    matmul(x, s.ld_x, slice.rows, s.packed_query, s.width, s.heads,
           [&](int64_t i, int64_t j, Vec y)
               __attribute__((always_inline)) { store(s.p + (slice.row + i) * s.ld_p + j, y); });
    const float share = 1.0f / static_cast<float>(s.heads);
    for (int64_t jet = slice.jet; jet < slice.jet + slice.jets; ++jet) {
        const int64_t row = s.first_row[jet], n = s.counts[jet];
        float* const p = s.p + row * s.ld_p;
        const float* const rows = x + (row - slice.row) * s.ld_x;
        for (int64_t h = 0; h < s.heads; h += kLanes) {
            Vec top = broadcast(-__builtin_inff()), sum = {};
            for (int64_t t = 0; t < n; ++t) top = max(load(p + t * s.ld_p + h), top);
            for (int64_t t = 0; t < n; ++t) {
                const Vec e = exp_nonpositive(load(p + t * s.ld_p + h) - top);
                sum += e;
                store(p + t * s.ld_p + h, e);
            }
            const Vec inverse = 1.0f / sum;
            for (int64_t t = 0; t < n; ++t) store(p + t * s.ld_p + h, load(p + t * s.ld_p + h) * inverse);
        }
        float entropy = 0.0f, maximum = 0.0f;
        for (int64_t t = 0; t < n; t += kLanes) {
            Vec mean = {};
            const int here = static_cast<int>(n - t < kLanes ? n - t : kLanes);
            for (int i = 0; i < here; ++i) {
                float sum = 0.0f;
                for (int64_t h = 0; h < s.heads; ++h) sum += p[(t + i) * s.ld_p + h];
                mean[i] = sum * share;
                s.weights[row + t + i] = mean[i];
            }
            if (s.entropy) {
                entropy -= reduce_add(select(mean > 0.0f, mean * log(mean), Vec{}));
                for (int i = 0; i < here; ++i) maximum = mean[i] > maximum ? mean[i] : maximum;
            }
        }
        if (s.entropy) {
            s.entropy[jet] = entropy;
            s.maximum[jet] = maximum;
        }
        for (int64_t h = 0; h < s.heads; ++h) {
            float* const to = s.mean + (jet * s.heads + h) * s.width;
            std::memset(to, 0, static_cast<size_t>(s.width) * sizeof(float));
            float total = 0.0f;
            for (int64_t t = 0; t < n; ++t) {
                if (!kept(s.keep, row + t, h)) continue;
                const float weight = p[t * s.ld_p + h] * s.keep.scale;
                total += weight;
                for (int64_t c = 0; c < s.width; c += kLanes)
                    store(to + c, load(to + c) + load(rows + t * s.ld_x + c) * weight);
            }
            s.r[jet * s.heads + h] = total;
        }
    }
}

// Gradients that reach the pooling: of x̄ and r, and of entropy and maximum.
struct PoolingGradient {
    const float *mean, *r;           // shapes as in Pooling
    const float *entropy, *maximum;  // [jets]; null: none
};

// dx [rows, ld_x] of the slice's rows (zero behind the jets), and Σ_t ds_t x_t [heads, width] added to sums at `at`.
// ds: scratch [rows, ld_p]. scratch: outer_scratch(heads).
inline __attribute__((noinline)) void pool_slice_backward(const Pooling& s, const PoolingGradient& g,
                                                          const Slice& slice, const float* x, float* dx, float* ds,
                                                          float* scratch, const Sums& sums, int64_t at) {
    const float share = 1.0f / static_cast<float>(s.heads);
    std::memset(ds, 0, static_cast<size_t>(slice.rows * s.ld_p) * sizeof(float));
    std::memset(dx + slice.tokens * s.ld_x, 0,
                static_cast<size_t>((slice.rows - slice.tokens) * s.ld_x) * sizeof(float));
    for (int64_t jet = slice.jet; jet < slice.jet + slice.jets; ++jet) {
        const int64_t row = s.first_row[jet], n = s.counts[jet], local = row - slice.row;
        const float *const p = s.p + row * s.ld_p, *const rows = x + local * s.ld_x;
        const float* const weights = s.weights + row;
        float* const d = ds + local * s.ld_p;
        int64_t at_top = 0;
        if (g.entropy)
            for (int64_t t = 0; t < n; ++t) at_top += weights[t] == s.maximum[jet];
        for (int64_t t = 0; t < n; ++t) {
            float shared = 0.0f;  // of the head-averaged weight
            if (g.entropy) {
                if (weights[t] > 0.0f) shared = -g.entropy[jet] * (log(broadcast(weights[t]))[0] + 1.0f);
                if (weights[t] == s.maximum[jet]) shared += g.maximum[jet] / static_cast<float>(at_top);
                shared *= share;
            }
            for (int64_t h = 0; h < s.heads; ++h) {
                float sum = 0.0f;
                if (kept(s.keep, row + t, h)) {
                    const float* const mean = g.mean + (jet * s.heads + h) * s.width;
                    Vec product = {};
                    for (int64_t c = 0; c < s.width; c += kLanes)
                        product += load(mean + c) * load(rows + t * s.ld_x + c);
                    sum = (reduce_add(product) + g.r[jet * s.heads + h]) * s.keep.scale;
                }
                d[t * s.ld_p + h] = sum + shared;
            }
        }
        for (int64_t h = 0; h < s.heads; ++h) {
            float mean = 0.0f;
            for (int64_t t = 0; t < n; ++t) mean += p[t * s.ld_p + h] * d[t * s.ld_p + h];
            for (int64_t t = 0; t < n; ++t) d[t * s.ld_p + h] = p[t * s.ld_p + h] * (d[t * s.ld_p + h] - mean);
        }
        for (int64_t t = 0; t < n; ++t) {
            float* const to = dx + (local + t) * s.ld_x;
            for (int64_t c = 0; c < s.width; c += kLanes) {
                Vec sum = {};
                for (int64_t h = 0; h < s.heads; ++h) {
                    const float weight = kept(s.keep, row + t, h) ? p[t * s.ld_p + h] * s.keep.scale : 0.0f;
                    sum += load(g.mean + (jet * s.heads + h) * s.width + c) * weight;
                    sum += load(s.query + h * s.width + c) * d[t * s.ld_p + h];
                }
                store(to + c, sum);
            }
        }
    }
    outer(ds, s.ld_p, s.heads, x, s.ld_x, s.width, slice.rows, scratch,
          [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) { sums.add(at + i * s.width + j, y); });
}

// The query's gradient, from d_query [heads, width]. dq: scratch [width].
inline void back_pooling_query(const EncoderSizes& sizes, const ParameterMap& map, const float* parameters,
                               const float* q, const float* d_query, float* dq, float* gradient) {
    const int64_t w = sizes.width, d = w / sizes.pooling_heads;
    const float scale = 1.0f / sqrt(static_cast<float>(d));
    for (int64_t j = 0; j < w; ++j) {
        const float* const from = d_query + j / d * w;
        for (int64_t c = 0; c < w; ++c) gradient[map.pool_kv.weight + j * w + c] = q[j] * from[c];
        gradient[map.pool_kv.bias + j] = 0.0f;  // softmax does not see a constant
        dq[j] = scale * dot(parameters + map.pool_kv.weight + j * w, from, w);
        gradient[map.pool_q.bias + j] = dq[j];
        for (int64_t c = 0; c < w; ++c) gradient[map.pool_q.weight + j * w + c] = dq[j] * parameters[map.query + c];
    }
    for (int64_t c = 0; c < w; ++c) gradient[map.query + c] = 0.0f;
    for (int64_t j = 0; j < w; ++j)
        for (int64_t c = 0; c < w; ++c) gradient[map.query + c] += dq[j] * parameters[map.pool_q.weight + j * w + c];
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
