"""HLT emulation of the bundled jets against a plain numpy emulation, jet by jet."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.ratio import compare
from kdfast.jets.hlt import HLT_PRESETS, HLTConfig, emulate_hlt
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import sample

PLAIN_JETS = 100  # of OUR_JETS: the plain emulation is slow


def plain_jet(x: NDArray[Any], config: HLTConfig, rng: np.random.Generator) -> NDArray[Any]:
    """One jet's constituents [n, 4] as a trigger sees them."""
    x = x[x[:, 0] >= config.pt_threshold]
    pt, eta, phi, energy = x.astype(np.float64).T

    # Merge into the hardest constituent within the radius; positions so far stand in the first `kept` places.
    kept = 0
    for j in range(len(pt)):
        d_eta = eta[:kept] - eta[j]
        d_phi = (phi[:kept] - phi[j] + np.pi) % (2 * np.pi) - np.pi
        near = np.flatnonzero(d_eta**2 + d_phi**2 < config.merge_radius**2)
        if len(near):
            i = near[0]
            total = pt[i] + pt[j]
            eta[i] = (pt[i] * eta[i] + pt[j] * eta[j]) / total
            sin = pt[i] * np.sin(phi[i]) + pt[j] * np.sin(phi[j])
            cos = pt[i] * np.cos(phi[i]) + pt[j] * np.cos(phi[j])
            phi[i] = np.arctan2(sin, cos)
            pt[i] = total
            energy[i] += energy[j]
        else:
            pt[kept], eta[kept], phi[kept], energy[kept] = pt[j], eta[j], phi[j], energy[j]
            kept += 1
    pt, eta, phi, energy = pt[:kept], eta[:kept], phi[:kept], energy[:kept]

    if config.pt_resolution > 0 or config.angular_resolution > 0:
        pt = pt * np.clip(rng.normal(1.0, config.pt_resolution, kept), 0.5, 1.5)
        eta = eta + rng.normal(0.0, config.angular_resolution, kept)
        phi = phi + rng.normal(0.0, config.angular_resolution, kept)
        phi = (phi + np.pi) % (2 * np.pi) - np.pi
        energy = pt * np.cosh(eta)
    seen = np.stack([pt, eta, phi, energy], axis=1)[rng.random(kept) >= config.loss]
    return seen[np.argsort(-seen[:, 0], kind="stable")].astype(np.float32)


def plain_emulation(jets: PackedJets, config: HLTConfig) -> list[NDArray[Any]]:
    rng = np.random.default_rng(0)
    edges = jets.offsets
    return [plain_jet(jets.constituents[edges[b] : edges[b + 1]], config, rng) for b in range(len(jets))]


def same_without_chance(jets: PackedJets, config: HLTConfig) -> None:
    """Threshold and merging have no random numbers: both sides must find the same constituents."""
    config = HLTConfig(config.pt_threshold, config.merge_radius, 0.0, 0.0, 0.0)
    ours, plain = emulate_hlt(jets, config), plain_emulation(jets, config)
    np.testing.assert_array_equal(ours.counts, [len(x) for x in plain])
    np.testing.assert_allclose(ours.constituents, np.concatenate(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", ["mild", "nominal", "severe"])
def test_hlt_emulation(benchmark: Any, preset: str) -> None:
    jets, config = sample(), HLT_PRESETS[preset]
    some = jets[:: len(jets) // PLAIN_JETS][:PLAIN_JETS]
    same_without_chance(some, config)

    def check(ours: PackedJets, plain: list[NDArray[Any]]) -> None:
        """The same jets, smeared by other random numbers: number and summed pT agree on average."""
        view = ours[:: len(jets) // PLAIN_JETS][:PLAIN_JETS]
        left = sum(len(x) for x in plain)
        assert abs(len(view.constituents) - left) < 6 * np.sqrt(2 * config.loss * left)
        ratio = view.constituents[:, 0].sum() / sum(x[:, 0].sum() for x in plain)
        assert abs(ratio - 1) < 0.05

    compare(
        benchmark,
        ours=lambda: emulate_hlt(jets, config),
        plain=lambda: plain_emulation(some, config),
        check=check,
        floor=300.0 if preset == "nominal" else None,
        aim=500.0 if preset == "nominal" else None,
        plain_work=len(some) / len(jets),
        baseline="numpy, jet by jet",
    )
