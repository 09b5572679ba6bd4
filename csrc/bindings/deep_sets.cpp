#include "deep_sets/deep_sets.h"

#include <pybind11/pybind11.h>

#include <new>

namespace py = pybind11;

namespace kdfast {
namespace {

// A model's parameters by address. It owns the step's memory.
struct DeepSets {
    DeepSetsSizes sizes;
    float* parameters;
    bool bf16;
    Arena memory;
};

}  // namespace

void bind_deep_sets(py::module_& m) {
    py::class_<DeepSets>(m, "DeepSets", "DeepSets on flat parameters: training step and evaluation.")
        .def(py::init([](int64_t features, int64_t width, int64_t layers, int64_t head_width, int64_t head_layers,
                         int64_t classes, uintptr_t parameters, bool bf16) {
            return new DeepSets{{features, width, layers, head_width, head_layers, classes},
                                reinterpret_cast<float*>(parameters),
                                bf16,
                                {}};
        }))
        .def(
            "gradient",
            [](DeepSets& d, uintptr_t gradient, uintptr_t features, uintptr_t offsets, uintptr_t jets, int64_t num_jets,
               uintptr_t labels, uintptr_t weights, uintptr_t teacher_logits, double temperature, double alpha,
               int num_threads) {
                double terms[3] = {};
                Outcome outcome;
                {
                    py::gil_scoped_release release;
                    deep_sets_step(DeepSetsStepParams{
                        d.sizes,
                        {reinterpret_cast<const float*>(features), reinterpret_cast<const int64_t*>(offsets),
                         reinterpret_cast<const int64_t*>(jets), 0, num_jets},
                        d.parameters,
                        reinterpret_cast<float*>(gradient),
                        reinterpret_cast<const float*>(labels),
                        reinterpret_cast<const float*>(weights),
                        reinterpret_cast<const float*>(teacher_logits),
                        temperature,
                        alpha,
                        d.bf16,
                        num_threads,
                        &d.memory,
                        terms,
                        &outcome});
                }
                if (outcome == Outcome::no_memory) throw std::bad_alloc();
                return py::make_tuple(outcome == Outcome::done, terms[0], terms[1], terms[2], 0.0);
            },
            "As Encoder.gradient; the last of the parts is 0.")
        .def(
            "logits",
            [](DeepSets& d, uintptr_t features, uintptr_t offsets, int64_t first, int64_t num_jets, int num_threads,
               uintptr_t logits) {
                Outcome outcome;
                py::gil_scoped_release release;
                deep_sets_forward(
                    DeepSetsForwardParams{d.sizes,
                                          {reinterpret_cast<const float*>(features),
                                           reinterpret_cast<const int64_t*>(offsets), nullptr, first, num_jets},
                                          d.parameters,
                                          d.bf16,
                                          num_threads,
                                          &d.memory,
                                          reinterpret_cast<float*>(logits),
                                          &outcome});
                if (outcome == Outcome::no_memory) throw std::bad_alloc();
            },
            "As Encoder.logits.")
        .def_property_readonly("num_parameters", [](const DeepSets& d) { return deep_sets_parameters(d.sizes); })
        .def_property_readonly(
            "memory", [](const DeepSets& d) { return d.memory.size(); },
            "Bytes held for packed layers and sums, without the threads' scratch.");
}

}  // namespace kdfast
