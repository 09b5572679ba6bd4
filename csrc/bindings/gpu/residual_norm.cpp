#include "residual_norm/residual_norm_gpu.h"

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace kdfast::gpu {

void bind_residual_norm(py::module_& m) {
    m.def(
        "residual_norm",
        [](uintptr_t x, uintptr_t y, uintptr_t bias, uintptr_t gamma, uintptr_t beta, uintptr_t count, uintptr_t jet,
           uintptr_t position, uintptr_t seed, uintptr_t mask, uintptr_t sum, uintptr_t norm, uintptr_t moments,
           int64_t num_members, int64_t capacity, int64_t num_features, int64_t bias_stride, int64_t gamma_stride,
           int64_t beta_stride, uint32_t threshold, float scale, int dtype, uintptr_t stream) {
            py::gil_scoped_release release;
            residual_norm(ResidualNormParams{packed_rows(count, jet, position, num_members, capacity, num_features),
                                             dropout_of(seed, mask, threshold, scale),
                                             reinterpret_cast<const float*>(x), reinterpret_cast<const void*>(y),
                                             MemberVectors{reinterpret_cast<const float*>(bias), bias_stride},
                                             MemberVectors{reinterpret_cast<const float*>(gamma), gamma_stride},
                                             MemberVectors{reinterpret_cast<const float*>(beta), beta_stride},
                                             reinterpret_cast<float*>(sum), reinterpret_cast<void*>(norm),
                                             reinterpret_cast<float*>(moments), static_cast<DType>(dtype)},
                          reinterpret_cast<void*>(stream));
        },
        "x', n and the moments of K members' rows: addresses (0: none), sizes, strides, dropout, dtype code, stream.");
    m.def(
        "residual_norm_backward",
        [](uintptr_t grad_sum, uintptr_t grad_norm, uintptr_t sum, uintptr_t moments, uintptr_t gamma, uintptr_t count,
           uintptr_t jet, uintptr_t position, uintptr_t seed, uintptr_t mask, uintptr_t grad_x, uintptr_t grad_y,
           uintptr_t grad_gamma, uintptr_t grad_beta, uintptr_t grad_bias, uintptr_t workspace, int64_t num_members,
           int64_t capacity, int64_t num_features, int64_t gamma_stride, int64_t grad_gamma_stride,
           int64_t grad_beta_stride, int64_t grad_bias_stride, uint32_t threshold, float scale, int dtype,
           uintptr_t stream) {
            py::gil_scoped_release release;
            residual_norm_backward(
                ResidualNormBackwardParams{
                    packed_rows(count, jet, position, num_members, capacity, num_features),
                    dropout_of(seed, mask, threshold, scale), reinterpret_cast<const float*>(grad_sum),
                    reinterpret_cast<const void*>(grad_norm), reinterpret_cast<const float*>(sum),
                    reinterpret_cast<const float*>(moments),
                    MemberVectors{reinterpret_cast<const float*>(gamma), gamma_stride},
                    reinterpret_cast<float*>(grad_x), reinterpret_cast<void*>(grad_y),
                    member_gradients(grad_gamma, grad_gamma_stride), member_gradients(grad_beta, grad_beta_stride),
                    member_gradients(grad_bias, grad_bias_stride), reinterpret_cast<float*>(workspace),
                    static_cast<DType>(dtype)},
                reinterpret_cast<void*>(stream));
        },
        "The gradients of residual_norm: addresses (0: none), sizes, strides, dropout, dtype code, stream.");
    m.def("residual_norm_workspace", residual_norm_workspace,
          "The floats that residual_norm_backward needs for itself.");
}

}  // namespace kdfast::gpu
