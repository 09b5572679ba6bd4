"""Downloads the wheels of ci/gpu-wheels.

usage: python ci/gpu_wheels.py FOLDER [PYTHON [PRESENT]]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_stages import dependencies

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:  # pip has a copy
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

# pip takes wheels of exactly these tags, not of older systems' as well.
PLATFORMS = ["manylinux1", "manylinux2014", *(f"manylinux_2_{minor}" for minor in (17, 24, 26, 27, 28, 31, 34, 35))]


def present_packages(lines: Sequence[str], wanted: Sequence[str]) -> set[str]:
    """Names of the packages that needn't be brought.

    lines: NAME or NAME==VERSION. A version that does not satisfy a requirement in `wanted` counts as missing.
    """
    requirements = {canonicalize_name(r.name): r.specifier for r in map(Requirement, wanted)}
    names = set()
    for line in lines:
        match = re.match(r"\s*([\w.-]+)\s*(?:==\s*([\w.+!-]+))?", line)
        if match is None:
            continue
        name = canonicalize_name(match[1])
        version = match[2]
        needed = requirements.get(name)
        if version is None or needed is None or needed.contains(version, prereleases=True):
            names.add(name)
    return names


def download(folder: Path, python: str, wanted: Sequence[str]) -> None:
    """All that is wanted, and what that needs, for this version of Python on x86-64 Linux."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(wanted))
        file.flush()
        subprocess.run([*command, "-r", file.name], check=True)


def main(folder: Path, python: str, present: Sequence[str]) -> None:
    wanted = dependencies()
    folder.mkdir(parents=True, exist_ok=True)
    download(folder, python, wanted)
    names = present_packages(present, wanted)
    for wheel in folder.glob("*.whl"):
        if canonicalize_name(wheel.name.split("-")[0]) in names:
            wheel.unlink()
    wheels = list(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{folder}: {len(wheels)} wheels for Python {python}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    _, target, *rest = sys.argv
    version = rest[0] if rest else f"{sys.version_info.major}.{sys.version_info.minor}"
    main(Path(target), version, Path(rest[1]).read_text().splitlines() if len(rest) > 1 else [])
