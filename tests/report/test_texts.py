"""The plain texts: all sections, and the numbers of the report's object."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pydantic import BaseModel

from kdfast.distill.schedules import RunConfig, shown
from kdfast.metrics import evaluate
from kdfast.report.page import page as page_of
from kdfast.report.rendering import report_texts
from kdfast.report.schema.values import Claim, Comparison
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.store import StoredResult, StudyStore
from kdfast.study.imports import import_study
from tests.report.fake_study import PROVENANCE, SETTINGS, make_study
from tests.report.reported import imported, in_one_line, reported, section, small

# What readers of the study's summary look for, in its order.
HEADINGS = [
    "EXECUTIVE SUMMARY",
    "KEY METRICS (AUC; rejection 1/ε_B at 50 % signal efficiency):",
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
    "Differences against the baseline, and at equal other settings:",
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

# Absent without scores per jet: nothing is tested then.
TESTED = ["Key Finding:", "Key Insight:", "Differences against the baseline, and at equal other settings:"]


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
        "PLANNED CONTRASTS",
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


def test_the_summary_can_be_read(written):
    """Not more than 1,300 words, as `wc -w` counts them, rules between sections included."""
    assert len(written[1]["ANALYSIS_SUMMARY.txt"].split()) <= 1300


def test_one_answer_to_each_question(written):
    """At most one sentence, or that nothing is significant."""
    whole, texts = written
    text = texts["ANALYSIS_SUMMARY.txt"]
    by_topic = {}
    for finding in whole.findings:
        by_topic.setdefault(finding.topic, []).append(finding)
    answers = re.findall(r"Key (?:Finding|Insight):\n((?: +.*\n)+)", text)
    questions = ["temp_init", "alpha_init", "strategy", "temp_range", "alpha_range"]
    assert len(answers) == len(questions)
    for question, answer in zip(questions, answers, strict=True):
        said = [f for metric in ("auc", "rejection") for f in by_topic[f"{question}_{metric}"] if f.supported]
        if said:
            lines = answer.strip().split("\n")
            assert len(lines) == len(said)
            for line, f in zip(lines, said, strict=True):
                names = [f.numbers["reference"], *f.numbers["lower"]] if f.code is not Claim.GROUP_BELOW_ANOTHER else []
                assert all(name in line for name in names)
                assert f"{f.numbers['value']:+.{4 if f.numbers['metric'] == 'auc' else 2}f}" in line or not names
        else:
            assert answer.strip() == "No significant difference."
    assert "No significant difference." in text


def test_the_table_of_planned_differences(written):
    """Each with its error, and whether it is established by the tests of all of the report."""
    whole, texts = written
    lines = section(texts["ANALYSIS_SUMMARY.txt"], "KEY INSIGHTS AND DISCOVERIES").splitlines()
    first = next(i for i, line in enumerate(lines) if line.split() == ["AUC", "difference", "established"])
    shown = {re.split(r"  +", line.strip())[0]: re.split(r"  +", line.strip())[1:] for line in lines[first + 2 :]}
    planned = {f"{c.one} - {c.other}": c.comparison for c in whole.planned if c.metric == "auc"}
    against = {f"{row.label.split(':')[0]} - baseline": row.comparison for row in whole.verdict.rows}
    assert set(shown) == set(planned | against)
    assert {"mean of all 132 - baseline", "chosen - baseline", "high α_init - low α_init"} <= set(shown)
    for label, compared in (planned | against).items():
        value = f"{compared.difference.value:+.4f} ± {compared.difference.error:.4f}"
        assert shown[label] == [value, "yes" if compared.supported else "no"]


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
    words = in_one_line(" ".join(texts.values()))
    for finding in whole.findings:  # each sentence is somewhere, but for those that are rows of a table
        if not finding.topic.startswith(("planned_", "shares_")):
            assert finding.text in words, finding.topic


def test_one_seed_compares_networks(written):
    whole, texts = written
    assert "With one seed the numbers compare trained networks" in in_one_line(texts["results_summary.txt"])
    assert "One seed, one baseline network: not yet a verdict." in in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    assert "kdfast refine" in texts["ANALYSIS_SUMMARY.txt"]
    seeds = [item for item in whole.missing if item.what == "variance between seeds"]
    assert len(seeds) == 1
    again = report_texts(whole.model_copy(update={"missing": seeds}))["ANALYSIS_SUMMARY.txt"]
    assert "Nothing: every requested run is there." in again  # the seeds are named above
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
    size = 3 if beaten else 4
    assert (winner.goal, winner.configuration, winner.best_set_size) == ("auc", name, size)
    text = in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    best = text[text.index("BEST OVERALL") : text.index("BEST BACKGROUND")]
    assert f"Indistinguishable from the best: {size} of 4" in best
    assert (f"{size} of 4, not the chosen one" in best) == beaten


def test_several_seeds(tmp_path):
    whole, texts = reported(small(tmp_path / "s", seeds=(1, 2, 3)))
    assert whole.study.seeds == [1, 2, 3]
    assert whole.distribution.seed_df == (4 - 1) * (3 - 1)
    assert all(row.runs == 3 and row.auc.error_runs is not None for row in whole.configurations)
    assert (whole.rank_agreement.seeds, whole.rank_agreement.configurations) == (3, 4)
    assert "one seed" not in texts["ANALYSIS_SUMMARY.txt"]


def uneven(path):
    """Two configurations, of which one still has to be trained with the last of three seeds."""
    settings = {"seeds": [0, 1, 2]}
    make_study(path, [RunConfig(3.0, 0.9), RunConfig(7.0, 0.5)], seeds=(0, 1), jets=300, settings=settings)
    return make_study(path, [RunConfig(3.0, 0.9)], seeds=(2,), jets=300, teacher=False)


def test_one_network_is_named_with_its_seed(tmp_path):
    """A winner is a mean over seeds; the best student, which tables of single networks show, is another one here."""
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.9), RunConfig(7.0, 0.5)], seeds=(0, 1), jets=2000)
    whole, texts = reported(store)
    _, baseline, student = whole.networks
    who = f"{shown(student.run_name)}, seed {student.seed}"
    results = in_one_line(texts["results_summary.txt"])
    assert f"({who})" in results
    assert "Student above: the single network with the highest validation AUC" in results
    assert f"Best single student: AUC {student.auc.value:.4f} ± " in texts["ANALYSIS_SUMMARY.txt"]
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
    assert "1 configuration × 1 seed" in told
    assert "winner's curse" not in told
    assert "constant_T3.0_A0.9 and the baseline without a teacher" in told


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
    assert whole.refinement is None  # the seeds are the sweep's own
    for name in ("results_summary.txt", "detailed_comparison.txt"):
        assert "if a seed moved all alike (least-squares mean)" in in_one_line(texts[name])
    assert "numbers are least-squares means" in in_one_line(texts["ANALYSIS_SUMMARY.txt"])
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
    assert "Difference from baseline: +0.5000 AUC; errors unknown" in texts["ANALYSIS_SUMMARY.txt"]
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
    assert whole.configurations[0].in_best_set_auc is None
    reasons = " ".join(item.reason for item in whole.missing)
    assert "a note" in reasons
    assert "these need scores per jet" in reasons
    assert whole.runs[0].auc_gain == pytest.approx(whole.runs[0].auc.value - 0.804)
    assert whole.runs[0].rejection_gain is None
    summary = in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    assert "No established trend (r = +0." in summary
    assert "Without scores per jet no difference can be established." in summary
    assert "  - Imported from log:3" in texts["ANALYSIS_SUMMARY.txt"]
    for heading in HEADINGS:
        assert (heading in texts["ANALYSIS_SUMMARY.txt"]) == (heading not in TESTED), heading


def comparisons_in(value):
    """Every comparison of a report, wherever it is."""
    if isinstance(value, Comparison):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from comparisons_in(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from comparisons_in(item)
    elif isinstance(value, dict):
        yield from comparisons_in(list(value.values()))


def test_without_scores_nothing_has_a_direction(tmp_path):
    """However clear it looks: four runs on a line are no p = 0, and nothing is said of any two."""
    rows = [f"baseline_T{t}_A{a},{0.8 + 0.1 * a:.4f},{8 + a:.2f},0.7" for t in (3.0, 7.0) for a in (0.3, 0.9)]
    (tmp_path / "runs.csv").write_text("\n".join(["run_name,auc_student,bkg_rej_50,auc_baseline", *rows]) + "\n")
    whole, texts = reported(imported(tmp_path))
    compared = list(comparisons_in(whole))
    assert all((c.p_value, c.p_adjusted, c.supported) == (None, None, False) for c in compared)
    assert all((c.difference.low, c.difference.high) == (None, None) for c in compared)
    assert [finding.code for finding in whole.findings] == [Claim.NO_SCORES]
    assert whole.rank_agreement is None
    told = in_one_line(" ".join(texts.values()))
    assert not re.search(r"\b(rises|falls|beats?|is higher|is lower|has a (higher|lower|larger)|p = 0)\b", told)
    assert "These results have no scores per jet" in whole.verdict.text
    assert whole.verdict.text in told
