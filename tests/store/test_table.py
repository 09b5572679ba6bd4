"""The results table and its CSV: exact columns, bit-equal numbers, a fixed order, selection on validation."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError, StudyError
from kdfast.store.grid import grid
from kdfast.store.store import StoredResult
from kdfast.store.table import COLUMNS, combined_score, csv_text, results_table, select_best

HEADER = (
    "run_name,strategy,temp_init,temp_final,alpha_init,alpha_final,seed,auc_student,bkg_rej_30,bkg_rej_50,bkg_rej_80,"
    "n_bkg_50,auc_val,bkg_rej_50_val,n_bkg_50_val,best_epoch,epochs,auc_baseline,auc_teacher,status,"
    "n_bkg_30,n_bkg_80,bkg_rej_30_val,n_bkg_30_val,bkg_rej_80_val,n_bkg_80_val,flag_30,flag_50,flag_80"
)


def metrics(auc, rejection, auc_val, rejection_val):
    numbers = {"best_epoch": 2, "epochs": 5}
    for suffix, a, r in (("", auc, rejection), ("_val", auc_val, rejection_val)):
        numbers[f"auc{suffix}"] = a
        for percent, factor in ((30, 3.0), (50, 1.0), (80, 0.3)):
            numbers[f"bkg_rej_{percent}{suffix}"] = r * factor
            numbers[f"n_bkg_{percent}{suffix}"] = 10
    return numbers


def student(config, seed=42, numbers=None, status="done"):
    return StoredResult("student", config.name, seed, config, status, metrics=numbers or {})


LOW, HIGH, OTHER = RunConfig(3.0, 0.1), RunConfig(5.0, 0.1 + 0.2), RunConfig(3.0, 0.5, 1.0)
RESULTS = [
    student(LOW, numbers=metrics(0.81, 9.0, 0.90, 8.0)),
    student(HIGH, numbers=metrics(0.85, 8.0, 0.80, 9.0)),
    student(OTHER, numbers=metrics(0.83, 8.5, 0.89, 8.9)),
    student(RunConfig(7.0, 0.5), numbers={"epochs": 3}, status="diverged"),
    StoredResult("baseline", "baseline", 42, metrics=metrics(0.80, 7.5, 0.79, 7.0)),
    StoredResult("teacher", "teacher", 42, metrics=metrics(0.92, 27.0, 0.91, 26.0)),
]


def test_columns_and_values():
    text = csv_text(results_table(RESULTS))
    lines = text.splitlines()
    assert lines[0] == HEADER == ",".join(COLUMNS)
    numbers = "3.0,,0.1,,42,0.81,27.0,9.0,2.6999999999999997,10,0.9,8.0,10,2,5,0.8,0.92"
    assert lines[1] == f"{LOW.name},baseline,{numbers},done,10,10,24.0,10,2.4,10,measured,measured,measured"
    assert lines[3] == "baseline_T7.0_A0.5,baseline,7.0,,0.5,,42,,,,,,,,,,3,0.8,0.92,diverged,,,,,,,,,"
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("survivors", "flags"),
    [((0, 1, 9), ["limit", "few", "few"]), ((9, 10, 11), ["few", "measured", "measured"]), ((None,) * 3, ["", "", ""])],
)
def test_rejections_of_few_jets_are_flagged(survivors, flags):
    numbers = {f"n_bkg_{point}": count for point, count in zip((30, 50, 80), survivors, strict=True)}
    known = {name: count for name, count in numbers.items() if count is not None}
    table = results_table([student(LOW, numbers=metrics(0.81, 9.0, 0.9, 8.0) | known if known else {"auc": 0.8})])
    assert list(table.loc[0, ["flag_30", "flag_50", "flag_80"]]) == flags
    assert csv_text(table).splitlines()[1].endswith(",".join(flags))


def test_floats_read_back_bit_for_bit():
    rng = np.random.default_rng(0)
    results = [student(config, numbers=metrics(*rng.random(4))) for config in grid("study")]
    table = results_table(results)
    again = pd.DataFrame(csv.DictReader(io.StringIO(csv_text(table)))).replace("", "nan")
    for column in ("auc_student", "bkg_rej_30", "bkg_rej_50", "bkg_rej_80", "auc_val", "alpha_init", "temp_final"):
        np.testing.assert_array_equal(again[column].astype(float), table[column])


def test_rows_stand_in_the_order_of_the_grid_whatever_the_order_of_results():
    configs = grid("study")
    results = [student(config, seed) for config in configs for seed in (2, 10)]
    expected = results_table(results)
    assert list(expected["run_name"][::2]) == [config.name for config in configs]
    assert list(expected["seed"][:4]) == [2, 10, 2, 10]
    shuffled = [results[i] for i in np.random.default_rng(1).permutation(len(results))]
    assert csv_text(results_table(shuffled)) == csv_text(expected)


def test_of_a_further_axis_numbers_come_before_words_and_what_is_not_given_before_both():
    configs = grid(temperature=3.0, alpha=0.5, shuffle_window=["all", 4096, 256]) + grid(temperature=3.0, alpha=0.5)
    names = results_table([student(config) for config in configs])["run_name"]
    constant = "baseline_T3.0_A0.5"
    assert list(names) == [constant, f"{constant}_sw256", f"{constant}_sw4096", f"{constant}_swall"]


@pytest.mark.parametrize(
    ("metric", "expected"), [("auc", LOW), ("bkg_rej_50", HIGH), ("bkg_rej_30", HIGH), ("combined", OTHER)]
)
def test_validation_selects(metric, expected):
    assert select_best(results_table(RESULTS), metric)["run_name"] == expected.name


def test_combined_score_is_the_mean_of_two_scaled_numbers():
    done = results_table(RESULTS).loc[lambda table: table["status"] == "done"]
    assert dict(zip(done["run_name"], combined_score(done), strict=True)) == pytest.approx(
        {LOW.name: 0.5, HIGH.name: 0.5, OTHER.name: 0.5}
    )
    assert list(combined_score(done.head(1))) == [0.0]  # one run: nothing to scale between


@pytest.mark.parametrize("metric", ["bkg_rej_30", "bkg_rej_50", "bkg_rej_80"])
@pytest.mark.parametrize("suffix", ["", "_val"])
def test_a_limit_is_not_below_what_was_measured(metric, suffix):
    """The limit for no survivor is n_B/1.14, the rejection for one is n_B: fewer survivors rank higher."""
    found = [metrics(0.9, 250.0, 0.9, 250.0), metrics(0.95, 219.3, 0.95, 219.3), metrics(0.93, 219.3, 0.93, 219.3)]
    for numbers in found:
        for name in [name for name in numbers if suffix == "" and name.endswith("_val")]:
            del numbers[name]  # an imported study: chosen on test
    for numbers in found[1:]:
        numbers[f"{metric.replace('bkg_rej', 'n_bkg')}{suffix}"] = 0
    table = results_table([student(c, numbers=n) for c, n in zip((LOW, OTHER, HIGH), found, strict=True)])
    assert select_best(table, metric)["run_name"] == OTHER.name  # of two limits the one with the higher AUC


def test_limits_count_as_the_largest_in_the_combined_score():
    found = [metrics(0.9, 250.0, 0.9, 8.0), metrics(0.91, 219.3, 0.8, 9.0), metrics(0.8, 10.0, 0.8, 9.0)]
    found[1]["n_bkg_50"] = 0
    table = results_table([student(c, numbers=n) for c, n in zip((LOW, OTHER, HIGH), found, strict=True)])
    scores = dict(zip(table["run_name"], combined_score(table), strict=True))
    assert scores == pytest.approx({LOW.name: (1.0 + 0.1 / 0.11) / 2, OTHER.name: 1.0, HIGH.name: 0.0})


def test_baseline_of_the_same_seed():
    results = [student(LOW, seed, metrics(0.8, 9.0, 0.8, 9.0)) for seed in (1, 2, 3)]
    results += [StoredResult("baseline", "baseline", seed, metrics={"auc": 0.7 + seed / 100}) for seed in (1, 2)]
    table = results_table(results)
    assert list(table["auc_baseline"][:2]) == [0.71, 0.72]
    assert np.isnan(table["auc_baseline"][2])
    assert table["auc_teacher"].isna().all()


def test_errors():
    unknown = r"metric: unknown metric 'acu'\ndid you mean 'auc'\? \(known: auc, bkg_rej_30"
    with pytest.raises(ConfigError, match=unknown):
        select_best(results_table(RESULTS), "acu")
    with pytest.raises(StudyError, match="no student of this study has finished yet"):
        select_best(results_table([]), "auc")
    assert csv_text(results_table([])) == HEADER + "\n"
