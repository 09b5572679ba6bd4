"""Emulation of a trigger's view of jets: pT threshold → merging → smearing → efficiency loss.

Per jet, with constituents (pT, η, φ, E) in falling pT and positions in float64:
    threshold   pT ≥ t survives (t rounded to the constituents' dtype). Merging only adds pT, so this comes once.
    merging     j = 0, 1, … in falling pT: of the earlier constituents that remain, taken in the same order (hence
                "the hardest such" by its pT before merging), the first within ΔR < R of j takes it in:
                w = pT_j / (pT_i + pT_j);  η_i += w (η_j − η_i);  φ_i += arg(1 − w + w e^{i(φ_j − φ_i)});
                pT_i += pT_j;  E_i += E_j.  R = 0 merges nothing.
    smearing    unless σ_pT = σ_angle = 0: pT *= clip(1 + σ_pT z₂, 0.5, 1.5);  η += σ_angle z₀;  φ += σ_angle z₁;
                E = pT·cosh η.
    loss        dropped where u < p.
    output      rounded to the constituents' dtype, φ in [−π, π], pT and E at most the largest finite number, in falling
                pT (equal ones in their old order), so that a later cut at N constituents keeps the hardest.

Random numbers: Philox with the counter (index low, index high, constituent, effect); effect 0 gives z₀, z₁
(words 0, 1) and z₂ (words 2, 3), effect 1 gives u (word 0). "Constituent" is the place in the falling order
of the jet as given. Threshold and merging take constituents away but renumber none: another threshold or
radius leaves the random numbers of all others as they are.
"""

from typing import Any

import torch
from torch import Tensor

from kdfast.errors import DataError
from kdfast.ops import backend
from kdfast.ops.arrays import check_constituents, check_device
from kdfast.ops.philox import normal_pair, philox4x32, uniform_open

__all__ = ["hlt_emulation", "hlt_emulation_reference"]

# effects, the last word of the counter
SMEAR = 0
LOSS = 1
_REFERENCE_CHUNK = 2048  # jets that the reference pads at once


def hlt_emulation(
    constituents: Tensor,
    offsets: Tensor,
    index: Tensor,
    *,
    pt_threshold: float,
    merge_radius: float,
    pt_resolution: float,
    angular_resolution: float,
    loss: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(constituents [M', 4], offsets [B + 1], removed [3]) of the jets as a trigger sees them.

    constituents: [M, 4] float32 or float64, pt (GeV), eta, phi (rad), energy (GeV), in falling pt within a
    jet. offsets: [B + 1] int64. index: [B] int64, keys a jet's random numbers. seed: 64 bits
    (philox.derive_seed). pt_threshold (GeV), merge_radius (rad), pt_resolution (relative), angular_resolution
    (rad): ≥ 0 and finite. loss: probability. removed: int64, constituents below the threshold, merged into
    another, and lost. Raises DataError for shapes that don't fit, values that are not finite, pt < 0, or
    rising pt. No gradients.
    """
    check_constituents(constituents, offsets)
    if index.dtype != torch.int64 or index.shape != (len(offsets) - 1,):
        raise DataError(f"must be int64 [{len(offsets) - 1}], is {index.dtype} {list(index.shape)}", where="index")
    check_device(constituents, index=index)
    settings = (pt_threshold, merge_radius, pt_resolution, angular_resolution, loss)
    return torch.ops.kdfast.hlt_emulation.default(constituents, offsets, index, *settings, seed)


def hlt_emulation_reference(
    constituents: Tensor,
    offsets: Tensor,
    index: Tensor,
    pt_threshold: float,
    merge_radius: float,
    pt_resolution: float,
    angular_resolution: float,
    loss: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of `hlt_emulation`, in float64 on padded jets."""
    _check_values(constituents, offsets)
    settings = (pt_threshold, merge_radius, pt_resolution, angular_resolution, loss)
    parts = []
    for first in range(0, len(index), _REFERENCE_CHUNK):
        edges = offsets[first : first + _REFERENCE_CHUNK + 1]
        part = constituents[int(edges[0]) : int(edges[-1])]
        parts.append(_emulate(part, edges - edges[0], index[first : first + _REFERENCE_CHUNK], settings, seed))
    if not parts:
        return torch.empty_like(constituents), torch.zeros_like(offsets), offsets.new_zeros(3)
    rows, counts, removed = zip(*parts, strict=True)
    edges = torch.cat([offsets.new_zeros(1), torch.cat(counts).cumsum(0)])
    return torch.cat(rows), edges, torch.stack(removed).sum(0)


def _emulate(
    constituents: Tensor, offsets: Tensor, index: Tensor, settings: tuple[float, ...], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(constituents, counts [B], removed [3]) of a few jets."""
    pt_threshold, merge_radius, pt_resolution, angular_resolution, loss = settings
    counts = offsets.diff()
    place = torch.arange(int(counts.max()), device=constituents.device)
    valid = place < counts[:, None]
    x = constituents.new_zeros((*valid.shape, 4))
    x[valid] = constituents
    kept = valid & (x[..., 0] >= torch.tensor(pt_threshold, dtype=x.dtype, device=x.device))
    below = valid.sum() - kept.sum()

    pt, eta, phi, energy = x.double().unbind(-1)
    phi = _wrap(phi)
    if merge_radius > 0:
        _merge(pt, eta, phi, energy, kept, merge_radius)
    merged = valid.sum() - below - kept.sum()

    low = index[:, None] & 0xFFFFFFFF
    high = (index[:, None] >> 32) & 0xFFFFFFFF
    if pt_resolution > 0 or angular_resolution > 0:
        bits = philox4x32(seed, low, high, place, torch.full_like(place, SMEAR))
        z_eta, z_phi = normal_pair(bits[0], bits[1])
        z_pt, _ = normal_pair(bits[2], bits[3])
        pt = pt * (1.0 + pt_resolution * z_pt).clamp(0.5, 1.5)
        eta = eta + angular_resolution * z_eta
        phi = _wrap(phi + angular_resolution * z_phi)
        energy = torch.where(pt > 0, pt * torch.cosh(eta), 0.0)
    lost = kept & (uniform_open(philox4x32(seed, low, high, place, torch.full_like(place, LOSS))[0]) < loss)
    kept &= ~lost

    limit = torch.finfo(x.dtype).max
    x = torch.stack([pt.clamp(max=limit), eta, phi, energy.clamp(-limit, limit)], dim=-1).to(x.dtype)
    order = torch.where(kept, x[..., 0], -1.0).sort(dim=1, descending=True, stable=True).indices
    x = x.gather(1, order[..., None].expand_as(x))
    counts = kept.sum(1)
    return x[place < counts[:, None]], counts, torch.stack([below, merged, lost.sum()])


def _merge(pt: Tensor, eta: Tensor, phi: Tensor, energy: Tensor, kept: Tensor, radius: float) -> None:
    """Merges in place: [B, N] float64, kept [B, N] bool."""
    for j in range(1, pt.shape[1]):
        d_eta = eta[:, j, None] - eta[:, :j]
        d_phi = _wrap(phi[:, j, None] - phi[:, :j])
        near = kept[:, :j] & kept[:, j, None] & (d_eta**2 + d_phi**2 < radius**2)
        jet = near.any(dim=1).nonzero()[:, 0]
        i = near[jet].int().argmax(dim=1)  # the first that is near
        total = pt[jet, i] + pt[jet, j]
        w = torch.where(total > 0, pt[jet, j] / total, 0.0)
        turn = torch.atan2(w * torch.sin(d_phi[jet, i]), (1.0 - w) + w * torch.cos(d_phi[jet, i]))
        eta[jet, i] += w * d_eta[jet, i]
        phi[jet, i] = _wrap(phi[jet, i] + turn)
        pt[jet, i] = total
        energy[jet, i] += energy[jet, j]
        kept[jet, j] = False


def _wrap(phi: Tensor) -> Tensor:
    """An angle brought to [−π, π]; one that lies inside stays exactly as it is."""
    return phi - 2.0 * torch.pi * torch.round(phi * (0.5 / torch.pi))


def _check_values(constituents: Tensor, offsets: Tensor) -> None:
    """Raises DataError that names the first jet whose constituents are not finite, of pt ≥ 0 and in falling pt."""
    pt = constituents[:, 0]
    jet = torch.repeat_interleave(offsets.diff())
    rising = torch.zeros_like(pt, dtype=torch.bool)
    rising[1:] = (pt[1:] > pt[:-1]) & (jet[1:] == jet[:-1])
    for bad, what, hint in (
        (~constituents.isfinite().all(dim=1), "has a value that is not finite", "remove the jet"),
        (pt < 0, "has a negative pt", "remove the jet"),
        (rising, "is not in falling pt", "sort each jet's constituents by falling pt"),
    ):
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            number = int(jet[row])
            where = f"constituent {row - int(offsets[number])} of jet {number}"
            raise DataError(what, where=where, hint=hint)


def _hlt_emulation(
    constituents: Tensor, offsets: Tensor, index: Tensor, *settings_and_seed: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *settings, seed = settings_and_seed
    kernel_takes_it = constituents.dtype == torch.float32
    if not kernel_takes_it or backend.choose("hlt_emulation", constituents.device.type) == "reference":
        return hlt_emulation_reference(constituents, offsets, index, *settings_and_seed)
    module = backend.cpu_module()
    threads = torch.get_num_threads()
    jets = len(index)
    constituents = constituents.contiguous()
    offsets = offsets.contiguous()
    index = index.contiguous()
    scratch = torch.empty_like(constituents)
    edges = torch.empty_like(offsets)
    removed = offsets.new_empty(3)
    inputs = (constituents.data_ptr(), offsets.data_ptr(), index.data_ptr(), jets)
    outputs = (scratch.data_ptr(), edges.data_ptr(), removed.data_ptr())
    if module.hlt_emulation(*inputs, *settings, seed & 0xFFFFFFFFFFFFFFFF, *outputs, threads) >= 0:
        _check_values(constituents, offsets)  # raises
    result = constituents.new_empty((int(edges[-1]), 4))
    module.hlt_compact(scratch.data_ptr(), offsets.data_ptr(), edges.data_ptr(), jets, result.data_ptr(), threads)
    return result, edges, removed


_library = torch.library.Library("kdfast", "FRAGMENT")
_library.define(
    "hlt_emulation(Tensor constituents, Tensor offsets, Tensor index, float pt_threshold, float merge_radius, "
    "float pt_resolution, float angular_resolution, float loss, int seed) -> (Tensor, Tensor, Tensor)"
)
_library.impl("hlt_emulation", _hlt_emulation, "CompositeExplicitAutograd")


def _fake(
    constituents: Tensor, offsets: Tensor, index: Tensor, *settings: float | int
) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    return constituents.new_empty((total, 4)), torch.empty_like(offsets), offsets.new_empty(3)


torch.library.register_fake("kdfast::hlt_emulation", _fake, lib=_library)
