// The emulator's side of core/gpu.h: CUDA's names as kernels use them, in C++20.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/types.h"
#include "emulator/machine.h"
#include "emulator/shared_memory.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define KDFAST_AT(site) , site

#define threadIdx (::kdfast::emulator::thread->index)
#define blockIdx (::kdfast::emulator::block.index)
#define blockDim (::kdfast::emulator::block.size)
#define gridDim (::kdfast::emulator::block.grid)

#define KDFAST_SHARED(T, name, count) \
    const ::kdfast::gpu::Shared<T> name = ::kdfast::emulator::static_array<T>([] {}, count)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

using cudaStream_t = void*;

// Mathematics that C++ lacks, and bits.
template <class T, class U>
inline std::common_type_t<T, U> min(T a, U b) {
    return b < a ? b : a;
}
template <class T, class U>
inline std::common_type_t<T, U> max(T a, U b) {
    return a < b ? b : a;
}
inline float __fmul_rn(float a, float b) {  // never one rounding with an addition
    volatile float product = a * b;
    return product;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> 4 * i & 0xf, byte = bytes >> 8 * (nibble & 7) & 0xff;
        result |= (nibble & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;  // bit 3: the byte's sign in all its bits
    }
    return result;
}

// Barriers, shuffles, votes.
inline void __syncthreads(kdfast::emulator::Site site = kdfast::emulator::Site::current()) {
    kdfast::emulator::block_barrier(site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, kdfast::emulator::Site site = kdfast::emulator::Site::current()) {
    using namespace kdfast::emulator;
    char nothing = 0;
    Warp& warp = block.warps[static_cast<size_t>(thread->warp)];
    collective(Wait::warp_barrier, mask, nothing, [&](char**) { note_warp_barrier(warp, mask); }, site);
}

namespace kdfast::emulator {

// source(lane within its group of `width`, what the lane brings): the lane that is read, its own if outside the group.
template <class T, class Source>
inline T shuffle(unsigned mask, T value, int argument, int width, const Site& site, Source source) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail("shuffle: the width is no power of 2", site);
    struct Operand {
        T in, out;
        int argument, width;
    } operand{value, value, argument, width};
    collective(
        Wait::shuffle, mask, operand,
        [&](Operand** lanes) {
            for (int i = 0; i < 32; ++i) {
                if (lanes[i] == nullptr) continue;
                const int w = lanes[i]->width, group = i / w * w, from = source(i - group, lanes[i]->argument, w);
                const int lane = from < 0 || from >= w ? i : group + from;
                if (lanes[lane] == nullptr)
                    fail("shuffle: lane " + std::to_string(i) + " reads lane " + std::to_string(lane) +
                             ", which is not in the mask",
                         site);
                lanes[i]->out = lanes[lane]->in;
            }
        },
        site);
    return operand.out;
}

}  // namespace kdfast::emulator

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                     kdfast::emulator::Site site = kdfast::emulator::Site::current()) {
    return kdfast::emulator::shuffle(mask, value, lane, width, site, [](int, int l, int w) { return l & (w - 1); });
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                         kdfast::emulator::Site site = kdfast::emulator::Site::current()) {
    return kdfast::emulator::shuffle(mask, value, lanes, width, site, [](int i, int x, int) { return i ^ x; });
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                          kdfast::emulator::Site site = kdfast::emulator::Site::current()) {
    return kdfast::emulator::shuffle(mask, value, static_cast<int>(lanes), width, site,
                                     [](int i, int x, int) { return i + x; });
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32,
                        kdfast::emulator::Site site = kdfast::emulator::Site::current()) {
    return kdfast::emulator::shuffle(mask, value, static_cast<int>(lanes), width, site,
                                     [](int i, int x, int) { return i - x; });
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              kdfast::emulator::Site site = kdfast::emulator::Site::current()) {
    using namespace kdfast::emulator;
    struct Operand {
        bool in;
        unsigned out;
    } operand{predicate != 0, 0};
    collective(
        Wait::vote, mask, operand,
        [](Operand** lanes) {
            unsigned bits = 0;
            for (int i = 0; i < 32; ++i)
                if (lanes[i] != nullptr && lanes[i]->in) bits |= 1u << i;
            for (int i = 0; i < 32; ++i)
                if (lanes[i] != nullptr) lanes[i]->out = bits;
        },
        site);
    return operand.out;
}

// Atomics. Blocks run one after the other, threads of a block give way only where the emulator lets them: global ones
// are plain operations here. All return what was there before.
inline void __threadfence() {}

namespace kdfast::emulator {

template <class T, class Combine>
inline T atomic(SharedPointer<T> p, const Site& site, Combine combine) {
    T* const address = p.at(0, 1, site);
    note_write(address, sizeof(T), site, Write::atomic);
    const T old = *address;
    *address = combine(old);
    return old;
}
template <class T, class Combine>
inline T atomic(T* p, const Site& site, Combine combine) {
    see(site);
    const T old = *p;
    *p = combine(old);
    return old;
}

}  // namespace kdfast::emulator

#define KDFAST_ATOMIC(name, result)                                                   \
    template <template <class> class P, class T>                                      \
    inline T name(P<T> p, std::type_identity_t<T> value,                              \
                  kdfast::emulator::Site site = kdfast::emulator::Site::current()) {  \
        return kdfast::emulator::atomic(p, site, [=](T old) -> T { return result; }); \
    }                                                                                 \
    template <class T>                                                                \
    inline T name(T* p, std::type_identity_t<T> value,                                \
                  kdfast::emulator::Site site = kdfast::emulator::Site::current()) {  \
        return kdfast::emulator::atomic(p, site, [=](T old) -> T { return result; }); \
    }
KDFAST_ATOMIC(atomicAdd, old + value)
KDFAST_ATOMIC(atomicOr, old | value)
#undef KDFAST_ATOMIC

namespace kdfast::gpu {

using Site = emulator::Site;
template <class T>
using Shared = emulator::SharedPointer<T>;

template <class T>
inline Shared<T> dynamic_shared(size_t byte_offset, size_t count, Site site = Site::current()) {
    return {static_cast<T*>(emulator::dynamic_shared_memory(byte_offset, count * sizeof(T), site)),
            static_cast<int64_t>(count)};
}

// Vector accesses.
template <class V, class T>
inline V load(const T* p, Site site = Site::current()) {
    emulator::see(site);
    emulator::check_aligned(p, sizeof(V), site);
    V value;
    std::memcpy(&value, p, sizeof(V));
    return value;
}
template <class V, class T>
inline V load_readonly(const T* p, Site site = Site::current()) {
    return load<V>(p, site);
}
template <class V, class T>
inline V load_streaming(const T* p, Site site = Site::current()) {
    return load<V>(p, site);
}
template <class V, class T>
inline V load_latest(const T* p, Site site = Site::current()) {
    return load<V>(p, site);
}
template <class V, class T>
inline void store(T* p, const V& value, Site site = Site::current()) {
    emulator::see(site);
    emulator::check_aligned(p, sizeof(V), site);
    std::memcpy(static_cast<void*>(p), &value, sizeof(V));
}
template <class V, class T>
inline void store_streaming(T* p, const V& value, Site site = Site::current()) {
    store(p, value, site);
}
template <class V, class T>
inline V load(Shared<T> p, Site site = Site::current()) {
    T* const address = p.at(0, sizeof(V) / sizeof(T), site);
    emulator::check_aligned(address, sizeof(V), site);
    emulator::note_read(address, sizeof(V), site);
    emulator::count_access(emulator::Access::load, address, sizeof(V), sizeof(V), site);
    V value;
    std::memcpy(&value, address, sizeof(V));
    return value;
}
template <class V, class T>
inline void store(Shared<T> p, const V& value, Site site = Site::current()) {
    T* const address = p.at(0, sizeof(V) / sizeof(T), site);
    emulator::check_aligned(address, sizeof(V), site);
    emulator::note_write(address, sizeof(V), site);
    emulator::count_access(emulator::Access::store, address, sizeof(V), sizeof(V), site);
    std::memcpy(static_cast<void*>(address), &value, sizeof(V));
}

// 16-bit floats: those of core/types.h, stored and converted, never computed with.
using kdfast::bf16;
using kdfast::f16;
using kdfast::from_float;
using kdfast::to_float;

template <class T>
inline uint32_t pack(float low, float high) {
    return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}
template <class T>
inline float2 unpack(uint32_t pair) {
    return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}
template <class T>
inline uint32_t add_pairs(uint32_t a, uint32_t b) {
    const float2 x = unpack<T>(a), y = unpack<T>(b);
    return pack<T>(x.x + y.x, x.y + y.y);
}

// The fast instructions are right to some units in the last place, not to half of one. So are their twins: they miss by
// as much as the PTX manual allows, up or down as the argument's bits have it, so that a result which needs more digits
// than the GPU gives fails here too.
namespace detail {
inline float missed(float exact, float argument, float relative) {
    if (!std::isfinite(exact)) return exact;
    const uint32_t hash = std::bit_cast<uint32_t>(argument) * 2654435761u;
    return exact + exact * relative * (static_cast<float>(hash >> 8) * 0x1p-23f - 1.0f);
}
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
}  // namespace detail

inline float exp2_approx(float x) {
    if (detail::flushed(x) == 0.0f) return 1.0f;  // the manual's table has it exact
    return detail::flushed(detail::missed(std::exp2(detail::flushed(x)), x, 0x1p-22f));
}
inline float log2_approx(float x) {  // the error is relative, but absolute, 2^-22, close to 1
    const float exact = std::log2(detail::flushed(x));
    return std::fabs(exact) < 1.0f ? exact + (detail::missed(1.0f, x, 0x1p-22f) - 1.0f)
                                   : detail::missed(exact, x, 0x1p-22f);
}
inline float reciprocal_approx(float x) {
    return detail::flushed(detail::missed(1.0f / detail::flushed(x), x, 0x1p-23f));
}

inline int code_capability() { return emulator::settings.compute_capability; }

// A launch's grid, which knows its line.
struct Grid {
    dim3 size;
    Site site;
    Grid(dim3 d, Site s = Site::current()) : size(d), site(s) {}
};

template <class... Parameters, class... Arguments>
inline void launch(Grid grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t, void (*kernel)(Parameters...),
                   Arguments&&... arguments) {
    auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
    emulator::run(
        grid.size, block, dynamic_shared_bytes, [](void* context) { (*static_cast<decltype(body)*>(context))(); },
        &body, grid.site);
}

}  // namespace kdfast::gpu

#include "emulator/tensor_core.h"
