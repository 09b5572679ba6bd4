// Kernels that the emulator's own tests run. Each faulty<kBug> is right for kBug = false, and has one bug planted for
// kBug = true; what the emulator should say of it stands in test_emulator.py.
#include "core/gpu.h"

namespace kdfast::gpu {
namespace {

constexpr int kThreads = 128;  // of a block; probes run two blocks, with kDynamic bytes of dynamic shared memory
constexpr size_t kDynamic = 4096;

// out [kThreads] takes what the kernel computed, so that nothing is optimised away; x [1024] is input.
struct Probe {
    const float* x;
    float* out;
    int n;
};

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }

template <bool kBug>
__global__ void missing_barrier(Probe p) {
    KDFAST_SHARED(float, s, kThreads);
    const int t = thread_index();
    s[t] = p.x[t];
    if (!kBug) __syncthreads();
    p.out[t] = s[(t + kWarp) % kThreads];
}

template <bool kBug>
__global__ void missing_warp_barrier(Probe p) {
    KDFAST_SHARED(float, s, kThreads);
    const int t = thread_index();
    for (int i = 0; i < 4; ++i) {
        s[t] = p.x[t + i];
        __syncwarp();
        p.out[t] = s[t ^ 1];
        if (!kBug) __syncwarp();
    }
}

template <bool kBug>
__global__ void shuffle_as_barrier(Probe p) {
    KDFAST_SHARED(float, s, kThreads);
    const int t = thread_index();
    s[t] = p.x[t];
    if (kBug)
        __shfl_xor_sync(kFullMask, t, 1);
    else
        __syncwarp();
    p.out[t] = s[t ^ 1];
}

template <bool kBug>
__global__ void barrier_in_branch(Probe p) {
    if (!kBug || thread_index() < 64) __syncthreads();
    p.out[thread_index()] = 1.0f;
}

template <bool kBug>
__global__ void barrier_after_exit(Probe p) {
    if (kBug && thread_index() >= 96) return;
    __syncthreads();
    p.out[thread_index()] = 1.0f;
}

template <bool kBug>
__global__ void barrier_in_uneven_loop(Probe p) {
    for (int i = 0; i < (kBug && thread_index() < 32 ? 3 : 4); ++i) __syncthreads();
    p.out[thread_index()] = 1.0f;
}

template <bool kBug>
__global__ void two_barriers(Probe p) {
    if (kBug && thread_index() < 64)
        __syncthreads();
    else
        __syncthreads();
    p.out[thread_index()] = 1.0f;
}

template <bool kBug>
__global__ void overwritten_too_early(Probe p) {  // two buffers in turn need one barrier a round, one buffer two
    KDFAST_SHARED(float, s, 2 * kThreads);
    const int t = thread_index();
    for (int i = 0; i < 6; ++i) {
        const int buffer = kBug ? 0 : i % 2 * kThreads;
        s[buffer + t] = p.x[t + i];
        __syncthreads();
        p.out[t] = s[buffer + kThreads - 1 - t];
    }
}

template <bool kBug>
__global__ void two_writers(Probe p) {
    KDFAST_SHARED(float, s, 1);
    const int t = thread_index();
    if (kBug || t == 0) s[0] = p.x[t];
    __syncthreads();
    p.out[t] = s[0];
}

template <bool kBug>
__global__ void second_sum_reuses_slots(Probe p) {
    KDFAST_SHARED(float, slots, kThreads / kWarp);
    float total = 0.0f;
    for (int i = 0; i < 2; ++i) {
        const float sum = warp_sum(p.x[thread_index() + i]);
        if (lane_index() == 0) slots[warp_index()] = sum;
        __syncthreads();
        for (int w = 0; w < kThreads / kWarp; ++w) total += slots[w];
        if (!kBug) __syncthreads();
    }
    p.out[thread_index()] = total;
}

template <bool kBug>
__global__ void second_block_sum_too_early(Probe p) {
    const int t = thread_index();
    KDFAST_SHARED(float, s, kThreads);
    s[t] = p.x[t];
    double sum = block_sum<kThreads>(s[t]);
    if (!kBug) __syncthreads();
    sum += block_sum<kThreads>(s[t]);
    p.out[t] = t == 0 ? static_cast<float>(sum) : 0.0f;
}

template <bool kBug>
__global__ void read_beyond_atomics(Probe p) {
    KDFAST_SHARED(int, count, 1);
    if (thread_index() == 0) count[0] = 0;
    __syncthreads();
    atomicAdd(count, 1);
    if (!kBug) __syncthreads();
    p.out[thread_index()] = static_cast<float>(count[0]);
}

template <bool kBug>
__global__ void written_among_atomics(Probe p) {
    KDFAST_SHARED(int, count, 1);
    if (thread_index() == 0) count[0] = 0;
    __syncthreads();
    atomicAdd(count, 1);
    if (!kBug) __syncthreads();
    if (thread_index() == 77) count[0] = 0;
    p.out[thread_index()] = 1.0f;
}

template <bool kBug>
__global__ void out_of_bounds(Probe p) {
    KDFAST_SHARED(float, s, kThreads + !kBug);
    const int t = thread_index();
    s[t + 1] = p.x[t];
    p.out[t] = s[t + 1];
}

template <bool kBug>
__global__ void below_bounds(Probe p) {
    KDFAST_SHARED(float, before, kThreads);
    KDFAST_SHARED(float, s, kThreads);
    const int t = thread_index();
    before[t] = p.x[t];
    s[t] = p.x[t];
    __syncthreads();
    p.out[t] = s[kBug ? t - 1 : t];
}

template <bool kBug>
__global__ void dynamic_memory_too_small(Probe p) {
    const Shared<float> s = dynamic_shared<float>(0, kDynamic / sizeof(float) + kBug);
    s[thread_index()] = p.x[thread_index()];
    p.out[thread_index()] = s[thread_index()];
}

template <bool kBug>
__global__ void too_many_static_arrays(Probe p) {  // 45,056 bytes, with kDynamic just the 48 KiB of any launch
    KDFAST_SHARED(float, s, 44 * 256 - kThreads);
    KDFAST_SHARED(float, more, kThreads + kBug);
    const int t = thread_index();
    s[t] = p.x[t];
    more[t] = p.x[t];
    p.out[t] = s[t] + more[t];
}

template <bool kBug>
__global__ void uninitialised(Probe p) {
    KDFAST_SHARED(float, s, kThreads);
    const int t = thread_index();
    if (!kBug || t != 100) s[t] = p.x[t];
    __syncthreads();
    p.out[t] = s[kThreads - 1 - t];
}

template <bool kBug>
__global__ void misaligned(Probe p) {
    KDFAST_SHARED(float, s, kThreads + 4);
    const int t = thread_index();
    s[t] = p.x[t];
    if (t < 4) s[kThreads + t] = 0.0f;
    __syncthreads();
    p.out[t] = load<float4>(s + t / 4 * 4 + kBug).x;
}

template <bool kBug>
__global__ void copy_not_waited_for(Probe p) {
    const Shared<float> first = dynamic_shared<float>(0, 4 * kThreads), second = dynamic_shared<float>(2048, 512);
    const int t = 4 * thread_index();
    cp_async<16>(first + t, p.x + t);
    cp_async_commit();
    cp_async<16>(second + t, p.x + t);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    float sum = first[4 * kThreads - 1 - t];
    if (!kBug) {
        cp_async_wait<0>();
        __syncthreads();
    }
    sum += second[4 * kThreads - 1 - t];
    cp_async_wait<0>();
    p.out[t / 4] = sum;
}

template <bool kBug>
__global__ void copy_without_barrier(Probe p) {
    const Shared<float> s = dynamic_shared<float>(0, 4 * kThreads);
    const int t = 4 * thread_index();
    cp_async<16>(s + t, p.x + t);
    cp_async_commit();
    cp_async_wait<0>();
    if (!kBug) __syncthreads();
    p.out[t / 4] = s[4 * kThreads - 1 - t];
}

template <bool kBug>
__global__ void exit_during_copy(Probe p) {
    const Shared<float> s = dynamic_shared<float>(0, 4 * kThreads);
    cp_async<16>(s + 4 * thread_index(), p.x + 4 * thread_index());
    if (!kBug) {
        cp_async_commit();
        cp_async_wait<0>();
    }
    p.out[thread_index()] = 1.0f;
}

template <bool kBug>
__global__ void mixed_collectives(Probe p) {
    float x = 0.0f;
    if (kBug && thread_index() % 2)
        x = static_cast<float>(__ballot_sync(kFullMask, 1));
    else
        x = __shfl_sync(kFullMask, p.x[thread_index()], 0);
    p.out[thread_index()] = x;
}

template <bool kBug>
__global__ void different_masks(Probe p) {
    const unsigned half = lane_index() < 16 ? 0x0000ffffu : 0xffff0000u;
    p.out[thread_index()] = __shfl_xor_sync(kBug && lane_index() < 4 ? kFullMask : half, p.x[thread_index()], 1);
}

template <bool kBug>
__global__ void lane_outside_its_mask(Probe p) {
    p.out[thread_index()] = __shfl_sync(kBug ? 0x0000ffffu : kFullMask, p.x[thread_index()], 0);
}

template <bool kBug>
__global__ void shuffle_from_outside(Probe p) {
    if (lane_index() < 16) p.out[thread_index()] = __shfl_sync(0x0000ffffu, p.x[thread_index()], kBug ? 20 : 3);
}

template <bool kBug>
__global__ void shuffle_after_exit(Probe p) {
    if (kBug && thread_index() >= 100) return;
    p.out[thread_index()] = warp_sum(p.x[thread_index()]);
}

template <bool kBug>
__global__ void sum_in_branch(Probe p) {  // the same line of a helper, called from two of the kernel's
    const float x = p.x[thread_index()];
    if (kBug && lane_index() < 16)
        p.out[thread_index()] = warp_sum(x);
    else
        p.out[thread_index()] = warp_sum(x);
}

template <bool kBug>
__global__ void half_a_warp_multiplies(Probe p) {
    float d[4] = {};
    const uint32_t a[4] = {};
    if (!kBug || lane_index() < 16) mma_16x8x16<bf16>(d, a, 0u, 0u);
    p.out[thread_index()] = d[0];
}

template <bool kBug>
__global__ void beyond_a_tensor(Probe p) {
    p.out[thread_index()] = p.x[1024 - kThreads + thread_index() + kBug];
}

template <bool kBug>
__global__ void before_a_tensor(Probe p) {
    p.out[thread_index() - kBug] = p.x[thread_index()];
}

template <bool kBug>
__global__ void writes_its_input(Probe p) {
    p.out[thread_index()] = p.x[0];
    if (kBug) const_cast<float*>(p.x)[0] = 1.0f;
}

__device__ __noinline__ int deep(int n) {
    volatile int frame[1024];
    frame[n] = n;
    return n == 0 ? 0 : deep(n - 1) + frame[n];
}
template <bool kBug>
__global__ void stack_overflow(Probe p) {
    p.out[thread_index()] = static_cast<float>(deep(kBug ? 1000 : 1));
}

// Right ways that are easily taken for wrong ones.

template <bool>
__global__ void halves_of_a_warp(Probe p) {  // each half has its own barrier, then both a common one
    KDFAST_SHARED(float, s, kThreads);
    const int t = thread_index();
    const unsigned half = lane_index() < 16 ? 0x0000ffffu : 0xffff0000u;
    s[t] = p.x[t];
    __syncwarp(half);
    const float own = s[t ^ 1];
    __syncwarp();
    s[t ^ 16] = own;
    __syncwarp();
    p.out[t] = s[t] + s[t ^ 16];
}

template <bool>
__global__ void order_by_way_of_a_third(Probe p) {  // 0 → 1 → 2 in pairs: what 0 wrote, 2 may read
    KDFAST_SHARED(float, s, 2 * kThreads / kWarp);
    if (lane_index() == 0) s[warp_index()] = p.x[0];
    if (lane_index() < 2) __syncwarp(0b011);
    if (lane_index() == 1 || lane_index() == 2) __syncwarp(0b110);
    if (lane_index() == 2) p.out[warp_index()] = s[warp_index()];
    if (lane_index() == 2) s[warp_index()] = 0.0f;
}

template <bool>
__global__ void atomics_within_a_warp(Probe p) {
    KDFAST_SHARED(int, count, kThreads / kWarp);
    if (lane_index() == 0) count[warp_index()] = 0;
    __syncwarp();
    atomicAdd(count + warp_index(), 1);
    __syncwarp();
    p.out[thread_index()] = static_cast<float>(count[warp_index()]);
    __syncwarp();
    if (lane_index() == 31) count[warp_index()] = 0;
}

// The sum of the first n elements of x in tiles of 16, whose tail is clamped to the last element and masked.
template <bool kBug>
__global__ void masked_tail(Probe p) {
    float sum = 0.0f;
    for (int tile = 0; tile < p.n; tile += 16) {
        const int i = tile + lane_index() % 16;
        const float x = p.x[i < p.n ? i : p.n - 1];
        sum += i < p.n + kBug ? x : 0.0f;
    }
    p.out[thread_index()] = warp_sum<16>(sum);
}

// Bank conflicts: where kBug, as many as the name says, else none.

template <bool kBug>
__global__ void tile_without_padding(Probe p) {  // a store by rows, a load by columns of 32 × 32
    constexpr int kPitch = kBug ? kWarp : kWarp + 1;
    KDFAST_SHARED(float, tile, kWarp* kPitch);
    if (warp_index() > 0) return;
    for (int row = 0; row < kWarp; ++row) tile[row * kPitch + lane_index()] = p.x[row * kWarp + lane_index()];
    __syncwarp();
    float sum = 0.0f;
    for (int column = 0; column < kWarp; ++column) sum += tile[lane_index() * kPitch + column];
    p.out[thread_index()] = sum;
}

template <bool kBug>
__global__ void vectors_apart(Probe p) {  // of 16 bytes: a quarter of a warp at a time
    constexpr int kStride = kBug ? 8 : 4;
    KDFAST_SHARED(float, s, kThreads* kStride);
    const int at = thread_index() * kStride;
    store(s + at, load<float4>(p.x + 4 * thread_index()));
    p.out[thread_index()] = load<float4>(s + at).w;
}

template <bool kBug>
__global__ void doubles_apart(Probe p) {  // of 8 bytes: half a warp at a time
    constexpr int kStride = kBug ? 4 : 1;
    KDFAST_SHARED(double, s, kThreads* kStride);
    s[thread_index() * kStride] = p.x[thread_index()];
    p.out[thread_index()] = static_cast<float>(s[thread_index() * kStride]);
}

struct Triple {
    float a, b, c;
};
template <bool kBug>
__global__ void structs_apart(Probe p) {  // no access of 12 bytes: three of 4
    constexpr int kStride = kBug ? 8 : 1;
    KDFAST_SHARED(Triple, s, kThreads * kStride);
    s[thread_index() * kStride] = Triple{p.x[thread_index()], 1.0f, 2.0f};
    const Triple triple = s[thread_index() * kStride];
    p.out[thread_index()] = triple.a + triple.c;
}

template <bool kBug>
__global__ void loops_of_unequal_length(Probe p) {  // lane l goes round l + 1 times, each time with those still there
    constexpr int kPitch = kBug ? kWarp : 1;
    KDFAST_SHARED(float, s, 2 * kWarp * kPitch);
    const int lane = lane_index();
    for (int i = thread_index(); i < 2 * kWarp * kPitch; i += kThreads) s[i] = p.x[i % kThreads];
    __syncthreads();
    float sum = 0.0f;
    if (warp_index() == 0)
        for (int i = 0; i <= lane; ++i) sum += s[(i + lane) * kPitch];
    p.out[thread_index()] = sum;
}

template <bool kBug>
__global__ void one_word_for_all(Probe p) {  // is no conflict, nor are the halves of a word
    KDFAST_SHARED(float, s, kWarp + 1);
    KDFAST_SHARED(uint16_t, halves, kThreads);
    if (warp_index() > 0) return;
    s[lane_index()] = p.x[lane_index()];
    halves[lane_index()] = 1;
    __syncwarp();
    p.out[lane_index()] = s[kBug && lane_index() < 16 ? 0 : 1] + static_cast<float>(halves[lane_index() ^ 1]);
}

template <bool kBug>
__global__ void rows_of_matrices(Probe p) {  // ldmatrix: 8 rows of 16 bytes at a time
    constexpr int kPitch = kBug ? 64 : 72;   // 16-bit elements
    KDFAST_SHARED(uint16_t, s, kWarp* kPitch);
    if (warp_index() > 0) return;
    for (int i = lane_index(); i < kWarp * kPitch; i += kWarp) s[i] = static_cast<uint16_t>(i);
    __syncwarp();
    uint32_t registers[4];
    ldmatrix<4>(registers, s + lane_index() * kPitch);
    p.out[lane_index()] = static_cast<float>(registers[0]);
}

__global__ void nothing(float*) {}

// One warp: the products and moves of fragments as they are. in: 32 lanes' registers a [4], b [2], c [4]; out [4].
struct Fragments {
    const uint32_t *a, *b;
    const float* c;
    float* d;
};
template <class T>
__global__ void multiply(Fragments f) {
    const int lane = lane_index();
    uint32_t a[4];
    float d[4];
    for (int i = 0; i < 4; ++i) {
        a[i] = f.a[4 * lane + i];
        d[i] = f.c[4 * lane + i];
    }
    if constexpr (sizeof(T) == 2)
        mma_16x8x16<T>(d, a, f.b[2 * lane], f.b[2 * lane + 1]);
    else
        mma_16x8x8_tf32(d, a, f.b[2 * lane], f.b[2 * lane + 1]);
    for (int i = 0; i < 4; ++i) f.d[4 * lane + i] = d[i];
}

// source: kMatrices 8 × 8 matrices of 16-bit elements; out [32, kMatrices] registers.
struct Matrices {
    const uint16_t* source;
    uint32_t* out;
};
template <int kMatrices, bool kTranspose>
__global__ void load_matrices(Matrices m) {
    constexpr int kPitch = 24;  // elements from row to row: anything that keeps rows on 16 bytes
    KDFAST_SHARED(uint16_t, s, 32 * kPitch);
    const int lane = lane_index();
    for (int i = lane; i < 64 * kMatrices; i += kWarp) s[i / 8 * kPitch + i % 8] = m.source[i];
    __syncwarp();
    uint32_t registers[kMatrices];
    ldmatrix<kMatrices, kTranspose>(registers, s + lane * kPitch);
    for (int i = 0; i < kMatrices; ++i) m.out[lane * kMatrices + i] = registers[i];
}
__global__ void transpose_matrix(Matrices m) {
    KDFAST_SHARED(uint16_t, s, 64);
    for (int i = lane_index(); i < 64; i += kWarp) s[i] = m.source[i];
    __syncwarp();
    uint32_t registers[1];
    ldmatrix<1>(registers, s + lane_index() % 8 * 8);
    m.out[lane_index()] = movmatrix_transpose(registers[0]);
}

// x [n] → out: what the fast instructions and the conversions give.
__global__ void approximate(const float* x, float* exp2, float* log2, float* reciprocal, uint32_t* tf32, int n) {
    for (int i = lane_index(); i < n; i += kWarp) {
        exp2[i] = exp2_approx(x[i]);
        log2[i] = log2_approx(x[i]);
        reciprocal[i] = reciprocal_approx(x[i]);
        tf32[i] = to_tf32(x[i]);
    }
}

}  // namespace
}  // namespace kdfast::gpu

#if !defined(__CUDACC__)
#include <pybind11/pybind11.h>

#include <map>
#include <string>
#include <utility>

void bind_probe(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace kdfast::gpu;
    using Kernel = void (*)(Probe);
    auto probe = m.def_submodule("probe", "Kernels for the emulator's own tests (tests/emulator/probe.cu).");
    static const std::map<std::string, std::pair<Kernel, Kernel>> kernels = {
#define KDFAST_PROBE(name)                 \
    {                                      \
        #name, { name<false>, name<true> } \
    }
        KDFAST_PROBE(missing_barrier),
        KDFAST_PROBE(missing_warp_barrier),
        KDFAST_PROBE(shuffle_as_barrier),
        KDFAST_PROBE(barrier_in_branch),
        KDFAST_PROBE(barrier_after_exit),
        KDFAST_PROBE(barrier_in_uneven_loop),
        KDFAST_PROBE(two_barriers),
        KDFAST_PROBE(overwritten_too_early),
        KDFAST_PROBE(two_writers),
        KDFAST_PROBE(second_sum_reuses_slots),
        KDFAST_PROBE(second_block_sum_too_early),
        KDFAST_PROBE(read_beyond_atomics),
        KDFAST_PROBE(written_among_atomics),
        KDFAST_PROBE(out_of_bounds),
        KDFAST_PROBE(below_bounds),
        KDFAST_PROBE(dynamic_memory_too_small),
        KDFAST_PROBE(too_many_static_arrays),
        KDFAST_PROBE(uninitialised),
        KDFAST_PROBE(misaligned),
        KDFAST_PROBE(copy_not_waited_for),
        KDFAST_PROBE(copy_without_barrier),
        KDFAST_PROBE(exit_during_copy),
        KDFAST_PROBE(mixed_collectives),
        KDFAST_PROBE(different_masks),
        KDFAST_PROBE(lane_outside_its_mask),
        KDFAST_PROBE(shuffle_from_outside),
        KDFAST_PROBE(shuffle_after_exit),
        KDFAST_PROBE(sum_in_branch),
        KDFAST_PROBE(half_a_warp_multiplies),
        KDFAST_PROBE(beyond_a_tensor),
        KDFAST_PROBE(before_a_tensor),
        KDFAST_PROBE(writes_its_input),
        KDFAST_PROBE(stack_overflow),
        KDFAST_PROBE(halves_of_a_warp),
        KDFAST_PROBE(order_by_way_of_a_third),
        KDFAST_PROBE(atomics_within_a_warp),
        KDFAST_PROBE(masked_tail),
        KDFAST_PROBE(tile_without_padding),
        KDFAST_PROBE(vectors_apart),
        KDFAST_PROBE(doubles_apart),
        KDFAST_PROBE(structs_apart),
        KDFAST_PROBE(loops_of_unequal_length),
        KDFAST_PROBE(one_word_for_all),
        KDFAST_PROBE(rows_of_matrices),
#undef KDFAST_PROBE
    };
    py::list names;
    for (const auto& [name, _] : kernels) names.append(name);
    probe.attr("kernels") = names;
    probe.def("run", [](const std::string& name, bool bug, uintptr_t x, uintptr_t out, int n) {
        const auto& [right, wrong] = kernels.at(name);
        launch(dim3(2), dim3(kThreads), kDynamic, nullptr, bug ? wrong : right,
               Probe{reinterpret_cast<const float*>(x), reinterpret_cast<float*>(out), n});
    });
    probe.def("launch", [](unsigned blocks, unsigned threads, size_t dynamic_shared_bytes, uintptr_t out) {
        launch(dim3(blocks), dim3(threads), dynamic_shared_bytes, nullptr, nothing, reinterpret_cast<float*>(out));
    });
    probe.def("multiply", [](const std::string& dtype, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d) {
        const auto kernel = dtype == "bf16" ? multiply<bf16> : dtype == "f16" ? multiply<f16> : multiply<float>;
        launch(dim3(1), dim3(kWarp), 0, nullptr, kernel,
               Fragments{reinterpret_cast<const uint32_t*>(a), reinterpret_cast<const uint32_t*>(b),
                         reinterpret_cast<const float*>(c), reinterpret_cast<float*>(d)});
    });
    probe.def("load_matrices", [](int matrices, bool transpose, uintptr_t source, uintptr_t out) {
        const auto kernel = matrices == 1   ? (transpose ? load_matrices<1, true> : load_matrices<1, false>)
                            : matrices == 2 ? (transpose ? load_matrices<2, true> : load_matrices<2, false>)
                                            : (transpose ? load_matrices<4, true> : load_matrices<4, false>);
        launch(dim3(1), dim3(kWarp), 0, nullptr, kernel,
               Matrices{reinterpret_cast<const uint16_t*>(source), reinterpret_cast<uint32_t*>(out)});
    });
    probe.def("transpose_matrix", [](uintptr_t source, uintptr_t out) {
        launch(dim3(1), dim3(kWarp), 0, nullptr, transpose_matrix,
               Matrices{reinterpret_cast<const uint16_t*>(source), reinterpret_cast<uint32_t*>(out)});
    });
    probe.def("approximate",
              [](uintptr_t x, uintptr_t exp2, uintptr_t log2, uintptr_t reciprocal, uintptr_t tf32, int n) {
                  launch(dim3(1), dim3(kWarp), 0, nullptr, approximate, reinterpret_cast<const float*>(x),
                         reinterpret_cast<float*>(exp2), reinterpret_cast<float*>(log2),
                         reinterpret_cast<float*>(reciprocal), reinterpret_cast<uint32_t*>(tf32), n);
              });
}
#endif
