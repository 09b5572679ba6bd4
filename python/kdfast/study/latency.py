"""What a trained network costs: parameters, operations, and the time of a call on one core."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from kdfast.jets.readers import load_jets
from kdfast.jets.sample import sample
from kdfast.models.onnx_file import onnx_bytes, padded_batches, session
from kdfast.models.tagger import Tagger, load_model
from kdfast.store.attempts import now
from kdfast.store.documents import LatencyDocument, TimingDocument
from kdfast.store.identity import training_environment
from kdfast.store.key import RunKey
from kdfast.store.store import StudyStore
from kdfast.study.results import run_model
from kdfast.study.trigger import chosen_run

__all__ = ["latency"]

_BATCHES = (1, 100)
_JETS = 1_000
_WARM_UP = 5
_LEAST_CALLS = 20


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
            raise ConfigError("names a run of a study, and this is none", where="run")
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
    with _one_thread():
        for batch in _BATCHES:
            if len(view) < batch:
                continue
            padded = list(padded_batches(view, batch))[: len(view) // batch]
            packed = [view[start : start + batch] for start in range(0, len(padded) * batch, batch)]
            timings += [
                _timing("onnxruntime", batch, lambda x: running.run(None, {"jets": x}), padded, seconds),
                _timing("kdfast", batch, partial(tagger.logits, prepared=True), packed, seconds),
            ]
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


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
