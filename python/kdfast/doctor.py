"""What this installation consists of: versions, processor, compiled modules, settings from the environment."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from importlib.resources import files
from pathlib import Path

from kdfast._version import __version__
from kdfast.errors import BackendError, KdfastError

__all__ = ["examine"]

_PACKAGES = ("torch", "numpy", "h5py", "pandas", "scipy", "scikit-learn", "safetensors", "pydantic", "matplotlib")
_BF16 = {"amx": "AMX tiles", "avx512bf16": "AVX512_BF16 (on some processors no faster than fp32)"}
_EXTRAS = {
    "generate": ("pythia8mc", "fastjet"),
    "filters": ("hdf5plugin",),
    "root": ("uproot", "awkward"),
    "parquet": ("pyarrow",),
    "onnx": ("onnx", "onnxruntime"),
    "dask": ("dask", "distributed"),
    "slurm": ("dask-jobqueue",),
    "optuna": ("optuna",),
    "bench": ("pytest-benchmark",),
}


def examine() -> dict[str, dict[str, str]]:
    """Returns lines of name and text under headings. What is missing is reported, not raised."""
    return {
        "versions": _versions(),
        "processor": _processor(),
        "modules": _modules(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("KDFAST_")}
        or {"KDFAST_*": "nothing is set"},
        "data": {"bundled sample": _sample()},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    found = {"kdfast": f"{__version__} ({Path(__file__).parent})"}
    found["python"] = f"{platform.python_version()} ({sys.executable})"
    found |= {package: _version(package) or "missing" for package in _PACKAGES}
    for extra, packages in _EXTRAS.items():
        absent = [package for package in packages if _version(package) is None]
        found[f"extra [{extra}]"] = (
            f"not installed ({', '.join(absent)}): pip install 'kdfast[{extra}]'"
            if absent
            else ", ".join(f"{package} {_version(package)}" for package in packages)
        )
    return found


def _processor() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = {"name": names[0] if names else platform.processor() or platform.machine()}
    found["cores"] = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} may be used"
    try:
        import torch
    except (ImportError, OSError) as error:
        return found | {"threads": f"unknown, torch can't be imported: {error}"}
    found["threads"] = f"{torch.get_num_threads()} (torch.get_num_threads(); OMP_NUM_THREADS sets it)"
    return found


def _modules() -> dict[str, str]:
    try:
        from kdfast.ops import backend
    except BackendError as error:  # e.g. KDFAST_ISA names an instruction set that this processor does not have
        return {"kdfast._cpu": f"not in use: {error}".replace("\n", "; ")}
    except (ImportError, OSError) as error:
        return {"kdfast._cpu": f"not in use: kdfast.ops can't be imported: {error}"}
    found = {}
    if backend.why_no_cpu is None:
        module = backend.cpu_module()
        found["kdfast._cpu"] = "in use"
        found["instruction set"] = f"{module.isa} (this processor and build have: {', '.join(module.available_isas)})"
        found["bf16 products"] = _BF16.get(module.isa, "widened to float32: no faster than fp32, results as elsewhere")
        found["compiler"] = str(getattr(module, "compiler", "unknown"))
    else:
        found["kdfast._cpu"] = f"not in use: {backend.why_no_cpu}"
    found |= _cuda()
    try:
        forced = backend.forced()
        found["backend"] = f"{forced}, forced by KDFAST_BACKEND" if forced else "compiled kernels, else the reference"
    except KdfastError as error:
        found["backend"] = str(error).replace("\n", "; ")
    return found


def _cuda() -> dict[str, str]:
    """The CUDA kernels, or what they still need: module, driver, a torch with CUDA, a GPU."""
    import torch

    from kdfast.ops import backend, gpu

    if backend.why_no_cuda is not None:
        return {"kdfast._cuda": f"not in use: {backend.why_no_cuda}"}
    module = backend.cuda_module()
    built = f"CUDA {module.cuda_version}, compute capabilities {module.architectures}"
    built += f", driver {module.oldest_driver} or newer"
    if (why := gpu.why_unusable()) is not None:
        return {"kdfast._cuda": f"not in use: {why} ({built})"}
    gpus = []
    for i in range(torch.cuda.device_count()):
        why = backend.why_no_code(i)
        gpus.append(torch.cuda.get_device_name(i) + (f" (not in use: {why})" if why else ""))
    return {"kdfast._cuda": f"in use for tensors on a GPU ({built})", "GPUs": ", ".join(gpus)}


def _sample() -> str:
    sample = files("kdfast.jets") / "data" / "sample.h5"
    if not sample.is_file():
        return "missing: reinstall kdfast, or use your own files"
    return f"{sample} ({len(sample.read_bytes()) / 1e6:.1f} MB)"
