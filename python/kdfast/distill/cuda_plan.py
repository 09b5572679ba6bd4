"""What the steps of the CUDA engine read that is the same for all members, and the memory that they take.

The jets lie on the device, and with them a plan of the steps to come: a step, captured once, finds its jets,
rows and seeds of dropout there.
"""

from __future__ import annotations

import gc
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdfast.distill.batches import epoch_batches
from kdfast.distill.pack import Pack
from kdfast.models.build import build_network
from kdfast.models.config import DeepSetsConfig, ModelConfig, NetworkConfig
from kdfast.models.packed import dropout_seeds, dropout_uses
from kdfast.ops.dropout_masks import mask_bytes
from kdfast.ops.packed_rows import pair_tiles
from kdfast.ops.philox import derive_seed, fold_seed

__all__ = ["Plan", "capturing", "empty_cache"]

_GRANULE = 64  # rows of a batch's capacity: tiles of the tensor cores divide it
_PLAN_BYTES = 16 << 20  # of the steps that are planned at a time, if more than one; making them takes ten times that
# One capture at a time: torch empties every device's cache before it begins one, which no capture under way survives.
capturing = threading.Lock()


def empty_cache() -> None:
    """Gives the memory that torch keeps for reuse back to the device."""
    with capturing:
        torch.cuda.empty_cache()


class Plan:
    """What steps read that no member's own numbers go into, on the device: the jets, and which of them when."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.device = torch.device(pack.device)
        train = pack.train
        targets = pack.targets
        counts = train.offsets.diff()
        # Of each jet: its constituents, and the first of them.
        self.counts = counts.to(self.device)
        self.first = train.offsets[:-1].to(self.device)
        rows, columns = train.features.shape
        self.features = torch.zeros(rows + 1, columns, dtype=train.features.dtype, device=self.device)
        self.features[:-1] = train.features  # the last one is padding's
        self.labels = train.labels.to(self.device)
        self.weights = train.weights.to(self.device)
        self.teacher = self.summary = None
        if targets is not None and any(member.distils for member in pack.members):
            self.teacher = targets.logits.to(self.device)
            if targets.attention_entropy is not None:
                assert targets.attention_max is not None
                self.summary = torch.stack([targets.attention_entropy, targets.attention_max]).to(self.device)
        longest = 0
        self.tiles = 0  # of pairs, in a batch at most: see PackedRows
        for epoch in range(pack.recipe.epochs):
            batches = self.batches(epoch)
            longest = max(longest, int(counts[batches].sum(1).max()))
            self.tiles = max(self.tiles, int(pair_tiles(counts)[batches].sum(1).max()))
        self.capacity = max(1, -(-longest // _GRANULE)) * _GRANULE
        b = pack.recipe.batch_size
        m = self.capacity
        self.columns = [b, m, m, m, b + 1, _seeds(pack.model, np.zeros(1, np.uint64)).shape[1]]
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.steps_at_once = max(1, _PLAN_BYTES // (8 * sum(self.columns)))

    def batches(self, epoch: int) -> Tensor:
        recipe = self.pack.recipe
        return epoch_batches(self.pack.seed, epoch, len(self.pack.train), recipe.batch_size, recipe.shuffle_window)

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Jets [steps, b] and seeds of dropout [steps, s] of an epoch's steps, on the device; the last one is kept."""
        if epoch not in self.kept:
            self.kept = {epoch: self._epoch(epoch)}
        return self.kept[epoch]

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        jets = self.batches(epoch)
        steps = len(jets)
        key = derive_seed(self.pack.seed, "dropout")
        keys = np.array([fold_seed(key, epoch * steps + step) for step in range(steps)], np.uint64)
        return jets.to(self.device), torch.from_numpy(_seeds(self.pack.model, keys)).to(self.device)

    def steps(self, jets: Tensor, seeds: Tensor) -> Tensor:
        """int64 [steps, Σ columns] of steps of `epoch`: jets, rows of the features (the last one for
        padding), jet and position of each row, offsets, and the seeds."""
        offsets = torch.nn.functional.pad(self.counts[jets].cumsum(1), (1, 0))
        row = torch.arange(self.capacity, device=self.device)
        valid = row < offsets[:, -1:]
        # How many jets but the first begin at a row or before: its jet, since those that begin there too are empty.
        begins = torch.zeros(len(jets), self.capacity + 1, dtype=torch.int64, device=self.device)
        begins.scatter_add_(1, offsets[:, 1:-1], torch.ones_like(jets[:, 1:]))
        jet = torch.where(valid, begins[:, :-1].cumsum(1), 0)
        position = torch.where(valid, row - offsets.gather(1, jet), 0)
        source = torch.where(valid, self.first[jets].gather(1, jet) + position, len(self.features) - 1)
        return torch.cat([jets, source, jet, position, offsets, seeds], 1)

    def member_bytes(self) -> int:
        """Of one member's activations and buffers on the device, as members_at_once estimates them."""
        activations = self.capacity * _row_bytes(self.pack.model, self.pack.precision)
        # Moments, gradient, best, the graph's temporaries.
        parameters = 10 * 4 * build_network(self.pack.model).num_parameters()
        return activations + parameters

    def planning_bytes(self) -> int:
        """Of the plan of the coming steps and its making."""
        return 10 * 8 * sum(self.columns) * self.steps_at_once

    def mask_bytes(self) -> int:
        """Of what dropout keeps in a step, for all members."""
        model = self.pack.model
        uses = dropout_uses(model) if isinstance(model, ModelConfig) and model.dropout > 0 else []
        return sum(mask_bytes(use, self.capacity, self.pack.recipe.batch_size, self.tiles) for use in uses)

    def members_at_once(self) -> int:
        """How many members' activations and buffers fit the device's free memory, in which the jets lie already."""
        if self.device.type != "cuda":
            return len(self.pack.members)
        gc.collect()  # a group before this one, which refers to itself
        empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        shared = self.planning_bytes() + self.mask_bytes()
        return max(1, (int(0.85 * free) - shared) // self.member_bytes())


def _seeds(model: NetworkConfig, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[steps, s]: the seeds of dropout of steps with these keys; DeepSets have none."""
    seeds = dropout_seeds(keys, model.layers) if isinstance(model, ModelConfig) else []
    return np.array(seeds, np.uint64).reshape(len(seeds), len(keys)).T.astype(np.int64)


def _row_bytes(model: NetworkConfig, precision: str) -> int:
    """Of a constituent's activations and their gradients in one member's step, roughly."""
    size = 2 if precision == "bf16" else 4
    if isinstance(model, DeepSetsConfig):
        return model.width * (size * (2 * model.layers + 4) + 4 * 8)  # the pooling's are float32
    assert isinstance(model, ModelConfig)
    layer = 2 * 4 * model.width + size * (7 * model.width + 2 * model.ffn)  # x twice, norms, qkv, attended, FFN
    return (model.layers + 2) * layer  # two layers' worth of gradients
