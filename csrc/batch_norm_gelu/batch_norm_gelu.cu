// Forward, three launches: the moments of each block's rows (in training), those of all rows, and the result. A thread
// takes the mean of eight rows in registers, then their squares about it; sets are joined by the formula of Chan, Golub
// & LeVeque (1979), so that no variance is the small difference of large sums. A mean is kept as a sum of two floats:
// one float's rounding counts where it is large beside σ, and where backward's differences all but cancel, as of two
// rows.
//
// Backward, three launches as well. With x̂ = (y − mean) / σ, h = GELU′(γ x̂ + β) D′(g) for the gradient g, sums over
// the n rows:
//
//     dγ = Σ h x̂,    dβ = Σ h,    dy = γ / σ · (h − (dβ + x̂ dγ) / n)    (γ / σ · h where the running moments were used)
//
// The first adds up h x̂ and h by block, the second by core/octets.h, the third computes h anew: reading g and y twice
// moves less than keeping h.
#include "batch_norm_gelu/batch_norm_gelu_gpu.h"
#include "core/gelu.h"
#include "core/gpu.h"
#include "core/octets.h"

namespace kdfast::gpu {
namespace {

constexpr float kEps = 1e-5f, kMomentum = 0.1f;

using StatisticsWalk = Walk<256, 8>;  // forward's and backward's sums over rows
using RowsWalk = Walk<256, 4>;

// ---- statistics -----------------------------------------------------------------------------------------------------

// Of some numbers: their mean, as a sum of two floats, and the sum of squared deviations from it. No numbers: zeros.
struct Moments {
    float mean, rest, squares;
};

// Those of two sets, of `count` and `more` numbers, together.
__device__ __forceinline__ Moments join(float count, const Moments& a, float more, const Moments& b) {
    if (count == 0.0f) return b;
    const float share = more / (count + more);
    const float distance = (b.mean - a.mean) + (b.rest - a.rest), step = fmaf(distance, share, a.rest);
    const float mean = a.mean + step, taken = mean - a.mean;  // and what the sum has lost (Knuth)
    return {mean, (a.mean - (mean - taken)) + (step - taken),
            a.squares + b.squares + distance * distance * (count * share)};
}

// The moments of a block's rows, to workspace [K, chunks of rows, D] Moments.
template <class T>
__global__ void __launch_bounds__(StatisticsWalk::kThreads)
    moments_of_blocks(const __grid_constant__ BatchNormGeluParams p, const __grid_constant__ StatisticsWalk walk) {
    constexpr int kWarps = StatisticsWalk::kThreads / kWarp, kColumns = StatisticsWalk::kMaxColumns;
    KDFAST_SHARED(Moments, parts, kWarps * kColumns);
    KDFAST_SHARED(float, counts, kWarps);
    const int64_t num_valid = p.rows.count[0];
    const int octet = walk.octet(0);
    Octet y[StatisticsWalk::kRows] = {};
    float count = 0.0f;
#pragma unroll
    for (int r = 0; r < walk.kRows; ++r) {
        const int64_t row = walk.row(r);
        if (row >= num_valid) continue;
        count += 1.0f;  // the rows that are there are the first ones
        if (walk.has(octet)) y[r] = load_octet(static_cast<const T*>(p.y) + walk.element(p.rows, row, octet));
    }
    Moments own[kOctet];
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
        float sum = 0.0f, rest = 0.0f, squares = 0.0f;
#pragma unroll
        for (int r = 0; r < walk.kRows; ++r) sum += y[r][e];
        const float mean = count > 0.0f ? sum / count : 0.0f;
#pragma unroll
        for (int r = 0; r < walk.kRows; ++r) {
            const float deviation = static_cast<float>(r) < count ? y[r][e] - mean : 0.0f;
            rest += deviation;
            squares = fmaf(deviation, deviation, squares);
        }
        rest = count > 0.0f ? rest / count : 0.0f;
        own[e] = {mean, rest, fmaf(-count * rest, rest, squares)};
    }
    for (int distance = walk.lanes; distance < kWarp; distance *= 2) {
        const float more = __shfl_down_sync(kFullMask, count, distance);
#pragma unroll
        for (int e = 0; e < kOctet; ++e) {
            const Moments other{__shfl_down_sync(kFullMask, own[e].mean, distance),
                                __shfl_down_sync(kFullMask, own[e].rest, distance),
                                __shfl_down_sync(kFullMask, own[e].squares, distance)};
            own[e] = join(count, own[e], more, other);
        }
        count += more;  // of the first group all are right; others have read beyond the warp's end
    }
    if (lane_index() < walk.lanes)
#pragma unroll
        for (int e = 0; e < kOctet; ++e) parts[warp_index() * kColumns + lane_index() * kOctet + e] = own[e];
    if (lane_index() == 0) counts[warp_index()] = count;
    __syncthreads();
    const int columns = walk.lanes * kOctet, first = static_cast<int>(blockIdx.y) * columns;
    const int num_features = static_cast<int>(p.rows.num_features);
    Moments* const to =
        reinterpret_cast<Moments*>(p.workspace) + (walk.member() * gridDim.x + blockIdx.x) * num_features;
    for (int c = static_cast<int>(threadIdx.x); c < columns && first + c < num_features; c += walk.kThreads) {
        Moments total{};
        float so_far = 0.0f;
        for (int w = 0; w < kWarps; ++w) {
            const Moments part = parts[w * kColumns + c];
            const float more = counts[w];
            total = join(so_far, total, more, part);
            so_far += more;
        }
        to[first + c] = total;
    }
}

// What the rows are normalised by, and the running moments' step. A block has 32 columns of a member; each warp joins
// every kSumWarps-th chunk, the first one what they have.
__global__ void __launch_bounds__(kSumWarps* kWarp)
    statistics(const __grid_constant__ BatchNormGeluParams p, int64_t num_chunks, int64_t rows_of_chunk) {
    KDFAST_SHARED(Moments, parts, kSumWarps * kWarp);
    KDFAST_SHARED(float, counts, kSumWarps);
    const int64_t num_valid = p.rows.count[0], num_features = p.rows.num_features, member = blockIdx.y;
    const bool uses_batch = p.training && num_valid > 1;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane_index();
    const Moments* const from = reinterpret_cast<const Moments*>(p.workspace) + member * num_chunks * num_features;
    Moments total{};
    float count = 0.0f;
    if (uses_batch && column < num_features)
        for (int64_t chunk = warp_index(); chunk < num_chunks; chunk += kSumWarps) {
            const int64_t left = num_valid - chunk * rows_of_chunk;
            if (left <= 0) break;
            const float more = static_cast<float>(min(left, rows_of_chunk));
            total = join(count, total, more, from[chunk * num_features + column]);
            count += more;
        }
    parts[warp_index() * kWarp + lane_index()] = total;
    if (lane_index() == 0) counts[warp_index()] = count;
    __syncthreads();
    if (warp_index() != 0 || column >= num_features) return;
    float& running_mean = p.running_mean[member * p.running_mean_stride + column];
    float& running_variance = p.running_variance[member * p.running_variance_stride + column];
    float mean = running_mean, variance = running_variance;
    if (uses_batch) {
        for (int w = 1; w < kSumWarps; ++w) {
            const Moments part = parts[w * kWarp + lane_index()];
            const float more = counts[w];
            total = join(count, total, more, part);
            count += more;
        }
        running_mean = fmaf(kMomentum, total.mean - mean, mean);
        running_variance = fmaf(kMomentum, total.squares / (count - 1.0f) - variance, variance);
        mean = total.mean;
        variance = total.squares / count;
    }
    const int64_t at = member * num_features + column, size = p.rows.num_members * num_features;
    p.statistics[at] = mean;
    p.statistics[size + at] = total.rest;
    p.statistics[2 * size + at] = rsqrtf(variance + kEps);
}

// ---- rows -----------------------------------------------------------------------------------------------------------

// A member's constants of an octet of columns.
struct Columns {
    Octet mean, rest, inverse, gamma, beta;

    __device__ __forceinline__ float normal(float y, int e) const { return ((y - mean[e]) - rest[e]) * inverse[e]; }
};
template <class Params, class Walk>
__device__ __forceinline__ Columns columns_of(const Params& p, const Walk& walk, int octet) {
    Columns c{};
    if (!walk.has(octet)) return c;
    const int64_t size = p.rows.num_members * p.rows.num_features;
    const float* const from = p.statistics + walk.member() * p.rows.num_features + octet * kOctet;
    c.mean = load_octet(from);
    c.rest = load_octet(from + size);
    c.inverse = load_octet(from + 2 * size);
    c.gamma = load_vector(p.gamma, walk.member(), octet, true);
    c.beta = load_vector(p.beta, walk.member(), octet, true);
    return c;
}

template <class T>
__global__ void __launch_bounds__(RowsWalk::kThreads)
    forward(const __grid_constant__ BatchNormGeluParams p, const __grid_constant__ RowsWalk walk) {
    const int64_t count = p.rows.count[0];
    const int octet = walk.octet(0);
    if (!walk.has(octet)) return;
    const Columns c = columns_of(p, walk, octet);
#pragma unroll
    for (int r = 0; r < walk.kRows; ++r) {
        const int64_t row = walk.row(r), at = walk.element(p.rows, row, octet);
        if (row >= p.rows.capacity) return;
        Octet z{};
        if (row < count) {
            z = load_octet(static_cast<const T*>(p.y) + at);
#pragma unroll
            for (int e = 0; e < kOctet; ++e) z[e] = gelu<T>(fmaf(c.normal(z[e], e), c.gamma[e], c.beta[e]));
            drop(z, p.dropout, p.rows, row, octet);
        }
        store_octet(static_cast<T*>(p.out) + at, z);
    }
}

// x̂ and h of an octet of a row that is there.
struct RowGradient {
    Octet normal, grad;
};
template <class T>
__device__ __forceinline__ RowGradient row_gradient(const BatchNormGeluBackwardParams& p, const Columns& c, int64_t row,
                                                    int octet, int64_t at) {
    RowGradient r{load_octet(static_cast<const T*>(p.y) + at), load_octet(static_cast<const T*>(p.grad_out) + at)};
    drop(r.grad, p.dropout, p.rows, row, octet);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
        r.normal[e] = c.normal(r.normal[e], e);
        r.grad[e] *= gelu_slope(fmaf(r.normal[e], c.gamma[e], c.beta[e]));
    }
    return r;
}

template <class T>
__global__ void __launch_bounds__(StatisticsWalk::kThreads)
    backward_sums(const __grid_constant__ BatchNormGeluBackwardParams p, const __grid_constant__ StatisticsWalk walk) {
    const int64_t count = p.rows.count[0];
    const int octet = walk.octet(0);
    const Columns c = columns_of(p, walk, octet);
    Octet sums[2][1] = {};
#pragma unroll 2
    for (int r = 0; r < walk.kRows; ++r) {
        const int64_t row = walk.row(r);
        if (row >= count || !walk.has(octet)) continue;
        const RowGradient g = row_gradient<T>(p, c, row, octet, walk.element(p.rows, row, octet));
#pragma unroll
        for (int e = 0; e < kOctet; ++e) {
            sums[0][0][e] = fmaf(g.grad[e], g.normal[e], sums[0][0][e]);
            sums[1][0][e] += g.grad[e];
        }
    }
    sum_columns<2>(sums, walk, p.rows, p.workspace);
}

template <class T>
__global__ void __launch_bounds__(RowsWalk::kThreads)
    backward_rows(const __grid_constant__ BatchNormGeluBackwardParams p, const __grid_constant__ RowsWalk walk) {
    const int64_t count = p.rows.count[0];
    const int octet = walk.octet(0);
    if (!walk.has(octet)) return;
    const Columns c = columns_of(p, walk, octet);
    Octet mean_product{}, mean_grad{};  // dγ / n, dβ / n
    if (p.training && count > 1) {
        mean_product = load_vector({p.grad_gamma.values, p.grad_gamma.stride}, walk.member(), octet, true);
        mean_grad = load_vector({p.grad_beta.values, p.grad_beta.stride}, walk.member(), octet, true);
#pragma unroll
        for (int e = 0; e < kOctet; ++e) {
            mean_product[e] /= static_cast<float>(count);
            mean_grad[e] /= static_cast<float>(count);
        }
    }
#pragma unroll 1
    for (int r = 0; r < walk.kRows; ++r) {
        const int64_t row = walk.row(r), at = walk.element(p.rows, row, octet);
        if (row >= p.rows.capacity) return;
        Octet dy{};
        if (row < count) {
            const RowGradient g = row_gradient<T>(p, c, row, octet, at);
#pragma unroll
            for (int e = 0; e < kOctet; ++e)
                dy[e] = c.gamma[e] * c.inverse[e] * (g.grad[e] - mean_grad[e] - g.normal[e] * mean_product[e]);
        }
        store_octet(static_cast<T*>(p.grad_y) + at, dy);
    }
}

// f(T{}) for the element type T.
template <class F>
void with_type(DType dtype, F&& f) {
    switch (dtype) {
        case DType::f32:
            return f(float{});
        case DType::bf16:
            return f(bf16{});
        case DType::f16:
            return f(f16{});
    }
}

}  // namespace

int64_t batch_norm_gelu_workspace(int64_t num_members, int64_t capacity, int64_t num_features) {
    return num_members * StatisticsWalk(num_features).chunks(capacity) * 3 *
           num_features;  // Moments of a chunk; backward leaves two sums there
}

void batch_norm_gelu(const BatchNormGeluParams& p, void* stream) {
    const auto s = static_cast<cudaStream_t>(stream);
    const StatisticsWalk blocks(p.rows.num_features);
    const RowsWalk rows(p.rows.num_features);
    const auto groups_of_columns = static_cast<unsigned>((p.rows.num_features + kWarp - 1) / kWarp);
    with_type(p.dtype, [&](auto zero) {
        using T = decltype(zero);
        if (p.training) launch(blocks.grid(p.rows), dim3(blocks.kThreads), 0, s, moments_of_blocks<T>, p, blocks);
        launch(dim3(groups_of_columns, static_cast<unsigned>(p.rows.num_members)), dim3(kSumWarps * kWarp), 0, s,
               statistics, p, blocks.chunks(p.rows.capacity), blocks.rows_of_block());
        launch(rows.grid(p.rows), dim3(rows.kThreads), 0, s, forward<T>, p, rows);
    });
}

void batch_norm_gelu_backward(const BatchNormGeluBackwardParams& p, void* stream) {
    const auto s = static_cast<cudaStream_t>(stream);
    const StatisticsWalk blocks(p.rows.num_features);
    const RowsWalk rows(p.rows.num_features);
    with_type(p.dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(blocks.grid(p.rows), dim3(blocks.kThreads), 0, s, backward_sums<T>, p, blocks);
        launch_add_partial_sums(p.workspace, {p.grad_gamma, p.grad_beta}, p.rows, blocks.chunks(p.rows.capacity), s);
        launch(rows.grid(p.rows), dim3(rows.kThreads), 0, s, backward_rows<T>, p, rows);
    });
}

}  // namespace kdfast::gpu
