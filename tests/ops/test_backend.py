"""Which implementation runs: forced, chosen, fallen back with one warning."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kdfast
from kdfast.errors import BackendError, ConfigError, KdfastWarning
from kdfast.ops import backend

compiled = pytest.mark.skipif(backend.why_no_cpu is not None, reason=str(backend.why_no_cpu))


@pytest.fixture(autouse=True)
def nothing_forced_or_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDFAST_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_warned", {})


@compiled
def test_the_compiled_kernel_is_taken_by_itself() -> None:
    assert backend.forced() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose("op", "cpu") == "cpu"


def test_forced_by_context_and_restored() -> None:
    with kdfast.backend("reference"):
        assert backend.forced() == backend.choose("op", "cpu") == "reference"
        if backend.why_no_cpu is None:
            with kdfast.backend("cpu"):
                assert backend.forced() == "cpu"
        assert backend.forced() == "reference"
    assert backend.forced() is None
    with pytest.raises(ZeroDivisionError), kdfast.backend("reference"):
        raise ZeroDivisionError
    assert backend.forced() is None


def test_forced_by_the_environment_but_the_context_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDFAST_BACKEND", "reference")
    assert backend.forced() == "reference"
    if backend.why_no_cpu is None:
        with kdfast.backend("cpu"):
            assert backend.choose("op", "cpu") == "cpu"
    monkeypatch.setenv("KDFAST_BACKEND", "")
    assert backend.forced() is None


def test_a_context_holds_for_its_own_thread() -> None:
    seen: list[str | None] = []
    with kdfast.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend.forced()))
        thread.start()
        thread.join()
    assert seen == [None]


def attended(x: torch.Tensor) -> torch.Tensor:
    return kdfast.ops.constituent_attention(x, x, x, torch.tensor([0, 2, 5]), dropout_p=0.5, seed=3)


def attended_by_the_registered_op(x: torch.Tensor) -> torch.Tensor:
    op = torch.ops.kdfast.constituent_attention.default
    return op(x, x, x, torch.tensor([0, 2, 5]), None, 0.5, 0.5, torch.tensor(3))[0]


def dropped(x: torch.Tensor) -> torch.Tensor:
    return kdfast.ops.dropout(x.flatten(1), None, p=0.5, seed=3)


def dropped_by_the_registered_op(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.kdfast.dropout.default(x.flatten(1), None, 0.5, torch.tensor(3))


def loss(x: torch.Tensor) -> torch.Tensor:
    logits = x.flatten(1)[:, :1]
    labels = torch.ones(len(logits))
    return kdfast.ops.distill_loss(logits, torch.zeros_like(logits), labels, temperature=2.0, alpha=0.5)


@compiled
@pytest.mark.parametrize(
    "op",
    [attended, attended_by_the_registered_op, dropped, dropped_by_the_registered_op, loss],
    ids=lambda op: op.__name__,
)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_the_backward_pass_keeps_the_backend_on_another_thread(
    op: Callable[[torch.Tensor], torch.Tensor], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As autograd's threads of GPUs have it: no block is entered on them."""
    chosen = []
    choose = backend.choose

    def watched(*arguments: Any) -> str:
        chosen.append(choose(*arguments))
        return chosen[-1]

    monkeypatch.setattr(backend, "choose", watched)
    x = torch.randn(5, 2, 16, requires_grad=True)
    with kdfast.backend(name):
        y = op(x)
    thread = threading.Thread(target=y.sum().backward)
    thread.start()
    thread.join()
    assert x.grad is not None
    assert set(chosen) == {name}
    assert backend.forced() is None
    chosen.clear()
    op(x).sum().backward()  # by itself
    assert set(chosen) == {"cpu"}


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"kdfast.backend: unknown backend 'refrence'\ndid you mean 'reference'\?"
    with pytest.raises(ConfigError, match=message), kdfast.backend("refrence"):
        pass
    monkeypatch.setenv("KDFAST_BACKEND", "gpu")
    with pytest.raises(ConfigError, match=r"KDFAST_BACKEND: unknown backend 'gpu'\n.*known: reference, cpu, cuda"):
        backend.forced()


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "why_no_cuda", "no NVIDIA driver is installed")
    with pytest.raises(BackendError, match="no NVIDIA driver is installed\nuse 'cpu'"), kdfast.backend("cuda"):
        pass
    monkeypatch.setattr(backend, "_cpu", None)
    monkeypatch.setattr(backend, "why_no_cpu", "the compiled module is missing")
    with pytest.raises(BackendError, match="the compiled module is missing\nreinstall kdfast"), kdfast.backend("cpu"):
        pass


@compiled
def test_an_unsupported_call_warns_once_per_op_and_reason() -> None:
    with pytest.warns(KdfastWarning, match="kdfast.ops.one runs its PyTorch reference, which is slower: too wide"):
        assert backend.choose("one", "cpu", "too wide") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose("one", "cpu", "too wide") == "reference"
        with kdfast.backend("reference"):  # asked for: nothing to warn of
            assert backend.choose("two", "cpu", "too wide") == "reference"
        with (
            kdfast.backend("cpu"),
            pytest.raises(BackendError, match=r"kdfast.ops.one: the forced backend 'cpu' can't run it: too wide"),
        ):
            backend.choose("one", "cpu", "too wide")
    with pytest.warns(KdfastWarning, match="too long"):
        backend.choose("one", "cpu", "too long")
    with pytest.warns(KdfastWarning, match=r"kdfast.ops.two .* too wide"):
        backend.choose("two", "cpu", "too wide")


@compiled
def test_another_device_warns_once_for_all_ops() -> None:
    with pytest.warns(KdfastWarning, match="no compiled kernel for device 'meta'"):
        assert backend.choose("one", "meta") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose("two", "meta") == "reference"


def test_tensors_on_a_gpu_take_the_cuda_kernels_of_ops_that_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_cuda", SimpleNamespace(one=print))
    monkeypatch.setattr(backend, "why_no_cuda", None)
    assert backend.choose("one", "cuda") == "cuda"
    with kdfast.backend("cuda"):
        assert backend.choose("one", "cuda") == "cuda"
        with pytest.raises(BackendError, match=r"kdfast.ops.two: the forced .*: it has no CUDA kernel yet"):
            backend.choose("two", "cuda")
        if backend.why_no_cpu is None:  # tensors elsewhere are none of its business
            assert backend.choose("one", "cpu") == "cpu"
    with pytest.warns(KdfastWarning, match="kdfast.ops.two .*: it has no CUDA kernel yet"):
        assert backend.choose("two", "cuda") == "reference"
    with pytest.warns(KdfastWarning, match=r"kdfast.ops.one .*: too wide"):
        assert backend.choose("one", "cuda", "too wide") == "reference"
    monkeypatch.setattr(backend, "why_no_cuda", "the driver is too old")
    with pytest.warns(KdfastWarning, match="the driver is too old"):
        assert backend.choose("one", "cuda") == "reference"


def test_without_the_module_everything_runs_on_references_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_cpu", None)
    monkeypatch.setattr(backend, "why_no_cpu", "the compiled module is missing")
    with pytest.warns(KdfastWarning, match="the compiled module is missing"):
        assert backend.choose("one", "cpu") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose("two", "cpu") == "reference"


@compiled
@pytest.mark.parametrize(
    ("isa", "expected"),
    [("baseline", "baseline"), ("sse9", "BackendError: KDFAST_ISA=sse9 is unknown; it may be baseline, avx2, avx512")],
)
def test_isa_from_the_environment(isa: str, expected: str) -> None:
    code = "from kdfast.ops import backend; print(backend.cpu_module().isa)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "KDFAST_ISA": isa}, capture_output=True, text=True
    )
    assert expected in done.stdout + done.stderr


@compiled
def test_the_best_isa_is_taken() -> None:
    code = "from kdfast import _cpu; assert _cpu.isa == _cpu.available_isas[-1]; print(*_cpu.available_isas)"
    environment = {name: value for name, value in os.environ.items() if name != "KDFAST_ISA"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    order = ["baseline", "avx2", "avx512", "avx512bf16", "amx"]
    assert done.stdout.split() == sorted(done.stdout.split(), key=order.index)
