// One jet at a time: constituents as arrays of fields, in float64; vectors run over constituents.
//
// Merging takes each constituent i that still stands and runs over the later ones, a vector of distances at a time. The
// first lane within R is merged, i moves, and only the lanes behind it are compared with the new position: the same
// decisions as those of the specification, which runs over j first, since whatever i has taken in before j decides
// whether j is near i in both.
#include "hlt_emulation/hlt_emulation.h"

#include <cmath>
#include <cstdlib>
#include <new>

#include "core/philox_lanes.h"
#include "core/simd64.h"
#include "core/threads.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr int64_t kSliceJets = 64;
constexpr uint64_t kSmear = 0, kLoss = 1;      // effects, the last word of the counter
constexpr int64_t kNone = -1, kNoMemory = -2;  // in place of the first bad jet
constexpr double kPi = 3.141592653589793;
constexpr double kMaxFloat = 3.4028234663852886e38;

// Fields of one jet's constituents, for the largest jet of a slice, with a vector of room behind.
struct Workspace {
    explicit Workspace(int64_t max_jet_size) {
        const size_t n = static_cast<size_t>((max_jet_size / kLanes + 2) * kLanes);
        memory = static_cast<double*>(std::malloc(n * (4 * sizeof(double) + sizeof(uint64_t) + 4 * sizeof(float) + 4)));
        if (memory == nullptr) return;
        pt = memory, eta = pt + n, phi = eta + n, energy = phi + n;
        place = reinterpret_cast<uint64_t*>(energy + n);
        pt32 = reinterpret_cast<float*>(place + n), eta32 = pt32 + n, phi32 = eta32 + n, energy32 = phi32 + n;
        standing = reinterpret_cast<uint32_t*>(energy32 + n);
    }
    ~Workspace() { std::free(memory); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    double* memory;  // null: there was none
    double *pt = nullptr, *eta = nullptr, *phi = nullptr, *energy = nullptr;
    uint64_t* place = nullptr;                                                       // in the jet as given
    float *pt32 = nullptr, *eta32 = nullptr, *phi32 = nullptr, *energy32 = nullptr;  // as given, later the result
    uint32_t* standing = nullptr;  // a bit per constituent, kLanes64 of them in each word
};

struct Removed {
    int64_t below = 0, merged = 0, lost = 0;
};

// The n constituents of a jet as fields. False where a value is not finite, a pt negative or higher than the one
// before.
KDFAST_INLINE bool load_jet(const float* x, int64_t n, Workspace& w) {
    IVec bad = {};
    int64_t i = 0;
    for (; i < n; i += kLanes) {
        Vec pt, eta, phi, energy;
        if (n - i >= kLanes)
            load_records(x + 4 * i, pt, eta, phi, energy);
        else
            load_records_partial(x + 4 * i, n - i, pt, eta, phi, energy);
        const Vec not_finite = (pt - pt) + (eta - eta) + (phi - phi) + (energy - energy);  // 0 or NaN
        bad |= (not_finite != 0.0f) | (pt < 0.0f);
        store(w.pt32 + i, pt);
        store(w.eta32 + i, eta);
        store(w.phi32 + i, phi);
        store(w.energy32 + i, energy);
    }
    store(w.pt32 + i, Vec{});
    for (int64_t k = 0; k < n; k += kLanes) bad |= load(w.pt32 + k + 1) > load(w.pt32 + k);
    int32_t any = 0;
    for (int lane = 0; lane < kLanes; ++lane) any |= bad[lane];
    return any == 0;
}

// How many of the falling pt reach the threshold.
KDFAST_INLINE int64_t count_above(const float* pt, int64_t n, float threshold) {
    int64_t below = 0;  // where the last vector that reaches it begins
    while (below + kLanes < n && pt[below + kLanes] >= threshold) below += kLanes;
    while (below < n && pt[below] >= threshold) ++below;
    return below;
}

// arg(1 − w + w e^{iΔ}) for weights w in [0, 1] and |Δ| ≤ kSmallAngle: the imaginary part of a Bernoulli variable's
// cumulant generating function, κ₁Δ − κ₃Δ³/3! + κ₅Δ⁵/5! − …, with q = w (1 − w) and κ₃ = q (1 − 2w) =: c. The term
// after the last is below 1e-15.
constexpr double kSmallAngle = 0.2;
KDFAST_INLINE DVec weighted_turn(DVec w, DVec delta) {
    const DVec d2 = delta * delta, d4 = d2 * d2;
    const DVec q = w * (1.0 - w), q2 = q * q, c = q * (1.0 - 2.0 * w);
    const DVec k5 = 1.0 / 120.0 - q * (12.0 / 120.0);
    const DVec k7 = (1.0 / 5040.0 - q * (60.0 / 5040.0)) + q2 * (360.0 / 5040.0);
    const DVec k9 = (1.0 / 362880.0 - q * (252.0 / 362880.0)) + q2 * (5040.0 / 362880.0 - q * (20160.0 / 362880.0));
    return delta * w - (delta * d2) * c * ((1.0 / 6.0 - k5 * d2) + d4 * (k7 - k9 * d2));
}

// An angle in [−2π, 2π] brought to [−π, π].
template <class T>
KDFAST_INLINE T wrap_once(T angle) {
    angle = angle > kPi ? angle - 2.0 * kPi : angle;
    return angle < -kPi ? angle + 2.0 * kPi : angle;
}

// Merges in place and moves those that stand to the front; returns their number. around: some φ are more than π apart,
// so that differences have to be wrapped.
template <bool around>
int64_t merge(Workspace& w, int64_t n, double radius) {
    const bool wide = radius > kSmallAngle;
    const double radius_2 = radius * radius;
    const int64_t blocks = (n + kLanes64 - 1) / kLanes64;
    for (int64_t v = 0; v < blocks; ++v) w.standing[v] = (1u << kLanes64) - 1;
    if (n % kLanes64) w.standing[blocks - 1] = (1u << (n % kLanes64)) - 1;

    int64_t kept = 0;
    for (int64_t own = 0; own < blocks;) {
        // The next that stands. Those before it in its block have had their turn.
        const uint32_t waiting = w.standing[own];
        if (!waiting) {
            ++own;
            continue;
        }
        const int own_lane = __builtin_ctz(waiting);
        const int64_t i = own * kLanes64 + own_lane;
        w.standing[own] &= ~(1u << own_lane);
        double pt = w.pt[i], eta = w.eta[i], phi = w.phi[i], energy = w.energy[i];
        for (int64_t v = own; v < blocks; ++v) {
            uint32_t behind = w.standing[v];
            if (!behind) continue;
            const double* block = w.pt + v * kLanes64;
            const DVec pts = load(block), etas = load(w.eta + v * kLanes64), phis = load(w.phi + v * kLanes64);
            for (;;) {
                const DVec d_eta = etas - eta, d_phi = around ? wrap_once(phis - phi) : phis - phi;
                const uint32_t near = behind & mask_bits(d_eta * d_eta + d_phi * d_phi < radius_2);
                if (!near) break;
                // Where i goes, for every lane that it may take in: the division need not wait for the choice.
                const DVec total = pts + pt, share = select(total > 0.0, pts / total, DVec{});
                double moved_eta[kLanes64], turn[kLanes64];
                store(moved_eta, eta + share * d_eta);
                const int lane = __builtin_ctz(near);
                store(turn, weighted_turn(share, d_phi));
                if (wide && std::fabs(d_phi[lane]) > kSmallAngle) {
                    const double s = share[lane], delta = d_phi[lane];
                    turn[lane] = std::atan2(s * std::sin(delta), (1.0 - s) + s * std::cos(delta));
                }
                eta = moved_eta[lane];
                phi = around ? wrap_once(phi + turn[lane]) : phi + turn[lane];
                pt += block[lane];
                energy += w.energy[v * kLanes64 + lane];
                w.standing[v] &= ~(1u << lane);
                behind &= ~((2u << lane) - 1);
            }
        }
        w.pt[kept] = pt, w.eta[kept] = eta, w.phi[kept] = phi, w.energy[kept] = energy;
        w.place[kept++] = static_cast<uint64_t>(i);
    }
    return kept;
}

int64_t merge(Workspace& w, int64_t n, double radius) {
    DVec low = {}, high = {};  // 0 among angles in [−π, π] makes none of them further apart than π that was not
    for (int64_t i = 0; i < n; i += kLanes64) {
        low = min(low, load(w.phi + i));
        high = max(high, load(w.phi + i));
    }
    double lowest = 0.0, highest = 0.0;
    for (int lane = 0; lane < kLanes64; ++lane) {
        lowest = low[lane] < lowest ? low[lane] : lowest;
        highest = high[lane] > highest ? high[lane] : highest;
    }
    return highest - lowest > kPi ? merge<true>(w, n, radius) : merge<false>(w, n, radius);
}

// Two independent standard normal numbers, by Box and Muller.
KDFAST_INLINE void normal_pair(WVec bits_radius, WVec bits_angle, DVec& first, DVec& second) {
    const DVec u = (to_double(bits_radius & 0xFFFFFFFFu) + 0.5) * 0x1p-32;
    const DVec quarters = (to_double(bits_angle & 0xFFFFFFFFu) + 0.5) * 0x1p-30;  // 4 × the uniform: exact
    LVec n;
    const DVec rest = quarters - round(quarters, n);
    DVec sin, cos;
    sincos_quadrant(rest * (0.5 * kPi), n, sin, cos);
    const DVec radius = sqrt(-2.0 * log(u));
    first = radius * cos;
    second = radius * sin;
}

struct Counter {
    WVec low, high;  // of the jet's index
};

// Smears the n constituents in place.
KDFAST_INLINE void smear(const HltEmulationParams& p, const Counter& jet, Workspace& w, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes64) {
        WVec c0 = jet.low, c1 = jet.high, c2, c3 = WVec{} + kSmear;
        std::memcpy(&c2, w.place + i, sizeof c2);
        philox_rounds(p.seed, c0, c1, c2, c3);
        DVec z_eta, z_phi, z_pt, unused;
        normal_pair(c0, c1, z_eta, z_phi);
        normal_pair(c2, c3, z_pt, unused);
        const DVec factor = min(max(1.0 + p.pt_resolution * z_pt, broadcast64(0.5)), broadcast64(1.5));
        const DVec pt = load(w.pt + i) * factor;
        const DVec eta = load(w.eta + i) + p.angular_resolution * z_eta;
        const DVec phi = load(w.phi + i) + p.angular_resolution * z_phi;
        const DVec e = exp(abs(eta));
        const DVec energy = pt * (0.5 * e + 0.5 / e);  // pt cosh η
        store(w.pt + i, pt);
        store(w.eta + i, eta);
        store(w.phi + i, wrap(phi));
        store(w.energy + i, select(pt > 0.0, energy, DVec{}));
    }
}

// Rounds the n constituents to float and leaves out those that are lost; returns the number of the others.
KDFAST_INLINE int64_t lose(const HltEmulationParams& p, const Counter& jet, Workspace& w, int64_t n) {
    int64_t kept = 0;
    const DVec limit = broadcast64(kMaxFloat);
    for (int64_t i = 0; i < n; i += kLanes64) {
        uint32_t lost = 0;
        if (p.loss > 0.0) {
            WVec c0 = jet.low, c1 = jet.high, c2, c3 = WVec{} + kLoss;
            std::memcpy(&c2, w.place + i, sizeof c2);
            philox_rounds(p.seed, c0, c1, c2, c3);
            lost = mask_bits((to_double(c0 & 0xFFFFFFFFu) + 0.5) * 0x1p-32 < p.loss);
        }
        float pt[kLanes64], eta[kLanes64], phi[kLanes64], energy[kLanes64];
        store_as_float(pt, min(load(w.pt + i), limit));
        store_as_float(eta, load(w.eta + i));
        store_as_float(phi, load(w.phi + i));
        store_as_float(energy, max(min(load(w.energy + i), limit), -limit));
        const int lanes = n - i < kLanes64 ? static_cast<int>(n - i) : kLanes64;
        for (int lane = 0; lane < lanes; ++lane) {  // what is lost is overwritten by the next
            w.pt32[kept] = pt[lane], w.eta32[kept] = eta[lane];
            w.phi32[kept] = phi[lane], w.energy32[kept] = energy[lane];
            kept += !(lost >> lane & 1);
        }
    }
    return kept;
}

// Writes the n constituents in falling pt, equal ones in their order: each goes to the place that is the number of
// those before it.
KDFAST_INLINE void write_sorted(const Workspace& w, int64_t n, float* out) {
    IVec lane_number;
    for (int lane = 0; lane < kLanes; ++lane) lane_number[lane] = lane;
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec pt = load(w.pt32 + i);
        const IVec own = lane_number + static_cast<int32_t>(i);
        IVec rank = {};
        for (int64_t j = 0; j < n; ++j) {
            const Vec other = broadcast(w.pt32[j]);
            rank -= (other > pt) | ((other == pt) & (static_cast<int32_t>(j) < own));
        }
        int32_t ranks[kLanes];
        std::memcpy(ranks, &rank, sizeof rank);
        for (int64_t k = i; k < i + kLanes && k < n; ++k) {
            float* to = out + 4 * ranks[k - i];
            to[0] = w.pt32[k], to[1] = w.eta32[k], to[2] = w.phi32[k], to[3] = w.energy32[k];
        }
    }
}

// Emulates the jets [first, last) and writes them one behind the other to scratch, from the slice's own beginning. The
// numbers of constituents go to out_offsets[jet + 1]. Returns the first bad jet, kNone or kNoMemory.
int64_t emulate_slice(const HltEmulationParams& p, int64_t first, int64_t last, Removed& removed) {
    int64_t max_jet_size = 0;
    for (int64_t jet = first; jet < last; ++jet) {
        const int64_t n = p.offsets[jet + 1] - p.offsets[jet];
        max_jet_size = n > max_jet_size ? n : max_jet_size;
    }
    Workspace w(max_jet_size);
    if (w.memory == nullptr) return kNoMemory;
    const bool smears = p.pt_resolution > 0.0 || p.angular_resolution > 0.0;
    float* out = p.scratch + 4 * p.offsets[first];
    for (int64_t jet = first; jet < last; ++jet) {
        const int64_t given = p.offsets[jet + 1] - p.offsets[jet];
        if (!load_jet(p.constituents + 4 * p.offsets[jet], given, w)) return jet;
        const int64_t above = count_above(w.pt32, given, p.pt_threshold);
        for (int64_t i = 0; i < above; i += kLanes64) {
            store(w.pt + i, load_as_double(w.pt32 + i));
            store(w.eta + i, load_as_double(w.eta32 + i));
            store(w.phi + i, wrap(load_as_double(w.phi32 + i)));
            store(w.energy + i, load_as_double(w.energy32 + i));
        }
        int64_t n = above;
        if (p.merge_radius > 0.0)
            n = merge(w, above, p.merge_radius);
        else
            for (int64_t i = 0; i < n; ++i) w.place[i] = static_cast<uint64_t>(i);
        const uint64_t index = static_cast<uint64_t>(p.index[jet]);
        const Counter counter{WVec{} + (index & 0xFFFFFFFFu), WVec{} + (index >> 32)};
        if (smears) smear(p, counter, w, n);
        const int64_t left = lose(p, counter, w, n);
        write_sorted(w, left, out);
        out += 4 * left;
        p.out_offsets[jet + 1] = left;
        removed.below += given - above;
        removed.merged += above - n;
        removed.lost += n - left;
    }
    return kNone;
}

}  // namespace

void hlt_emulation(const HltEmulationParams& p) {
    const int64_t slices = (p.num_jets + kSliceJets - 1) / kSliceJets;
    struct Report {
        Removed removed;
        int64_t first_bad = kNone;
    };
    Report* reports = new Report[static_cast<size_t>(slices)];
    parallel_for(slices, p.num_threads, [&](int64_t slice) {
        const int64_t first = slice * kSliceJets;
        const int64_t last = first + kSliceJets < p.num_jets ? first + kSliceJets : p.num_jets;
        Report report;
        report.first_bad = emulate_slice(p, first, last, report.removed);
        reports[slice] = report;
    });
    Removed removed;
    *p.first_bad = kNone;
    bool no_memory = false;
    for (int64_t slice = slices - 1; slice >= 0; --slice) {
        removed.below += reports[slice].removed.below;
        removed.merged += reports[slice].removed.merged;
        removed.lost += reports[slice].removed.lost;
        no_memory |= reports[slice].first_bad == kNoMemory;
        if (reports[slice].first_bad >= 0) *p.first_bad = reports[slice].first_bad;
    }
    delete[] reports;
    if (no_memory) throw std::bad_alloc();
    p.removed[0] = removed.below;
    p.removed[1] = removed.merged;
    p.removed[2] = removed.lost;
    p.out_offsets[0] = 0;
    if (*p.first_bad >= 0) return;
    for (int64_t jet = 0; jet < p.num_jets; ++jet) p.out_offsets[jet + 1] += p.out_offsets[jet];
}

void hlt_compact(const HltCompactParams& p) {
    constexpr int64_t kJets = 16 * kSliceJets;  // larger pieces: this only copies
    const int64_t pieces = (p.num_jets + kJets - 1) / kJets;
    parallel_for(pieces, p.num_threads, [&](int64_t piece) {
        for (int64_t first = piece * kJets; first < (piece + 1) * kJets && first < p.num_jets; first += kSliceJets) {
            const int64_t last = first + kSliceJets < p.num_jets ? first + kSliceJets : p.num_jets;
            const int64_t from = p.out_offsets[first], count = p.out_offsets[last] - from;
            if (count == 0) continue;  // an empty output has no address, which memcpy may not be given
            std::memcpy(p.out + 4 * from, p.scratch + 4 * p.offsets[first], static_cast<size_t>(count) * 16);
        }
    });
}

}  // namespace kdfast::KDFAST_ISA_NS
