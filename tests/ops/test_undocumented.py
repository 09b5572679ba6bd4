"""Names that PyTorch does not document may go: ops give the same results without them."""

import importlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor

from kdfast.ops import constituent_attention_qkvpacked, distill_loss, dropout, undocumented
from kdfast.ops.autograd import is_eager
from tests.ops.backends import cuda_kernels

NAMES = ["_C._len_torch_dispatch_stack", "_C._are_functorch_transforms_active", "Tensor._version"]


def results() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(12, 3, 2, 8, generator=generator, requires_grad=True)
    offsets = torch.tensor([0, 5, 5, 12])
    attended = constituent_attention_qkvpacked(qkv, offsets, dropout_p=0.2, seed=3)
    logits = dropout(attended.flatten(1), offsets, 0.1, 4)[:, :1]
    loss = distill_loss(logits, torch.ones(12, 1), torch.ones(12), temperature=2.0, alpha=0.5)
    return [attended.detach(), loss.detach(), *torch.autograd.grad(loss, qkv)]


@pytest.fixture(scope="module")
def expected() -> list[Tensor]:
    return results()


@pytest.fixture(params=NAMES)
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The module as it is imported where torch has no such name, which torch itself then has again."""
    owner, _, name = f"torch.{request.param}".rpartition(".")
    with monkeypatch.context() as patch:
        if owner == "torch.Tensor":  # whose attributes can't be deleted
            patch.setattr(torch, "Tensor", object)
        else:
            patch.delattr(importlib.import_module(owner), name)
        importlib.reload(undocumented)  # the functions in use see its new variables
    yield name
    importlib.reload(undocumented)


def test_results_are_the_same(expected: list[Tensor], without: str) -> None:
    for actual, wanted in zip(results(), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_fallbacks(without: str) -> None:
    x = torch.zeros(3)
    assert is_eager(x) == (without not in ("_len_torch_dispatch_stack", "_are_functorch_transforms_active"))
    assert (undocumented.version_of(x) is None) == (without == "_version")


@pytest.mark.cuda_kernels
@pytest.mark.parametrize("without", ["Tensor._version"], indirect=True)
def test_offsets_without_a_version_are_looked_at_each_time(without: str) -> None:
    qkv = torch.randn(12, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 5, 5, 12])
    with cuda_kernels():
        first, second = (constituent_attention_qkvpacked(qkv, offsets) for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()


@pytest.mark.parametrize("documented_only", [False, True])
def test_variables(documented_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if documented_only:
        monkeypatch.setattr(undocumented, "os", SimpleNamespace(environ=dict(os.environ)))
    read = undocumented.variable_reader("KDFAST_TEST_VARIABLE")
    assert read() is None
    undocumented.os.environ["KDFAST_TEST_VARIABLE"] = "x"
    try:
        assert read() == "x"
    finally:
        del undocumented.os.environ["KDFAST_TEST_VARIABLE"]
    assert read() is None


def test_apply_where_function_has_no_other() -> None:
    class Function:
        @classmethod
        def apply(cls, x: int) -> int:
            return x + 1

    with mock.patch.object(torch.autograd, "Function", Function):

        class Increment(Function):
            pass

        assert undocumented.direct_apply(Increment)(1) == 2


def test_with_the_names() -> None:
    x = torch.zeros(3)
    before = undocumented.version_of(x)
    assert before is not None
    x.add_(1)
    assert undocumented.version_of(x) == before + 1
    with torch.inference_mode():
        assert undocumented.version_of(torch.zeros(3)) is None
    assert not undocumented.is_watched()
    assert torch.func.vmap(lambda row: row + float(undocumented.is_watched()))(x.expand(2, 3))[0, 0] == 2.0
