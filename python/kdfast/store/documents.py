"""The JSON documents of a study: what each may hold, checked once, where it is read.

A study may be damaged in ways that checksums don't show, or come from somebody who computed the checksums
again. So each document has a model of the types and ranges that the rest of the program relies on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from kdfast.distill import schedules
from kdfast.errors import DamagedError, Fault, NewerFormatError
from kdfast.metrics import WORKING_POINTS
from kdfast.store.key import RunKey
from kdfast.validation import fault_in_words

__all__ = [
    "FORMAT",
    "INTEGER_METRICS",
    "MANIFEST",
    "AttemptDocument",
    "CheckpointDocument",
    "ClaimDocument",
    "Document",
    "LatencyDocument",
    "ManifestDocument",
    "PackDocument",
    "ProvenanceDocument",
    "ResultDocument",
    "TimingDocument",
    "json_bytes",
    "json_number",
    "parse",
]

# Version of the layout of a study. A reader refuses a higher one.
FORMAT = 1

MANIFEST = "manifest.json"

# Background jets that survive at each working point, on the test and on the validation jets, and numbers of
# epochs.
_SURVIVORS = tuple(f"n_bkg_{point}{suffix}" for suffix in ("", "_val") for point in WORKING_POINTS)
INTEGER_METRICS = (*_SURVIVORS, "best_epoch", "epochs")

_LARGEST = 1e18  # more than any number of jets or seconds; its square is still a float


class Document(BaseModel):
    """A document, read strictly: no text counts as a number. Unknown keys are left out."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


def _no_path(name: str) -> str:
    if "/" in name or "\0" in name or name in ("", ".", "..", MANIFEST):
        raise ValueError(f"it lists {name!r}, which is not a file of this folder")
    return name


def _is_metric(metrics: dict[str, int | float]) -> dict[str, int | float]:
    for name, value in metrics.items():
        if name in INTEGER_METRICS and not (value >= 0 and value == int(value)):
            raise ValueError(f"{name} is {value}, and must be a whole number from 0 on")
        if name.startswith("auc") and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, and must lie in [0, 1]")
        if name.startswith("bkg_rej") and value <= 0:
            raise ValueError(f"{name} is {value}, and must be positive")
    return metrics


def _run(run: Any) -> schedules.Run:
    """A run from its table; its own checks say what is wrong with the values."""
    if run is None or isinstance(run, (schedules.RunConfig, schedules.NoTeacher)):
        return run
    settings = run.get("settings", {}) if isinstance(run, dict) else None
    if not isinstance(settings, dict):
        raise ValueError("a configuration must be a table, and so must its settings")
    values = [value for name, value in run.items() if name != "settings"]
    if not all(value is None or type(value) in (int, float, str) for value in (*values, *settings.values())):
        raise ValueError("a configuration holds numbers and a shape")
    if any(run.get(name, 0) is None for name in ("temp_init", "alpha_init", "shape")):
        raise ValueError("temperature, alpha and shape must not be null")
    try:
        return schedules.run_from(run)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None


Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Integer | Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Run = Annotated[schedules.Run, PlainValidator(_run)]
# A diverged run's losses are "nan" and "inf", which JSON has no numbers for.
CurveValue = float | Literal["nan", "inf", "-inf"]


class ManifestDocument(Document):
    """SHA-256 of each file of a folder."""

    format: int = Field(ge=1, le=FORMAT)
    files: dict[Annotated[str, AfterValidator(_no_path)], Digest] = Field(min_length=1)


class ResultDocument(Document):
    """A trained network without its arrays: see StoredResult."""

    kind: Literal["teacher", "baseline", "student"]
    name: str
    seed: Integer
    config: Run
    status: Literal["done", "diverged"]
    message: str
    metrics: Annotated[dict[str, Number], AfterValidator(_is_metric)]
    curves: dict[str, list[CurveValue]]
    card: dict[str, Any] | None
    stored: str = ""
    environment: dict[str, str] | None = None
    resumed_from: tuple[dict[str, str], ...] = ()

    @model_validator(mode="after")
    def _curves_of_epochs(self) -> ResultDocument:
        if "epoch" in self.curves and len({len(values) for values in self.curves.values()}) > 1:
            raise ValueError("its curves differ in length")
        return self


class _File(Document):
    path: str
    bytes: Integer
    sha256: str


class _Import(Document):
    files: tuple[_File, ...]
    notes: tuple[str, ...]
    seeds: Literal["given", "unknown"] = "given"


class _Data(Document):
    fingerprint: str | None = None
    test_fingerprint: str | None = None


class _Decisive(Document):
    data: _Data = _Data()


class ProvenanceDocument(Document):
    """What a study was made with, as far as the program reads it; other keys are shown as they are."""

    format: int = Field(ge=1, le=FORMAT)
    decisive: _Decisive = _Decisive()
    environment: dict[str, str] = {}
    given: tuple[str, ...] = ()
    imported: _Import | None = None


class PackDocument(Document):
    """The runs of a pack (see schedules.Run)."""

    seed: Integer
    runs: tuple[Run, ...]
    threads: Integer | None = None
    seconds: float | None = None


class AttemptDocument(Document):
    """A try that failed: see attempts.Attempt."""

    name: str
    ended: Literal["error", "lost", "retry"]
    error: str
    members: tuple[str, ...]
    what: dict[str, Any]
    host: str
    pid: Integer
    kdfast: str
    when: str

    @property
    def runs(self) -> tuple[RunKey, ...]:
        """The results that it was to make."""
        found = (RunKey.parse(name) for name in self.members)
        return tuple(key for key in found if key is not None)


class TimingDocument(Document):
    """Time of a call with `batch` jets, in microseconds."""

    engine: Literal["onnxruntime", "kdfast"]
    batch: Integer
    p50_us: float = Field(gt=0, le=_LARGEST)
    p99_us: float = Field(gt=0, le=_LARGEST)
    calls: Integer


class LatencyDocument(Document):
    """What a network costs. model: its sizes, as in a result's card. flops: of the matrix products for a jet
    of N constituents, as coefficients of 1, N, N². constituents: mean of the jets that were timed."""

    model: dict[str, Any]
    parameters: Integer
    flops: tuple[float, float, float] | None
    constituents: float
    timings: tuple[TimingDocument, ...]
    environment: dict[str, str]
    when: str

    def timing(self, engine: str, batch: int) -> TimingDocument | None:
        """Of an engine with this number of jets a call; None: it was not measured."""
        return next((each for each in self.timings if (each.engine, each.batch) == (engine, batch)), None)

    def flops_per_jet(self) -> float | None:
        """For a jet of the mean number of constituents."""
        n = self.constituents
        return None if self.flops is None else self.flops[0] + self.flops[1] * n + self.flops[2] * n * n


class CheckpointDocument(Document):
    """A checkpoint without its tensors. belongs_to: the run's settings. environments: that trained it."""

    belongs_to: dict[str, Any]
    environments: tuple[dict[str, str], ...]
    step: Integer
    best_epoch: Integer
    best_auc: float
    seconds: float
    curves: dict[str, list[CurveValue]]


class ClaimDocument(Document):
    """Who made a claim. inode: of the file that was claimed with."""

    host: str
    pid: Integer
    machine: str
    started: str
    version: str
    since: str
    owner: str
    inode: int


D = TypeVar("D", bound=Document)


def parse(kind: type[D], content: bytes, where: str, file: str | None = None, hint: str | None = None) -> D:
    """A document from its file. Raises DamagedError, NewerFormatError.

    where, file, hint: of the error (see DamagedError).
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    for fault in faults:
        if fault["loc"] == ("format",) and fault["type"] == "less_than_equal":
            what = f"was written by a newer kdfast (format {fault['input']}; this one reads up to {FORMAT})"
            place = where if file is None else f"{where}/{file}"
            raise NewerFormatError(what, where=place, hint="upgrade kdfast to read it")
    first = faults[0]
    if first["type"] == "json_invalid":
        raise DamagedError(Fault.UNREADABLE, where=where, file=file, detail=first["msg"], hint=hint)
    detail = fault_in_words(first).rstrip(".")
    raise DamagedError(Fault.CONTENT, where=where, file=file, detail=detail[:300], hint=hint)


# ---- writing


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """JSON text. Floats come back bit for bit; NaN and infinity are refused (ValueError)."""
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} can't be stored as JSON")


def json_number(value: float) -> float | str:
    """A number as JSON can hold it: NaN and infinity (of a diverged run) become text that float() reads."""
    value = float(value)
    return value if math.isfinite(value) else repr(value)
