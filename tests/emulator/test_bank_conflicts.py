"""Bank conflicts: planted ones are counted exactly, and the kernels have no more of them than they had."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from kdfast.ops import distill_loss
from kdfast.ops.adamw import adamw
from kdfast.ops.attention_pooling import attention_pooling
from kdfast.ops.attention_transfer import attention_transfer
from kdfast.ops.batch_norm_gelu import batch_norm_gelu
from kdfast.ops.bias_gelu import bias_gelu
from kdfast.ops.constituent_attention import constituent_attention
from kdfast.ops.residual_norm import residual_norm
from tests.emulator.emulated import Accesses, counted_accesses, emulated
from tests.ops.packed import jets_of, normal, with_gradients

_emu = pytest.importorskip("kdfast._emu", reason="a build with KDFAST_EMULATOR=ON brings it")

# Kernel → (the conflicts planted in a block, the most words that lanes want of one bank).
PLANTED = {
    "tile_without_padding": (32 * 31, 32),  # 32 loads, each 32-way
    "vectors_apart": (2 * 4 * 4, 2),  # a store and a load of 4 warps, 4 quarters of each 2-way
    "doubles_apart": (2 * 4 * 2 * 3, 4),  # 2 halves of each, 4-way
    "structs_apart": (2 * 4 * 3 * 7, 8),  # 3 pieces, 24 words from lane to lane
    "loops_of_unequal_length": (sum(range(32)), 32),  # 31 lanes are there twice, 30 thrice …
    "one_word_for_all": (0, 1),
    "rows_of_matrices": (4 * 7, 8),
}


def run(name: str, bug: bool) -> list[Accesses]:
    x, out = np.zeros(1024, np.float32), np.zeros(128, np.float32)
    with counted_accesses() as accesses:
        _emu.probe.run(name, bug, x.ctypes.data, out.ctypes.data, 0)  # two blocks
    return accesses


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_conflicts_are_counted_on_every_schedule(name: str, seed: int) -> None:
    _emu.set_seed(seed)
    try:
        right, wrong = run(name, False), run(name, True)
    finally:
        _emu.set_seed(0)
    assert {(a.conflicts, a.most) for a in right} == {(0, 1)}, right
    conflicts, most = PLANTED[name]
    assert sum(a.conflicts for a in wrong) == 2 * conflicts, wrong
    assert max(a.most for a in wrong) == most, wrong


def test_accesses_are_named_by_their_line_and_counted_by_warps() -> None:
    store, load = run("vectors_apart", False)
    assert store.place.startswith("probe.cu:")
    assert load.place.startswith("probe.cu:")
    assert (store.how, store.bytes, store.warps) == ("store", 16, 2 * 4)
    assert (load.how, load.bytes, load.warps) == ("load", 16, 2 * 4)


MEMBERS, JETS = 2, 300
ROWS = jets_of(150, padding=9)


def loss(classes: int, dtype: torch.dtype) -> None:
    student, teacher = normal(MEMBERS, JETS, classes, dtype=dtype), normal(JETS, classes, dtype=dtype)
    settings = {"temperature": torch.tensor([2.0, 3.0]), "alpha": torch.tensor([0.5, 0.3])}
    op = partial(distill_loss, teacher_logits=teacher, labels=torch.arange(JETS) % classes, **settings)
    with_gradients(op, [student], [torch.ones(MEMBERS)])


def on_rows(op: Callable[..., Tensor | tuple[Tensor, ...]], *shape: int, vectors: int) -> None:
    """op(x [K, M, …], vectors [K, D] …, rows), forward and backward."""
    x = normal(MEMBERS, len(ROWS.jet), *shape, rows=ROWS)
    own = [normal(MEMBERS, shape[-1], seed=i) for i in range(vectors)]
    with_gradients(lambda *inputs: op(*inputs, ROWS), [x, *own], [x])


def batch_norm(y: Tensor, gamma: Tensor, beta: Tensor, rows: object) -> Tensor:
    running = torch.zeros_like(gamma.detach()), torch.ones_like(gamma.detach())
    return batch_norm_gelu(y, gamma, beta, *running, rows, training=True)


def norm(x: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, rows: object) -> Tensor:
    return residual_norm(x, x, bias, gamma, beta, rows)[1]


def pooling(heads: int, width: int) -> None:
    x, direction = normal(MEMBERS, len(ROWS.jet), width, rows=ROWS), normal(MEMBERS, heads, width)
    grad = torch.ones(MEMBERS, ROWS.jets, heads, width)
    with_gradients(lambda x, d: attention_pooling(x, d, ROWS)[0], [x, direction], [grad])


def transfer() -> None:
    attention = torch.rand(MEMBERS, len(ROWS.jet)) + 0.1
    attention_transfer(attention, ROWS, *torch.ones(3, ROWS.jets))


def update() -> None:
    arrays = [normal(MEMBERS, 1001, seed=i).abs() for i in range(4)]
    rates = {"learning_rate": torch.ones(MEMBERS), "weight_decay": torch.ones(MEMBERS)}
    adamw(*arrays, step=torch.ones(MEMBERS, dtype=torch.int64), **rates, clip_norm=1.0)


def attention() -> None:
    q = normal(150, 2, 16)
    with_gradients(partial(constituent_attention, offsets=ROWS.offsets), [q, q, q], [q])


# What runs, and the accesses and conflicts of its loads and stores as the source has them. Where distill_loss has
# an odd number of classes, nvcc joins those of a piece into STS.128 and LDS.128, which have none.
HELD: dict[str, tuple[Callable[[], None], int, int]] = {
    "distill_loss, 1 class": (partial(loss, 1, torch.float32), 173, 0),
    "distill_loss, 3 classes": (partial(loss, 3, torch.float32), 689, 648),
    "distill_loss, 4 classes": (partial(loss, 4, torch.float32), 833, 0),
    "distill_loss, 6 classes": (partial(loss, 6, torch.float32), 1121, 432),
    "distill_loss, 10 classes": (partial(loss, 10, torch.float32), 1697, 720),
    "distill_loss, 16 classes": (partial(loss, 16, torch.float32), 2561, 1152),
    "distill_loss, 3 classes, bf16": (partial(loss, 3, torch.bfloat16), 737, 1176),
    "distill_loss, 4 classes, bf16": (partial(loss, 4, torch.bfloat16), 833, 192),
    "distill_loss, 10 classes, bf16": (partial(loss, 10, torch.bfloat16), 1697, 720),
    "batch_norm_gelu, 8 features": (partial(on_rows, batch_norm, 8, vectors=2), 712, 0),
    "batch_norm_gelu, 128 features": (partial(on_rows, batch_norm, 128, vectors=2), 2432, 2560),
    "bias_gelu, 512 features": (partial(on_rows, bias_gelu, 512, vectors=1), 1152, 512),
    "residual_norm, 128 features": (partial(on_rows, norm, 128, vectors=3), 672, 192),
    "residual_norm, 512 features": (partial(on_rows, norm, 512, vectors=3), 2976, 1152),
    "attention_pooling, 4 heads": (partial(pooling, 4, 128), 2580, 768),
    "attention_pooling, 8 heads": (partial(pooling, 8, 64), 3844, 256),
    "attention_transfer": (transfer, 96, 0),
    "adamw": (update, 226, 0),
    "constituent_attention": (attention, 2121, 0),
}


@pytest.mark.parametrize("name", HELD)
def test_kernels_have_no_more_conflicts_than_they_had(name: str) -> None:
    run_op, accesses, conflicts = HELD[name]
    with emulated(), counted_accesses() as found:
        run_op()
    where = "\n".join(str(a) for a in found if a.conflicts)
    assert found, "no access to shared memory: this case holds nothing"
    assert sum(a.conflicts for a in found) <= conflicts, where
    assert sum(a.warps for a in found) <= accesses
