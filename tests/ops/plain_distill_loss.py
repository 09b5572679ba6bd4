"""What distill_loss is held against: plain PyTorch, and the same in extended precision."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def make(
    members: int | None,
    jets: int,
    classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    scale: float = 3.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(student, teacher, labels, weights); members None: [B, C]."""
    rng = torch.Generator().manual_seed(seed)
    shape = (jets, classes) if members is None else (members, jets, classes)
    student = (scale * torch.randn(shape, generator=rng)).to(dtype)
    teacher = (scale * torch.randn(jets, classes, generator=rng)).to(dtype)
    labels = torch.randint(0, max(classes, 2), (jets,), generator=rng)
    return student, teacher, labels, torch.rand(jets, generator=rng) + 0.01


def plain(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, weights: Tensor | None = None
) -> Tensor:
    """One member's loss as one would write it, in the dtype of the logits: [B, C] -> scalar."""
    T, dtype = temperature, student.dtype
    if student.shape[1] == 1:
        s, t, y = student[:, 0], teacher[:, 0], labels.to(dtype)
        p = torch.sigmoid(t / T)
        entropy = F.binary_cross_entropy_with_logits(t / T, p, reduction="none")
        kd = T * T * (F.binary_cross_entropy_with_logits(s / T, p, reduction="none") - entropy)
        label = F.binary_cross_entropy_with_logits(s, y, reduction="none")
    else:
        log_p, log_q = F.log_softmax(teacher / T, 1), F.log_softmax(student / T, 1)
        kd = T * T * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        label = F.cross_entropy(student, labels, reduction="none")
    loss = alpha * kd + (1 - alpha) * label
    return loss.mean() if weights is None else (weights.to(dtype) * loss).sum() / weights.to(dtype).sum()


def plain_with_grad(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: list[float],
    alpha: list[float],
    weights: Tensor | None,
    grad_loss: Tensor,
) -> tuple[Tensor, Tensor]:
    """plain for each member: (loss [K], grad [K, B, C])."""
    s = student.detach().clone().requires_grad_()
    loss = torch.stack(
        [
            plain(s[k], teacher[k] if teacher.dim() == 3 else teacher, labels, temperature[k], alpha[k], weights)
            for k in range(len(s))
        ]
    )
    (grad,) = torch.autograd.grad(loss, s, grad_loss.to(loss.dtype))
    return loss.detach(), grad


def exact_with_grad(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: list[float],
    alpha: list[float],
    weights: Tensor | None,
    grad_loss: Tensor,
) -> tuple[Tensor, Tensor]:
    """What plain_with_grad approximates, in extended precision: float64 has no digit of a confident jet's loss left."""
    s, t, y, g = (x.detach().double().numpy().astype(np.longdouble) for x in (student, teacher, labels, grad_loss))
    T, a = (np.array(x, np.longdouble)[:, None, None] for x in (temperature, alpha))
    classes = s.shape[-1]
    if classes == 1:
        s, t = (np.concatenate([np.zeros_like(x), x], -1) for x in (s, t))
        target = np.stack([1 - y, y], -1)
    else:
        target = np.eye(classes)[labels.numpy()]
    w = np.ones(len(y)) if weights is None else weights.double().numpy()
    w = (w / w.sum(dtype=np.longdouble))[:, None]

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_p, log_q, log_s = log_softmax(t / T), log_softmax(s / T), log_softmax(s)
    loss = (w * (a * T * T * np.exp(log_p) * (log_p - log_q) - (1 - a) * target * log_s)).sum((1, 2))
    grad = g[:, None, None] * w * (a * T * (np.exp(log_q) - np.exp(log_p)) + (1 - a) * (np.exp(log_s) - target))
    return torch.from_numpy(loss.astype(np.float64)), torch.from_numpy(grad[..., -classes:].astype(np.float64))
