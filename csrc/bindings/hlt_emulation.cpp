#include "hlt_emulation/hlt_emulation.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace kdfast {

void bind_hlt_emulation(py::module_& m) {
    m.def(
        "hlt_emulation",
        [](uintptr_t constituents, uintptr_t offsets, uintptr_t index, int64_t num_jets, float pt_threshold,
           double merge_radius, double pt_resolution, double angular_resolution, double loss, uint64_t seed,
           uintptr_t scratch, uintptr_t out_offsets, uintptr_t removed, int num_threads) {
            int64_t first_bad = -1;
            const HltEmulationParams params{reinterpret_cast<const float*>(constituents),
                                            reinterpret_cast<const int64_t*>(offsets),
                                            reinterpret_cast<const int64_t*>(index),
                                            num_jets,
                                            pt_threshold,
                                            merge_radius,
                                            pt_resolution,
                                            angular_resolution,
                                            loss,
                                            seed,
                                            reinterpret_cast<float*>(scratch),
                                            reinterpret_cast<int64_t*>(out_offsets),
                                            reinterpret_cast<int64_t*>(removed),
                                            &first_bad,
                                            num_threads};
            py::gil_scoped_release release;
            hlt_emulation(params);
            return first_bad;
        },
        "Fills scratch, out_offsets and removed; returns the first jet with bad values, or -1. Addresses and "
        "settings.");
    m.def(
        "hlt_compact",
        [](uintptr_t scratch, uintptr_t offsets, uintptr_t out_offsets, int64_t num_jets, uintptr_t out,
           int num_threads) {
            const HltCompactParams params{reinterpret_cast<const float*>(scratch),
                                          reinterpret_cast<const int64_t*>(offsets),
                                          reinterpret_cast<const int64_t*>(out_offsets),
                                          num_jets,
                                          reinterpret_cast<float*>(out),
                                          num_threads};
            py::gil_scoped_release release;
            hlt_compact(params);
        },
        "Moves what hlt_emulation left in scratch to its places in out. Addresses.");
}

}  // namespace kdfast
