"""From jets to what models see: views, split, features, standardisation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdfast.distill.pack import View
from kdfast.errors import ConfigError, DataError
from kdfast.jets import jet_store
from kdfast.jets.features import Standardisation
from kdfast.jets.fingerprint import jet_hashes
from kdfast.jets.packed import PackedJets
from kdfast.jets.pairs import check_pairs
from kdfast.jets.splits import SplitRule, places_of
from kdfast.jets.units import check_in_gev
from kdfast.mapped import release
from kdfast.models.tagger import Preparation, Tagger
from kdfast.store.settings import DataSettings, HLTFiles, StudySettings
from kdfast.study.sets import CLASSES, SET_PATHS, SETS, SPLITS, Sets, check_apart, join, split
from kdfast.study.views import LazyViews, fit_standardisation, in_memory, view_of

if TYPE_CHECKING:
    from kdfast.jets.readers import Reading

__all__ = ["SPLITS", "PreparedData", "load_sets", "prepare", "reading"]

CHECKED_JETS = 1 << 16  # at a time


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
        found = {name: getattr(self.jets, name)[self.positions[split]] for name in ("labels", "weights", "index")}
        release(vars(self.jets).values())
        return found

    def kinematics(self, split: str) -> dict[str, NDArray[Any]]:
        """pt, eta, mass (GeV) of a split's jets, in the order of `shared_arrays`: for a report's tables by pT
        and of the mass of the background that passes. As the experiment stored them, so the same for every
        view."""
        p4 = self.jets.p4[self.positions[split]]
        release(vars(self.jets).values())
        return {"pt": p4[:, 0], "eta": p4[:, 1], "mass": p4[:, 3]}

    def hashes(self, split: str) -> NDArray[np.uint64]:
        """Of a split's jets, by which a teacher's training jets are recognised."""
        return jet_hashes(self.jets)[self.positions[split]]

    def some_offline(self, split: str, most: int) -> View:
        """The offline view of a split's first jets, for which that of all is not made."""
        return in_memory(self.offline_preparation, self.jets[self.positions[split][:most]])

    def seen_by(self, tagger: Tagger) -> Mapping[str, View]:
        """By split, the jets as a trained tagger sees them: with its own view and standardisation."""
        return LazyViews(lambda part: view_of(tagger.preparation, self.jets, self.positions[part]))


def load_sets(given: Mapping[str, PackedJets], settings: DataSettings) -> tuple[PackedJets, Sets]:
    """The jets given in Python, by set, or those of the settings' files; without data the bundled sample.

    Cut to the settings' max_jets (of data, the first ones) and max_constituents (the hardest ones).
    Raises DataError for jets that can't be trained on; the readers' own errors name file, dataset and row.
    """
    files = {name: getattr(settings, key) for name, key in SET_PATHS.items()}
    found: dict[str, PackedJets] = {}
    places = None
    sizes: dict[str, int] = {}  # of the sets of a store
    for name in SETS:
        if name in given:
            jets = given[name]
            _compare(jet_store.store_of(jets))
        elif any(map(jet_store.is_store, files[name])):
            jets = _stored(files[name], reading(settings, name))
            sizes = _sets_of(files[name][0], name, settings)
            places = _stored_places(files[name][0], settings.split) if settings.split else None
        elif files[name]:
            from kdfast.jets.readers import read_jets

            jets, places_here = read_jets(files[name], reading(settings, name))
            places = places_here if settings.split else None
        elif name == "data":
            from kdfast.jets.readers import sample

            jets = sample()
        else:
            continue
        if name == "data" and settings.max_jets is not None:
            jets = jets[: settings.max_jets]
            places = None if places is None else places[: len(jets)]
        found[name] = _cut(jets, settings.max_constituents)
        _check(found[name], name)
        check_in_gev(found[name], name)
        release(vars(found[name]).values())
    jets = _cut(join(found), settings.max_constituents)
    sets = Sets.of(sizes or {name: len(each) for name, each in found.items()}, places)
    check_apart(jets, sets)
    return jets, sets


def reading(settings: DataSettings, name: str = "data") -> Reading:
    """How the files of this set are read. max_jets cuts the data alone."""
    from kdfast.jets.readers import Reading

    return Reading(
        settings.max_jets if name == "data" else None,
        settings.max_constituents,
        settings.on_bad,
        settings.unit,
        settings.sort,
        require_labels=True,
        columns=settings.columns,
        exactly=settings.asks_for_constituents,
        split=settings.split,
        isolate=bool(sys.executable),  # half a second of minutes
    )


def _stored(paths: Sequence[str], how: Reading) -> PackedJets:
    """The jets of a packed store with all their constituents, after a comparison with its checksums."""
    from kdfast.jets.readers import read_jets

    path = jet_store.only_store(paths)
    _compare(path)
    if how.exactly and how.max_constituents is not None:
        jet_store.check_stored_constituents(path, how.max_constituents)
    return read_jets(path, replace(how, max_constituents=None, split=None))[0]


def _stored_places(path: str, rule: SplitRule) -> NDArray[np.int8]:
    """[jets] the place of each jet's part in splits.PARTS, by a column that a store keeps. Raises DataError
    for a jet of none: those of a store are not left out."""
    values = jet_store.split_values(path, rule.column)
    places = places_of(values, rule)
    if places.min() < 0:
        row = int(np.argmin(places))
        what = f"{rule.column} is none of {rule.words} ({values[row]})"
        hint = "name all values; jets of a store are not left out by a split"
        raise DataError(what, where=f"{path}, jet {row}", hint=hint)
    return places


def _compare(store: str | PathLike[str] | None) -> None:
    """Compares a store with its checksums, once each time that a study is opened; None: jets are in memory."""
    if store is not None:
        for _ in jet_store.verify_store(store):
            pass


def _sets_of(path: str, name: str, settings: DataSettings) -> dict[str, int]:
    """Jets of the sets that a store of data holds; none where it is one set. Raises ConfigError for what such
    a store leaves no choice of."""
    sizes = jet_store.StoreCard.read(Path(path)).sets
    if len(sizes) == 1:
        return {}
    others = {
        "validation_data": settings.validation_paths,
        "test_data": settings.test_paths,
        "max_jets": settings.max_jets,
        "split": settings.split,
    }
    where = name if name != "data" else next((key for key, value in others.items() if value), None)
    if where is not None:
        what = f"is for files, or a store of one set; {path} holds {', '.join(sizes)}"
        raise ConfigError(what, where=where, hint="give this store alone, as the data")
    return sizes


def _cut(jets: PackedJets, max_constituents: int | None) -> PackedJets:
    """Jets in memory with their hardest constituents. Those of a store are cut when their views are made."""
    return jets.hardest(max_constituents) if jet_store.store_of(jets) is None else jets


def prepare(
    jets: PackedJets, settings: StudySettings, hlt_jets: PackedJets | None = None, sets: Sets | None = None
) -> PreparedData:
    """Splits the jets and makes both views of each split.

    hlt_jets: the same jets, in the same order, as a real trigger saw them; None: they are emulated with
    settings.hlt. sets: that the jets were given as; None: as one. The split (by fractions: stratified by
    label) and the emulation depend on settings.data.seed alone. Raises DataError: one class only, in all or
    in a split; a split without weight or without a constituent; HLT jets that are not the same jets.
    """
    sets = sets or Sets.of({"data": len(jets)})
    if hlt_jets is not None:
        hlt_jets = _paired(jets, _cut(hlt_jets, settings.data.max_constituents), sets)
    positions = split(jets, settings.data, sets)
    hlt = settings.hlt if hlt_jets is None else None
    assert not isinstance(hlt, HLTFiles), "Inputs.load reads them"
    seed = settings.data.seed
    constituents = settings.data.max_constituents

    # The standardisation comes from the offline view of the training jets, which a first preparation (that
    # does not standardise) makes.
    unit = Standardisation(torch.zeros(7), torch.ones(7))
    first = Preparation("offline", hlt, seed, constituents, unit)
    standardisation = fit_standardisation(first, jets, positions["train"])
    if standardisation is None:
        raise _no_constituent("train jets, offline view")
    offline = replace(first, standardisation=standardisation)
    trigger = replace(offline, view="hlt")

    seen = jets if hlt_jets is None else hlt_jets
    return PreparedData(
        jets,
        positions,
        LazyViews(lambda part: _filled_view(offline, jets, positions, part)),
        {part: _filled_view(trigger, seen, positions, part) for part in positions},
        offline,
        trigger,
    )


def _filled_view(
    preparation: Preparation, jets: PackedJets, positions: Mapping[str, NDArray[np.int64]], part: str
) -> View:
    view = view_of(preparation, jets, positions[part])
    if not len(view.features):
        raise _no_constituent(f"{part} jets, {preparation.view} view")
    return view


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
        hint = "take absolute values, give all jets weight 1, or leave such jets out: jets[jets.weights >= 0]"
        what = f"weight must be finite and ≥ 0, is {jets.weights[row]}"
        raise DataError(what, where=f"{where}, row {row}", hint=hint)
    for start in range(0, len(jets), CHECKED_JETS):
        _check_constituents(jets[start : start + CHECKED_JETS], where, start)
        release(vars(jets).values())


def _check_constituents(jets: PackedJets, where: str, first_row: int) -> None:
    bad = ~(np.isfinite(jets.constituents).all(axis=1) & (jets.constituents[:, 0] >= 0))
    if bad.any():
        row = first_row + int(np.searchsorted(jets.offsets, np.argmax(bad), side="right")) - 1
        pt, eta, phi, energy = jets.constituents[np.argmax(bad)].tolist()
        raise DataError(
            f"a constituent is not finite or has pT < 0 (pt {pt}, eta {eta}, phi {phi}, energy {energy})",
            where=f"{where}, row {row}",
        )


def _paired(jets: PackedJets, hlt_jets: PackedJets, sets: Sets) -> PackedJets:
    _check(hlt_jets, "hlt")
    check_in_gev(hlt_jets, "hlt", also_soft=False)
    if len(sets.rows) == 1 or len(hlt_jets) != len(jets):
        check_pairs(jets, hlt_jets)
    else:
        for name, rows in sets.rows.items():
            check_pairs(jets[rows], hlt_jets[rows], where=f"hlt of {name}")
    return hlt_jets


def _no_constituent(which: str) -> DataError:
    hint = "lower the pT threshold of the HLT settings, or give harder jets"
    return DataError("no jet has a constituent left", where=which, hint=hint)
