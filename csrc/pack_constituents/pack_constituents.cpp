// Jet by jet: pt is checked to its end, then vectors run over the slots. Faults are collected and looked at once a jet.
#include "pack_constituents/pack_constituents.h"

#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

// A constituent is fine if its energy is clearly not below the limit of 1 − 1e-3 of its momentum pt cosh η. Between the
// two limits numpy decides, whose rounding counts; so it does for what is near the ends of float32's range.
constexpr float kClearly = 1.0f - 5e-4f;
constexpr float kLargestEta = 20.0f;
constexpr float kSmallestPt = 1e-30f, kLargestPt = 1e25f;
constexpr int32_t kMagnitude = 0x7FFFFFFF;  // all bits but the sign: −0 in padding is nothing, too

// Whether pt [n] never rises, which NaN does not do.
bool falls(const float* pt, int64_t n) {
    if (n <= kLanes) {
        for (int64_t i = 1; i < n; ++i)
            if (!(pt[i] <= pt[i - 1])) return false;
        return true;
    }
    IVec ok = load(pt + n - kLanes) <= load(pt + n - kLanes - 1);  // the last ones, which may be looked at twice
    for (int64_t i = 0; i + kLanes < n; i += kLanes) ok &= load(pt + i + 1) <= load(pt + i);
    return !any(~ok);
}

// How many of pt [n], which falls, are above zero.
int64_t count_filled(const float* pt, int64_t n) {
    int64_t filled = 0;
    while (filled + kLanes <= n && pt[filled + kLanes - 1] > 0.0f) filled += kLanes;
    while (filled < n && pt[filled] > 0.0f) ++filled;
    return filled;
}

struct Slots {
    Vec pt, eta, phi, energy;
};

// Slots i … of rows of n; zeros behind the last.
KDFAST_INLINE Slots load_slots(const float* const (&row)[4], int64_t i, int64_t n) {
    if (i + kLanes <= n) return {load(row[0] + i), load(row[1] + i), load(row[2] + i), load(row[3] + i)};
    const int left = static_cast<int>(n - i);
    return {load_partial(row[0] + i, left), load_partial(row[1] + i, left), load_partial(row[2] + i, left),
            load_partial(row[3] + i, left)};
}

// True in the lanes of good constituents, and of padding of zeros.
KDFAST_INLINE IVec are_fine(const Slots& s) {
    const Vec steep = abs(s.eta), shrink = exp_nonpositive(-steep);
    const Vec momentum = s.pt * (shrink + 1.0f / shrink) * (0.5f * kClearly);  // 2 cosh η = e^−|η| + e^|η|
    return (steep <= kLargestEta) & (abs(s.phi) < __builtin_inff()) & (s.energy < __builtin_inff()) &
           (s.energy >= momentum);
}

// All bits of eta, phi and energy that are set, without the signs.
KDFAST_INLINE IVec magnitude_bits(const Slots& s) { return ((IVec)s.eta | (IVec)s.phi | (IVec)s.energy) & kMagnitude; }

KDFAST_INLINE void store_records(float* p, const Slots& s) {
    const Vec pt_phi_low = weave_low(s.pt, s.phi), pt_phi_high = weave_high(s.pt, s.phi);
    const Vec eta_energy_low = weave_low(s.eta, s.energy), eta_energy_high = weave_high(s.eta, s.energy);
    store(p, weave_low(pt_phi_low, eta_energy_low));
    store(p + kLanes, weave_high(pt_phi_low, eta_energy_low));
    store(p + 2 * kLanes, weave_low(pt_phi_high, eta_energy_high));
    store(p + 3 * kLanes, weave_high(pt_phi_high, eta_energy_high));
}

// Writes the first `filled` of a row's n slots to `out`, which has room for `capacity` ≥ filled. Whether the row is
// fine.
bool pack_row(const float* const (&row)[4], int64_t n, int64_t filled, float per_gev, float* out, int64_t capacity) {
    IVec lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    IVec bad = {};
    int64_t i = 0;
    for (; i < filled; i += kLanes) {
        Slots s = load_slots(row, i, n);
        bad |= ~are_fine(s);
        if (filled - i < kLanes) bad |= (lane >= static_cast<int32_t>(filled - i)) & (magnitude_bits(s) != 0);
        s.pt = s.pt / per_gev;  // as numpy divides: no product with 1 / per_gev, which rounds otherwise
        s.energy = s.energy / per_gev;
        if (capacity - i >= kLanes) {
            store_records(out + 4 * i, s);  // what is behind the jet's last one is overwritten by the next jet
        } else {
            float records[4 * kLanes];
            store_records(records, s);
            std::memcpy(out + 4 * i, records, static_cast<size_t>(filled - i) * 4 * sizeof(float));
        }
    }
    IVec padding = {};
    for (; i < n; i += kLanes) padding |= magnitude_bits(load_slots(row, i, n));
    return !any(bad | (padding != 0));
}

// The constituents of all jets, or −1.
int64_t pack(const PackConstituentsParams& p) {
    int64_t total = 0;
    for (int64_t jet = 0; jet < p.rows; ++jet) {
        const float* pt = p.pt + jet * p.stored;
        if (!falls(pt, p.stored) || !(pt[0] <= kLargestPt) || !(pt[p.stored - 1] >= 0.0f)) return -1;
        const int64_t filled = count_filled(pt, p.width);
        if (filled > 0 && !(pt[filled - 1] >= kSmallestPt)) return -1;
        p.counts[jet] = filled;
        const int64_t capacity = p.capacity - total;
        if (filled <= capacity) {
            const int64_t first = jet * p.width;
            const float* const row[4] = {pt, p.eta + first, p.phi + first, p.energy + first};
            if (!pack_row(row, p.width, filled, p.per_gev, p.constituents + 4 * total, capacity)) return -1;
        }
        total += filled;
    }
    return total;
}

}  // namespace

void pack_constituents(const PackConstituentsParams& p) { *p.total = pack(p); }

}  // namespace kdfast::KDFAST_ISA_NS
