#include "adamw/adamw.h"

#include <pybind11/pybind11.h>

#include <vector>

namespace py = pybind11;

namespace kdfast {

void bind_adamw(py::module_& m) {
    m.def(
        "adamw",
        [](uintptr_t parameters, uintptr_t gradient, uintptr_t moment1, uintptr_t moment2, uintptr_t norm,
           uintptr_t learning_rate, uintptr_t weight_decay, uintptr_t step, int64_t num_members, int64_t num_parameters,
           double beta1, double beta2, double eps, double clip_norm, int num_threads) {
            py::gil_scoped_release release;
            std::vector<double> scratch(num_members * adamw_chunks(num_parameters));
            adamw(AdamWParams{reinterpret_cast<float*>(parameters), reinterpret_cast<const float*>(gradient),
                              reinterpret_cast<float*>(moment1), reinterpret_cast<float*>(moment2),
                              reinterpret_cast<float*>(norm), reinterpret_cast<const float*>(learning_rate),
                              reinterpret_cast<const float*>(weight_decay), reinterpret_cast<const int64_t*>(step),
                              scratch.data(), num_members, num_parameters, beta1, beta2, eps, clip_norm, num_threads});
        },
        "In-place clip + AdamW; addresses of contiguous float32 (step: int64) arrays.");
}

}  // namespace kdfast
