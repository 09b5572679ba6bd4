// Instruction sets: what this build holds, what this CPU has, and which one is in use.
//
// Kernel sources (csrc/<op>/<op>.cpp) are compiled once per instruction set into the namespace kdfast::<isa>.
// KDFAST_KERNEL declares those twins and one dispatcher, kdfast::<op>(params), that calls the one in use: the op's best
// twin that is not above active_isa(). Ops are not compiled for `amx` (AVX512_BF16 and AMX's tiles of bf16), but for
// those in CMake's KDFAST_AMX_OPS, which say KDFAST_AMX_KERNEL.
#pragma once

#include "isa_list.h"

namespace kdfast {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3, amx = 4 };  // each holds the ones below
constexpr Isa kIsas[] = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx};

// The best instruction set of this CPU and build, or the one that KDFAST_ISA names. Throws std::runtime_error
// for a name that is unknown or that this CPU lacks. Decided once.
Isa active_isa();

// True where the build holds the instruction set and the CPU runs it.
bool has_isa(Isa isa);

const char* isa_name(Isa isa);

}  // namespace kdfast

// isa_list.h is written by CMake from KDFAST_ISAS: KDFAST_EACH_ISA(X, …) is X(amx, …) X(avx512bf16, …) and so on, best
// first; KDFAST_EACH_PLAIN_ISA leaves amx out.
#define KDFAST_DECLARE_TWIN(isa, op, Params) \
    namespace isa {                          \
    void op(const Params&);                  \
    }
#define KDFAST_CALL_TWIN(isa, op, Params) \
    if (active >= Isa::isa) return isa::op(params);
#define KDFAST_DISPATCH(EACH_ISA, op, Params)  \
    EACH_ISA(KDFAST_DECLARE_TWIN, op, Params)  \
    inline void op(const Params& params) {     \
        const Isa active = active_isa();       \
        EACH_ISA(KDFAST_CALL_TWIN, op, Params) \
    }
#define KDFAST_KERNEL(op, Params) KDFAST_DISPATCH(KDFAST_EACH_PLAIN_ISA, op, Params)
#define KDFAST_AMX_KERNEL(op, Params) KDFAST_DISPATCH(KDFAST_EACH_ISA, op, Params)
