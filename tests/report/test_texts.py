"""The plain texts: all sections, and the numbers of the report's object."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.metrics import evaluate
from kdfast.report.page import page as page_of
from kdfast.report.schema import Claim
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.store import StoredResult, StudyStore
from kdfast.study.imports import import_study
from tests.report.fake_study import PROVENANCE, SETTINGS, make_study
from tests.report.reported import in_one_line, reported, section, small

# What readers of the study's summary look for, in its order.
HEADINGS = [
    "EXECUTIVE SUMMARY",
    "KEY METRICS:",
    "PERFORMANCE RANGES:",
    "TOP RESULTS - WINNERS",
    "*** BEST OVERALL AUC: ",
    "*** BEST BACKGROUND REJECTION: ",
    "*** BEST BALANCED",
    "HYPERPARAMETER EFFECTS",
    "1. TEMPERATURE INITIALIZATION",
    "Performance by Temp",
    "2. ALPHA INITIALIZATION",
    "Performance by Alpha:",
    "Key Finding:",
    "3. SCHEDULING STRATEGIES",
    "Strategy Comparison:",
    "Consistency (Higher = Better):",
    "SCHEDULING STRATEGY ANALYSIS",
    "TEMPERATURE ANNEALING RANGES (Best to Worst",
    "ALPHA SCHEDULING RANGES (Best to Worst",
    "Key Insight:",
    "CONFIGURATION RECOMMENDATIONS",
    "SCENARIO 1: YOU WANT MAXIMUM PERFORMANCE",
    "SCENARIO 2: YOU WANT MAXIMUM BACKGROUND REJECTION",
    "SCENARIO 3: YOU WANT SIMPLICITY AND RELIABILITY",
    "SCENARIO 4: YOU WANT CONSISTENT/PREDICTABLE RESULTS",
    "KEY INSIGHTS AND DISCOVERIES",
    "STATISTICAL SUMMARY",
    "PERFORMANCE DISTRIBUTION:",
    "TOP QUARTILE CHARACTERISTICS (Top 33 experiments",
    "EXPERIMENT TYPE DISTRIBUTION:",
    "PRACTICAL RECOMMENDATIONS",
    "FOR RESEARCH/EXPERIMENTATION:",
    "FOR PRODUCTION/DEPLOYMENT:",
    "FOR FUTURE HYPERPARAMETER SEARCHES:",
    "FILES GENERATED",
    "END OF ANALYSIS",
]


SECTIONS = {
    "results_summary.txt": [
        "TOP 10 CONFIGURATIONS BY AUC",
        "TOP 10 CONFIGURATIONS BY BACKGROUND REJECTION AT 50 %",
        "TOP 10 CONFIGURATIONS BY COMBINED SCORE",
        "GRID T_init × α_init: MEAN AUC",
        "GRID T_init × α_init: MEAN REJECTION AT 50 %",
    ],
    "hyperparameter_analysis.txt": [
        "BY INITIAL TEMPERATURE",
        "BY INITIAL ALPHA",
        "BY STRATEGY",
        "TEMPERATURE × ALPHA: MEAN AUC",
        "TEMPERATURE × ALPHA: MEAN REJECTION",
        "BEST (T_init, α_init) PAIRS",
        "CORRELATIONS",
        "LINEAR MODEL",
        "SHARES OF THE VARIANCE",
        "VARIANCES",
        "RANGES",
        "AGREEMENT BETWEEN SEEDS",
    ],
    "detailed_comparison.txt": [
        "STRATEGIES HEAD TO HEAD",
        "BY ANNEALING RANGE (BEST TO WORST BY MEAN AUC)",
        "BY ALPHA RANGE (BEST TO WORST BY MEAN AUC)",
        "IMPROVEMENT OVER CONSTANT T AND α",
        "IMPROVEMENT OVER THE BASELINE WITHOUT A TEACHER",
        "TOP 30 BY AUC ON THE TEST JETS",
        "CONSISTENCY",
        "DECISION MATRIX",
        "BY JET pT",
        "MASS OF THE BACKGROUND THAT PASSES",
        "CALIBRATION OF THE SCORES",
    ],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study's 132 configurations."""
    return make_study(tmp_path_factory.mktemp("studies") / "study")


@pytest.fixture(scope="module")
def written(study):
    """The object and its texts."""
    return reported(study)


def test_every_section_of_the_study_is_there_in_its_order(written):
    text, place = written[1]["ANALYSIS_SUMMARY.txt"], 0
    for heading in HEADINGS:
        found = text.find(heading, place)
        assert found >= 0, heading
        place = found


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_has_content(written, name):
    text = written[1][name]
    for heading in SECTIONS[name]:
        assert len(section(text, heading).splitlines()) >= 1, heading


def test_no_line_is_too_long_and_nothing_is_missing(written):
    for name, text in written[1].items():
        assert not re.search(r"\bnan\b|\binf\b|None|\{", text.replace("seed{", "")), name
        assert max(map(len, text.splitlines())) <= 125, name


def test_texts_show_the_numbers_of_the_object(written):
    whole, texts = written
    top = section(texts["results_summary.txt"], "TOP 10 CONFIGURATIONS BY AUC").splitlines()[2:12]
    ordered = sorted(whole.configurations, key=lambda row: -row.auc_validation)
    for line, row in zip(top, ordered, strict=False):
        assert row.run_name in line
        assert f"{row.auc.value:.4f} ± {row.auc.error:.4f}" in line
    by_alpha = next(table for table in whole.groups if table.setting == "alpha_init")
    lines = section(texts["hyperparameter_analysis.txt"], "BY INITIAL ALPHA").splitlines()
    for line, group in zip(lines[2:6], by_alpha.groups, strict=True):
        shown = [group.auc.mean, group.auc.std, group.auc.max]
        assert line.split() == [
            group.label,
            str(group.runs),
            *(f"{value:.4f}" for value in shown),
            *(f"{value:.2f}" for value in (group.rejection.mean, group.rejection.std, group.rejection.max)),
        ]
    for finding in whole.findings:  # each sentence is somewhere
        words = in_one_line(" ".join(texts.values()))
        assert finding.text in words, finding.topic


def test_one_seed_compares_networks(written):
    whole, texts = written
    assert "With one seed the numbers compare trained networks" in in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    assert "kdfast refine" in texts["ANALYSIS_SUMMARY.txt"]
    assert any(item.what == "variance between seeds" for item in whole.missing)
    assert all(row.auc.error_runs is None for row in whole.configurations)
    assert whole.distribution.auc_seed_std is None


@pytest.mark.parametrize("beaten", [True, False])
def test_whether_the_chosen_one_is_in_the_best_set(tmp_path, beaten):
    """Validation may choose a configuration that others beat on the test jets."""
    configs = grid(temperature=[3.0], alpha=[0.3, 0.5, 0.7, 0.9])
    store = make_study(tmp_path / "s", configs)
    name = configs[0 if beaten else -1].name
    jets, known = store.shared("test"), store.get(RunKey("student", name, 42))
    scores = known.arrays["scores_test"] - np.float32(0.8 * beaten) * jets["labels"]
    metrics = known.metrics | evaluate(jets["labels"], scores, jets["weights"]) | {"auc_val": 0.999}
    arrays = {**known.arrays, "scores_test": scores}
    again = replace(known, metrics=metrics, arrays=arrays, state=dict(known.state), card=dict(known.card))
    shutil.rmtree(store.path / "results" / known.key.folder)  # what is stored is never changed
    store.write(again)
    whole, texts = reported(store)
    winner = whole.winners[0]
    assert (winner.wish, winner.configuration, winner.beside_best) == ("auc", name, 3)
    text = in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    scenario = text[text.index("SCENARIO 1") : text.index("SCENARIO 2")]
    if beaten:
        assert "Statistically indistinguishable from the best: 3 of 4, the chosen one not among them" in text
        note = "Note: on the test jets others beat it: it is not among the 3 that are statistically indistinguishable"
        assert "others are statistically" not in scenario
    else:
        assert "Statistically indistinguishable from the best: 3 of 4 " in text
        assert "the chosen one not among them" not in text[text.index("BEST OVERALL") : text.index("BEST BACKGROUND")]
        note = "Note: 2 others are statistically indistinguishable from the best, so cost and simplicity may decide"
    assert note in scenario
    assert note in text[text.index("PRACTICAL RECOMMENDATIONS") :]


def test_several_seeds(tmp_path):
    whole, texts = reported(small(tmp_path / "s", seeds=(1, 2, 3)))
    assert whole.study.seeds == [1, 2, 3]
    assert whole.distribution.seed_df == (4 - 1) * (3 - 1)
    assert all(row.runs == 3 and row.auc.error_runs is not None for row in whole.configurations)
    assert len(whole.rank_agreement) == 3
    assert "one seed" not in texts["ANALYSIS_SUMMARY.txt"]


def uneven(path):
    """Two configurations, one of them with a third seed: as after `kdfast refine`."""
    make_study(path, [RunConfig(3.0, 0.9), RunConfig(7.0, 0.5)], seeds=(0, 1), jets=300)
    return make_study(path, [RunConfig(3.0, 0.9)], seeds=(2,), jets=300, teacher=False)


def test_one_network_is_named_with_its_seed(tmp_path):
    """A winner is a mean over seeds; the best student, which tables of single networks show, is another one here."""
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.9), RunConfig(7.0, 0.5)], seeds=(0, 1), jets=2000)
    whole, texts = reported(store)
    _, baseline, student = whole.networks
    who = f"{student.run_name}, seed {student.seed}"
    summary = in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    assert f"({who}: highest AUC on the validation jets)" in summary
    assert f"A winner's numbers are means over its seeds; the best single network ({who})" in summary
    for topic in ("pt", "mass", "calibration"):
        said = [finding.text for finding in whole.findings if finding.topic == topic]
        assert any(f"he best student ({who})" in text for text in said), topic
        assert any(f"he baseline (seed {baseline.seed})" in text for text in said), topic
    tables = texts["detailed_comparison.txt"]
    for heading in ("BY JET pT", "MASS OF THE BACKGROUND THAT PASSES", "CALIBRATION OF THE SCORES"):
        assert f"  baseline: seed {baseline.seed}; student: {who}.\n" in section(tables, heading)


def test_one_run_is_told_in_the_singular(tmp_path):
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.9)], seeds=(1,), jets=300)
    whole, texts = reported(store)
    told = in_one_line(" ".join([*texts.values(), re.sub("<[^>]*>", "", page_of(whole, []))]))
    assert re.findall(r"(?<![\d.,])1 (?:[a-z]+ )?(?:run|experiment|configuration|network|one|seed)s\b", told) == []
    assert "all 1 " not in told
    assert "1 configuration, 1 run done" in told
    assert "winner's curse" not in told
    assert "baseline_T3.0_A0.9 and the baseline without a teacher" in told


def test_networks_that_score_alike_are_not_compared_by_rounding(tmp_path):
    """Nothing tells the students from the baseline: no interval, no p-value, no excess of the highest; nor is anything
    certain of a dozen jets."""
    store = small(tmp_path / "s", seeds=(1, 2), jets=12)
    baselines = [store.get(RunKey.of(None, seed)) for seed in (1, 2)]
    other = StudyStore.create_or_open(tmp_path / "alike", SETTINGS, PROVENANCE)
    for split in ("validation", "test"):
        other.write_shared(split, store.shared(split))
    for result in baselines:
        other.write(result)
        for config in (RunConfig(3.0, 0.5), RunConfig(5.0, 0.5)):
            other.write(replace(result, kind="student", name=config.name, config=config))
    whole, texts = reported(other)
    compared = [c for row in whole.configurations for c in (row.auc_vs_baseline, row.rejection_vs_baseline) if c]
    compared += [*whole.mean_vs_baseline.values(), *(two.difference for two in whole.top_two)]
    assert len(compared) >= 4
    for comparison in compared:
        assert comparison.difference.value == comparison.difference.error == 0.0
        assert comparison.p_value == 1.0
    told = in_one_line(" ".join(texts.values()))
    assert Claim.EQUAL in {finding.code for finding in whole.findings}
    assert "have the same AUC: these test jets do not distinguish them." in told
    assert "6 signal and 6 background test jets are too few" in told
    assert "-0.0000" not in told
    assert "winner's curse" not in told
    assert all((w.excess_on_test or 0.0) >= 0.0 for w in whole.winners)


def test_means_that_are_adjusted_are_called_so(tmp_path):
    whole, texts = reported(uneven(tmp_path / "uneven"))
    (lonely,) = (row for row in whole.configurations if row.runs == 2)
    runs = [run.auc.value for run in whole.runs if run.run_name == lonely.run_name]
    assert abs(lonely.auc.value - np.mean(runs)) > 1e-4
    page = page_of(whole, [])
    for name in ("ANALYSIS_SUMMARY.txt", "results_summary.txt", "detailed_comparison.txt"):
        assert "if a seed moved all alike (least-squares mean)" in in_one_line(texts[name])
    assert "if a seed moved all alike (least-squares mean)" in page
    assert "eans over each configuration" not in page
    assert "eans over its runs" not in page
    assert page.count("east-squares means over all seeds") >= 2

    whole, texts = reported(small(tmp_path / "even", seeds=(1, 2)))
    assert "least-squares" not in "".join(texts.values())
    assert "Means over each configuration" in page_of(whole, [])


def test_an_imported_baseline_of_auc_0(tmp_path):
    """It has no percentage to be better by; and no more seeds can be added to what was imported."""
    (tmp_path / "runs.csv").write_text(
        "run_name,seed,auc_student,bkg_rej_50,auc_baseline\nbaseline_T3.0_A0.5,1,0.5,9.0,0.0\n"
    )
    import_study(tmp_path / "runs.csv", tmp_path / "s")
    whole, texts = reported(StudyStore.open(tmp_path / "s"))
    assert "Improvement over baseline: +0.5000 AUC; errors unknown" in texts["ANALYSIS_SUMMARY.txt"]
    assert "refine" not in "".join(texts.values())
    (item,) = (item for item in whole.missing if item.what == "variance between seeds")
    assert item.reason.endswith("; a sweep of the leaders with several seeds would tell more")


def test_an_imported_study(tmp_path):
    """Results without scores: tables as ever, and what can't be said is named."""
    store = StudyStore.create_or_open(tmp_path / "s", SETTINGS, {"imported": {"files": [], "notes": ["a note"]}})
    rng = np.random.default_rng(3)
    for config in grid("study"):
        auc = 0.81 + 0.012 * config.alpha_init + 0.001 * rng.normal()
        metrics = {"auc": auc, "bkg_rej_50": 8.0 + config.alpha_init}
        store.write(StoredResult("student", config.name, 42, config, message="from log:3", metrics=metrics))
    store.write(StoredResult("baseline", "baseline", 42, metrics={"auc": 0.804}))  # without a rejection
    whole, texts = reported(store)
    assert whole.study.selected_on == "test"
    assert whole.configurations[0].auc.error is None
    assert whole.configurations[0].beside_best_auc is None
    reasons = " ".join(item.reason for item in whole.missing)
    assert "a note" in reasons
    assert "these need scores per jet" in reasons
    assert "AUC rises with α_init" in texts["ANALYSIS_SUMMARY.txt"]  # by the scatter of configurations
    assert whole.runs[0].auc_gain == pytest.approx(whole.runs[0].auc.value - 0.804)
    assert whole.runs[0].rejection_gain is None
    assert "look more certain than they are" in in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    assert "  - Imported from log:3" in texts["ANALYSIS_SUMMARY.txt"]
    for heading in HEADINGS:
        assert heading in texts["ANALYSIS_SUMMARY.txt"], heading
