"""The CUDA kernels of distill_loss: every kernel and tail, every order of threads, what graphs need.

The cases of test_distill_loss.py run over them as well; these are about how the work is cut into threads.
"""

from unittest import mock

import pytest
import torch

from kdfast.errors import DataError
from kdfast.ops import gpu
from kdfast.ops.distill_loss import distill_loss
from tests.ops.backends import cuda_kernels
from tests.ops.plain_distill_loss import make
from tests.ops.test_distill_loss import check_accuracy

pytestmark = pytest.mark.cuda_kernels

HALF_TYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES], ids=str)
@pytest.mark.parametrize("classes", [*range(1, 18), 31, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513, 1023, 1024])
def test_every_number_of_classes(classes: int, dtype: torch.dtype) -> None:
    jets = 300 if classes <= 32 else 37
    student, teacher, labels, weights = make(2, jets, classes, dtype=dtype, seed=classes)
    with cuda_kernels(classes):
        check_accuracy(student, teacher, labels, [2.0, 0.7], [0.5, 1.0], weights, f"C={classes} {dtype}")


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_tail(classes: int, dtype: torch.dtype) -> None:
    """Numbers of jets around what a vector, a warp, a block and a chunk hold; also where members lie unaligned."""
    chunks = {1: (1024, 2048), 2: (512, 1024)}.get(classes, (64, 128, 256))
    for jets in (*range(1, 34), *(n + d for n in chunks for d in (-1, 0, 1))):
        student, teacher, labels, weights = make(3, jets, classes, dtype=dtype, seed=jets)
        case, some_weights = f"B={jets} C={classes} {dtype}", weights if jets // 2 % 2 else None
        with cuda_kernels(jets):
            check_accuracy(student, teacher, labels, [1.0, 2.0, 3.0], [0.0, 0.5, 1.0], some_weights, case)


@pytest.mark.parametrize(("jets", "classes"), [(2500, 1), (1200, 2), (300, 7), (150, 20), (20, 300)])
def test_the_same_bits_on_every_schedule_and_for_any_members(jets: int, classes: int) -> None:
    student, teacher, labels, weights = make(3, jets, classes)
    temperature, alpha = torch.tensor([[1.0, 3.0, 9.0], [0.1, 0.5, 0.9]], dtype=torch.float64)
    op, results = torch.ops.kdfast.distill_loss, []
    for seed in range(6):
        with cuda_kernels(seed):
            results.append(op(student, teacher, labels, temperature, alpha, weights))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
    with cuda_kernels():
        alone = op(student[1:2], teacher, labels, temperature[1:2], alpha[1:2], weights)
    for a, b in zip(results[0], alone, strict=True):
        assert torch.equal(a[1:2], b)


def test_the_sum_of_many_weights() -> None:
    student, teacher, labels, _ = make(1, 40_000, 1)
    weights = torch.rand(40_000, generator=torch.Generator().manual_seed(0)) ** 4
    with cuda_kernels():
        check_accuracy(student, teacher, labels, [2.0], [0.5], weights, "40 000 weights")
        weights[33_333] = -1.0
        with pytest.raises(DataError, match="weights, row 33333"):
            distill_loss(student, teacher, labels, temperature=2.0, alpha=0.5, weights=weights)


@pytest.mark.parametrize("classes", [1, 2, 5, 40])
def test_within_a_graph_what_cannot_be_is_nan(classes: int) -> None:
    """Nobody looks at the kernels' report while a graph is captured, nor when it is replayed."""
    student, teacher, labels, weights = make(3, 40, classes)
    settings = {"temperature": [1.0, 2.0, 3.0], "alpha": 0.5, "weights": weights}
    good = settings | {"weights": weights}
    cases = [
        (labels, good | {"temperature": [1.0, -2.0, 3.0]}, [False, True, False]),
        (labels, good | {"alpha": [1.5, 0.5, 0.5]}, [True, False, False]),
        (labels.clone().index_fill_(0, torch.tensor(39), 2000), good, [True] * 3),
        (labels, good | {"weights": -weights}, [True] * 3),
        (labels, good | {"weights": 0 * weights}, [True] * 3),
    ]
    with cuda_kernels(), mock.patch.object(gpu, "may_wait", return_value=False):
        for bad_labels, arguments, expected in cases:
            s = student.clone().requires_grad_()
            loss = distill_loss(s, teacher, bad_labels, **arguments)  # type: ignore[call-overload]
            assert loss.isnan().tolist() == expected
            loss.sum().backward()
            assert s.grad is not None
            assert [bool(g.isnan().any()) for g in s.grad] == expected
