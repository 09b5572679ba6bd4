#include "dropout_masks/dropout_masks_gpu.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace kdfast::gpu {

void bind_dropout_masks(py::module_& m) {
    m.attr("dropout_masks_uses") = kMaskUses;
    m.def(
        "dropout_masks",
        [](uintptr_t count, uintptr_t jet, uintptr_t position, uintptr_t plan, uintptr_t seeds, uintptr_t masks,
           int64_t num_jets, int64_t capacity, const std::vector<int64_t>& uses, uint32_t threshold, uintptr_t stream) {
            DropoutMasksParams p{};
            if (uses.size() > 3 * kMaskUses) throw std::invalid_argument("more uses than a launch draws");
            p.rows = packed_rows(count, jet, position, 1, capacity, 0);
            p.num_jets = num_jets;
            p.plan = reinterpret_cast<const void*>(plan);
            p.seeds = reinterpret_cast<const int64_t*>(seeds);
            p.masks = reinterpret_cast<uint8_t*>(masks);
            p.num_uses = static_cast<int>(uses.size() / 3);
            for (size_t u = 0; u < uses.size() / 3; ++u)
                p.uses[u] = {uses[3 * u], static_cast<int32_t>(uses[3 * u + 1]), static_cast<int32_t>(uses[3 * u + 2])};
            p.threshold = threshold;
            py::gil_scoped_release release;
            dropout_masks(p, reinterpret_cast<void*>(stream));
        },
        "The bits of dropout: addresses, sizes, (offset, of, columns) of one use after the other, threshold, stream.");
}

}  // namespace kdfast::gpu
