// Buffers one after the other in a block of memory. Kernel sources only.
#pragma once

#include "core/simd.h"

namespace kdfast::KDFAST_ISA_NS {
namespace {

// Hands out memory from `start` on, in whole cache lines; with a null start it only counts.
struct Layout {
    char* start;
    size_t used = 0;

    template <class T>
    KDFAST_INLINE T* take(int64_t number) {
        T* const taken = start ? reinterpret_cast<T*>(start + used) : nullptr;
        used += static_cast<size_t>(round_up(number * static_cast<int64_t>(sizeof(T)), 64));
        return taken;
    }
    // Decisions of dropout, of which `apply` reads a whole vector's at once, beyond the last too.
    KDFAST_INLINE uint8_t* take_bits(int64_t bytes) { return take<uint8_t>(bytes + kLanes / 8); }
};

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
