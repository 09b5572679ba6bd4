"""What the store costs of the demo sweep: `python -m bench.store_share` (two minutes on two quiet cores).

The demo as `kdfast sweep` runs it, with clocks around every call of the store, its claims and its plan. They run on the
main thread while other threads train, and mostly wait for the disk (fsync), which holds up nobody: what they take from
the sweep is processor time, and the wait for the last result. Exit status 1 where these are above 1 %.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import kdfast
from kdfast.store.claims import Claim, Claims
from kdfast.store.store import StudyStore
from kdfast.study import driver, worker

LIMIT = 0.01
_STORE = ("write", "write_shared", "has", "keys", "is_stored", "get", "results", "attempts")


def main() -> int:
    waited: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    last = 0.0  # s that the latest call waited
    inside = False

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal inside, last
            if inside:  # of a call that is timed already
                return call(*arguments, **options)
            inside, began, used = True, time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                spent[name] += time.thread_time() - used
                waited[name] += time.perf_counter() - began
                if name == "write":
                    last = time.perf_counter() - began
                inside = False

        return run

    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        targets: list[tuple[Any, str]] = [(StudyStore, name) for name in _STORE]
        targets += [(Claims, "take"), (Claim, "__exit__"), (driver, "plan"), (driver, "planned"), (worker, "missing")]
        for owner, name in targets:
            patches.enter_context(mock.patch.object(owner, name, timed(name.strip("_"), getattr(owner, name))))
        began, used = time.perf_counter(), time.process_time()
        kdfast.sweep(out=Path(folder) / "study", progress=False)
        total, processor = time.perf_counter() - began, time.process_time() - used
    print("                 wall  processor")
    for name, seconds in waited.most_common(4):
        print(f"{name:14} {seconds:6.2f} {spent[name]:10.2f} s")
    share = sum(spent.values()) / processor + last / total
    print(f"sweep          {total:6.1f} {processor:10.1f} s; store, claims and plan {100 * share:.2f} %, limit 1 %")
    return int(share > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
