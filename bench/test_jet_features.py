"""The seven features of constituents against vectorised numpy and PyTorch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.ratio import compare
from kdfast.jets.features import features
from kdfast.jets.hlt import emulate_hlt
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import sample


def numpy_features(jets: PackedJets) -> Tensor:
    """Features with numpy, in float32, sums by reduceat (every jet has constituents)."""
    pt, eta, phi, energy = jets.constituents.T
    first, counts = jets.offsets[:-1], jets.counts

    def of_jet(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(x, first)

    px, py, pz, jet_energy = (
        of_jet(pt * np.cos(phi)),
        of_jet(pt * np.sin(phi)),
        of_jet(pt * np.sinh(eta)),
        of_jet(energy),
    )
    jet_pt = np.hypot(px, py)
    d_eta = eta - np.repeat(np.arcsinh(pz / jet_pt), counts)
    d_phi = phi - np.repeat(np.arctan2(py, px), counts)
    d_phi = (d_phi + np.pi) % (2 * np.pi) - np.pi
    ln_pt, ln_energy = np.log(pt), np.log(energy)
    columns = [
        d_eta,
        d_phi,
        ln_pt,
        ln_energy,
        ln_pt - np.repeat(np.log(jet_pt), counts),
        ln_energy - np.repeat(np.log(jet_energy), counts),
        np.sqrt(d_eta**2 + d_phi**2),
    ]
    x = np.stack(columns, axis=1, dtype=np.float32)
    return torch.from_numpy(np.clip(np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0), -20.0, 20.0))


def torch_features(jets: PackedJets) -> Tensor:
    """Features with PyTorch, in float32, on its threads."""
    pt, eta, phi, energy = torch.from_numpy(jets.constituents).unbind(1)
    jet = torch.repeat_interleave(torch.from_numpy(jets.counts))

    def of_jet(x: Tensor) -> Tensor:
        return torch.zeros(len(jets)).index_add_(0, jet, x)

    px, py, pz = of_jet(pt * phi.cos()), of_jet(pt * phi.sin()), of_jet(pt * eta.sinh())
    jet_energy, jet_pt = of_jet(energy), torch.hypot(px, py)
    d_eta = eta - (pz / jet_pt).asinh()[jet]
    d_phi = phi - torch.atan2(py, px)[jet]
    d_phi = (d_phi + torch.pi) % (2 * torch.pi) - torch.pi
    ln_pt, ln_energy = pt.log(), energy.log()
    rel_pt, rel_energy = ln_pt - jet_pt.log()[jet], ln_energy - jet_energy.log()[jet]
    x = torch.stack([d_eta, d_phi, ln_pt, ln_energy, rel_pt, rel_energy, torch.hypot(d_eta, d_phi)], dim=1)
    return x.nan_to_num_(0.0, 0.0, 0.0).clamp_(-20.0, 20.0)


@pytest.mark.parametrize(
    ("name", "plain"), [("numpy", numpy_features), ("PyTorch", torch_features)], ids=["numpy", "PyTorch"]
)
@pytest.mark.parametrize("view", ["offline", "nominal"])
def test_jet_features(benchmark: Any, view: str, name: str, plain: Any) -> None:
    jets = sample() if view == "offline" else emulate_hlt(sample(), view)
    jets = jets[np.flatnonzero(jets.counts)]

    def check(ours: Tensor, plain: Tensor) -> None:
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=2e-5)  # float32 sums on their side

    compare(
        benchmark, ours=lambda: features(jets), plain=lambda: plain(jets), check=check, baseline=f"vectorised {name}"
    )
