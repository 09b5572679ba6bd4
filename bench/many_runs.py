"""What a very large study costs before anything is trained: `python -m bench.many_runs [RUNS]` (100,000 by default).

Processor time of planning it, reading the plan, listing as many results, and finding what is missing.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdfast.store.grid import grid
from kdfast.store.packs import missing, planned
from kdfast.store.store import StudyStore
from kdfast.study.plan import plan

PACK = 100


def timed(what: str, call: Callable[[], Any]) -> Any:
    began = time.process_time()
    value = call()
    print(f"{what:30} {time.process_time() - began:7.2f} s")
    return value


def main(number: int) -> None:
    runs = grid(temperature=[float(i) for i in range(1, 101)], alpha=[i / 100 for i in range(1, 101)])
    seeds = range(-(-number // (len(runs) + 1)))
    with tempfile.TemporaryDirectory() as folder:
        store = StudyStore.create_or_open(Path(folder) / "study", {}, {})
        packs, _ = timed(f"plan {len(seeds) * (len(runs) + 1):,} runs", lambda: plan(store, seeds, runs, PACK))
        timed(f"read {len(packs):,} packs", lambda: planned(store))
        for pack in packs:
            for key in pack.keys:
                (store.path / "results" / key.folder).mkdir()
        stored = timed("list as many results", store.keys)
        timed("find what is missing", lambda: [missing(store, pack, stored) for pack in packs])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
