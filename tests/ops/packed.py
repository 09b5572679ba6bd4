"""What the tests of ops on packed rows have in common: jets of given sizes in a fixed capacity, and one comparison."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdfast.ops.packed_rows import PackedRows
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import cuda_kernels

# An op or its reference with everything but its differentiable inputs given.
Op = Callable[..., Tensor | tuple[Tensor, ...]]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows_of(counts: Sequence[int], padding: int = 5) -> PackedRows:
    """Jets of so many constituents, and rows behind them that are not there."""
    offsets = torch.nn.functional.pad(torch.tensor(counts, dtype=torch.int64).cumsum(0), (1, 0))
    return PackedRows.of_constituents(offsets, int(offsets[-1]) + padding)


def spoiled(x: Tensor, rows: PackedRows, dim: int = 1) -> Tensor:
    """x with NaN in its padding along dim."""
    x = x.clone()
    x.narrow(dim, int(rows.count), x.shape[dim] - int(rows.count)).fill_(torch.nan)
    return x


def jets_of(rows: int, padding: int = 0, seed: int = 0) -> PackedRows:
    """Some jets, one of them empty, of `rows` constituents in all."""
    generator = torch.Generator().manual_seed(1000 * rows + seed)
    cuts = torch.randint(0, rows + 1, (max(1, rows // 7),), generator=generator).sort().values
    bounds = torch.cat([torch.tensor([0, 0]), cuts, torch.tensor([rows])])
    return rows_of(bounds.diff().tolist(), padding)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, rows: PackedRows | None = None) -> Tensor:
    """Standard normal numbers; for `rows`, NaN in the padding of [K, M, D]."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x if rows is None else spoiled(x, rows)


def in_flat_rows(x: Tensor, gap: int = 3) -> Tensor:
    """x [K, D] as part of longer rows, as the parameters of a pack lie in its flat buffer; aligned to nothing."""
    flat = torch.full((x.shape[0], x.shape[1] + gap), torch.nan)
    flat[:, 1 : 1 + x.shape[1]] = x
    return flat[:, 1 : 1 + x.shape[1]]


def with_gradients(op: Op, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """The op's outputs that `grads` has a gradient for, and the gradients of the inputs that there are."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    outputs = op(*leaves)
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    wanted = [leaf for leaf in leaves if leaf is not None]
    found = torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
    return [o.detach() for o, _ in pairs] + [
        torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)
    ]


def check_op(
    op: Op, reference: Op, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None], rows: PackedRows, case: str
) -> list[Tensor]:
    """Holds an op's outputs and gradients to the accuracy rule, and its padding to zeros. Returns them.

    reference: the same in the inputs' precision and in float64. The dimension M is the second of three.
    """
    actual = with_gradients(op, inputs, grads)
    plain = with_gradients(reference, inputs, grads)
    doubled = ([None if x is None else x.double() for x in tensors] for tensors in (inputs, grads))
    exact = with_gradients(reference, *doubled)
    for number, (a, p, e) in enumerate(zip(actual, plain, exact, strict=True)):
        what = f"{case}: output or gradient {number}"
        assert a.dtype == p.dtype, what
        assert_accurate(a, p, e, what)
        if a.dim() == 3:
            assert not a[:, ~rows.valid].any(), f"{what}: its padding"
    return actual


# Around what groups of 1 … 32 lanes hold, of an octet each.
FEATURES = [*range(8, 137, 8), 248, 256, 264, 384, 504, 512, 520]


def check_features(check: Callable[..., object], features: int) -> None:
    """check(members, rows, features, dtype, schedule=…) of two members and few rows."""
    check(2, jets_of(11, padding=3), features, DTYPES[features // 8 % 3], schedule=features)


def sweep_rows(check: Callable[..., object], features: int, around: Sequence[int], most: int) -> None:
    """check, as above, of 1 … 19 rows, of these and their neighbours, up to `most` elements."""
    for rows in [*range(1, 20), *(n + step for n in around for step in (-1, 0, 1))]:
        if rows * features <= most:
            check(1, jets_of(rows, padding=rows % 3), features, DTYPES[rows % 3], schedule=rows)


def check_bits(run: Callable[[slice], list[Tensor]]) -> None:
    """run(which members): the same bits on every order of threads, and for a member among others as alone."""
    results = []
    for schedule in range(4):
        with cuda_kernels(schedule):
            results.append(run(slice(None)))
    with cuda_kernels():
        alone = run(slice(1, 2))
    for first, *others, one in zip(*results, alone, strict=True):
        assert all(torch.equal(first, other) for other in others)
        assert torch.equal(first[1:2], one)
