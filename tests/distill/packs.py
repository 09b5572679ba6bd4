"""Small packs for tests: jets whose class shows in their features, and a teacher that knows it."""

import torch

from kdfast.distill.pack import Member, Pack, Targets, View
from kdfast.distill.recipe import Recipe
from kdfast.distill.schedules import RunConfig
from kdfast.models import DeepSetsConfig, ModelConfig
from kdfast.models.config import NetworkConfig

MODEL = ModelConfig(width=16, layers=1, heads=2, ffn=16, pooling_heads=2)
DEEP_SETS = DeepSetsConfig(width=16, layers=2, head_width=16, head_layers=1)


def view(jets: int, seed: int, *, signal_shift: float = 0.6) -> View:
    """Jets of 0 to 9 constituents; signal's features are shifted."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(jets) % 2).float()
    counts = torch.randint(0, 10, (jets,), generator=generator)
    offsets = torch.zeros(jets + 1, dtype=torch.int64)
    offsets[1:] = counts.cumsum(0)
    features = torch.randn(int(offsets[-1]), 7, generator=generator)
    features[:, :2] += signal_shift * labels.repeat_interleave(counts)[:, None]
    return View(features, offsets, labels, torch.rand(jets, generator=generator) + 0.5)


def pack(
    members: list[Member],
    *,
    seed: int = 5,
    model: NetworkConfig = MODEL,
    targets: bool = True,
    train: View | None = None,
    device: str = "cpu",
    **recipe,
) -> Pack:
    train = train or view(96, 0)
    generator = torch.Generator().manual_seed(9)
    entropy, maximum = torch.rand(96, generator=generator), torch.rand(96, generator=generator)
    logits = (3 * train.labels - 1.5 + torch.randn(96, generator=generator))[:, None]
    return Pack(
        model,
        tuple(members),
        seed,
        Recipe(**({"epochs": 3, "batch_size": 32, "learning_rate": 5e-3, "warmup_epochs": 1} | recipe)),
        train,
        view(64, 1),
        view(64, 2),
        Targets(logits, entropy, maximum) if targets else None,
        device=device,
    )


def students(number: int) -> list[Member]:
    configs = [RunConfig(1.0 + i, 0.1 * (i % 10), alpha_final=0.05, temp_final=2.5) for i in range(number)]
    return [Member(config.name, config) for config in configs]
