#include "adamw/adamw.h"

#include "core/simd.h"
#include "core/threads.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

double sum_of_squares(const float* x, int64_t n) {
    // Float32 sums of at most kAdamWChunk / (4 · kLanes) squares a lane, then float64.
    Vec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
        for (int part = 0; part < 4; ++part) {
            const Vec v = load(x + i + part * kLanes);
            sums[part] += v * v;
        }
    double total = 0.0;
    for (const Vec& lanes : sums)
        for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(lanes[lane]);
    for (; i < n; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return total;
}

struct Coefficients {
    float gradient_scale, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, inverse_root_correction2, eps;
};

template <class V>
KDFAST_INLINE V root(V x) {
    V y;
    if constexpr (sizeof(V) == sizeof(float))
        y = __builtin_sqrtf(x);
    else
        for (int lane = 0; lane < kLanes; ++lane) y[lane] = __builtin_sqrtf(x[lane]);
    return y;
}

// One vector or one float of the update.
template <class V>
KDFAST_INLINE void update(V& parameter, V gradient, V& m, V& v, const Coefficients& c) {
    const V g = gradient * c.gradient_scale;
    m += c.one_minus_beta1 * (g - m);
    v = c.beta2 * v + c.one_minus_beta2 * (g * g);
    parameter = parameter * c.decay - c.step_size * (m / (root(v) * c.inverse_root_correction2 + c.eps));
}

void update_chunk(const AdamWParams& p, int64_t begin, int64_t end, const Coefficients& c) {
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
        Vec parameter = load(p.parameters + i), m = load(p.moment1 + i), v = load(p.moment2 + i);
        update(parameter, load(p.gradient + i), m, v, c);
        store(p.parameters + i, parameter);
        store(p.moment1 + i, m);
        store(p.moment2 + i, v);
    }
    for (; i < end; ++i) update(p.parameters[i], p.gradient[i], p.moment1[i], p.moment2[i], c);
}

}  // namespace

void adamw(const AdamWParams& p) {
    const int64_t chunks = adamw_chunks(p.num_parameters), tasks = p.num_members * chunks;
    // A task is one chunk of one member.
    auto first = [&](int64_t task) { return task / chunks * p.num_parameters + task % chunks * kAdamWChunk; };
    auto length = [&](int64_t task) {
        const int64_t rest = p.num_parameters - (task % chunks) * kAdamWChunk;
        return rest < kAdamWChunk ? rest : kAdamWChunk;
    };
    parallel_for(tasks, p.num_threads,
                 [&](int64_t task) { p.scratch[task] = sum_of_squares(p.gradient + first(task), length(task)); });
    for (int64_t k = 0; k < p.num_members; ++k) {
        double total = 0.0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += p.scratch[k * chunks + chunk];
        p.norm[k] = static_cast<float>(__builtin_sqrt(total));
    }
    parallel_for(tasks, p.num_threads, [&](int64_t task) {
        const int64_t k = task / chunks;
        if (!__builtin_isfinite(p.norm[k])) return;
        const double steps = static_cast<double>(p.step[k]), rate = p.learning_rate[k];
        const double clip = p.clip_norm / (p.norm[k] + 1e-6);
        const Coefficients c{static_cast<float>(clip < 1.0 ? clip : 1.0),
                             static_cast<float>(1.0 - p.beta1),
                             static_cast<float>(p.beta2),
                             static_cast<float>(1.0 - p.beta2),
                             static_cast<float>(1.0 - rate * p.weight_decay[k]),
                             static_cast<float>(rate / (1.0 - __builtin_pow(p.beta1, steps))),
                             static_cast<float>(1.0 / __builtin_sqrt(1.0 - __builtin_pow(p.beta2, steps))),
                             static_cast<float>(p.eps)};
        update_chunk(p, first(task), first(task) + length(task), c);
    });
}

}  // namespace kdfast::KDFAST_ISA_NS
