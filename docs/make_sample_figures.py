"""Draws docs/figures/sample.png, the physics of the bundled sample. Needs the extra [generate] (FastJet).

Run from anywhere: python docs/make_sample_figures.py
"""

from itertools import combinations
from pathlib import Path

import fastjet
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mplhep
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import sample

FIGURE = Path(__file__).parent / "figures" / "sample.png"
CLASSES = ((1, "top", "#0072B2", "-"), (0, "QCD", "#D55E00", "--"))  # Okabe and Ito: told apart by all readers


def substructure(jets: PackedJets) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[B] trimmed mass (kT subjets of R = 0.2 with at least 5 % of the pT), [B] W candidate's mass; GeV.

    W candidate: of the three exclusive kT subjets of the trimmed jet the pair of smallest mass.
    """
    pt, eta, phi, energy = jets.constituents.astype(np.float64).T
    momenta = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy], axis=1).tolist()
    whole = fastjet.JetDefinition(fastjet.cambridge_algorithm, 10.0)  # all constituents in one jet
    trimmer = fastjet.Filter(fastjet.JetDefinition(fastjet.kt_algorithm, 0.2), fastjet.SelectorPtFractionMin(0.05))
    kt = fastjet.JetDefinition(fastjet.kt_algorithm, 1.0)
    masses = []
    for first, last in zip(jets.offsets[:-1], jets.offsets[1:], strict=True):
        sequence = fastjet.ClusterSequence([fastjet.PseudoJet(*row) for row in momenta[first:last]], whole)
        trimmed = trimmer(max(sequence.inclusive_jets(), key=lambda jet: jet.pt()))
        parts = list(trimmed.constituents())
        pair = np.nan
        if len(parts) >= 3:
            split = fastjet.ClusterSequence(parts, kt)
            pair = min((a + b).m() for a, b in combinations(split.exclusive_jets(3), 2))
        masses.append((trimmed.m(), pair))
    trimmed_mass, pair_mass = np.array(masses).T
    return trimmed_mass, pair_mass


def main() -> None:
    jets = sample()
    top = jets.labels == 1
    trimmed, pair = substructure(jets)
    pt, eta, _, mass = jets.p4.astype(np.float64).T
    peak = (trimmed > 150) & (trimmed < 200)
    panels = [
        ("jet mass [GeV]", mass, np.arange(0, 401, 10), np.ones_like(top), 172.5),
        ("trimmed jet mass [GeV]", trimmed, np.arange(0, 301, 7.5), np.ones_like(top), 172.5),
        ("min. mass of two subjets [GeV]\n(150 < trimmed mass < 200 GeV)", pair, np.arange(0, 151, 5), peak, 80.4),
        ("jet $p_T$ [GeV]", pt, np.linspace(450, 1200, 31), np.ones_like(top), None),
        ("jet $\\eta$", eta, np.linspace(-2, 2, 21), np.ones_like(top), None),
        ("constituents", jets.counts, np.arange(0, 201, 8), np.ones_like(top), None),
    ]
    plt.style.use(mplhep.style.ATLAS)
    figure, axes = plt.subplots(2, 3, figsize=(17, 10), layout="constrained")
    for axis, (label, values, edges, use, mark) in zip(axes.flat, panels, strict=True):
        for which, name, colour, line in CLASSES:
            chosen = values[use & (top == (which == 1))]
            counts = np.histogram(chosen, edges)[0] / (len(chosen) * np.diff(edges))
            mplhep.histplot(counts, edges, ax=axis, label=name, color=colour, linestyle=line, linewidth=2)
        if mark:
            axis.axvline(mark, color="0.5", linestyle=":", linewidth=1.5)
            where = axis.get_xaxis_transform()
            axis.text(mark * 1.04, 0.9, f"{mark} GeV", transform=where, color="0.35", fontsize=14)
        axis.set(
            xlabel=label,
            ylabel="fraction of jets" + (" per GeV" if "GeV" in label else " per unit"),
            xlim=(edges[0], edges[-1]),
        )
        axis.set_ylim(0, axis.get_ylim()[1] * 1.1)
    axes[1, 0].set(yscale="log", ylim=(1e-5, 3e-2))
    axes[0, 0].legend(loc="center right")
    figure.suptitle(
        "kdfast's sample: Pythia 8, $\\sqrt{s}$ = 13 TeV, anti-$k_t$ R = 1.0, "
        f"{top.sum():,} top and {(~top).sum():,} QCD jets",
        fontsize=20,
    )
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=80)

    for name, values in (("pT", pt), ("mass", mass), ("trimmed mass", trimmed), ("constituents", jets.counts)):
        print(f"AUC of the {name} alone: {roc_auc_score(top, values):.3f}")
    for which, name, *_ in CLASSES:
        own = jets[jets.labels == which]
        print(f"{name}: {own.counts.mean():.1f} constituents a jet, {own.counts.min()} to {own.counts.max()}")
    counts, edges = np.histogram(trimmed[top], np.arange(100, 250, 2.5))
    print(f"trimmed top mass peaks at {edges[counts.argmax()] + 1.25} GeV")
    counts, edges = np.histogram(pair[top & peak], np.arange(40, 130, 2.5))
    print(f"pair mass peaks at {edges[counts.argmax()] + 1.25} GeV")
    print(f"top jets with trimmed mass from 150 to 200 GeV: {np.mean(peak[top]):.0%}; QCD: {np.mean(peak[~top]):.0%}")


if __name__ == "__main__":
    main()
