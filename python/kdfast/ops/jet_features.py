"""The seven features of a constituent, relative to the axis of its jet.

Per jet: p⃗ = Σ (pT cos φ, pT sin φ, pT sinh η), E_jet = Σ E over its constituents; pT_jet = |p⃗_T|, η_jet = asinh(p_z /
pT_jet), φ_jet = atan2(p_y, p_x). Per constituent, with Δφ wrapped to [−π, π]:
    Δη = η − η_jet,  Δφ = φ − φ_jet,  ln pT,  ln E,  ln(pT / pT_jet),  ln(E / E_jet),  ΔR = √(Δη² + Δφ²)
Then what is not finite (pT = 0, …) becomes 0, and everything is clipped to ±20. Where the transverse momenta cancel,
pT_jet ≤ 1e-6 Σ pT, a jet has no axis, and Δη, Δφ, ΔR and ln(pT / pT_jet) are 0.
"""

import torch
from torch import Tensor

from kdfast.ops import backend
from kdfast.ops.arrays import check_constituents

__all__ = ["jet_features", "jet_features_reference"]

NUM_FEATURES = 7
CLIP = 20.0
NO_AXIS = 1e-6  # share of the summed |pT| that the sum must have for a direction to mean something


def jet_features(constituents: Tensor, offsets: Tensor, *, checked: bool = False) -> Tensor:
    """[M, 7] features of packed constituents, in their dtype.

    constituents: [M, 4] float32 or float64, pt (GeV), eta, phi (rad), energy (GeV). offsets: [B + 1] int64.
    checked: they are of PackedJets, which have checked them: of one jet the check takes half of the time.
    Raises DataError for shapes that don't fit. No gradients.
    """
    if not checked:
        check_constituents(constituents, offsets)
    return torch.ops.kdfast.jet_features.default(constituents, offsets)


def jet_features_reference(constituents: Tensor, offsets: Tensor) -> Tensor:
    """The specification of `jet_features`, computed in the constituents' dtype."""
    pt, eta, phi, energy = constituents.unbind(1)
    jet = torch.repeat_interleave(offsets.diff())
    terms = torch.stack([pt * torch.cos(phi), pt * torch.sin(phi), pt * torch.sinh(eta), energy, pt], dim=1)
    sums = terms.new_zeros((len(offsets) - 1, 5)).index_add_(0, jet, terms)
    px, py, pz, jet_energy, scalar_pt = sums.unbind(1)
    jet_pt = torch.hypot(px, py)
    jet_pt = torch.where(jet_pt > NO_AXIS * scalar_pt, jet_pt, torch.nan)
    jet_eta = torch.asinh(pz / jet_pt)
    jet_phi = torch.atan2(py, px)

    d_eta = eta - jet_eta[jet]
    d_phi = phi - jet_phi[jet]
    d_phi = d_phi - 2.0 * torch.pi * torch.round(d_phi * (0.5 / torch.pi)) + 0.0 * jet_pt[jet]  # NaN without an axis
    columns = [
        d_eta,
        d_phi,
        torch.log(pt),
        torch.log(energy),
        torch.log(pt / jet_pt[jet]),
        torch.log(energy / jet_energy[jet]),
        torch.hypot(d_eta, d_phi),
    ]
    features = torch.stack(columns, dim=1)
    return torch.where(features.isfinite(), features, 0.0).clamp(-CLIP, CLIP)


def _jet_features(constituents: Tensor, offsets: Tensor) -> Tensor:
    kernel_takes_it = constituents.dtype == torch.float32
    if not kernel_takes_it or backend.choose("jet_features", constituents.device.type) == "reference":
        return jet_features_reference(constituents, offsets)
    constituents = constituents.contiguous()
    offsets = offsets.contiguous()
    features = constituents.new_empty((len(constituents), NUM_FEATURES))
    jets = len(offsets) - 1
    threads = torch.get_num_threads()
    module = backend.cpu_module()
    module.jet_features(constituents.data_ptr(), offsets.data_ptr(), jets, features.data_ptr(), threads)
    return features


_library = torch.library.Library("kdfast", "FRAGMENT")
_library.define("jet_features(Tensor constituents, Tensor offsets) -> Tensor")
_library.impl("jet_features", _jet_features, "CompositeExplicitAutograd")


def _fake(constituents: Tensor, offsets: Tensor) -> Tensor:
    return constituents.new_empty((constituents.shape[0], NUM_FEATURES))


torch.library.register_fake("kdfast::jet_features", _fake, lib=_library)
