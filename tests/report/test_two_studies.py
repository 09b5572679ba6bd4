"""Two studies side by side: what is paired, what errors are known, and that a difference without cause is not seen."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from kdfast.cli import main
from kdfast.report import two_studies
from kdfast.report.page import comparison_files
from kdfast.report.pairing import RunKey
from kdfast.report.texts.comparison import comparison_text
from kdfast.report.two_studies import StudyComparison, compare
from kdfast.store.grid import grid
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


def metrics_of(store, name):
    """Mean AUC and rejection over the shared seeds 1 and 2, as stored."""
    runs = [r for r in store.results() if r.name == name and r.seed in (1, 2)]
    return [np.mean([run.metrics[metric] for run in runs]) for metric in ("auc", "bkg_rej_50")]


def test_differences_are_those_of_the_stored_numbers(comparison, first, second):
    assert comparison.names == ("first", "second")
    assert comparison.reasons == []
    assert comparison.shared_test == comparison.test[0] == comparison.test[1]
    assert {row.label for row in comparison.configurations} == {config.name for config in GRID[:3]}
    for row in (*comparison.configurations, comparison.baseline):
        assert row.runs == 2
        expected = [
            metrics_of(store, row.label.lower() if row.label == "Baseline" else row.label) for store in (first, second)
        ]
        for paired, one, other in zip((row.auc, row.rejection), *expected, strict=True):
            assert (paired.first, paired.second) == (pytest.approx(one), pytest.approx(other))
            assert paired.comparison.difference.value == pytest.approx(other - one)
    gains = [row.auc.comparison.difference.value for row in comparison.configurations]
    assert gains == sorted(gains, reverse=True)
    assert comparison.mean.auc.comparison.difference.value == pytest.approx(np.mean(gains))
    assert comparison.only_first == [f"{GRID[3].name}, seed 1", f"{GRID[3].name}, seed 2"]
    assert len(comparison.only_second) == 1 + 3  # the baseline and three students of seed 3


def test_a_cause_is_seen_where_it_acts(comparison):
    """Only the students are better."""
    texts = {finding.text: finding.supported for finding in comparison.findings}
    (counted,) = (text for text in texts if text.startswith("Of 3 shared configurations") and "AUC" in text)
    assert "3 have a higher AUC in second and 0 a lower one" in counted
    assert texts[counted]
    means = [supported for text, supported in texts.items() if text.startswith("The mean of the 3 shared")]
    assert means == [True, True]
    assert [text for text in texts if "teacher" in text or "baseline" in text] == [
        "The teacher scores the test jets alike in both studies.",
        "The baseline scores the test jets alike in both studies.",
    ]
    assert not any("one shared seed" in text for text in texts)


def test_settings_that_differ(comparison):
    assert [(s.name, s.first, s.second) for s in comparison.settings] == [("hlt", "nominal", "mild")]


def test_the_other_way_round(comparison, first, second):
    turned = compare(second, first)
    for row in comparison.configurations:
        (other,) = (r for r in turned.configurations if r.label == row.label)
        for metric in ("auc", "rejection"):
            one, two = (getattr(r, metric).comparison for r in (row, other))
            assert two.difference.value == pytest.approx(-one.difference.value)
            assert two.difference.low == pytest.approx(-one.difference.high)
            assert two.p_holm == pytest.approx(one.p_holm)


def test_a_study_and_itself(first):
    same = compare(first, first)
    supported = [finding.text for finding in same.findings if finding.supported]
    assert len(supported) == 2
    assert all("alike in both" in text for text in supported)
    for row in (*same.configurations, same.teacher, same.baseline, same.mean):
        assert row.auc.comparison.difference.value == 0.0
        assert row.auc.comparison.p_value == 1.0
    assert same.settings == []


def test_other_jets_are_independent(first, comparison, tmp_path):
    """The error of a difference is then that of both numbers together, larger than paired."""
    other = make_study(tmp_path / "other", GRID[:3], seeds=(1, 2), gain=0.6, provenance=made_of("b"))
    apart = compare(first, other)
    assert apart.shared_test is None
    assert "made of other data" in apart.reasons[0]
    single = [two_studies.analyse(store) for store in (first, other)]
    teacher = apart.teacher.auc.comparison.difference
    errors = [next(n for n in analysis.networks if n.role == "teacher").auc.error for analysis in single]
    assert teacher.error_test == pytest.approx(np.hypot(*errors), rel=1e-9)
    for row in apart.configurations:
        (paired,) = (r for r in comparison.configurations if r.label == row.label)
        assert row.auc.comparison.difference.error_test > 1.5 * paired.auc.comparison.difference.error_test


def test_imported_studies_have_differences_without_errors(first, tmp_path):
    jobs = [Job(config, auc=round(0.81 + 0.001 * i, 4), rejection=8.0 + i) for i, config in enumerate(GRID)]
    logs = write_logs(tmp_path / "logs", jobs)
    imported = StudyStore.open(import_study(logs, tmp_path / "s", seed=1).path)
    found = compare(imported, first)
    assert "No shared run has scores per jet" in found.reasons[0]
    for row in found.configurations:
        (job,) = (job for job in jobs if job.config.name == row.label)
        assert (row.auc.first, row.rejection.first) == (job.auc, job.rejection)
        assert row.auc.comparison is None
    assert [finding.supported for finding in found.findings] == [False]  # one shared seed
    assert list(comparison_files(found)) == ["comparison.html"]
    assert "they have no errors" in comparison_text(found)


def test_an_imported_teacher_without_a_rejection_is_compared_by_auc(tmp_path):
    header = "run_name,auc_student,bkg_rej_50,auc_teacher\n"
    rows = ["".join(f"{c.name},0.81,8.5,{auc}\n" for c in GRID) for auc in ("0.92", "0.93")]
    studies = []
    for name, text in zip("ab", rows, strict=True):
        (tmp_path / f"{name}.csv").write_text(header + text)
        studies.append(StudyStore.open(import_study(tmp_path / f"{name}.csv", tmp_path / name).path))
    found = compare(*studies)
    assert (found.teacher.auc.first, found.teacher.auc.second, found.teacher.rejection) == (0.92, 0.93, None)
    assert found.mean.rejection.first == pytest.approx(8.5)
    lines = [line.split() for line in comparison_text(found).splitlines() if line.startswith("  Teacher  ")]
    assert lines == [["Teacher", "1", "0.9200", "0.9300", "+0.0100", "-"], ["Teacher", "1", "-", "-", "-", "-"]]
    html = Page(comparison_files(found)["comparison.html"].decode())
    assert [text for _, text in html.all("td")][:9] == ["1", "0.9200", "0.9300", "+0.0100", "–", "–", "–", "–", "–"]


# ---- seeds that not all have


def with_more_seeds(path, configs, seeds, gain):
    """Two seeds of all, and further ones of some, as `kdfast refine` leaves it."""
    store = make_study(path, GRID, seeds=(1, 2), gain=gain, provenance=made_of("a"))
    more = make_study(path.with_name(path.name + " more"), configs, seeds=seeds, gain=gain, provenance=made_of("a"))
    for result in more.results():
        if result.kind == "student":
            store.write(result)
    return StudyStore.open(path)


def plain_mean(store, names, seeds):
    return np.mean([r.metrics["auc"] for r in store.results() if r.name in names and r.seed in seeds])


def test_the_mean_is_over_all_configurations_where_leaders_have_more_seeds(tmp_path):
    studies = [with_more_seeds(tmp_path / name, GRID[:1], (3,), gain) for name, gain in (("a", 0.0), ("b", 0.3))]
    found = compare(*studies)
    assert (found.mean.configurations, found.mean.runs) == (4, 2)
    names = {config.name for config in GRID}
    for value, store in zip((found.mean.auc.first, found.mean.auc.second), studies, strict=True):
        assert value == pytest.approx(plain_mean(store, names, (1, 2)))
    assert any(finding.text.startswith("The mean of the 4 shared configurations in b") for finding in found.findings)


def test_a_mean_over_some_configurations_says_so(tmp_path):
    """One run diverged: the others have both seeds."""
    studies = [
        make_study(tmp_path / name, GRID, seeds=(1, 2), gain=gain, provenance=made_of("a"))
        for name, gain in (("a", 0.0), ("b", 0.3))
    ]
    shutil.rmtree(next(studies[1].path.glob(f"results/student.{GRID[0].name}.seed2")))
    found = compare(studies[0], StudyStore.open(studies[1].path))
    assert (found.mean.configurations, found.mean.runs) == (3, 2)
    names = {config.name for config in GRID[1:]}
    assert found.mean.auc.first == pytest.approx(plain_mean(studies[0], names, (1, 2)))
    start = "The mean of 3 of the 4 shared configurations (those with 2 seeds) in b has a higher AUC than that in a"
    assert any(finding.text.startswith(start) for finding in found.findings)
    assert "Mean of 3 configurations" in comparison_text(found)


@pytest.mark.parametrize(
    ("runs", "kept"),
    [
        ("a1 a2 b1 b2", "a1 a2 b1 b2"),
        ("a1 a2 a3 b1 b2", "a1 a2 b1 b2"),
        ("a1 a2 a3 b1", "a1 a2 a3"),
        ("a1 a2 b1 b2 c1", "a1 a2 b1 b2"),
        ("a1 b2 c3", "a1 b2 c3"),  # nothing is shared: each difference is still one of equal runs
        ("a1", "a1"),
    ],
)
def test_the_mean_is_over_the_largest_block(runs, kept):
    keys = {run: RunKey("student", run[0], int(run[1])) for run in runs.split()}
    assert two_studies._block(list(keys.values())) == {keys[run] for run in kept.split()}


# ---- what can't be compared


@pytest.mark.parametrize("data", ["a", "b"])
@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        (np.linspace(-1.0, 1.0, 500), "it has 500 scores for 900 test jets"),
        (np.linspace(-1.0, 1.0, 905), "it has 905 scores for 900 test jets"),
        (np.full(900, np.nan), "900 of its 900 test scores are not finite"),
        (np.ones(900), "all its test scores are equal"),
    ],
)
def test_a_run_with_unusable_scores_is_left_out_and_named(tmp_path, scores, fault, data):
    first = make_study(tmp_path / "a", GRID[:2], provenance=made_of("a"))
    second = make_study(tmp_path / "b", GRID[1:2], provenance=made_of(data))
    metrics = first.get("student", GRID[0].name, 42).metrics
    second.write(StoredResult("student", GRID[0].name, 42, GRID[0], metrics=metrics, arrays={"scores_test": scores}))
    found = compare(first, second)
    assert [row.label for row in found.configurations] == [GRID[1].name]
    assert f"{second.path}: {GRID[0].name}, seed 42, is left out: {fault}." in found.reasons


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("a/study", "b/study"), ("a/study", "b/study")),
        (("x/one/study", "y/one/study"), ("x/one/study", "y/one/study")),
        (("a/study", "a/other"), ("study", "other")),
    ],
)
def test_studies_are_told_apart_by_name(tmp_path, folders, names):
    studies = []
    for folder in folders:
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        studies.append(make_study(tmp_path / folder, GRID[:2], provenance=made_of("a")))
    assert compare(*studies).names == names


def test_nothing_is_shared(first, tmp_path):
    other = make_study(tmp_path / "other", GRID, seeds=(7,), teacher=False, provenance=made_of("a"))
    found = compare(first, other)
    assert found.configurations == []
    assert found.mean is None
    assert "no run of the same kind, name and seed" in found.reasons[0]
    Page(comparison_files(found)["comparison.html"].decode())
    assert "nothing is shared" in comparison_text(found)


def test_other_seeds_are_why_nothing_is_compared(first, tmp_path):
    settings = {"seeds": [7, 8], "grid": [config.name for config in GRID] * 20}
    other = make_study(tmp_path / "other", GRID[:3], seeds=(7, 8), provenance=made_of("a", hlt="nominal"))
    found = compare(first, with_settings(other, settings))
    assert found.configurations == []
    reason = "3 configurations are in both studies, but with other seeds (1, 2 in the first, 7, 8 in the second)"
    assert found.reasons[-1].startswith(reason)
    text = comparison_text(found)
    assert reason in " ".join(text.split())
    assert [(s.name, s.first) for s in found.settings] == [("seeds", "[42]"), ("grid", "study")]
    assert found.settings[1].second.startswith(f"80: {GRID[0].name}, {GRID[1].name}, ")
    assert max(map(len, text.splitlines())) <= 100
    Page(comparison_files(found)["comparison.html"].decode())


def test_imported_studies_share_what_they_share(tmp_path):
    """Without scores nothing is tested; that is no reason to say that nothing is shared."""
    for name in ("x", "y"):
        rows = [f"{c.name},{seed},0.8{i},9.{i},{i}" for i, c in enumerate(GRID) for seed in (1, 2)]
        (tmp_path / f"{name}.csv").write_text(
            "run_name,seed,auc_student,bkg_rej_50,n_bkg_50\n" + "\n".join(rows) + "\n"
        )
        import_study(tmp_path / f"{name}.csv", tmp_path / name)
    found = compare(StudyStore.open(tmp_path / "x"), StudyStore.open(tmp_path / "y"))
    assert len(found.configurations) == len(GRID)
    assert found.findings == []
    text, page = comparison_text(found), comparison_files(found)["comparison.html"].decode()
    for told in (text, page):
        assert "othing is shared" not in told
        assert "Nothing is tested: without scores per jet the differences below have no errors." in told
    (limit,) = (row for row in found.configurations if row.label == GRID[0].name)
    assert limit.rejection.limits == (True, True)
    assert re.search(rf"  {GRID[0].name}  +2  +>9.00  +>9.00  +-  +-\n", text)


def with_settings(store, settings):
    """The same results under other settings."""
    moved = StudyStore.create_or_open(store.path.with_name("settings"), settings, store.provenance)
    for split in ("validation", "test"):
        moved.write_shared(split, store.shared(split))
    for result in store.results():
        moved.write(result)
    return moved


def test_rejections_that_are_limits_are_not_compared(tmp_path):
    """With 40 jets no background survives in places."""
    studies = [make_study(tmp_path / name, GRID, jets=40, gain=4.0, provenance=made_of("a")) for name in "xy"]
    found = compare(*studies)
    assert all(row.rejection.comparison is None for row in found.configurations)
    assert all(row.auc.comparison is not None for row in found.configurations)
    assert all(any(row.rejection.limits) and not any(row.auc.limits) for row in found.configurations)


def test_a_limit_spoils_what_it_enters_and_no_more(tmp_path):
    """One configuration's background is all rejected, in the second study alone."""

    def strength(of_limited):
        return lambda config: of_limited if config == GRID[0] else separation(config)

    studies = [
        make_study(tmp_path / name, GRID, seeds=(1, 2), provenance=made_of("a"), strength=strength(own))
        for name, own in (("x", 1.3), ("y", 9.0))
    ]
    found = compare(*studies)
    limited, *others = sorted(found.configurations, key=lambda row: row.label != GRID[0].name)
    assert limited.rejection.limits == (False, True)
    assert limited.rejection.comparison is None
    assert found.mean.rejection.limits == (False, True)
    for row in others:
        assert row.rejection.comparison.difference.value == pytest.approx(0.0)
        assert not any(row.rejection.limits)
    (reason,) = found.reasons
    assert reason.startswith(
        f"No background jet survives at 50 % in a run of {GRID[0].name}: rejections there are lower"
    )
    text, page = comparison_text(found), comparison_files(found)["comparison.html"].decode()
    Page(page)
    shown = f"{limited.rejection.second:.2f}"
    assert re.search(rf"  {GRID[0].name}  +2  +[\d.]+  +>{shown}  +-  +-\n", text)
    assert f"&gt; {shown}</td>" in page


# ---- errors


def simulated(rng, *, seeds, jets, seed_spread, effect):
    """Runs of two studies on shared jets: scores are a common part of each jet's, noise of each run's own, and a
    separation that differs from seed to seed."""
    labels = np.arange(jets) % 2
    common = rng.normal(size=jets)
    keys, scores = [], [[], []]
    for seed in range(seeds):
        for config in ("a", "b", "c"):
            keys.append(RunKey("student", config, seed))
            for study in (0, 1):
                strength = 1.2 + effect * study + seed_spread * rng.normal()
                scores[study].append(common + 0.4 * rng.normal(size=jets) + strength * labels)
    found = {
        key: tuple(SimpleNamespace(has_scores=True, arrays={"scores_test": s[k]}) for s in scores)
        for k, key in enumerate(keys)
    }
    return labels, keys, found


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_truth(seeds):
    """AUC of Gaussian scores: Φ(d/√(2 · (1 + 0.4²))). One seed can't tell the seeds' spread, so there it is 0."""
    rng = np.random.default_rng(20 + seeds)
    spread, effect, studies = (0.0 if seeds == 1 else 0.05), 0.1, 300
    width = np.sqrt(2 * (1 + 0.4**2))

    def auc(strength):
        return stats.norm.cdf(strength / np.sqrt(width**2 + spread**2))

    truth = auc(1.2 + effect) - auc(1.2)
    inside = {"mean": 0, "a": 0}
    for _ in range(studies):
        labels, keys, found = simulated(rng, seeds=seeds, jets=600, seed_spread=spread, effect=effect)
        weights = np.ones(len(labels))
        scores = np.array([found[key][study].arrays["scores_test"] for study in (0, 1) for key in keys])
        estimates = two_studies.auc_estimates(labels, scores, weights)
        one, other = estimates.rows(slice(0, len(keys))), estimates.rows(slice(len(keys), None))
        ones = np.ones(len(keys))  # the AUC alone: rejections' errors are tested with sampling.py
        pairs = two_studies._Pairs(
            keys,
            {"auc": one.values, "rejection": ones},
            {"auc": other.values, "rejection": ones},
            {"auc": other.factor - one.factor, "rejection": np.zeros_like(one.factor)},
            np.ones((2, len(keys)), bool),
        )
        rows = list(range(len(keys)))
        mean = two_studies._mean(pairs, rows, "mean").auc.comparison.difference
        (single,) = (r for r in two_studies._configurations(pairs, rows) if r.label == "a")
        inside["mean"] += mean.low <= truth <= mean.high
        inside["a"] += single.auc.comparison.difference.low <= truth <= single.auc.comparison.difference.high
    # at least 95 % but for 4 standard deviations of the count; few seeds make them wider, so no bound above but 1
    bound = 0.95 * studies - 4 * np.sqrt(studies * 0.95 * 0.05)
    assert inside["mean"] >= bound, inside
    assert inside["a"] >= bound, inside


# ---- files


def test_files_and_command(first, second, tmp_path, capsys):
    out = tmp_path / "both"
    assert main(["report", str(first.path), str(second.path), "--out", str(out)]) == 0
    names = [
        "comparison.txt",
        "comparison.json",
        "figures/differences.pdf",
        "figures/differences.png",
        "comparison.html",
    ]
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names]
    found = StudyComparison.model_validate_json((out / "comparison.json").read_bytes())
    assert len(found.configurations) == 3
    text = (out / "comparison.txt").read_text()
    assert [line for line in text.splitlines() if len(line) > 100] == []
    for row in found.configurations:
        assert len(re.findall(rf"^  {re.escape(row.label)} ", text, re.MULTILINE)) == 2  # AUC, rejection
    for finding in found.findings:
        assert " ".join(finding.text.split()) in " ".join(text.split())
    html = Page((out / "comparison.html").read_text())
    cells = [t for _, t in html.all("th", scope="row")]
    assert {row.label for row in found.configurations} <= set(cells)
    ids = [attributes["id"] for _, attributes, _ in html.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert main(["report", str(first.path), str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert list(open_study(first.path).compare(open_study(second.path), out)) == names
