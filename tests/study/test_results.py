"""StudyResults: what users read back."""

import numpy as np
import pytest

from kdfast.errors import ConfigError, StudyError
from kdfast.metrics import roc_auc
from kdfast.store.grid import grid
from kdfast.store.table import COLUMNS
from kdfast.study.results import open_study
from tests.report.fake_study import make_study

CONFIGS = grid(temperature=[3.0, 7.0], alpha=[0.5], temperature_final=[1.0])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "study"
    make_study(path, CONFIGS, seeds=(1, 2), jets=300, diverged=("baseline_T7.0_A0.5",))
    return path


def test_results(path):
    study = open_study(path)
    assert repr(study) == f"StudyResults({str(path)!r}: 8 runs, 6 done, 2 diverged)"
    assert list(study.results.columns) == list(COLUMNS)
    assert list(study.results["run_name"][::2]) == [config.name for config in CONFIGS]
    changed = study.results
    changed["auc_student"] = 0.0  # a copy: the study stays as it is
    assert study.results["auc_student"].max() > 0.7


def test_best_is_chosen_on_validation(path):
    study = open_study(path)
    for metric, column in (("auc", "auc_val"), ("bkg_rej_50", "bkg_rej_50_val")):
        assert study.best(metric)[column] == study.results[column].max()
    assert list(study.best().index) == list(COLUMNS)
    with pytest.raises(ConfigError, match="did you mean 'bkg_rej_50'"):
        study.best("bkg_rej50")


def test_scores(path):
    study = open_study(path)
    row = study.results.iloc[0]
    scores = study.scores(row["run_name"], row["seed"])
    assert list(scores.columns) == ["split", "index", "label", "weight", "score", "probability"]
    np.testing.assert_allclose(scores["probability"], 1 / (1 + np.exp(-scores["score"])))
    for split, column in (("test", "auc_student"), ("validation", "auc_val")):
        part = scores[scores["split"] == split]
        assert len(part) == part["index"].nunique() == 300
        assert roc_auc(part["label"], part["score"], part["weight"]) == row[column]
    name = CONFIGS[0].name
    other = name.replace("baseline_", "constant_").replace(".0_", "_")
    assert study.scores(other, 1).equals(study.scores(name, 1))
    assert len(study.scores("teacher")) == 600  # one seed: need not be named


def test_scores_of_what_is_not_there(path):
    study = open_study(path)
    name = CONFIGS[0].name
    with pytest.raises(
        ConfigError, match=r"run_name: no run is named 'basline_T3.0_A0.5'\ndid you mean 'baseline_T3.0_A0.5'"
    ):
        study.scores("basline_T3.0_A0.5")
    with pytest.raises(ConfigError, match=rf"seed: {name} has several seeds\ngive one of \[1, 2\]"):
        study.scores(name)
    with pytest.raises(ConfigError, match=rf"seed: {name} has no seed 3\nknown: \[1, 2\]"):
        study.scores(name, 3)
    with pytest.raises(StudyError, match=r"baseline_T7.0_A0.5 has no scores: it diverged"):
        study.scores("baseline_T7.0_A0.5", 1)


def test_report_and_missing_study(path, tmp_path):
    assert open_study(str(path)).report()["results_summary.csv"] == path / "results_summary.csv"
    with pytest.raises(StudyError, match="does not exist"):
        open_study(tmp_path / "none")


def test_html_of_a_notebook(path, tmp_path):
    study = open_study(path)
    text = study._repr_html_()
    best = study.best("auc")
    assert f"<tr><th>runs</th><td>{repr(study).split(': ')[1][:-1]}</td></tr>" in text
    assert f"<td>{best['auc_student']:.4g} ({best['run_name']}, seed {best['seed']})</td>" in text
    separated = make_study(tmp_path / "limits", CONFIGS[:1], jets=100, strength=lambda config: 20.0)
    limit = open_study(separated.path).results["bkg_rej_50"][0]  # no background jet passes
    assert f"<td>&gt; {limit:.4g} (" in open_study(separated.path)._repr_html_()
    empty = make_study(tmp_path / "<b>", [], teacher=False)
    assert "&lt;b&gt;" in open_study(empty.path)._repr_html_()
    assert "no student of this study has finished yet" in open_study(empty.path)._repr_html_()
