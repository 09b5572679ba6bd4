"""The results of a study, as users work with them."""

from __future__ import annotations

import html
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdfast import report
from kdfast.distill.schedules import stored_name
from kdfast.errors import ConfigError, StudyError, suggest
from kdfast.models.tagger import Tagger, load_model
from kdfast.store.key import RunKey
from kdfast.store.status import study_status
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.table import COLUMNS, NEED_SCORES, axis_columns, results_table, select_best
from kdfast.store.verify import Verification, verify

if TYPE_CHECKING:
    import pandas as pd

    from kdfast.report.two_studies import Pairing
    from kdfast.study.plot import StudyPlots

__all__ = ["StudyResults", "open_study", "run_model"]


class StudyResults:
    """The results of a study, finished or not.

    `open_study` and `kdfast.sweep` return one. Stored results are read when they are first needed; open the
    study again to see what has been added since.

    Attributes
    ----------
    path : pathlib.Path
        The study's folder.

    Examples
    --------
    >>> study = kdfast.open_study("study")
    >>> study
    StudyResults('study': 16 runs, 16 done)
    >>> study.best("auc")["run_name"]
    'tempanneal_T7.0to1.0_A0.9'
    """

    def __init__(self, store: StudyStore) -> None:
        self._store = store
        self.path = store.path

    def __repr__(self) -> str:
        try:
            runs = self._counts()
        except StudyError as error:
            runs = f"can't be read, {error.what}"
        return f"StudyResults({str(self.path)!r}: {runs})"

    def _repr_html_(self) -> str:
        """The study in a notebook: folder, counts, and the best run by each metric of the study."""
        rows = [("study", str(self.path))]
        try:
            rows.append(("runs", self._counts()))
            for metric, label in (("auc", "AUC"), ("bkg_rej_50", "rejection at 50 %")):
                best = self.best(metric)
                value = best["auc_student" if metric == "auc" else metric]
                above = "> " if metric != "auc" and best["flag_50"] == "limit" else ""
                rows.append((f"best {label}", f"{above}{value:.4g} ({best['run_name']}, seed {best['seed']})"))
        except StudyError as error:  # damaged, or nothing has finished
            rows.append(("note", error.what))
        cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
        return f"<table>{''.join(cells)}</table>"

    def _counts(self) -> str:
        statuses = self._table["status"]
        counts = [f"{number} {status}" for status, number in statuses.value_counts().items()]
        return ", ".join([f"{len(statuses)} runs", *counts])

    @property
    def settings(self) -> dict[str, Any]:
        """The study's settings: the content of study.toml."""
        return dict(self._store.settings)

    @property
    def imported(self) -> dict[str, Any] | None:
        """Of an imported study: its files (path, bytes, sha256) and warnings about them; else None."""
        imported: dict[str, Any] | None = self._store.provenance.get("imported")
        return imported

    @cached_property
    def has_scores(self) -> pd.Series[bool]:
        """For each row of `results`: whether its scores per jet are stored (not if diverged or imported)."""
        import pandas as pd

        stored = {(r.name, r.seed): r.has_scores for r in self._stored if r.kind == "student"}
        keys = zip(self._table["run_name"], self._table["seed"], strict=True)
        return pd.Series([stored[name, int(seed)] for name, seed in keys], self._table.index, dtype=bool)

    @property
    def impossible(self) -> tuple[str, ...]:
        """The analyses that need scores per jet, if no run of the study has any; otherwise empty."""
        done = (self._table["status"] == "done").any()
        return NEED_SCORES if done and not self.has_scores.any() else ()

    @cached_property
    def _stored(self) -> list[StoredResult]:
        return self._store.results()

    @cached_property
    def _table(self) -> pd.DataFrame:
        return results_table(self._stored)

    @property
    def _columns(self) -> list[str]:
        return [*COLUMNS, *axis_columns(self._table).values()]

    @property
    def results(self) -> pd.DataFrame:
        """One row for each student, in the order of the grid.

        Metrics are those of the test jets, or with the suffix ``_val`` of the validation jets. The columns:

        - ``run_name``, ``strategy``, ``seed``, ``status`` ("done" or "diverged");
        - ``temp_init``, ``temp_final``, ``alpha_init``, ``alpha_final``: T and α (NaN as a final value: constant);
        - ``auc_student``, ``auc_val``;
        - ``bkg_rej_30``, ``bkg_rej_50``, ``bkg_rej_80``, ``bkg_rej_50_val``: background rejection 1/ε_B at a signal
          efficiency of 30, 50 and 80 %;
        - ``n_bkg_50``, ``n_bkg_50_val``: background jets that pass at 50 %; if 0, the rejection is a 68 % lower limit;
        - ``best_epoch`` (counted from 0), ``epochs``;
        - ``auc_baseline`` (without a teacher, of the same seed and further settings), ``auc_teacher``;
        - ``n_bkg_30``, ``n_bkg_80`` and, of the validation jets, ``bkg_rej_30_val``, ``n_bkg_30_val``,
          ``bkg_rej_80_val``, ``n_bkg_80_val``;
        - ``flag_30``, ``flag_50``, ``flag_80``: ``"limit"`` where the rejection is a 68 % lower limit, ``"few"`` where
          1 to 9 background jets pass, otherwise ``"measured"``;
        - further axes of the grid, if it has any: ``learning_rate``, ``model``, … (``planned_epochs`` for `epochs`).

        Examples
        --------
        >>> study.results[["run_name", "auc_student", "bkg_rej_50"]].head(2).round(3)
                   run_name  auc_student  bkg_rej_50
        0  baseline_T3.0_A0.3         0.80       7.635
        1  baseline_T3.0_A0.9         0.81       8.303
        """
        return self._table[self._columns].copy()

    def best(self, metric: str = "auc", *, max_latency_us: float | None = None) -> pd.Series[Any]:
        """Return the row of `results` that is best on the validation jets.

        Its metrics are those of the test jets, which the choice does not bias. An imported study may have no
        validation metrics; the choice is then made on the test jets, and the best value is biased upwards.

        Parameters
        ----------
        metric
            "auc", "bkg_rej_30", "bkg_rej_50", "bkg_rej_80", or "combined" (the mean of AUC and bkg_rej_50,
            each scaled to 0…1 over the study).
        max_latency_us
            Only runs whose network takes at most so long, in µs: the median of onnxruntime with one jet on one
            thread, as `kdfast latency` stored it for a network of the same size.

        Raises
        ------
        ConfigError
            The metric is unknown.
        StudyError
            No student has finished, or none is as fast, or no latency is stored.

        Examples
        --------
        >>> study.best("bkg_rej_50")["run_name"]
        'alphasched_T7.0_A0.9to0.1'
        """
        table = self._table
        if max_latency_us is not None:
            microseconds = self._microseconds()
            table = table[microseconds <= max_latency_us]
            if table.empty:
                known = microseconds[np.isfinite(microseconds)]
                hint = f"the fastest takes {known.min():.0f} µs" if len(known) else f"run `kdfast latency {self.path}`"
                what = f"no student is known to take at most {max_latency_us:g} µs"
                raise StudyError(what, where=str(self.path), hint=hint)
        row: pd.Series[Any] = select_best(table, metric)[self._columns]
        return row

    def _microseconds(self) -> NDArray[np.float64]:
        """For each row of the table the µs of one jet, of a network of the same size; NaN: not measured."""
        documents = self._store.latencies().values()
        measured = [(document.model, document.timing("onnxruntime", 1)) for document in documents]
        sizes = {(r.name, r.seed): r.card["model"] for r in self._stored if r.kind == "student" and r.card}
        found = []
        for name, seed in zip(self._table["run_name"], self._table["seed"], strict=True):
            size = sizes.get((name, int(seed)))
            same = [timing.p50_us for model, timing in measured if timing is not None and model == size]
            found.append(same[0] if same else np.nan)
        return np.array(found, np.float64)

    def scores(self, run_name: str, seed: int | None = None) -> pd.DataFrame:
        """Return the scores of one run on the validation and test jets.

        Parameters
        ----------
        run_name
            A run of `results`, "teacher" or "baseline" (with further axes e.g. "baseline_lr0.001"). A run with constant
            T and α may also be called ``constant_…``.
        seed
            Its seed. May be left out if there is only one.

        Returns
        -------
        pandas.DataFrame
            One row for each jet, with the columns ``split`` ("validation" or "test"), ``index`` (the jet's
            identity), ``label``, ``weight``, ``score`` (logit) and ``probability`` (of signal).

        Raises
        ------
        ConfigError
            The run or seed is unknown.
        StudyError
            The run has no scores: it diverged, or was imported.

        Examples
        --------
        >>> study.scores("baseline").groupby("split").size()
        split
        test          900
        validation    900
        dtype: int64
        """
        import pandas as pd

        result = self._named(run_name, seed)
        if result.status != "done":
            raise StudyError(f"{run_name} has no scores: it {result.status}", where=str(self.path))
        if not result.has_scores:
            raise StudyError(f"{run_name} has no scores per jet: it is imported {result.message}", where=str(self.path))
        parts = []
        for split in ("validation", "test"):
            jets = self._store.shared(split)
            logits = np.asarray(result.arrays[f"scores_{split}"], np.float64)
            columns = {
                "split": split,
                "index": jets["index"],
                "label": jets["labels"],
                "weight": jets["weights"],
                "score": logits,
                "probability": np.exp(-np.logaddexp(0.0, -logits)),
            }
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def history(self, run_name: str, seed: int | None = None) -> pd.DataFrame:
        """Return the learning curves of one run.

        Parameters
        ----------
        run_name
            A run of `results`, "teacher" or "baseline".
        seed
            Its seed. May be left out if there is only one.

        Returns
        -------
        pandas.DataFrame
            One row for each epoch that was trained: ``epoch`` (counted from 0), ``loss`` and its parts as they enter
            it (``loss_label``, ``loss_kd``, ``loss_attention``), ``auc_val``, ``temperature``, ``alpha``,
            ``learning_rate``. An imported run has the columns that its file has.

        Raises
        ------
        ConfigError
            The run or seed is unknown.
        StudyError
            The run has no curves: it was imported without.

        Examples
        --------
        >>> study.history("baseline")[["epoch", "loss", "auc_val"]].round(3)
           epoch  loss  auc_val
        0      0   0.7    0.700
        1      1   0.6    0.813
        """
        import pandas as pd

        curves = dict(self._named(run_name, seed).curves)
        if not curves:
            raise StudyError(f"{run_name} has no curves", where=str(self.path))
        counted_from_1 = curves.pop("epoch", None)  # of an imported run, which need not have all
        table = pd.DataFrame(curves)
        epochs = table.index if counted_from_1 is None else np.array(counted_from_1, np.int64) - 1
        table.insert(0, "epoch", epochs)
        return table

    def model(self, run_name: str, seed: int | None = None) -> Tagger:
        """Return the trained network of one run, with its preparation of jets.

        Parameters
        ----------
        run_name
            A run of `results`, "teacher" or "baseline".
        seed
            Its seed. May be left out if there is only one.

        Returns
        -------
        Tagger
            As `kdfast.load_model` reads it: ``study.model("baseline").predict(jets)``.

        Raises
        ------
        ConfigError
            The run or seed is unknown.
        StudyError
            The run has no network: it diverged, or was imported.
        """
        return load_model(run_model(self._store, self._named(run_name, seed).key))

    @cached_property
    def plot(self) -> StudyPlots:
        """The figures of the report, one by one: ``study.plot.roc(…)``."""
        from kdfast.study.plot import StudyPlots

        return StudyPlots(self._store, self._named)

    def _named(self, run_name: str, seed: int | None) -> StoredResult:
        names = list(dict.fromkeys(result.name for result in self._stored))
        stored = run_name if run_name in names else stored_name(run_name)
        named = {result.seed: result for result in self._stored if result.name == stored}
        if not named:
            raise ConfigError(f"no run is named {run_name!r}", where="run_name", hint=_few(suggest(run_name, names)))
        if seed is None and len(named) > 1:
            raise ConfigError(f"{run_name} has several seeds", where="seed", hint=f"give one of {list(named)}")
        if seed is not None and seed not in named:
            raise ConfigError(f"{run_name} has no seed {seed}", where="seed", hint=f"known: {list(named)}")
        return named[next(iter(named)) if seed is None else seed]

    def paired_with(self, other: StudyResults) -> Pairing:
        """Return the runs and test jets that two studies share, with both scores, or why they can't be paired.

        Raises
        ------
        StudyError
            A result is damaged.
        """
        from kdfast.report.two_studies import pair_studies

        return pair_studies(self._store, other._store)

    def compare(self, other: StudyResults, out: str | Path) -> dict[str, Path]:
        """Write the paired differences of another study minus this one.

        Parameters
        ----------
        other
            The other study.
        out
            The folder for the files.

        Returns
        -------
        dict of str to pathlib.Path
            The files by name.
        """
        return report.write_comparison(self._store, other._store, Path(out))

    def status(self) -> pd.DataFrame:
        """Return the status of each run that the study's settings ask for, and of runs added later.

        This is quick: it looks for arrays and weights without hashing them, which `verify` does.

        Returns
        -------
        pandas.DataFrame
            The columns ``kind``, ``run_name``, ``seed``, ``status`` ("done", "diverged", "failed", "missing"
            or "damaged") and ``message``.
        """
        import pandas as pd

        columns = ["kind", "run_name", "seed", "status", "message"]
        table = pd.DataFrame([asdict(run) for run in study_status(self._store).runs], columns=columns)
        return table.astype({"seed": "Int64"})

    def verify(self, *, progress: bool = False) -> Verification:
        """Hash every file of the study again.

        Parameters
        ----------
        progress
            Whether to show a progress bar on standard error.

        Returns
        -------
        Verification
            ``findings`` lists what is damaged; ``intact`` is whether nothing is. `kdfast verify --repair`
            also puts damaged folders aside.
        """
        return verify(self.path, progress=progress)

    def report(self, out: str | Path | None = None) -> dict[str, Path]:
        """Write the study's report: tables, texts, report.json, figures and models.

        Parameters
        ----------
        out
            Another folder than the study's own, for example if that is read-only.

        Returns
        -------
        dict of str to pathlib.Path
            The files by name.
        """
        return report.write(self._store, None if out is None else Path(out))


def open_study(path: str | Path) -> StudyResults:
    """Open the folder of a study, also while its sweep is running.

    Parameters
    ----------
    path
        The folder that `kdfast.sweep` or `kdfast.import_study` wrote.

    Raises
    ------
    StudyError
        There is no study, or it is damaged.

    Examples
    --------
    >>> len(kdfast.open_study("study").results)
    16
    """
    return StudyResults(StudyStore.open(path))


def run_model(store: StudyStore, key: RunKey) -> Path:
    """The model file of a run. Raises StudyError where it has none: it diverged, or was imported."""
    path = store.path / "results" / key.folder / "weights.safetensors"
    if store.get(key).card is None or not path.is_file():
        raise StudyError(f"{key.name} with seed {key.seed} has no model", where=str(store.path))
    return path


def _few(hint: str) -> str:
    """The start of a hint that lists a whole grid."""
    return hint if len(hint) <= 200 else hint[:200].rsplit(",", 1)[0] + ", …"
