"""The first screen of a report: its answer for the main cases, what limits it, and whether training had converged."""

import numpy as np
import pytest

from kdfast.distill.schedules import RunConfig, shown
from kdfast.report.analysis import analyse
from kdfast.report.rendering import report_texts
from kdfast.report.schema.values import Claim
from kdfast.store.grid import grid
from tests.report.fake_study import SMALL_GRID, make_study
from tests.report.reported import imported, in_one_line, reported

NOT_YET = "One seed, one baseline network: not yet a verdict."
WITHOUT = "rain without a teacher."
UNTIL_THEN = "Until then, "


def separations(student, best=None):
    """Of the baseline 1.25, of students `student`, of the last four configurations `best`."""

    def strength(config):
        if config is None:
            return 1.25
        return best if best is not None and config in SMALL_GRID[-4:] else student

    return strength


def verdict_of(folder, **options):
    return analyse(make_study(folder / "study", SMALL_GRID, **options)).verdict


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
@pytest.mark.parametrize(
    ("strength", "words", "better"),
    [
        (separations(1.25), "No {one} is significantly better or worse than training without a teacher.", False),
        (separations(1.25, 2.2), "4 of 16 {many} beat training without a teacher.", True),
        (separations(2.2), "16 of 16 {many} beat training without a teacher.", True),
        (separations(0.4), "No {one} beats training without a teacher; 16 of 16 are worse.", False),
        (separations(0.4, 2.2), "4 of 16 {many} beat training without a teacher, 12 are worse.", True),
    ],
    ids=["none", "some", "all", "all worse", "some better, some worse"],
)
def test_the_answer(tmp_path, seeds, strength, words, better):
    found = verdict_of(tmp_path, seeds=seeds, strength=strength)
    one, many = ("student", "students") if len(seeds) == 1 else ("configuration", "configurations")
    assert found.text.startswith(words.format(one=one, many=many)), found.text
    assert (NOT_YET in found.text) == (len(seeds) == 1)
    assert (WITHOUT in found.text) == (not better)
    assert (UNTIL_THEN in found.text) == (not better and len(seeds) == 1)
    mean, chosen, constant = found.rows
    assert mean.label == "mean of all 16"
    assert chosen.label.startswith("chosen: ")
    assert constant.label.startswith("best with constant T and α: constant_")


@pytest.mark.parametrize(("strength", "supported"), [(separations(1.25), False), (separations(2.2), True)])
def test_only_what_is_above_the_baseline_is_recommended(tmp_path, strength, supported):
    whole = analyse(make_study(tmp_path / "study", SMALL_GRID, strength=strength))
    text = in_one_line(report_texts(whole)["ANALYSIS_SUMMARY.txt"])
    for goal, why in (("auc", "highest AUC on validation"), ("constant", "best constant T and α")):
        name = shown(next(winner.configuration for winner in whole.winners if winner.goal == goal))
        used = f"✓ Use: {name} ({why})"
        candidate = f"- Candidate: {name} ({why}; not significantly above the baseline)"
        assert (used in text, candidate in text) == (supported, not supported)


def test_its_numbers(tmp_path):
    """Mean of the students, that of the baseline over the same seeds, and their difference with its error."""
    store = make_study(tmp_path / "study", SMALL_GRID, seeds=(1, 2))
    whole = analyse(store)
    aucs = {
        kind: np.mean([r.metrics["auc"] for r in store.results() if r.kind == kind]) for kind in ("student", "baseline")
    }
    mean = whole.mean_vs_baseline["auc"]
    assert mean.difference.value == pytest.approx(aucs["student"] - aucs["baseline"])
    expected = f"The 16 configurations average AUC {aucs['student']:.4f}, the baseline {aucs['baseline']:.4f} "
    expected += f"(difference {mean.difference.value:+.4f} ± {mean.difference.error:.4f})."
    assert expected in whole.verdict.text
    rows = {row.run_name: row for row in whole.configurations}
    by_label = {row.label.split(": ")[0]: row for row in whole.verdict.rows}
    assert by_label["mean of all 16"].comparison == mean
    winners = {winner.goal: winner.configuration for winner in whole.winners}
    assert by_label["chosen"].comparison == rows[winners["auc"]].auc_vs_baseline
    assert by_label["best with constant T and α"].comparison == rows[winners["constant"]].auc_vs_baseline
    assert whole.verdict.text in in_one_line(report_texts(whole)["ANALYSIS_SUMMARY.txt"])


def test_counts_are_of_the_findings(tmp_path):
    whole = analyse(make_study(tmp_path / "study", SMALL_GRID, strength=separations(0.4, 2.2)))
    counts = next(f.numbers for f in whole.findings if f.code is Claim.BASELINE_COUNTS and f.numbers["metric"] == "auc")
    assert (counts["higher"], counts["lower"], counts["compared"]) == (4, 12, 16)


def test_one_configuration(tmp_path):
    """It is not called a mean of all, nor are there several of it."""
    found = analyse(make_study(tmp_path / "study", SMALL_GRID[:1], strength=separations(2.4))).verdict
    assert found.text.startswith("1 of 1 students beats training without a teacher.") or found.text.startswith(
        "The student beats training without a teacher."
    )
    assert not any("all 1" in row.label for row in found.rows)
    assert "The 1 students" not in found.text


def test_without_a_baseline(tmp_path):
    found = verdict_of(tmp_path, diverged=("baseline",))
    assert found.text.startswith("There is no baseline to compare with: whether a teacher helps is unknown.")
    assert NOT_YET not in found.text
    assert WITHOUT not in found.text
    assert found.rows == []


def test_without_scores(tmp_path):
    rows = [f"baseline_T{t}_A0.5,0.8,8.0,0.7" for t in (3.0, 5.0)]
    (tmp_path / "runs.csv").write_text("\n".join(["run_name,auc_student,bkg_rej_50,auc_baseline", *rows]) + "\n")
    found = analyse(imported(tmp_path)).verdict
    assert found.text.startswith("These results have no scores per jet: they can be described, but no difference")
    assert "beat" not in found.text
    assert {light.about: light.state for light in found.lights}["test jets"] == "unknown"


def test_no_student_yet(tmp_path):
    assert verdict_of(tmp_path, diverged=tuple(c.name for c in SMALL_GRID)) is None


# ---- what limits it


def lights_of(found):
    return {light.about: light for light in found.lights}


@pytest.mark.parametrize(
    ("seeds", "state", "words"),
    [
        ((1,), "poor", "one seed: trained networks are compared, not configurations"),
        ((1, 2), "fair", "2 seeds: the variance between seeds is known roughly"),
        ((1, 2, 3, 4, 5), "good", "5 seeds"),
    ],
)
def test_seeds(tmp_path, seeds, state, words):
    found = verdict_of(tmp_path, seeds=seeds, jets=300)
    light = lights_of(found)["seeds"]
    assert (light.state, light.text) == (state, words)
    assert bool(light.advice) == (state != "good")
    assert not light.advice or light.advice in found.text


def test_seeds_that_share_no_runs(tmp_path):
    make_study(tmp_path / "study", SMALL_GRID[:8], seeds=(1,), settings={"seeds": [1, 2]}, jets=300)
    found = analyse(make_study(tmp_path / "study", SMALL_GRID[8:], seeds=(2,), teacher=False, jets=300)).verdict
    light = lights_of(found)["seeds"]
    assert (light.state, light.text.split(":")[0]) == ("poor", "too few runs share seeds")


@pytest.mark.parametrize(("spread", "state"), [(0.0, "poor"), (1.6, "good")])
def test_test_jets(tmp_path, spread, state):
    """Whether they resolve differences as large as the spread of all runs."""
    whole = analyse(
        make_study(tmp_path / "study", SMALL_GRID, strength=lambda c: 1.25 + spread * (c.alpha_init if c else 0))
    )
    light = lights_of(whole.verdict)["test jets"]
    d = whole.distribution
    assert light.state == state
    assert (d.auc_paired_error <= d.auc.std / 3) == (state == "good")
    known, std = f"{d.auc_paired_error:.4f}", f"{d.auc.std:.4f}"
    assert light.text == f"900 test jets resolve the difference of two runs to ± {known}; the spread of all is {std}"
    assert ("test on more jets" in whole.verdict.text) == (state == "poor")


# ---- convergence


def of_epochs(folder, best_epoch, epochs=6, **options):
    """Runs of six epochs, of as many that were asked for."""
    options |= {"best_epoch": best_epoch, "settings": {"recipe": {"epochs": epochs}}}
    return analyse(make_study(folder / "study", SMALL_GRID, jets=300, **options))


@pytest.mark.parametrize(
    ("last", "state", "advised"), [(0, "good", False), (1, "good", False), (4, "fair", True), (8, "poor", True)]
)
def test_late_runs_are_counted(tmp_path, last, state, advised):
    """The best epoch of the first `last` configurations is the last of six."""
    late = [config.name for config in SMALL_GRID[:last]]
    whole = of_epochs(tmp_path, lambda config, seed: 5 if config is not None and config.name in late else 4)
    c = whole.convergence
    assert (c.runs, c.late, c.stopped) == (16, last, 0)
    by_strategy = {s: sum(config.strategy == s for config in SMALL_GRID[:last]) for s in c.groups}
    assert c.groups == {s: (number, 4) for s, number in by_strategy.items()}
    light = lights_of(whole.verdict)["convergence"]
    assert (light.state, light.text) == (state, f"{last} of 16 runs peak in the last tenth of their epochs")
    assert (f"train longer ({last} of 16 runs" in whole.verdict.text) == advised
    (said,) = (finding for finding in whole.findings if finding.topic == "convergence")
    assert (said.supported, said.numbers["late"]) == (not advised, last)
    assert ("training had converged" in said.text) == (not advised)


@pytest.mark.parametrize(("best", "late"), [(53, 0), (54, 16)])
def test_the_last_tenth(tmp_path, best, late):
    """Of 60 epochs that were asked for, the last six: the 55th (from 1) is among them, the 54th is not."""
    whole = of_epochs(tmp_path, lambda config, seed: best, epochs=60)
    assert (whole.convergence.late, whole.convergence.stopped) == (late, 16)


def test_patience_is_no_lateness(tmp_path):
    """A run that ended early was best in its fourth epoch of six, of 60 that it could have had."""
    whole = of_epochs(tmp_path, lambda config, seed: 5, epochs=60)
    assert (whole.convergence.late, whole.convergence.stopped) == (0, 16)
    (said,) = (finding for finding in whole.findings if finding.topic == "convergence")
    assert "patience ended 16" in said.text


def test_the_slope_at_the_end(tmp_path):
    """Of the validation AUC over the last quarter of the epochs, three at least: mean over runs, with its error."""
    store = make_study(tmp_path / "study", SMALL_GRID[:4], jets=300, settings={"recipe": {"epochs": 16}})
    slopes = [0.001, 0.002, 0.003, 0.006]
    results = {r.name: r for r in store.results()}
    flat = np.full(12, 0.7)
    curves = {c.name: np.r_[flat, 0.7 + slope * np.arange(4)] for c, slope in zip(SMALL_GRID, slopes, strict=False)}
    copy = make_study(tmp_path / "other", [], teacher=False, baseline_seeds=(), jets=300)
    for name, curve in curves.items():
        result = results[name]
        copy.write(
            type(result)(
                result.kind,
                name,
                result.seed,
                result.config,
                metrics={**result.metrics, "epochs": 16, "best_epoch": 15},
                curves={"auc_val": curve.tolist()},
                arrays=dict(result.arrays),
            )
        )
    slope = analyse(copy).convergence.slope
    assert slope.value == pytest.approx(np.mean(slopes))
    assert slope.error == pytest.approx(np.std(slopes, ddof=1) / 2)


def test_no_epochs_are_known(tmp_path):
    (tmp_path / "runs.csv").write_text("run_name,auc_student,bkg_rej_50\nbaseline_T3.0_A0.5,0.8,8.0\n")
    whole = analyse(imported(tmp_path))
    assert whole.convergence is None
    assert lights_of(whole.verdict)["convergence"].state == "unknown"


# ---- leaders with further seeds


CONFIGS = grid(temperature=[3.0, 7.0], alpha=[0.3, 0.9], temperature_final=[1.0])
LEADERS = [CONFIGS[1], CONFIGS[5]]


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """Eight configurations with seeds 1 and 2; two of them, and the baseline, also with 3 to 5, luckier by far:
    as after a refinement."""
    folder = tmp_path_factory.mktemp("refined")
    sweep = make_study(folder / "sweep", CONFIGS, seeds=(1, 2), strength=lambda c: 1.25 if c is None else 1.3)
    before = analyse(sweep)
    make_study(folder / "study", CONFIGS, seeds=(1, 2), strength=lambda c: 1.25 if c is None else 1.3)
    strength = {None: 1.6, LEADERS[0]: 2.4, LEADERS[1]: 2.2}
    store = make_study(folder / "study", LEADERS, seeds=(3, 4, 5), teacher=False, strength=strength.get)
    return store, before, analyse(store)


def test_leaders_are_judged_by_the_further_seeds_alone(refined):
    store, _, whole = refined
    refinement = whole.refinement
    assert refinement.seeds == [3, 4, 5]
    assert [row.run_name for row in refinement.configurations] == [config.name for config in LEADERS]

    def over_further(name, metric):
        return np.mean([r.metrics[metric] for r in store.results() if r.name == name and r.seed in (3, 4, 5)])

    for row in refinement.configurations:
        assert row.runs == 3
        assert row.auc.value == pytest.approx(over_further(row.run_name, "auc"))
        assert row.rejection.value == pytest.approx(over_further(row.run_name, "bkg_rej_50"))
        gain = row.auc_vs_baseline
        assert gain.difference.value == pytest.approx(row.auc.value - over_further("baseline", "auc"))
        assert gain.supported
    mean = refinement.mean_vs_baseline["auc"].difference.value
    assert mean == pytest.approx(np.mean([row.auc_vs_baseline.difference.value for row in refinement.configurations]))
    names = [config.name for config in LEADERS]
    by_validation = {name: over_further(name, "auc_val") for name in names}
    winner = next(w for w in refinement.winners if w.goal == "auc")
    assert winner.configuration == max(names, key=by_validation.get)


def test_all_else_rests_on_the_sweep_s_own_seeds(refined):
    """As if the further seeds had never been trained; but each of two looks at the data has half of the level."""
    _, before, whole = refined
    for name in ("groups", "grid", "pairs", "top_quartile", "strategies", "variance_shares", "models", "distribution"):
        now, then = getattr(whole, name), getattr(before, name)
        if name == "groups":
            now, then = ([(g.label, g.auc, g.rejection) for t in tables for g in t.groups] for tables in (now, then))
        assert now == then, name
    assert [row.run_name for row in whole.configurations] == [row.run_name for row in before.configurations]
    for now, then in zip(whole.configurations, before.configurations, strict=True):
        assert (now.auc, now.rejection, now.runs, now.auc_std) == (then.auc, then.rejection, 2, then.auc_std)
        for metric in ("auc_vs_baseline", "rejection_vs_baseline"):
            one, other = getattr(now, metric), getattr(then, metric)
            assert (one.difference.value, one.p_value) == (other.difference.value, other.p_value)
            assert one.p_adjusted >= other.p_adjusted
            assert one.difference.low <= other.difference.low
    assert [w.configuration for w in whole.winners] == [w.configuration for w in before.winners]
    assert [c.comparison.difference.value for c in whole.planned] == [
        c.comparison.difference.value for c in before.planned
    ]


def test_a_refined_study_says_what_judges(refined):
    _, _, whole = refined
    text = report_texts(whole)["ANALYSIS_SUMMARY.txt"]
    summary = in_one_line(text)
    best = whole.refinement.configurations[0]
    assert "Refined leaders: chosen and judged by seeds 3, 4, 5, which did not select them." in summary
    assert f"*** BEST OVERALL AUC: {best.auc.value:.4f} ***" in text
    assert f"Files: results/student.{best.run_name}.seed{{3,4,5}}" in text
    assert summary.count("least-squares") == 0
    assert whole.verdict.text in summary


def test_the_seeds_of_leaders_are_the_further_ones(refined):
    light = lights_of(refined[2].verdict)["seeds"]
    assert (light.state, light.text) == ("fair", "the leaders are judged by 3 further seeds")


def test_statements_on_leaders_and_on_the_sweep(refined):
    _, _, whole = refined
    refined_ones = [finding for finding in whole.findings if finding.topic == "refined"]
    assert {(f.numbers["one"], f.numbers["metric"]) for f in refined_ones} == {
        (f"With 3 further seeds, {config.name}", metric) for config in LEADERS for metric in ("auc", "rejection")
    }
    for finding in refined_ones:
        assert finding.text.startswith("With 3 further seeds, ")
    assert whole.verdict.text.startswith("2 of 2 refined leaders beat training without a teacher.")
    rows = {row.label: row.comparison for row in whole.verdict.rows}
    assert rows[f"chosen: {shown(whole.refinement.winners[0].configuration)}"] in [
        row.auc_vs_baseline for row in whole.refinement.configurations
    ]
    assert rows["mean of 8, 2 seeds"] == whole.mean_vs_baseline["auc"]  # of the sweep
    assert "With 2 seeds, the 8 configurations average AUC " in whole.verdict.text


def test_seeds_of_the_settings_are_no_refinement(tmp_path):
    """An unfinished sweep: some configurations do not have their last seed yet."""
    make_study(tmp_path / "study", CONFIGS, seeds=(1, 2), jets=300, settings={"seeds": [1, 2, 3]})
    whole = analyse(make_study(tmp_path / "study", LEADERS, seeds=(3,), jets=300, teacher=False))
    assert whole.refinement is None
    assert sorted({row.runs for row in whole.configurations}) == [2, 3]


def test_more_seeds_of_all_configurations_are_no_refinement(tmp_path):
    make_study(tmp_path / "study", CONFIGS, seeds=(1,), jets=300)
    whole = analyse(make_study(tmp_path / "study", CONFIGS, seeds=(2,), jets=300, teacher=False))
    assert whole.refinement is None
    assert {row.runs for row in whole.configurations} == {2}


def test_a_leader_with_one_further_seed(tmp_path):
    """Trained networks are compared; nothing fails for want of more."""
    make_study(tmp_path / "study", CONFIGS, seeds=(1, 2), jets=300)
    whole, texts = reported(make_study(tmp_path / "study", [RunConfig(3.0, 0.9)], seeds=(3,), jets=300, teacher=False))
    assert whole.refinement.seeds == [3]
    (row,) = whole.refinement.configurations
    assert row.auc.error_runs is None
    assert texts
