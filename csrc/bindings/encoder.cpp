#include "encoder/encoder.h"

#include <pybind11/pybind11.h>

#include <new>

#include "adamw/adamw.h"
#include "encoder/parameters.h"

namespace py = pybind11;

namespace kdfast {
namespace {

// One model's training state, by address: flat parameters and what belongs to them. It owns the step's memory.
struct Encoder {
    EncoderSizes sizes;
    float *parameters, *running;
    bool bf16;
    Arena memory;

    JetBatch batch(uintptr_t features, uintptr_t offsets, uintptr_t jets, int64_t first, int64_t num_jets) const {
        return {reinterpret_cast<const float*>(features), reinterpret_cast<const int64_t*>(offsets),
                reinterpret_cast<const int64_t*>(jets), first, num_jets};
    }
};

}  // namespace

void bind_encoder(py::module_& m) {
    py::class_<Encoder>(m, "Encoder", "JetTransformer on flat parameters: training step and evaluation.")
        .def(py::init([](int64_t features, int64_t width, int64_t layers, int64_t heads, int64_t ffn,
                         int64_t pooling_heads, int64_t classes, uintptr_t parameters, uintptr_t running, bool bf16) {
            return new Encoder{{features, width, layers, heads, ffn, pooling_heads, classes},
                               reinterpret_cast<float*>(parameters),
                               reinterpret_cast<float*>(running),
                               bf16,
                               {}};
        }))
        .def(
            "gradient",
            [](Encoder& e, uintptr_t gradient, uintptr_t features, uintptr_t offsets, uintptr_t jets, int64_t num_jets,
               uintptr_t labels, uintptr_t weights, uintptr_t teacher_logits, uintptr_t teacher_entropy,
               uintptr_t teacher_maximum, double temperature, double alpha, double attention_weight,
               uint64_t dropout_seed, uint32_t threshold, int num_threads, uintptr_t seconds) {
                double terms[4] = {};
                Outcome outcome;
                {
                    py::gil_scoped_release release;
                    encoder_step(EncoderStepParams{e.sizes,
                                                   e.batch(features, offsets, jets, 0, num_jets),
                                                   e.parameters,
                                                   reinterpret_cast<float*>(gradient),
                                                   e.running,
                                                   reinterpret_cast<const float*>(labels),
                                                   reinterpret_cast<const float*>(weights),
                                                   reinterpret_cast<const float*>(teacher_logits),
                                                   reinterpret_cast<const float*>(teacher_entropy),
                                                   reinterpret_cast<const float*>(teacher_maximum),
                                                   temperature,
                                                   alpha,
                                                   attention_weight,
                                                   dropout_seed,
                                                   threshold,
                                                   e.bf16,
                                                   num_threads,
                                                   &e.memory,
                                                   terms,
                                                   reinterpret_cast<double*>(seconds),
                                                   &outcome});
                }
                if (outcome == Outcome::no_memory) throw std::bad_alloc();
                return py::make_tuple(outcome == Outcome::done, terms[0], terms[1], terms[2], terms[3]);
            },
            "Loss, its parts and its gradient for the jets [num_jets] of a view; moves the running statistics. "
            "Addresses (0: none) of contiguous arrays. The first of the result is false where values can't be; "
            "MemoryError "
            "where the activations do not fit.")
        .def(
            "logits",
            [](Encoder& e, uintptr_t features, uintptr_t offsets, int64_t first, int64_t num_jets, int num_threads,
               uintptr_t logits, uintptr_t pooling) {
                Outcome outcome;
                py::gil_scoped_release release;
                encoder_forward(EncoderForwardParams{e.sizes, e.batch(features, offsets, 0, first, num_jets),
                                                     e.parameters, e.running, e.bf16, num_threads, &e.memory,
                                                     reinterpret_cast<float*>(logits),
                                                     reinterpret_cast<float*>(pooling), &outcome});
                if (outcome == Outcome::no_memory) throw std::bad_alloc();
            },
            "Logits, and pooling weights (0: not wanted), of the jets first … first + num_jets − 1 of a view. "
            "MemoryError where the activations do not fit.")
        .def_property_readonly("num_parameters", [](const Encoder& e) { return ParameterMap(e.sizes).total; })
        .def_property_readonly("num_running", [](const Encoder& e) { return ParameterMap(e.sizes).running; })
        .def_property_readonly(
            "memory", [](const Encoder& e) { return e.memory.size(); },
            "Bytes held for activations and sums, without the threads' scratch.");
}

}  // namespace kdfast
