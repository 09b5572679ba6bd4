"""Which devices a name stands for, what is said where they are missing, and a pack that several share."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kdfast.distill import cuda_engine
from kdfast.distill.devices import check_bf16, default_precision, exact_sums, training_devices
from kdfast.distill.pack import EpochReport, Member
from kdfast.distill.trainer import train_on_gpus, train_pack
from kdfast.errors import BackendError, ConfigError, DataError, KdfastWarning
from kdfast.models import ModelConfig
from kdfast.models.config import PRESETS
from kdfast.ops import backend
from tests.distill.packs import pack, students
from tests.ops.backends import cuda_kernels


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "why_no_cuda", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device", lambda gpu: nullcontext())
    monkeypatch.setattr(backend, "_cuda", SimpleNamespace(architectures="80 90", code_capability=lambda gpu: 80))
    backend.why_no_code.cache_clear()


def test_names(three_gpus: None) -> None:
    assert training_devices("cpu") == training_devices("auto") == ["cpu"]
    assert training_devices("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert training_devices("cuda:2") == ["cuda:2"]
    with pytest.raises(BackendError, match="device 'cuda:3': torch sees 3 GPUs: cuda:0, cuda:1, cuda:2"):
        training_devices("cuda:3")
    for name in ("gpu", "cuda:", "cuda:x", "CUDA"):
        with pytest.raises(ConfigError, match=f"unknown device '{name}'"):
            training_devices(name)


def test_a_gpu_that_the_build_has_no_code_for_is_left_out(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {0: 0, 1: 90, 2: 80}
    monkeypatch.setattr(backend.cuda_module(), "code_capability", code.__getitem__)
    assert training_devices("cuda") == ["cuda:1", "cuda:2"]
    with pytest.raises(BackendError, match=r"device 'cuda:0': .* for compute capabilities 80 90, not for GPU 0's"):
        training_devices("cuda:0")
    with pytest.warns(KdfastWarning, match=r"kdfast\.ops\.adamw runs its PyTorch reference.*not for GPU 0's"):
        assert backend.choose("adamw", "cuda", gpu=0) == "reference"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BackendError, match=r"device 'cuda': .* not for GPU 0's"):
        training_devices("cuda")


def test_a_gpu_that_another_process_has_for_itself_is_left_out(
    three_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def code_capability(gpu: int) -> int:
        if gpu == 1:
            raise RuntimeError("cudaSetDevice: CUDA-capable device(s) is/are busy or unavailable")
        return 90

    monkeypatch.setattr(backend.cuda_module(), "code_capability", code_capability)
    assert training_devices("cuda") == ["cuda:0", "cuda:2"]
    with pytest.raises(BackendError, match=r"device 'cuda:1': GPU 1 can't be used: .* busy or unavailable"):
        training_devices("cuda:1")


def capabilities(monkeypatch: pytest.MonkeyPatch, *found: tuple[int, int]) -> None:
    """Of the GPUs in order."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[int(device.removeprefix("cuda:"))])


def test_bf16_is_the_default_of_gpus_that_have_it(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities(monkeypatch, (8, 0), (12, 0), (7, 5))
    assert default_precision(["cpu"]) == "fp32"
    assert default_precision(["cuda:0", "cuda:1"]) == "bf16"
    assert default_precision(["cuda:0", "cuda:2"]) == "fp32"
    check_bf16(["cpu"])
    check_bf16(["cuda:0", "cuda:1"])
    message = r"precision: bf16 needs a GPU of compute capability 8.0 or later, cuda:2 has 7.5\nuse precision=\"fp32\""
    with pytest.raises(BackendError, match=message):
        check_bf16(["cuda:0", "cuda:2"])
    for device in ("cuda", "cuda:2"):
        with pytest.raises(BackendError, match=message):
            train_pack(replace(pack(students(1), device=device), precision="bf16"))


@pytest.mark.parametrize("allowed", [True, False])
def test_products_in_bf16_add_in_float32_while_a_pack_trains(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every device's thread, and until the last of the packs that train at once has ended; then as before."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    found = []

    def train(a_pack, threads, on_epoch, stop, checkpoints):
        found.append(matmul.allow_bf16_reduced_precision_reduction)
        yield from ()

    try:
        matmul.allow_bf16_reduced_precision_reduction = allowed
        with exact_sums():
            list(train_on_gpus(["cpu"] * 2, train, pack(students(2)), None, threading.Event()))
            assert not matmul.allow_bf16_reduced_precision_reduction
        list(train_on_gpus(["cpu"] * 2, train, pack(students(2)), None, threading.Event()))
        with pytest.raises(ArithmeticError), exact_sums():
            raise ArithmeticError
        assert matmul.allow_bf16_reduced_precision_reduction is allowed
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before
    assert found == [False] * 4


def test_what_is_missing_is_named(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no GPU can be used: torch sees no GPU"):
        training_devices("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match="is a build without CUDA"):
        training_devices("cuda:0")
    monkeypatch.setattr(backend, "why_no_cuda", "the compiled module kdfast._cuda is missing")
    with pytest.raises(BackendError, match=r"kdfast\._cuda is missing"):
        train_pack(pack(students(1), device="cuda"))


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"], ["cpu"] * 5])
def test_devices_share_the_members_of_a_pack(devices: list[str]) -> None:
    a_pack = pack([Member("baseline"), *students(2)], epochs=2)
    alone = {result.name: result for result in cuda_engine.train(a_pack, 0, None, threading.Event())}
    reports: list[EpochReport] = []
    shared = list(train_on_gpus(devices, cuda_engine.train, a_pack, reports.append, threading.Event()))
    assert sorted(result.name for result in shared) == sorted(alone)
    assert len(reports) == 6
    for result in shared:
        assert result.status == "done"
        assert result.curves["loss"] == pytest.approx(alone[result.name].curves["loss"], rel=1e-5)


def test_a_stop_reaches_every_device() -> None:
    stop = threading.Event()
    assert not list(
        train_on_gpus(["cpu"] * 2, cuda_engine.train, pack(students(2), epochs=500), lambda report: stop.set(), stop)
    )


def test_a_fault_on_one_device_ends_all() -> None:
    def train(a_pack, threads, on_epoch, stop, checkpoints):
        if len(a_pack.members) == 1:
            raise ArithmeticError("on the second")
        assert stop.wait(60)
        yield from ()

    with pytest.raises(ArithmeticError, match="on the second"):
        list(train_on_gpus(["cpu", "cpu"], train, pack(students(3)), None, threading.Event()))


@pytest.mark.cuda_kernels
def test_sizes_that_the_kernels_take() -> None:
    with cuda_kernels():
        taken = [name for name, sizes in PRESETS.items() if cuda_engine.unsupported(sizes) is None]
        assert set(taken) == set(PRESETS)
        sizes = {"width": 64, "layers": 1, "heads": 4, "ffn": 64}
        for other, message in (
            ({"width": 72}, "multiple of 16"),
            ({"ffn": 60}, "ffn 60"),
            ({"heads": 16}, "width / heads is 4"),
            ({"pooling_heads": 16}, "no kernel pools width 64 by 16 heads"),
        ):
            assert message in str(cuda_engine.unsupported(ModelConfig(**sizes | other)))


def test_values_that_a_captured_step_cannot_report_are_refused_before() -> None:
    good = pack(students(1))
    for name, value, message in (
        ("labels", 2.0, r"labels, row 40: must be in \[0, 1\], is 2.0"),
        ("weights", -1.0, "weights, row 40: must be finite and not negative"),
        ("weights", float("nan"), "weights, row 40: must be finite and not negative"),
    ):
        before = getattr(good.train, name).clone()
        getattr(good.train, name)[40] = value
        with pytest.raises(DataError, match=message):
            pack(students(1), train=good.train)
        getattr(good.train, name).copy_(before)
    good.train.weights[:] = 0.0
    good.train.weights[0] = 1.0
    with pytest.raises(DataError, match="all jets of a batch of epoch 0 have weight 0"):
        list(train_pack(good))
