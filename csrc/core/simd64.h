// Vectors of double, and the functions of them that jets need. Kernel sources only.
//
// Each function says how close it comes to the exact value; the coefficients of log, sin and cos are fdlibm's.
#pragma once

#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {

constexpr int kLanes64 = kLanes / 2;

typedef double DVec __attribute__((vector_size(8 * kLanes64)));
typedef int64_t LVec __attribute__((vector_size(8 * kLanes64)));
typedef uint64_t ULVec __attribute__((vector_size(8 * kLanes64)));
typedef float HalfVec __attribute__((vector_size(4 * kLanes64)));

KDFAST_INLINE DVec load(const double* p) {
    DVec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
KDFAST_INLINE void store(double* p, DVec v) { std::memcpy(p, &v, sizeof v); }
KDFAST_INLINE DVec broadcast64(double x) { return x - DVec{}; }
KDFAST_INLINE DVec select(LVec mask, DVec a, DVec b) { return mask ? a : b; }
KDFAST_INLINE DVec min(DVec a, DVec b) { return select(a < b, a, b); }
KDFAST_INLINE DVec max(DVec a, DVec b) { return select(a > b, a, b); }
KDFAST_INLINE DVec abs(DVec a) { return (DVec)((LVec)a & 0x7FFFFFFFFFFFFFFF); }
KDFAST_INLINE DVec sqrt(DVec a) {
    DVec r;
    for (int i = 0; i < kLanes64; ++i) r[i] = __builtin_sqrt(a[i]);
    return r;
}

// kLanes64 floats as doubles, and back (rounded to nearest).
KDFAST_INLINE DVec load_as_double(const float* p) {
    HalfVec v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, DVec);
}
KDFAST_INLINE void store_as_float(float* p, DVec v) {
    const HalfVec h = __builtin_convertvector(v, HalfVec);
    std::memcpy(p, &h, sizeof h);
}

// Bit i is set where lane i of a comparison's result is true.
KDFAST_INLINE uint32_t mask_bits(LVec mask) {
#if defined(__AVX512DQ__)
    return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
#elif defined(__x86_64__)
    return static_cast<uint32_t>(_mm_movemask_pd((__m128d)mask));
#else
    uint32_t bits = 0;
    for (int i = 0; i < kLanes64; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
    return bits;
#endif
}

// Sum over lanes: a fixed tree, halves first.
KDFAST_INLINE double reduce_add(DVec v) {
    double lanes[kLanes64];
    std::memcpy(lanes, &v, sizeof v);
    for (int width = kLanes64 / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

// Unsigned integers below 2^52 as doubles, exactly.
KDFAST_INLINE DVec to_double(ULVec n) { return (DVec)(n | 0x4330000000000000u) - 0x1p52; }

// The nearest integer (ties to even), for |x| < 2^51; `bits` gets it modulo 2^51 in its low bits.
KDFAST_INLINE DVec round(DVec x, LVec& bits) {
    const DVec shifted = x + 0x1.8p52;
    bits = (LVec)shifted;
    return shifted - 0x1.8p52;
}
KDFAST_INLINE DVec round(DVec x) {
    LVec bits;
    return round(x, bits);
}

// An angle brought to [−π, π]; one that lies inside stays exactly as it is.
KDFAST_INLINE DVec wrap(DVec phi) { return phi - 6.283185307179586 * round(phi * 0.15915494309189535); }

// ln x within 1 unit in the last place, for normal x ≥ 0: −inf at 0; NaN below 0, +inf and NaN stay.
KDFAST_INLINE DVec log(DVec x) {
    // x = 2^k m with m in [√½, √2): the exponent counted from √½'s bits, shifted to stay positive.
    const ULVec from_root_half = (ULVec)x - 0x3FE6A09E00000000u + 0x4000000000000000u;
    const ULVec k_biased = from_root_half >> 52;
    const DVec k = to_double(k_biased) - 1024.0;
    const DVec m = (DVec)((ULVec)x - ((k_biased - 1024u) << 52));
    const DVec f = m - 1.0, s = f / (2.0 + f), z = s * s, w = z * z;
    const DVec odd = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const DVec even =
        z * (6.666666666666735130e-01 +
             w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    const DVec half_square = 0.5 * f * f;
    const DVec tail = s * (half_square + (odd + even)) + k * 1.90821492927058770002e-10;
    DVec y = k * 6.93147180369123816490e-01 - ((half_square - tail) - f);
    y = select(x > 0.0, y, select(x == 0.0, broadcast64(-__builtin_inf()), broadcast64(__builtin_nan(""))));
    return select(x < __builtin_inf(), y, x);  // +inf and NaN
}

// sin and cos of r + n π/2 for |r| ≤ π/4, within 1 unit in the last place of the larger; n in its low two bits.
KDFAST_INLINE void sincos_quadrant(DVec r, LVec n, DVec& sin, DVec& cos) {
    const DVec z = r * r;
    DVec s = z * 1.58969099521155010221e-10 - 2.50507602534068634195e-08;
    s = s * z + 2.75573137070700676789e-06;
    s = s * z - 1.98412698298579493134e-04;
    s = s * z + 8.33333333332248946124e-03;
    s = s * z - 1.66666666666666324348e-01;
    s = r + r * z * s;
    DVec c = z * -1.13596475577881948265e-11 + 2.08757232129817482790e-09;
    c = c * z - 2.75573143513906633035e-07;
    c = c * z + 2.48015872894767294178e-05;
    c = c * z - 1.38888888888741095749e-03;
    c = c * z + 4.16666666666666019037e-02;
    c = 1.0 - 0.5 * z + z * z * c;
    const LVec swap = (n & 1) != 0;
    const DVec sin_part = select(swap, c, s), cos_part = select(swap, s, c);
    sin = (DVec)((LVec)sin_part ^ ((n & 2) << 62));
    cos = (DVec)((LVec)cos_part ^ (((n + 1) & 2) << 62));
}

// sin and cos of x (radians), absolute error ≤ 2^-52 for |x| ≤ 2^20; NaN and infinity give NaN.
KDFAST_INLINE void sincos(DVec x, DVec& sin, DVec& cos) {
    LVec n;
    const DVec k = round(x * 0.6366197723675814, n);
    // π/2 in three parts; the first two have 33 bits each, so that k times them is exact.
    const DVec r =
        ((x - k * 1.57079632673412561417e+00) - k * 6.07710050630396597660e-11) - k * 2.02226624879595063154e-21;
    sincos_quadrant(r, n, sin, cos);
}

// e^x, relative error ≤ 2^-51 for x in [-708, 709.7]; 0 below, +inf above, NaN stays NaN.
KDFAST_INLINE DVec exp(DVec x) {
    const DVec clamped = min(max(x, broadcast64(-709.0)), broadcast64(710.0));
    LVec n;
    const DVec k = round(clamped * 1.4426950408889634, n);
    const DVec r = (clamped - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    DVec p = r * (1.0 / 479001600.0) + 1.0 / 39916800.0;  // Taylor: the next term is below 2^-52 for |r| ≤ ln(2)/2
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    // 2^n in two steps, since n may be 1024, whose own bit pattern is infinity.
    const DVec scale = (DVec)((ULVec)(n + (1023 - 1)) << 52);
    DVec y = p * scale * 2.0;
    y = select(x < -708.0, DVec{}, y);
    return select(x == x, select(x > 709.78, broadcast64(__builtin_inf()), y), x);
}

// Four consecutive vectors of records (a, b, c, d) as one vector of each field.
KDFAST_INLINE void load_records(const float* p, Vec& a, Vec& b, Vec& c, Vec& d) {
    const Vec v0 = load(p), v1 = load(p + kLanes), v2 = load(p + 2 * kLanes), v3 = load(p + 3 * kLanes);
    const Vec even0 = even_lanes(v0, v1), even1 = even_lanes(v2, v3);
    const Vec odd0 = odd_lanes(v0, v1), odd1 = odd_lanes(v2, v3);
    a = even_lanes(even0, even1);
    c = odd_lanes(even0, even1);
    b = even_lanes(odd0, odd1);
    d = odd_lanes(odd0, odd1);
}

// The same for the last n < kLanes records, zeros behind them.
KDFAST_INLINE void load_records_partial(const float* p, int64_t n, Vec& a, Vec& b, Vec& c, Vec& d) {
    float padded[4 * kLanes] = {};
    std::memcpy(padded, p, static_cast<size_t>(n) * 4 * sizeof(float));
    load_records(padded, a, b, c, d);
}

}  // namespace kdfast::KDFAST_ISA_NS
