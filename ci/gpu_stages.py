"""The stages of ci/gpu, each timed, bounded and run whatever the outcome of the others; exit status 0 if all passed.

usage: python ci/gpu_stages.py requirements                     what pip has to install, torch as it is
       python ci/gpu_stages.py run TREE RESULTS [STAGE ...]     TREE: where sources are copied to, built and kept
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

LIMIT = 460.0  # seconds for a stage, so that one fits a call of eight minutes
SOURCES = (
    "CMakeLists.txt",
    "pyproject.toml",
    "csrc",
    "python",
    "tests",
    "bench",
)  # csrc and CMakeLists.txt are compiled
TESTS = (
    *(f"tests/{folder}/test_*.py" for folder in ("ops", "models", "distill", "nn")),
    "tests/study/test_sweep_on_a_gpu.py",
)
TENSORS_ON_A_GPU = "tests/ops/test_tensors_on_a_gpu.py"
GRID = "bench/gpu/test_packed_step.py::test_grid"
# Most important first: what has no time left is left out.
KERNELS = [f"bench/gpu/test_{name}.py" for name in ("distill_loss", "packed_step", "constituent_attention")]
TOOLS = ("memcheck", "racecheck", "initcheck")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
# Prints the architectures that kdfast._cuda has code for, or why it can't be used.
USABLE = "from kdfast.ops import backend, gpu; print(gpu.why_unusable() or backend.cuda_module().architectures)"
WORKERS = 6  # processes of tests at a time, of two threads each


class StageError(Exception):
    """What went wrong, in a line."""


def dependencies() -> list[str]:
    """The project's dependencies, and what builds and tests it; without torch."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    tools = ("pytest", "hypothesis", "cmake", "ninja", "pybind11")
    wanted = [line for line in project["optional-dependencies"]["test"] if line.startswith(tools)]
    wanted += ["scikit-build-core>=0.11"]
    return [line for line in project["dependencies"] if not line.startswith("torch")] + wanted


def requirements() -> list[str]:
    """The dependencies, and torch as it is: a local version (2.11.0+cu130) is in no index; its public one fits it."""
    return [*dependencies(), f"torch=={version('torch').partition('+')[0]}"]


def synchronise(source: Path, tree: Path) -> bool:
    """Makes the tree's sources those of `source`, and says whether any that are compiled have changed.

    Files of the same content are not touched, whatever their times, so that only what has changed is built again.
    """
    wanted = {}
    for name in SOURCES:
        path = source / name
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and file.suffix not in (".so", ".pyc"):
                wanted[file.relative_to(source)] = file
    changed = []
    for name in SOURCES:
        for file in (tree / name).rglob("*"):
            relative = file.relative_to(tree)
            if file.is_file() and file.suffix not in (".so", ".pyc") and relative not in wanted:
                file.unlink()
                changed.append(relative)
    for relative, file in wanted.items():
        copy = tree / relative
        content = file.read_bytes()
        if copy.is_file() and copy.read_bytes() == content:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        changed.append(relative)
    return any(relative.parts[0] in ("csrc", "CMakeLists.txt") for relative in changed)


class Machine:
    """Runs commands in the tree, each with its own log."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.logs = tree / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
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
    built = _built(machine)
    built.unlink(missing_ok=True)
    for name, command in (("configure", configure), ("compile", ["cmake", "--build", "build"])):
        _expect(machine, name, command, deadline)
    text = _expect(machine, "import", [sys.executable, "-c", USABLE], deadline).strip()
    if not re.fullmatch(r"[\w ]+", text):
        raise StageError(f"kdfast._cuda can't be used: {text}")
    built.touch()
    return f"for compute capability {text}"


def _built(machine: Machine) -> Path:
    """Exists while kdfast._cuda is what the tree's sources make."""
    return machine.tree / "built"


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


def sanitizer(machine: Machine, deadline: float) -> str:
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


def grid(machine: Machine, deadline: float) -> str:
    """The headline: what the study's grid takes."""
    return _benchmarks(machine, "grid", [GRID], deadline)


def profile(machine: Machine, deadline: float) -> str:
    """Where the time of a step goes: bench/gpu/step_profile.py."""
    report = machine.tree / "profile.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu.step_profile", str(report)]
    return "; ".join(_expect(machine, "profile", command, deadline, OMP_NUM_THREADS="8").strip().splitlines()[-3:])


def kernels(machine: Machine, deadline: float) -> str:
    """The other benchmarks. Those that had time are reported even if others had not."""
    return _benchmarks(machine, "kernels", [*KERNELS, "--deselect", GRID], deadline)


def _benchmarks(machine: Machine, name: str, which: Sequence[str], deadline: float) -> str:
    report = machine.tree / f"{name}.json"
    report.unlink(missing_ok=True)
    command = [*PYTEST, *which, "--benchmark-json", str(report), "--benchmark-columns=median,rounds"]
    return _expect(machine, name, command, deadline, OMP_NUM_THREADS="8").strip().rsplit("\n", 1)[-1]


# In this order: the headline first, since the time on a machine may end before the last one has run.
STAGES: dict[str, Callable[[Machine, float], str]] = {
    "build": build,
    "grid": grid,
    "profile": profile,
    "kernels": kernels,
    "tests": tests,
    "sanitizer": sanitizer,
}


def timed(name: str, machine: Machine) -> dict[str, object]:
    """A stage's name, outcome, seconds and summary."""
    began = time.monotonic()
    try:
        if name != "build" and not _built(machine).exists():
            raise StageError("kdfast._cuda is not built from these sources: bash ci/gpu build")
        outcome = "passed"
        summary = STAGES[name](machine, began + LIMIT)
    except StageError as error:
        outcome = "failed"
        summary = str(error)
    except Exception as error:
        outcome = "failed"
        summary = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    print(f"{name}: {outcome} in {seconds:.0f} s; {summary}", flush=True)
    return {"name": name, "outcome": outcome, "seconds": seconds, "summary": summary}


def _commit() -> str:
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"


def run(tree: Path, results: Path, names: Sequence[str]) -> bool:
    """Whether all stages passed: those named, or all. Each has the GPU alone."""
    if unknown := set(names) - STAGES.keys():
        sys.exit(f"gpu: no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    machine = Machine(tree.resolve())
    if synchronise(Path.cwd(), machine.tree):
        _built(machine).unlink(missing_ok=True)
    sys.path[:0] = [str(machine.tree / "python"), str(machine.tree)]
    done = []
    for name in STAGES:
        if names and name not in names:
            continue
        done.append(timed(name, machine))
        try:
            _write(machine, results, done)  # after each: the machine may be gone before the next one ends
        except Exception as error:  # no reason to leave out what follows
            print(f"gpu: results could not be written: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"{sum(float(str(stage['seconds'])) for stage in done):.0f} s; results are in {results}")
    return all(stage["outcome"] == "passed" for stage in done)


def _write(machine: Machine, results: Path, done: Sequence[dict[str, object]]) -> None:
    from bench.gpu.results import Stage, write_results

    commit = _commit()
    stages = [Stage(**stage, commit=commit) for stage in done]  # type: ignore[arg-type]
    write_results(results, environment(machine), stages, machine.tree)


def environment(machine: Machine) -> dict[str, str]:
    """The card and versions. Asked by a process of its own, which leaves the GPU's memory to the stages."""
    ask = "import json; from bench.gpu.timing import gpu_environment; print(json.dumps(gpu_environment()))"
    said = _expect(machine, "environment", [sys.executable, "-c", ask], time.monotonic() + 60)
    return json.loads(said.strip().rsplit("\n", 1)[-1])


if __name__ == "__main__":
    if sys.argv[1:] == ["requirements"]:
        print("\n".join(requirements()))
    else:
        _, command, tree, results, *names = sys.argv
        assert command == "run"
        sys.exit(0 if run(Path(tree), Path(results), names) else 1)
