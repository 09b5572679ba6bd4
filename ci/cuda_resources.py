"""Reads what `ptxas -v` said of each kernel, and holds it to the table beside this script.

usage: python ci/cuda_resources.py FOLDER VERSION [--update]
FOLDER holds one log for each source and architecture, e.g. sm_90.distill_loss; VERSION is nvcc's. Spilled registers are
an error with any nvcc; registers and shared memory depend on it, and are compared where the table is of the same one.
"""

import re
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("cuda-resources.txt")
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


def read(folder: Path) -> tuple[dict[str, str], list[str]]:
    """({"op  kernel  architecture": "registers, shared memory"}, what spills)."""
    found, spills = {}, []
    for log in sorted(folder.glob("sm_*.*")):
        op = log.name.split(".", 1)[1]
        for entry in ENTRY.finditer(log.read_text()):
            key = f"{op}  {kernel_name(entry['name'])}  {entry['architecture']}"
            shared = re.search(r"(\d+) bytes smem", entry["rest"])
            found[key] = f"{entry['registers']} registers, {shared[1] if shared else 0} bytes shared"
            if entry["stores"] != "0" or entry["loads"] != "0":
                spills.append(f"{key}: spills {entry['stores']} bytes, reads {entry['loads']} back")
    return found, spills


def main(folder: str, version: str, *options: str) -> int:
    found, spills = read(Path(folder))
    faults = list(spills)
    if not found:
        faults.append("no kernel was found in what ptxas said")
    if "--update" in options:
        lines = [f"{key:<60} {value}" for key, value in sorted(found.items())]
        TABLE.write_text("\n".join([f"# By nvcc {version} (bash ci/cuda-compile --update)", *lines, ""]))
    head, *lines = TABLE.read_text().splitlines()
    known = dict(re.split(r" +(?=\d+ registers)", line) for line in lines)
    compared = f"nvcc {version} " in head
    if compared:
        different = [key for key in sorted(known.keys() | found.keys()) if known.get(key) != found.get(key)]
        faults += [f"{key}: {found.get(key, 'gone')}; the table has: {known.get(key, 'nothing')}" for key in different]
        if different:
            faults.append("if that is meant: bash ci/cuda-compile --update")
    for fault in faults:
        print(f"cuda-compile: {fault}", file=sys.stderr)
    if not faults:
        print(
            f"cuda-compile: {len(found)} kernels without spills, " + ("as" if compared else "not compared with what"),
            "the table has them" if compared else f"another nvcc made of them ({head[2:]})",
        )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
