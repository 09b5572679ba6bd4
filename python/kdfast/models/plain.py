"""A trained tagger as a plain torch module: padded jets in, logits out, no custom ops.

The network families have a class each, which is built from the trained model and computes the same function
in evaluation mode from x [B, N, F] and there [B, N] (true: a constituent). Batch norms are folded into the
linear layers before them. `models/onnx_graph.py` translates these modules, so they are written in the few
functions that it knows, and without control flow.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdfast.errors import ModelError
from kdfast.jets.features import STANDARDISED_CLIP, Standardisation
from kdfast.models.deep_sets import DeepSets
from kdfast.models.jet_transformer import JetTransformer
from kdfast.models.layers import DenseBlock
from kdfast.models.own_model import OwnNetwork
from kdfast.ops.jet_features import CLIP, NO_AXIS

__all__ = ["PlainTagger"]

_LARGEST = 3.4028234663852886e38  # of float32
_MASKED = -3e4  # score of what is no constituent: its weight is exactly 0, and float16 can hold it


class PlainTagger(nn.Module):
    """A trained tagger without custom ops.

    `Tagger.to_torch` makes one. It is in evaluation mode, its parameters need no gradient, and it holds
    copies: training the model further does not change it.
    """

    def __init__(self, standardisation: Standardisation, model: nn.Module) -> None:
        super().__init__()
        self.features = PlainFeatures(standardisation)
        if type(model) not in _PLAIN:
            raise ModelError(f"{type(model).__name__} has no plain form", where="to_torch")
        self.network = _PLAIN[type(model)](model)
        self.eval().requires_grad_(False)

    def forward(self, jets: Tensor) -> Tensor:
        """Logits [B, C] of jets [B, N, 4] float32: pt (GeV), eta, phi (rad), energy (GeV); N ≥ 1.

        A row with pt = 0 is padding; its other values are never used. It may be anywhere in a jet (for
        networks of one's own: where these allow it), and a jet may be all padding. The jets must be as the
        model's view has them: no threshold, no limit on the number of constituents and no HLT emulation is
        applied.
        """
        features, there = self.features(jets)
        return self.network(features, there)


class PlainFeatures(nn.Module):
    """(standardised features [B, N, 7], whether there is a constituent [B, N]) of padded jets [B, N, 4].

    The specification is ops/jet_features.py with `Standardisation.apply`. hypot, asinh and atan2 are spelt
    out: ONNX has no hypot and no atan2, and torch's exporter knows neither them nor asinh.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, standardisation: Standardisation) -> None:
        super().__init__()
        self.register_buffer("mean", standardisation.mean.clone())
        self.register_buffer("std", standardisation.std.clone())

    def forward(self, jets: Tensor) -> tuple[Tensor, Tensor]:
        there = jets.select(2, 0) > 0.0  # false for NaN
        clean = torch.where(there.unsqueeze(2), jets, 0.0)
        pt, eta, phi, energy = clean.select(2, 0), clean.select(2, 1), clean.select(2, 2), clean.select(2, 3)

        px = (pt * torch.cos(phi)).sum(1, keepdim=True)
        py = (pt * torch.sin(phi)).sum(1, keepdim=True)
        pz = (pt * torch.sinh(eta)).sum(1, keepdim=True)
        jet_pt = torch.sqrt(px * px + py * py)
        has_axis = jet_pt > NO_AXIS * pt.sum(1, keepdim=True)
        slope = pz / jet_pt
        steepness = torch.log(torch.abs(slope) + torch.sqrt(slope * slope + 1.0))
        jet_eta = torch.where(slope < 0.0, -steepness, steepness)  # asinh(pz / pT)
        to_axis = 2.0 * torch.atan(py / (jet_pt + torch.abs(px)))  # the angle to the x axis, −π/2 … π/2
        opposite = torch.where(py < 0.0, -torch.pi - to_axis, torch.pi - to_axis)
        jet_phi = torch.where(px < 0.0, opposite, to_axis)  # atan2(py, px)

        d_eta = torch.where(has_axis, eta - jet_eta, 0.0)
        turned = phi - jet_phi
        d_phi = torch.where(has_axis, turned - 2.0 * torch.pi * torch.round(turned * (0.5 / torch.pi)), 0.0)
        columns = [
            d_eta,
            d_phi,
            torch.log(pt),
            torch.log(energy),
            torch.where(has_axis, torch.log(pt / jet_pt), 0.0),
            torch.log(energy / energy.sum(1, keepdim=True)),
            torch.sqrt(d_eta * d_eta + d_phi * d_phi),
        ]
        features = torch.stack(columns, 2)
        finite = torch.abs(features) <= _LARGEST  # false for NaN
        features = torch.clamp(torch.where(finite, features, 0.0), -CLIP, CLIP)
        return torch.clamp((features - self.mean) / self.std, -STANDARDISED_CLIP, STANDARDISED_CLIP), there


# ---- the families


class _PlainTransformer(nn.Module):
    """JetTransformer. The query of the pooling attention is folded into its keys: a score is linear in x."""

    def __init__(self, model: JetTransformer) -> None:
        super().__init__()
        width = model.config.width
        heads = model.config.pooling_heads
        self.heads = (heads, width // heads)
        self.embed = _folded(model.embed)
        self.encoder = nn.ModuleList(_PlainLayer(layer) for layer in model.encoder)
        with torch.no_grad():
            query = model.pool.q(model.pool.query).double().view(heads, 1, -1) * (width // heads) ** -0.5
            keys = model.pool.kv.weight[:width].double().view(heads, -1, width)
            key_bias = model.pool.kv.bias[:width].double().view(heads, -1, 1)
            self.scores = _linear((query @ keys)[:, 0], (query @ key_bias)[:, 0, 0])
        self.values = _linear(model.pool.kv.weight[width:], model.pool.kv.bias[width:])
        self.out = _copied(model.pool.out)
        self.pool_norm = copy.deepcopy(model.pool_norm)
        self.dense = nn.ModuleList(_folded(block) for block in (model.dense1, model.dense2, model.dense3))
        self.classify = _copied(model.classify)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        x = F.gelu(self.embed(x))
        for layer in self.encoder:
            x = layer(x, there)
        scores = torch.where(there.unsqueeze(2), self.scores(x), _MASKED)
        weights = torch.where(there.unsqueeze(2), torch.softmax(scores, 1), 0.0)  # all 0 for an empty jet
        pooled = (weights.unsqueeze(3) * self.values(x).unflatten(2, self.heads)).sum(1).flatten(1)
        h = F.gelu(self.dense[0](self.pool_norm(self.out(pooled))))
        h = h + F.gelu(self.dense[1](h))
        return self.classify(F.gelu(self.dense[2](h)))


class _PlainLayer(nn.Module):
    """EncoderLayer of models/layers.py. The scale of the attention is folded into the queries."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.heads = (3, layer.heads, layer.head_dim)
        width = layer.heads * layer.head_dim
        scale = torch.ones(3 * width, dtype=torch.float64)
        scale[:width] = layer.head_dim**-0.5
        self.norm1 = copy.deepcopy(layer.norm1)
        self.qkv = _linear(layer.qkv.weight * scale[:, None], layer.qkv.bias * scale)
        self.out = _copied(layer.out)
        self.norm2 = copy.deepcopy(layer.norm2)
        self.ffn_in = _copied(layer.ffn_in)
        self.ffn_out = _copied(layer.ffn_out)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, self.heads).permute(2, 0, 3, 1, 4)  # [3, B, heads, N, d]
        scores = qkv.select(0, 0) @ qkv.select(0, 1).transpose(2, 3)
        weights = torch.softmax(torch.where(there.unsqueeze(1).unsqueeze(1), scores, _MASKED), 3)
        attended = (weights @ qkv.select(0, 2)).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.ffn_out(F.gelu(self.ffn_in(self.norm2(x))))


class _PlainDeepSets(nn.Module):
    """DeepSets. Its activations are ≥ 0, so that zeros in the place of padding change no maximum."""

    def __init__(self, model: DeepSets) -> None:
        super().__init__()
        self.constituent = nn.ModuleList(map(_copied, model.constituent))
        self.jet = nn.ModuleList(map(_copied, model.jet))
        self.classify = _copied(model.classify)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        for layer in self.constituent:
            x = torch.relu(layer(x))
        x = torch.where(there.unsqueeze(2), x, 0.0)
        mean = x.sum(1) / torch.clamp(there.type_as(x).sum(1, keepdim=True), 1.0)
        h = torch.cat([mean, torch.amax(x, 1)], 1)
        for layer in self.jet:
            h = torch.relu(layer(h))
        return self.classify(h)


class _PlainOwn(nn.Module):
    """A network of one's own on padded jets, as its adapter calls it."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: OwnNetwork) -> None:
        super().__init__()
        adapter = model.adapter
        if adapter.inputs != "padded":
            hint = "write its forward for x [B, N, F] and mask [B, N], with weights of the same names"
            raise ModelError("takes packed jets, which exporters can't follow", where=model.config.name, hint=hint)
        self.module = copy.deepcopy(adapter.module)
        self.spare = adapter.min_length - 1  # rows of padding, so that there are at least min_length rows
        self.attention = adapter.attention
        scaled = not adapter.standardised
        self.register_buffer("mean", model.mean.clone() if scaled else torch.zeros(model.config.num_features))
        self.register_buffer("std", model.std.clone() if scaled else torch.ones(model.config.num_features))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        x = torch.where(there.unsqueeze(2), x * self.std + self.mean, 0.0)
        empty = ~there.any(1, keepdim=True)
        first = torch.ones_like(there, dtype=torch.int64).cumsum(1) == 1  # by counting: a slice would restrict N
        mask = there | (first & empty)  # an empty jet has one constituent of zeros
        answer = self.module(F.pad(x, (0, 0, 0, self.spare)), F.pad(mask, (0, self.spare)))
        logits = answer[0] if self.attention else answer
        return logits.unsqueeze(1) if logits.ndim == 1 else logits


_PLAIN: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    JetTransformer: _PlainTransformer,
    DeepSets: _PlainDeepSets,
    OwnNetwork: _PlainOwn,
}


def _copied(layer: Any) -> nn.Linear:
    """torch's own layer: hls4ml follows no subclass."""
    return _linear(layer.weight, layer.bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = torch.nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def _folded(block: DenseBlock) -> nn.Linear:
    """γ (W x + b − μ) / √(σ² + ε) + β as one linear layer."""
    norm = block.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = (block.linear.bias - norm.running_mean.double()) * scale + norm.bias
    return _linear(block.linear.weight * scale[:, None], bias)
