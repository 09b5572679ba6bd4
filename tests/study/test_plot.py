"""history, model and plot of a study: its curves, networks and figures, one by one."""

import inspect

import matplotlib
import mplhep
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb

import kdfast
from kdfast.errors import ConfigError, StudyError
from kdfast.report.figures import ORDER
from kdfast.report.figures.style import ROLES
from kdfast.study.plot import StudyPlots
from kdfast.study.results import open_study
from tests.report.fake_study import SMALL_GRID, make_study
from tests.report.study_logs import Job, write_logs

NAMES = [config.name for config in SMALL_GRID]
PANELS = {"rejection": 2, "scores": 3, "mass": 6, "training": 2, "schedules": 2, "configurations": 2, "leaders": 2,
          "heat_maps": 2, "strategies": 2, "by_pt": 3, "agreement": 2}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("studies") / "study"
    settings = {"search": {"method": "race"}}
    make_study(path, SMALL_GRID, seeds=(1, 2), jets=600, diverged=(NAMES[3],), latency=True, settings=settings)
    return open_study(path)


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


# ---- curves and networks


def test_history_of_a_sweep(swept):
    name = swept.results["run_name"][0]
    history = swept.history(name)
    assert list(history.columns) == [
        *("epoch", "loss", "loss_kd", "loss_label", "loss_attention", "auc_val", "temperature", "alpha"),
        "learning_rate",
    ]
    assert list(history["epoch"]) == [0, 1]
    best = swept.results.iloc[0]
    assert history["auc_val"][best["best_epoch"]] == history["auc_val"].max()
    assert list(swept.history("teacher")["epoch"]) == [0, 1]


def test_history_of_what_is_not_there(study):
    with pytest.raises(ConfigError, match="has several seeds"):
        study.history(NAMES[0])
    with pytest.raises(StudyError, match=f"{NAMES[3]} has no curves"):
        study.history(NAMES[3], 1)


def test_epochs_of_a_log_are_counted_from_0_too(tmp_path):
    write_logs(tmp_path / "logs", [Job(SMALL_GRID[0], epochs=[(1, 0.7, 0.75, 0.75), (2, 0.6, 0.8, 0.8)])])
    imported = kdfast.import_study(tmp_path / "logs", tmp_path / "study")
    history = imported.history(NAMES[0])
    assert history.to_dict("list") == {"epoch": [0, 1], "loss": [0.7, 0.6], "auc_val": [0.75, 0.8]}


def test_model(swept, tmp_path):
    jets = kdfast.sample()[:50]
    for name in ("teacher", "baseline", swept.results["run_name"][0]):
        scores = swept.model(name, None).predict(jets)
        assert scores.shape == (50, 1)
    best = swept.best("auc")
    again = kdfast.load_model(swept.report(tmp_path)["models/best_student.safetensors"]).predict(jets)
    np.testing.assert_array_equal(swept.model(best["run_name"]).predict(jets), again)


def test_model_of_a_diverged_run(study):
    with pytest.raises(StudyError, match=f"{NAMES[3]} with seed 1 has no model"):
        study.model(NAMES[3], 1)


# ---- figures


def test_every_figure_of_the_report_has_a_method():
    methods = [name for name, _ in inspect.getmembers(StudyPlots, inspect.isfunction) if not name.startswith("_")]
    assert set(methods) == set(ORDER)
    assert all(getattr(StudyPlots, name).__doc__.startswith("Draw ") for name in methods)


@pytest.mark.parametrize("name", ORDER)
def test_on_axes_that_are_given(study, name):
    figure, axes = pyplot.subplots(1, PANELS.get(name, 1), squeeze=False)
    before = dict(matplotlib.rcParams)
    drawn = getattr(study.plot, name)(ax=axes if axes.size > 1 else axes[0, 0])
    assert list(np.ravel(drawn)) == list(axes.ravel())
    assert all(panel.has_data() for panel in axes.ravel())
    assert pyplot.get_fignums() == [figure.number]
    assert dict(matplotlib.rcParams) == before
    figure.canvas.draw()
    with pytest.raises(ConfigError, match=f"ax: this figure needs {PANELS.get(name, 1)} axes, not 7"):
        getattr(study.plot, name)(ax=pyplot.subplots(1, 7)[1])


def test_on_new_axes_of_pyplot(study):
    top, ratio = study.plot.rejection()
    assert pyplot.gcf() is top.figure is ratio.figure
    assert top.get_ylabel() == r"Background rejection 1/$ε_B$"
    assert len(top.lines) == len(labels(top)) + 1  # and the working point


def test_rejection_on_one_axes_has_no_ratio(study):
    _, ax = pyplot.subplots()
    assert study.plot.rejection(ax=ax) is ax
    assert ax.get_xlabel() == r"Signal efficiency $ε_S$"


def labels(ax):
    return [text.get_text().split(":")[0].replace("\n", " ") for text in ax.figure.legends[0].get_texts()]


def test_chosen_runs(study):
    runs = [NAMES[5], "teacher", NAMES[0], "baseline"]
    ax = study.plot.roc(runs, seed=2)
    assert labels(ax) == [
        f"{NAMES[5]}, seed 2", "Teacher (offline view)", "constant_T3.0_A0.3, seed 2", "Baseline (no teacher)"
    ]  # fmt: skip
    assert to_rgb(ax.lines[0].get_color()) == to_rgb(ROLES["student"]["color"])
    row = study.results.set_index(["run_name", "seed"]).loc[(NAMES[5], 2)]
    assert f"AUC {row['auc_student']:.4f}" in ax.figure.legends[0].get_texts()[0].get_text().replace("\n", " ")
    assert np.shape(study.plot.scores([NAMES[0], NAMES[1]])) == (2,)
    _, auc = study.plot.training([NAMES[1]], seed=1)
    np.testing.assert_array_equal(auc.lines[0].get_ydata(), study.history(NAMES[1], 1)["auc_val"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": ["baselin"]}, "no run is named 'baselin'"),
        ({"runs": "baseline"}, r"runs: must be a list of names\nruns=\['baseline'\]"),
        ({"runs": [NAMES[0]], "seed": 5}, "has no seed 5"),
        ({"seed": 1}, "seed: needs runs"),
        ({"runs": NAMES[4:11]}, "runs: a figure shows at most 6 students, one baseline and one teacher"),
    ],
)
def test_runs_that_can_not_be_shown(study, arguments, message):
    with pytest.raises(ConfigError, match=message):
        study.plot.roc(**arguments)


def test_a_figure_without_its_numbers(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("run_name,auc,rejection\nbaseline_T7.0_A0.5,0.81,8.5\n")
    study = kdfast.import_study(table, tmp_path / "study")
    with pytest.raises(StudyError, match=r"does not have the numbers for the figure roc\nANALYSIS_SUMMARY\.txt"):
        study.plot.roc()


def test_label(study):
    ax = study.plot.roc(label="ATLAS Simulation Preliminary")
    first, rest = (text for text in ax.texts if text.get_text())
    assert (first.get_text(), first.get_weight(), first.get_style()) == ("ATLAS", "bold", "italic")
    assert rest.get_text() == "Simulation Preliminary"
    panels = study.plot.scores(label="CMS")
    panels[0].figure.canvas.draw()
    box = panels[0].texts[0].get_window_extent()
    assert box.y0 >= panels[0]._left_title.get_window_extent().y1  # above the panel's title, not on it


def test_style(study):
    with pyplot.rc_context({"axes.facecolor": "#eeeeee"}):
        assert to_rgb(study.plot.pareto(style={}).get_facecolor()) == to_rgb("#eeeeee")
    assert study.plot.pareto(style=mplhep.style.CMS).xaxis.label.get_size() > 20
