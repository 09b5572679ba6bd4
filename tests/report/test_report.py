"""The files that a study's report consists of: all sections, right numbers, no claim that no test supports."""

import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdfast import report
from kdfast.cli import main
from kdfast.distill.schedules import RunConfig
from kdfast.errors import StudyError
from kdfast.metrics import background_rejection, evaluate
from kdfast.report import analysis as analysis_module
from kdfast.report.analysis import analyse
from kdfast.report.figures import ORDER
from kdfast.report.page import page as page_of
from kdfast.report.schema import Analysis
from kdfast.report.texts import report_texts
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.verify import verify
from kdfast.study.imports import import_study
from kdfast.study.results import open_study
from tests.report.fake_study import PROVENANCE, SETTINGS, make_study

TEXTS = ("results_summary.txt", "hyperparameter_analysis.txt", "detailed_comparison.txt", "ANALYSIS_SUMMARY.txt")

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
def paths(study):
    return report.write(study)


def small(path, **options):
    return make_study(path, grid(temperature=[3.0, 7.0], alpha=[0.5], temperature_final=[1.0]), **options)


def section(text, title):
    """The lines below a heading."""
    match = re.search(rf"=+\n{re.escape(title)}\n=+\n\n((?:.*\n)*?)(?=={{50}}|\Z)", text)
    assert match, title
    return match[1].rstrip()


def read(paths):
    return {name: paths[name].read_text() for name in TEXTS}


def analysis(paths):
    return Analysis.model_validate_json(paths["report.json"].read_bytes())


def reported(store):
    """The object and the texts, without figures."""
    whole = analyse(StudyStore.open(store.path))
    return whole, report_texts(whole)


def in_one_line(text):
    return re.sub(r"\s+", " ", text)


def test_files(study, paths):
    assert {name: path.relative_to(study.path).as_posix() for name, path in paths.items()} == {
        "report.json": "report.json",
        "results_summary.csv": "results_summary.csv",
        **{name: name for name in TEXTS},
        "models/teacher.safetensors": "models/teacher.safetensors",
        "models/baseline.safetensors": "models/baseline.safetensors",
        "models/best_student.safetensors": "models/best_student.safetensors",
        "report.html": "report.html",
        **{path: path for name in ORDER for path in (f"figures/{name}.pdf", f"figures/{name}.png")},
    }
    best = open_study(study.path).best("auc")
    assert paths["models/best_student.safetensors"].read_bytes() == study.model_file(
        study.get(RunKey("student", best["run_name"], 42))
    )
    assert paths["models/teacher.safetensors"].read_bytes() == study.model_file(study.get(RunKey.teacher(42)))
    table = pd.read_csv(paths["results_summary.csv"])
    assert len(table) == 132
    assert (table["status"] == "done").all()


def test_rebuilding_gives_the_same_files(study, paths):
    before = {path: path.read_bytes() for path in paths.values()}
    for path in before:
        path.unlink()
    again = report.write(StudyStore.open(study.path))
    assert {path: path.read_bytes() for path in again.values()} == before


def test_of_two_reports_at_once_one_waits(tmp_path, monkeypatch):
    """Else their files could be mixed, and not be what report.sha256 says."""
    store, going, second = small(tmp_path / "study"), [], threading.Thread()
    write = report._write

    def slow(folder, contents):
        nonlocal second
        going.append("in")
        if not second.ident:
            second = threading.Thread(target=report.write, args=(store,))
            second.start()
            second.join(0.5)
        written = write(folder, contents)
        going.append("out")
        return written

    monkeypatch.setattr(report, "_write", slow)
    report.write(store)
    second.join()
    assert going == ["in", "out", "in", "out"]
    assert verify(store.path).intact


def test_a_result_that_comes_meanwhile_is_in_no_part_of_the_report(tmp_path, monkeypatch):
    """Workers may be at the study."""
    store = small(tmp_path / "study")
    one = next(result for result in store.results() if result.kind == "student")
    late = replace(one, seed=99, arrays=dict(one.arrays), state=dict(one.state))
    genuine = analysis_module.analyse

    def analyse(*arguments):
        found = genuine(*arguments)
        store.write(late)
        return found

    monkeypatch.setattr(analysis_module, "analyse", analyse)
    paths = report.write(store)
    analysis = Analysis.model_validate_json(paths["report.json"].read_bytes())
    rows = pd.read_csv(paths["results_summary.csv"])
    told = {(run.run_name, run.seed) for run in analysis.runs}
    assert set(zip(rows["run_name"], rows["seed"], strict=True)) == told
    assert 99 not in set(rows["seed"])


def test_every_section_of_the_study_is_there_in_its_order(paths):
    text, place = read(paths)["ANALYSIS_SUMMARY.txt"], 0
    for heading in HEADINGS:
        found = text.find(heading, place)
        assert found >= 0, heading
        place = found


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_has_content(paths, name):
    text = read(paths)[name]
    for heading in SECTIONS[name]:
        assert len(section(text, heading).splitlines()) >= 1, heading


def test_no_line_is_too_long_and_nothing_is_missing(paths):
    for name, text in read(paths).items():
        assert not re.search(r"\bnan\b|\binf\b|None|\{", text.replace("seed{", "")), name
        assert max(map(len, text.splitlines())) <= 125, name


def test_texts_show_the_numbers_of_the_object(paths):
    texts, whole = read(paths), analysis(paths)
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


def test_only_supported_sentences_claim(paths):
    for finding in analysis(paths).findings:
        claims = re.search(r"has a (higher|lower)|rises with|falls with|recovers", finding.text)
        if claims:
            assert finding.supported, finding.text
        if finding.text.startswith("No difference"):
            assert not finding.supported, finding.text
    text = " ".join(read(paths).values())
    assert not re.search(r"significan(t|tly)|outperform|dramatic|surpris", text, re.IGNORECASE)


def test_one_seed_compares_networks(paths):
    texts, whole = read(paths), analysis(paths)
    assert "With one seed the numbers compare trained networks" in texts["ANALYSIS_SUMMARY.txt"]
    assert "kdfast refine" in texts["ANALYSIS_SUMMARY.txt"]
    assert any(lack.what == "variance between seeds" for lack in whole.missing)
    assert all(row.auc.error_runs is None for row in whole.configurations)
    assert whole.distribution.auc_seed_std is None


@pytest.mark.parametrize("beaten", [True, False])
def test_whether_the_chosen_one_is_beside_the_best(tmp_path, beaten):
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
        assert "Not told from the best: 3 of 4, the chosen one not among them" in text
        note = "Note: on the test jets others beat it: it is not among the 3 that can't be told from the best"
        assert "others can't be told" not in scenario
    else:
        assert "Not told from the best: 3 of 4 " in text
        assert "the chosen one not among them" not in text[text.index("BEST OVERALL") : text.index("BEST BACKGROUND")]
        note = "Note: 2 others can't be told from the best, so cost and simplicity may decide"
    assert note in scenario
    assert note in text[text.index("PRACTICAL RECOMMENDATIONS") :]


def test_several_seeds(tmp_path):
    whole, texts = reported(small(tmp_path / "s", seeds=(1, 2, 3)))
    assert whole.study.seeds == [1, 2, 3]
    assert whole.distribution.seed_df == (4 - 1) * (3 - 1)
    assert all(row.runs == 3 and row.auc.error_runs is not None for row in whole.configurations)
    assert len(whole.rank_agreement) == 3
    assert "one seed" not in texts["ANALYSIS_SUMMARY.txt"]


def test_another_folder(tmp_path):
    store = small(tmp_path / "s")
    paths = open_study(store.path).report(tmp_path / "elsewhere" / "report")
    assert all(path.is_relative_to(tmp_path / "elsewhere") and path.exists() for path in paths.values())
    assert not (store.path / "report.json").exists()
    assert main(["report", str(store.path), "--out", str(tmp_path / "third"), "--quiet"]) == 0
    assert (tmp_path / "third" / "ANALYSIS_SUMMARY.txt").read_text() == read(paths)["ANALYSIS_SUMMARY.txt"]


# ---- what is missing or unusable


def test_diverged_runs_are_listed_without_numbers(tmp_path):
    paths = report.write(small(tmp_path / "s", diverged=("baseline_T7.0_A0.5",)))
    for text in read(paths).values():
        assert "baseline_T7.0_A0.5, seed 42: diverged (the loss is NaN in epoch 2)" in text
    row = pd.read_csv(paths["results_summary.csv"]).set_index("run_name").loc["baseline_T7.0_A0.5"]
    assert row["status"] == "diverged"
    assert row[["auc_student", "bkg_rej_50", "n_bkg_50", "auc_val", "best_epoch"]].isna().all()
    assert analysis(paths).study.counts == {"done": 3, "diverged": 1, "missing": 132 - 4}
    assert "Total Experiments: 3 done of 132" in read(paths)["ANALYSIS_SUMMARY.txt"]


def test_a_half_finished_study(tmp_path):
    whole, texts = reported(small(tmp_path / "s"))  # whose settings ask for 132
    (lack,) = [lack for lack in whole.missing if "that the settings ask for" in lack.what]
    assert lack.what.startswith("128 runs")
    assert "not trained yet: baseline_T3.0_A0.3 (seed 42)" in lack.reason
    assert "and 123 more (`kdfast status --json` names them)" in lack.reason
    summary = in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    assert "128 of 132 runs have no result (see WHAT IS MISSING, AND WHY)." in summary


def test_the_command_counts_what_the_settings_ask_for(tmp_path, capsys):
    store = small(tmp_path / "s", diverged=("baseline_T7.0_A0.5",))
    assert main(["report", str(store.path)]) == 0
    assert capsys.readouterr().out.startswith("3 of 132 students are done\n")
    assert main(["status", str(store.path)]) == 1
    assert "134 runs, 128 missing, 5 done, 1 diverged" in capsys.readouterr().out  # with teacher and baseline


def test_all_diverged(tmp_path):
    names = tuple(c.name for c in grid(temperature=[3.0, 7.0], alpha=[0.5], temperature_final=[1.0]))
    paths = report.write(small(tmp_path / "s", diverged=names))
    assert "models/best_student.safetensors" not in paths
    assert "No student has finished yet" in read(paths)["ANALYSIS_SUMMARY.txt"]


def test_nothing_trained_yet(tmp_path):
    store = StudyStore.create_or_open(tmp_path / "s", SETTINGS, PROVENANCE)
    paths = report.write(store)
    assert list(paths) == ["report.json", "results_summary.csv", *TEXTS, "report.html"]
    assert "134 runs that the settings ask for" in paths["results_summary.txt"].read_text()
    assert len(open_study(store.path).results) == 0


def test_one_run_without_teacher(tmp_path):
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.5)], teacher=False)
    paths = report.write(store)
    assert "models/teacher.safetensors" not in paths
    text = paths["results_summary.txt"].read_text()
    assert "the teacher: no finished one is stored" in text
    assert analysis(paths).configurations[0].gap_recovered_auc is None


def test_without_kinematics(tmp_path):
    whole, _ = reported(small(tmp_path / "s", kinematics=False))
    assert not whole.by_pt
    assert not whole.mass_sculpting
    assert whole.calibration
    assert any("does not hold pT and mass" in lack.reason for lack in whole.missing)


def test_lower_limits_are_marked(tmp_path):
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.5)], jets=40)
    result = store.get(RunKey("student", "baseline_T3.0_A0.5", 42))
    labels = store.shared("test")["labels"]
    perfect = labels * 2.0 + np.arange(40) / 100
    rejection = background_rejection(labels, perfect, 0.5, store.shared("test")["weights"])
    assert rejection.is_lower_limit
    metrics = {**result.metrics, **{f"bkg_rej_{p}": rejection.value for p in (30, 50, 80)}}
    metrics |= {f"n_bkg_{p}": 0 for p in (30, 50, 80)}
    config = RunConfig(5.0, 0.5)
    arrays = {"scores_validation": result.arrays["scores_validation"], "scores_test": perfect}
    store.write(StoredResult("student", config.name, 42, config, metrics={**metrics, "auc_val": 1.0}, arrays=arrays))
    whole, texts = reported(store)
    text = in_one_line(texts["results_summary.txt"])
    assert f">{rejection.value:.2f}" in text
    assert "there the rejection is a 68 % lower limit" in text
    assert any(lack.what == "comparisons of configurations and settings by rejection at 50 %" for lack in whole.missing)
    assert all("inf" not in text.replace("info", "") for text in texts.values())


def replaced(store, name, scores):
    """The same result with other test scores."""
    result = store.get(RunKey("student", name, 42))
    arrays = {**result.arrays, "scores_test": scores}
    shutil.rmtree(store.path / "results" / result.key.folder)
    store.write(StoredResult("student", name, 42, result.config, metrics=result.metrics, arrays=arrays))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: np.where(np.arange(len(s)) < 3, np.nan, s), "3 of its 900 test scores are not finite"),
        (lambda s: np.zeros_like(s), "all its test scores are equal"),
        (lambda s: s[:-1], "it has 899 scores for 900 test jets"),
    ],
)
def test_unusable_scores(tmp_path, spoil, words):
    store = small(tmp_path / "s")
    name = "baseline_T3.0_A0.5"
    replaced(store, name, spoil(store.get(RunKey("student", name, 42)).arrays["scores_test"]))
    whole, texts = reported(store)
    assert any(lack.what == f"student {name}, seed 42" and words in lack.reason for lack in whole.missing)
    assert name not in [row.run_name for row in whole.configurations]
    assert words in in_one_line(texts["ANALYSIS_SUMMARY.txt"])


def test_test_jets_of_one_class(tmp_path, capsys):
    store = small(tmp_path / "s")
    folder = store.path / "shared" / "test"
    jets = store.shared("test")
    shutil.rmtree(folder)
    store.write_shared("test", {**jets, "labels": np.ones_like(jets["labels"])})
    assert main(["report", str(store.path)]) == 2
    captured = capsys.readouterr()
    assert "the test jets hold no background of weight above 0" in captured.err
    assert "Traceback" not in captured.err
    assert not (store.path / "report.json").exists()


def uneven(path):
    """Two configurations, one of them with a third seed: as after `kdfast refine`."""
    make_study(path, [RunConfig(3.0, 0.9), RunConfig(7.0, 0.5)], seeds=(0, 1), jets=300)
    return make_study(path, [RunConfig(3.0, 0.9)], seeds=(2,), jets=300, teacher=False)


def test_one_network_has_its_seed_beside_it(tmp_path):
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
    assert "have the same AUC: on these test jets nothing sets them apart." in told
    assert "6 signal and 6 background test jets are too few" in told
    assert "-0.0000" not in told
    assert "winner's curse" not in told
    assert all((w.excess_on_test or 0.0) >= 0.0 for w in whole.winners)


def test_the_table_has_the_statuses_of_the_analysis(tmp_path):
    store = small(tmp_path / "s", diverged=("baseline_T3.0_A0.5",))
    bad = store.get(RunKey("student", "baseline_T7.0_A0.5", 42))
    config = RunConfig(9.0, 0.5)
    scores = {**bad.arrays, "scores_test": np.full_like(bad.arrays["scores_test"], np.nan)}
    store.write(replace(bad, name=config.name, config=config, arrays=scores))
    store.write(replace(bad, name="again"))  # the same configuration under another name
    paths = report.write(store)
    table = pd.read_csv(paths["results_summary.csv"])
    runs = analysis(paths).runs
    assert dict(zip(table["run_name"], table["status"], strict=True)) == {run.run_name: run.status for run in runs}
    assert {run.status for run in runs} == {"done", "diverged", "unusable"}


def test_a_range_of_limits_is_marked_at_both_ends(tmp_path):
    whole, texts = reported(
        make_study(tmp_path / "s", [RunConfig(3.0, 0.9), RunConfig(7.0, 0.5)], strength=lambda _: 9.0)
    )
    assert all(run.survivors["50"] == 0 for run in whole.runs)
    assert re.search(r"  - Background Rejection: >[\d.]+ - >[\d.]+\n", texts["ANALYSIS_SUMMARY.txt"])


def test_an_imported_baseline_of_auc_0(tmp_path):
    """It has no percentage to be better by; and no more seeds can be added to what was imported."""
    (tmp_path / "runs.csv").write_text(
        "run_name,seed,auc_student,bkg_rej_50,auc_baseline\nbaseline_T3.0_A0.5,1,0.5,9.0,0.0\n"
    )
    import_study(tmp_path / "runs.csv", tmp_path / "s")
    whole, texts = reported(StudyStore.open(tmp_path / "s"))
    assert "Improvement over baseline: +0.5000 AUC; errors not known" in texts["ANALYSIS_SUMMARY.txt"]
    assert "refine" not in "".join(texts.values())
    (lack,) = (lack for lack in whole.missing if lack.what == "variance between seeds")
    assert lack.reason.endswith("; a sweep of the leaders with several seeds would tell more")


def test_means_that_are_adjusted_are_called_so(tmp_path):
    whole, texts = reported(uneven(tmp_path / "uneven"))
    (lonely,) = (row for row in whole.configurations if row.runs == 2)
    runs = [run.auc.value for run in whole.runs if run.run_name == lonely.run_name]
    assert abs(lonely.auc.value - np.mean(runs)) > 1e-4
    page = Path(report.write(StudyStore.open(tmp_path / "uneven"))["report.html"]).read_text()
    for name in ("ANALYSIS_SUMMARY.txt", "results_summary.txt", "detailed_comparison.txt"):
        assert "if a seed moved all alike (least-squares mean)" in in_one_line(texts[name])
    assert "if a seed moved all alike (least-squares mean)" in page
    assert "eans over each configuration" not in page
    assert "eans over its runs" not in page
    assert page.count("east-squares means over all seeds") >= 2

    whole, texts = reported(small(tmp_path / "even", seeds=(1, 2)))
    assert "least-squares" not in "".join(texts.values())
    assert "Means over each configuration" in page_of(whole, [])


def test_a_run_stored_under_two_names(tmp_path):
    store = small(tmp_path / "s")
    result = store.get(RunKey("student", "baseline_T3.0_A0.5", 42))
    store.write(StoredResult("student", "copy", 42, result.config, metrics=result.metrics, arrays=result.arrays))
    whole, _ = reported(store)
    assert len(whole.configurations) == 4
    (lack,) = [lack for lack in whole.missing if "copy" in lack.what]
    assert "same T, α and seed as baseline_T3.0_A0.5" in lack.reason


def test_a_damaged_result_is_not_reported(tmp_path):
    store = small(tmp_path / "s")
    (folder,) = (store.path / "results").glob("student.baseline_T3.0*")
    (folder / "result.json").write_text("{}")
    with pytest.raises(
        StudyError, match=r"student\.baseline_T3\.0_A0\.5\.seed42: is damaged: result.json does not match"
    ):
        open_study(store.path).report()
    assert not (store.path / "report.json").exists()


def test_unwritable_report(tmp_path):
    store = small(tmp_path / "s")
    (store.path / "models").write_text("a file in the way")
    with pytest.raises(StudyError, match=r"can't be written: File exists\ngive a place that may be written"):
        report.write(store)


def test_an_imported_study(tmp_path):
    """Results without scores: tables as ever, and what can't be said is named."""
    store = StudyStore.create_or_open(tmp_path / "s", SETTINGS, {"imported": {"files": [], "notes": ["a note"]}})
    rng = np.random.default_rng(3)
    for config in grid("study"):
        auc = 0.81 + 0.012 * config.alpha_init + 0.001 * rng.normal()
        metrics = {"auc": auc, "bkg_rej_50": 8.0 + config.alpha_init}
        store.write(StoredResult("student", config.name, 42, config, message="from log:3", metrics=metrics))
    store.write(StoredResult("baseline", "baseline", 42, metrics={"auc": 0.804}))  # without a rejection
    paths = report.write(store)
    whole, texts = analysis(paths), read(paths)
    assert "roc_png" not in paths
    assert whole.study.selected_on == "test"
    assert whole.configurations[0].auc.error is None
    assert whole.configurations[0].beside_best_auc is None
    reasons = " ".join(lack.reason for lack in whole.missing)
    assert "a note" in reasons
    assert "these need scores per jet" in reasons
    assert "AUC rises with α_init" in texts["ANALYSIS_SUMMARY.txt"]  # by the scatter of configurations
    assert whole.runs[0].auc_gain == pytest.approx(whole.runs[0].auc.value - 0.804)
    assert whole.runs[0].rejection_gain is None
    assert "looks surer than it is" in in_one_line(texts["ANALYSIS_SUMMARY.txt"])
    assert "  - File: log:3" in texts["ANALYSIS_SUMMARY.txt"]
    for heading in HEADINGS:
        assert heading in texts["ANALYSIS_SUMMARY.txt"], heading


def test_report_json_is_described(paths):
    """Every field has a type, and the document of the schema in docs is the current one."""
    documented = Path(__file__).parents[2] / "docs" / "report.schema.json"
    assert json.loads(documented.read_text()) == Analysis.model_json_schema()
