#include "jet_features/jet_features.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace kdfast {

void bind_jet_features(py::module_& m) {
    m.def(
        "jet_features",
        [](uintptr_t constituents, uintptr_t offsets, int64_t num_jets, uintptr_t features, int num_threads) {
            const JetFeaturesParams params{reinterpret_cast<const float*>(constituents),
                                           reinterpret_cast<const int64_t*>(offsets), num_jets,
                                           reinterpret_cast<float*>(features), num_threads};
            py::gil_scoped_release release;
            jet_features(params);
        },
        "features [M, 7] of constituents [M, 4] and offsets: addresses");
}

}  // namespace kdfast
