"""Rates of a step's kernels: times from the trace that torch.profiler exports, bytes and FLOP by formula."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.step_model import Work

_PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm")
_SIZES = {"double": 8, "float": 4, "c10::BFloat16": 2, "c10::Half": 2}
# The op of a kernel, by the kernel's name. `forward` and `backward` are several ops': their parameters decide.
_OPS = {
    "add_bias_sums": "constituent_attention",
    "add_errors": "attention_transfer",
    "attend": "constituent_attention",
    "backward_rows": "batch_norm_gelu",
    "backward_sums": "batch_norm_gelu",
    "key_gradients": "constituent_attention",
    "lanes_per_row": "distill_loss",
    "make_plan": "constituent_attention",
    "moments_of_blocks": "batch_norm_gelu",
    "pool": "attention_pooling",
    "pool_backward": "attention_pooling",
    "prepare": "distill_loss",
    "query_gradients": "constituent_attention",
    "row_per_thread": "distill_loss",
    "statistics": "batch_norm_gelu",
    "sum_squares": "adamw",
    "sum_weights": "distill_loss",
    "transfer": "attention_transfer",
    "two_classes": "distill_loss",
    "update": "adamw",
}


@dataclass
class Group:
    """All calls of a kernel, or of a product of one shape, in one step. bytes, flops: None where no formula says."""

    label: str
    calls: float = 0.0
    seconds: float = 0.0
    bytes: float | None = None
    flops: float | None = None

    @property
    def bytes_per_second(self) -> float | None:
        return None if not self.bytes or not self.seconds else self.bytes / self.seconds

    @property
    def flops_per_second(self) -> float | None:
        return None if not self.flops or not self.seconds else self.flops / self.seconds

    def record(self) -> dict[str, Any]:
        """For JSON."""
        names = ("label", "calls", "seconds", "bytes", "flops", "bytes_per_second", "flops_per_second")
        return {name: getattr(self, name) for name in names}


def groups_of_trace(events: Sequence[dict[str, Any]], steps: int, works: Sequence[Work]) -> list[Group]:
    """The longest first. events: `traceEvents`, of several steps. works: bytes and FLOP of one step, by label."""
    ops = {}
    for event in events:
        if event.get("cat") == "cpu_op" and "External id" in event.get("args", {}):
            ops[event["args"]["External id"]] = event
    groups: dict[str, Group] = {}
    seen = set()  # calls of PyTorch's, which may have several kernels
    for event in events:
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        own = kernel_label(event["name"])
        op = None if own is not None else ops.get(event.get("args", {}).get("External id"))
        work = None if op is None else product_work(op)
        label = own or _short(event["name"])
        if op is not None:
            label = op["name"] if work is None else work.label
        group = groups.setdefault(label, Group(label))
        group.seconds += event["dur"] / 1e6 / steps
        if op is not None:
            if op["args"]["External id"] in seen:
                continue
            seen.add(op["args"]["External id"])
        group.calls += 1 / steps
        if work is not None:
            group.bytes = (group.bytes or 0.0) + work.bytes / steps
            group.flops = (group.flops or 0.0) + work.flops / steps
    for work in works:
        if work.label in groups:
            groups[work.label].bytes = work.bytes
            groups[work.label].flops = work.flops
    return sorted(groups.values(), key=lambda group: -group.seconds)


def kernel_label(name: str) -> str | None:
    """ "residual_norm: forward" of kdfast's own kernels; None for others."""
    match = re.search(r"kdfast::gpu::(?:(?:\(anonymous namespace\)|<unnamed>|\w+)::)*(\w+)", name)
    if match is None:
        return None
    kernel = match[1]
    op = _OPS.get(kernel)
    parameters = re.search(r"(\w+?)(?:Backward)?Params\b", name)
    if op is None and parameters is not None:
        op = re.sub(r"(?<!^)(?=[A-Z])", "_", parameters[1]).lower()
    return kernel if op is None else f"{op}: {kernel}"


def product_work(op: dict[str, Any]) -> Work | None:
    """A matrix product's work by its operands' shapes, [M, D]·[D, E] or with members in front; None for other ops.
    With an addend its result is read as well as written. An operand that members share is counted once. Where the
    result is written to a given tensor, that is the last of the shapes."""
    if op["name"] not in _PRODUCTS:
        return None
    args = op["args"]
    dims = [shape for shape in args.get("Input Dims", []) if len(shape) >= 2]
    types = [name for name in args.get("Input type", []) if name in _SIZES]
    strides = [stride for stride in args.get("Input Strides", []) if len(stride) >= 2]
    if len(dims) < 2 or not types:
        return None
    adds = op["name"] in ("aten::baddbmm", "aten::addmm")
    first = 1 if adds and len(dims) > 2 else 0
    left, right = dims[first : first + 2]
    if len(strides) == len(dims):
        moved = _elements(left, strides[first]) + _elements(right, strides[first + 1])
    else:
        moved = math.prod(left) + math.prod(right)
    out = math.prod(left[:-1]) * right[-1]
    moved += out * (2 if adds else 1)
    size = _SIZES[types[-1]]
    kind = {2: "bf16", 4: "fp32", 8: "fp64"}[size]
    label = f"{op['name'].removeprefix('aten::')} {left}·{right} {kind}"
    return Work(label, 1, float(moved * size), 2.0 * out * left[-1])


def _elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    return math.prod(n for n, stride in zip(shape, strides, strict=True) if stride != 0)


def _short(name: str) -> str:
    return re.sub(r"^void |[<(].*", "", name)


def markdown(groups: Sequence[Group], copy: float | None) -> str:
    """A table. copy: bytes per second that a copy moved in the same run; the rates' share of it."""
    total = sum(group.seconds for group in groups)
    lines = ["| kernel | calls | µs | share | GB/s | of a copy's | TFLOP/s |", "|---|---:|---:|---:|---:|---:|---:|"]
    for group in groups:
        rate = group.bytes_per_second
        flops = group.flops_per_second
        cells = [
            group.label,
            f"{group.calls:.4g}",
            f"{group.seconds * 1e6:.1f}",
            f"{group.seconds / total:.1%}",
            "" if rate is None else f"{rate / 1e9:.0f}",
            "" if rate is None or not copy else f"{rate / copy:.0%}",
            "" if flops is None else f"{flops / 1e12:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| all | | {total * 1e6:.1f} | | | | |")
    return "\n".join(lines)
