// What every kernel on packed jets asks of its offsets, so that a wrong array is an error and not a stray read.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace kdfast {

// Throws std::invalid_argument unless offsets [num_jets + 1] rise from 0 to the number of constituents.
inline void check_offsets(const int64_t* offsets, int64_t num_jets, int64_t num_constituents) {
    bool good = offsets[0] == 0 && offsets[num_jets] == num_constituents;
    for (int64_t jet = 0; jet < num_jets; ++jet) good = good && offsets[jet] <= offsets[jet + 1];
    if (!good)
        throw std::invalid_argument("must rise from 0 to " + std::to_string(num_constituents) +
                                    ", the number of constituents");
}

}  // namespace kdfast
