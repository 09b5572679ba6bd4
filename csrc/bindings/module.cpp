// kdfast._cpu: the list of what is bound. Each op has a file of its own beside this one.
#include <pybind11/pybind11.h>

#include "core/isa.h"

namespace py = pybind11;

namespace kdfast {
void bind_adamw(py::module_&);
void bind_constituent_attention(py::module_&);
void bind_deep_sets(py::module_&);
void bind_distill_loss(py::module_&);
void bind_dropout(py::module_&);
void bind_encoder(py::module_&);
void bind_hlt_emulation(py::module_&);
void bind_jet_features(py::module_&);
void bind_pack_constituents(py::module_&);
}  // namespace kdfast

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of kdfast. Private: use kdfast.ops, which checks its arguments.";
    m.attr("isa") = kdfast::isa_name(kdfast::active_isa());
    py::list isas;
    for (auto isa : kdfast::kIsas)
        if (kdfast::has_isa(isa)) isas.append(kdfast::isa_name(isa));
    m.attr("available_isas") = isas;
#if defined(__VERSION__)
    m.attr("compiler") = __VERSION__;
#endif
    kdfast::bind_adamw(m);
    kdfast::bind_constituent_attention(m);
    kdfast::bind_deep_sets(m);
    kdfast::bind_distill_loss(m);
    kdfast::bind_dropout(m);
    kdfast::bind_encoder(m);
    kdfast::bind_hlt_emulation(m);
    kdfast::bind_jet_features(m);
    kdfast::bind_pack_constituents(m);
}
