// A tensor of attention, for the kernels of the CPU and of GPUs.
#pragma once

#include <cstdint>

namespace kdfast {

// [K, M, H, d] with strides in elements; the last dimension is contiguous.
struct AttentionRows {
    void* data;
    int64_t member, row, head;
};

}  // namespace kdfast
