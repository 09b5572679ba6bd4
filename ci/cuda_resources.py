"""Reads what `ptxas -v` said of each kernel, and holds it to the tables in cuda-resources/, one an op.

usage: python ci/cuda_resources.py FOLDER VERSION [--update]
FOLDER holds one log for each source and architecture, e.g. sm_90.distill_loss; VERSION is nvcc's. Spilled registers are
an error with any nvcc; registers and shared memory depend on it, and are compared where a table is of the same one.
"""

import re
import subprocess
import sys
from pathlib import Path

TABLES = Path(__file__).with_name("cuda-resources")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def kernel_name(mangled: str) -> str:
    """two_classes<float, 1> of kdfast::gpu::(anonymous namespace)::two_classes<float, 1>(…)."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|kdfast::gpu::|^void ", "", name)
    return name.split("(")[0]


def read(folder: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """({op: {"kernel  architecture": "registers, shared memory"}}, what spills)."""
    found: dict[str, dict[str, str]] = {}
    spills = []
    for log in sorted(folder.glob("sm_*.*")):
        kernels = found.setdefault(log.name.split(".", 1)[1], {})
        for entry in ENTRY.finditer(log.read_text()):
            key = f"{kernel_name(entry['name'])}  {entry['architecture']}"
            shared = re.search(r"(\d+) bytes smem", entry["rest"])
            kernels[key] = f"{entry['registers']} registers, {shared[1] if shared else 0} bytes shared"
            if entry["stores"] != "0" or entry["loads"] != "0":
                spills.append(f"{key}: spills {entry['stores']} bytes, reads {entry['loads']} back")
    return found, spills


def compare(op: str, kernels: dict[str, str], version: str) -> list[str]:
    """Where an op differs from its table; nothing for the table of another nvcc."""
    table = TABLES / f"{op}.txt"
    head, *lines = table.read_text().splitlines() if table.exists() else [f"# nvcc {version}"]
    if head != f"# nvcc {version}":
        return []
    known = dict(re.split(r" {2,}(?=\d+ registers)", line) for line in lines)
    different = [key for key in sorted(known.keys() | kernels.keys()) if known.get(key) != kernels.get(key)]
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
        faults += [*differences, "if that is meant: bash ci/cuda-compile --update"]
    for fault in faults:
        print(f"cuda-compile: {fault}", file=sys.stderr)
    if not faults:
        print(f"cuda-compile: {sum(map(len, found.values()))} kernels without spills, none unlike its table's")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
