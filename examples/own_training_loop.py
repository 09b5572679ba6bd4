"""kdfast's distillation loss in a plain PyTorch loop, with a model of your own.

The teacher sees the offline view of the jets, the student the coarse view of a trigger. A baseline, the same student
trained without a teacher (α = 0), shows what distillation adds.

usage: python examples/own_training_loop.py
"""

import torch
from torch import nn

import kdfast
from kdfast.metrics import roc_auc

CONSTITUENTS = 25
TRAINING = 4000


class DeepSet(nn.Module):
    """A network for each constituent, the mean over the jet, a network for the jet: one logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(7, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.jet = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x [B, N, 7], mask [B, N] → logits [B, 1]."""
        total = (self.each(x) * mask[:, :, None]).sum(1)
        return self.jet(total / mask.sum(1, keepdim=True).clamp(min=1))


def padded(jets: kdfast.PackedJets) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [B, N, 7], standardised over all constituents, and mask [B, N]."""
    features = kdfast.features(jets)
    features = (features - features.mean(0)) / features.std(0)
    _, filled = jets.to_padded(CONSTITUENTS)
    mask = torch.from_numpy(filled)
    x = torch.zeros(len(jets), CONSTITUENTS, features.shape[1])
    x[mask] = features
    return x, mask


def train(model: nn.Module, x: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, teacher=None) -> nn.Module:
    """teacher: logits [B, 1] of the same jets; None: labels alone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(8):
        for some in torch.randperm(len(x)).split(128):
            loss = kdfast.ops.distill_loss(
                model(x[some], mask[some]),
                None if teacher is None else teacher[some],
                labels[some],
                temperature=3.0,
                alpha=0.0 if teacher is None else 0.5,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def logits(model: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x, mask)


torch.manual_seed(1)
offline = kdfast.sample()[:6000].hardest(CONSTITUENTS)
trigger = kdfast.emulate_hlt(offline, "nominal")  # the same jets, as a trigger might see them
labels = torch.from_numpy(offline.labels)
offline_x, offline_mask = padded(offline)
trigger_x, trigger_mask = padded(trigger)
first = slice(None, TRAINING)  # trained on; the others are test jets
rest = slice(TRAINING, None)

teacher = train(DeepSet(64), offline_x[first], offline_mask[first], labels[first])
targets = logits(teacher, offline_x[first], offline_mask[first])
torch.manual_seed(2)
baseline = train(DeepSet(16), trigger_x[first], trigger_mask[first], labels[first])
torch.manual_seed(2)  # the same initial weights and batches: the comparison is paired
student = train(DeepSet(16), trigger_x[first], trigger_mask[first], labels[first], targets)

for name, model, x, mask in (
    ("teacher, offline view", teacher, offline_x, offline_mask),
    ("baseline, trigger's view", baseline, trigger_x, trigger_mask),
    ("student, trigger's view", student, trigger_x, trigger_mask),
):
    auc = roc_auc(labels[rest].numpy(), logits(model, x[rest], mask[rest])[:, 0].numpy())
    print(f"{name:26} test AUC {auc:.3f}")
