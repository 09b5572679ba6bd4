"""The results of a study, as users work with them."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdfast import report
from kdfast.errors import ConfigError, StudyError, suggest
from kdfast.report.pairing import Pairing, pair_studies
from kdfast.store.status import study_status
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.table import COLUMNS, NEED_SCORES, results_table, select_best
from kdfast.store.verify import Verification, verify

__all__ = ["StudyResults", "open_study"]


class StudyResults:
    """The results of a study, finished or not; open_study(path) gives one, and so does kdfast.sweep.

    path: the study's folder. results: a row per student (see below). Everything is read from the stored results when
    first asked for; open the study again to see what has been added since.
    """

    def __init__(self, store: StudyStore) -> None:
        self._store = store
        self.path = store.path

    def __repr__(self) -> str:
        done = int((self.results["status"] == "done").sum())
        return f"StudyResults({str(self.path)!r}: {len(self.results)} runs, {done} done)"

    @property
    def settings(self) -> dict[str, Any]:
        """The content of study.toml: what the study was told."""
        return dict(self._store.settings)

    @property
    def imported(self) -> dict[str, Any] | None:
        """Where an imported study comes from: files (path, bytes, sha256), and notes on what is wrong in them. Else
        None."""
        return self._store.provenance.get("imported")

    @cached_property
    def has_scores(self) -> pd.Series:
        """For each row of `results`, whether the run's scores per jet are stored. Not of diverged and imported runs."""
        stored = {(r.name, r.seed): r.has_scores for r in self._stored if r.kind == "student"}
        keys = zip(self._table["run_name"], self._table["seed"], strict=True)
        return pd.Series([stored[name, int(seed)] for name, seed in keys], self._table.index, dtype=bool)

    @property
    def impossible(self) -> tuple[str, ...]:
        """The analyses that can't be made as no run of the study has scores per jet; empty where they can."""
        done = (self._table["status"] == "done").any()
        return NEED_SCORES if done and not self.has_scores.any() else ()

    @cached_property
    def _stored(self) -> list[StoredResult]:
        return self._store.results()

    @cached_property
    def _table(self) -> pd.DataFrame:
        return results_table(self._stored)

    @property
    def results(self) -> pd.DataFrame:
        """A row per student, in the order of the grid. Test jets, unless the name ends in _val.

        run_name, strategy; temp_init, temp_final, alpha_init, alpha_final (no final value: constant); seed;
        auc_student; bkg_rej_30, _50, _80 (background rejection 1/ε_B at 30, 50, 80 % signal efficiency); n_bkg_50
        (background jets that survive; 0: bkg_rej_50 is a 68 % lower limit); auc_val, bkg_rej_50_val,
        n_bkg_50_val; best_epoch (counted from 0), epochs; auc_baseline (same seed, no teacher), auc_teacher; status
        ("done", "diverged").
        """
        return self._table[list(COLUMNS)].copy()

    def best(self, metric: str = "auc") -> pd.Series:
        """The row of `results` that is best on the validation jets; what it reports is from the test jets.

        Where runs have no validation numbers (imported ones), it is the best on the test jets, and its number is too
        high by what chance adds to the best of many.
        metric: "auc", "bkg_rej_30", "bkg_rej_50", "bkg_rej_80", or "combined" (AUC and bkg_rej_50, each scaled to
        0…1 over the study). Raises ConfigError for another one, StudyError where no student has finished.
        """
        return select_best(self._table, metric)[list(COLUMNS)]

    def scores(self, run_name: str, seed: int | None = None) -> pd.DataFrame:
        """Scores of one run on the validation and test jets, a row per jet.

        run_name: as in `results`, or the name of the teacher or the baseline. seed: may be left out where there is
        only one. Columns: split ("validation" or "test"), index (the jet's identity), label, weight, score (logit),
        probability (of signal). Raises ConfigError for an unknown run or seed, StudyError for one that diverged.
        """
        named = [result for result in self._stored if result.name == run_name]
        if not named:
            names = list(dict.fromkeys(result.name for result in self._stored))
            raise ConfigError(f"no run is named {run_name!r}", where="run_name", hint=_few(suggest(run_name, names)))
        seeds = [result.seed for result in named]
        if seed is None and len(named) > 1:
            raise ConfigError(f"{run_name} has several seeds", where="seed", hint=f"give one of {seeds}")
        if seed is not None and seed not in seeds:
            raise ConfigError(f"{run_name} has no seed {seed}", where="seed", hint=f"known: {seeds}")
        result = named[0 if seed is None else seeds.index(seed)]
        if result.status != "done":
            raise StudyError(f"{run_name} has no scores: it {result.status}", where=str(self.path))
        if not result.has_scores:
            raise StudyError(f"{run_name} has no scores per jet: it is imported {result.message}", where=str(self.path))
        parts = []
        for split in ("validation", "test"):
            jets, logits = self._store.shared(split), np.asarray(result.arrays[f"scores_{split}"], np.float64)
            parts.append(
                pd.DataFrame(
                    {
                        "split": split,
                        "index": jets["index"],
                        "label": jets["labels"],
                        "weight": jets["weights"],
                        "score": logits,
                        "probability": np.exp(-np.logaddexp(0.0, -logits)),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def paired_with(self, other: StudyResults) -> Pairing:
        """The runs and test jets that this and another study share, with both studies' scores of them, and why any
        can't be paired. Raises StudyError for a damaged result."""
        return pair_studies(self._store, other._store)

    def compare(self, other: StudyResults, out: str | Path) -> dict[str, Path]:
        """Writes the paired differences of another study minus this one into the folder out; the files by name."""
        return report.write_comparison(self._store, other._store, Path(out))

    def status(self) -> pd.DataFrame:
        """What is there and what is not: columns kind, run_name, seed, status ("done", "diverged", "failed",
        "missing", "damaged") and message, a row for each run that the study's settings ask for, and then for each that
        later calls have added. Quick: arrays and weights are looked for and not hashed, which `verify` does."""
        columns = ["kind", "run_name", "seed", "status", "message"]
        table = pd.DataFrame([asdict(run) for run in study_status(self._store).runs], columns=columns)
        return table.astype({"seed": "Int64"})

    def verify(self, *, progress: bool = False) -> Verification:
        """Hashes every file of the study again: `findings` says what is damaged, `intact` whether nothing is. progress:
        a bar on stderr. `kdfast verify --repair` also puts damaged folders aside."""
        return verify(self.path, progress=progress)

    def report(self, out: str | Path | None = None) -> dict[str, Path]:
        """Writes the report of the study (tables, texts, report.json, figures, models) anew and returns the files by
        name. out: another folder than the study's own, e.g. where that is read-only."""
        return report.write(self._store, None if out is None else Path(out))


def open_study(path: str | Path) -> StudyResults:
    """Opens the folder that a sweep wrote, also while the sweep is running. Raises StudyError."""
    return StudyResults(StudyStore.open(path))


def _few(hint: str, length: int = 200) -> str:
    """The start of a hint that lists a whole grid."""
    return hint if len(hint) <= length else hint[:length].rsplit(",", 1)[0] + ", …"
