// The first dense block, Linear → BatchNorm → GELU → dropout on each constituent, without a pass for its BatchNorm:
// mean and variance of a linear map W x + b follow from the batch's μ = mean(x) and C = mean((x − μ)(x − μ)ᵀ),
//
//   mean_j = W_j · μ + b_j     σ_j² = W_j C W_jᵀ + ε     z = γ/σ · W (x − μ) + β     x ← D(GELU(z))
//
// and so does the gradient, from s = Σ dz and S = Σ dz (x − μ)ᵀ: dβ = s, dγ_j = W_j · S_j / σ_j,
// dW_j = γ_j/σ_j (S_j − dγ_j/σ_j · W_j C), db = 0.
#pragma once

#include "core/rows.h"
#include "encoder/parameters.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

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
    const float* weight;     // packed
    const float* shift;      // [width]
    const float* factor;     // γ / σ, [width]
    const float* deviation;  // σ, [width]
    const Moments* moments;  // null: those of the running statistics, constants to the gradient
};

struct EmbedBuffers {
    float *scaled, *packed;  // [width, features], packed_size(features, width)
    float *shift, *factor, *deviation;
};

// moments: of a training batch with two constituents or more, whose mean and variance then also move the running ones;
// null: running statistics. running, updated: mean and variance [width] of each; the latter may be null without
// moments.
KDFAST_INLINE EmbedMap embed_map(const EncoderSizes& sizes, const ParameterMap& map, const float* parameters,
                                 const float* running, const Moments* moments, float* updated, const EmbedBuffers& b) {
    const int64_t features = sizes.features, width = sizes.width;
    const float *const bias = parameters + map.embed.bias, *const gamma = parameters + map.embed_norm.weight;
    const float* const beta = parameters + map.embed_norm.bias;
    for (int64_t j = 0; j < width; ++j) {
        const float* const weight = parameters + map.embed.weight + j * features;
        double mean, variance;
        if (moments) {
            mean = static_cast<double>(bias[j]);
            variance = 0.0;
            for (int64_t f = 0; f < features; ++f) {
                mean += static_cast<double>(weight[f]) * moments->mean[f];
                double row = 0.0;
                for (int64_t g = 0; g < features; ++g)
                    row += moments->covariance[f][g] * static_cast<double>(weight[g]);
                variance += static_cast<double>(weight[f]) * row;
            }
            variance = variance > 0.0 ? variance : 0.0;
            const double keep = 1.0 - static_cast<double>(kBatchNormMomentum), n = static_cast<double>(moments->count);
            updated[j] = static_cast<float>(keep * static_cast<double>(updated[j]) + (1.0 - keep) * mean);
            updated[width + j] = static_cast<float>(keep * static_cast<double>(updated[width + j]) +
                                                    (1.0 - keep) * variance * n / (n - 1.0));
        } else {
            mean = static_cast<double>(running[j]);
            variance = static_cast<double>(running[width + j]);
        }
        b.deviation[j] = static_cast<float>(__builtin_sqrt(variance + static_cast<double>(kBatchNormEps)));
        b.factor[j] = gamma[j] / b.deviation[j];
        b.shift[j] =
            moments ? beta[j]
                    : static_cast<float>(static_cast<double>(b.factor[j]) * (static_cast<double>(bias[j]) - mean)) +
                          beta[j];
        for (int64_t f = 0; f < features; ++f) b.scaled[j * features + f] = weight[f] * b.factor[j];
    }
    pack_panels(b.scaled, 1, features, features, width, nullptr, b.packed);
    return {b.packed, b.shift, b.factor, b.deviation, moments};
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
KDFAST_INLINE void embed_gradient(const EncoderSizes& sizes, const ParameterMap& map, const float* parameters,
                                  const float* running, const EmbedMap& embed, const float* sums, float* gradient) {
    const int64_t features = sizes.features, width = sizes.width;
    float *const d_bias = gradient + map.embed.bias, *const d_gamma = gradient + map.embed_norm.weight;
    float* const d_beta = gradient + map.embed_norm.bias;
    for (int64_t j = 0; j < width; ++j) {
        const float* const weight = parameters + map.embed.weight + j * features;
        float* const d_weight = gradient + map.embed.weight + j * features;
        const float *const S = sums + j * kMaxFeatures, s = sums[width * kMaxFeatures + j];
        const float inverse = 1.0f / embed.deviation[j];
        d_beta[j] = s;
        d_gamma[j] = dot(weight, S, features) * inverse;
        if (!embed.moments) d_gamma[j] += (parameters[map.embed.bias + j] - running[j]) * s * inverse;
        for (int64_t f = 0; f < features; ++f) {
            double through = 0.0;  // of W C
            if (embed.moments)
                for (int64_t g = 0; g < features; ++g)
                    through += static_cast<double>(weight[g]) * embed.moments->covariance[g][f];
            d_weight[f] = embed.factor[j] * (S[f] - d_gamma[j] * inverse * static_cast<float>(through));
        }
        d_bias[j] = embed.moments ? 0.0f : embed.factor[j] * s;
    }
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
