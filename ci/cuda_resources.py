"""Holds what ptxas and nvdisasm say of each kernel to the tables in cuda-resources/, one an op.

usage: python ci/cuda_resources.py FOLDER VERSION [--update]
FOLDER holds, for each source and architecture, e.g. sm_90.distill_loss.log, what `ptxas -v` said, and
sm_90.distill_loss.sass, the instructions; VERSION is nvcc's. Spilled registers are an error with any nvcc; the rest
depends on it, and is compared where a table is of the same one: registers and shared memory exactly, numbers of
instructions within TOLERANCE.
"""

import re
import subprocess
import sys
from pathlib import Path

from cuda_instructions import Counts, read_instructions

TABLES = Path(__file__).with_name("cuda-resources")
TOLERANCE = 0.03  # less is noise of the compiler's choices
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
HOW_TO_ACCEPT = "if that is meant: bash ci/cuda-compile --update"


def kernel_name(mangled: str) -> str:
    """two_classes<float, 1> of kdfast::gpu::(anonymous namespace)::two_classes<float, 1>(…)."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|kdfast::gpu::|^void ", "", name)
    name = re.sub(r"\(\w+\)(?=\d)", "", name)  # enumerators: (Extras)1
    return name.split("(")[0]


def instructions_text(counts: Counts) -> str:
    """1082 instructions, loops 221 (16 HMMA)."""
    loops = ", ".join(f"{loop.instructions} ({loop.products} HMMA)" for loop in counts.loops)
    return f"{counts.instructions} instructions" + (f", loops {loops}" if loops else "")


def read(folder: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """({op: {"kernel  architecture": "registers, shared memory, instructions"}}, what spills)."""
    found: dict[str, dict[str, str]] = {}
    spills = []
    for log in sorted(folder.glob("sm_*.*.log")):
        kernels = found.setdefault(log.stem.split(".", 1)[1], {})
        with log.with_suffix(".sass").open() as lines:
            instructions = read_instructions(lines)
        for entry in ENTRY.finditer(log.read_text()):
            key = f"{kernel_name(entry['name'])}  {entry['architecture']}"
            shared = re.search(r"(\d+) bytes smem", entry["rest"])
            kernels[key] = f"{entry['registers']} registers, {shared[1] if shared else 0} bytes shared, "
            kernels[key] += instructions_text(instructions[entry["name"]])
            if entry["stores"] != "0" or entry["loads"] != "0":
                spills.append(f"{key}: spills {entry['stores']} bytes, reads {entry['loads']} back")
    return found, spills


def same(known: str | None, now: str | None) -> bool:
    """Whether a kernel needs what its table has: the same registers and shared memory, about as many instructions. A
    table from before they were counted holds the rest."""
    if known is None or now is None:
        return False
    (needs, words, counts), (needs_now, words_now, counts_now) = _split(known), _split(now)
    if not counts or needs != needs_now or words != words_now:
        return needs == needs_now and not counts
    return all(abs(n - m) <= TOLERANCE * n for n, m in zip(counts, counts_now, strict=True))


def _split(text: str) -> tuple[list[str], str, list[int]]:
    """Of a kernel's line: registers and shared memory; the words about instructions; the numbers among them."""
    registers, shared, instructions = (text + ", ").split(", ", 2)
    return [registers, shared], re.sub(r"\d+", "", instructions), [int(n) for n in re.findall(r"\d+", instructions)]


def compare(op: str, kernels: dict[str, str], version: str) -> list[str]:
    """Where an op differs from its table; nothing for the table of another nvcc."""
    table = TABLES / f"{op}.txt"
    head, *lines = table.read_text().splitlines() if table.exists() else [f"# nvcc {version}"]
    if head != f"# nvcc {version}":
        return []
    known = dict(re.split(r" {2,}(?=\d+ registers)", line) for line in lines)
    different = [key for key in sorted(known.keys() | kernels.keys()) if not same(known.get(key), kernels.get(key))]
    return [f"{op}: {k}: {kernels.get(k, 'gone')}; the table has: {known.get(k, 'nothing')}" for k in different]


def main(folder: str, version: str, *options: str) -> int:
    found, faults = read(Path(folder))
    faults += [f"{op}: no kernel was found in what ptxas said" for op, kernels in found.items() if not kernels]
    if "--update" in options:
        for op, kernels in found.items():
            lines = [f"{key:<45}  {value}" for key, value in sorted(kernels.items())]
            (TABLES / f"{op}.txt").write_text("\n".join([f"# nvcc {version}", *lines, ""]))
    differences = [line for op, kernels in found.items() for line in compare(op, kernels, version)]
    if differences:
        faults += [*differences, HOW_TO_ACCEPT]
    for fault in faults:
        print(f"cuda-compile: {fault}", file=sys.stderr)
    if not faults:
        print(f"cuda-compile: {sum(map(len, found.values()))} kernels without spills, none unlike its table's")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
