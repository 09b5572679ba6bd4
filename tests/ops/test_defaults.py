"""torch's default dtype and device, and compiled autograd, change no result of an op."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor

import kdfast
from kdfast.distill.trainer import train_pack
from kdfast.models import JetTransformer
from kdfast.models.evaluation import evaluate_model
from kdfast.ops import constituent_attention, distill_loss, dropout
from kdfast.ops.adamw import adamw
from kdfast.ops.hlt_emulation import hlt_emulation
from kdfast.ops.jet_features import jet_features
from tests.distill.packs import MODEL, pack, students, view


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
}
OFFSETS = torch.tensor([0, 30, 30, 64])


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float32, device="cpu")


LOGITS, TEACHER, LABELS, QKV = _random(300, 64, 1), _random(64, 1), torch.ones(64), _random(64, 3, 2, 8)
CONSTITUENTS = _random(64, 4).abs().sort(0, descending=True).values + 1

HLT = {
    "pt_threshold": 0.5,
    "merge_radius": 0.1,
    "pt_resolution": 0.1,
    "angular_resolution": 0.01,
    "loss": 0.1,
    "seed": 3,
}


def _loss(logits: Tensor) -> tuple[Tensor, ...]:
    logits = logits.clone().requires_grad_()
    loss, terms = distill_loss(logits, TEACHER, LABELS, temperature=2.0, alpha=0.5, return_terms=True)
    return loss.detach(), terms, *torch.autograd.grad(loss.sum(), logits)


def _attention() -> tuple[Tensor, ...]:
    qkv = QKV.clone().requires_grad_()
    out = constituent_attention(*qkv.unbind(1), OFFSETS, dropout_p=0.25, seed=3)
    return out.detach(), *torch.autograd.grad(out.square().sum(), qkv)


def _adamw() -> tuple[Tensor, ...]:
    buffers = [x.abs() for x in _random(4, 2, 9)]
    rate, decay = QKV[:2, 0, 0, 0].abs(), QKV[:2, 0, 0, 1].abs()
    norm = adamw(*buffers, step=OFFSETS[1:3] + 1, learning_rate=rate, weight_decay=decay, clip_norm=1.0)
    return *buffers, norm


RUNS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "distill_loss": lambda: _loss(LOGITS),
    "distill_loss of one member": lambda: _loss(LOGITS[0]),
    "constituent_attention": _attention,
    "dropout": lambda: (dropout(_random(64, 16), OFFSETS, 0.25, 3),),
    "adamw": _adamw,
    "hlt_emulation": lambda: hlt_emulation(CONSTITUENTS[:30], OFFSETS[:2], OFFSETS[:1], **HLT),
    "jet_features": lambda: (jet_features(CONSTITUENTS, OFFSETS),),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_ops(backend: str, default: str, name: str) -> None:
    if backend == "reference" and default == "meta":
        pytest.skip("references make tensors where torch's default says")
    forced: AbstractContextManager[None] = kdfast.backend("reference") if backend == "reference" else _nothing()
    with forced:
        expected = RUNS[name]()
        with DEFAULTS[default]():
            found = RUNS[name]()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize("default", ["float64", "bfloat16"])
def test_training_and_evaluation(default: str) -> None:
    jets, model, a_pack = view(20, 3), JetTransformer(MODEL, seed=1), pack(students(1), epochs=1)

    def run() -> tuple[Tensor, ...]:
        (result,) = train_pack(a_pack)
        assert result.status == "done"
        fresh = JetTransformer(MODEL, seed=1)
        logits = [next(iter(evaluate_model(m, jets.features, jets.offsets)))[0] for m in (model, fresh)]
        return *logits, result.scores_test, *result.state.values()

    expected = run()
    with DEFAULTS[default]():
        found = run()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_autograd() -> None:
    """Its trace runs the ops' backward passes on tensors without numbers."""
    compiled_autograd = pytest.importorskip("torch._dynamo.compiled_autograd")
    expected = *_loss(LOGITS[0]), *_attention()
    with compiled_autograd._enable(torch.compile(backend="eager")):
        found = *_loss(LOGITS[0]), *_attention()
    torch.testing.assert_close(found, expected)
