// Working memory of a thread, kept between calls. Kernel sources only.
#pragma once

#include <cstddef>
#include <cstdlib>

#ifndef KDFAST_ISA_NS
#error "core/scratch.h is for kernel sources, which are compiled once per instruction set"
#endif

namespace kdfast::KDFAST_ISA_NS {
namespace {

// Aligned to a cache line; what it held before is lost. Valid until this thread's next call in the same source file.
// Null where there is no such memory.
inline float* scratch(size_t floats) {
    struct Memory {
        float* data = nullptr;
        size_t size = 0;
        ~Memory() { std::free(data); }
    };
    static thread_local Memory memory;
    if (memory.size < floats) {
        std::free(memory.data);
        memory.size = (floats + 15) / 16 * 16;
        memory.data = static_cast<float*>(std::aligned_alloc(64, memory.size * sizeof(float)));
        if (memory.data == nullptr) memory.size = 0;
    }
    return memory.data;
}

}  // namespace
}  // namespace kdfast::KDFAST_ISA_NS
