// A warp takes a jet of a member, in tiles of four or eight constituents; a lane holds one to eight values of each
// constituent, so that a row is one access of 128 to 512 bytes.
//
// A tile's products with all heads' vectors are 16 or 32 sums over the lanes, of which at most 31 shuffles leave each
// lane one: the pair (row of the tile, head) of that lane, which then does its exponential, its dropout and its place
// of [K, M, H] alone. What all lanes need of all pairs goes through shared memory.
//
//   pool            x is read once: softmax with a running maximum; the scores wait in `weights`, in the place of the
//                   weights, until the jet's sum is known
//   pool_backward   x is read twice (again from the caches, mostly): the weights' gradients; then the scores', with
//                   those of x and the block's share of the direction's, which add_partial_sums adds up
#include <stdexcept>

#include "attention_pooling/attention_pooling_gpu.h"
#include "core/octets.h"

namespace kdfast::gpu {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kJetsPerWarp = 4;                       // of pool_backward
constexpr int kJetsBackward = kWarps * kJetsPerWarp;  // of a block

// kHeads: 4 or 8, those beyond H with direction 0. kValues: of a row that a lane holds. kRows: of a tile.
template <int kHeads, int kValues, int kRows_>
struct Tile {
    static constexpr int kRows = kRows_, kPairs = kRows * kHeads, kVector = kValues < 4 ? kValues : 4;
    using Vector = Vec<float, kVector>;
    // The lane's pair; lanes from kPairs on repeat those before.
    static __device__ __forceinline__ int row() { return lane_index() % kPairs / kHeads; }
    static __device__ __forceinline__ int head() { return lane_index() % kHeads; }

    // The lane's values of a vector of D.
    static __device__ __forceinline__ void load_vector(const float* p, int width, float (&x)[kValues]) {
#pragma unroll
        for (int v = 0; v < kValues; v += kVector) {
            const int column = v * kWarp + lane_index() * kVector;
            Vector piece = {};
            if (column < width) piece = load<Vector>(p + column);
#pragma unroll
            for (int i = 0; i < kVector; ++i) x[v + i] = piece[i];
        }
    }
    static __device__ __forceinline__ void store_vector(float* p, int width, const float (&x)[kValues]) {
#pragma unroll
        for (int v = 0; v < kValues; v += kVector) {
            const int column = v * kWarp + lane_index() * kVector;
            Vector piece;
#pragma unroll
            for (int i = 0; i < kVector; ++i) piece[i] = x[v + i];
            if (column < width) store_streaming(p + column, piece);
        }
    }
    static __device__ __forceinline__ void load_heads(const float* p, const PoolingRows& rows,
                                                      float (&x)[kHeads][kValues]) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) load_vector(p + h * rows.width, h < rows.num_heads ? rows.width : 0, x[h]);
    }
    // The first `count` rows from p on; zeros behind them.
    static __device__ __forceinline__ void load_rows(const float* p, int count, int width, float (&x)[kRows][kValues]) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) load_vector(p + r * width, r < count ? width : 0, x[r]);
    }

    // x · u of the lane's pair. Of the pairs kFirst, kFirst + kStride … each lane gets the sum of one: those of two
    // halves of them are made, of which it keeps one, and gives the other to the lane that keeps that.
    template <int kStride = 1, int kFirst = 0>
    static __device__ __forceinline__ float product(const float (&x)[kRows][kValues],
                                                    const float (&u)[kHeads][kValues]) {
        if constexpr (kStride < kPairs) {
            const float low = product<2 * kStride, kFirst>(x, u), high = product<2 * kStride, kFirst + kStride>(x, u);
            const bool upper = lane_index() & kStride;
            return (upper ? high : low) + __shfl_xor_sync(kFullMask, upper ? low : high, kStride);
        } else {
            float sum = 0.0f;
#pragma unroll
            for (int v = 0; v < kValues; ++v) sum = fmaf(x[kFirst / kHeads][v], u[kFirst % kHeads][v], sum);
#pragma unroll
            for (int lanes = kPairs; lanes < kWarp; lanes *= 2) sum += __shfl_xor_sync(kFullMask, sum, lanes);
            return sum;
        }
    }

    // Over a tile's rows, for each lane's head.
    static __device__ __forceinline__ float sum_of_rows(float x) {
#pragma unroll
        for (int lanes = kHeads; lanes < kPairs; lanes *= 2) x += __shfl_xor_sync(kFullMask, x, lanes);
        return x;
    }
    static __device__ __forceinline__ float max_of_rows(float x) {
#pragma unroll
        for (int lanes = kHeads; lanes < kPairs; lanes *= 2) x = fmaxf(x, __shfl_xor_sync(kFullMask, x, lanes));
        return x;
    }

    // kHeads neighbours of shared memory.
    static __device__ __forceinline__ void read_heads(Shared<float> p, float (&x)[kHeads]) {
#pragma unroll
        for (int h = 0; h < kHeads; h += 4) {
            const float4 piece = load<float4>(p + h);
            x[h] = piece.x;
            x[h + 1] = piece.y;
            x[h + 2] = piece.z;
            x[h + 3] = piece.w;
        }
    }
};

// A jet's rows.
struct Jet {
    int begin, end;
};
__device__ __forceinline__ Jet jet_of(const PoolingRows& rows, int64_t jet) {
    return {static_cast<int>(rows.offsets[jet]), static_cast<int>(rows.offsets[jet + 1])};
}

// x as dropout leaves it, of a jet's row t and a head.
__device__ __forceinline__ float drop(const PoolingRows& rows, int64_t number, const Jet& jet, int t, int head,
                                      float x) {
    const Dropout& dropout = rows.dropout;
    if (dropout.seed == nullptr) return x;
    bool keep;
    if (dropout.mask != nullptr) {
        keep = load_readonly<uint8_t>(dropout.mask + t) >> head & 1;
    } else {
        const Philox4 bits = philox4x32(static_cast<uint64_t>(dropout.seed[0]), static_cast<uint32_t>(number), 0,
                                        static_cast<uint32_t>(t - jet.begin), 0);
        // The word by selection, not by an index: registers have none.
        const uint32_t low = head & 2 ? bits.v[1] : bits.v[0], high = head & 2 ? bits.v[3] : bits.v[2];
        const uint32_t word = head & 4 ? high : low, half = head & 1 ? word >> 16 : word & 0xffff;
        keep = half >= dropout.threshold;
    }
    return keep ? x * dropout.scale : 0.0f;
}

// Of pool, that a multiprocessor should hold, which limits registers: as many as go without spills.
template <int kHeads, int kValues>
constexpr int kPoolBlocks = kHeads * kValues <= 8 ? 6
                            : kValues <= 4        ? 4
                                                  : 2;

template <int kHeads, int kValues>
__global__ void __launch_bounds__(kThreads, kPoolBlocks<kHeads, kValues>)
    pool(const __grid_constant__ AttentionPoolingParams p) {
    using T = Tile<kHeads, kValues, kHeads == 4 ? 8 : 4>;
    constexpr int kShared = T::kPairs + kHeads;  // of a warp: the pairs' weights, the heads' factors
    KDFAST_SHARED(float, shared, kWarps* kShared);
    const PoolingRows& rows = p.rows;
    const Shared<float> tile_weights = shared + warp_index() * kShared, factors = tile_weights + T::kPairs;
    const int64_t num_blocks = gridDim.x / rows.num_members;  // of a member
    const int64_t member = blockIdx.x / num_blocks, block = blockIdx.x % num_blocks;
    const int64_t number = block * kWarps + warp_index();
    const int num_heads = rows.num_heads, width = rows.width;
    float* const attention = p.attention + member * rows.capacity;

    for (int64_t t = rows.offsets[rows.num_jets] + block * kThreads + threadIdx.x; t < rows.capacity;
         t += num_blocks * kThreads)
        attention[t] = 0.0f;
    if (number >= rows.num_jets) return;  // the warp as a whole; no barrier of the block follows

    const Jet jet = jet_of(rows, number);
    const float* const x = p.x + member * rows.capacity * width;
    float* const weights = p.weights + member * rows.capacity * num_heads;
    const bool owns = lane_index() < T::kPairs && T::head() < num_heads;
    float direction[kHeads][kValues], pooled[kHeads][kValues] = {};
    T::load_heads(p.direction + member * num_heads * width, rows, direction);

    float top = -INFINITY, total = 0.0f, kept = 0.0f;  // the head's maximum; of the lane's pairs: Σ e, Σ D(e)
    for (int first = jet.begin; first < jet.end; first += T::kRows) {
        const int count = min(jet.end - first, T::kRows);
        float tile[T::kRows][kValues];
        T::load_rows(x + int64_t{first} * width, count, width, tile);
        const float score = T::product(tile, direction);
        const int t = first + T::row();
        const bool exists = T::row() < count;
        if (owns && exists) weights[int64_t{t} * num_heads + T::head()] = score;
        const float new_top = fmaxf(top, T::max_of_rows(exists ? score : -INFINITY));
        const float factor = expf(top - new_top), e = exists ? expf(score - new_top) : 0.0f;
        const float dropped = drop(rows, number, jet, min(t, jet.end - 1), T::head(), e);  // e is 0 beyond
        top = new_top;
        total = fmaf(total, factor, e);
        kept = fmaf(kept, factor, dropped);
        __syncwarp();  // the tile before has been read
        if (lane_index() < T::kPairs) tile_weights[lane_index()] = dropped;
        if (lane_index() < kHeads) factors[lane_index()] = factor;
        __syncwarp();
        float of_heads[kHeads];
        T::read_heads(factors, of_heads);
#pragma unroll
        for (int h = 0; h < kHeads; ++h)
#pragma unroll
            for (int v = 0; v < kValues; ++v) pooled[h][v] *= of_heads[h];
#pragma unroll
        for (int r = 0; r < T::kRows; ++r) {
            T::read_heads(tile_weights + r * kHeads, of_heads);
#pragma unroll
            for (int h = 0; h < kHeads; ++h)
#pragma unroll
                for (int v = 0; v < kValues; ++v) pooled[h][v] = fmaf(of_heads[h], tile[r][v], pooled[h][v]);
        }
    }
    total = T::sum_of_rows(total);
    const float inverse = jet.begin < jet.end ? 1.0f / total : 0.0f;
    kept = T::sum_of_rows(kept) * inverse;

    for (int first = jet.begin; first < jet.end; first += T::kRows) {
        const int t = first + T::row();
        const bool mine = owns && t < jet.end;
        float weight = 0.0f;
        if (mine) {
            float* const place = weights + int64_t{t} * num_heads + T::head();
            *place = weight = expf(*place - top) / total;
        }
        weight = warp_sum<kHeads>(weight);
        if (mine && T::head() == 0) attention[t] = weight / static_cast<float>(num_heads);
    }
    const int64_t at = (member * rows.num_jets + number) * num_heads;
    if (lane_index() < num_heads) p.kept[at + lane_index()] = kept;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        const float of_head = __shfl_sync(kFullMask, inverse, h);
#pragma unroll
        for (int v = 0; v < kValues; ++v) pooled[h][v] *= of_head;
        if (h < num_heads) T::store_vector(p.pooled + (at + h) * width, width, pooled[h]);
    }
}

template <int kHeads, int kValues>
__global__ void __launch_bounds__(kThreads, kHeads* kValues <= 16 ? 4 : 2)
    pool_backward(const __grid_constant__ AttentionPoolingBackwardParams p) {
    using T = Tile<kHeads, kValues, 4>;
    constexpr int kColumns = kHeads * kValues * kWarp;
    KDFAST_SHARED(float, shared, kWarps * 2 * T::kPairs);
    KDFAST_SHARED(float, sums, kWarps* kColumns);
    const PoolingRows& rows = p.rows;
    const Shared<float> tile_weights = shared + warp_index() * 2 * T::kPairs, tile_grads = tile_weights + T::kPairs;
    const int64_t num_blocks = gridDim.x / rows.num_members;
    const int64_t member = blockIdx.x / num_blocks, block = blockIdx.x % num_blocks;
    const int num_heads = rows.num_heads, width = rows.width;
    const float* const x = p.x + member * rows.capacity * width;
    const float* const weights = p.weights + member * rows.capacity * num_heads;
    const float* const grad_attention =
        p.grad_attention == nullptr ? nullptr : p.grad_attention + member * rows.capacity;
    float* const grad_x = p.grad_x + member * rows.capacity * width;
    float* const grad_weights = p.grad_weights + member * rows.capacity * num_heads;

    const int64_t end = rows.capacity * width, stride = num_blocks * kThreads;
    for (int64_t e = rows.offsets[rows.num_jets] * width + block * kThreads + threadIdx.x; e < end; e += stride)
        grad_x[e] = 0.0f;

    const bool owns = lane_index() < T::kPairs && T::head() < num_heads;
    float direction[kHeads][kValues], grad_direction[kHeads][kValues] = {};
    T::load_heads(p.direction + member * num_heads * width, rows, direction);
    for (int i = 0; i < kJetsPerWarp; ++i) {
        const int64_t number = block * kJetsBackward + i * kWarps + warp_index();
        if (number >= rows.num_jets) break;
        const Jet jet = jet_of(rows, number);
        const int64_t at = (member * rows.num_jets + number) * num_heads;
        float grad_pooled[kHeads][kValues], tile[T::kRows][kValues];
        T::load_heads(p.grad_pooled + at * width, rows, grad_pooled);
        const float grad_kept = p.grad_kept != nullptr && owns ? p.grad_kept[at + T::head()] : 0.0f;

        // ∂s_t = w_t (∂w_t − Σ_u w_u ∂w_u), where any number may be taken from all ∂w first: what the sum is but for
        // the attention's part, so that what cancels loses no digits.
        float shift = 0.0f;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
            float pooled[kValues], sum = 0.0f;
            T::load_vector(p.pooled + (at + h) * width, h < num_heads ? width : 0, pooled);
#pragma unroll
            for (int v = 0; v < kValues; ++v) sum = fmaf(pooled[v], grad_pooled[h][v], sum);
            sum = warp_sum(sum);
            if (T::head() == h) shift = sum;
        }
        if (owns) shift = fmaf(p.kept[at + T::head()], grad_kept, shift);

        float inner = 0.0f;  // Σ_t w_t ∂w_t of the head
        int first = jet.begin;
        for (; first < jet.end; first += T::kRows) {
            const int count = min(jet.end - first, T::kRows);
            T::load_rows(x + int64_t{first} * width, count, width, tile);
            const float product = T::product(tile, grad_pooled);
            const int t = first + T::row();
            const int64_t place = int64_t{t} * num_heads + T::head();
            if (owns && T::row() < count) {
                float grad = drop(rows, number, jet, t, T::head(), product + grad_kept) - shift;
                if (grad_attention != nullptr) grad += grad_attention[t] / static_cast<float>(num_heads);
                grad_weights[place] = grad;
                inner = fmaf(weights[place], grad, inner);
            }
        }
        inner = T::sum_of_rows(inner);

        // Backwards, since the last rows are those that the caches have.
        for (first -= T::kRows; first >= jet.begin; first -= T::kRows) {
            const int count = min(jet.end - first, T::kRows);
            T::load_rows(x + int64_t{first} * width, count, width, tile);
            const int t = first + T::row();
            const int64_t place = int64_t{t} * num_heads + T::head();
            float dropped = 0.0f, grad_score = 0.0f;
            if (owns && T::row() < count) {
                const float weight = weights[place];
                dropped = drop(rows, number, jet, t, T::head(), weight);
                grad_score = weight * (grad_weights[place] - inner);
            }
            __syncwarp();  // the tile before has been read
            if (lane_index() < T::kPairs) {
                tile_weights[lane_index()] = dropped;
                tile_grads[lane_index()] = grad_score;
            }
            __syncwarp();
#pragma unroll
            for (int r = 0; r < T::kRows; ++r) {
                float w[kHeads], s[kHeads], grad[kValues] = {};
                T::read_heads(tile_weights + r * kHeads, w);
                T::read_heads(tile_grads + r * kHeads, s);
#pragma unroll
                for (int h = 0; h < kHeads; ++h)
#pragma unroll
                    for (int v = 0; v < kValues; ++v) {
                        grad[v] = fmaf(w[h], grad_pooled[h][v], fmaf(s[h], direction[h][v], grad[v]));
                        grad_direction[h][v] = fmaf(s[h], tile[r][v], grad_direction[h][v]);
                    }
                if (r < count) T::store_vector(grad_x + int64_t{first + r} * width, width, grad);
            }
        }
    }

#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int v = 0; v < kValues; ++v)
            sums[warp_index() * kColumns + (h * kValues + v) * kWarp + lane_index()] = grad_direction[h][v];
    __syncthreads();
    float* const partial = p.partial + (member * num_blocks + block) * num_heads * width;
    for (int e = static_cast<int>(threadIdx.x); e < num_heads * width; e += kThreads) {
        const int head = e / width, column = e % width;
        constexpr int kPiece = T::kVector * kWarp;  // columns of one access of a warp
        const int value = column / kPiece * T::kVector + column % T::kVector, lane = column % kPiece / T::kVector;
        float sum = 0.0f;
        for (int w = 0; w < kWarps; ++w) sum += sums[w * kColumns + (head * kValues + value) * kWarp + lane];
        partial[e] = sum;
    }
}

// ---- the choice -----------------------------------------------------------------------------------------------------

struct Choice {
    void (*pool)(AttentionPoolingParams);
    void (*backward)(AttentionPoolingBackwardParams);
};

template <int kHeads, int kValues>
Choice choice() {
    return {pool<kHeads, kValues>, pool_backward<kHeads, kValues>};
}
template <int kHeads>
Choice choose(int width) {
    if (width <= 32) return choice<kHeads, 1>();
    if (width <= 64 && width % 2 == 0) return choice<kHeads, 2>();
    if (width <= 128 && width % 4 == 0) return choice<kHeads, 4>();
    if constexpr (kHeads == 4)
        if (width <= 256 && width % 4 == 0) return choice<kHeads, 8>();
    return {};
}
Choice choose(int num_heads, int width) {
    if (num_heads <= 4) return choose<4>(width);
    if (num_heads <= 8) return choose<8>(width);
    return {};
}

unsigned checked_blocks(const PoolingRows& rows, int64_t jets_of_block) {
    const int64_t blocks = rows.num_members * ((rows.num_jets + jets_of_block - 1) / jets_of_block);
    if (blocks > 0x7fffffff || rows.capacity > 0x7fffffff)
        throw std::invalid_argument("more rows, jets or members than a launch takes");
    return static_cast<unsigned>(blocks);
}

}  // namespace

bool attention_pooling_takes(int num_heads, int width) { return choose(num_heads, width).pool != nullptr; }

void attention_pooling(const AttentionPoolingParams& p, void* stream) {
    const Choice kernels = choose(p.rows.num_heads, p.rows.width);
    launch(dim3(checked_blocks(p.rows, kWarps)), dim3(kThreads), 0, static_cast<cudaStream_t>(stream), kernels.pool, p);
}

int64_t attention_pooling_partials(int64_t num_jets) { return (num_jets + kJetsBackward - 1) / kJetsBackward; }

void attention_pooling_backward(const AttentionPoolingBackwardParams& p, void* stream) {
    const Choice kernels = choose(p.rows.num_heads, p.rows.width);
    const auto s = static_cast<cudaStream_t>(stream);
    launch(dim3(checked_blocks(p.rows, kJetsBackward)), dim3(kThreads), 0, s, kernels.backward, p);
    PackedRows directions{};  // one of [K, H · D] for each block
    directions.num_members = p.rows.num_members;
    directions.num_features = p.rows.num_heads * p.rows.width;
    const MemberGradients total{p.grad_direction, directions.num_features};
    launch_add_partial_sums(p.partial, {total}, directions, attention_pooling_partials(p.rows.num_jets), s);
}

}  // namespace kdfast::gpu
