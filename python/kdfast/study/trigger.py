"""Out of a study: one trained network as an ONNX file, and what a network costs.

The cost: parameters, operations, and the time of a call on one core.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from kdfast.errors import ConfigError, DataError, ModelError
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets, sample
from kdfast.models.onnx_file import OnnxFile, export_tagger, onnx_bytes, padded_batches, session
from kdfast.models.tagger import Tagger, load_model
from kdfast.store.attempts import now
from kdfast.store.documents import LatencyDocument, TimingDocument
from kdfast.store.identity import training_environment
from kdfast.store.key import RunKey
from kdfast.store.store import StudyStore
from kdfast.store.table import results_table, select_best
from kdfast.study.results import StudyResults, run_model

__all__ = ["chosen_run", "export_onnx", "latency"]

# Of the measurements of latency.
_BATCHES = (1, 100)
_JETS = 1_000
_WARM_UP = 5
_LEAST_CALLS = 20


def export_onnx(
    model: str | Path | Tagger,
    out: str | Path | None = None,
    *,
    run: str | None = None,
    seed: int | None = None,
    opset: int = 17,
    precision: str = "fp32",
    jets: PackedJets | str | Path | None = None,
    own_model: str | Callable[[], Any] | None = None,
) -> OnnxFile:
    """Write a tagger as an ONNX file, after a comparison with `predict`.

    The file takes jets and gives logits: features, standardisation, mask and network are in its graph. Needs
    ``pip install 'kdfast[onnx]'``.

    Parameters
    ----------
    model : str, Path or Tagger
        A model file, a study's folder, or a tagger.
    out : str or Path, optional
        The file to write. By default next to the model file, with the ending .onnx; of a study's run, in the
        current folder, named after run and seed.
    run : str, optional
        Of a study: the run's name, "teacher" or "baseline". By default the student that is best by AUC.
    seed : int, optional
        Of that run.
    opset : int
        15 to 20.
    precision : str
        "fp32", "fp16" (weights and arithmetic of the network) or "int8" (its matrix products, quantized
        dynamically by onnxruntime).
    jets : PackedJets, str or Path, optional
        Jets to compare on, as `load_jets` gives or reads them. By default from the bundled sample. In fp32 the first
        1,000 are used; in fp16 and int8 all are, for the AUC before and after.
    own_model : callable or str, optional
        For a network of your own: the function that makes it, as for `load_model`. It needs padded input, and an
        opset from 18 on: torch's exporter translates it.

    Returns
    -------
    OnnxFile
        With the largest difference of a logit, and the AUC before and after.

    Raises
    ------
    ModelError
        If a logit in fp32 differs by more than 1e-4, or the model can't be exported. No file is then written.
    ConfigError
        If onnx or onnxruntime is not installed, or an argument is out of range.

    See Also
    --------
    kdfast.models.Tagger.to_torch : what the file's input and output are.

    Examples
    --------
    >>> import tempfile
    >>> from kdfast.jets.features import Standardisation
    >>> from kdfast.models import JetTransformer, Preparation
    >>> jets = kdfast.sample()[:1000]
    >>> scaling = Standardisation.fit(kdfast.features(jets))
    >>> tagger = Tagger(JetTransformer("small"), Preparation("hlt", "nominal", 0, None, scaling))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = kdfast.export_onnx(tagger, f"{folder}/tagger.onnx", jets=jets)
    >>> written.jets, written.difference < 1e-4
    (1000, True)
    """
    about: dict[str, Any] = {}
    if isinstance(model, Tagger):
        if run is not None or seed is not None:
            raise ConfigError("names a run of a study, but a tagger was given", where="run")
        if out is None:
            raise ConfigError("must name the file to write", where="out")
        tagger = model
    else:
        weights = Path(model)
        if (weights / "provenance.json").exists():
            store = StudyStore.open(model)
            key = chosen_run(store, run, seed)
            about = {"study": weights.resolve().name, "run": key.name, "seed": key.seed}
            weights = run_model(store, key)
            out = out or f"{key.name}.seed{key.seed}.onnx"
        elif run is not None or seed is not None:
            raise ConfigError("names a run, but this is not a study", where=f"run of {model}")
        tagger = load_model(weights, model=own_model)
        about["model_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        out = out or weights.with_suffix(".onnx")
    if jets is not None and not isinstance(jets, PackedJets):
        jets = load_jets(jets, require_labels=False)
    return export_tagger(tagger, Path(out), opset=opset, precision=precision, jets=jets, about=about)


def chosen_run(store: StudyStore, run: str | None = None, seed: int | None = None) -> RunKey:
    """The run of this name and seed; by default the student that is best by AUC, of this seed or of all.

    Raises ConfigError for an unknown one, StudyError where none has finished.
    """
    if run is not None:
        return StudyResults(store)._named(run, seed).key
    table = results_table(store.results())
    best = select_best(table if seed is None else table[table["seed"] == seed], "auc")
    return RunKey("student", str(best["run_name"]), int(best["seed"]))


# ---- latency


def latency(
    model: str | Path | Tagger,
    *,
    run: str | None = None,
    seed: int | None = None,
    jets: PackedJets | str | Path | None = None,
    seconds: float = 1.0,
    own_model: str | Callable[[], Any] | None = None,
) -> pd.DataFrame:
    """Measure how long a network takes, on one thread: by onnxruntime, and by kdfast's own kernels.

    Of a study, one network of each size is measured, and the results are stored with it, for
    ``study.best(…, max_latency_us=…)`` and the report. Needs ``pip install 'kdfast[onnx]'``.

    Parameters
    ----------
    model : str, Path or Tagger
        A study's folder, a model file, or a tagger.
    run : str, optional
        Of a study: this run alone; "teacher" and "baseline" are names too.
    seed : int, optional
        Of that run.
    jets : PackedJets, str or Path, optional
        Up to 1,000 of them are timed, in the model's view. By default from the bundled sample.
    seconds : float
        For each timing; there are at least 20 calls.
    own_model : callable or str, optional
        For a network of your own, as for `export_onnx`.

    Returns
    -------
    pandas.DataFrame
        A row for each run, engine and batch: ``run_name``, ``seed``, ``parameters``, ``flops`` (a jet of the mean
        number of constituents; two for each multiplication in a matrix product), ``constituents`` (the mean),
        ``engine`` ("onnxruntime": the ONNX file of `export_onnx`, from padded momenta; "kdfast": `Tagger.logits` of
        prepared jets), ``batch`` (jets in a call), ``p50_us``, ``p99_us`` (of a call, in µs) and ``calls``.

    Raises
    ------
    ConfigError
        If onnxruntime is not installed, or there is no such run.
    """
    if jets is None:
        jets = sample()
    elif not isinstance(jets, PackedJets):
        jets = load_jets(jets, require_labels=False)
    jets = jets[:_JETS]
    measured: list[tuple[str, int | None, LatencyDocument]] = []
    if isinstance(model, Tagger) or not (Path(model) / "provenance.json").exists():
        if run is not None or seed is not None:
            raise ConfigError("names a run of a study, but this is not a study", where="run")
        tagger = model if isinstance(model, Tagger) else load_model(model, model=own_model)
        name = "" if isinstance(model, Tagger) else Path(model).name
        measured.append((name, None, _measured(tagger, jets, seconds)))
    else:
        store = StudyStore.open(model)
        for key in [chosen_run(store, run, seed)] if run is not None else _one_of_each_size(store, seed):
            document = _measured(load_model(run_model(store, key), model=own_model), jets, seconds)
            store.write_latency(key, document)
            measured.append((key.name, key.seed, document))
    rows = [
        {
            "run_name": run_name,
            "seed": run_seed,
            "parameters": document.parameters,
            "flops": document.flops_per_jet(),
            "constituents": document.constituents,
            **timing.model_dump(),
        }
        for run_name, run_seed, document in measured
        for timing in document.timings
    ]
    return pd.DataFrame(rows)


def _one_of_each_size(store: StudyStore, seed: int | None) -> list[RunKey]:
    """The best student, and one run of each other size of model that the study has."""
    best = chosen_run(store, seed=seed)
    stored = {result.key: result.card for result in store.results() if result.card is not None}
    found: dict[str, RunKey] = {}
    for key in [key for key in (best, *stored) if key in stored]:
        found.setdefault(json.dumps(stored[key]["model"], sort_keys=True), key)
    return list(found.values())


def _measured(tagger: Tagger, jets: PackedJets, seconds: float) -> LatencyDocument:
    view = tagger.preparation.view_of(jets)
    view = view[view.counts > 0]
    if not len(view):
        raise DataError("no jet has a constituent in the model's view", where="jets")
    running = session(onnx_bytes(tagger), threads=1)
    timings: list[TimingDocument] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for batch in _BATCHES:
            if len(view) < batch:
                continue
            padded = list(padded_batches(view, batch))[: len(view) // batch]
            packed = [view[start : start + batch] for start in range(0, len(padded) * batch, batch)]
            timings += [
                _timing("onnxruntime", batch, lambda x: running.run(None, {"jets": x}), padded, seconds),
                _timing("kdfast", batch, partial(tagger.logits, prepared=True), packed, seconds),
            ]
    finally:
        torch.set_num_threads(threads)
    return LatencyDocument(
        model=tagger.model.config.model_dump(),
        parameters=sum(each.numel() for each in tagger.model.parameters()),
        flops=_flops(tagger),
        constituents=float(view.counts.mean()),
        timings=tuple(timings),
        environment=training_environment("cpu") | {"onnxruntime": metadata.version("onnxruntime")},
        when=now(),
    )


def _timing(
    engine: Literal["onnxruntime", "kdfast"],
    batch: int,
    call: Callable[[Any], Any],
    inputs: Sequence[Any],
    seconds: float,
) -> TimingDocument:
    """Times calls with the inputs in turns."""
    turns = cycle(inputs)
    for _ in range(_WARM_UP):
        call(next(turns))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_CALLS or time.perf_counter() < end:
        each = next(turns)
        start = time.perf_counter()
        call(each)
        times.append(1e6 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times, [50, 99]).tolist()
    return TimingDocument(engine=engine, batch=batch, p50_us=p50, p99_us=p99, calls=len(times))


def _flops(tagger: Tagger) -> tuple[float, float, float] | None:
    """Coefficients of 1, N and N² in the operations of the matrix products for a jet of N constituents.

    They are counted for N = 1, 2, 3, which gives the polynomial of a network of dense layers and attention.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        network = tagger.to_torch().network
    except ModelError:
        return None
    counts = []
    for n in (1, 2, 3):
        features = torch.zeros(1, n, tagger.model.config.num_features)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(features, torch.ones(1, n, dtype=torch.bool))
        counts.append(counter.get_total_flops())
    one, two, three = counts
    squared = (three - 2 * two + one) / 2
    linear = two - one - 3 * squared
    return one - linear - squared, linear, squared
