"""From jets to what models see: views, split, features, standardisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from kdfast.distill.pack import View
from kdfast.errors import DataError
from kdfast.jets.features import Standardisation, features
from kdfast.jets.fingerprint import jet_hashes
from kdfast.jets.packed import PackedJets
from kdfast.jets.pairs import check_pairs
from kdfast.jets.units import check_in_gev
from kdfast.models.tagger import Preparation, Tagger
from kdfast.store.settings import DataSettings, HLTFiles, StudySettings

if TYPE_CHECKING:
    from kdfast.jets.readers import Reading

__all__ = ["SPLITS", "PreparedData", "load", "prepare", "reading"]

SPLITS = ("train", "validation", "test")
CLASSES = {0: "background", 1: "signal"}


@dataclass(frozen=True)
class PreparedData:
    """A study's jets, split and seen both ways.

    positions: by split, of its jets among all jets (rising). labels, weights, index: by split, [B] of its
    jets. offline, hlt: by split, what the teacher and what students see, standardised by the same numbers.
    offline_preparation, hlt_preparation: how to make the two from jets as they are read.
    """

    jets: PackedJets
    positions: Mapping[str, NDArray[np.int64]]
    offline: Mapping[str, View]
    hlt: Mapping[str, View]
    offline_preparation: Preparation
    hlt_preparation: Preparation

    def shared_arrays(self, split: str) -> dict[str, NDArray[Any]]:
        """labels, weights and index of a split's jets, in the order of every result's scores."""
        part = self.positions[split]
        return {"labels": self.jets.labels[part], "weights": self.jets.weights[part], "index": self.jets.index[part]}

    def kinematics(self, split: str) -> dict[str, NDArray[Any]]:
        """pt, eta, mass (GeV) of a split's jets, in the order of `shared_arrays`: for a report's tables by pT
        and of the mass of the background that passes. As the experiment stored them, so the same for every
        view."""
        p4 = self.jets.p4[self.positions[split]]
        return {"pt": p4[:, 0], "eta": p4[:, 1], "mass": p4[:, 3]}

    def hashes(self, split: str) -> NDArray[np.uint64]:
        """Of a split's jets, by which a teacher's training jets are recognised."""
        return jet_hashes(self.jets)[self.positions[split]]

    def seen_by(self, tagger: Tagger) -> dict[str, View]:
        """By split, the jets as a trained tagger sees them: with its own view and standardisation."""
        return {split: _view(tagger.preparation, self.jets[part]) for split, part in self.positions.items()}


def load(jets: PackedJets | None, settings: DataSettings) -> PackedJets:
    """The jets given in Python, or those of the settings' files; without both the bundled sample.

    Cut to the settings' max_jets (the first ones) and max_constituents (the hardest ones).
    Raises DataError for jets that can't be trained on; the readers' own errors name file, dataset and row.
    """
    if jets is None and settings.paths:
        from kdfast.jets.readers import read_jets

        jets = read_jets(settings.paths, reading(settings))[0]
    elif jets is None:
        from kdfast.jets.sample import sample

        jets = sample()
    if settings.max_jets is not None:
        jets = jets[: settings.max_jets]
    jets = jets.hardest(settings.max_constituents)
    _check(jets, "data")
    check_in_gev(jets, "data")
    return jets


def reading(settings: DataSettings) -> Reading:
    """How the settings' files are read."""
    from kdfast.jets.readers import Reading

    return Reading(
        settings.max_jets,
        settings.max_constituents,
        settings.on_bad,
        settings.unit,
        settings.sort,
        require_labels=True,
        columns=settings.columns,
        exactly=settings.asks_for_constituents,
    )


def prepare(jets: PackedJets, settings: StudySettings, hlt_jets: PackedJets | None = None) -> PreparedData:
    """Splits the jets and makes both views of each split.

    hlt_jets: the same jets, in the same order, as a real trigger saw them; None: they are emulated with
    settings.hlt. The split (stratified by label) and the emulation depend on settings.data.seed alone. Raises
    DataError: one class only, in all or in a split; a split without weight or without a constituent; HLT jets
    that are not the same jets.
    """
    if hlt_jets is not None:
        hlt_jets = _paired(jets, hlt_jets.hardest(settings.data.max_constituents))
    positions = _split(jets, settings.data)
    hlt = settings.hlt if hlt_jets is None else None
    assert not isinstance(hlt, HLTFiles), "Inputs.load reads them"
    seed = settings.data.seed
    constituents = settings.data.max_constituents

    # The standardisation comes from the offline view of the training jets, which a first preparation (that
    # does not standardise) makes.
    unit = Standardisation(torch.zeros(7), torch.ones(7))
    first = Preparation("offline", hlt, seed, constituents, unit)
    train = first.view_of(jets[positions["train"]])
    if not len(train.constituents):
        raise _no_constituent("train jets, offline view")
    standardisation = Standardisation.fit(features(train))
    offline = replace(first, standardisation=standardisation)
    trigger = replace(offline, view="hlt")

    views: dict[str, dict[str, View]] = {"offline": {}, "hlt": {}}
    for split, part in positions.items():
        views["offline"][split] = _view(offline, jets[part])
        views["hlt"][split] = _view(trigger, (jets if hlt_jets is None else hlt_jets)[part])
        for name in views:
            if not len(views[name][split].features):
                raise _no_constituent(f"{split} jets, {name} view")
    return PreparedData(jets, positions, views["offline"], views["hlt"], offline, trigger)


def _view(preparation: Preparation, jets: PackedJets) -> View:
    seen = preparation.view_of(jets)
    inputs, offsets = preparation.inputs(seen)
    labels = torch.from_numpy(jets.labels.astype(np.float32))
    weights = torch.from_numpy(jets.weights)
    return View(inputs, offsets, labels, weights)


def _split(jets: PackedJets, settings: DataSettings) -> dict[str, NDArray[np.int64]]:
    """Positions by split, stratified by label."""
    counts = {name: int(np.count_nonzero(jets.labels == label)) for label, name in CLASSES.items()}
    found = " and ".join(f"{count} {name}" for name, count in counts.items())
    if 0 in counts.values():
        raise DataError(
            f"holds one class only ({found} jets)", where="data", hint="training needs jets of both classes"
        )
    train_share, validation_share, test_share = settings.fractions
    try:
        train, rest = train_test_split(
            np.arange(len(jets)), train_size=train_share, random_state=settings.seed, stratify=jets.labels
        )
        validation, test = train_test_split(
            rest,
            train_size=validation_share / (validation_share + test_share),
            random_state=settings.seed,
            stratify=jets.labels[rest],
        )
    except ValueError:
        hint = f"each of {', '.join(SPLITS)} needs jets of both classes: give more jets or other fractions"
        raise DataError(f"too few jets to split ({found} jets)", where="data", hint=hint) from None
    positions = {split: np.sort(part) for split, part in zip(SPLITS, (train, validation, test), strict=True)}
    for split, part in positions.items():
        for label, name in CLASSES.items():
            if not (jets.weights[part][jets.labels[part] == label] > 0).any():
                raise DataError(
                    f"the {split} jets hold one class only: no {name} jet of weight above 0 ({found} jets in all)",
                    where="data",
                    hint="give more jets or other fractions",
                )
    return positions


def _check(jets: PackedJets, where: str) -> None:
    """What every entrance must refuse, whoever made the jets."""
    if not len(jets):
        raise DataError("there are no jets", where=where)
    bad = ~np.isin(jets.labels, list(CLASSES))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"label must be 0 or 1, is {jets.labels[row]}", where=f"{where}, row {row}")
    bad = ~(np.isfinite(jets.weights) & (jets.weights >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"weight must be finite and ≥ 0, is {jets.weights[row]}", where=f"{where}, row {row}")
    bad = ~(np.isfinite(jets.constituents).all(axis=1) & (jets.constituents[:, 0] >= 0))
    if bad.any():
        row = int(np.searchsorted(jets.offsets, np.argmax(bad), side="right")) - 1
        pt, eta, phi, energy = jets.constituents[np.argmax(bad)].tolist()
        raise DataError(
            f"a constituent is not finite or has pT < 0 (pt {pt}, eta {eta}, phi {phi}, energy {energy})",
            where=f"{where}, row {row}",
        )


def _paired(jets: PackedJets, hlt_jets: PackedJets) -> PackedJets:
    _check(hlt_jets, "hlt")
    check_in_gev(hlt_jets, "hlt", also_soft=False)
    check_pairs(jets, hlt_jets)
    return hlt_jets


def _no_constituent(which: str) -> DataError:
    hint = "lower the pT threshold of the HLT settings, or give harder jets"
    return DataError("no jet has a constituent left", where=which, hint=hint)
