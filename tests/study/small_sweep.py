"""A sweep of seconds: what the driver's tests run, also as
`python -m tests.study.small_sweep OUT EPOCHS [SECONDS [DASK]]`."""

import sys
from contextlib import nullcontext
from typing import Any

from kdfast.errors import KdfastError
from kdfast.interrupt import SweepInterrupted
from kdfast.jets.packed import PackedJets
from kdfast.store.grid import grid
from kdfast.study.dask_engine import connected
from kdfast.study.driver import sweep
from kdfast.study.results import StudyResults
from tests.synthetic import synthetic_jets

GRID = grid(temperature=[2.0, 4.0], alpha=[0.5], temperature_final=[1.0])
SIZES = {"width": 16, "layers": 1, "heads": 1, "ffn": 16}


def small_jets() -> PackedJets:
    return synthetic_jets(400, seed=3)


def small_sweep(out: Any, data: Any = None, **changes: Any) -> StudyResults:
    """Four students of tiny networks on 400 jets; `changes` go over its arguments (None: not given)."""
    arguments: dict[str, Any] = {
        "grid": GRID,
        "model": SIZES,
        "teacher_model": SIZES | {"width": 32, "heads": 2},
        "epochs": 2,
        "warmup_epochs": 1,
        "batch_size": 32,
        "max_constituents": 15,
        "progress": False,
    }
    given = {name: value for name, value in (arguments | changes).items() if value is not None}
    return sweep(small_jets() if data is None else data, out, **given)


def main(out: str, epochs: str, checkpoint_every: str = "300", dask: str = "") -> int:
    """Runs it as the command line does; returns the exit status."""
    from tests.undrawn import undrawn_figures  # slow, and the workers of a local cluster import this module anew

    try:
        with undrawn_figures(), connected(dask) if dask else nullcontext() as client:
            small_sweep(
                out,
                progress=True,
                epochs=int(epochs),
                checkpoint_every=float(checkpoint_every),
                pack_size=2 if dask else None,
                client=client,
            )
    except SweepInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KdfastError as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 2)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
