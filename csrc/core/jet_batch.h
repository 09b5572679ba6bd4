// Some of the jets of a view, as the networks' steps take them, and how a step ends.
#pragma once

#include <cstdint>

namespace kdfast {

// In an order of their own.
struct JetBatch {
    const float* features;   // [M, features] of the view
    const int64_t* offsets;  // of the view
    const int64_t* jets;     // [num_jets] positions in the view; null: first, first + 1, …
    int64_t first, num_jets;
};

// bad_values: of a label, weight, temperature or α. Of a step that is not done the gradient is not to be used, and the
// running statistics may have moved.
enum class Outcome : int { done, bad_values, no_memory };

}  // namespace kdfast
