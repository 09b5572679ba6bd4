"""The study's training step in ordinary PyTorch: padded jets, torch.nn layers, eager float32, a live teacher.

It is what a competent user would write without kdfast, and what the original study ran.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdfast.models import JetTransformer, ModelConfig

Padded = tuple[Tensor, Tensor]  # x [B, N, F] and mask [B, N], true where there is a constituent
TeacherOutputs = tuple[Tensor, Tensor, Tensor]  # logits [B, 1], entropy and maximum [B] of the pooling weights


class PlainTagger(nn.Module):
    """The model of kdfast.models.JetTransformer on x [B, N, F] with mask [B, N] (true: a constituent)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, p = config.width, config.dropout
        self.embed, self.embed_norm = nn.Linear(config.num_features, width), nn.BatchNorm1d(width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, config.ffn, p, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pool = nn.MultiheadAttention(width, config.pooling_heads, p, batch_first=True)
        self.pool_norm = nn.LayerNorm(width)
        self.dense1, self.norm1 = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.dense2, self.norm2 = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.dense3, self.norm3 = nn.Linear(width, width // 2), nn.BatchNorm1d(width // 2)
        self.classify = nn.Linear(width // 2, 1)
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 1] and head-averaged pooling weights [B, N]."""
        h = self.embed_norm(self.embed(x).flatten(0, 1)).view(*mask.shape, -1)
        h = self.encoder(self.dropout(F.gelu(h)), src_key_padding_mask=~mask)
        pooled, attention = self.pool(self.query.expand(len(x), -1, -1), h, h, key_padding_mask=~mask)
        z = self.pool_norm(pooled[:, 0])
        z = self.dropout(F.gelu(self.norm1(self.dense1(z))))
        z = z + self.dropout(F.gelu(self.norm2(self.dense2(z))))
        z = self.dropout(F.gelu(self.norm3(self.dense3(z))))
        return self.classify(z), attention[:, 0]

    @torch.no_grad()
    def copy_weights(self, model: JetTransformer) -> None:
        """Takes kdfast's weights, so that both compute the same."""
        pairs = [
            (self.embed, model.embed.linear),
            (self.embed_norm, model.embed.norm),
            (self.pool.out_proj, model.pool.out),
            (self.pool_norm, model.pool_norm),
            (self.classify, model.classify),
        ]
        for number in "123":
            block = getattr(model, f"dense{number}")
            pairs += [(getattr(self, f"dense{number}"), block.linear), (getattr(self, f"norm{number}"), block.norm)]
        for theirs, ours in zip(self.encoder.layers, model.encoder, strict=True):
            pairs += [(theirs.norm1, ours.norm1), (theirs.norm2, ours.norm2), (theirs.linear1, ours.ffn_in)]
            pairs += [(theirs.linear2, ours.ffn_out), (theirs.self_attn.out_proj, ours.out)]
            theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
            theirs.self_attn.in_proj_bias.copy_(ours.qkv.bias)
        for theirs, ours in pairs:
            theirs.load_state_dict(ours.state_dict(), strict=False)  # BatchNorm's counter is not kept by kdfast
        self.query.copy_(model.pool.query)
        self.pool.in_proj_weight.copy_(torch.cat([model.pool.q.weight, model.pool.kv.weight]))
        self.pool.in_proj_bias.copy_(torch.cat([model.pool.q.bias, model.pool.kv.bias]))


def attention_numbers(attention: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy and maximum [B] of pooling weights [B, N]."""
    w = attention.masked_fill(~mask, 0.0)
    return -(w * w.clamp(min=1e-12).log()).sum(1), w.max(1).values


def distillation_loss(
    logits: Tensor,
    attention: Tensor,
    mask: Tensor,
    teacher: TeacherOutputs,
    labels: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    """α T² BCE(σ(s/T), σ(t/T)) + (1 − α) BCE(s, y) + 0.2 · A; logits [B, 1] and pooling weights [B, N]: a student's."""
    teacher_logits, entropy_t, maximum_t = teacher
    entropy, maximum = attention_numbers(attention, mask)
    kd = F.binary_cross_entropy_with_logits(logits / temperature, torch.sigmoid(teacher_logits / temperature))
    hard = F.binary_cross_entropy_with_logits(logits[:, 0], labels)
    transfer = F.mse_loss(entropy, entropy_t) + F.mse_loss(maximum, maximum_t)
    return alpha * temperature**2 * kd + (1 - alpha) * hard + 0.2 * transfer


class PlainTrainer:
    """One student, its optimizer, and a teacher that is asked anew in every step.

    autocast: layers in bfloat16, by torch.autocast; weights and optimizer stay in float32.
    """

    def __init__(
        self,
        student: PlainTagger,
        teacher: PlainTagger,
        learning_rate: float,
        weight_decay: float,
        autocast: bool = False,
    ) -> None:
        self.student, self.teacher, self.autocast = student.train(), teacher.eval(), autocast
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=weight_decay)

    @torch.no_grad()
    def ask_teacher(self, offline: Padded) -> TeacherOutputs:
        """What the loss needs of the teacher, which may be kept for the next time these jets come."""
        logits, attention = self.teacher(*offline)
        return logits, *attention_numbers(attention, offline[1])

    def loss(self, hlt: Padded, teacher: TeacherOutputs, labels: Tensor, temperature: float, alpha: float) -> Tensor:
        """See distillation_loss."""
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=self.autocast):
            logits, attention = self.student(*hlt)
        return distillation_loss(logits.float(), attention.float(), hlt[1], teacher, labels, temperature, alpha)

    def step(
        self,
        hlt: Padded,
        offline: Padded | None,
        labels: Tensor,
        temperature: float,
        alpha: float,
        cached: TeacherOutputs | None = None,
    ) -> float:
        """One update. cached: the teacher's outputs, which is then not asked."""
        self.optimizer.zero_grad()
        teacher = self.ask_teacher(offline) if cached is None else cached
        loss = self.loss(hlt, teacher, labels, temperature, alpha)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()
