"""Top and QCD jets from Pythia 8: the physics of `kdfast generate`, and what its worker processes run.

Only those processes load Pythia, which is under the GPL.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.files import write_atomically

__all__ = ["CLASSES", "PYTHIA_SETTINGS", "SELECTION", "begin_worker", "make_chunk", "pt_bins", "round_mantissa",
           "write_chunk"]  # fmt: skip

PT_EDGES = np.linspace(450.0, 1200.0, 16)  # GeV
PT_POWER = 4.5  # both classes follow dN/dpT ∝ pT^−4.5 from bin to bin
MAX_ETA = 2.0
RADIUS = 1.0
MAX_CONSTITUENTS = 200
MANTISSA_BITS = 13  # relative error ≤ 2^−14: far below any detector's resolution, and compresses to half the size

# Physical spectra fall like pT^−6. Pythia throws events with their cross section times pT̂^BIAS_POWER. A jet
# is then kept with probability min(1, (pT / pT̂)^BIAS_POWER / WEIGHT_CAP): this undoes the bias *at a given
# jet pT*, where it would favour jets that lost much of their parton's pT, and leaves a spectrum harder by
# pT^BIAS_POWER. One jet in eight exceeds the cap; that moves the quantiles of the jet mass by less than 1 %
# (without the step: 3 %).
BIAS_POWER = 2.0
WEIGHT_CAP = 1.4

CLASSES = ("QCD", "top")  # the names of labels 0 and 1
_COMMON = (
    "Print:quiet = on",
    "Beams:eCM = 13000.",
    "PhaseSpace:pTHatMin = 400.",
    "PhaseSpace:pTHatMax = 1800.",
    "PhaseSpace:bias2Selection = on",
    f"PhaseSpace:bias2SelectionPow = {BIAS_POWER}",
)
PYTHIA_SETTINGS = {
    "QCD": (*_COMMON, "HardQCD:all = on"),
    "top": (*_COMMON, "Top:gg2ttbar = on", "Top:qqbar2ttbar = on", "24:onMode = off", "24:onIfAny = 1 2 3 4 5"),
}
SELECTION = {
    "jets": f"anti-kT, R = {RADIUS}, visible final particles with |eta| < 4",
    "pt": f"{PT_EDGES[0]:.0f}-{PT_EDGES[-1]:.0f} GeV, dN/dpT ~ pT^-{PT_POWER} in both classes",
    "eta": f"|eta| < {MAX_ETA}",
    "top": f"b, q and q' of one hadronic top within dR < {RADIUS} of the jet axis",
    "unweighting": f"keep with min(1, (pT / pTHat)^{BIAS_POWER} / {WEIGHT_CAP})",
    "constituents": f"the {MAX_CONSTITUENTS} hardest, {MANTISSA_BITS} bits of mantissa",
}

Floats = NDArray[np.float32]


def pt_bins(first: int, count: int) -> NDArray[np.int64]:
    """Jets of each bin of PT_EDGES among the jets first … first + count − 1 of a class.

    Jet i belongs to the quantile frac((i + ½)·golden ratio) of the target spectrum: any run of jets follows
    the spectrum as closely as whole numbers can, and both classes get the same numbers.
    """
    integral = PT_EDGES ** (1 - PT_POWER)
    cumulative = (integral - integral[0]) / (integral[-1] - integral[0])
    quantiles = ((np.arange(first, first + count) + 0.5) * ((np.sqrt(5.0) - 1) / 2)) % 1.0
    return np.histogram(quantiles, cumulative)[0].astype(np.int64)


def round_mantissa(x: NDArray[Any], bits: int = MANTISSA_BITS) -> Floats:
    """float32 values rounded to `bits` bits of mantissa (to nearest, ties to even); keeps order and sign."""
    drop = np.uint32(23 - bits)
    raw = np.ascontiguousarray(x, np.float32).view(np.uint32)
    half = (np.uint32(1) << (drop - np.uint32(1))) - np.uint32(1) + ((raw >> drop) & np.uint32(1))
    rounded: Floats = (((raw + half) >> drop) << drop).view(np.float32)
    return rounded


def make_chunk(label: int, first: int, count: int, pythia_seed: int) -> dict[str, Any]:
    """The jets first … first + count − 1 of one class, in random order; a function of its arguments alone.

    Returns constituents [M, 4] float32 (pt, eta, phi, E; MeV, falling pt within a jet), counts [count] int64,
    and jets [count, 4] float32 (pt, eta, phi, m; MeV).
    """
    import pythia8mc

    # A new generator for every chunk: one that has run remembers the largest cross sections it met.
    pythia = pythia8mc.Pythia("", False)
    for setting in (*PYTHIA_SETTINGS[CLASSES[label]], "Random:setSeed = on", f"Random:seed = {pythia_seed}"):
        if not pythia.readString(setting):
            raise RuntimeError(f"Pythia refuses the setting {setting!r}")
    if not pythia.init():
        raise RuntimeError("Pythia does not initialise")
    # FastJet's anti-kT (its core comes with Pythia), power −1; visible particles; with their masses.
    finder = pythia8mc.SlowJet(-1, RADIUS, float(PT_EDGES[0]), 4.0, 2, 2)

    random = np.random.default_rng(pythia_seed)
    wanted = pt_bins(first, count)
    made: list[tuple[Floats, Floats]] = []
    failures = 0
    while len(made) < count:
        if not pythia.next():
            failures += 1
            if failures > 100 + len(made):
                raise RuntimeError("Pythia fails in most events")
            continue
        event, pt_hat = pythia.event, pythia.infoPython().pTHat()
        finder.analyze(event)
        tops = [_quarks(event, top) for top in _tops(event)] if label else []
        for j in range(finder.sizeJet()):
            axis = finder.p(j)
            pt, eta, phi = axis.pT(), axis.eta(), axis.phi()
            pt_bin = int(np.searchsorted(PT_EDGES, pt, side="right")) - 1
            if not 0 <= pt_bin < len(wanted) or abs(eta) >= MAX_ETA:
                continue
            keep = random.random() * WEIGHT_CAP < (pt / pt_hat) ** BIAS_POWER
            if not keep or not wanted[pt_bin] or (label and not any(_contained(top, eta, phi) for top in tops)):
                continue
            wanted[pt_bin] -= 1
            particles = (event[i] for i in finder.constituents(j))
            p4 = np.array([(p.pT(), p.eta(), p.phi(), p.e()) for p in particles])
            p4 = p4[np.argsort(-p4[:, 0], kind="stable")[:MAX_CONSTITUENTS]]
            p4[:, [0, 3]] *= 1000.0
            jet = np.array([pt * 1000.0, eta, phi, axis.mCalc() * 1000.0], np.float32)
            made.append((round_mantissa(p4), jet))
    order = random.permutation(count)
    return {
        "constituents": np.concatenate([made[i][0] for i in order]),
        "counts": np.array([len(made[i][0]) for i in order], np.int64),
        "jets": np.stack([made[i][1] for i in order]),
    }


def _tops(event: Any) -> list[int]:
    """Lines of the hard process's top quarks, as they are just before their decay."""
    return [event[i].iBotCopyId() for i in (5, 6)]


def _quarks(event: Any, top: int) -> list[tuple[float, float]]:
    """(eta, phi) of the three quarks into which a hadronic top decays, before they radiate."""
    lines: list[int] = []
    for daughter in event[top].daughterList():
        is_w = event[daughter].idAbs() == 24
        lines += event[event[daughter].iBotCopyId()].daughterList() if is_w else [daughter]
    return [(event[i].eta(), event[i].phi()) for i in lines]


def _contained(quarks: list[tuple[float, float]], eta: float, phi: float) -> bool:
    """Whether all quarks lie within RADIUS of the axis."""
    differences = (((q_phi - phi + np.pi) % (2 * np.pi) - np.pi, q_eta - eta) for q_eta, q_phi in quarks)
    return all(d_phi**2 + d_eta**2 < RADIUS**2 for d_phi, d_eta in differences)


def begin_worker(alive: Connection) -> None:
    """Prepares a worker process. It exits when the other end of `alive` is closed, also by its parent's death."""

    def exit_with_parent() -> None:
        alive.poll(None)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Pythia and FastJet print banners
    threading.Thread(target=exit_with_parent, daemon=True).start()


def write_chunk(path: Path, label: int, first: int, count: int, pythia_seed: int) -> int:
    """Writes the jets of `make_chunk` to a file, which appears whole or not at all. Returns their number."""
    chunk = make_chunk(label, first, count, pythia_seed)
    write_atomically(path, lambda file: np.savez(file, **chunk))
    return count
