// kdfast._emu: the CUDA kernels on a CPU, for tests; and what watches them.
#include <pybind11/pybind11.h>

#include "bindings/gpu/ops.h"
#include "emulator/bank_conflicts.h"
#include "emulator/guarded_memory.h"
#include "emulator/machine.h"

namespace py = pybind11;

void bind_probe(py::module_&);  // tests/emulator/probe.cu

PYBIND11_MODULE(_emu, m) {
    using namespace kdfast::emulator;
    m.doc() = "The CUDA kernels of kdfast, run on a CPU. For tests.";
    py::register_exception<Error>(m, "EmulatorError", PyExc_RuntimeError);
    m.def(
        "set_seed", [](uint64_t seed) { settings.seed = seed; },
        "0: threads and blocks run in their order; any other number draws another one.");
    m.def(
        "set_compute_capability", [](int capability) { settings.compute_capability = capability; },
        "What kernels' host code is told, e.g. 75 or 90.");
    m.def("start_counting_accesses", start_counting_accesses, "Counts accesses to shared memory, from nothing.");
    m.def(
        "stop_counting_accesses",
        [] {
            counts_accesses = false;
            py::list result;
            for (const AccessCount& c : access_counts())
                result.append(py::make_tuple(at(c.site), c.how == Access::load ? "load" : "store", c.bytes, c.warps,
                                             c.conflicts, c.most));
            return result;
        },
        "Of each place: (source:line, load or store, bytes of a lane, accesses of warps, conflicts, most words of a "
        "bank).");
    py::class_<GuardedMemory>(m, "GuardedMemory", py::buffer_protocol())
        .def(py::init<size_t, bool>(), py::arg("size"), py::arg("at_end"))
        .def("make_read_only", &GuardedMemory::make_read_only)
        .def("is_intact", &GuardedMemory::is_intact)
        .def_buffer([](GuardedMemory& g) {
            return py::buffer_info(static_cast<unsigned char*>(g.data()), static_cast<py::ssize_t>(g.size()));
        });
    kdfast::gpu::bind_ops(m);
    bind_probe(m);
}
