"""K members in lock-step on one device: their state, the step that moves it, and their scores.

A step is the same for all members but for vectors of length K. It is captured once as a CUDA graph and
replayed; on other devices it runs as it is, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kdfast.distill.checkpoint import MemberCheckpoint, copy_tensors
from kdfast.distill.cuda_plan import Plan, capturing, empty_cache
from kdfast.distill.optimizer import learning_rate
from kdfast.distill.pack import Member, Pack, View
from kdfast.models.build import build_network, pack_networks
from kdfast.models.config import ModelConfig
from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.ops import backend
from kdfast.ops.adamw import adamw
from kdfast.ops.attention_transfer import attention_transfer
from kdfast.ops.distill_loss import distill_loss
from kdfast.ops.packed_rows import PackedRows

__all__ = ["LockStep"]

_ALIGNED = 8  # elements: the members' rows of flat buffers begin at multiples of 16 bytes, for fast products
_WARM_UP = 3  # steps before the capture, in which libraries allocate and choose
_AHEAD = 4  # steps that the host may be ahead of the device, so that a stop does not wait for many
_EVALUATED_ROWS = 1 << 16  # constituents of all members that are evaluated at a time


class LockStep:
    """K members' state on the device, and the step that moves it."""

    def __init__(self, pack: Pack, members: list[Member], plan: Plan) -> None:
        self.pack = pack
        self.members = members
        self.plan = plan
        device = plan.device
        initial = build_network(pack.model, pack.seed)
        count = len(members)

        def repeated(flat: Tensor) -> Tensor:
            return flat.to(device).repeat(count, 1)

        parameters = flatten_parameters(initial)
        size = len(parameters)
        padded = -(-size // _ALIGNED) * _ALIGNED
        # With the padding, which stays zero; without it they go by their names.
        self.flat = [torch.zeros(count, padded, device=device) for _ in range(4)]
        self.parameters, self.gradient, self.moment1, self.moment2 = (buffer[:, :size] for buffer in self.flat)
        self.parameters.copy_(parameters)
        # For the products of a step in bfloat16; adamw keeps it up to date.
        self.rounded = self.flat[0].bfloat16() if pack.precision == "bf16" else None
        self.running = repeated(flatten_running(initial))
        self.best_parameters = self.parameters.clone()
        self.best_running = self.running.clone()
        self.model = pack_networks(
            pack.model,
            self.parameters,
            self.running,
            pack.precision,
            gradient=self.gradient,
            rounded=None if self.rounded is None else self.rounded[:, :size],
        )
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

    def take(self, other: LockStep, numbers: list[int]) -> None:
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
        if self.rounded is not None:  # members may have been loaded or taken
            self.rounded.copy_(self.flat[0])
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
        self.model.write_gradient(loss.sum())
        self.updates += 1
        if not self.one_clip:  # the kernel takes one for all: clipped here, as it would
            norm = torch.linalg.vector_norm(self.gradient, dim=1)
            self.gradient *= (self.clip_norm / (norm + 1e-6)).clamp(max=1)[:, None]
        norm = adamw(
            *self.flat,
            step=self.updates,
            learning_rate=self.rate,
            weight_decay=self.weight_decay,
            clip_norm=self.recipes[0].clip_norm if self.one_clip else math.inf,
            rounded=self.rounded,
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
        elif backend.forced() != "reference":  # references look at values, for which a capture cannot wait
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
            with capturing, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.step()  # runs nothing
            self.graph = graph

    def keep_best(self, improved: Tensor) -> None:
        """improved: [K] bool, on the host."""
        which = improved.to(self.plan.device)[:, None]
        for best, now in ((self.best_parameters, self.parameters), (self.best_running, self.running)):
            best.copy_(torch.where(which, now, best))

    def logits(self, view: View, between: Callable[[], None], members: Tensor | None = None) -> Tensor:
        """[K, B]: of all members as they are, or [k, B] of the best of those given by number.

        between: called between batches of jets. Where memory runs out, again without the graph, whose
        activations lie idle meanwhile; it is captured anew at the next step.
        """
        try:
            return self._logits(view, between, members)
        except torch.OutOfMemoryError:
            if self.graph is None:
                raise
        self.graph = None
        empty_cache()
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
