"""One training step of the study's model: batch of 512 jets, up to 40 constituents, 79 % of the slots filled.

Ours is the compiled step: gradient, clip and AdamW. Beside it stand the plain trainer, and the best found in PyTorch
without writing a kernel: layers in bfloat16 by autocast, the teacher's outputs kept.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compiled_step import ALPHA, RECIPE, TEMPERATURE, CompiledStep, jets, padded
from bench.plain_trainer import PlainTagger, PlainTrainer
from bench.ratio import compare
from kdfast.distill.pack import View
from kdfast.distill.targets import teacher_targets
from kdfast.models import PRESETS, JetTransformer, ModelConfig
from kdfast.ops import backend

CONFIG = PRESETS["study"]


def both(
    precision: str, config: ModelConfig = CONFIG, autocast: bool = False, compiled: bool = False
) -> tuple[CompiledStep, PlainTrainer, tuple[Any, ...]]:
    """Our step and the plain trainer from the same weights, and the arguments of the latter's step."""
    hlt, offline = jets(0), jets(1)
    teacher = JetTransformer(config, seed=2)
    ours = CompiledStep(config, hlt, teacher_targets(teacher, offline), precision)
    student, plain_teacher = PlainTagger(config), PlainTagger(config)
    student.copy_weights(ours.model)
    plain_teacher.copy_weights(teacher)
    models = [torch.compile(model) if compiled else model for model in (student, plain_teacher)]
    trainer = PlainTrainer(*models, RECIPE.learning_rate, RECIPE.weight_decay, autocast)
    return ours, trainer, (padded(hlt), padded(offline), hlt.labels, TEMPERATURE, ALPHA)


def normalise_as_packed(student: PlainTagger, view: View) -> None:
    """Gives the input's BatchNorm the statistics of the constituents alone; in padded batches it sees zeros too."""
    with torch.no_grad():
        rows = student.embed(view.features)
        student.embed_norm.running_mean.copy_(rows.mean(0))
        student.embed_norm.running_var.copy_(rows.var(0, unbiased=False))
    student.embed_norm.eval()


def check_same(precision: str, autocast: bool = False) -> None:
    """Loss and gradients of both sides, without dropout; as close in bfloat16 as its operands allow."""
    ours, trainer, batch = both(precision, CONFIG.model_copy(update={"dropout": 0.0}), autocast)
    student = trainer.student
    normalise_as_packed(student, jets(0))
    teacher = trainer.ask_teacher(batch[1])
    plain_loss = trainer.loss(batch[0], teacher, *batch[2:])
    plain_loss.backward()
    loss = ours.gradient(2)
    soft = torch.sigmoid(teacher[0] / TEMPERATURE)
    entropy = F.binary_cross_entropy(soft, soft)  # BCE of soft targets is the KL plus the teacher's entropy
    exactly = precision == "fp32" and not autocast
    found = torch.tensor(loss) + ALPHA * TEMPERATURE**2 * entropy
    torch.testing.assert_close(found, plain_loss.detach(), rtol=1e-4 if exactly else 1e-2, atol=1e-5)
    for name, a, b in (
        ("embed.norm", ours.model.embed.norm.weight, student.embed_norm.weight),
        ("qkv", ours.model.encoder[0].qkv.weight, student.encoder.layers[0].self_attn.in_proj_weight),
        ("ffn_out", ours.model.encoder[5].ffn_out.weight, student.encoder.layers[5].linear2.weight),
        ("pool.out", ours.model.pool.out.weight, student.pool.out_proj.weight),
        ("classify", ours.model.classify.weight, student.classify.weight),
    ):
        error = relative(a.grad, b.grad)
        assert error < (1e-3 if exactly else 5e-2), f"gradient of {name}: {error:.1e} apart"


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("precision", "floor", "aim"), [("fp32", 7.5, 11.0), ("bf16", 12.0, 18.0)], ids=["fp32", "bf16"]
)
def test_training_step(benchmark: Any, threads: int, precision: str, floor: float, aim: float) -> None:
    check_same(precision)
    ours, trainer, batch = both(precision)
    compare(
        benchmark,
        ours=lambda: ours.step(threads),
        plain=lambda: trainer.step(*batch),
        check=lambda *_: None,  # done above, where dropout is off
        floor=floor,
        aim=aim,
        seconds=15.0,
        baseline="eager fp32, padded, live teacher",
    )


@pytest.mark.parametrize(("precision", "floor", "aim"), [("fp32", 3.5, 4.5), ("bf16", 5.5, 7.5)], ids=["fp32", "bf16"])
def test_training_step_best_without_kernels(
    benchmark: Any, threads: int, precision: str, floor: float, aim: float
) -> None:
    check_same(precision, autocast=True)
    ours, trainer, batch = both(precision, autocast=True)
    cached = trainer.ask_teacher(batch[1])
    compare(
        benchmark,
        ours=lambda: ours.step(threads),
        plain=lambda: trainer.step(*batch, cached),
        check=lambda *_: None,  # done above
        floor=floor,
        aim=aim,
        seconds=10.0,
        baseline="eager bf16 autocast, padded, cached teacher",
    )


@pytest.mark.skipif("KDFAST_BENCH_COMPILE" not in os.environ, reason="minutes of compilation: KDFAST_BENCH_COMPILE=1")
def test_training_step_torch_compile(benchmark: Any, threads: int) -> None:
    ours, trainer, batch = both("fp32", compiled=True)
    compare(
        benchmark,
        ours=lambda: ours.step(threads),
        plain=lambda: trainer.step(*batch),
        check=lambda *_: None,
        seconds=15.0,
        baseline="torch.compile fp32, padded, live teacher",
    )


def test_training_step_avx2(benchmark: Any, tmp_path: Path) -> None:
    """Without AVX-512, which is decided when kdfast is loaded: test_training_step[fp32] in a process of its own."""
    if backend.why_no_cpu is not None or backend.cpu_module().isa in ("avx2", "baseline"):
        pytest.skip("the instruction set in use is no better than avx2")
    report = tmp_path / "avx2.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json", str(report)]
    command += ["--benchmark-disable"] if benchmark.disabled else []
    command += [f"{__file__}::test_training_step[fp32]"]
    environment = {**os.environ, "KDFAST_ISA": "avx2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout[-2000:]
    benchmark.pedantic(lambda: None, rounds=1)  # the row's figures are the other process's
    if not benchmark.disabled:
        (entry,) = json.loads(report.read_text())["benchmarks"]
        assert entry["extra_info"]["isa"] == "avx2"
        benchmark.extra_info.update(entry["extra_info"], floor=4.0, aim=None)
