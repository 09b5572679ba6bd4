"""The stages of ci/gpu: each timed and bounded, and run whatever became of the others; the exit status tells of all.

usage: python ci/gpu_stages.py requirements                     what pip has to install, torch as it is
       python ci/gpu_stages.py run TREE RESULTS [STAGE ...]     TREE: a copy of the sources that may be built in
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

# Seconds; tests and sanitizers run at the same time. Together less than ten minutes.
LIMITS = {"build": 150, "tests": 170, "sanitizers": 170, "benchmarks": 265}
TESTS = (
    *(f"tests/{folder}/test_*.py" for folder in ("ops", "models", "distill", "nn")),
    "tests/study/test_sweep_on_a_gpu.py",
)
TENSORS_ON_A_GPU = "tests/ops/test_tensors_on_a_gpu.py"
# Most important first: what has no time left is left out.
BENCHMARKS = [f"bench/gpu/test_{name}.py" for name in ("distill_loss", "packed_step", "constituent_attention")]
UNUSED = ("statsmodels", "matplotlib", "mplhep", "jinja2", "typer")  # dependencies of reports and the command line
TOOLS = ("memcheck", "racecheck", "initcheck")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
WORKERS = 6  # processes of tests at a time, of two threads each


class StageError(Exception):
    """What went wrong, in a line."""


def requirements() -> list[str]:
    """What the stages use of the project's dependencies, and what builds and tests it; torch as it is."""
    import torch

    try:
        import tomllib
    except ImportError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    tools = ("pytest", "hypothesis", "cmake", "ninja", "pybind11")
    extra = [line for line in project["optional-dependencies"]["test"] if line.startswith(tools)]
    wanted = [line for line in project["dependencies"] if not line.startswith(("torch", *UNUSED))]
    return [*wanted, *extra, f"torch=={torch.__version__}"]


class Machine:
    """Runs commands in the tree, each with its own log."""

    def __init__(self, tree: Path) -> None:
        self.tree, self.logs = tree, tree / "logs"
        self.logs.mkdir()
        self.environment = os.environ | {"PYTHONPATH": f"{tree / 'python'}:{tree}", "OMP_NUM_THREADS": "2"}

    def run(self, name: str, command: Sequence[str], deadline: float, **environment: str) -> tuple[int | None, str]:
        """(exit status, None where time ran out; output). At the deadline an interrupt, so that pytest reports."""
        log = self.logs / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=self.tree,
                env=self.environment | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell's background jobs ignore it, and so would their children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            status: int | None = None
            for wait, then in ((deadline - time.monotonic(), signal.SIGINT), (15, signal.SIGKILL), (None, None)):
                try:
                    finished = process.wait(None if wait is None else max(wait, 0))
                    status = finished if then is signal.SIGINT else None
                    break
                except subprocess.TimeoutExpired:
                    if then is not None:
                        os.killpg(process.pid, then)
        return status, log.read_text(errors="replace")


def build(machine: Machine, deadline: float) -> str:
    """kdfast._cuda for the GPUs that are there, and one instruction set of kdfast._cpu."""
    pybind = _expect(machine, "pybind11", [sys.executable, "-m", "pybind11", "--cmakedir"], deadline).strip()
    configure = ["cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DKDFAST_CUDA=ON", "-DKDFAST_ISAS=baseline"]
    configure += ["-DKDFAST_TESTS=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", f"-Dpybind11_DIR={pybind}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    for name, command in (("configure", configure), ("compile", ["cmake", "--build", "build"])):
        _expect(machine, name, command, deadline)
    usable = "from kdfast.ops import _gpu, backend; print(_gpu.why_unusable() or backend.cuda_module().architectures)"
    text = _expect(machine, "import", [sys.executable, "-c", usable], deadline).strip()
    if not re.fullmatch(r"[\w ]+", text):
        raise StageError(f"kdfast._cuda can't be used: {text}")
    return f"for compute capability {text}"


def _expect(machine: Machine, name: str, command: Sequence[str], deadline: float, **environment: str) -> str:
    status, output = machine.run(name, command, deadline, **environment)
    if status != 0:
        print(output[-3000:], file=sys.stderr)
        raise StageError(f"{name}: {'out of time' if status is None else f'exit status {status}'}")
    return output


def tests(machine: Machine, deadline: float) -> str:
    """Every file in a process of its own."""
    found = [path for pattern in TESTS for path in machine.tree.glob(pattern)]
    files = [str(path.relative_to(machine.tree)) for path in sorted(found, key=lambda path: -path.stat().st_size)]

    def run(file: str) -> tuple[str, int | None, str]:
        return file, *machine.run(file.replace("/", "."), [*PYTEST, file], deadline)

    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(run, files))
    counts = {word: 0 for word in ("passed", "failed", "skipped", "error")}
    bad = []
    for file, status, output in results:
        for word in counts:
            counts[word] += sum(map(int, re.findall(rf"(\d+) {word}", output.strip().rsplit("\n", 1)[-1])))
        if status not in (0, 5):  # 5: nothing collected
            bad.append(f"{file}{' (out of time)' if status is None else ''}")
            print(f"== {file}\n{output[-3000:]}", file=sys.stderr)
        if file == TENSORS_ON_A_GPU and " skipped" in output:
            bad.append(f"{file} skipped tests: nothing ran on the GPU")
    summary = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    if bad:
        raise StageError(f"{summary}: {', '.join(bad)}")
    return summary


def sanitizers(machine: Machine, deadline: float) -> str:
    """compute-sanitizer over each op, forward and backward; torch allocates each tensor alone, as bounds want it."""
    pytest = [*PYTEST, TENSORS_ON_A_GPU, "-k", "same_bits_as_through_copies"]

    def run(tool: str) -> str | None:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", *pytest]
        try:
            _expect(machine, tool, command, deadline, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        except (StageError, OSError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        errors = [error for error in pool.map(run, TOOLS) if error is not None]
    if errors:
        raise StageError("; ".join(errors))
    return f"no errors: {', '.join(TOOLS)}"


def benchmarks(machine: Machine, deadline: float) -> str:
    """Alone on the GPU. Those that had time are reported even if others had not."""
    command = [*PYTEST, *BENCHMARKS, "--benchmark-json", str(_report(machine)), "--benchmark-columns=median,rounds"]
    return _expect(machine, "benchmarks", command, deadline, OMP_NUM_THREADS="8").strip().rsplit("\n", 1)[-1]


def _report(machine: Machine) -> Path:
    return machine.tree / "benchmarks.json"


STAGES: dict[str, Callable[[Machine, float], str]] = {
    "build": build,
    "tests": tests,
    "sanitizers": sanitizers,
    "benchmarks": benchmarks,
}


def timed(name: str, machine: Machine) -> dict[str, object]:
    """A stage's name, outcome, seconds and summary."""
    began = time.monotonic()
    try:
        outcome, summary = "passed", STAGES[name](machine, began + LIMITS[name])
    except StageError as error:
        outcome, summary = "failed", str(error)
    except Exception as error:
        outcome, summary = "failed", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    print(f"{name}: {outcome} in {seconds:.0f} s; {summary}", flush=True)
    return {"name": name, "outcome": outcome, "seconds": seconds, "summary": summary}


def run(tree: Path, results: Path, names: Sequence[str]) -> bool:
    """Whether all stages passed. Tests and sanitizers share the GPU; builds and benchmarks are alone."""
    if unknown := set(names) - STAGES.keys():
        sys.exit(f"gpu: no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    machine = Machine(tree.resolve())
    done = [timed("build", machine)]
    if done[0]["outcome"] == "passed":
        checks = [name for name in ("tests", "sanitizers") if not names or name in names]
        with ThreadPoolExecutor(2) as pool:
            done += pool.map(partial(timed, machine=machine), checks)
        done += [timed(name, machine) for name in ("benchmarks",) if not names or name in names]
    sys.path[:0] = [str(machine.tree / "python"), str(machine.tree)]
    from bench.gpu.results import Stage, write_results
    from bench.gpu.timing import gpu_environment

    stages = [Stage(**stage) for stage in done]  # type: ignore[arg-type]
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    gpu = gpu_environment() | {"commit": git.stdout.strip() or "unknown"}
    for path in write_results(results, gpu, stages, _report(machine)):
        print(f"wrote {path}")
    print(f"ci/gpu: {sum(stage.seconds for stage in stages if stage.name != 'sanitizers'):.0f} s")
    return all(stage.outcome == "passed" for stage in stages)


if __name__ == "__main__":
    if sys.argv[1:] == ["requirements"]:
        print("\n".join(requirements()))
    else:
        _, command, tree, results, *names = sys.argv
        assert command == "run"
        sys.exit(0 if run(Path(tree), Path(results), names) else 1)
