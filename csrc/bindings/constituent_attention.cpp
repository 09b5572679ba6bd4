#include "constituent_attention/constituent_attention.h"

#include <pybind11/pybind11.h>

#include <new>

#include "core/offsets.h"

namespace py = pybind11;

namespace kdfast {
namespace {

// (address, strides of member, row and head), as ops/constituent_attention.py passes a tensor [K, M, H, d].
AttentionRows rows_of(const py::tuple& tensor) {
    return {reinterpret_cast<void*>(tensor[0].cast<uintptr_t>()), tensor[1].cast<int64_t>(), tensor[2].cast<int64_t>(),
            tensor[3].cast<int64_t>()};
}

// sizes: (jets, constituents, members, heads, head_dim, members of the bias).
AttentionParams common(const py::tuple& q, const py::tuple& k, const py::tuple& v, uintptr_t lse, uintptr_t bias,
                       uintptr_t offsets, const py::tuple& sizes, int dtype, float scale, uint64_t seed,
                       uint32_t threshold, int num_threads) {
    AttentionParams p{};
    p.q = rows_of(q);
    p.k = rows_of(k);
    p.v = rows_of(v);
    p.lse = reinterpret_cast<float*>(lse);
    p.bias = reinterpret_cast<const float*>(bias);
    p.offsets = reinterpret_cast<const int64_t*>(offsets);
    p.num_jets = sizes[0].cast<int64_t>();
    p.num_constituents = sizes[1].cast<int64_t>();
    p.num_members = sizes[2].cast<int64_t>();
    p.num_heads = sizes[3].cast<int64_t>();
    p.head_dim = sizes[4].cast<int64_t>();
    p.bias_members = sizes[5].cast<int64_t>();
    p.dtype = static_cast<DType>(dtype);
    p.scale = scale;
    p.seed = seed;
    p.threshold = threshold;
    p.num_threads = num_threads;
    check_offsets(p.offsets, p.num_jets, p.num_constituents);
    return p;
}

// Throws where memory is lacking.
void run(void (*kernel)(const AttentionParams&), AttentionParams& p) {
    bool no_memory = false;
    p.no_memory = &no_memory;
    {
        py::gil_scoped_release release;
        kernel(p);
    }
    if (no_memory) throw std::bad_alloc();
}

}  // namespace

void bind_constituent_attention(py::module_& m) {
    m.def("constituent_attention_forward", [](const py::tuple& q, const py::tuple& k, const py::tuple& v,
                                              const py::tuple& out, uintptr_t lse, uintptr_t bias, uintptr_t offsets,
                                              const py::tuple& sizes, int dtype, float scale, uint64_t seed,
                                              uint32_t threshold, int num_threads) {
        AttentionParams p = common(q, k, v, lse, bias, offsets, sizes, dtype, scale, seed, threshold, num_threads);
        p.out = rows_of(out);
        run(constituent_attention_forward, p);
    });
    m.def(
        "constituent_attention_backward",
        [](const py::tuple& grad_out, const py::tuple& q, const py::tuple& k, const py::tuple& v, const py::tuple& dq,
           const py::tuple& dk, const py::tuple& dv, uintptr_t dbias, uintptr_t lse, uintptr_t bias, uintptr_t offsets,
           const py::tuple& sizes, int dtype, float scale, uint64_t seed, uint32_t threshold, int num_threads) {
            AttentionParams p = common(q, k, v, lse, bias, offsets, sizes, dtype, scale, seed, threshold, num_threads);
            p.grad_out = rows_of(grad_out);
            p.dq = rows_of(dq);
            p.dk = rows_of(dk);
            p.dv = rows_of(dv);
            p.dbias = reinterpret_cast<float*>(dbias);
            run(constituent_attention_backward, p);
        });
}

}  // namespace kdfast
