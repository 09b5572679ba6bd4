#include "dropout/dropout.h"

#include <pybind11/pybind11.h>

#include "core/offsets.h"

namespace py = pybind11;

namespace kdfast {

void bind_dropout(py::module_& m) {
    m.def(
        "dropout",
        [](uintptr_t x, uintptr_t y, int dtype, uintptr_t offsets, int64_t num_jets, int64_t num_rows,
           int64_t num_features, uint64_t seed, uint32_t threshold, int num_threads) {
            const DropoutParams params{reinterpret_cast<const void*>(x),
                                       reinterpret_cast<void*>(y),
                                       static_cast<DType>(dtype),
                                       reinterpret_cast<const int64_t*>(offsets),
                                       num_jets,
                                       num_features,
                                       seed,
                                       threshold,
                                       num_threads};
            if (params.offsets) check_offsets(params.offsets, num_jets, num_rows);
            py::gil_scoped_release release;
            dropout(params);
        },
        "y = dropout(x): addresses, dtype code, offsets (0: a row per jet), sizes, seed, threshold of 16 bits, "
        "threads");
}

}  // namespace kdfast
