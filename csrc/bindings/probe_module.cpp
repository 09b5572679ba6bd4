// kdfast._probe: the shared core of the kernels, for tests and benchmarks (tests/ops/probe.py). Not part of a wheel.
#include "core_probe/core_probe.h"

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "core/philox.h"
#include "core/threads.h"
#include "core/types.h"

namespace py = pybind11;

using namespace kdfast;

PYBIND11_MODULE(_probe, m) {
    m.doc() = "The core that the CPU kernels of kdfast share, with threads of its own. For tests.";
    m.attr("isa") = isa_name(active_isa());
    m.def("apply", [](int function, uintptr_t x, uintptr_t y, uintptr_t rest, int64_t n) {
        core_probe(CoreProbeParams{static_cast<Probe>(function), reinterpret_cast<const void*>(x),
                                   reinterpret_cast<void*>(y), reinterpret_cast<float*>(rest), n});
    });
    // At least `operations` floating-point operations on each of num_threads threads.
    m.def("fma", [](int64_t operations, int num_threads) {
        py::gil_scoped_release release;
        std::atomic<bool> finite{true};
        parallel_for(num_threads, num_threads, [&](int64_t) {
            float sum = 0.0f;
            fma(FmaParams{0.999f, 0.001f, operations, &sum});
            if (!(sum < 1e30f)) finite = false;
        });
        return finite.load();
    });
    m.def("matmul_fp32", [](uintptr_t a, int64_t lda, int64_t rows, uintptr_t b, int64_t row_stride,
                            int64_t column_stride, int64_t k, int64_t n, uintptr_t c, int64_t ldc, int64_t repeats) {
        matmul_fp32(MatmulParams{reinterpret_cast<const float*>(a), lda, rows, reinterpret_cast<const float*>(b),
                                 row_stride, column_stride, k, n, reinterpret_cast<float*>(c), ldc, repeats});
    });
    m.def("matmul_bf16", [](uintptr_t a, int64_t lda, int64_t rows, uintptr_t b, int64_t row_stride,
                            int64_t column_stride, uintptr_t row_scale, int64_t k, int64_t n, uintptr_t c,
                            uintptr_t rounded, int64_t ldc, int64_t repeats) {
        matmul_bf16(MatmulBf16Params{reinterpret_cast<const bf16*>(a), lda, rows, reinterpret_cast<const float*>(b),
                                     row_stride, column_stride, reinterpret_cast<const float*>(row_scale), k, n,
                                     reinterpret_cast<float*>(c), reinterpret_cast<bf16*>(rounded), ldc, repeats});
    });
    m.def("outer_bf16", [](uintptr_t dy, int64_t ldy, int64_t num_out, uintptr_t x, int64_t ldx, int64_t num_in,
                           int64_t rows, uintptr_t gradient) {
        outer_bf16(OuterBf16Params{reinterpret_cast<const bf16*>(dy), ldy, num_out, reinterpret_cast<const bf16*>(x),
                                   ldx, num_in, rows, reinterpret_cast<float*>(gradient)});
    });
    // One element at a time, as kernels treat what is left over: codes of DType.
    m.def("to_float", [](int dtype, uint16_t bits) {
        return static_cast<DType>(dtype) == DType::bf16 ? to_float(bf16{bits}) : to_float(f16{bits});
    });
    m.def("from_float", [](int dtype, float x) {
        return static_cast<DType>(dtype) == DType::bf16 ? from_float<bf16>(x).bits : from_float<f16>(x).bits;
    });
    m.def("philox4x32", [](uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
        const Philox4 r = philox4x32(key, c0, c1, c2, c3);
        return py::make_tuple(r.v[0], r.v[1], r.v[2], r.v[3]);
    });
    m.def("splitmix64", [](uint64_t x) { return splitmix64(x); });
    m.def("dropout_keep", [](uint64_t key, double p, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t column) {
        return dropout_keep(philox4x32(key, c0, c1, c2, column / 8), column, dropout_threshold(p));
    });
    // Runs num_tasks tasks on as many threads, each of which counts itself and waits until `total` have (of this call
    // and of others that share the counter, an int32). False where that took longer than `seconds`.
    m.def("meet", [](uintptr_t counter, int num_tasks, int total, double seconds) {
        py::gil_scoped_release release;
        std::atomic_ref<int32_t> present(*reinterpret_cast<int32_t*>(counter));
        std::atomic<bool> met{true};
        const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
        parallel_for(num_tasks, num_tasks, [&](int64_t) {
            ++present;
            while (present < total && met) {
                std::this_thread::yield();
                if (std::chrono::steady_clock::now() > end) met = false;
            }
        });
        return met.load();
    });
    // How often each of num_tasks tasks ran (as bytes); with inner > 0 each first runs a parallel_for of its own.
    m.def("parallel_for", [](int64_t num_tasks, int num_threads, int64_t inner) {
        const auto runs = std::make_unique<std::atomic<unsigned char>[]>(static_cast<size_t>(num_tasks));
        {
            py::gil_scoped_release release;
            parallel_for(num_tasks, num_threads, [&](int64_t i) {
                std::atomic<int64_t> done{0};
                parallel_for(inner, num_threads, [&](int64_t) { ++done; });
                if (done == inner) ++runs[static_cast<size_t>(i)];
            });
        }
        std::string counts;
        for (int64_t i = 0; i < num_tasks; ++i)
            counts.push_back(static_cast<char>(runs[static_cast<size_t>(i)].load()));
        return py::bytes(counts);
    });
}
