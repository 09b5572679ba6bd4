"""Tables become runs, whatever their dialect, or are refused by line."""

import numpy as np
import pandas as pd
import pytest

from kdfast.errors import DataError
from kdfast.report.importers import import_study
from kdfast.study.results import open_study
from tests.report.fake_study import make_study
from tests.report.importers.imports import is_not_there, quietly, told


def test_a_study_of_kdfast_comes_back_from_its_table(tmp_path):
    path = make_study(tmp_path / "own", seeds=(1, 2), diverged=("baseline_T7.0_A0.5",)).path
    open_study(path).report()
    own = open_study(path).results
    table = quietly(path / "results_summary.csv", tmp_path / "s").results
    pd.testing.assert_frame_equal(table.drop(columns="auc_teacher"), own.drop(columns="auc_teacher"))
    np.testing.assert_array_equal(table["auc_teacher"], own["auc_teacher"])


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
        ("run_name,auc\nbaseline_T7.0_A0.5,0.81\n", "line 1: has no column bkg_rej_50\nit has run_name, auc; needed"),
        ("T,auc,rejection\n7,0.81,8.5\n", r"line 1: has no column run_name \(or temp_init and alpha_init\)"),
        ("run_name,auc,rejection\nx,0.81,8.5\n", "line 2: 'x' is not the name of a run, and no T and α are given"),
        ("run,auc,rejection\nbaseline_T7_A0.5,high,8.5\n", "line 2: auc must be a number, is 'high'"),
        ("run,auc,rejection\nbaseline_T7_A0.5,1.2,8.5\n", "line 2: the AUC is 1.2, which it can't be"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8,0.5\n", "line 2: the rejection is 0.5, which it can't be"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8,inf\n", "line 2: the rejection is infinite: no background"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8\n", "line 2: has 2 cells, the header has 3"),
        ("run,auc,rejection,seed\nbaseline_T7_A0.5,.8,8,1.5\n", "line 2: seed must be a whole number, is '1.5'"),
        ('run,auc,rejection\n"baseline,.8,8\n', "line 2: can't be read as CSV"),
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
    study, texts = told(path, tmp_path / "s")
    assert texts == [
        f"{path}, line 1: columns that are not known are passed over: 'colour'",
        f"{path}, line 3: the AUC is missing: the row is left out",
    ]
    assert len(study.results) == 1
