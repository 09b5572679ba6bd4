#include "distill_loss/distill_loss.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace kdfast {

void bind_distill_loss(py::module_& m) {
    m.def(
        "distill_loss",
        [](uintptr_t student, uintptr_t teacher, uintptr_t labels, uintptr_t weights, uintptr_t temperature,
           uintptr_t alpha, uintptr_t loss, uintptr_t terms, uintptr_t grad, int64_t num_members, int64_t num_jets,
           int64_t num_classes, int64_t teacher_stride, int student_dtype, int teacher_dtype, int grad_dtype,
           bool float_labels, int num_threads) {
            py::gil_scoped_release release;
            bool valid = false;
            distill_loss(DistillLossParams{
                reinterpret_cast<const void*>(student), reinterpret_cast<const void*>(teacher),
                reinterpret_cast<const void*>(labels), reinterpret_cast<const float*>(weights),
                reinterpret_cast<const double*>(temperature), reinterpret_cast<const double*>(alpha),
                reinterpret_cast<float*>(loss), reinterpret_cast<float*>(terms), reinterpret_cast<void*>(grad),
                num_members, num_jets, num_classes, teacher_stride, static_cast<DType>(student_dtype),
                static_cast<DType>(teacher_dtype), static_cast<DType>(grad_dtype), float_labels, num_threads, &valid});
            return valid;
        },
        "Loss, terms and gradient of K members: addresses (0: none), sizes, dtype codes, threads. False where an "
        "argument's values can't be.");
}

}  // namespace kdfast
