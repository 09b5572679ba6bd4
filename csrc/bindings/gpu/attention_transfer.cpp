#include "attention_transfer/attention_transfer_gpu.h"

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace kdfast::gpu {

void bind_attention_transfer(py::module_& m) {
    m.def(
        "attention_transfer",
        [](uintptr_t attention, uintptr_t offsets, uintptr_t teacher_entropy, uintptr_t teacher_maximum,
           uintptr_t weights, uintptr_t loss, uintptr_t grad, uintptr_t total_weight, uintptr_t workspace,
           int64_t num_members, int64_t num_jets, int64_t capacity, uintptr_t stream) {
            py::gil_scoped_release release;
            attention_transfer(
                AttentionTransferParams{
                    reinterpret_cast<const float*>(attention), reinterpret_cast<const int64_t*>(offsets),
                    reinterpret_cast<const float*>(teacher_entropy), reinterpret_cast<const float*>(teacher_maximum),
                    reinterpret_cast<const float*>(weights), reinterpret_cast<float*>(loss),
                    reinterpret_cast<float*>(grad), reinterpret_cast<float*>(total_weight),
                    reinterpret_cast<void*>(workspace), num_members, num_jets, capacity},
                reinterpret_cast<void*>(stream));
        },
        "The term and its gradient of K members: addresses (0: none), sizes, stream.");
    m.def("attention_transfer_workspace", attention_transfer_workspace,
          "The bytes that attention_transfer needs for itself.");
}

}  // namespace kdfast::gpu
