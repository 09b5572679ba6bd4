#include "pack_constituents/pack_constituents.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace kdfast {

void bind_pack_constituents(py::module_& m) {
    m.def(
        "pack_constituents",
        [](uintptr_t pt, uintptr_t eta, uintptr_t phi, uintptr_t energy, int64_t rows, int64_t stored, int64_t width,
           float per_gev, uintptr_t counts, uintptr_t constituents, int64_t capacity) {
            int64_t total = 0;
            const PackConstituentsParams params{reinterpret_cast<const float*>(pt),
                                                reinterpret_cast<const float*>(eta),
                                                reinterpret_cast<const float*>(phi),
                                                reinterpret_cast<const float*>(energy),
                                                rows,
                                                stored,
                                                width,
                                                per_gev,
                                                reinterpret_cast<int64_t*>(counts),
                                                reinterpret_cast<float*>(constituents),
                                                capacity,
                                                &total};
            py::gil_scoped_release release;
            pack_constituents(params);
            return total;
        },
        "the number of constituents [M, 4] of padded ones, −1 for a fault; counts [rows]: addresses");
}

}  // namespace kdfast
