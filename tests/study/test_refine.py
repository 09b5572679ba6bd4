"""More seeds for the leaders of a study."""

import shutil

import pandas as pd
import pytest

import kdfast
from kdfast.cli import main
from kdfast.errors import ConfigError, StudyError
from kdfast.jets.hlt import emulate_hlt
from kdfast.report.schema import Analysis
from kdfast.store.store import StoredResult, StudyStore
from kdfast.study.refine import leaders, refine
from kdfast.study.worker import work
from tests.report.fake_study import PROVENANCE, SETTINGS
from tests.study.small_sweep import small_jets, small_sweep


def table(rows):
    """run_name, seed, auc_val, bkg_rej_50_val of runs that are done, none of them a lower limit."""
    columns = ["run_name", "seed", "auc_val", "bkg_rej_50_val"]
    return pd.DataFrame(rows, columns=columns).assign(status="done", n_bkg_50_val=10)


RUNS = table(
    [
        ("a", 1, 0.80, 9.0),
        ("a", 2, 0.82, 9.0),
        ("b", 1, 0.83, 7.0),
        ("b", 2, 0.81, 7.0),
        ("c", 1, 0.70, 9.5),
        ("c", 2, 0.70, 9.5),
    ]
)


def test_leaders_are_means_over_the_seeds_that_all_have():
    assert leaders(RUNS, 2) == (["b", "a"], [1, 2])
    assert leaders(RUNS, 1, "bkg_rej_50") == (["c"], [1, 2])
    assert leaders(RUNS, 1, "combined") == (["a"], [1, 2])
    more = pd.concat([RUNS, table([("b", 3, 0.5, 1.0), ("b", 4, 0.5, 1.0)])], ignore_index=True)
    assert leaders(more, 2) == (["b", "a"], [1, 2])  # so that a stopped refinement goes on with the same


def test_a_lower_limit_leads_by_rejection():
    runs = RUNS.assign(n_bkg_50_val=[10, 10, 0, 10, 10, 10])
    assert leaders(runs, 2, "bkg_rej_50") == (["b", "c"], [1, 2])


def test_a_lucky_seed_alone_leads_nothing():
    """Half-way through a sweep: b has only the seed that is good to all, c only the other."""
    half = [("a", 1, 0.82, 9.0), ("a", 2, 0.72, 9.0), ("b", 1, 0.80, 9.0), ("c", 2, 0.70, 9.0)]
    assert leaders(table(half), 3) == (["a"], [1, 2])
    assert leaders(table([*half[:3], ("c", 1, 0.81, 9.0)]), 3) == (["a", "c", "b"], [1])
    with pytest.raises(StudyError, match="no seed in common"):
        leaders(table(half[2:]), 3)


def test_leaders_that_cannot_be_told():
    with pytest.raises(ConfigError, match="metric: unknown metric 'acu'"):
        leaders(RUNS, 1, "acu")
    with pytest.raises(StudyError, match="no student of this study has finished yet"):
        leaders(RUNS.assign(status="diverged"), 1)
    with pytest.raises(StudyError, match="no validation numbers"):
        leaders(RUNS.assign(auc_val=float("nan")), 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("refine") / "study"
    small_sweep(out, seeds=(5,))
    return out


def test_refine_trains_the_leaders_and_the_baseline(study):
    before = {path: path.stat().st_mtime_ns for path in (study / "results").iterdir()}
    results = kdfast.refine(study, top=2, seeds=3, data=small_jets(), progress=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is trained twice
    counts = results.results.groupby("run_name")["seed"].apply(sorted)
    assert sorted(map(len, counts)) == [1, 1, 3, 3]
    first, _ = leaders(results.results, 2)
    assert all(counts[name] == [5, 6, 7] for name in first)
    assert results.results["auc_baseline"].notna().all()
    report = Analysis.model_validate_json((study / "report.json").read_bytes())
    assert {row.run_name: row.runs for row in report.configurations} == dict.fromkeys(counts.index, 1)
    assert report.refinement.seeds == [6, 7]  # 5 has chosen them
    assert {row.run_name: row.runs for row in report.refinement.configurations} == dict.fromkeys(first, 2)
    assert report.study.seeds == [5, 6, 7]
    text = " ".join((study / "results_summary.txt").read_text().split())
    assert "4 configurations × 1 seed; 2 further seeds for 2 leaders" in text
    again = kdfast.refine(study, top=2, seeds=3, data=small_jets(), progress=False)  # all is there
    assert again.results.equals(results.results)


def test_fewer_seeds_than_there_are_change_nothing(study):
    before = sorted(path.name for path in (study / "results").iterdir())
    refine(study, top=1, seeds=1, data=small_jets(), progress=False)
    assert sorted(path.name for path in (study / "results").iterdir()) == before


@pytest.mark.slow
def test_a_run_that_diverged_is_not_made_up_for_again_and_again(tmp_path):
    """It leaves its configuration with fewer seeds than were asked for, whatever is added."""
    out = tmp_path / "study"
    small_sweep(out, seeds=(5, 6), epochs=1)
    store = StudyStore.open(out)
    victim = next(result for result in store.results() if result.kind == "student" and result.seed == 6)
    shutil.rmtree(out / "results" / victim.key.folder)
    config = {"kind": "student", "name": victim.name, "seed": 6, "config": victim.config}
    store.write(StoredResult(**config, status="diverged", message="on purpose", metrics={"epochs": 0}))
    for _ in range(2):
        refine(out, top=10, seeds=3, data=small_jets(), progress=False)
        assert {result.seed for result in store.results() if result.kind == "student"} == {5, 6, 7}


@pytest.mark.parametrize(("options", "where"), [({"top": 0}, "top"), ({"seeds": 0}, "seeds")])
def test_numbers_below_one(study, options, where):
    with pytest.raises(ConfigError, match=f"{where}: must be a whole number, at least 1, is 0"):
        refine(study, **options)


def test_other_jets_are_refused(study, capsys):
    assert main(["refine", str(study), "--top", "1", "--seeds", "4", "--quiet"]) == 2
    assert "was given its jets in Python, and does not hold them" in capsys.readouterr().err
    with pytest.raises(StudyError, match="holds another study: the jets are others"):
        refine(study, top=1, seeds=4, data=small_jets()[:300], progress=False)


def test_a_planned_study_holds_what_it_was_given(tmp_path):
    small_sweep(tmp_path, plan_only=True, hlt=emulate_hlt(small_jets(), "severe"), epochs=1)
    work(tmp_path, progress=False)
    assert main(["refine", str(tmp_path), "--top", "1", "--seeds", "2", "--quiet"]) == 0
    assert sorted(kdfast.open_study(tmp_path).results["seed"]) == [42] * 4 + [43]


def test_imported_and_empty_studies(tmp_path, capsys):
    imported = StudyStore.create_or_open(tmp_path / "i", SETTINGS, {"imported": {"files": [], "notes": []}})
    assert main(["refine", str(imported.path)]) == 2
    assert "was imported: how its runs were trained is not known" in capsys.readouterr().err
    empty = StudyStore.create_or_open(tmp_path / "e", SETTINGS, PROVENANCE)
    assert main(["refine", str(empty.path)]) == 2
    assert "no student of this study has finished yet" in capsys.readouterr().err
