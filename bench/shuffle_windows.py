"""What shuffling in windows does to the AUC: on the sample, small students without a teacher, the same seeds.

The training jets (11,200) are shuffled all together, in windows of a tenth of them, and in such windows where they are
stored class by class. A seed's initial weights and dropout are the same in all three; its batches are not.

    python -m bench.shuffle_windows --write docs/explanation/growth.md
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import kdfast
from bench.growth import write_table
from kdfast.distill.pack import Member, Pack
from kdfast.distill.recipe import Recipe
from kdfast.distill.trainer import train_pack
from kdfast.metrics import roc_auc
from kdfast.models.config import model_config
from kdfast.store.settings import StudySettings
from kdfast.study.prepare import prepare
from kdfast.study.views import view_of

RECIPE = Recipe(epochs=10, batch_size=128, learning_rate=2e-3, warmup_epochs=1)
WINDOW = 1120


def aucs(seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """[seeds] the test AUC of each way to shuffle."""
    data = prepare(kdfast.sample(), StudySettings(hlt="nominal"))
    labels = data.jets.labels[data.positions["train"]]
    by_class = data.positions["train"][np.argsort(labels, kind="stable")]
    views = dict(data.hlt)
    test = views["test"]
    ways = {
        "all together": (None, views["train"]),
        "in windows of a tenth": (WINDOW, views["train"]),
        "in such windows, stored class by class": (WINDOW, view_of(data.hlt_preparation, data.jets, by_class)),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for seed in seeds:
        for way, (window, train) in ways.items():
            recipe = RECIPE.model_copy(update={"shuffle_window": window})
            pack = Pack(model_config("small"), (Member("baseline"),), seed, recipe, train, views["validation"], test)
            (result,) = train_pack(pack)
            found[way].append(roc_auc(test.labels.numpy(), result.scores_test.numpy(), test.weights.numpy()))
        print(f"seed {seed}: " + ", ".join(f"{way} {found[way][-1]:.4f}" for way in ways), flush=True)
    return {way: np.array(values) for way, values in found.items()}


def table(found: dict[str, NDArray[np.float64]]) -> str:
    """The ways in Markdown, with paired differences from the first."""
    (first, reference), *_ = found.items()
    lines = ["| training jets are shuffled | AUC (mean) | difference from all together |", "|---|--:|--:|"]
    for way, values in found.items():
        difference = values - reference
        error = difference.std(ddof=1) / math.sqrt(len(values))
        shown = "" if way == first else f"{difference.mean():+.4f} ± {error:.4f}"
        lines.append(f"| {way} | {values.mean():.4f} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--write", type=Path, help="replace the table of this page")
    given = parser.parse_args()
    found = table(aucs(range(1, given.seeds + 1)))
    print(found)
    if given.write is not None:
        write_table(given.write, "windows", found)


if __name__ == "__main__":
    main()
