#include "attention_pooling/attention_pooling_gpu.h"

#include "bindings/gpu/ops.h"

namespace py = pybind11;

namespace kdfast::gpu {

void bind_attention_pooling(py::module_& m) {
    m.def(
        "attention_pooling",
        [](uintptr_t x, uintptr_t direction, uintptr_t offsets, uintptr_t seed, uintptr_t mask, uintptr_t pooled,
           uintptr_t kept, uintptr_t attention, uintptr_t weights, int64_t num_members, int64_t num_jets,
           int64_t capacity, int num_heads, int width, uint32_t threshold, float scale, uintptr_t stream) {
            py::gil_scoped_release release;
            const Dropout dropout = dropout_of(seed, mask, threshold, scale);
            const PoolingRows rows{
                reinterpret_cast<const int64_t*>(offsets), dropout, num_members, num_jets, capacity, num_heads, width};
            attention_pooling(
                AttentionPoolingParams{rows, reinterpret_cast<const float*>(x),
                                       reinterpret_cast<const float*>(direction), reinterpret_cast<float*>(pooled),
                                       reinterpret_cast<float*>(kept), reinterpret_cast<float*>(attention),
                                       reinterpret_cast<float*>(weights)},
                reinterpret_cast<void*>(stream));
        },
        "Pooled constituents of K members: addresses (0: none), sizes, dropout's threshold and scale, stream.");
    m.def(
        "attention_pooling_backward",
        [](uintptr_t x, uintptr_t direction, uintptr_t offsets, uintptr_t seed, uintptr_t mask, uintptr_t pooled,
           uintptr_t kept, uintptr_t weights, uintptr_t grad_pooled, uintptr_t grad_kept, uintptr_t grad_attention,
           uintptr_t grad_x, uintptr_t grad_direction, uintptr_t grad_weights, uintptr_t partial, int64_t num_members,
           int64_t num_jets, int64_t capacity, int num_heads, int width, uint32_t threshold, float scale,
           uintptr_t stream) {
            py::gil_scoped_release release;
            const Dropout dropout = dropout_of(seed, mask, threshold, scale);
            const PoolingRows rows{
                reinterpret_cast<const int64_t*>(offsets), dropout, num_members, num_jets, capacity, num_heads, width};
            attention_pooling_backward(
                AttentionPoolingBackwardParams{
                    rows, reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(direction),
                    reinterpret_cast<const float*>(pooled), reinterpret_cast<const float*>(kept),
                    reinterpret_cast<const float*>(weights), reinterpret_cast<const float*>(grad_pooled),
                    reinterpret_cast<const float*>(grad_kept), reinterpret_cast<const float*>(grad_attention),
                    reinterpret_cast<float*>(grad_x), reinterpret_cast<float*>(grad_direction),
                    reinterpret_cast<float*>(grad_weights), reinterpret_cast<float*>(partial)},
                reinterpret_cast<void*>(stream));
        },
        "Its gradients: addresses (0: none), sizes, dropout's threshold and scale, stream.");
    m.def("attention_pooling_partials", attention_pooling_partials,
          "How many sums for the direction's gradient the backward pass leaves.");
    m.def("attention_pooling_takes", attention_pooling_takes, "Whether there is a kernel for H and D.");
}

}  // namespace kdfast::gpu
