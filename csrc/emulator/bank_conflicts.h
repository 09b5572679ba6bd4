// Counts bank conflicts of shared memory, while a test asks for it.
//
// Word w of shared memory, of four bytes, lies in bank w mod 32. A bank gives one word at a time, to any number
// of lanes. So a load or store of a warp takes as many passes as its lanes want different words of one bank;
// accesses of 8 and 16 bytes are made by one half and one quarter of the warp after the other. Passes beyond the
// first of each are its conflicts.
//
// Lanes run one after the other here, so which of their accesses a GPU would make together is inferred: the n-th
// that each makes at one place of the source since the warp last met as a whole, in a barrier or a collective.
// That is what a GPU does if lanes that skip an access skip all later ones up to there.
#pragma once

#include <cstdint>
#include <vector>

#include "emulator/machine.h"

namespace kdfast::emulator {

enum class Access : uint8_t { load, store };

struct AccessCount {
    Site site;
    Access how;
    int bytes;                 // of a lane
    int64_t warps, conflicts;  // warps' accesses; passes beyond those that they need
    int most;                  // different words that lanes wanted of one bank at a time
};

inline bool counts_accesses = false;

void start_counting_accesses();  // from nothing
std::vector<AccessCount> access_counts();

// The running thread accesses so many bytes. alignment: what the compiler knows of the address, hence the size
// of the accesses that it makes of this one.
void count_access(Access how, const void* address, size_t bytes, size_t alignment, const Site& site);

// A warp has met as a whole, or has ended.
void close_accesses(int warp);

}  // namespace kdfast::emulator
