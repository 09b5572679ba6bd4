// Jets lie in the lanes. With d = s/T − t/T, p = softmax(t/T), q = softmax(s/T), the KL divergence of a jet is the
// cumulant-generating function of d under p less its mean,
//
//     KL(p ‖ q) = ln Σ_c p_c e^(d_c − d̄),  d̄ = Σ_c p_c d_c,      = ln(1 + S),  S = Σ_c p_c (e^x_c − 1 − x_c),
//     q_c − p_c = p_c (e^x_c − 1 − S) / (1 + S),                    x_c = d_c − d̄:
//
// sums of positive terms, exact to a few units in the last place however close student and teacher are, where the
// usual difference of cross-entropies, scaled by T² = 10^4, has no digits left. Far from the teacher, |x| > kNear, it
// is the other way round (an error of x is one of e^x): there q comes from s/T itself. Two classes need less, see
// bernoulli.
#include "distill_loss/distill_loss.h"

#include "core/simd64.h"
#include "core/threads.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

constexpr float kNear = 2.0f;
// A slice is one task: fixed whatever the number of threads, and its sums are added in order, so the bits are too.
constexpr int64_t kSliceElements = 4096;
constexpr int64_t kParallelElements = 8192;  // fewer are done before a thread wakes

// A sum over jets: in float64, so that a mean over many jets is right to float32's last place, but for groups of 4.
struct Sum {
    DVec total = {};
    Vec group = {};
    int count = 0;
    KDFAST_INLINE void add(Vec v) {
        group += v;
        if (++count % 4 == 0) flush();
    }
    KDFAST_INLINE void flush() {
        float lanes[kLanes];
        store(lanes, group);
        total += load_as_double(lanes) + load_as_double(lanes + kLanes64);
        group = Vec{};
    }
    KDFAST_INLINE double value() {
        flush();
        return reduce_add(total);
    }
};

// `count` elements from `first` on as float32, zeros behind them up to `padded`: in place where they are, or in buffer.
KDFAST_INLINE const float* read(const void* base, DType dtype, int64_t first, int count, int padded, float* buffer) {
    if (count == padded) {
        switch (dtype) {
            case DType::f32:
                return static_cast<const float*>(base) + first;
            case DType::bf16:
                for (int i = 0; i < count; i += kLanes)
                    store(buffer + i, load(static_cast<const bf16*>(base) + first + i));
                return buffer;
            case DType::f16:
                for (int i = 0; i < count; i += kLanes)
                    store(buffer + i, load(static_cast<const f16*>(base) + first + i));
                return buffer;
        }
    }
    for (int i = 0; i < padded; ++i) {
        float x = 0.0f;
        if (i < count) {
            switch (dtype) {
                case DType::f32:
                    x = static_cast<const float*>(base)[first + i];
                    break;
                case DType::bf16:
                    x = to_float(static_cast<const bf16*>(base)[first + i]);
                    break;
                case DType::f16:
                    x = to_float(static_cast<const f16*>(base)[first + i]);
                    break;
            }
        }
        buffer[i] = x;
    }
    return buffer;
}

// The way back: buffer [padded] to `count` elements.
KDFAST_INLINE void write(void* base, DType dtype, int64_t first, int count, int padded, const float* buffer) {
    if (count == padded) {
        for (int i = 0; i < count; i += kLanes) {
            const Vec v = load(buffer + i);
            switch (dtype) {
                case DType::f32:
                    store(static_cast<float*>(base) + first + i, v);
                    break;
                case DType::bf16:
                    store(static_cast<bf16*>(base) + first + i, v);
                    break;
                case DType::f16:
                    store(static_cast<f16*>(base) + first + i, v);
                    break;
            }
        }
        return;
    }
    for (int i = 0; i < count; ++i) {
        switch (dtype) {
            case DType::f32:
                static_cast<float*>(base)[first + i] = buffer[i];
                break;
            case DType::bf16:
                static_cast<bf16*>(base)[first + i] = from_float<bf16>(buffer[i]);
                break;
            case DType::f16:
                static_cast<f16*>(base)[first + i] = from_float<f16>(buffer[i]);
                break;
        }
    }
}

// One member's constants.
struct Member {
    bool distils;              // α > 0
    float T, reciprocal;       // temperature, 1 / T
    float kd_scale, ce_scale;  // of the gradient: α T / Σw, (1 − α) / Σw
};

// x / T as well rounded as by a division.
KDFAST_INLINE Vec divide(Vec x, const Member& m) {
    const Vec y = x * m.reciprocal;
    return y + (x - y * m.T) * m.reciprocal;
}

// a − b as a rounded difference and what rounding lost (Knuth).
struct Difference {
    Vec high, low;
};
KDFAST_INLINE Difference exact_difference(Vec a, Vec b) {
    const Vec high = a - b, z = high - a;
    return {high, (a - (high - z)) - (b + z)};
}
// (s − t) − (s_ref − t_ref): exact where s ≈ t, and where a shift lies between student and teacher.
KDFAST_INLINE Vec minus(Difference a, Difference reference) {
    return (a.high - reference.high) + (a.low - reference.low);
}

// KL(Bern(p) ‖ Bern(q)) and q − p, with p = σ(b), q = σ(a), d = a − b (given, since it has more digits than a − b).
// Of the two classes take the one with p ≤ ½ (b ≤ 0). With u = (e^a − e^b) / (1 + e^b) = p (e^d − 1),
//     KL = ln(1 + u) − p d = p (e^d − 1 − d) − (u − ln(1 + u)),   q − p = (1 − p) u / (1 + u).
// The second form has the digits where d is small: its terms are p d²/2 and at most half of that.
KDFAST_INLINE void bernoulli(Vec a, Vec b, Vec d, Vec& kl, Vec& difference) {
    const IVec flip = b > 0.0f, wide = abs(d) > kNear;
    b = -abs(b);
    d = select(flip, -d, d);
    const Vec eb = exp_nonpositive(b), inverse = 1.0f / (1.0f + eb), p = eb * inverse;
    const Split e = expm1(min(broadcast(kNear), max(broadcast(-kNear), d)));
    Vec u = p * e.value, lift = {}, q = {};
    if (any(wide)) {
        a = select(flip, -a, a);
        const Vec ea = exp_nonpositive(-abs(a));
        u = select(wide, (ea - eb) * inverse, u);  // for a > 0 of e^-a: softplus(a) = a + ln(1 + e^-a)
        lift = select(wide, max(Vec{}, a), lift);
        q = select(a > 0.0f, broadcast(1.0f), ea) / (1.0f + ea);
    }
    const Split l = log1p(u);
    kl = select(abs(d) < 0.3f, p * e.rest - l.rest, (lift - p * d) + l.value);
    difference = select(wide, q - p, inverse * u / (1.0f + u));
    difference = select(flip, -difference, difference);
}

// Binary cross-entropy of logit s with label y, and its derivative σ(s) − y.
KDFAST_INLINE void binary_cross_entropy(Vec s, Vec y, Vec& ce, Vec& derivative) {
    const Vec e = exp_nonpositive(-abs(s)), z = e / (1.0f + e);
    ce = max(s, Vec{}) - s * y + log1p_unit(e);
    derivative = select(s > 0.0f, (1.0f - y) - z, z - y);
}

// kLanes jets of one or two classes: logits [kLanes, C], labels y, weights w; grad [kLanes, C].
template <int C>
KDFAST_INLINE void two_classes(const Member& m, const float* student, const float* teacher, Vec y, Vec w, float* grad,
                               Sum& kd_sum, Sum& ce_sum) {
    Vec s, t = {}, gap = {};
    if constexpr (C == 1) {
        s = load(student);
        if (m.distils) t = load(teacher), gap = s - t;
    } else {  // softmax of two is the sigmoid of their difference
        const Vec s0 = even_lanes(load(student), load(student + kLanes));
        const Vec s1 = odd_lanes(load(student), load(student + kLanes));
        s = s1 - s0;
        if (m.distils) {
            const Vec t0 = even_lanes(load(teacher), load(teacher + kLanes));
            const Vec t1 = odd_lanes(load(teacher), load(teacher + kLanes));
            t = t1 - t0;
            gap = minus(exact_difference(s1, t1), exact_difference(s0, t0));
        }
    }
    Vec ce, derivative;
    binary_cross_entropy(s, y, ce, derivative);
    ce_sum.add(w * ce);
    Vec g = m.ce_scale * derivative;
    if (m.distils) {
        Vec kl, difference;
        bernoulli(divide(s, m), divide(t, m), divide(gap, m), kl, difference);
        kd_sum.add(w * kl);
        g += m.kd_scale * difference;
    }
    g *= w;
    if constexpr (C == 1) {
        store(grad, g);
    } else {
        store(grad, weave_low(-g, g));
        store(grad + kLanes, weave_high(-g, g));
    }
}

// A sum over classes in blocks of 8, which keeps the rounding of a hundred classes down.
struct ClassSum {
    Vec total = {}, block = {};
    KDFAST_INLINE void add(Vec v, int c) {
        block += v;
        if (c % 8 == 7) {
            total += block;
            block = Vec{};
        }
    }
    KDFAST_INLINE Vec value() const { return total + block; }
};

// kLanes jets of C ≥ 3 classes. Scratch holds 4 C vectors.
KDFAST_INLINE void many_classes(const Member& m, int C, const float* student, const float* teacher, Vec y, Vec w,
                                float* grad, Sum& kd_sum, Sum& ce_sum, Vec* scratch) {
    Vec* const S = scratch;          // s, later e^(s − max s)
    Vec* const P = scratch + C;      // t, then e^((t − max t) / T)
    Vec* const X = scratch + 2 * C;  // d, then e^x − 1, then the gradient of the KD term
    Vec* const Q = scratch + 3 * C;  // e^((s − max s) / T)
    float lanes[kLanes];
    for (int c = 0; c < C; ++c) {
        for (int i = 0; i < kLanes; ++i) lanes[i] = student[i * C + c];
        S[c] = load(lanes);
    }
    Vec s_max = S[0], s_top = {};  // the largest logit and its class; NaN is not it, so that it enters the sum below
    for (int c = 1; c < C; ++c) {
        s_top = select(S[c] <= s_max, s_top, broadcast(static_cast<float>(c)));
        s_max = max(s_max, S[c]);
    }

    if (m.distils) {
        for (int c = 0; c < C; ++c) {
            for (int i = 0; i < kLanes; ++i) lanes[i] = teacher[i * C + c];
            P[c] = load(lanes);
        }
        Vec t_max = P[0], t_top = {}, s_ref = S[0];  // d counts from the teacher's favourite class, the heaviest in d̄
        for (int c = 1; c < C; ++c) {
            const IVec above = P[c] > t_max;
            t_top = select(above, broadcast(static_cast<float>(c)), t_top);
            s_ref = select(above, S[c], s_ref);
            t_max = max(t_max, P[c]);
        }
        const Difference reference = exact_difference(s_ref, t_max);
        ClassSum p_total, d_total;
        for (int c = 0; c < C; ++c) {
            X[c] = divide(minus(exact_difference(S[c], P[c]), reference), m);
            P[c] = exp_nonpositive(divide(P[c] - t_max, m));
            p_total.add(P[c], c);
            d_total.add(P[c] * X[c], c);
        }
        const Vec p_sum = p_total.value(), p_norm = 1.0f / p_sum, mean = d_total.value() * p_norm;
        ClassSum excess_total;
        IVec wide = {};
        for (int c = 0; c < C; ++c) {
            const Vec x = X[c] - mean;
            wide |= abs(x) > kNear;
            const Split e = expm1(min(broadcast(kNear), max(broadcast(-kNear), x)));
            excess_total.add(P[c] * e.rest, c);
            X[c] = e.value;
        }
        const Vec excess = excess_total.value() * p_norm;
        Vec kl = log1p(excess).value;
        const Vec near_scale = m.kd_scale * p_norm / (1.0f + excess);
        if (any(wide)) {
            ClassSum q_total;
            for (int c = 0; c < C; ++c) {
                Q[c] = exp_nonpositive(divide(S[c] - s_max, m));
                q_total.add(Q[c], c);
            }
            const Vec q_sum = q_total.value(), q_norm = 1.0f / q_sum;
            kl = select(wide, (divide(s_max - s_ref, m) - mean) + (log(q_sum) - log(p_sum)), kl);
            ClassSum
                others;  // where the teacher's favourite has p > ½, its q − p, perhaps 1 − 1, is minus the others' sum
            for (int c = 0; c < C; ++c) {
                const Vec far = m.kd_scale * (Q[c] * q_norm - P[c] * p_norm);
                others.add(select(t_top == static_cast<float>(c), Vec{}, far), c);
                X[c] = select(wide, far, near_scale * P[c] * (X[c] - excess));
            }
            const IVec replaced = wide & (p_norm > 0.5f);
            for (int c = 0; c < C; ++c)
                X[c] = select(replaced & (t_top == static_cast<float>(c)), -others.value(), X[c]);
        } else {
            for (int c = 0; c < C; ++c) X[c] = near_scale * P[c] * (X[c] - excess);
        }
        kd_sum.add(w * kl);
    }

    Vec own = {}, own_exp = {};
    ClassSum below_top_total, others_total;  // Σ e^(s − max s) without the top class, and without the label's
    for (int c = 0; c < C; ++c) {
        const Vec shifted = S[c] - s_max;
        const IVec is_label = y == static_cast<float>(c);
        own = select(is_label, shifted, own);
        S[c] = exp_nonpositive(shifted);
        own_exp = select(is_label, S[c], own_exp);
        below_top_total.add(select(s_top == static_cast<float>(c), Vec{}, S[c]), c);
        others_total.add(select(is_label, Vec{}, S[c]), c);
    }
    const Vec below_top = below_top_total.value(), others = others_total.value();
    ce_sum.add(w * (log1p(below_top).value - own));
    const Vec s_norm = 1.0f / (1.0f + below_top), own_softmax = own_exp * s_norm;
    const Vec own_grad = m.ce_scale * select(own_softmax > 0.5f, -others * s_norm, own_softmax - 1.0f);
    for (int c = 0; c < C; ++c) {
        Vec g = select(y == static_cast<float>(c), own_grad, m.ce_scale * s_norm * S[c]);
        if (m.distils) g += X[c];
        store(lanes, g * w);
        for (int i = 0; i < kLanes; ++i) grad[i * C + c] = lanes[i];
    }
}

// Labels as floats, in `buffer` where they are integers; null where one of them can't be.
const float* float_labels(const DistillLossParams& p, float* buffer) {
    if (!p.float_labels) {
        const int64_t* labels = static_cast<const int64_t*>(p.labels);
        const uint64_t classes = static_cast<uint64_t>(p.num_classes == 1 ? 2 : p.num_classes);
        bool bad = false;
        for (int64_t i = 0; i < p.num_jets; ++i) {
            bad |= static_cast<uint64_t>(labels[i]) >= classes;
            buffer[i] = static_cast<float>(labels[i]);
        }
        return bad ? nullptr : buffer;
    }
    const float* labels = static_cast<const float*>(p.labels);
    IVec good = IVec{} - 1;
    int64_t i = 0;
    for (; i + kLanes <= p.num_jets; i += kLanes) good &= (load(labels + i) >= 0.0f) & (load(labels + i) <= 1.0f);
    const Vec last = load_partial(labels + i, static_cast<int>(p.num_jets - i));
    good &= (last >= 0.0f) & (last <= 1.0f);
    return any(~good) ? nullptr : labels;
}

// Σ w of the batch; 0 where one of the weights can't be.
double sum_weights(const DistillLossParams& p) {
    const bool whole = !(p.weight_sum > 0.0);
    if (p.weights == nullptr) return whole ? static_cast<double>(p.num_jets) : p.weight_sum;
    bool bad = false;
    double sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= p.num_jets; i += 8)
        for (int j = 0; j < 8; ++j) {
            bad |= !(p.weights[i + j] >= 0.0f) | !(p.weights[i + j] <= __FLT_MAX__);
            sums[j] += p.weights[i + j];
        }
    for (; i < p.num_jets; ++i) {
        bad |= !(p.weights[i] >= 0.0f) | !(p.weights[i] <= __FLT_MAX__);
        sums[0] += p.weights[i];
    }
    double total = 0.0;
    for (double s : sums) total += s;
    if (bad) return 0.0;
    return whole ? total : p.weight_sum;
}

bool check_members(const DistillLossParams& p) {
    bool bad = false;
    for (int64_t k = 0; k < p.num_members; ++k) {
        bad |= !(p.temperature[k] > 0.0) | !(p.temperature[k] <= __DBL_MAX__);
        bad |= !(p.alpha[k] >= 0.0) | !(p.alpha[k] <= 1.0) | (p.teacher == nullptr && p.alpha[k] > 0.0);
    }
    return !bad;
}

// Jets [begin, end) of member k; sums gets Σ w KL and Σ w CE over them. kClasses: 1, 2, or 0 for more.
template <int kClasses>
void slice(const DistillLossParams& p, const float* y, double weight_sum, int64_t k, int64_t begin, int64_t end,
           double* sums) {
    const int C = kClasses > 0 ? kClasses : static_cast<int>(p.num_classes), padded = C * kLanes;
    const double T = p.temperature[k], alpha = p.alpha[k];
    const Member m{alpha > 0.0, static_cast<float>(T), static_cast<float>(1.0 / T),
                   static_cast<float>(alpha * T / weight_sum), static_cast<float>((1.0 - alpha) / weight_sum)};
    constexpr int kMost = kClasses > 0 ? kClasses : kMaxClasses;
    alignas(64) float student[kMost * kLanes], teacher[kMost * kLanes], grad[kMost * kLanes];
    Sum kd_sum, ce_sum;
    for (int64_t b = begin; b < end; b += kLanes) {
        const int jets = static_cast<int>(end - b < kLanes ? end - b : kLanes);
        const int64_t first = (k * p.num_jets + b) * C;
        const float* s = read(p.student, p.student_dtype, first, jets * C, padded, student);
        const float* t = nullptr;
        if (m.distils) t = read(p.teacher, p.teacher_dtype, k * p.teacher_stride + b * C, jets * C, padded, teacher);
        const bool full = jets == kLanes;
        const Vec labels = full ? load(y + b) : load_partial(y + b, jets);
        Vec w = broadcast(1.0f);  // 0 for the padding
        if (p.weights != nullptr)
            w = full ? load(p.weights + b) : load_partial(p.weights + b, jets);
        else if (!full)
            for (int i = jets; i < kLanes; ++i) w[i] = 0.0f;
        if constexpr (kClasses > 0) {
            two_classes<kClasses>(m, s, t, labels, w, grad, kd_sum, ce_sum);
        } else {
            Vec scratch[4 * kMaxClasses];
            many_classes(m, C, s, t, labels, w, grad, kd_sum, ce_sum, scratch);
        }
        if (p.grad != nullptr) write(p.grad, p.grad_dtype, first, jets * C, padded, grad);
    }
    sums[0] = kd_sum.value();
    sums[1] = ce_sum.value();
}

}  // namespace

void distill_loss(const DistillLossParams& p) {
    const int64_t K = p.num_members, B = p.num_jets;
    int64_t jets_per_slice = kSliceElements / p.num_classes / kLanes * kLanes;
    if (jets_per_slice < kLanes) jets_per_slice = kLanes;
    const int64_t slices = (B + jets_per_slice - 1) / jets_per_slice;
    float* const label_buffer = p.float_labels ? nullptr : new float[static_cast<size_t>(B)];
    double* const sums = new double[static_cast<size_t>(K * slices * 2)];
    const float* const y = float_labels(p, label_buffer);
    const double weight_sum = sum_weights(p);
    // Of another order of magnitude the scales 1 / Σw, or their products with the weights, are no float32.
    *p.valid = check_members(p) && y != nullptr && weight_sum > 0x1p-100 && weight_sum < 0x1p100;
    if (*p.valid) {
        const int threads = K * B * p.num_classes < kParallelElements ? 1 : p.num_threads;
        parallel_for(K * slices, threads, [&](int64_t task) {
            const int64_t k = task / slices, begin = task % slices * jets_per_slice;
            const int64_t end = begin + jets_per_slice < B ? begin + jets_per_slice : B;
            const auto of_classes = p.num_classes == 1 ? slice<1> : p.num_classes == 2 ? slice<2> : slice<0>;
            of_classes(p, y, weight_sum, k, begin, end, sums + 2 * task);
        });
        for (int64_t k = 0; k < K; ++k) {
            double kl = 0.0, ce = 0.0;
            for (int64_t i = 0; i < slices; ++i) {
                kl += sums[2 * (k * slices + i)];
                ce += sums[2 * (k * slices + i) + 1];
            }
            const double kd = p.temperature[k] * p.temperature[k] * kl / weight_sum, label = ce / weight_sum;
            if (p.terms != nullptr) {
                p.terms[2 * k] = static_cast<float>(kd);
                p.terms[2 * k + 1] = static_cast<float>(label);
            }
            p.loss[k] = static_cast<float>(p.alpha[k] * kd + (1.0 - p.alpha[k]) * label);
        }
    }
    delete[] sums;
    delete[] label_buffer;
}

}  // namespace kdfast::KDFAST_ISA_NS
