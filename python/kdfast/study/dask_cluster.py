"""Connecting to a Dask cluster, and whether a sweep can use it."""

from __future__ import annotations

from asyncio import TimeoutError as AsyncTimeoutError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdfast.errors import BackendError, ClusterError, ConfigError
from kdfast.study.plan import Budget

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["budget", "check_client", "connected", "on_gpu", "tasks_at_once"]

# Tasks at once that a plan is made for while no worker is there yet, as in an adaptive cluster: packs are small then.
_EXPECTED = 16


def _distributed() -> Any:
    missing = [name for name in ("dask", "distributed") if find_spec(name) is None]
    if missing:
        what = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise BackendError(what, where="dask", hint="install it with: pip install 'kdfast[dask]'")
    return import_module("distributed")


@contextmanager
def connected(address: str, *, threads: int | None = None, device: str = "auto") -> Iterator[Client]:
    """A client of the scheduler at an address or in a scheduler's file, or "local": of a cluster on this machine.

    threads: of a local one, in as many processes as Dask thinks best; None: all cores. Raises BackendError without the
    extra [dask] or where no scheduler answers.
    """
    distributed = _distributed()
    if address != "local":
        if threads is not None:
            hint = "choose them where the workers are started (dask worker --nthreads)"
            raise ConfigError("a cluster's workers have their own threads", where="threads", hint=hint)
        given = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
        try:
            client = distributed.Client(**given)
        except (OSError, ValueError, AsyncTimeoutError) as error:
            hint = "start one with `dask scheduler`, or use --dask local"
            raise BackendError(f"no Dask scheduler answers ({error})", where=address, hint=hint) from error
        with client:
            yield client
        return
    from dask.system import CPU_COUNT
    from distributed.deploy.utils import nprocesses_nthreads

    if on_gpu(device):  # one process feeds all GPUs
        gpus = max(1, torch.cuda.device_count() if device == "cuda" else 1)
        shape = {"n_workers": 1, "threads_per_worker": gpus, "resources": {"GPU": gpus}}
    else:
        processes, each = nprocesses_nthreads(threads or CPU_COUNT)
        shape = {"n_workers": processes, "threads_per_worker": each}
    preload = ["kdfast.interrupt"]  # its dask_setup
    with (
        distributed.LocalCluster(processes=True, dashboard_address=None, preload=preload, **shape) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def check_client(client: Any) -> None:
    """Raises ConfigError unless it is a client that a sweep can use, BackendError without the extra [dask]."""
    distributed = _distributed()
    if not isinstance(client, distributed.Client):
        hint = "distributed.Client(address), or distributed.Client() for this machine"
        raise ConfigError(f"must be a distributed.Client, is {type(client).__name__}", where="client", hint=hint)
    if client.asynchronous:
        raise ConfigError("is asynchronous", where="client", hint="make it with asynchronous=False")
    if client.status != "running":
        raise ClusterError(f"has no scheduler: it is {client.status}", where="client", hint="make a new one")


def tasks_at_once(client: Client, device: str) -> int:
    """How many tasks of a sweep the workers that are there now run at the same time."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return int(sum(w["resources"].get("GPU", 0) if on_gpu(device) else w["nthreads"] for w in workers))


def budget(client: Client, device: str, given: Budget) -> Budget:
    """What a sweep on these workers may use: each task one thread, and as many of them as there are now."""
    workers = given.workers or tasks_at_once(client, device) or _EXPECTED
    return replace(given, threads=1, workers=workers)


def on_gpu(device: str) -> bool:
    """Whether a task needs a GPU."""
    return device.startswith("cuda")
