"""The CUDA engine: all members of a pack in lock-step.

Members share the batches, so a step is batched matrix products over [K, M, D] with one op for all members between them
(models/packed.py). What differs between steps, jets, rows, seeds, lies on the device as a plan of those to
come, what differs between epochs in vectors of length K; so the step is captured once as a CUDA graph and replayed,
and the host waits for the device once an epoch. Same results as the reference engine within the accuracy rule; the
same pack gives the same bits.

On other devices the same engine runs without a graph, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import gc
import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdfast.distill.batches import epoch_batches
from kdfast.distill.checkpoint import Boundary, Checkpoints, MemberCheckpoint, Stopped, copy_tensors
from kdfast.distill.engine import end_epoch
from kdfast.distill.optimizer import learning_rate
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack, View
from kdfast.distill.packed_auc import PackedAuc
from kdfast.errors import BackendError, KdfastWarning
from kdfast.models.build import build_network, pack_networks
from kdfast.models.config import DeepSetsConfig, ModelConfig, NetworkConfig
from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.models.packed import dropout_seeds, dropout_uses
from kdfast.ops import backend
from kdfast.ops.adamw import adamw
from kdfast.ops.attention_transfer import attention_transfer
from kdfast.ops.constituent_attention import HEAD_DIMS
from kdfast.ops.distill_loss import distill_loss
from kdfast.ops.dropout_masks import mask_bytes
from kdfast.ops.packed_rows import PackedRows, pair_tiles
from kdfast.ops.philox import derive_seed, fold_seed

__all__ = ["train", "unsupported"]

_GRANULE = 64  # rows of a batch's capacity: tiles of the tensor cores divide it
# The kernels that a step needs to be captured: references look at values, for which a capture cannot wait.
_KERNELS = ("adamw", "distill_loss")
_KERNELS_OF_TRANSFORMERS = (
    *("attention_pooling", "attention_transfer", "batch_norm_gelu", "bias_gelu"),
    *("constituent_attention", "dropout_masks", "residual_norm"),
)
_WARM_UP = 3  # steps before the capture, in which libraries allocate and choose
_CLOSED = 0.88  # share of a group's members that still run, from which the others' places are given up
_AHEAD = 4  # steps that the host may be ahead of the device, so that a stop does not wait for many
_PLAN_BYTES = 16 << 20  # of the steps that are planned at a time, if more than one; making them takes ten times that
_EVALUATED_ROWS = 1 << 16  # constituents of all members that are evaluated at a time
# One capture at a time: torch empties every device's cache before it begins one, which no capture under way survives.
_capturing = threading.Lock()


def unsupported(model: NetworkConfig) -> str | None:
    """Why the kernels that a captured step is made of can't take a model of these sizes; None: they can."""
    if isinstance(model, DeepSetsConfig):
        return None
    if not isinstance(model, ModelConfig):
        return "members in lock step are JetTransformers or DeepSets"
    if model.width % 16 or model.ffn % 8:  # the head halves the width
        return f"on a GPU width {model.width} must be a multiple of 16, ffn {model.ffn} of 8"
    if model.width // model.heads not in HEAD_DIMS:
        return f"width / heads is {model.width // model.heads}, none of {', '.join(map(str, HEAD_DIMS))}"
    if not backend.cuda_module().attention_pooling_takes(model.pooling_heads, model.width):
        return f"no kernel pools width {model.width} by {model.pooling_heads} heads"
    return None


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


def train(
    pack: Pack,
    threads: int,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
) -> Generator[MemberResult, None, None]:
    """The engine's entrance; see trainer.train_pack. threads: not used.

    As many members at once as the device's memory holds, the others after them; where it turns out to hold fewer,
    three quarters of them. Members resume together with those that are at the same step, the furthest first: as a
    pack of another size they may end in other last bits.
    """
    waiting = [_start(member, checkpoints) for member in pack.members]
    most = len(waiting)
    try:
        plan = _Plan(pack)
    except RuntimeError as error:
        raise _too_small(pack, error) from error
    while waiting and not stop.is_set():
        furthest = max(start.position for _, start in waiting)
        together = [number for number, (_, start) in enumerate(waiting) if start.position == furthest]
        together = together[: min(most, plan.members_at_once())]
        starts = [waiting[number] for number in together]
        waiting = [start for number, start in enumerate(waiting) if number not in together]
        left = yield from _train_together(pack, starts, plan, stop, checkpoints, on_epoch)
        if left:
            most = max(1, 3 * len(starts) // 4)
            what = (
                f"device '{pack.device}': its memory is too small for {len(starts)} runs at once; {most} train at once"
            )
            warnings.warn(what, KdfastWarning, stacklevel=2)
            waiting = left + waiting


_Start = tuple[Member, MemberCheckpoint]


def _start(member: Member, checkpoints: Checkpoints | None) -> _Start:
    return member, (checkpoints.load(member.name) if checkpoints else None) or MemberCheckpoint()


def _train_together(
    pack: Pack,
    starts: list[_Start],
    plan: _Plan,
    stop: threading.Event,
    checkpoints: Checkpoints | None,
    on_epoch: Callable[[EpochReport], None] | None,
) -> Generator[MemberResult, None, list[_Start]]:
    """Trains members at the same step to their ends; where memory runs out, returns those that have not ended.

    Raises BackendError where it runs out for a single one.
    """
    group = None
    try:
        group = _Group(pack, starts, plan, stop, checkpoints)
        yield from group.train(on_epoch)
        return []
    except RuntimeError as error:
        fault = _too_small(pack, error)
        if len(starts) == 1:
            raise fault from error
    # After the handler: its exception holds the frames, and so the tensors, of what has failed.
    if group is None:
        return [_start(member, checkpoints) for member, _ in starts]
    return group.left()


def _too_small(pack: Pack, error: RuntimeError) -> BackendError:
    """What to raise for an allocation that has failed; any other error is raised as it is."""
    causes = (error, error.__context__)  # the end of a capture fails after an allocation within it, with its own error
    failed = next((cause for cause in causes if isinstance(cause, torch.OutOfMemoryError)), None)
    if failed is None and "ALLOC_FAILED" not in str(error):  # cuBLAS's and cuDNN's own workspaces
        raise error
    what = f"its memory is too small ({str(failed or error).partition('. ')[0]})"
    hint = "take a smaller batch_size or model, fewer jets, or the device 'cpu'"
    return BackendError(what, where=f"device '{pack.device}'", hint=hint)


class _Plan:
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
        """int64 [steps, Σ columns] of steps of `epoch`: jets, rows of the features (the last one for padding), jet and
        position of each row, offsets, and the seeds."""
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
        with _capturing:
            torch.cuda.empty_cache()  # and what torch keeps of it
        free, _ = torch.cuda.mem_get_info(self.device)
        shared = self.planning_bytes() + self.mask_bytes()
        return max(1, (int(0.85 * free) - shared) // self.member_bytes())


class _Trainer:
    """K members' state on the device, and the step that moves it."""

    def __init__(self, pack: Pack, members: list[Member], plan: _Plan) -> None:
        self.pack = pack
        self.members = members
        self.plan = plan
        device = plan.device
        initial = build_network(pack.model, pack.seed)
        count = len(members)

        def repeated(flat: Tensor) -> Tensor:
            return flat.to(device).repeat(count, 1)

        self.parameters = repeated(flatten_parameters(initial))
        self.running = repeated(flatten_running(initial))
        self.best_parameters = self.parameters.clone()
        self.best_running = self.running.clone()
        self.gradient, self.moment1, self.moment2 = (torch.zeros_like(self.parameters) for _ in range(3))
        self.model = pack_networks(pack.model, self.parameters, self.running, pack.precision)
        self.drops = isinstance(pack.model, ModelConfig) and pack.model.dropout > 0

        self.temperature, self.alpha = (torch.ones(count, dtype=torch.float64, device=device) for _ in range(2))
        self.rate = torch.zeros(count, device=device)
        self.recipes = [pack.recipe_of(member) for member in members]
        distils = [member.distils for member in members]
        weights = [recipe.attention_weight * own for recipe, own in zip(self.recipes, distils, strict=True)]
        self.weight_decay = torch.tensor([recipe.weight_decay for recipe in self.recipes], device=device)
        self.transfer_weight = torch.tensor(weights, device=device)
        self.clip_norm = torch.tensor([recipe.clip_norm for recipe in self.recipes], device=device)
        self.one_clip = len({recipe.clip_norm for recipe in self.recipes}) == 1
        self.teacher, self.summary = (plan.teacher, plan.summary) if any(distils) else (None, None)
        self.updates = torch.zeros(count, dtype=torch.int64, device=device)
        self.alive = torch.ones(count, dtype=torch.bool, device=device)
        self.died = torch.full_like(self.updates, -1)  # the update at which a loss or gradient was not finite
        self.sums = torch.zeros(count, 4, dtype=torch.float64, device=device)

        self.steps_of_epoch = len(pack.train) // pack.recipe.batch_size
        self.step_of_epoch = self.planned = 0  # the next step; those before it are taken, those before `planned` lie in
        shape = min(plan.steps_at_once, self.steps_of_epoch), sum(plan.columns)
        self.steps = torch.zeros(shape, dtype=torch.int64, device=device)  # with which, on the device, `next` is next
        self.next = torch.zeros(1, dtype=torch.int64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream: torch.cuda.Stream | None = None  # of the steps before the graph, and of its capture
        self.warm = 0  # steps before the graph was captured
        self.under_way: deque[torch.cuda.Event] = deque()  # ends of steps that the device may not have reached

    def tensors(self, member: int) -> dict[str, Tensor]:
        """What a member's next step depends on, by name as in MemberCheckpoint: views, to read or fill."""
        names = ("parameters", "moment1", "moment2", "running")
        return {name: getattr(self, name)[member] for name in names} | {"updates": self.updates[member : member + 1]}

    def load(self, member: int, start: MemberCheckpoint) -> None:
        """Puts a member where its checkpoint says."""
        copy_tensors(self.tensors(member), start.learner)
        self.sums[member].copy_(start.sums)
        if start.best_state:
            model = build_network(self.pack.model)
            model.load_state_dict(start.best_state)
            self.best_parameters[member].copy_(flatten_parameters(model))
            self.best_running[member].copy_(flatten_running(model))

    def take(self, other: _Trainer, numbers: list[int]) -> None:
        """Puts all members where those of these numbers are in another trainer, between two epochs."""
        names = ("parameters", "moment1", "moment2", "running", "best_parameters", "best_running", "updates")
        for name in names:
            getattr(self, name).copy_(getattr(other, name)[numbers])

    def begin_epoch(self, epoch: int, done: int = 0) -> None:
        """done: steps of the epoch that were taken before."""
        rates = [learning_rate(epoch, r.epochs, r.warmup_epochs, r.learning_rate) for r in self.recipes]
        settings = [member.at(epoch, self.pack.recipe.epochs) for member in self.members]
        temperature, alpha = torch.tensor(settings, dtype=torch.float64).unbind(1)
        self.rate.copy_(torch.tensor(rates))
        self.temperature.copy_(temperature)
        self.alpha.copy_(alpha)
        self.epoch_jets, self.epoch_seeds = self.plan.epoch(epoch)
        self.step_of_epoch = self.planned = done
        self._plan_steps()

    def _plan_steps(self) -> None:
        """Puts the next steps of the epoch where the device finds them."""
        which = slice(self.planned, self.planned + len(self.steps))
        planned = self.plan.steps(self.epoch_jets[which], self.epoch_seeds[which])
        self.steps[: len(planned)] = planned
        self.next.zero_()
        self.planned += len(planned)

    def step(self) -> None:
        """One update of all members. On a GPU nothing here waits for it."""
        jets, source, jet, position, offsets, seeds = self.steps.index_select(0, self.next)[0].split(self.plan.columns)
        self.next += 1
        rows = PackedRows(offsets[-1:], jet, position, offsets, self.plan.tiles)
        dropout = seeds if self.drops else None
        logits, attention = self.model.logits(self.plan.features.index_select(0, source), rows, dropout, training=True)
        weights = self.plan.weights[jets]
        loss, parts = distill_loss(
            logits,
            None if self.teacher is None else self.teacher[jets],
            self.plan.labels[jets],
            temperature=self.temperature,
            alpha=self.alpha,
            weights=weights,
            return_terms=True,
        )
        transfer = torch.zeros_like(loss)
        if self.summary is not None and attention is not None:
            entropy, maximum = self.summary[:, jets].unbind()
            transfer = attention_transfer(attention, rows, entropy, maximum, weights) * self.transfer_weight
        loss = loss + transfer
        self.model.write_gradient(loss.sum(), self.gradient)
        self.updates += 1
        if not self.one_clip:  # the kernel takes one for all: clipped here, as it would
            norm = torch.linalg.vector_norm(self.gradient, dim=1)
            self.gradient *= (self.clip_norm / (norm + 1e-6)).clamp(max=1)[:, None]
        norm = adamw(
            self.parameters,
            self.gradient,
            self.moment1,
            self.moment2,
            step=self.updates,
            learning_rate=self.rate,
            weight_decay=self.weight_decay,
            clip_norm=self.recipes[0].clip_norm if self.one_clip else math.inf,
        )
        finite = loss.detach().isfinite() & norm.isfinite()
        self.died.copy_(torch.where(self.alive & ~finite, self.updates, self.died))
        self.alive &= finite
        kl, cross_entropy = parts.double().unbind(1)
        terms = [loss.detach().double(), self.alpha * kl, (1 - self.alpha) * cross_entropy, transfer.detach().double()]
        self.sums += torch.stack(terms, 1)

    def advance(self) -> None:
        """A step: by the graph, once there is one."""
        if self.step_of_epoch == self.planned:
            self._plan_steps()
        self.step_of_epoch += 1
        if self.plan.device.type != "cuda":
            self.step()
            return
        if len(self.under_way) == _AHEAD:
            self.under_way.popleft().synchronize()
        if self.graph is not None:
            self.graph.replay()
        elif _captures(self.pack.model):
            self._step_and_capture()
        else:
            self.step()
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.plan.device))
        self.under_way.append(event)

    def _step_and_capture(self) -> None:
        """The first steps, as they are; then the graph, on the stream that they have set up."""
        stream = self.stream = self.stream or torch.cuda.Stream(self.plan.device)
        stream.wait_stream(torch.cuda.current_stream(self.plan.device))
        with torch.cuda.stream(stream):
            self.step()
        torch.cuda.current_stream(self.plan.device).wait_stream(stream)
        self.warm += 1
        if self.warm >= _WARM_UP:
            graph = torch.cuda.CUDAGraph()
            # On a stream of this device: torch's own lies on the one where it captured first. Other threads serve other
            # GPUs meanwhile.
            with _capturing, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.step()  # runs nothing
            self.graph = graph

    def keep_best(self, improved: Tensor) -> None:
        """improved: [K] bool, on the host."""
        which = improved.to(self.plan.device)[:, None]
        for best, now in ((self.best_parameters, self.parameters), (self.best_running, self.running)):
            best.copy_(torch.where(which, now, best))

    def logits(self, view: View, between: Callable[[], None], members: Tensor | None = None) -> Tensor:
        """[K, B]: of all members as they are, or [k, B] of the best of those given by number.

        between: called between batches of jets. Where memory runs out, again without the graph, whose activations
        lie idle meanwhile; it is captured anew at the next step.
        """
        try:
            return self._logits(view, between, members)
        except torch.OutOfMemoryError:
            if self.graph is None:
                raise
        self.graph = None
        with _capturing:
            torch.cuda.empty_cache()
        return self._logits(view, between, members)

    def _logits(self, view: View, between: Callable[[], None], members: Tensor | None) -> Tensor:
        model = self.model
        count = len(self.members)
        if members is not None:
            members = members.to(self.plan.device)
            count = len(members)
            parameters = self.best_parameters[members]
            running = self.best_running[members]
            model = pack_networks(self.pack.model, parameters, running, self.pack.precision)
        parts: list[Tensor] = []
        with torch.no_grad():
            for features, rows in _batches(view, max(1, _EVALUATED_ROWS // count), self.plan.device):
                if parts:
                    between()
                parts.append(model.logits(features, rows, training=False)[0][..., 0].float())
        return torch.cat(parts, 1)

    def state(self, member: int) -> dict[str, Tensor]:
        """A member's best weights and running statistics, by name."""
        model = build_network(self.pack.model)
        parameters = flatten_parameters(model)
        running = flatten_running(model)
        parameters.copy_(self.best_parameters[member])
        running.copy_(self.best_running[member])
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _captures(model: NetworkConfig) -> bool:
    needed = _KERNELS + _KERNELS_OF_TRANSFORMERS if isinstance(model, ModelConfig) else _KERNELS
    module = backend.cuda_module()
    return backend.forced() != "reference" and all(hasattr(module, op) for op in needed)


def _batches(view: View, rows: int, device: torch.device) -> Iterator[tuple[Tensor, PackedRows]]:
    """A view's jets in order, as many at a time as `rows` constituents hold (at least one jet)."""
    first = 0
    while first < len(view):
        limit = int(view.offsets[first]) + rows
        end = max(first + 1, int(torch.searchsorted(view.offsets, limit, right=True)) - 1)
        bounds = view.offsets[first : end + 1]
        features = view.features[bounds[0] : bounds[-1]].to(device)
        yield features, PackedRows.of_constituents((bounds - bounds[0]).to(device))
        first = end


class _Group:
    """Members at the same step, trained together to their ends."""

    def __init__(
        self,
        pack: Pack,
        starts: list[tuple[Member, MemberCheckpoint]],
        plan: _Plan,
        stop: threading.Event,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.pack = pack
        self.checkpoints = checkpoints
        self.members = [member for member, _ in starts]
        self.at = [start for _, start in starts]
        self.began = time.perf_counter()
        self.seconds_before = [at.seconds for at in self.at]
        self.running = set(range(len(starts)))
        self.position = self.saved = self.at[0].position
        self.trainer = _Trainer(pack, self.members, plan)
        self.auc = PackedAuc(pack.validation.labels, pack.validation.weights, plan.device)
        for k, at in enumerate(self.at):
            if at.step:
                self.trainer.load(k, at)
                # they lie on the device now
                at.learner = {}
                at.best_state = {}
        self.boundary = Boundary(stop.is_set, checkpoints, self._save)
        self.whole = True  # False while the state on the device is not that of `position`

    def train(self, on_epoch: Callable[[EpochReport], None] | None) -> Generator[MemberResult, None, None]:
        try:
            yield from self._finished()
            while self.running:
                yield from self._epoch(on_epoch)
                yield from self._finished()
                if 0 < len(self.running) <= _CLOSED * len(self.members):
                    self._close_ranks()
        except Stopped:
            self._save()

    def _epoch(self, on_epoch: Callable[[EpochReport], None] | None) -> Generator[MemberResult, None, None]:
        """What is left of the running epoch; the results of members that have diverged in it."""
        pack = self.pack
        trainer = self.trainer
        recipe = pack.recipe
        epoch, _ = self.position
        began = time.perf_counter()
        steps = trainer.steps_of_epoch
        done = self.position[1] - epoch * steps
        trainer.begin_epoch(epoch, done)
        for _ in range(done, steps):
            self.boundary.cross()
            self.whole = False
            trainer.advance()
            self.position = epoch, self.position[1] + 1
            self.whole = True
        if epoch + 1 < recipe.epochs:
            trainer.plan.epoch(epoch + 1)  # sorted while the device is at the last steps
        aucs = self.auc(trainer.logits(pack.validation, self.boundary.stop_here)).tolist()
        self.whole = False
        means = (trainer.sums / steps).tolist()
        died = trainer.died.tolist()
        rates = trainer.rate.tolist()
        temperatures = trainer.temperature.tolist()
        alphas = trainer.alpha.tolist()
        improved = torch.zeros(len(self.members), dtype=torch.bool)
        for k in sorted(self.running):
            if died[k] >= 0:
                self.running.remove(k)
                yield self._result(k, "diverged", f"loss or gradient not finite in epoch {epoch}, step {died[k]}")
                continue
            diverged = end_epoch(self.at[k], aucs[k], means[k], (temperatures[k], alphas[k], rates[k]), dict)
            if diverged:
                self.running.remove(k)
                yield self._result(k, "diverged", diverged)
                continue
            improved[k] = self.at[k].best_epoch == epoch
        trainer.keep_best(improved)
        trainer.sums.zero_()
        self.position = epoch + 1, self.position[1]
        self.whole = True
        seconds = time.perf_counter() - began
        if on_epoch is not None:
            jets = (steps - done) * recipe.batch_size
            for k in sorted(self.running):
                name = self.members[k].name
                auc = self.at[k].curves["auc_val"][-1]
                best = self.at[k].best_auc
                loss = means[k][0]
                on_epoch(EpochReport(name, epoch, recipe.epochs, loss, auc, best, jets, seconds, pack.seed))

    def _finished(self) -> Generator[MemberResult, None, None]:
        """The results of members that have come to their end."""
        trainer = self.trainer
        recipes = trainer.recipes
        ended = [k for k in sorted(self.running) if self.at[k].is_finished(recipes[k].epochs, recipes[k].patience)]
        if not ended:
            return
        numbers = torch.tensor(ended)
        views = (self.pack.validation, self.pack.test)
        scores = [trainer.logits(view, self.boundary.stop_here, numbers).cpu() for view in views]
        self.running.difference_update(ended)
        for k, validation, test in zip(ended, *scores, strict=True):
            if not test.isfinite().all():  # those of the validation jets were finite when they were the best
                best = self.at[k].best_epoch
                yield self._result(
                    k, "diverged", f"logits of the test jets not finite with the weights of epoch {best}"
                )
                continue
            yield self._result(k, "done", "", validation.clone(), test.clone(), trainer.state(k))

    def _close_ranks(self) -> None:
        """Goes on with the members that run alone: a step's cost is that of all there are. It is captured anew."""
        numbers = sorted(self.running)
        before = self.trainer
        before.graph = None  # its memory is free for the next one's
        members = [self.members[k] for k in numbers]
        trainer = _Trainer(self.pack, members, before.plan)
        trainer.take(before, numbers)
        self.trainer = trainer
        self.members = members
        self.at = [self.at[k] for k in numbers]
        self.seconds_before = [self.seconds_before[k] for k in numbers]
        self.running = set(range(len(numbers)))

    def _save(self) -> None:
        """Of every member that runs. One that has diverged since its last checkpoint will do so again."""
        if self.checkpoints is None or self.position == self.saved:
            return
        for member, checkpoint in self._running_members():
            self.checkpoints.save(member.name, checkpoint)
        self.saved = self.position

    def left(self) -> list[_Start]:
        """The members that have not ended, where they are now, or at their checkpoints or starts where that is lost."""
        whole = {member.name: checkpoint for member, checkpoint in self._running_members()} if self.whole else {}
        members = [self.members[k] for k in sorted(self.running)]
        return [
            (member, whole[member.name]) if member.name in whole else _start(member, self.checkpoints)
            for member in members
        ]

    def _running_members(self) -> Iterator[_Start]:
        """Those that run, without those that have diverged since their last checkpoint, as they are now."""
        # waits for the device
        died = self.trainer.died.tolist()
        sums = self.trainer.sums.cpu()
        for k in sorted(self.running):
            if died[k] >= 0:
                continue
            at = self.at[k]
            yield (
                self.members[k],
                replace(
                    at,
                    step=self.position[1],
                    sums=sums[k].clone(),
                    best_state=self.trainer.state(k) if at.best_epoch >= 0 else {},
                    seconds=self._seconds(k),
                    learner={name: tensor.cpu() for name, tensor in self.trainer.tensors(k).items()},
                ),
            )

    def _seconds(self, k: int) -> float:
        return self.seconds_before[k] + time.perf_counter() - self.began

    def _result(self, k: int, status: str, message: str, *scores_and_state: Any) -> MemberResult:
        name = self.members[k].name
        at = self.at[k]
        return MemberResult(
            name, status, message, at.best_epoch, at.epoch, self._seconds(k), at.curves, *scores_and_state
        )
