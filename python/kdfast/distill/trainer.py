"""The trainer of a pack: K members of one seed on one set of data, targets and batches.

An engine trains the pack; which one, and how it schedules the members, changes no result beyond its accuracy
and never what a member's neighbours are. `train_pack` picks the engine and yields results as members finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial

import torch

from kdfast.distill import cpu_engine, cuda_engine, reference_engine
from kdfast.distill.batches import check_batch_weights, scale_weights
from kdfast.distill.checkpoint import Checkpoints
from kdfast.distill.devices import check_bf16, exact_sums, training_devices
from kdfast.distill.engine import Team
from kdfast.distill.pack import EpochReport, MemberResult, Pack
from kdfast.errors import BackendError
from kdfast.models.compiled import runs_compiled
from kdfast.models.config import OwnModel

__all__ = ["train_on_gpus", "train_pack"]


def train_pack(
    pack: Pack,
    *,
    threads: int | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    stop: threading.Event | None = None,
    checkpoints: Checkpoints | None = None,
) -> Generator[MemberResult, None, None]:
    """Trains a pack; yields each member's result as soon as it is there.

    threads: as torch.get_num_threads() where None. on_epoch: called after each member's epoch, from any
    thread. stop: setting it, like closing the iterator, ends the pack after the running steps; unfinished
    members yield nothing. checkpoints: where members resume from and where their states are kept,
    between two steps, each `interval` seconds and when the pack is ended before them. On the reference and
    the CPU engine a member that resumes ends in the same bits as one that was never interrupted.

    Raises BackendError where the pack's device can't be used, or not for its precision or a model of its
    sizes, DataError for a batch whose jets all have weight 0.
    """
    weights = scale_weights(pack.train.weights)
    recipe = pack.recipe
    check_batch_weights(weights, pack.seed, recipe.epochs, recipe.batch_size, recipe.shuffle_window)
    pack = replace(pack, train=replace(pack.train, weights=weights))
    stop = stop or threading.Event()
    devices = training_devices(pack.device)
    if pack.precision == "bf16":
        check_bf16(devices)
    if devices != ["cpu"] and isinstance(pack.model, OwnModel):
        return train_on_gpus(devices, reference_engine.train, pack, on_epoch, stop, checkpoints)
    if devices != ["cpu"]:
        why = cuda_engine.unsupported(pack.model)
        if why is not None:
            raise BackendError(why, where="model", hint="choose other sizes, or the device 'cpu'")
        return train_on_gpus(devices, cuda_engine.train, pack, on_epoch, stop, checkpoints)
    train = cpu_engine.train if runs_compiled(pack.model) else reference_engine.train
    return train(pack, threads or torch.get_num_threads(), on_epoch, stop, checkpoints)


Train = Callable[
    [Pack, int, Callable[[EpochReport], None] | None, threading.Event, Checkpoints | None],
    Generator[MemberResult, None, None],
]


def train_on_gpus(
    devices: Sequence[str],
    train: Train,
    pack: Pack,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
) -> Generator[MemberResult, None, None]:
    """An engine's `train` of a pack whose members the devices share, each a pack of its own on a thread of its own."""
    packs = [
        replace(pack, members=pack.members[first :: len(devices)], device=device)
        for first, device in enumerate(devices[: len(pack.members)])
    ]
    team = Team()

    def work(part: Pack) -> Generator[MemberResult, None, None]:
        if part.device != "cpu":
            torch.cuda.set_device(part.device)
        yield from train(part, 0, on_epoch, team.given_up, checkpoints)

    def start(workers: Sequence[threading.Thread]) -> None:
        for worker in workers:
            worker.start()

    with exact_sums():
        yield from team.results([team.thread(part.device, partial(work, part)) for part in packs], stop, start)
