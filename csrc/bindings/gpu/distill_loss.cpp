#include "distill_loss/distill_loss_gpu.h"

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace kdfast::gpu {

void bind_distill_loss(py::module_& m) {
    m.def(
        "distill_loss",
        [](uintptr_t student, uintptr_t teacher, uintptr_t labels, uintptr_t weights, uintptr_t temperature,
           uintptr_t alpha, uintptr_t loss, uintptr_t terms, uintptr_t grad, uintptr_t invalid, uintptr_t workspace,
           int64_t num_members, int64_t num_jets, int64_t num_classes, int64_t teacher_stride, int logits_dtype,
           int grad_dtype, bool float_labels, uintptr_t stream) {
            py::gil_scoped_release release;
            distill_loss(
                DistillLossParams{reinterpret_cast<const void*>(student), reinterpret_cast<const void*>(teacher),
                                  reinterpret_cast<const void*>(labels), reinterpret_cast<const float*>(weights),
                                  reinterpret_cast<const double*>(temperature), reinterpret_cast<const double*>(alpha),
                                  reinterpret_cast<float*>(loss), reinterpret_cast<float*>(terms),
                                  reinterpret_cast<void*>(grad), reinterpret_cast<int32_t*>(invalid),
                                  reinterpret_cast<void*>(workspace), num_members, num_jets, num_classes,
                                  teacher_stride, static_cast<DType>(logits_dtype), static_cast<DType>(grad_dtype),
                                  float_labels},
                reinterpret_cast<void*>(stream));
        },
        "Loss, terms and gradient of K members: addresses (0: none), sizes, dtype codes, stream.");
    m.def(
        "distill_loss_workspace",
        [](int64_t num_members, int64_t num_jets, int64_t num_classes, int logits_dtype) {
            return distill_loss_workspace(num_members, num_jets, num_classes, static_cast<DType>(logits_dtype));
        },
        "The bytes that distill_loss needs for itself.");
}

}  // namespace kdfast::gpu
