"""Your own jets in kdfast: padded arrays in memory, and HDF5 files in the ATLAS layout.

Random numbers stand for your data here: signal jets are made of two prongs, background jets of one.

usage: python examples/own_data.py [FOLDER]      default: own-data; rerun it to resume
"""

import sys
from pathlib import Path

import h5py
import numpy as np

import kdfast

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "own-data")
folder.mkdir(exist_ok=True)


def make_jets(number: int, slots: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [B, N, 4] (pt [GeV], eta, phi, energy [GeV]), mask [B, N] (true for constituents), labels [B]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, number)
    mask = np.arange(slots) < random.integers(10, slots, number)[:, None]
    pt = -np.sort(-random.exponential(20.0, (number, slots)), axis=1) + 0.5  # falling
    prong = random.integers(0, 2, (number, slots)) * labels[:, None]  # the second prong is for signal only
    eta = random.normal(0.0, 0.15, (number, slots)) + 0.4 * prong
    phi = random.normal(0.0, 0.15, (number, slots))
    energy = 1.001 * pt * np.cosh(eta)  # E ≥ pT cosh η
    return np.stack([pt, eta, phi, energy], axis=2), mask, labels


# 1. Arrays in memory. What the padding contains does not matter.
x, mask, labels = make_jets(4000)
jets = kdfast.PackedJets.from_padded(x, mask, labels=labels)
print(jets)

settings = {"model": "small", "teacher_model": "small", "recipe": {"batch_size": 128, "learning_rate": 2e-3}}
grid = kdfast.grid(temperature=[3], alpha=[0.5, 0.9])
study = kdfast.sweep(jets, folder / "from-memory", grid=grid, epochs=3, config=settings, progress=False)
print(study.results[["run_name", "auc_student", "auc_baseline", "auc_teacher"]].to_string(index=False))


# 2. A file in the layout of the ATLAS Top Tagging Open Data: MeV, padded with zeros.
def write_file(path: Path, jets: kdfast.PackedJets, slots: int = 30) -> None:
    x, _ = jets.to_padded(slots)
    with h5py.File(path, "w") as file:
        for column, (name, unit) in enumerate((("pt", 1000), ("eta", 1), ("phi", 1), ("E", 1000))):
            file[f"fjet_clus_{name}"] = x[:, :, column] * np.float32(unit)
        for column, (name, unit) in enumerate((("pt", 1000), ("eta", 1), ("phi", 1), ("m", 1000))):
            file[f"fjet_{name}"] = jets.p4[:, column] * np.float32(unit)
        file["labels"] = jets.labels


x, mask, labels = make_jets(500, seed=1)
write_file(folder / "new.h5", kdfast.PackedJets.from_padded(x, mask, labels=labels))

# Files are read, checked and scored like any others.
new = kdfast.load_jets(folder / "new.h5")
scores = kdfast.load_model(folder / "from-memory" / "models" / "best_student.safetensors").predict(new)
auc = kdfast.metrics.roc_auc(new.labels, scores[:, 0])
print(f"AUC of the best student on {len(new)} new jets: {auc:.3f}")
