// Padded constituents of a block of jets: checked and packed while they are in cache. The checks, and what becomes of
// jets that fail them, stand in python/kdfast/jets/packing.py; this says only that a block is fine, or that it may not
// be.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace kdfast {

struct PackConstituentsParams {
    const float* pt;                  // [rows, stored]
    const float *eta, *phi, *energy;  // [rows, width], width ≤ stored
    int64_t rows, stored, width;      // width ≥ 1
    float per_gev;                    // what pt and energy are divided by
    int64_t* counts;                  // [rows] constituents of each jet
    float* constituents;              // [capacity, 4] pt, eta, phi, energy
    int64_t capacity;                 // where more is needed, some constituents are not written
    int64_t* total;                   // their number, or −1: a jet has a fault, or may have one
};

KDFAST_KERNEL(pack_constituents, PackConstituentsParams)

}  // namespace kdfast
