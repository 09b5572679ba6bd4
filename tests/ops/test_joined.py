"""Gradients of q, k, v unbound from one tensor: the same as by copies, whoever else looks at them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdfast.ops import _joined, constituent_attention

OFFSETS = torch.tensor([0, 3, 3, 10])
LAYOUTS = [((10, 3, 2, 8), 1), ((10, 3, 2, 8), -3), ((3, 10, 2, 8), 0), ((2, 10, 3, 2, 8), 2), ((3, 2, 10, 2, 8), 0)]


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each node of unbind found: whether its gradients had a parent."""
    found: list[bool] = []
    find = _joined._parent_of

    def spy(dim: int, grads: tuple[Tensor | None, ...]) -> Tensor | None:
        parent = find(dim, grads)
        found.append(parent is not None)
        return parent

    monkeypatch.setattr(_joined, "_SMALLEST", 1)
    monkeypatch.setattr(_joined, "_parent_of", spy)
    return found


def draw(shape: tuple[int, ...], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv, grad_out, and the gradient of qkv by copies."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(shape, generator=generator, requires_grad=True)
    grad = torch.randn(qkv.unbind(dim)[0].shape, generator=generator)
    out = constituent_attention(*(x.clone() for x in qkv.unbind(dim)), OFFSETS)
    return qkv, grad, torch.autograd.grad(out, qkv, grad)[0]


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS)
def test_is_the_gradient_without_a_copy(joins: list[bool], shape: tuple[int, ...], dim: int) -> None:
    qkv, grad, expected = draw(shape, dim)
    constituent_attention(*qkv.unbind(dim), OFFSETS).backward(grad)
    assert joins == [True]
    assert type(qkv.grad) is Tensor
    assert qkv.grad.is_contiguous()
    assert torch.equal(qkv.grad, expected)


def test_others_see_ordinary_gradients(joins: list[bool]) -> None:
    qkv, grad, expected = draw(*LAYOUTS[0])
    q, k, v = qkv.unbind(1)
    dv, dqkv = torch.autograd.grad(constituent_attention(q, k, v, OFFSETS), [v, qkv], grad, retain_graph=True)
    seen: list[Tensor] = []
    q.retain_grad()
    k.register_hook(seen.append)
    constituent_attention(q, k, v, OFFSETS).backward(grad)
    assert joins[0]
    for actual, wanted in zip((q.grad, seen[0], dv), expected.unbind(1), strict=True):
        assert type(actual) is Tensor
        assert torch.equal(actual, wanted)
    assert torch.equal(dqkv, expected)
    assert torch.equal(qkv.grad, expected)


@pytest.mark.parametrize(
    ("use", "factors"),
    [
        (lambda q, k, v: constituent_attention(q, k, v, OFFSETS) + constituent_attention(q, k, v, OFFSETS), (2, 2, 2)),
        (lambda q, k, v: constituent_attention(q, k, v.detach(), OFFSETS), (1, 1, 0)),
        (lambda q, k, v: (k.register_hook(lambda x: 3 * x), constituent_attention(q, k, v, OFFSETS))[1], (1, 3, 1)),
        (lambda q, k, v: (v.register_hook(lambda x: x.mul_(3)), constituent_attention(q, k, v, OFFSETS))[1], (1, 1, 3)),
    ],
)
def test_changed_gradients(
    joins: list[bool], use: Callable[[Tensor, Tensor, Tensor], Tensor], factors: tuple[int, ...]
) -> None:
    qkv, grad, expected = draw(*LAYOUTS[0])
    actual = torch.autograd.grad(use(*qkv.unbind(1)), qkv, grad)[0]
    for part, wanted, factor in zip(actual.unbind(1), expected.unbind(1), factors, strict=True):
        torch.testing.assert_close(part, factor * wanted)


def test_no_second_derivative(joins: list[bool]) -> None:
    qkv, grad, _ = draw(*LAYOUTS[0])
    out = constituent_attention(*qkv.unbind(1), OFFSETS)
    (first,) = torch.autograd.grad(out, qkv, grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
