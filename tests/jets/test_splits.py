"""Splits by a column: what a rule refuses, and which part each jet of a file is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdfast.errors import ConfigError, DataError, KdfastWarning
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import Reading, load_jets, read_jets
from kdfast.jets.splits import SplitRule, split_rule
from tests.jets.atlas_files import atlas_arrays, write_arrays
from tests.synthetic import synthetic_jets

JETS = synthetic_jets(40, max_constituents=12)
FOLD = np.arange(40) % 5


def write(path: Path, fold: NDArray[Any] = FOLD, **more: NDArray[Any]) -> Path:
    return write_arrays(path, atlas_arrays(JETS, width=20) | {"fold": fold} | more)


def load_split_jets(paths: Any, rule: SplitRule, **how: Any) -> tuple[PackedJets, NDArray[np.int8]]:
    return read_jets(paths, Reading(split=rule, **how))


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("fold validation=3 test=4", SplitRule(column="fold", validation=(3,), test=(4,))),
        ({"column": "fold", "validation": 3, "test": [4]}, SplitRule(column="fold", validation=(3,), test=(4,))),
        (
            "table/ttv training=0,1 test=-2 other=skip",
            SplitRule(column="table/ttv", training=(0, 1), test=(-2,), other="skip"),
        ),
    ],
)
def test_rules(value: Any, rule: SplitRule) -> None:
    assert split_rule(value) == rule
    assert split_rule(rule.model_dump()) == rule


def test_what_parts_share() -> None:
    assert split_rule("f test=1").shared == ("training", "validation")
    assert split_rule("f validation=1").shared == ("training", "test")
    assert split_rule("f validation=1 test=2").shared == ("training",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "must be a table, is 3"),
        ("", "is empty"),
        ("fold", "names neither validation nor test jets"),
        ("fold training=0", "names neither validation nor test jets"),
        ("fold validation=a", "'validation=a' must name values, as in validation=3 or training=0,1,2"),
        ("fold test", "'test' must name values"),
        ("fold tst=3", "tst: unknown key 'tst'\ndid you mean 'test'?"),
        ("fold test=3 other=drop", "other: must be 'error' or 'skip', is 'drop'"),
        ("fold test=3 validation=3", "3 is of both validation and test jets"),
        ("fold test=3,3", "test: names a value twice: [3, 3]"),
        ({"validation": [3]}, "column: is missing"),
        ({"column": "fold", "test": [1.5]}, "test: must be a whole number, is 1.5"),
        ({"column": "fold", "test": [True]}, "test: must be a whole number, is True"),
        ({"column": "fold", "test": "4"}, "test: must be a list, is '4'"),
    ],
)
def test_rules_that_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        split_rule(value)
    assert str(error.value).startswith(message)
    assert error.value.hint


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("block_bytes", [1, 1 << 21])
def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, block_bytes: int) -> None:
    monkeypatch.setattr("kdfast.jets.packing.BLOCK_BYTES", block_bytes)
    path = write(tmp_path / "jets.h5", FOLD.astype(dtype))
    jets, places = load_split_jets(path, split_rule("fold validation=3 test=4,1"))
    assert np.array_equal(places, np.array([0, 2, 0, 1, 2])[FOLD])
    assert np.array_equal(jets.constituents, load_jets(path).constituents)
    _, places = load_split_jets([path], split_rule("fold training=0,1,2,3 test=4"), max_jets=7)
    assert places.tolist() == [0, 0, 0, 0, 2, 0, 0]


def test_a_column_of_truth_values(tmp_path: Path) -> None:
    path = write(tmp_path / "jets.h5", FOLD == 2)
    assert np.array_equal(load_split_jets(path, split_rule("fold test=1"))[1] == 2, FOLD == 2)
    with pytest.raises(DataError, match=r"is none of 1 \(training\); 2 \(test\) \(0\)"):
        load_split_jets(path, split_rule("fold training=1 test=2"))


def test_jets_of_no_part(tmp_path: Path) -> None:
    path = write(tmp_path / "jets.h5")
    rule = split_rule("fold training=0 validation=1 test=2")
    with pytest.raises(DataError) as error:
        load_split_jets(path, rule)
    assert error.value.where == f"{path}, dataset fold, row 3"
    assert str(error.value).endswith(
        "is none of 0 (training); 1 (validation); 2 (test) (3)\non_bad='drop' leaves such jets out and counts them"
    )
    kept = FOLD < 3
    skip = rule.model_copy(update={"other": "skip"})
    whole = r"16 of 40 jets left out by the split: their fold is none of 0 \(training\); 1 \(validation\); 2 \(test\)"
    for how, message in (
        ((skip, "error"), whole),
        ((rule, "drop"), r"16 of 40 jets dropped: 16 because fold is none of .* row 3\)"),
    ):
        with pytest.warns(KdfastWarning, match=message) as caught:
            jets, places = load_split_jets(path, how[0], on_bad=how[1])
        assert len(caught) == 1
        assert np.array_equal(places, FOLD[kept])
        assert np.array_equal(jets.index, np.flatnonzero(kept))
    none = split_rule("fold training=7 test=8 other=skip")
    with (
        pytest.warns(KdfastWarning, match="40 of 40 jets"),
        pytest.raises(DataError, match="no jet belongs to a part of the split"),
    ):
        load_split_jets(path, none)


def test_faults_of_jets_that_are_skipped_do_not_matter(tmp_path: Path) -> None:
    mass = atlas_arrays(JETS)["fjet_m"].copy()
    mass[FOLD == 4] = np.nan
    path = write(tmp_path / "jets.h5", fjet_m=mass)
    with pytest.warns(KdfastWarning, match="8 of 40 jets left out"):
        jets, _ = load_split_jets(path, split_rule("fold training=0,1 validation=2 test=3 other=skip"))
    assert len(jets) == 32


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("fald", "dataset fald: is missing\nthe split asks for it; the file holds: .*; the nearest name is fold"),
        ("fjet_clus_pt", r"dataset fjet_clus_pt: must have the shape \[jets\], has \[40, 20\]"),
    ],
)
def test_columns_that_are_refused(tmp_path: Path, column: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_split_jets(write(tmp_path / "jets.h5"), split_rule(f"{column} test=4"))
