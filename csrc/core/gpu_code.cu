// Which of the build's code a GPU runs.
#include <array>
#include <atomic>

#include "core/gpu.h"

namespace kdfast::gpu {

__global__ void any_kernel() {}

// Not the device's own capability: where a build lacks that, the driver compiles PTX of an older one, whose kernels
// lack what the older one lacked.
int code_capability() {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    static std::array<std::atomic<int>, 64> known{};  // +1; an attention call asks thrice
    std::atomic<int>* const slot = device < 64 ? &known[static_cast<size_t>(device)] : nullptr;
    if (slot != nullptr && slot->load() > 0) return slot->load() - 1;
    cudaFuncAttributes attributes;
    const cudaError_t status = cudaFuncGetAttributes(&attributes, any_kernel);
    const bool none = status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction ||
                      status == cudaErrorUnsupportedPtxVersion;
    if (none)
        cudaGetLastError();  // else the next launch reports it
    else
        check(status, "cudaFuncGetAttributes");
    const int capability = none ? 0 : attributes.ptxVersion;
    if (slot != nullptr) slot->store(capability + 1);
    return capability;
}

}  // namespace kdfast::gpu
