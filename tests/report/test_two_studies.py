"""Two studies: which differences are computed, how well they are known, and what is left out with a reason."""

import re

import numpy as np
import pytest
from scipy import stats

from kdfast.cli import main
from kdfast.distill.schedules import shown
from kdfast.report.page import comparison_files
from kdfast.report.two_studies import PairedRun, Pairing, StudyComparison, _mean, _measured, _rows, compare
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.store import StoredResult, StudyStore
from kdfast.study.imports import import_study
from kdfast.study.results import open_study
from tests.report.fake_study import make_study, separation
from tests.report.study_logs import Job, write_logs
from tests.report.test_page import Page

GRID = grid(temperature=[3.0, 7.0], alpha=[0.3, 0.9])


def made_of(data, **settings):
    return {"decisive": {"data": {"fingerprint": data * 64}, **settings}}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    path = tmp_path_factory.mktemp("first") / "first"
    return make_study(path, GRID, seeds=(1, 2), provenance=made_of("a", hlt="nominal"))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Better students of the same jets, one configuration less, one seed more."""
    path = tmp_path_factory.mktemp("second") / "second"
    return make_study(path, GRID[:3], seeds=(1, 2, 3), gain=0.6, provenance=made_of("a", hlt="mild"))


@pytest.fixture(scope="module")
def comparison(first, second):
    return compare(first, second)


def rows(comparison, kind):
    return [row for row in comparison.rows if row.kind == kind]


def metric_of(store, name, metric):
    """Over the shared seeds 1 and 2, as stored."""
    return np.array([r.metrics[metric] for r in store.results() if r.name == name and r.seed in (1, 2)])


def test_differences_are_those_of_the_stored_numbers(comparison, first, second):
    assert comparison.names == ("first", "second")
    assert (comparison.shared_test.signal, comparison.shared_test.background) == (450, 450)
    assert {row.name for row in rows(comparison, "student")} == {config.name for config in GRID[:3]}
    for row in (*rows(comparison, "student"), *rows(comparison, "baseline")):
        assert row.seeds == 2
        here, there = (metric_of(store, row.name, "auc").mean() for store in (first, second))
        assert (row.auc.first, row.auc.second) == (pytest.approx(here), pytest.approx(there))
        assert row.auc.change.value == pytest.approx(there - here)
        here, there = (stats.gmean(metric_of(store, row.name, "bkg_rej_50")) for store in (first, second))
        assert (row.rejection.first, row.rejection.second) == (pytest.approx(here), pytest.approx(there))
        assert row.rejection.change.value == pytest.approx(there / here)
    gains = [row.auc.change.value for row in rows(comparison, "student")]
    assert gains == sorted(gains, reverse=True)
    (mean,) = rows(comparison, "mean")
    assert mean.auc.change.value == pytest.approx(np.mean(gains))
    assert [reason.split(" runs (")[0] for reason in comparison.reasons] == ["Only in first: 2", "Only in second: 4"]
    assert sorted(comparison.settings) == [("hlt", "nominal", "mild"), ("seeds", "[1, 2]", "[1, 2, 3]")]


def test_a_cause_is_seen_where_it_acts(comparison):
    """Only the students are better."""
    for row in (*rows(comparison, "student"), *rows(comparison, "mean")):
        assert row.auc.change.low > 0.0
        assert row.rejection.change.low > 1.0
        assert row.auc.p_holm < 0.05
    for row in (*rows(comparison, "teacher"), *rows(comparison, "baseline")):
        assert (row.auc.change.value, row.auc.change.error_test, row.auc.p_holm) == (0.0, 0.0, 1.0)
        assert row.rejection.change.value == 1.0


def test_the_other_way_round(comparison, first, second):
    turned = {row.name: row for row in compare(second, first).rows}
    for row in comparison.rows:
        other = turned[row.name]
        assert other.auc.change.value == pytest.approx(-row.auc.change.value)
        assert other.auc.change.low == pytest.approx(-row.auc.change.high)
        assert other.rejection.change.low == pytest.approx(1.0 / row.rejection.change.high)
        assert other.auc.p_holm == pytest.approx(row.auc.p_holm)


def without_intervals(found):
    return all(m is None or (m.change.low, m.p_holm) == (None, None) for r in found.rows for m in (r.auc, r.rejection))


def test_other_jets_are_not_paired(first, tmp_path):
    other = make_study(tmp_path / "other", GRID[:3], seeds=(1, 2), provenance=made_of("b"))
    found = compare(first, other)
    assert found.shared_test is None
    assert "made of different data" in found.reasons[0]
    assert len(rows(found, "student")) == 3
    assert without_intervals(found)


def test_the_same_test_jets_given_apart_are_paired(tmp_path):
    studies = []
    for data, test in ("aa", "ba", "ab"):
        provenance = made_of(data)
        provenance["decisive"]["data"]["test_fingerprint"] = test * 64
        studies.append(make_study(tmp_path / f"{data}{test}", GRID[:3], seeds=(1, 2), provenance=provenance))
    assert compare(*studies[:2]).shared_test is not None
    found = compare(studies[0], studies[2])
    assert "made of different data (fingerprints aaaaaaaa… and bbbbbbbb…)" in found.reasons[0]
    assert without_intervals(found)


def test_imported_studies_have_differences_without_intervals(first, tmp_path):
    jobs = [Job(config, auc=round(0.81 + 0.001 * i, 4), rejection=8.0 + i) for i, config in enumerate(GRID)]
    logs = write_logs(tmp_path / "logs", jobs)
    imported = StudyStore.open(import_study(logs, tmp_path / "s", seed=1).path)
    found = compare(imported, first)
    assert "no scores per jet" in found.reasons[0]
    for row in rows(found, "student"):
        (job,) = (job for job in jobs if job.config.name == row.name)
        assert (row.auc.first, row.rejection.first) == (job.auc, pytest.approx(job.rejection))
    assert without_intervals(found)
    assert list(comparison_files(found)) == ["comparison.txt", "comparison.html"]


def test_an_imported_teacher_without_a_rejection_is_compared_by_auc(tmp_path):
    header = "run_name,auc_student,bkg_rej_50,auc_teacher\n"
    studies = []
    for name, auc in (("a", "0.92"), ("b", "0.93")):
        rows_of_csv = "".join(f"{c.name},0.81,8.5,{auc}\n" for c in GRID)
        (tmp_path / f"{name}.csv").write_text(header + rows_of_csv)
        studies.append(StudyStore.open(import_study(tmp_path / f"{name}.csv", tmp_path / name).path))
    found = compare(*studies)
    (teacher,) = rows(found, "teacher")
    assert (teacher.auc.first, teacher.auc.second, teacher.rejection) == (0.92, 0.93, None)
    files = {name: content.decode() for name, content in comparison_files(found).items()}
    lines = [line.split() for line in files["comparison.txt"].splitlines() if line.startswith("  teacher  ")]
    assert lines == [["teacher", "1", "0.9200", "0.9300", "+0.0100", "-"], ["teacher", "1", "-", "-", "-", "-"]]
    html = Page(files["comparison.html"])
    assert [text for _, text in html.all("td")][:9] == ["1", "0.9200", "0.9300", "+0.0100", "–", "–", "–", "–", "–"]


@pytest.mark.parametrize("lost", [(), (GRID[0].name, 2)])
def test_the_mean_is_over_the_seeds_that_all_configurations_have(first, tmp_path, lost):
    """As after `kdfast refine`: leaders have a third seed. lost: a run that diverged in the second study."""
    more = [make_study(tmp_path / name, GRID, seeds=(1, 2), provenance=made_of("a")) for name in "ab"]
    for store in more:
        for result in make_study(tmp_path / f"{store.path.name} 3", GRID[:1], seeds=(3,)).results():
            if result.kind == "student" and (store is more[0] or not lost):
                store.write(result)
    if lost:
        (folder,) = more[1].path.glob(f"results/student.{lost[0]}.seed{lost[1]}")
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    found = compare(more[0], StudyStore.open(more[1].path))
    (mean,) = rows(found, "mean")
    assert mean.seeds == (1 if lost else 2)
    assert mean.name == "mean of 4 configurations"
    seeds = (1,) if lost else (1, 2)
    stored = [r.metrics["auc"] for r in more[0].results() if r.kind == "student" and r.seed in seeds]
    assert mean.auc.first == pytest.approx(np.mean(stored))


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("a/study", "b/study"), ("a/study", "b/study")),
        (("x/one/study", "y/one/study"), ("x/one/study", "y/one/study")),
        (("a/study", "a/other"), ("study", "other")),
    ],
)
def test_studies_are_distinguished_by_name(tmp_path, folders, names):
    studies = []
    for folder in folders:
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        studies.append(make_study(tmp_path / folder, GRID[:1], jets=60, provenance=made_of("a")))
    assert compare(*studies).names == names


def test_nothing_is_shared(first, tmp_path):
    other = make_study(tmp_path / "other", GRID, seeds=(7,), teacher=False, provenance=made_of("a"))
    found = compare(first, other)
    assert found.rows == []
    assert "no run of the same kind, name and seed" in found.reasons[0]
    files = comparison_files(found)
    Page(files["comparison.html"].decode())
    assert "The studies share no runs." in files["comparison.txt"].decode()


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        (np.linspace(-1.0, 1.0, 500), "it has 500 scores for 900 test jets"),
        (np.linspace(-1.0, 1.0, 905), "it has 905 scores for 900 test jets"),
        (np.full(900, np.nan), "900 of its 900 test scores are not finite"),
        (np.ones(900), "all its test scores are equal"),
    ],
)
def test_a_run_with_unusable_scores_is_left_out_and_named(tmp_path, scores, fault):
    first = make_study(tmp_path / "a", GRID[:2], provenance=made_of("a"))
    second = make_study(tmp_path / "b", GRID[1:2], provenance=made_of("a"))
    metrics = first.get(RunKey("student", GRID[0].name, 42)).metrics
    second.write(StoredResult("student", GRID[0].name, 42, GRID[0], metrics=metrics, arrays={"scores_test": scores}))
    found = compare(first, second)
    assert [row.name for row in rows(found, "student")] == [GRID[1].name]
    assert f"{second.path}: {GRID[0].name}, seed 42, is left out: {fault}." in found.reasons


def test_a_lower_limit_spoils_what_it_enters_and_no_more(tmp_path):
    """One configuration's background is all rejected, in the second study alone."""

    def strength(of_limited):
        return lambda config: of_limited if config == GRID[0] else separation(config)

    studies = [
        make_study(tmp_path / name, GRID, seeds=(1, 2), provenance=made_of("a"), strength=strength(own))
        for name, own in (("x", 1.3), ("y", 9.0))
    ]
    found = compare(*studies)
    (mean,) = rows(found, "mean")
    assert mean.rejection is None
    for row in rows(found, "student"):
        assert row.auc.change.low is not None
        assert (row.rejection is None) == (row.name == GRID[0].name)
        assert row.rejection is None or row.rejection.change.value == pytest.approx(1.0)
    (reason,) = found.reasons
    assert reason.startswith(f"No background jet survives at 50 % in a run of {GRID[0].name}: ")


# ---- errors


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_truth(seeds):
    """AUC of Gaussian scores: Φ(d/√(2 · (1 + 0.4²))). The scores are a common part of each jet's, noise of each run's
    own, and a separation that differs from seed to seed; with one seed its spread can't be known, so it is 0."""
    rng = np.random.default_rng(20 + seeds)
    spread, effect, studies, jets = (0.0 if seeds == 1 else 0.05), 0.1, 300, 600
    width = np.sqrt(2 * (1 + 0.4**2) + spread**2)
    truth = stats.norm.cdf((1.2 + effect) / width) - stats.norm.cdf(1.2 / width)
    keys = [RunKey("student", name, seed) for seed in range(seeds) for name in "abc"]
    labels, index = np.arange(jets) % 2, np.arange(jets)
    inside = {"mean of 3 configurations": 0, "a": 0}
    for _ in range(studies):
        common = rng.normal(size=jets)

        def scores(gain, common=common):
            return common + 0.4 * rng.normal(size=jets) + (1.2 + gain + spread * rng.normal()) * labels

        runs = tuple(PairedRun(key, scores(0.0), scores(effect)) for key in keys)
        pairs = _measured(Pairing(index, labels, np.ones(jets), runs, tuple(keys), (), (), ()), replicates=2)
        for row in (*_mean(pairs), *_rows(pairs, "student")):
            if row.name in inside:
                inside[row.name] += row.auc.change.low <= truth <= row.auc.change.high
    # at least 95 % but for 4 standard deviations of the count; few seeds make them wider, so no bound above but 1
    bound = 0.95 * studies - 4 * np.sqrt(studies * 0.95 * 0.05)
    assert min(inside.values()) >= bound, inside


# ---- files


def test_files_and_command(first, second, tmp_path, capsys):
    out = tmp_path / "both"
    assert main(["report", str(first.path), str(second.path), "--out", str(out)]) == 0
    figures = ["figures/differences.pdf", "figures/differences.png"]
    names = ["comparison.json", *figures, "comparison.txt", "comparison.html"]
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names]
    found = StudyComparison.model_validate_json((out / "comparison.json").read_bytes())
    text = (out / "comparison.txt").read_text()
    assert [line for line in text.splitlines() if len(line) > 100] == []
    for row in found.rows:
        assert len(re.findall(rf"^  {re.escape(shown(row.name))} ", text, re.MULTILINE)) == 2  # AUC, rejection
    html = Page((out / "comparison.html").read_text())
    assert {shown(row.name) for row in found.rows} <= {text for _, text in html.all("th", scope="row")}
    ids = [attributes["id"] for _, attributes, _ in html.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert main(["report", str(first.path), str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert list(open_study(first.path).compare(open_study(second.path), out)) == names
