"""Jets of their own for validation and testing, and splits by a column: which jets are where, and what is refused."""

from __future__ import annotations

import re
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

import kdfast
from kdfast import report
from kdfast.cli import main
from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError, DataError, KdfastError, KdfastWarning, StudyError
from kdfast.jets.hlt import emulate_hlt
from kdfast.jets.packed import PackedJets
from kdfast.jets.splits import APART
from kdfast.store.key import RunKey
from kdfast.store.settings import DataSettings, StudySettings
from kdfast.store.store import StudyStore
from kdfast.store.verify import verify
from kdfast.study.inputs import Given, Inputs, joined_hlt, stored_inputs
from kdfast.study.prepare import SPLITS, load_sets, prepare
from kdfast.study.refine import refine
from kdfast.study.sets import join
from kdfast.study.worker import open_inputs, work
from tests.jets.atlas_files import atlas_arrays, write_arrays, write_atlas
from tests.study.small_sweep import small_sweep
from tests.synthetic import synthetic_jets

TRAIN, VALIDATION, TEST = (synthetic_jets(jets, seed=seed) for jets, seed in ((200, 11), (80, 12), (100, 13)))
FOLD = np.arange(200) % 5


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda store: {})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("jets")
    sets = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    written = {name: write_atlas(folder / f"{name}.h5", jets, width=60) for name, jets in sets.items()}
    arrays = atlas_arrays(TRAIN, width=60) | {"fold": FOLD}
    return written | {"folds": write_arrays(folder / "folds.h5", arrays)}


def inputs(data: dict[str, Any], given: Given | None = None, **settings: Any) -> Inputs:
    return Inputs.load(StudySettings.resolve({"data": data, **settings}, data_given=True), given or Given())


def plan(out: Path, data: Any, seed: int = 1, **changes: Any) -> None:
    small_sweep(out, data, seeds=[seed], epochs=1, plan_only=True, pack_size=5, **changes)


# ---- which jets are where


def test_test_data_alone(files: dict[str, Path]) -> None:
    """The data are split into training and validation, by the ratio of these fractions."""
    found = inputs({"paths": [files["train"]], "test_paths": [files["test"]], "fractions": [0.6, 0.2, 0.2]}).prepared
    parts = [found.positions[name] for name in SPLITS]
    assert [len(part) for part in parts] == [150, 50, 100]
    assert np.array_equal(np.sort(np.concatenate(parts[:2])), np.arange(200))
    assert np.array_equal(parts[2], np.arange(200, 300))
    assert abs(TRAIN.labels[parts[1]].mean() - TRAIN.labels.mean()) < 0.02
    np.testing.assert_allclose(found.jets[parts[2]].p4, TEST.p4, rtol=1e-6)


@pytest.mark.slow
def test_validation_data_alone(files: dict[str, Path]) -> None:
    data = {"paths": [files["train"]], "validation_paths": [files["validation"]], "fractions": [0.6, 0.2, 0.2]}
    found = inputs(data).prepared
    assert [len(found.positions[name]) for name in SPLITS] == [150, 80, 50]
    assert found.positions["validation"].min() == 200


def test_both(files: dict[str, Path]) -> None:
    settings = DataSettings(paths=files["train"], validation_paths=files["validation"], test_paths=files["test"])
    jets, sets = load_sets({}, settings)
    found = prepare(jets, StudySettings(data=settings), sets=sets)
    assert [found.positions[name].tolist() for name in SPLITS] == [
        [*range(200)],
        [*range(200, 280)],
        [*range(280, 380)],
    ]
    assert "fractions" not in StudySettings(data=settings).table()["data"]


@pytest.mark.slow
def test_max_jets_cuts_the_data_only(files: dict[str, Path]) -> None:
    for given in (Given(), Given(jets=TRAIN)):
        paths = {} if given.jets else {"paths": [files["train"]]}
        found = inputs({**paths, "test_paths": [files["test"]], "max_jets": 60, "max_constituents": 5}, given).prepared
        assert [len(found.positions[name]) for name in SPLITS] == [49, 11, 100]
        assert found.jets.counts.max() == 5


def test_a_column(files: dict[str, Path]) -> None:
    data = {"paths": [files["folds"]], "split": "fold training=0,1,2 validation=3 test=4"}
    found = inputs(data).prepared
    for name, folds in zip(SPLITS, ([0, 1, 2], [3], [4]), strict=True):
        assert np.array_equal(found.positions[name], np.flatnonzero(np.isin(FOLD, folds)))
    shared = inputs(data | {"split": {"column": "fold", "test": 4}, "fractions": [0.6, 0.2, 0.2]}).prepared
    assert [len(shared.positions[name]) for name in SPLITS] == [120, 40, 40]
    assert np.array_equal(shared.positions["test"], np.flatnonzero(FOLD == 4))
    with pytest.warns(KdfastWarning, match="40 of 200 jets left out by the split"):
        some = inputs(data | {"split": "fold training=0,1 validation=3 test=4 other=skip"}).prepared
    assert [len(some.positions[name]) for name in SPLITS] == [80, 40, 40]


@pytest.mark.slow
def test_a_column_that_a_store_keeps(tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdfast.jets.prepare.PART_JETS", 64)
    store = kdfast.prepare(files["folds"], tmp_path / "jets.store", split="fold", progress=False)
    assert np.array_equal(np.load(store / "split.npy"), FOLD)
    for rule in ("fold training=0,1,2 validation=3 test=4", "fold test=4"):
        found, wanted = (inputs({"paths": [path], "split": rule}) for path in (store, files["folds"]))
        assert found.decisive["data"] == wanted.decisive["data"]  # the shuffling has another default
        for name in SPLITS:
            assert np.array_equal(found.prepared.positions[name], wanted.prepared.positions[name])
    cut = inputs({"paths": [store], "split": "fold validation=3 test=4", "max_jets": 100})
    assert [len(cut.prepared.positions[name]) for name in SPLITS] == [60, 20, 20]
    with pytest.raises(DataError, match=r"jets.store, jet 2: fold is none of 0, 1 \(training\); 4 \(test\) \(2\)"):
        inputs({"paths": [store], "split": "fold training=0,1 test=4 other=skip"})
    with pytest.raises(ConfigError, match=r"split: needs the column labels, and .*jets.store keeps the column fold"):
        inputs({"paths": [store], "split": "labels test=1"})
    content = bytearray((store / "split.npy").read_bytes())
    content[-8] ^= 1
    (store / "split.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"split.npy, jets \d+ to 199: is damaged"):
        inputs({"paths": [store]})


@pytest.mark.slow
def test_columns_that_a_store_can_not_keep(tmp_path: Path, files: dict[str, Path]) -> None:
    plain = kdfast.prepare(files["train"], tmp_path / "plain.store", progress=False)
    with pytest.raises(ConfigError, match=r"split: needs the column fold, and .*plain.store keeps none"):
        inputs({"paths": [plain], "split": "fold test=4"})
    folds = np.where(FOLD == 3, 0.5, FOLD).astype(np.float32)
    file = write_arrays(tmp_path / "folds.h5", atlas_arrays(TRAIN, width=60) | {"fold": folds})
    with pytest.raises(DataError, match=r"dataset fold, row 3: is no whole number \(0.5\)"):
        kdfast.prepare(file, tmp_path / "jets.store", split="fold", progress=False)
    with pytest.warns(KdfastWarning, match="40 of 200 jets"):
        store = kdfast.prepare(file, tmp_path / "good.store", split="fold", on_bad="drop", progress=False)
    found = inputs({"paths": [store], "split": "fold validation=2 test=4"})
    assert [len(found.prepared.positions[name]) for name in SPLITS] == [80, 40, 40]
    sets = kdfast.prepare(files["folds"], tmp_path / "sets.store", test_data=files["test"], progress=False)
    with pytest.raises(ConfigError, match="split: is for files, or a store of one set"):
        inputs({"paths": [sets], "split": "fold test=4"})


def test_one_set_is_split_as_ever() -> None:
    """The positions of kdfast 0.2, for 40 jets and the default seed."""
    jets = synthetic_jets(40, seed=5)
    found = prepare(jets, StudySettings(data=DataSettings(fractions=(0.5, 0.25, 0.25))))
    from sklearn.model_selection import train_test_split

    train, rest = train_test_split(np.arange(40), train_size=0.5, random_state=42, stratify=jets.labels)
    validation, test = train_test_split(rest, train_size=0.5, random_state=42, stratify=jets.labels[rest])
    for name, part in zip(SPLITS, (train, validation, test), strict=True):
        assert np.array_equal(found.positions[name], np.sort(part))


def test_indices_differ_and_do_not_depend_on_other_sets() -> None:
    for first in (TRAIN, TRAIN[:50]):
        jets = join({"data": first, "validation_data": VALIDATION, "test_data": TEST})
        assert len(np.unique(jets.index)) == len(jets)
        assert np.array_equal(jets.index[-100:], TEST.index)
        assert np.array_equal(jets.index[: len(first)], first.index + APART)
        assert np.array_equal(jets.index[len(first) : -100], VALIDATION.index + 2 * APART)
    assert np.array_equal(join({"data": TRAIN, "validation_data": VALIDATION}).index[:200], TRAIN.index)
    parts = {"data": TRAIN[50:], "test_data": TRAIN[:50]}  # of one whole: they keep theirs
    assert np.array_equal(join(parts).index, np.roll(TRAIN.index, -50))
    again = join({"data": jets[:50], "validation_data": jets[50:130], "test_data": jets[130:]})
    assert np.array_equal(again.index, jets.index)
    twice = replace(TEST, index=np.zeros(100, np.int64))
    with pytest.raises(DataError, match="test_data: two jets have the same index"):
        join({"data": TRAIN, "test_data": twice})


# ---- what is refused


def one_class(jets: PackedJets) -> PackedJets:
    return jets[jets.labels == 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "data", "error"),
    [
        (
            Given(TRAIN, test_jets=one_class(TEST)),
            {},
            "test_data: the test jets hold one class only: no background jet",
        ),
        (
            Given(TRAIN, None, None, one_class(VALIDATION), TEST),
            {},
            "validation_data: the validation jets hold one class only",
        ),
        (Given(one_class(TRAIN), test_jets=TEST), {}, "data: holds one class only (0 background and "),
        (Given(TRAIN, test_jets=TEST[:0]), {}, "test_data: there are no jets"),
        (Given(TRAIN[:3], test_jets=TEST), {}, "data: too few jets to split ("),
        (Given(TRAIN, test_jets=replace(TEST, labels=TEST.labels + 1)), {}, "test_data, row 0: label must be 0 or 1"),
        (Given(), {"split": "fold validation=3 test=9"}, "data, split by fold: there is no test jet"),
        (Given(), {"split": "fold training=9 test=3"}, "is none of 9 (training); 3 (test) (0)"),
        (
            Given(),
            {"split": "fold validation=3 test=4", "max_jets": 3},
            "data, split by fold: there is no validation jet",
        ),
        (Given(), {"split": "labels training=0 test=1"}, "data: holds one class only"),
        (Given(), {"split": "labels test=1"}, "data: holds one class only"),
        (Given(), {"split": "fld test=1"}, "dataset fld: is missing\nthe split asks for it"),
    ],
)
def test_parts_that_can_not_be_used(files: dict[str, Path], given: Given, data: dict[str, Any], error: str) -> None:
    paths = {} if given.jets else {"paths": [files["folds"]]}
    with pytest.raises(DataError) as caught:
        inputs({**paths, **data}, given)
    assert error in str(caught.value)
    assert caught.value.hint or "label" in error or "no jets" in error


SWEEP = {"out": "study", "epochs": 1, "plan_only": True, "progress": False}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"test_data": "test.h5"}, "test_data: needs data to train on, and there is only the bundled sample\n"),
        ({"validation_data": TEST}, "validation_data: needs data to train on"),
        ({"split": "fold test=3"}, "split: names a column of files, and there are none\n"),
        ({"data": TRAIN, "split": "fold test=3"}, "split: names a column of files, and there are none\n"),
        (
            {"data": "a.h5", "split": "fold test=3", "test_data": "b.h5"},
            "split: can't be combined with separate files of validation and test jets\ngive either",
        ),
        ({"data": "a.h5", "split": "fold tst=3"}, "split: tst: unknown key 'tst'\ndid you mean 'test'?"),
        ({"data": "a.h5", "test_data": []}, "test_data: names no file\nNone takes a share of data"),
        ({"data": "a.h5", "test_data": 3}, "test_data: must be paths, PackedJets, a table or None, is int"),
        (
            {"data": TRAIN, "config": {"data": {"test_paths": "given"}}},
            "test_data: 'given' needs the jets that were given in Python\n",
        ),
        (
            {"data": "a.h5", "test_data": "b.h5", "hlt": {"paths": "c.h5"}},
            "hlt.test_paths: HLT jets in files, and test_data: one is given without the other\n",
        ),
        (
            {"data": "a.h5", "hlt": {"paths": "c.h5", "validation_paths": "d.h5"}},
            "hlt.validation_paths: HLT jets in files, and validation_data: one is given without the other\n",
        ),
        ({"data": "a.h5", "hlt": {"test_paths": "d.h5"}}, "hlt: names no HLT jets of the data\ngive paths, too"),
        (
            {"data": TRAIN, "test_data": TEST, "hlt": [TRAIN]},
            "hlt: has 1 sets of HLT jets, for data, test_data\ngive the HLT jets of each",
        ),
    ],
)
def test_arguments_that_contradict_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdfastError) as caught:
        kdfast.sweep(**(SWEEP | arguments))
    assert str(caught.value).startswith(error)
    assert isinstance(caught.value, ConfigError | DataError)
    assert not Path("study").exists()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            {"data": TRAIN, "test_data": PackedJets.concatenate([TRAIN[7:9], TEST], renumber=True)},
            "test_data, row 0: 2 of 102 jets of test_data are among the jets of data as well",
        ),
        (
            {"data": TRAIN, "validation_data": TEST[:50], "test_data": TEST},
            "test_data, row 0: 50 of 100 jets of test_data are among the jets of validation_data as well",
        ),
    ],
)
def test_jets_that_are_in_two_sets(sets: dict[str, PackedJets], message: str) -> None:
    settings = DataSettings(**{name.replace("data", "paths"): "given" for name in sets if name != "data"})
    with pytest.raises(DataError) as error:
        load_sets(sets, settings)
    assert str(error.value).startswith(message)
    few = replace(TEST, p4=TEST.p4.copy(), constituents=TEST.constituents.copy())
    assert load_sets({"data": TRAIN, "test_data": few}, DataSettings(test_paths="given"))


def test_few_jets_in_two_sets_are_a_warning() -> None:
    many = synthetic_jets(2000, seed=14)
    sets = {"data": many[:1000], "test_data": many[999:]}
    with pytest.warns(
        KdfastWarning, match=r"test_data, row 0: 1 of 1,001 jets of test_data are among the jets of data"
    ):
        load_sets(sets, DataSettings(test_paths="given"))
    with pytest.raises(DataError, match="2 of 1,002"):
        load_sets(sets | {"test_data": many[998:]}, DataSettings(test_paths="given"))


@pytest.mark.slow
def test_jets_that_are_in_two_parts_by_a_column(tmp_path: Path, files: dict[str, Path]) -> None:
    with h5py.File(files["folds"]) as source, h5py.File(tmp_path / "twice.h5", "w") as file:
        for name in source:
            file[name] = np.concatenate([source[name][:], source[name][4:5]])
        file["fold"][-1] = 3
    data = {"paths": [tmp_path / "twice.h5"], "split": "fold validation=3 test=4"}
    with pytest.raises(DataError, match="data, row 4: 1 of 40 test jets are among the validation jets as well"):
        inputs(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs(data | {"split": "fold validation=1 test=3,4"})


# ---- HLT jets and teachers


@pytest.mark.slow
def test_hlt_jets_of_each_set(files: dict[str, Path], tmp_path: Path) -> None:
    sets = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    seen = {name: emulate_hlt(jets, "mild") for name, jets in sets.items()}
    hlt = {name: write_atlas(tmp_path / f"{name}.h5", jets, width=60) for name, jets in seen.items()}
    data = {"paths": [files["train"]], "validation_paths": [files["validation"]], "test_paths": [files["test"]]}
    tables = {"paths": [hlt["train"]], "validation_paths": [hlt["validation"]], "test_paths": [hlt["test"]]}
    found = inputs(data | {"max_jets": 150}, hlt=tables)
    assert [len(found.prepared.hlt[name].labels) for name in SPLITS] == [150, 80, 100]
    settings = StudySettings.resolve({"data": data})
    listed = [seen["train"], seen["validation"], seen["test"]]
    given = Given(hlt_jets=joined_hlt(listed, settings.data))
    python = inputs(data, given, hlt="given").prepared
    assert [len(python.hlt[name].labels) for name in SPLITS] == [200, 80, 100]
    with pytest.raises(DataError, match="hlt of test_data, row 0: are not the same jets: index 99, offline 0"):
        inputs(data, Given(hlt_jets=joined_hlt([*listed[:2], listed[2][::-1]], settings.data)), hlt="given")
    shuffled = replace(listed[2][np.argsort(listed[2].labels, kind="stable")[::-1]], index=listed[2].index)
    with pytest.raises(DataError, match=r"hlt of test_data, row \d+: are not the same jets"):
        inputs(data, Given(hlt_jets=joined_hlt([*listed[:2], shuffled], settings.data)), hlt="given")


@pytest.mark.slow
def test_hlt_jets_of_jets_that_the_split_leaves_out(files: dict[str, Path]) -> None:
    data = {"paths": [files["folds"]], "split": "fold training=0,1 validation=3 test=4 other=skip"}
    with pytest.warns(KdfastWarning, match="40 of 200 jets left out"):
        found = inputs(data, hlt={"paths": [files["folds"]]}).prepared
    assert [len(found.hlt[name].labels) for name in SPLITS] == [80, 40, 40]


@pytest.mark.slow
def test_logits_of_all_sets(files: dict[str, Path]) -> None:
    data = {"paths": [files["train"]], "test_paths": [files["test"]], "max_jets": 150}
    logits = np.linspace(-3, 3, 250)
    found = inputs(data, Given(teacher=logits))
    assert len(found.teacher) == 250
    with pytest.raises(DataError, match="teacher: 150 logits for 250 jets"):
        inputs(data, Given(teacher=logits[:150]))


# ---- the study


@pytest.mark.slow
def test_another_split_is_another_study(tmp_path: Path, files: dict[str, Path]) -> None:
    data = {"data": files["train"], "validation_data": files["validation"], "test_data": files["test"]}
    plan(tmp_path / "sets", **data)
    stored = StudyStore.open(tmp_path / "sets").settings["data"]
    assert stored["test_paths"] == [str(files["test"])]
    assert "fractions" not in stored
    other = write_atlas(tmp_path / "other.h5", synthetic_jets(90, seed=15), width=60)
    for change, message in (
        ({"test_data": other}, "the test jets are others\n"),
        ({"validation_data": other}, "the validation jets are others\n"),
        ({"data": other}, "the jets are others\n"),
        ({"test_data": None}, "the jets are split by files or a column alone there, by fractions here"),
    ):
        with pytest.raises(StudyError) as error:
            plan(tmp_path / "sets", **(data | change), seed=2)
        assert f"holds another study: {message}" in str(error.value)
    moved = Path(shutil.copy(files["test"], tmp_path / "moved.h5"))
    plan(tmp_path / "sets", **(data | {"test_data": moved}), seed=2)
    assert open_inputs(StudyStore.open(tmp_path / "sets"))[0].data.test_paths == (str(moved),)
    jets = {name: kdfast.load_jets(path) for name, path in data.items()}
    plan(tmp_path / "sets", **jets, seed=3)
    store = StudyStore.open(tmp_path / "sets")
    assert store.provenance["given"] == ["jets", "validation_jets", "test_jets"]
    assert store.settings["data"]["test_paths"] == "given"
    assert open_inputs(store)[1].prepared.shared_arrays("test")["index"][0] == 0


@pytest.mark.slow
def test_another_column_is_another_study(tmp_path: Path, files: dict[str, Path]) -> None:
    plan(tmp_path / "folds", files["folds"], split="fold validation=3 test=4")
    assert StudyStore.open(tmp_path / "folds").settings["data"]["split"] == {
        "column": "fold",
        "training": [],
        "validation": [3],
        "test": [4],
        "other": "error",
    }
    plan(tmp_path / "folds", files["folds"], seed=2, split="fold training=0,1,2 validation=3 test=4")  # the same
    with pytest.raises(StudyError, match="the split by a column is another"):
        plan(tmp_path / "folds", files["folds"], seed=3, split="fold validation=4 test=3")
    settings, found = open_inputs(StudyStore.open(tmp_path / "folds"))
    assert settings.data.split is not None
    assert settings.data.split.training == (0, 1, 2)
    assert len(found.prepared.positions["test"]) == 40


SIZES = ["--model", "small", "--teacher-model", "small", "--epochs", "1", "--warmup-epochs", "1"]
TINY = [*SIZES, "--temperature", "3", "--alpha", "0.5"]


def test_the_command_line(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--plan-only", "--pack-size", "2", *TINY, "--out"]
    sets = ["sweep", str(files["train"]), "--test-data", str(files["test"])]
    assert main([*sets, *command, "sets"]) == 0
    assert "300 jets (164 train, 36 validation, 100 test)" in capsys.readouterr().err
    assert main([*sets, "more.h5", *command, "none"]) == 2
    takes_one = "--test-data takes one file, and more.h5 follows: put a pattern in quotes, or repeat --test-data\n"
    assert takes_one in capsys.readouterr().err
    folds = ["sweep", str(files["folds"]), "--split", "fold training=0,1,2 validation=3 test=4"]
    assert main([*folds, *command, "folds"]) == 0
    assert "200 jets (120 train, 40 validation, 40 test)" in capsys.readouterr().err
    again = ["sweep", "--config", "folds/study.toml", "--plan-only", "--pack-size", "2", "--out", "again"]
    assert main(again) == 0
    assert "(120 train, 40 validation, 40 test)" in capsys.readouterr().err
    assert main(["sweep", "--test-data", str(files["test"]), *command, "none"]) == 2
    assert "kdfast: --test-data: needs data to train on" in capsys.readouterr().err
    assert main(["sweep", str(files["train"]), "--split", "fold", *command, "none"]) == 2
    assert "kdfast: --split: names neither validation nor test jets\ne.g. " in capsys.readouterr().err


def write_reference_set(folder: Path, slots: int = 60) -> None:
    for name, jets in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        pt, eta, phi, energy = np.moveaxis(jets.to_padded(slots)[0].astype(np.float64), 2, 0)
        parts = {"E": energy, "PX": pt * np.cos(phi), "PY": pt * np.sin(phi), "PZ": pt * np.sinh(eta)}
        columns = {f"{part}_{k}": values[:, k] for k in range(slots) for part, values in parts.items()}
        frame = pd.DataFrame(columns | {"is_signal_new": jets.labels})
        frame.to_hdf(folder / f"{name}.h5", key="table", format="table")


@pytest.mark.slow
def test_the_recipes_of_the_page(tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tables", reason="needs PyTables, by which pandas writes HDF5")
    monkeypatch.chdir(tmp_path)
    write_reference_set(tmp_path)
    for name, copy in (("train", "train_0"), ("test", "test_0"), ("folds", "all")):
        shutil.copy(files[name], f"{copy}.h5")
    short = SimpleNamespace(sweep=lambda data, **how: plan(how.pop("out"), data, **how))
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "splits.md").read_text(encoding="utf-8")
    for recipe in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(recipe, "splits.md", "exec"), {"kdfast": short})
    sizes = {"atlas": [164, 36, 100], "reference": [200, 80, 100], "fold4": [120, 40, 40]}
    for out, expected in sizes.items():
        positions = open_inputs(StudyStore.open(tmp_path / out))[1].prepared.positions
        assert [len(positions[name]) for name in SPLITS] == expected
    (table,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    Path("split.toml").write_text(table)
    stored = StudySettings.resolve(StudyStore.open(tmp_path / "fold4").settings)
    assert StudySettings.resolve("split.toml").data.split == stored.data.split
    commands = re.findall(r"^kdfast (sweep .*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        shutil.rmtree(tmp_path / command.split()[-1])
        assert main([*shlex.split(command), *TINY, "--plan-only", "--pack-size", "2", "--quiet"]) == 0


def test_studies_without_sets_are_written_as_before(tmp_path: Path, files: dict[str, Path]) -> None:
    plan(tmp_path, files["train"], hlt={"paths": files["train"]})
    store = StudyStore.open(tmp_path)
    assert [*store.settings["data"]] == ["paths", "max_constituents", "on_bad", "fractions", "seed"]
    assert [*store.provenance["decisive"]["data"]] == ["max_constituents", "fractions", "seed", "fingerprint"]
    assert store.settings["hlt"] == {"paths": [str(files["train"])]}


@pytest.mark.slow
def test_workers_and_refine_find_the_files(tmp_path: Path, files: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.chdir(files["train"].parent)
    plan(tmp_path, "train.h5", validation_data="validation.h5", test_data=["test.h5"])
    monkeypatch.chdir(tmp_path)
    assert work(tmp_path, progress=False).failed == {}
    assert verify(tmp_path).findings == ()
    scores = refine(tmp_path, top=1, seeds=2, progress=False).scores("baseline_T2.0_A0.5", 1)
    assert scores["split"].value_counts().to_dict() == {"validation": 80, "test": 100}
    assert scores["index"].nunique() == 180
    test = scores[scores["split"] == "test"]
    assert test["label"].tolist() == TEST.labels.tolist()
    store = StudyStore.open(tmp_path)
    (tmp_path / "student.safetensors").write_bytes(store.model_file(store.get(RunKey.of(RunConfig(2.0, 0.5), 1))))
    student = kdfast.load_model(tmp_path / "student.safetensors")
    predicted = student.predict(kdfast.load_jets(files["test"]))[:, 0]
    np.testing.assert_allclose(predicted, test["probability"], atol=1e-6)


def test_jets_of_python_are_stored_for_workers_and_asked_for_otherwise(tmp_path: Path) -> None:
    trigger = [emulate_hlt(jets, "mild") for jets in (TRAIN, TEST)]
    plan(tmp_path / "planned", TRAIN, test_data=TEST, hlt=trigger)
    store = StudyStore.open(tmp_path / "planned")
    assert store.settings["data"]["test_paths"] == store.settings["hlt"] == "given"
    assert work(tmp_path / "planned", progress=False).failed == {}
    small_sweep(tmp_path / "here", TRAIN, test_data=TEST, hlt=trigger, epochs=1)
    store = StudyStore.open(tmp_path / "here")
    with pytest.raises(StudyError, match="was given its jets in Python"):
        refine(tmp_path / "here", top=1, seeds=2, progress=False)
    with pytest.raises(StudyError, match=r"was given its test jets in Python.*\n.*the same test_data=… again"):
        stored_inputs(store, Given(TRAIN, trigger[0]))
    again = refine(tmp_path / "here", top=1, seeds=2, data=TRAIN, test_data=TEST, hlt=trigger, progress=False)
    assert sorted(again.results["seed"].unique()) == [42, 43]
    with pytest.raises(StudyError, match="the test jets are others"):
        refine(tmp_path / "here", top=1, seeds=3, data=TRAIN, test_data=TEST[:90], hlt=trigger, progress=False)
    config = tmp_path / "here" / "study.toml"
    with pytest.raises(ConfigError, match=r"test_data: 'given' needs the jets that were given in Python"):
        kdfast.sweep(TRAIN, tmp_path / "third", config=config, hlt="mild", progress=False)
