#include "batch_norm_gelu/batch_norm_gelu_gpu.h"

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace kdfast::gpu {

void bind_batch_norm_gelu(py::module_& m) {
    m.def(
        "batch_norm_gelu",
        [](uintptr_t y, uintptr_t gamma, uintptr_t beta, uintptr_t count, uintptr_t jet, uintptr_t position,
           uintptr_t seed, uintptr_t mask, uintptr_t out, uintptr_t statistics, uintptr_t running_mean,
           uintptr_t running_variance, uintptr_t workspace, int64_t num_members, int64_t capacity, int64_t num_features,
           int64_t gamma_stride, int64_t beta_stride, int64_t running_mean_stride, int64_t running_variance_stride,
           uint32_t threshold, float scale, int dtype, bool training, uintptr_t stream) {
            py::gil_scoped_release release;
            batch_norm_gelu(
                BatchNormGeluParams{packed_rows(count, jet, position, num_members, capacity, num_features),
                                    dropout_of(seed, mask, threshold, scale), reinterpret_cast<const void*>(y),
                                    MemberVectors{reinterpret_cast<const float*>(gamma), gamma_stride},
                                    MemberVectors{reinterpret_cast<const float*>(beta), beta_stride},
                                    reinterpret_cast<void*>(out), reinterpret_cast<float*>(statistics),
                                    reinterpret_cast<float*>(running_mean), reinterpret_cast<float*>(running_variance),
                                    reinterpret_cast<float*>(workspace), running_mean_stride, running_variance_stride,
                                    static_cast<DType>(dtype), training},
                reinterpret_cast<void*>(stream));
        },
        "K members' activations and the step of their running moments: addresses (seed 0: no dropout), sizes, strides, "
        "dropout, dtype code, training, stream.");
    m.def(
        "batch_norm_gelu_backward",
        [](uintptr_t grad_out, uintptr_t y, uintptr_t gamma, uintptr_t beta, uintptr_t statistics, uintptr_t count,
           uintptr_t jet, uintptr_t position, uintptr_t seed, uintptr_t mask, uintptr_t grad_y, uintptr_t grad_gamma,
           uintptr_t grad_beta, uintptr_t workspace, int64_t num_members, int64_t capacity, int64_t num_features,
           int64_t gamma_stride, int64_t beta_stride, int64_t grad_gamma_stride, int64_t grad_beta_stride,
           uint32_t threshold, float scale, int dtype, bool training, uintptr_t stream) {
            py::gil_scoped_release release;
            batch_norm_gelu_backward(
                BatchNormGeluBackwardParams{packed_rows(count, jet, position, num_members, capacity, num_features),
                                            dropout_of(seed, mask, threshold, scale),
                                            reinterpret_cast<const void*>(grad_out), reinterpret_cast<const void*>(y),
                                            MemberVectors{reinterpret_cast<const float*>(gamma), gamma_stride},
                                            MemberVectors{reinterpret_cast<const float*>(beta), beta_stride},
                                            reinterpret_cast<const float*>(statistics), reinterpret_cast<void*>(grad_y),
                                            member_gradients(grad_gamma, grad_gamma_stride),
                                            member_gradients(grad_beta, grad_beta_stride),
                                            reinterpret_cast<float*>(workspace), static_cast<DType>(dtype), training},
                reinterpret_cast<void*>(stream));
        },
        "The gradients of batch_norm_gelu: addresses (seed 0: no dropout), sizes, strides, dropout, dtype code, "
        "training, stream.");
    m.def("batch_norm_gelu_workspace", batch_norm_gelu_workspace,
          "The floats that batch_norm_gelu and its gradients need for themselves.");
}

}  // namespace kdfast::gpu
