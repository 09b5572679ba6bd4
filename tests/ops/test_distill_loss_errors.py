"""distill_loss: bad arguments get a typed error that names argument and row, from every backend."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kdfast.errors import ConfigError, DataError
from kdfast.ops.distill_loss import distill_loss
from tests.ops.backends import BACKENDS, chosen


@pytest.fixture(params=BACKENDS)
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with chosen(request.param):
        yield request.param


GOOD = {
    "student_logits": torch.zeros(2, 4, 3),
    "teacher_logits": torch.zeros(4, 3),
    "labels": torch.tensor([0, 1, 2, 0]),
    "temperature": 2.0,
    "alpha": 0.5,
    "weights": torch.ones(4),
}
BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"labels": torch.tensor([0, 1, 3, 0])}, DataError, "labels, row 2: must be a class from 0 to 2, is 3"),
    ({"labels": torch.tensor([0, -1, 2, 0])}, DataError, "labels, row 1: must be a class from 0 to 2, is -1"),
    ({"labels": torch.tensor([0, 2**40, 2, 0])}, DataError, "labels, row 1: must be a class"),
    ({"labels": torch.zeros(4)}, DataError, "labels: must be integers for 3 classes, are torch.float32"),
    ({"labels": torch.tensor([0, 1])}, DataError, r"labels: must be \[4\], one for each jet; is \[2\]"),
    ({"weights": torch.tensor([1, 1, 1, -1.0])}, DataError, "weights, row 3: must be finite and not negative, is -1"),
    ({"weights": torch.tensor([1, torch.nan, 1, 1])}, DataError, "weights, row 1: must be finite"),
    ({"weights": torch.tensor([torch.inf, 1, 1, 1])}, DataError, "weights, row 0: must be finite"),
    ({"weights": torch.zeros(4)}, DataError, "weights: are all zero"),
    ({"weights": torch.ones(5)}, DataError, r"weights: must be \[4\]"),
    ({"temperature": 0.0}, ConfigError, "temperature, member 0: must be finite and above 0, is 0.0"),
    ({"temperature": [1.0, -2.0]}, ConfigError, "temperature, member 1: must be finite and above 0, is -2.0"),
    ({"temperature": float("nan")}, ConfigError, "temperature, member 0: must be finite"),
    ({"temperature": float("inf")}, ConfigError, "temperature, member 0: must be finite"),
    (
        {"temperature": [1.0, 2.0, 3.0]},
        ConfigError,
        r"temperature: must be one number, or \[2\], .* is \[3\]",
    ),
    ({"alpha": 1.5}, ConfigError, r"alpha, member 0: must lie in \[0, 1\], is 1.5"),
    ({"alpha": [0.5, -0.1]}, ConfigError, r"alpha, member 1: must lie in \[0, 1\], is -0.1"),
    ({"alpha": float("nan")}, ConfigError, "alpha, member 0"),
    ({"teacher_logits": None}, ConfigError, "teacher_logits: is None, but α of member 0 is 0.5"),
    ({"teacher_logits": torch.zeros(4, 2)}, DataError, r"teacher_logits: must be \[4, 3\] or \[2, 4, 3\]"),
    ({"labels": torch.tensor([0, 1, 2, 0], device="meta")}, DataError, "lies on meta, other.* on cpu"),
    ({"teacher_logits": torch.zeros(4, 3, device="meta")}, DataError, "lies on meta, other.* on cpu"),
    ({"weights": torch.ones(4, device="meta")}, DataError, "lies on meta, other.* on cpu"),
    (
        {"student_logits": torch.zeros(4)},
        DataError,
        r"logits: must be floats \[B, C\] or \[K, B, C\].*4\]\none logit",
    ),
    ({"labels": torch.zeros(4, 1).long()}, DataError, r"labels: must be \[4\], .* is \[4, 1\]\nlabels\[:, 0\] is of"),
    ({"reduction": "avg"}, ConfigError, "reduction: unknown reduction 'avg'\nknown: mean, sum, none"),
    ({"label_smoothing": 1.5}, ConfigError, r"label_smoothing: must lie in \[0, 1\], is 1.5"),
    ({"label_smoothing": float("nan")}, ConfigError, "label_smoothing: must lie in"),
    ({"student_logits": torch.zeros(2, 4, 3).long()}, DataError, "student_logits: must be floats"),
    ({"student_logits": torch.zeros(2, 0, 3)}, DataError, "student_logits: no jets"),
    ({"student_logits": torch.zeros(2, 4, 0)}, DataError, "student_logits: must be floats"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(each_backend: str, change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = GOOD | change
    with pytest.raises(error, match=message):
        distill_loss(**arguments)  # type: ignore[call-overload]


@pytest.mark.parametrize("more", [{"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_with_other_reductions(
    each_backend: str, change: dict[str, object], error: type[Exception], message: str, more: dict[str, object]
) -> None:
    with pytest.raises(error, match=message):
        distill_loss(**(GOOD | more | change))  # type: ignore[call-overload]


@pytest.mark.parametrize("more", [{}, {"reduction": "none"}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), torch.tensor([0.0, 1.5]), torch.tensor([0.0, torch.nan])])
def test_bad_labels_of_a_binary_tagger(each_backend: str, labels: Tensor, more: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"labels, row 1: must be in \[0, 1\]"):
        distill_loss(torch.zeros(2, 1), torch.zeros(2, 1), labels, temperature=1.0, alpha=0.5, **more)
