#include "core/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace kdfast {
namespace {

constexpr Isa kAll[] = {Isa::avx512bf16, Isa::avx512, Isa::avx2, Isa::baseline};  // best first

Isa choose() {
    const char* forced = std::getenv("KDFAST_ISA");
    if (forced == nullptr || *forced == '\0') {
        for (Isa isa : kAll)
            if (has_isa(isa)) return isa;
    }
    std::string known;
    for (Isa isa : kAll) {
        if (std::string(forced) == isa_name(isa)) {
            if (has_isa(isa)) return isa;
            throw std::runtime_error("KDFAST_ISA=" + std::string(forced) + ": this CPU or build lacks it");
        }
        known = std::string(isa_name(isa)) + (known.empty() ? "" : ", ") + known;
    }
    throw std::runtime_error("KDFAST_ISA=" + std::string(forced) + " is unknown; it may be " + known);
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512bf16:
            return "avx512bf16";
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "baseline";
    }
}

bool has_isa(Isa isa) {
#define KDFAST_IS_BUILT(name, _) || isa == Isa::name
    if (!(false KDFAST_EACH_ISA(KDFAST_IS_BUILT, ))) return false;
#if defined(__x86_64__)
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512cd");
    switch (isa) {
        case Isa::avx512bf16:
            return v4 && __builtin_cpu_supports("avx512bf16");
        case Isa::avx512:
            return v4;
        case Isa::avx2:  // x86-64-v3
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
        default:
            return true;
    }
#else
    return isa == Isa::baseline;
#endif
}

Isa active_isa() {
    static const Isa isa = choose();
    return isa;
}

}  // namespace kdfast
