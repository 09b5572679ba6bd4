// Instruction sets: what this build holds, what this CPU has, and which one is in use.
//
// Kernel sources (csrc/<op>/<op>.cpp) are compiled once per instruction set into the namespace kdfast::<isa>.
// KDFAST_KERNEL declares those twins and one dispatcher, kdfast::<op>(params), that calls the one in use.
#pragma once

namespace kdfast {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

// The best instruction set of this CPU and build, or the one that KDFAST_ISA names. Throws std::runtime_error
// for a name that is unknown or that this CPU lacks. Decided once.
Isa active_isa();

// True where the build holds the instruction set and the CPU runs it.
bool has_isa(Isa isa);

const char* isa_name(Isa isa);

}  // namespace kdfast

#if KDFAST_X86
#define KDFAST_KERNEL(op, Params)              \
    namespace baseline {                       \
    void op(const Params&);                    \
    }                                          \
    namespace avx2 {                           \
    void op(const Params&);                    \
    }                                          \
    namespace avx512 {                         \
    void op(const Params&);                    \
    }                                          \
    namespace avx512bf16 {                     \
    void op(const Params&);                    \
    }                                          \
    inline void op(const Params& params) {     \
        switch (active_isa()) {                \
            case Isa::avx512bf16:              \
                return avx512bf16::op(params); \
            case Isa::avx512:                  \
                return avx512::op(params);     \
            case Isa::avx2:                    \
                return avx2::op(params);       \
            default:                           \
                return baseline::op(params);   \
        }                                      \
    }
#else
#define KDFAST_KERNEL(op, Params) \
    namespace baseline {          \
    void op(const Params&);       \
    }                             \
    inline void op(const Params& params) { baseline::op(params); }
#endif
