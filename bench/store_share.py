"""What the store costs of the demo sweep: `python -m bench.store_share` (two minutes on two quiet cores).

The demo as `kdfast sweep` runs it, with a clock around every call of the store, its claims and its plan. They run on
the main thread while others train, so their share of the wall time is an upper bound. Exit status 1 above 1 %.
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
from kdfast.study import driver, worker
from kdfast.study.claims import Claim, Claims
from kdfast.study.store import StudyStore

LIMIT = 0.01
_STORE = ("write", "write_shared", "has", "keys", "is_stored", "get", "results", "attempts")


def main() -> int:
    spent: Counter[str] = Counter()
    inside = False

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:  # of a call that is timed already
                return call(*arguments, **options)
            inside, began = True, time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - began
                inside = False

        return run

    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        targets: list[tuple[Any, str]] = [(StudyStore, name) for name in _STORE]
        targets += [(Claims, "take"), (Claim, "__exit__"), (driver, "plan"), (driver, "planned"), (worker, "missing")]
        for owner, name in targets:
            patches.enter_context(mock.patch.object(owner, name, timed(name.strip("_"), getattr(owner, name))))
        began = time.perf_counter()
        kdfast.sweep(out=Path(folder) / "study", progress=False)
        total = time.perf_counter() - began
    for name, seconds in spent.most_common():
        print(f"{name:14} {seconds:7.3f} s")
    share = sum(spent.values()) / total
    print(f"store, claims and plan: {sum(spent.values()):.2f} s of {total:.1f} s, {100 * share:.2f} %; limit 1 %")
    return int(share > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
