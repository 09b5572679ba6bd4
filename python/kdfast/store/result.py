"""One trained network as it is stored: metrics and curves are read at once, arrays and weights on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from kdfast.distill.schedules import Run, run_table
from kdfast.errors import Fault
from kdfast.store.attempts import now
from kdfast.store.documents import ResultDocument, json_bytes, json_number
from kdfast.store.folders import damage, read_checked, read_document
from kdfast.store.key import RunKey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StoredResult", "array_bytes", "load_arrays", "load_result", "result_files"]

T = TypeVar("T")

# What of a result is not in result.json.
_ELSEWHERE = ("arrays", "state")


@dataclass(frozen=True)
class StoredResult:
    """One trained network as it is stored.

    kind, name, seed: which run it is of (see RunKey). config: a student's configuration; a baseline's, where
    it has further settings. status: "done" or "diverged", and message says why. metrics: those of
    `kdfast.metrics.evaluate` on the test jets and, with the suffix "_val", on the validation jets; best_epoch
    (counted from 0) and epochs; seconds of training; of a diverged run, epochs alone. curves: a value per
    epoch, or, with a curve `epoch` of their numbers (counted from 1), of these epochs only. arrays: logits
    per jet [B], `scores_validation` and `scores_test`; none of a diverged or an imported run. state: the
    network's tensors. card: `kdfast.models.tagger_card`, with which weights.safetensors is a model file.
    stored: when it was stored (UTC, ISO 8601), filled in by `StudyStore.write`. environment: of the process
    that finished it: kdfast, torch, isa, backend, device, host. resumed_from: other environments (the host
    aside) that trained it before, on which its last bits may depend.

    Of a result that was read back, arrays and state are loaded and checked on first use, which raises
    StudyError if they are damaged.
    """

    kind: str
    name: str
    seed: int
    config: Run = None
    status: str = "done"
    message: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    card: Mapping[str, Any] | None = None
    stored: str = ""
    environment: Mapping[str, str] | None = None
    resumed_from: Sequence[Mapping[str, str]] = ()

    @property
    def key(self) -> RunKey:
        """Which run it is of."""
        return RunKey(self.kind, self.name, self.seed)

    @property
    def has_scores(self) -> bool:
        """Whether its scores per jet are stored: not of a diverged and not of an imported result."""
        return self.status == "done" and bool(self.arrays)


def result_files(result: StoredResult) -> dict[str, bytes]:
    """The files that store a result."""
    document = {each.name: getattr(result, each.name) for each in fields(result) if each.name not in _ELSEWHERE}
    document |= {
        "config": run_table(result.config),
        "curves": {name: [json_number(value) for value in values] for name, values in result.curves.items()},
        "stored": result.stored or now(),
    }
    return {
        "result.json": json_bytes(document),
        "arrays.safetensors": array_bytes(result.arrays),
        "weights.safetensors": _state_bytes(result.state, result.card),
    }


def load_result(folder: Path) -> StoredResult:
    """The result in a folder. Raises DamagedError where it is not as it was written, or of another run."""
    document = read_document(folder, "result.json", ResultDocument)
    named = f"{document.kind}.{document.name}.seed{document.seed}"
    if named != folder.name or RunKey.parse(named) is None:
        raise damage(folder, Fault.CONTENT, "result.json", f"it holds {named}")
    fields = dict(document)
    fields["curves"] = {name: [float(value) for value in values] for name, values in document.curves.items()}
    return StoredResult(
        **fields,
        arrays=_OnUse(lambda: load_arrays(folder)),
        state=_OnUse(lambda: _load_state(folder)),
    )


class _OnUse(Mapping[str, Any]):
    """A mapping that is loaded when first looked at."""

    def __init__(self, load: Callable[[], Mapping[str, Any]]) -> None:
        self._load = load

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        return self._load()

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def load_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a committed folder."""
    from safetensors.numpy import load

    return _loaded(load, folder, "arrays.safetensors")


def _load_state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    return _loaded(load, folder, "weights.safetensors")


def _loaded(load: Callable[[bytes], T], folder: Path, file: str) -> T:
    content = read_checked(folder, file)
    try:
        return load(content)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise damage(folder, Fault.CONTENT, file, str(error)) from error


def array_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as the content of a safetensors file."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _state_bytes(state: Mapping[str, Tensor], card: Mapping[str, Any] | None) -> bytes:
    from safetensors.torch import save

    from kdfast.models.tagger import model_bytes

    if card is not None:
        return model_bytes(state, card)
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
