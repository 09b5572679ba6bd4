// The machine that runs a kernel on a CPU, one block after the other: threads are fibers that give way to each other at
// barriers and warp collectives, and at some accesses to shared memory. The order is drawn from the settings' seed.
//
// One launch runs at a time (others wait), so the state stands in plain variables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/fiber.h"

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
    unsigned x, y, z;
};

namespace kdfast::emulator {

using Site = std::source_location;  // the kernel's line, for errors

// What a kernel did that a GPU would not forgive.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Settings {
    uint64_t seed = 0;            // 0: threads and blocks in their order; else any other order
    int compute_capability = 90;  // what the host code of kernels is told (75: no tensor-core products but f16's)
};
inline Settings settings;

enum class Wait : uint8_t { none, block_barrier, warp_barrier, shuffle, vote, mma, ldmatrix, movmatrix, exited };

// A cp.async that has been issued; the data moves when it is waited for.
struct Copy {
    void* destination;
    const void* source;
    int bytes, valid;  // valid: bytes read, zeros behind them
    Site site;
};

struct Thread {
    Fiber fiber;
    uint3 index;
    int number, warp, lane;
    Wait wait;
    Site site;      // where it waits
    Site last;      // the last line that the emulator saw
    Site kernel;    // the last one of them in a kernel source, not in a helper of a header
    void* operand;  // what it brings to a collective
    uint32_t priority;
    std::vector<Copy> open;                 // copies not yet committed
    std::vector<std::vector<Copy>> groups;  // committed groups, oldest first
};

// Lanes that meet in a collective.
struct Meeting {
    unsigned mask = 0, arrived = 0;
    Wait kind = Wait::none;
    Site site;
};

struct Warp {
    unsigned alive;
    Meeting meetings[4];
    // Warp barriers so far, and for lanes a, b the last of them up to which a knows what b did (a vector clock).
    uint32_t barriers;
    uint32_t knows[32][32];
};

struct Block {
    dim3 grid, size;
    uint3 index;
    int num_threads, alive, arrived;
    uint32_t epoch;        // counts block barriers, through all blocks
    uint32_t first_epoch;  // of this block
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<Warp> warps;
};

inline Block block;
inline Thread* thread = nullptr;  // the one that runs; null outside of kernels

// Notes a line that the running thread has come to.
void see(const Site& site);

std::string at(const Site& site);
[[noreturn]] void fail(const std::string& what, const Site& site);

// Lets others go first, now and then (at accesses to shared memory).
void maybe_give_way();

void block_barrier(const Site& site);

// The lanes of `mask` meet; the last to come runs combine(operands[32], context), null for lanes that are not there.
void meet(Wait kind, unsigned mask, void* operand, void (*combine)(void** operands, void* context), void* context,
          const Site& site);

template <class Operand, class Combine>
void collective(Wait kind, unsigned mask, Operand& operand, Combine combine, const Site& site) {
    meet(
        kind, mask, &operand,
        [](void** operands, void* context) {
            Operand* typed[32];
            for (int i = 0; i < 32; ++i) typed[i] = static_cast<Operand*>(operands[i]);
            (*static_cast<Combine*>(context))(typed);
        },
        &combine, site);
}

// Runs body(context) as each thread of each block. Throws Error for the first thing that is wrong.
// site: of the launch.
void run(dim3 grid, dim3 size, size_t dynamic_shared, void (*body)(void*), void* context, const Site& site);

}  // namespace kdfast::emulator
