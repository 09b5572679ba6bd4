#include "bias_gelu/bias_gelu_gpu.h"

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace kdfast::gpu {

void bind_bias_gelu(py::module_& m) {
    m.def(
        "bias_gelu",
        [](uintptr_t u, uintptr_t bias, uintptr_t count, uintptr_t jet, uintptr_t position, uintptr_t seed,
           uintptr_t mask, uintptr_t out, int64_t num_members, int64_t capacity, int64_t num_features,
           int64_t bias_stride, uint32_t threshold, float scale, int dtype, uintptr_t stream) {
            py::gil_scoped_release release;
            bias_gelu(BiasGeluParams{packed_rows(count, jet, position, num_members, capacity, num_features),
                                     dropout_of(seed, mask, threshold, scale), reinterpret_cast<const void*>(u),
                                     MemberVectors{reinterpret_cast<const float*>(bias), bias_stride},
                                     reinterpret_cast<void*>(out), static_cast<DType>(dtype)},
                      reinterpret_cast<void*>(stream));
        },
        "K members' activations: addresses (seed 0: no dropout), sizes, stride, dropout, dtype code, stream.");
    m.def(
        "bias_gelu_backward",
        [](uintptr_t grad_out, uintptr_t u, uintptr_t bias, uintptr_t count, uintptr_t jet, uintptr_t position,
           uintptr_t seed, uintptr_t mask, uintptr_t grad_u, uintptr_t grad_bias, uintptr_t workspace,
           int64_t num_members, int64_t capacity, int64_t num_features, int64_t bias_stride, int64_t grad_bias_stride,
           uint32_t threshold, float scale, int dtype, uintptr_t stream) {
            py::gil_scoped_release release;
            bias_gelu_backward(
                BiasGeluBackwardParams{packed_rows(count, jet, position, num_members, capacity, num_features),
                                       dropout_of(seed, mask, threshold, scale),
                                       reinterpret_cast<const void*>(grad_out), reinterpret_cast<const void*>(u),
                                       MemberVectors{reinterpret_cast<const float*>(bias), bias_stride},
                                       reinterpret_cast<void*>(grad_u), member_gradients(grad_bias, grad_bias_stride),
                                       reinterpret_cast<float*>(workspace), static_cast<DType>(dtype)},
                reinterpret_cast<void*>(stream));
        },
        "The gradients of bias_gelu: addresses (seed 0: no dropout), sizes, strides, dropout, dtype code, stream.");
    m.def("bias_gelu_workspace", bias_gelu_workspace, "The floats that bias_gelu_backward needs for itself.");
}

}  // namespace kdfast::gpu
