"""Out of a study: one trained network as an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdfast.errors import ConfigError
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from kdfast.models.onnx_file import OnnxFile, export_tagger
from kdfast.models.tagger import Tagger, load_model
from kdfast.store.key import RunKey
from kdfast.store.store import StudyStore
from kdfast.store.table import results_table, select_best
from kdfast.study.results import StudyResults, run_model

__all__ = ["chosen_run", "export_onnx"]


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
    if isinstance(model, Tagger):
        if run is not None or seed is not None:
            raise ConfigError("names a run of a study, and a tagger was given", where="run")
        if out is None:
            raise ConfigError("must name the file to write", where="out")
        tagger = model
        about: dict[str, Any] = {}
        place = Path(out)
    else:
        tagger, about, place = _found(Path(model), run, seed, own_model)
    if jets is not None and not isinstance(jets, PackedJets):
        jets = load_jets(jets, require_labels=False)
    return export_tagger(tagger, Path(out or place), opset=opset, precision=precision, jets=jets, about=about)


def _found(path: Path, run: str | None, seed: int | None, own_model: Any) -> tuple[Tagger, dict[str, Any], Path]:
    """(the tagger, metadata, the default place of its ONNX file) of a model file or a study's run."""
    if (path / "provenance.json").exists():
        store = StudyStore.open(path)
        key = chosen_run(store, run, seed)
        weights = run_model(store, key)
        about = {"study": path.resolve().name, "run": key.name, "seed": key.seed}
        place = Path(f"{key.name}.seed{key.seed}.onnx")
    else:
        if run is not None or seed is not None:
            raise ConfigError("names a run, and this is no study", where=f"run of {path}")
        weights = path
        about = {}
        place = path.with_suffix(".onnx")
    tagger = load_model(weights, model=own_model)
    return tagger, about | {"model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}, place


def chosen_run(store: StudyStore, run: str | None = None, seed: int | None = None) -> RunKey:
    """The run of this name and seed; by default the student that is best by AUC, of this seed or of all.

    Raises ConfigError for an unknown one, StudyError where none has finished.
    """
    if run is not None:
        return StudyResults(store)._named(run, seed).key
    table = results_table(store.results())
    best = select_best(table if seed is None else table[table["seed"] == seed], "auc")
    return RunKey("student", str(best["run_name"]), int(best["seed"]))
