"""Tables become runs, whatever their dialect, or are refused by line."""

import numpy as np
import pandas as pd
import pytest

from kdfast.errors import DataError
from kdfast.store.grid import grid
from kdfast.store.table import csv_text, results_table
from kdfast.study.imports import import_study
from kdfast.study.results import open_study
from tests.importers.imports import is_not_there, quietly, warned
from tests.report.fake_study import make_study


@pytest.mark.slow
def test_a_study_of_kdfast_comes_back_from_its_table(tmp_path):
    path = make_study(tmp_path / "own", seeds=(1, 2), diverged=("baseline_T7.0_A0.5",)).path
    open_study(path).report()
    own = open_study(path).results
    table = quietly(path / "results_summary.csv", tmp_path / "s").results
    pd.testing.assert_frame_equal(table.drop(columns="auc_teacher"), own.drop(columns="auc_teacher"))
    np.testing.assert_array_equal(table["auc_teacher"], own["auc_teacher"])


def test_a_study_with_further_axes_comes_back_from_its_table(tmp_path):
    runs = grid(
        temperature=[3.0, 7.0], alpha=0.5, learning_rate=[1e-3, 2e-3], model="small", shuffle_window=[64, "all"]
    )
    own = make_study(tmp_path / "own", runs, jets=100)
    (tmp_path / "results_summary.csv").write_text(csv_text(results_table(own.results())))
    there = quietly(tmp_path / "results_summary.csv", tmp_path / "s").results
    columns = ["run_name", "auc_student", "auc_baseline", "learning_rate", "shuffle_window", "model"]
    pd.testing.assert_frame_equal(there[columns], results_table(own.results())[columns])
    assert there["auc_baseline"].nunique() == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run_name,auc,rejection\nbaseline_T7.0_A0.5,0.81,8.5\n", ("baseline_T7.0_A0.5", 0.81, 8.5)),
        (
            "Temperature;Alpha;AUC Student;Background Rejection\n7;0.5;0.81;8.5\n",
            ("baseline_T7.0_A0.5", 0.81, 8.5),
        ),
        (
            "\ufeffT_init\tT_final\talpha_init\talpha_final\tstudent_auc\tbkg_rej_50\r\n7\t1\t0.5\tconstant\t.81\t8.5\r\n",
            ("tempanneal_T7.0to1.0_A0.5", 0.81, 8.5),
        ),
    ],
)
def test_csv_dialects(tmp_path, text, expected):
    path = tmp_path / "table.csv"
    path.write_text(text)
    row = quietly(path, tmp_path / "s").results.iloc[0]
    assert (row["run_name"], row["auc_student"], row["bkg_rej_50"]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "run_name,auc\nbaseline_T7.0_A0.5,0.81\n",
            "line 1: has no column bkg_rej_50\nits columns are run_name, auc; it needs",
        ),
        ("T,auc,rejection\n7,0.81,8.5\n", r"line 1: has no column run_name \(or temp_init and alpha_init\)"),
        ("run_name,auc,rejection\nx,0.81,8.5\n", "line 2, 'x': is not the name of a run"),
        (
            "run,auc,rejection\nbaseline_T7_A0.5,high,8.5\n",
            "line 2, auc: input should be a valid number, .*, is 'high'",
        ),
        ("run,auc,rejection\nbaseline_T7_A0.5,1.2,8.5\n", r"line 2: the AUC must lie in \[0, 1\], is 1.2"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8,0.5\n", "line 2: the rejection must be at least 1, is 0.5"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8,inf\n", "line 2: the rejection is infinite: no background jet passed"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8\n", "line 2: has 2 cells, the header has 3"),
        (
            "run,auc,rejection,seed\nbaseline_T7_A0.5,.8,8,1.5\n",
            "line 2, seed: input should be a valid integer, .*, is '1.5'",
        ),
        ('run,auc,rejection\n"baseline,.8,8\n', "line 2: can't be read as CSV"),
        *(
            (
                f"run,auc,rejection,{column}\nbaseline_T7_A0.5,.8,8,{cell}\n",
                f"line 2, {column}: input should be {message}, is '{cell}'",
            )
            for column, cell, message in (
                ("auc_val", "7.5", "less than or equal to 1"),
                ("auc_teacher", "92.1", "less than or equal to 1"),
                ("auc_baseline", "-0.1", "greater than or equal to 0"),
                ("bkg_rej_30", "-5", "greater than or equal to 1"),
                ("bkg_rej_80", "0.9", "greater than or equal to 1"),
                ("bkg_rej_50_val", "inf", "a finite number"),
                ("n_bkg_50", "-1", "greater than or equal to 0"),
                ("best_epoch", "-1", "greater than or equal to 0"),
                ("epochs", "-4", "greater than or equal to 0"),
                ("seed", "-2", "greater than or equal to 0"),
                ("seed", str(2**63), f"less than {2**63}"),
                ("seed", "nan", "a valid integer, .*"),
            )
        ),
        ("T,A,auc,rejection\n7,1.5,.8,8\n", r"line 2, alpha_init: α must lie in \[0, 1\], is 1.5"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"table.csv, {message}"):
        import_study(path, tmp_path / "s")
    is_not_there(tmp_path / "s")


def test_unknown_columns_are_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("run,auc,rejection,colour\nbaseline_T7_A0.5,.8,8,red\nbaseline_T3_A0.5,,,red\n")
    study, texts = warned(path, tmp_path / "s")
    assert texts == [
        f"{path}, line 1: columns that are not used: 'colour'",
        f"{path}, line 3: the AUC is missing: the row is left out",
    ]
    assert len(study.results) == 1


@pytest.mark.parametrize(
    ("heads", "left"),
    [
        ("auc,auc_student", "auc"),
        ("auc_student,auc", "auc"),
        ("AUC,Student AUC", "AUC"),
    ],
)
def test_of_two_columns_for_one_quantity_the_plainer_name_counts(tmp_path, heads, left):
    """`auc` may be anything's; `auc_student` is the student's."""
    values = {"auc": "0.9", "AUC": "0.9", "auc_student": "0.8", "Student AUC": "0.8"}
    path = tmp_path / "table.csv"
    cells = ",".join(values[head] for head in heads.split(","))
    path.write_text(f"run,{heads},rejection\nbaseline_T7_A0.5,{cells},8\n")
    study, texts = warned(path, tmp_path / "s")
    assert list(study.results["auc_student"]) == [0.8]
    assert texts == [f"{path}, line 1: columns that are not used: {left!r}"]


def test_what_a_table_may_leave_open(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"run,auc,rejection,auc_val,epochs,auc_teacher,seed\nbaseline_T7_A0.5,.8,8,nan,,NaN,{2**53 + 1}\n")
    row = quietly(path, tmp_path / "s").results.iloc[0]
    assert row[["auc_val", "epochs", "auc_teacher"]].isna().all()
    assert row["seed"] == 2**53 + 1  # to the last digit


def test_a_last_row_without_an_end_causes_a_warning(tmp_path):
    """Its last number may have been longer."""
    path = tmp_path / "table.csv"
    path.write_text("run,auc,rejection\nbaseline_T7_A0.5,.8,8.5\nbaseline_T3_A0.5,.81,9")
    study, texts = warned(path, tmp_path / "s")
    assert list(study.results["bkg_rej_50"]) == [9.0, 8.5]
    assert texts == [f"{path}, line 3: the table's last line has no end: its last number may be cut short"]
