#include "core/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kdfast {
namespace {

Isa choose() {
    const char* forced = std::getenv("KDFAST_ISA");
    if (forced == nullptr || *forced == '\0') {
        Isa best = Isa::baseline;
        for (Isa isa : kIsas)
            if (has_isa(isa)) best = isa;
        return best;
    }
    std::string known;
    for (Isa isa : kIsas) {
        if (std::string(forced) == isa_name(isa)) {
            if (has_isa(isa)) return isa;
            throw std::runtime_error("KDFAST_ISA=" + std::string(forced) + ": this CPU, system or build lacks it");
        }
        known += (known.empty() ? "" : ", ") + std::string(isa_name(isa));
    }
    throw std::runtime_error("KDFAST_ISA=" + std::string(forced) + " is unknown; it may be " + known);
}

// AMX has three doors: the CPU (cpuid), the kernel's saving of the tiles (XCR0), and the leave to use them, which Linux
// gives a process that asks. One request serves all threads, those that ran before it too, and children of fork; a
// sandbox may refuse. (__builtin_cpu_supports of older compilers knows no AMX.)
bool may_use_amx() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
    static const bool granted = [] {
        constexpr unsigned kOsxsave = 1u << 27, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // cpuid: 1.ecx, 7.edx
        constexpr unsigned kTileState = 3u << 17;                                          // XCR0: layout, data
        constexpr long kRequest = 0x1023, kTileData = 18;                                  // ARCH_REQ_XCOMP_PERM
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return false;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ~d & (kAmxBf16 | kAmxTile)) return false;
        unsigned low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return !(~low & kTileState) && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
    }();
    return granted;
#else
    return false;
#endif
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::amx:
            return "amx";
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
        case Isa::amx:
            return has_isa(Isa::avx512bf16) && may_use_amx();
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
