#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "bindings/gpu/ops.h"
#include "constituent_attention/constituent_attention_gpu.h"

namespace py = pybind11;

namespace kdfast::gpu {
namespace {

// (jets, constituents, members, heads, head_dim, members of the bias, Σ n²).
using Sizes = std::array<int64_t, 7>;
// Of member, row and head, for one tensor [K, M, H, d] after the other.
using Strides = std::vector<int64_t>;

AttentionRows rows_of(uintptr_t data, const Strides& strides, size_t tensor) {
    return {reinterpret_cast<void*>(data), strides.at(3 * tensor), strides.at(3 * tensor + 1),
            strides.at(3 * tensor + 2)};
}

AttentionParams common(uintptr_t bias, uintptr_t plan, uintptr_t device_seed, uintptr_t masks, uintptr_t lse,
                       const Sizes& sizes, int dtype, float scale, uint64_t seed, uint32_t threshold) {
    AttentionParams p{};
    p.bias = reinterpret_cast<const float*>(bias);
    p.plan = reinterpret_cast<const void*>(plan);
    p.device_seed = reinterpret_cast<const uint64_t*>(device_seed);
    p.masks = reinterpret_cast<const uint32_t*>(masks);
    p.lse = reinterpret_cast<float*>(lse);
    p.num_jets = sizes[0];
    p.num_constituents = sizes[1];
    p.num_members = sizes[2];
    p.num_heads = sizes[3];
    p.head_dim = sizes[4];
    p.bias_members = sizes[5];
    p.num_pairs = sizes[6];
    p.dtype = static_cast<DType>(dtype);
    p.scale = scale;
    p.seed = seed;
    p.threshold = threshold;
    return p;
}

}  // namespace

void bind_constituent_attention(py::module_& m) {
    m.def("constituent_attention_plan_bytes", &attention_plan_bytes);
    m.def("constituent_attention_workspace_bytes", &attention_workspace_bytes);
    m.def("projection_bias_workspace_bytes", &projection_bias_workspace_bytes);
    m.def("attention_adds_projection_bias", &attention_adds_projection_bias);
    m.def(
        "constituent_attention_plan",
        [](uintptr_t offsets, uintptr_t plan, uintptr_t report, int64_t num_jets, int64_t num_constituents,
           int64_t most_pairs, int64_t most_tiles, uintptr_t stream) {
            py::gil_scoped_release release;
            plan_attention({reinterpret_cast<const int64_t*>(offsets), num_jets, num_constituents, most_pairs,
                            most_tiles, reinterpret_cast<void*>(plan), reinterpret_cast<int64_t*>(report)},
                           reinterpret_cast<void*>(stream));
        },
        "What the kernels need to know about a batch.");
    m.def(
        "constituent_attention",
        [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t bias, uintptr_t plan, uintptr_t device_seed,
           uintptr_t masks, uintptr_t projection_bias, uintptr_t out, uintptr_t lse, const Strides& strides,
           const Sizes& sizes, int dtype, float scale, uint64_t seed, uint32_t threshold,
           int64_t projection_bias_stride, uintptr_t stream) {
            AttentionParams p = common(bias, plan, device_seed, masks, lse, sizes, dtype, scale, seed, threshold);
            p.q = rows_of(q, strides, 0);
            p.k = rows_of(k, strides, 1);
            p.v = rows_of(v, strides, 2);
            p.out = rows_of(out, strides, 3);
            p.projection_bias.values = reinterpret_cast<const void*>(projection_bias);
            p.projection_bias.stride = projection_bias_stride;
            py::gil_scoped_release release;
            constituent_attention_forward(p, reinterpret_cast<void*>(stream));
        },
        "Forward; strides of q, k, v, out.");
    m.def(
        "constituent_attention_backward",
        [](uintptr_t grad_out, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t bias, uintptr_t lse, uintptr_t plan,
           uintptr_t device_seed, uintptr_t masks, uintptr_t projection_bias, uintptr_t offsets, uintptr_t dq,
           uintptr_t dk, uintptr_t dv, uintptr_t dbias, uintptr_t workspace, uintptr_t projection_bias_grad,
           uintptr_t projection_bias_workspace, const Strides& strides, const Sizes& sizes, int dtype, float scale,
           uint64_t seed, uint32_t threshold, int64_t projection_bias_stride, int64_t projection_bias_grad_stride,
           uintptr_t stream) {
            AttentionParams p = common(bias, plan, device_seed, masks, lse, sizes, dtype, scale, seed, threshold);
            p.grad_out = rows_of(grad_out, strides, 0);
            p.q = rows_of(q, strides, 1);
            p.k = rows_of(k, strides, 2);
            p.v = rows_of(v, strides, 3);
            p.dq = rows_of(dq, strides, 4);
            p.dk = rows_of(dk, strides, 5);
            p.dv = rows_of(dv, strides, 6);
            p.dbias = reinterpret_cast<float*>(dbias);
            p.workspace = reinterpret_cast<void*>(workspace);
            p.offsets = reinterpret_cast<const int64_t*>(offsets);
            p.projection_bias = {reinterpret_cast<const void*>(projection_bias), projection_bias_stride,
                                 reinterpret_cast<float*>(projection_bias_grad), projection_bias_grad_stride,
                                 reinterpret_cast<float*>(projection_bias_workspace)};
            py::gil_scoped_release release;
            constituent_attention_backward(p, reinterpret_cast<void*>(stream));
        },
        "Backward; strides of grad_out, q, k, v, dq, dk, dv.");
}

}  // namespace kdfast::gpu
