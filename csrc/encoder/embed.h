// The first dense block, Linear → BatchNorm → GELU → dropout on each constituent, without a pass for its BatchNorm:
// mean and variance of a linear map W x + b follow from the batch's μ = mean(x) and C = mean((x − μ)(x − μ)ᵀ),
//
//   mean_j = W_j · μ + b_j     σ_j² = W_j C W_jᵀ + ε     z = γ/σ · W (x − μ) + β     x ← D(GELU(z))
//
// and so does the gradient, from s = Σ dz and S = Σ dz (x − μ)ᵀ: dβ = s, dγ_j = W_j · S_j / σ_j,
// dW_j = γ_j/σ_j (S_j − dγ_j/σ_j · W_j C), db = 0.
#pragma once

#include "encoder/rows.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr float kBatchNormEps = 1e-5f, kBatchNormMomentum = 0.1f;

struct Moments {
    double mean[kMaxFeatures], covariance[kMaxFeatures][kMaxFeatures];
    int64_t count;
};

// Mean and covariance of the first num_features columns of x [rows of the slices, kMaxFeatures], which has zeros in
// the other columns and in rows that belong to no jet; x ← x − mean in the rows of jets.
KDFAST_INLINE void centre(float* x, const Slice* slices, int64_t num_slices, int64_t num_features, Moments& m) {
    m = Moments{};
    for (int64_t i = 0; i < num_slices; ++i) {
        const Slice& slice = slices[i];
        m.count += slice.tokens;
        sum_rows(x + slice.row * kMaxFeatures, kMaxFeatures, slice.tokens, kMaxFeatures,
                 [&](int64_t j, Vec sum) __attribute__((always_inline)) {
                     for (int lane = 0; lane < kLanes; ++lane) m.mean[j + lane] += static_cast<double>(sum[lane]);
                 });
    }
    const double share = 1.0 / static_cast<double>(m.count);
    float mean[kMaxFeatures];
    for (int64_t j = 0; j < kMaxFeatures; ++j) mean[j] = static_cast<float>(m.mean[j] *= share);
    for (int64_t i = 0; i < num_slices; ++i) {
        float* const rows = x + slices[i].row * kMaxFeatures;
        for (int64_t t = 0; t < slices[i].tokens; ++t)
            for (int64_t c = 0; c < kMaxFeatures; c += kLanes) {
                float* const at = rows + t * kMaxFeatures + c;
                store(at, load(at) - load(mean + c));
            }
        for (int64_t j = 0; j < num_features; ++j)
            for (int64_t c = 0; c < kMaxFeatures; c += kLanes) {
                Vec sum = {};
                for (int64_t t = 0; t < slices[i].tokens; ++t)
                    sum += load(rows + t * kMaxFeatures + c) * rows[t * kMaxFeatures + j];
                for (int lane = 0; lane < kLanes; ++lane) m.covariance[j][c + lane] += static_cast<double>(sum[lane]);
            }
    }
    for (auto& row : m.covariance)
        for (double& c : row) c *= share;
}

// The block as one affine map of x (centred, where the batch's moments are used): z = weight x + shift.
struct EmbedMap {
    const float* weight;  // packed
    const float* shift;   // [width]
    const float* factor;  // γ / σ, [width]
    const float* deviation;
    bool from_batch;  // false: running statistics, constants to the gradient
};

struct EmbedParameters {
    const float *weight, *bias, *gamma, *beta;
    const float* running;  // mean, variance
    int64_t features, width;
};

KDFAST_INLINE float dot(const float* a, const float* b, int64_t n) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

// moments: of a training batch with two constituents or more, whose mean and variance then also move the running ones;
// null: running statistics. scaled: scratch [width, features].
KDFAST_INLINE EmbedMap embed_map(const EmbedParameters& p, const Moments* moments, float* updated, float* scaled,
                                 float* packed, float* shift, float* factor, float* deviation) {
    for (int64_t j = 0; j < p.width; ++j) {
        const float* const weight = p.weight + j * p.features;
        double mean, variance;
        if (moments) {
            mean = static_cast<double>(p.bias[j]);
            variance = 0.0;
            for (int64_t a = 0; a < p.features; ++a) {
                mean += static_cast<double>(weight[a]) * moments->mean[a];
                double row = 0.0;
                for (int64_t b = 0; b < p.features; ++b)
                    row += moments->covariance[a][b] * static_cast<double>(weight[b]);
                variance += static_cast<double>(weight[a]) * row;
            }
            variance = variance > 0.0 ? variance : 0.0;
            const double keep = 1.0 - static_cast<double>(kBatchNormMomentum), n = static_cast<double>(moments->count);
            updated[j] = static_cast<float>(keep * static_cast<double>(updated[j]) + (1.0 - keep) * mean);
            updated[p.width + j] = static_cast<float>(keep * static_cast<double>(updated[p.width + j]) +
                                                      (1.0 - keep) * variance * n / (n - 1.0));
        } else {
            mean = static_cast<double>(p.running[j]);
            variance = static_cast<double>(p.running[p.width + j]);
        }
        deviation[j] = static_cast<float>(__builtin_sqrt(variance + static_cast<double>(kBatchNormEps)));
        factor[j] = p.gamma[j] / deviation[j];
        shift[j] = moments
                       ? p.beta[j]
                       : static_cast<float>(static_cast<double>(factor[j]) * (static_cast<double>(p.bias[j]) - mean)) +
                             p.beta[j];
        for (int64_t a = 0; a < p.features; ++a) scaled[j * p.features + a] = weight[a] * factor[j];
    }
    pack_panels(scaled, 1, p.features, p.features, p.width, nullptr, packed);
    return {packed, shift, factor, deviation, moments != nullptr};
}

KDFAST_INLINE void embed_forward(const EmbedMap& map, int64_t features, int64_t width, const float* inputs,
                                 const Slice& slice, const Keep& keep, float* x, int64_t ld_x) {
    matmul(inputs + slice.row * kMaxFeatures, kMaxFeatures, slice.rows, map.weight, features, width,
           [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
               const Vec z = y + load(map.shift + j);
               store(x + i * ld_x + j, apply(keep, i, j, z * normal(z).cdf));
           });
}

// From the gradient dx of the block's output: S [width, kMaxFeatures] and s [width] are added to sums at `at`. dz:
// scratch like dx. scratch: outer_scratch(width).
KDFAST_INLINE void embed_backward(const EmbedMap& map, int64_t features, int64_t width, const float* inputs,
                                  const Slice& slice, const Keep& keep, const float* dx, float* dz, int64_t ld_x,
                                  float* scratch, const Sums& sums, int64_t at) {
    const float* const x = inputs + slice.row * kMaxFeatures;
    matmul(x, kMaxFeatures, slice.rows, map.weight, features, width,
           [&](int64_t i, int64_t j, Vec y) __attribute__((always_inline)) {
               const Vec z = y + load(map.shift + j);
               const Normal n = normal(z);
               store(dz + i * ld_x + j, apply(keep, i, j, load(dx + i * ld_x + j)) * (n.cdf + z * n.density));
           });
    outer(dz, ld_x, width, x, kMaxFeatures, kMaxFeatures, slice.rows, scratch,
          [&](int64_t i, int64_t j, Vec g) __attribute__((always_inline)) { sums.add(at + i * kMaxFeatures + j, g); });
    sum_rows(dz, ld_x, slice.rows, width,
             [&](int64_t j, Vec g) __attribute__((always_inline)) { sums.add(at + width * kMaxFeatures + j, g); });
}

// The parameters' gradients from S and s.
KDFAST_INLINE void embed_gradient(const EmbedParameters& p, const EmbedMap& map, const Moments& moments,
                                  const float* sums, float* weight, float* bias, float* gamma, float* beta) {
    for (int64_t j = 0; j < p.width; ++j) {
        const float* const w = p.weight + j * p.features;
        const float *const S = sums + j * kMaxFeatures, s = sums[p.width * kMaxFeatures + j];
        const float inverse = 1.0f / map.deviation[j];
        beta[j] = s;
        gamma[j] = dot(w, S, p.features) * inverse;
        if (!map.from_batch) gamma[j] += (p.bias[j] - p.running[j]) * s * inverse;
        for (int64_t a = 0; a < p.features; ++a) {
            double through = 0.0;
            if (map.from_batch)
                for (int64_t b = 0; b < p.features; ++b)
                    through += static_cast<double>(w[b]) * moments.covariance[b][a];
            weight[j * p.features + a] = map.factor[j] * (S[a] - gamma[j] * inverse * static_cast<float>(through));
        }
        bias[j] = map.from_batch ? 0.0f : map.factor[j] * s;
    }
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
