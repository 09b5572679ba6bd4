#include "adamw/adamw_gpu.h"

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace kdfast::gpu {

void bind_adamw(py::module_& m) {
    m.def(
        "adamw",
        [](uintptr_t gradient, uintptr_t learning_rate, uintptr_t weight_decay, uintptr_t step, uintptr_t parameters,
           uintptr_t moment1, uintptr_t moment2, uintptr_t norm, uintptr_t rounded, uintptr_t workspace,
           int64_t num_members, int64_t num_parameters, double beta1, double beta2, double eps, double clip_norm,
           uintptr_t stream) {
            py::gil_scoped_release release;
            adamw(AdamWParams{reinterpret_cast<const float*>(gradient), reinterpret_cast<const float*>(learning_rate),
                              reinterpret_cast<const float*>(weight_decay), reinterpret_cast<const int64_t*>(step),
                              reinterpret_cast<float*>(parameters), reinterpret_cast<float*>(moment1),
                              reinterpret_cast<float*>(moment2), reinterpret_cast<void*>(rounded),
                              reinterpret_cast<float*>(norm), reinterpret_cast<void*>(workspace), num_members,
                              num_parameters, beta1, beta2, eps, clip_norm},
                  reinterpret_cast<void*>(stream));
        },
        "Clips and updates K members in place: addresses, sizes, constants, stream.");
    m.def("adamw_workspace", adamw_workspace, "The bytes that adamw needs for itself.");
}

}  // namespace kdfast::gpu
