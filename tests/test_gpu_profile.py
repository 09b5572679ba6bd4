"""The profile of a step on a GPU, without one: rates of a made-up trace, shapes of a recorded one, the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
if not (ROOT / "bench/gpu/trace.py").exists():
    pytest.skip("needs the source tree", allow_module_level=True)

from bench.gpu.trace import groups_of_trace, kernel_label, markdown, product_work  # noqa: E402
from bench.step_model import (  # noqa: E402
    STUDY_MEMBERS,
    STUDY_STEPS,
    Batch,
    Work,
    least_seconds,
    step_work,
    study_batch,
    table,
)
from kdfast.models import PRESETS, ModelConfig  # noqa: E402

SPACE = "kdfast::gpu::(anonymous namespace)::"
PARAMS = f"void {SPACE}%s<__nv_bfloat16, 1>(kdfast::gpu::%s, kdfast::gpu::OctetWalk<256, 4>)"


def op(number: int, name: str, dims: list[list[int]], kind: str, **more: Any) -> dict[str, Any]:
    args = {"External id": number, "Input Dims": dims, "Input type": [kind] * len(dims)} | more
    return {"ph": "X", "cat": "cpu_op", "name": name, "ts": 0, "dur": 9, "args": args}


def kernel(name: str, microseconds: float, number: int | None = None) -> dict[str, Any]:
    args = {} if number is None else {"External id": number, "stream": 7}
    return {"ph": "X", "cat": "kernel", "name": name, "ts": 0, "dur": microseconds, "args": args}


def test_times_bytes_and_flops_become_rates() -> None:
    """Of two steps: a product in two slices, one with an addend, an op of PyTorch, kernels of kdfast."""
    events = [{"ph": "M", "name": "process_name"}]
    for step in range(2):
        first = 10 * step
        events += [
            op(first, "aten::bmm", [[4, 100, 16], [4, 16, 32]], "c10::BFloat16"),
            kernel("cutlass::Kernel<a>", 3.0, first),
            kernel("cublasLt::splitKreduce<b>", 1.0, first),
            op(first + 1, "aten::baddbmm", [[4, 1, 32], [4, 100, 16], [4, 16, 32], [], []], "float"),
            kernel("sgemm", 8.0, first + 1),
            op(first + 2, "aten::copy_", [[4, 100, 32], [4, 100, 32], []], "float"),
            kernel("void at::native::elementwise_kernel<128>(int)", 2.0, first + 2),
            kernel(PARAMS % ("forward", "ResidualNormParams"), 5.0),
            kernel(PARAMS % ("backward", "ResidualNormBackwardParams"), 10.0),
            kernel(PARAMS % ("forward", "ResidualNormParams"), 15.0),
        ]
    works = [Work("residual_norm: forward", 2, 40e6), Work("no such kernel", 1, 1.0)]
    found = {group.label: group for group in groups_of_trace(events, 2, works)}
    product = found["bmm [4, 100, 16]·[4, 16, 32] bf16"]
    assert product.calls == 1
    assert product.seconds == pytest.approx(4e-6)
    assert product.bytes == 2 * 4 * (100 * 16 + 16 * 32 + 100 * 32)
    assert product.flops == 2 * 4 * 100 * 16 * 32
    assert product.flops_per_second == pytest.approx(2 * 4 * 100 * 16 * 32 / 4e-6)
    added = found["baddbmm [4, 100, 16]·[4, 16, 32] fp32"]
    assert added.bytes == 4 * 4 * (100 * 16 + 16 * 32 + 2 * 100 * 32)
    assert found["aten::copy_"].bytes_per_second is None
    norm = found["residual_norm: forward"]
    assert norm.calls == 2
    assert norm.bytes_per_second == pytest.approx(40e6 / 20e-6)
    assert found["residual_norm: backward"].seconds == pytest.approx(10e-6)
    assert "no such kernel" not in found
    lines = markdown(list(found.values()), copy=4e12).splitlines()
    assert "| residual_norm: forward | 2 | 20.0 | 45.5% | 2000 | 50% |  |" in lines
    assert lines[-1] == "| all | | 44.0 | | | | |"


def test_a_product_into_a_given_tensor_is_that_product() -> None:
    shapes = [[4, 16, 100], [4, 100, 32]]
    product = product_work(op(0, "aten::bmm", shapes, "float"))
    assert product is not None
    assert product_work(op(0, "aten::bmm", [*shapes, [4, 16, 32]], "float")) == product


def test_an_operand_that_members_share_is_counted_once() -> None:
    strides = [[0, 16, 1], [512, 32, 1]]
    shared = product_work(op(0, "aten::bmm", [[4, 100, 16], [4, 16, 32]], "float", **{"Input Strides": strides}))
    assert shared is not None
    assert shared.bytes == 4 * (100 * 16 + 4 * 16 * 32 + 4 * 100 * 32)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        (PARAMS % ("forward", "BiasGeluParams"), "bias_gelu: forward"),
        (PARAMS % ("backward", "BiasGeluBackwardParams"), "bias_gelu: backward"),
        (PARAMS % ("backward_rows", "BatchNormGeluBackwardParams"), "batch_norm_gelu: backward_rows"),
        (f"void {SPACE}attend<{SPACE}Variant<{SPACE}Half<16>, 0> >({SPACE}Arguments)", "constituent_attention: attend"),
        ("kdfast::gpu::_GLOBAL__N__1a_8_adamw_cu_2b::update(kdfast::gpu::Arguments)", "adamw: update"),
        ("kdfast::gpu::<unnamed>::sum_squares(kdfast::gpu::Arguments)", "adamw: sum_squares"),
        ("kdfast::gpu::add_partial_sums(float const*, float*)", "add_partial_sums"),
        ("void at::native::elementwise_kernel<128>(int)", None),
    ],
)
def test_kernels_are_known_by_their_names(name: str, label: str | None) -> None:
    assert kernel_label(name) == label


def test_the_model_names_kernels_that_there_are() -> None:
    """Each of its kernels is in its op's table of resources."""
    config = PRESETS["study"]
    assert isinstance(config, ModelConfig)
    works = [work for work in step_work(config, 2, Batch(2, 50, 1300, 64, 8, 3), "bf16")]
    kernels = [
        work.label.split(": ") for work in works if not work.label.startswith(("product", "copy", "sum", "cast"))
    ]
    assert len(kernels) > 15
    for name, function in kernels:
        text = "".join(path.read_text() for path in (ROOT / "ci/cuda-resources").glob(f"{name}*.txt"))
        assert f"\n{function}" in text, name


def test_the_model_follows_its_formulas() -> None:
    config = ModelConfig(width=16, layers=3, heads=2, ffn=64, pooling_heads=2)
    batch = Batch(2, 50, 1300, 64, 8, 3)
    works = {work.label: work for work in step_work(config, 5, batch, "bf16")}
    # Three layers; forward and two products backward; x, W and y in bf16.
    assert works["product ffn_in"].calls == 9
    assert works["product ffn_in"].flops == 9 * 5 * 2 * 64 * 16 * 64
    assert works["product ffn_in"].bytes == 9 * 5 * 2 * (64 * 16 + 16 * 64 + 64 * 64)
    # A row and head, as in docs/explanation/kernels.md: 4 d s + 4 bytes, 4 n² d FLOP; backward 11 d s + 36, 18 n² d.
    attention = [works[f"constituent_attention: {name}"] for name in ("attend", "query_gradients", "key_gradients")]
    rows = 5 * 3 * 50 * 2
    masks = 5 * 3 * 2 * 8 * 32  # of two jets of 2 × 2 tiles
    assert attention[0].bytes == rows * (4 * 8 * 2 + 4) + masks
    sums = 2 * 5 * 3 * 3 * 16 * 4  # of both, in three pieces of the rows
    assert attention[1].bytes + attention[2].bytes == rows * (11 * 8 * 2 + 36) + 3 * masks + sums
    assert works["constituent_attention: add_bias_sums"].bytes == sums
    assert attention[0].flops == 4 * 5 * 3 * 1300 * 16
    assert attention[1].flops + attention[2].flops == 18 * 5 * 3 * 1300 * 16
    assert works["bias_gelu: backward"].bytes == 5 * 3 * 50 * (64 * 6 + 8)
    last = table(config, 5, "bf16", "H100").splitlines()[-1]
    assert last.startswith("| sum | ")


def test_the_documentation_has_the_models_table() -> None:
    """`python -m bench.step_model` prints it; one that has changed goes to docs/explanation/kernels.md."""
    config = PRESETS["study"]
    assert isinstance(config, ModelConfig)
    page = (ROOT / "docs/explanation/kernels.md").read_text(encoding="utf-8")
    assert table(config, STUDY_MEMBERS, "bf16", "H100") in page
    works = step_work(config, STUDY_MEMBERS, study_batch(), "bf16")
    seconds = STUDY_STEPS * sum(least_seconds(work, "H100", "bf16") for work in works)
    assert f"{STUDY_STEPS:,} such steps are the study's grid: {seconds:.0f} s at least." in page


@pytest.mark.slow
def test_products_of_a_recorded_step(tmp_path: Path) -> None:
    """torch.profiler's own trace of a step, on the CPU; kernels are put in where a GPU would have run them."""
    from bench.gpu.packed_step import PackedStep
    from bench.gpu.step_profile import STEPS, batch_of, traced

    config = ModelConfig(width=16, layers=2, heads=2, ffn=32, pooling_heads=2)
    device = torch.device("cpu")
    step = PackedStep(config, 3, 8, device, "bf16")
    events = traced(device, step)
    calls = [event for event in events if event.get("cat") == "cpu_op" and product_work(event) is not None]
    events += [kernel("gemm", 1.0, event["args"]["External id"]) for event in calls]
    capacity = step.trainer.plan.capacity
    works = step_work(config, 3, batch_of(step.view, capacity), "bf16")
    found = {group.label: group for group in groups_of_trace(events, STEPS, works)}
    # Of both layers: the hidden layer, and the gradient of it.
    assert found[f"bmm [3, {capacity}, 16]·[3, 16, 32] bf16"].calls == pytest.approx(4)
    expected = {work.label: work.flops for work in works}
    measured = sum(group.flops or 0.0 for label, group in found.items() if "bf16" in label and str(capacity) in label)
    names = ("qkv", "out", "ffn_in", "ffn_out")
    assert measured == pytest.approx(sum(expected[f"product {name}"] for name in names))


@pytest.mark.slow
def test_the_script_reports_at_toy_sizes(tmp_path: Path) -> None:
    report = tmp_path / "profile.json"
    environment = os.environ | {"KDFAST_BENCH_TOY": "1"}
    command = [sys.executable, "-m", "bench.gpu.step_profile", str(report)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [step["members"] for step in json.loads(report.read_text())["steps"]] == [1, 2]
    from bench.gpu.results import Stage, write_results

    gpu = {"name": "Some GPU", "driver": "1"}
    _, text = write_results(tmp_path, gpu, [Stage("profile", "passed", 7.0, "ran", "abc")], tmp_path)
    lines = text.read_text().splitlines()
    assert any(line.startswith("| 64 jets, dropout 0.1 | ") for line in lines)
    assert "The trace has no kernels." in lines
