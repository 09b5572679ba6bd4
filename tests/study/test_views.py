"""Sweeps from a packed store: the same results as from memory, by views in files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import kdfast
from kdfast.cli import main
from kdfast.errors import ConfigError, DataError, StudyError
from kdfast.jets import prepare as preparing
from kdfast.jets.fingerprint import fingerprint, kept_fingerprint
from kdfast.study import views
from tests.jets.atlas_files import write_atlas
from tests.study.small_sweep import small_jets, small_sweep


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small_jets in a file, and in a store of several parts."""
    folder = tmp_path_factory.mktemp("made")
    file = write_atlas(folder / "jets.h5", small_jets(), width=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "PART_JETS", 64)
        kdfast.prepare(file, folder / "jets.store", progress=False)
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store, copied beside its file; views are made in several blocks."""
    monkeypatch.setattr(preparing, "PART_JETS", 64)
    monkeypatch.setattr(views, "JETS", 100)
    shutil.copy2(made / "jets.h5", tmp_path)
    return Path(shutil.copytree(made / "jets.store", tmp_path / "jets.store"))


def scores(study: kdfast.StudyResults) -> dict[tuple[str, int], pd.DataFrame]:
    return {
        (name, seed): study.scores(name, seed)
        for name, seed in study.results[["run_name", "seed"]].itertuples(index=False)
    }


def test_the_same_results_as_in_memory(tmp_path: Path, store: Path) -> None:
    wanted = scores(small_sweep(tmp_path / "memory", kdfast.load_jets(tmp_path / "jets.h5")))
    study = small_sweep(tmp_path / "mapped", store)
    found = scores(study)
    assert len(found) == 4
    assert found.keys() == wanted.keys()
    for run in found:
        pd.testing.assert_frame_equal(found[run], wanted[run])
    assert len(list((store / "views").glob("*/view.json"))) == 6  # three splits, seen offline and by the trigger


@pytest.mark.slow
def test_views_are_shared_and_made_again_where_damaged(tmp_path: Path, store: Path) -> None:
    first = scores(small_sweep(tmp_path / "one", store))
    made = {path: path.stat().st_mtime_ns for path in (store / "views").glob("*/features.npy")}
    damaged = sorted(made)[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 255
    damaged.write_bytes(content)
    second = scores(small_sweep(tmp_path / "two", store))
    for run in first:
        pd.testing.assert_frame_equal(first[run], second[run])
    now = {path: path.stat().st_mtime_ns for path in (store / "views").glob("*/features.npy")}
    assert {path for path in made if now[path] != made[path]} == {damaged}


@pytest.mark.slow
def test_a_damaged_standardisation_is_made_again(tmp_path: Path, store: Path) -> None:
    first = scores(small_sweep(tmp_path / "one", store))
    (path,) = (store / "views").glob("standardisation-*.json")
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"numbers": kept["numbers"] | {"mean": [9.0] * 7}}))
    second = scores(small_sweep(tmp_path / "two", store))
    for run in first:
        pd.testing.assert_frame_equal(first[run], second[run])
    assert json.loads(path.read_text()) == kept


@pytest.mark.slow
def test_jets_of_a_store_with_other_arrays(tmp_path: Path, store: Path) -> None:
    """Their views are not those of the store's own."""
    small_sweep(tmp_path / "whole", store)
    mapped = kdfast.load_jets(store)
    in_memory = kdfast.load_jets(tmp_path / "jets.h5")
    weights = np.linspace(0.5, 2, len(mapped)).astype(np.float32)
    for name, change in {
        "weighted": lambda jets: replace(jets, weights=weights),
        "first": lambda jets: jets[:200],
        "last": lambda jets: replace(jets[200:], labels=jets.labels[:200]),  # split as the first
    }.items():
        found = scores(small_sweep(tmp_path / name, change(mapped)))
        wanted = scores(small_sweep(tmp_path / f"{name} in memory", change(in_memory)))
        for run in wanted:
            pd.testing.assert_frame_equal(found[run], wanted[run])


def test_arrays_of_a_store_are_read_only(store: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        kdfast.load_jets(store).weights[:] = 2


def test_the_fingerprint_is_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jets = kdfast.load_jets(store)
    for cut in (None, 5):
        for part in (jets, jets[:100], jets[100:200], replace(jets, labels=1 - jets.labels)):
            assert kept_fingerprint(part, cut) == kept_fingerprint(part, cut) == fingerprint(part, cut)
    files = list((store / "views").glob("fingerprint-*.json"))
    assert len(files) == 8
    monkeypatch.setattr("kdfast.jets.fingerprint.fingerprint", lambda *_: "computed")
    assert kept_fingerprint(jets) == fingerprint(jets)
    for file in files:
        file.write_text(file.read_text().replace("0", "1"))
    assert kept_fingerprint(jets) == "computed"


def test_a_changed_store_given_in_python(tmp_path: Path, store: Path) -> None:
    """It is compared with its checksums, as the kept fingerprint would not show it."""
    small_sweep(tmp_path / "one", kdfast.load_jets(store))
    content = bytearray((store / "constituents.npy").read_bytes())
    content[-10] ^= 1
    (store / "constituents.npy").write_bytes(content)
    with pytest.raises(DataError, match="does not match its checksum"):
        small_sweep(tmp_path / "one", kdfast.load_jets(store))


@pytest.mark.slow
def test_other_cuts_and_windows(tmp_path: Path, store: Path) -> None:
    study = small_sweep(tmp_path / "one", store, max_constituents=5, shuffle_window=64)
    wanted = small_sweep(
        tmp_path / "two", kdfast.load_jets(tmp_path / "jets.h5"), max_constituents=5, shuffle_window=64
    )
    for run, values in scores(wanted).items():
        pd.testing.assert_frame_equal(scores(study)[run], values)
    with pytest.raises(StudyError, match=r"holds another study: .*shuffle_window is 64 there"):
        small_sweep(tmp_path / "one", store, max_constituents=5)


@pytest.mark.slow
def test_a_study_of_files_resumes_from_their_store(tmp_path: Path, store: Path) -> None:
    began = len(small_sweep(tmp_path / "one", [tmp_path / "jets.h5"]).results)
    again = small_sweep(tmp_path / "one", store, shuffle_window="all", seeds=[42, 43])
    assert len(again.results) == 2 * began
    assert 'shuffle_window = "all"' in (tmp_path / "one" / "study.toml").read_text()


def test_a_store_with_fewer_constituents(tmp_path: Path) -> None:
    file = write_atlas(tmp_path / "jets.h5", small_jets(), width=60)
    out = kdfast.prepare(file, tmp_path / "ten.store", max_constituents=10, progress=False)
    with pytest.raises(ConfigError, match=r"is 15, but .*ten.store was made with the 10 hardest constituents"):
        small_sweep(tmp_path / "one", out)
    assert len(small_sweep(tmp_path / "one", out, max_constituents=None).results) == 4


def test_views_that_cannot_be_written(tmp_path: Path, store: Path) -> None:
    (store / "views").write_text("no folder")
    with pytest.raises(StudyError, match=r"views.*: can't be written"):
        small_sweep(tmp_path / "one", store)


def test_moments_are_those_of_all_rows() -> None:
    rows = torch.randn(1000, 7, generator=torch.Generator().manual_seed(1)) * 0.1 + 50
    mean, std = views._moments(each for part in rows.split(130) for each in (part, part[:0]))
    x = rows.double()
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(std, x.std(0, unbiased=False), rtol=1e-11, atol=0)


@pytest.mark.slow
def test_a_store_is_moved(tmp_path: Path, store: Path) -> None:
    """A study is resumed with its store at another place."""
    began = len(small_sweep(tmp_path / "one", store).results)
    shutil.move(store, tmp_path / "elsewhere")
    again = small_sweep(tmp_path / "one", tmp_path / "elsewhere", seeds=[42, 1])
    assert len(again.results) == 2 * began


@pytest.mark.slow
def test_hlt_jets_in_a_store(tmp_path: Path, store: Path) -> None:
    hlt_jets = kdfast.emulate_hlt(kdfast.load_jets(tmp_path / "jets.h5"), "mild", seed=42)
    file = write_atlas(tmp_path / "hlt.h5", hlt_jets, width=60)
    hlt_store = kdfast.prepare(file, tmp_path / "hlt.store", progress=False)
    study = small_sweep(tmp_path / "one", store, hlt={"paths": str(hlt_store)})
    wanted = small_sweep(tmp_path / "two", [tmp_path / "jets.h5"], hlt={"paths": str(file)})
    for run, values in scores(wanted).items():
        pd.testing.assert_frame_equal(scores(study)[run], values)


@pytest.mark.slow
def test_workers_read_the_store_in_place(tmp_path: Path, store: Path) -> None:
    small_sweep(tmp_path / "one", store, plan_only=True)
    assert not (tmp_path / "one" / "inputs").exists()
    assert main(["worker", "--store", str(tmp_path / "one"), "--quiet"]) == 0
    found = scores(kdfast.open_study(tmp_path / "one"))
    wanted = scores(small_sweep(tmp_path / "two", store))
    for run, values in wanted.items():
        pd.testing.assert_frame_equal(found[run], values)


@pytest.mark.slow
def test_predict_reads_the_store_in_blocks(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sweep(tmp_path / "one", store)
    tagger = kdfast.load_model(tmp_path / "one" / "models" / "best_student.safetensors")
    wanted = tagger.predict(kdfast.load_jets(tmp_path / "jets.h5"))
    monkeypatch.setattr("kdfast.models.tagger._PREPARED", 64)
    np.testing.assert_allclose(tagger.predict(kdfast.load_jets(store)), wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_views_that_are_not_used_are_not_made(tmp_path: Path, store: Path) -> None:
    logits = np.linspace(-2, 2, len(small_jets())).astype(np.float32)
    small_sweep(tmp_path / "one", store, teacher=logits, teacher_model=None)
    assert len(list((store / "views").glob("*/view.json"))) == 3  # what students see


@pytest.mark.slow
def test_sets_of_a_store(tmp_path: Path) -> None:
    """Test jets of their own, in the same store."""
    jets = small_jets()
    files = write_atlas(tmp_path / "a.h5", jets[:300], width=60), write_atlas(tmp_path / "b.h5", jets[300:], width=60)
    out = kdfast.prepare(files[0], tmp_path / "jets.store", test_data=files[1], progress=False)
    found = scores(small_sweep(tmp_path / "one", out))
    wanted = scores(small_sweep(tmp_path / "two", [files[0]], test_data=files[1]))
    for run, values in wanted.items():
        pd.testing.assert_frame_equal(found[run], values)
    assert (next(iter(found.values())).split == "test").sum() == 100
    for changes in ({"test_data": files[1]}, {"max_jets": 200}):
        with pytest.raises(ConfigError, match=r"is for files, or a store of one set; .* holds data, test_data"):
            small_sweep(tmp_path / "three", out, **changes)
