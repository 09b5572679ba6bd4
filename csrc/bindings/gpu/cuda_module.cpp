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

// The oldest Linux driver that runs this build, and its CUDA: any of the same major version's, but for CUDA 12 only
// those that know the code's compression (-compress-mode=size came with 12.4).
static_assert(CUDART_VERSION >= 12080);
const char* const oldest_driver = CUDART_VERSION >= 13000 ? "580.65.06" : "550.54.14";
constexpr int kOldestDriverVersion = CUDART_VERSION >= 13000 ? CUDART_VERSION / 1000 * 1000 : 12040;

// Why kernels can't run on this machine; nothing where its driver is new enough.
std::optional<std::string> why_unusable() {
    int driver = 0;
    const cudaError_t status = cudaDriverGetVersion(&driver);  // 0 without a driver
    const std::string needs = std::string("this build needs ") + oldest_driver + " or newer";
    if (status != cudaSuccess || driver == 0) return "no NVIDIA driver is installed (" + needs + ")";
    if (driver < kOldestDriverVersion)
        return "the NVIDIA driver is made for CUDA " + version(driver) + " (" + needs + ")";
    return std::nullopt;
}

void set_device(int device) {
    const cudaError_t status = cudaSetDevice(device);
    if (status != cudaSuccess) throw std::runtime_error(std::string("cudaSetDevice: ") + cudaGetErrorString(status));
}

}  // namespace

namespace kdfast::gpu {
int code_capability();  // core/gpu_code.cu
}

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of kdfast. Private: use kdfast.ops, which checks its arguments.";
    m.attr("cuda_version") = version(CUDART_VERSION);
    m.attr("architectures") = KDFAST_ARCHITECTURES;
    m.attr("oldest_driver") = oldest_driver;
    m.def("why_unusable", why_unusable);
    m.def("set_device", set_device);
    m.def(
        "code_capability",
        [](int device) {
            set_device(device);
            return kdfast::gpu::code_capability();
        },
        "The compute capability (75, 80, …) that the kernels for a device were compiled for; 0: there are none for it. "
        "Makes it the current device.");
    kdfast::gpu::bind_ops(m);
}
