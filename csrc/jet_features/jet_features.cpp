// Two passes over a jet, vectors running over its constituents: momenta are summed, then features are written.
#include "jet_features/jet_features.h"

#include <cmath>

#include "core/simd64.h"
#include "core/threads.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr int64_t kSliceJets = 64;
constexpr int kFeatures = 7;
constexpr float kClip = 20.0f;
constexpr double kNoAxis = 1e-6;  // share of Σ pt that |Σ p_T| must have for a direction to mean something

struct Axis {
    double eta, phi, ln_pt, ln_energy;  // NaN where there is none
};

// kLanes constituents as two vectors of doubles per field.
struct Constituents {
    DVec pt[2], eta[2], phi[2], energy[2];
};

KDFAST_INLINE void split(Vec x, DVec (&halves)[2]) {
    float lanes[kLanes];
    store(lanes, x);
    halves[0] = load_as_double(lanes);
    halves[1] = load_as_double(lanes + kLanes64);
}

KDFAST_INLINE Constituents load_constituents(const float* x, int64_t n) {
    Vec pt, eta, phi, energy;
    if (n >= kLanes)
        load_records(x, pt, eta, phi, energy);
    else
        load_records_partial(x, n, pt, eta, phi, energy);
    Constituents c;
    split(pt, c.pt);
    split(eta, c.eta);
    split(phi, c.phi);
    split(energy, c.energy);
    return c;
}

Axis sum_to_axis(const float* x, int64_t n) {
    DVec px = {}, py = {}, pz = {}, energy = {}, pt = {};
    for (int64_t i = 0; i < n; i += kLanes) {
        const Constituents c = load_constituents(x + 4 * i, n - i);
        for (int half = 0; half < 2; ++half) {
            DVec sin, cos;
            sincos(c.phi[half], sin, cos);
            const DVec e = exp(c.eta[half]);
            px += c.pt[half] * cos;
            py += c.pt[half] * sin;
            pz += c.pt[half] * (0.5 * e - 0.5 / e);  // pt sinh η
            energy += c.energy[half];
            pt += c.pt[half];
        }
    }
    const double x_sum = reduce_add(px), y_sum = reduce_add(py), energy_sum = reduce_add(energy);
    double jet_pt = std::sqrt(x_sum * x_sum + y_sum * y_sum);
    if (!(jet_pt > kNoAxis * reduce_add(pt))) jet_pt = __builtin_nan("");
    // asinh t = ±ln(|t| + √(t² + 1)). The same log as for constituents: a lone constituent is at exactly 0 from its
    // jet.
    const double slope = reduce_add(pz) / jet_pt, steep = std::fabs(slope);
    const DVec ln_sums = log(DVec{jet_pt, energy_sum});
    const DVec asinh = log(DVec{steep < 1e150 ? steep + std::sqrt(steep * steep + 1.0) : 2.0 * steep, 1.0});
    const double phi = jet_pt == jet_pt ? std::atan2(y_sum, x_sum) : jet_pt;
    return {std::copysign(asinh[0], slope), phi, ln_sums[0], ln_sums[1]};
}

// What is not finite becomes 0, the rest is clipped.
KDFAST_INLINE Vec tidy(Vec x) {
    x = select(x - x == 0.0f, x, Vec{});
    return min(max(x, broadcast(-kClip)), broadcast(kClip));
}

void write_features(const float* x, int64_t n, const Axis& axis, float* out) {
    for (int64_t i = 0; i < n; i += kLanes) {
        const Constituents c = load_constituents(x + 4 * i, n - i);
        float columns[kFeatures][kLanes];
        for (int half = 0; half < 2; ++half) {
            const DVec d_eta = c.eta[half] - axis.eta, d_phi = wrap(c.phi[half] - axis.phi);
            const DVec ln_pt = log(c.pt[half]), ln_energy = log(c.energy[half]);
            const DVec values[kFeatures] = {d_eta,
                                            d_phi,
                                            ln_pt,
                                            ln_energy,
                                            ln_pt - axis.ln_pt,
                                            ln_energy - axis.ln_energy,
                                            sqrt(d_eta * d_eta + d_phi * d_phi)};
            for (int f = 0; f < kFeatures; ++f) store_as_float(columns[f] + half * kLanes64, values[f]);
        }
        for (int f = 0; f < kFeatures; ++f) store(columns[f], tidy(load(columns[f])));
        const int64_t rows = n - i < kLanes ? n - i : kLanes;
        for (int64_t row = 0; row < rows; ++row)
            for (int f = 0; f < kFeatures; ++f) out[(i + row) * kFeatures + f] = columns[f][row];
    }
}

}  // namespace

void jet_features(const JetFeaturesParams& p) {
    const int64_t slices = (p.num_jets + kSliceJets - 1) / kSliceJets;
    parallel_for(slices, p.num_threads, [&](int64_t slice) {
        for (int64_t jet = slice * kSliceJets; jet < (slice + 1) * kSliceJets && jet < p.num_jets; ++jet) {
            const int64_t first = p.offsets[jet], n = p.offsets[jet + 1] - first;
            if (n == 0) continue;
            const Axis axis = sum_to_axis(p.constituents + 4 * first, n);
            write_features(p.constituents + 4 * first, n, axis, p.features + kFeatures * first);
        }
    });
}

}  // namespace kdfast::KDFAST_ISA_NS
