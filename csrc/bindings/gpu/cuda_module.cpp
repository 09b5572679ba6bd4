// kdfast._cuda: the CUDA kernels. Importing it needs neither driver nor GPU, and touches neither: a process may fork
// after.
#include <cuda_runtime.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// The oldest Linux driver that runs programs of this CUDA: any of the same major version's.
const char* oldest_driver() {
    static_assert(CUDART_VERSION >= 12080);
    return CUDART_VERSION >= 13000 ? "580.65.06" : "525.60.13";
}

// Why kernels can't run on this machine; nothing where its driver is new enough.
std::optional<std::string> why_unusable() {
    int driver = 0;
    const cudaError_t status = cudaDriverGetVersion(&driver);  // 0 without a driver
    const std::string needs = std::string("this build needs ") + oldest_driver() + " or newer";
    if (status != cudaSuccess || driver == 0) return "no NVIDIA driver is installed (" + needs + ")";
    if (driver / 1000 < CUDART_VERSION / 1000)
        return "the NVIDIA driver is made for CUDA " + version(driver) + " (" + needs + ")";
    return std::nullopt;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of kdfast. Private: use kdfast.ops, which checks its arguments.";
    m.attr("cuda_version") = version(CUDART_VERSION);
    m.attr("architectures") = KDFAST_ARCHITECTURES;
    m.attr("oldest_driver") = oldest_driver();
    m.def("why_unusable", why_unusable);
    m.def("set_device", [](int device) {
        const cudaError_t status = cudaSetDevice(device);
        if (status != cudaSuccess)
            throw std::runtime_error(std::string("cudaSetDevice: ") + cudaGetErrorString(status));
    });
    kdfast::gpu::bind_ops(m);
}
