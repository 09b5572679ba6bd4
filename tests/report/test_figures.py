"""The figures show the analysis' numbers, say in words what they show, and come out the same each time."""

import math
import re
import shutil
import time
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from kdfast.distill import schedules
from kdfast.distill.schedules import RunConfig
from kdfast.metrics import background_rejection, roc_auc
from kdfast.report.analysis import analyse
from kdfast.report.figures import ORDER, draw, exports, figure_style
from kdfast.report.figures.configurations import configuration_figures
from kdfast.report.figures.performance import ShownNetwork, TestSample
from kdfast.report.figures.style import CONTEXT, FONT_SIZE, HALF, ROLES, STRATEGIES, WIDE
from kdfast.store.key import RunKey
from kdfast.store.store import StudyStore
from kdfast.study.imports import import_study
from tests.report.fake_study import PROVENANCE, SETTINGS, SMALL_GRID, make_study
from tests.report.study_logs import Job, write_logs


@pytest.fixture(scope="module")
def raced(store, tmp_path_factory):
    """The same study, as if its grid had been a race."""
    path = tmp_path_factory.mktemp("raced") / "study"
    shutil.copytree(store.path, path)
    StudyStore.open(path).describe({**store.settings, "search": {"method": "race"}}, store.provenance)
    return StudyStore.open(path)


@pytest.fixture(scope="module")
def drawings(raced):
    with figure_style():
        return {drawing.name: drawing for drawing in draw(analyse(raced), raced)}


@pytest.fixture(scope="module")
def files(drawings):
    """By name; exporting settles layouts, so it comes after whatever looks at axes."""
    with figure_style():
        return {name: exports(drawing) for name, drawing in drawings.items()}


def line(axes, label):
    """The line whose label starts so."""
    (found,) = (line for line in axes.lines if str(line.get_label()).startswith(label))
    return found


def at(axes, label, x):
    """A line's value at a point that it has."""
    xs, ys = line(axes, label).get_data()
    (place,) = np.flatnonzero(np.isclose(xs, x))
    return ys[place]


def test_all_of_them_in_the_reports_order(drawings):
    assert list(drawings) == list(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_axes_and_words(drawings, name):
    drawing = drawings[name]
    for text in (drawing.title, drawing.caption, drawing.description):
        assert text
    bars = [axes for axes in drawing.figure.axes if axes.get_label() == "<colorbar>"]
    for axes in drawing.figure.axes:
        if axes in bars:
            continue
        panels = axes.get_subplotspec()
        assert axes.get_xlabel() or not panels.is_last_row(), (name, "x axis")
        group = axes.get_shared_y_axes()
        shared = not panels.is_first_col() and any(
            group.joined(axes, a) and a.get_ylabel() for a in drawing.figure.axes
        )
        assert axes.get_ylabel() or shared or name == "leaders", (name, "y axis")


@pytest.mark.parametrize("name", ORDER)
def test_one_size_of_text_and_two_widths(drawings, files, name):
    """Drawn as paths, which need no font; signs of formulas alone are smaller."""
    figure = drawings[name].figure
    assert {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()} == {FONT_SIZE}
    assert figure.get_size_inches()[0] == (WIDE if drawings[name].wide else HALF)
    assert "<text" not in files[name]["svg"].decode()


COLORS = [CONTEXT, *(role["color"] for role in ROLES.values()), *(color for _, color, _ in STRATEGIES.values())]


@pytest.mark.parametrize("color", COLORS)
def test_colours_stand_out_on_white(color):
    """Contrast of at least 3:1, as WCAG defines it."""
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 3.0


def test_the_users_own_settings_stay(store, analysis):
    before = dict(matplotlib.rcParams)
    with figure_style():
        draw(analysis, store)
    assert dict(matplotlib.rcParams) == before


# ---- numbers


def test_rejection_at_the_working_points(drawings, analysis):
    top, ratio = drawings["rejection"].figure.axes
    networks = {network.role: network for network in analysis.networks}
    for network in analysis.networks:
        for point in (30, 50, 80):
            assert at(top, network.label, point / 100) == pytest.approx(network.rejection[str(point)].value, rel=1e-9)
    expected = networks["student"].rejection["50"].value / networks["baseline"].rejection["50"].value
    student = next(l for l in ratio.lines if l.get_color() == line(top, networks["student"].label).get_color())
    xs, ys = student.get_data()
    assert ys[np.argmin(np.abs(xs - 0.5))] == pytest.approx(expected, rel=1e-9)


def test_bands_agree_with_the_analysis(store, analysis):
    """Both are bootstraps of the same jets, of 300 and 600 replicates: their errors differ by some per cent."""
    jets = store.shared("test")
    (network,) = (n for n in analysis.networks if n.role == "baseline")
    scores = store.get(RunKey.of(None, network.seed)).arrays["scores_test"].astype(np.float64)
    weights = jets["weights"].astype(np.float64)
    sample = TestSample(jets["labels"], weights, [ShownNetwork("baseline", "b", scores, None, None)])
    value, low, high = (ends[list(sample.efficiencies).index(0.5)] for ends in sample.band(0))
    known = network.rejection["50"]
    assert value == pytest.approx(known.value)
    spread = np.log(known.high / known.low)  # 5 standard deviations of √(1/2·300 + 1/2·600)
    assert np.log(high / low) == pytest.approx(spread, rel=5 * np.sqrt(1 / 600 + 1 / 1200))


def test_a_ratio_of_a_network_to_itself_has_no_error():
    rng = np.random.default_rng(1)
    labels = np.arange(2000) % 2
    one = labels + rng.normal(size=2000)
    networks = [ShownNetwork("baseline", "a", one, None, None), ShownNetwork("student", "b", 2 * one, None, None)]
    value, low, high = TestSample(labels, np.ones(2000), networks).band(1, 0)
    seen = np.isfinite(value)
    assert seen.sum() > 20
    for ends in (value, low, high):
        np.testing.assert_allclose(ends[seen], 1.0)


def test_no_band_where_a_handful_of_jets_survives():
    labels = np.repeat([1, 0], 500)
    scores = np.where(labels == 1, 10.0, 0.0) + np.random.default_rng(2).normal(size=1000)  # separated
    sample = TestSample(labels, np.ones(1000), [ShownNetwork("teacher", "t", scores, None, None)])
    assert np.isnan(sample.band(0)).all()


def test_thinned_roc_curves_keep_their_area(drawings, store, analysis):
    jets = store.shared("test")
    (axes,) = drawings["roc"].figure.axes
    for network in analysis.networks:
        x, y = line(axes, network.label).get_data()
        area = np.trapezoid(np.concatenate([[0.0], y, [1.0]]), np.concatenate([[0.0], x, [1.0]]))
        scores = store.get(RunKey(network.role, network.run_name, network.seed)).arrays["scores_test"]
        assert area == pytest.approx(roc_auc(jets["labels"], scores, jets["weights"]), abs=2 / 600)
        assert len(x) <= 1300


def test_configurations_in_order_with_the_set_of_the_best(drawings, analysis):
    for axes, metric in zip(drawings["configurations"].figure.axes, ("auc", "rejection"), strict=True):
        points, filled = {}, set()
        for container in axes.containers:
            for x, y in zip(*container.lines[0].get_data(), strict=True):
                points[round(float(x))] = float(y)
                if container.lines[0].get_markerfacecolor() != "white":
                    filled.add(round(float(x)))
        rows = sorted(analysis.configurations, key=lambda row: -getattr(row, metric).value)
        places = range(1, len(rows) + 1)
        assert [points[place] for place in places] == [getattr(row, metric).value for row in rows]
        members = {i for i, row in zip(places, rows, strict=True) if getattr(row, f"in_best_set_{metric}")}
        assert filled & set(places) == members
        assert len(members) > 0


def test_leaders_are_named_with_their_paired_differences(drawings, analysis):
    left, _ = drawings["leaders"].figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == [schedules.shown(row.run_name) for row in analysis.configurations]
    for container, row in zip(left.containers, analysis.configurations, strict=True):
        assert container.lines[0].get_xdata()[0] == row.auc_vs_baseline.difference.value


def test_heat_maps_hold_the_means(drawings, analysis):
    for axes, values, digits in zip(
        drawings["heat_maps"].figure.axes, (analysis.grid.auc, analysis.grid.rejection), (4, 2), strict=False
    ):
        texts = [text.get_text() for text in axes.texts]
        assert texts == [f"{value:.{digits}f}" for row in values for value in row]


def test_the_pareto_front_dominates(drawings, analysis):
    (axes,) = drawings["pareto"].figure.axes
    front = set(zip(*line(axes, "Pareto front").get_data(), strict=True))
    points = {(row.auc.value, row.rejection.value) for row in analysis.configurations}
    dominated = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert front == points - dominated


def test_strategies_show_means_of_their_points(drawings, analysis):
    axes = drawings["strategies"].figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "T, α constant",
        "T annealed",
        "α scheduled",
        "both",
    ]
    for container, strategy in zip(axes.containers, ("baseline", "tempanneal", "alphasched", "combined"), strict=True):
        values = [row.auc.value for row in analysis.configurations if row.strategy == strategy]
        assert container.lines[0].get_ydata()[0] == pytest.approx(np.mean(values))


def test_schedules_and_training_curves(drawings, analysis, store):
    temperature, alpha = drawings["schedules"].figure.axes
    name = temperature.get_legend().get_texts()[0].get_text()
    config = RunConfig.from_name(name)
    assert line(temperature, name).get_ydata()[-1] == (config.temp_final or config.temp_init)
    assert line(alpha, name).get_ydata()[-1] == (config.alpha_final or config.alpha_init)
    loss, auc = drawings["training"].figure.axes
    (student,) = (network for network in analysis.networks if network.role == "student")
    curve = [0.7, student.auc_validation]
    np.testing.assert_array_equal(line(auc, name).get_data(), [[1, 2], curve])  # epochs are counted from 1
    np.testing.assert_array_equal(line(loss, "Baseline").get_ydata(), [0.7, 0.6])
    (grey,) = (c for c in loss.collections if isinstance(c, LineCollection))
    assert len(grey.get_segments()) == sum(run.status == "done" for run in analysis.runs)
    assert grey.get_rasterized()


def test_training_curves_are_of_the_best_students_seed(tmp_path):
    """Networks of one seed compare: each highlighted curve is that of the network which the other figures show."""
    configs = [RunConfig(3.0, 0.9), RunConfig(7.0, 0.5)]
    store = make_study(tmp_path / "s", configs, seeds=(0, 1), jets=300)
    analysis = analyse(store)
    _, baseline, student = analysis.networks
    assert student.seed == baseline.seed == 1  # not the first of them
    with figure_style():
        drawn = {drawing.name: drawing.figure for drawing in draw(analysis, store)}
    _, auc = drawn["training"].axes
    shown = {
        text.get_text(): line(auc, text.get_text()).get_ydata()[-1] for text in drawn["training"].legends[0].get_texts()
    }
    named = {f"{schedules.shown(run.run_name)}, seed {run.seed}": run.auc_validation for run in analysis.runs}
    assert shown.pop("Teacher (offline view)") == analysis.networks[0].auc_validation
    assert shown.pop(f"Baseline (no teacher), seed {student.seed}") == baseline.auc_validation
    assert shown == {label: named[label] for label in shown}
    assert f"{schedules.shown(student.run_name)}, seed {student.seed}" in shown
    # and so the legends of the others say
    labels = [text.get_text() for text in drawn["rejection"].legends[0].get_texts()]
    assert labels[1:3] == [baseline.label, student.label]
    assert {label.removeprefix("Best student: ") for label in labels[2:]} == set(shown)
    assert student.label == f"Best student: {schedules.shown(student.run_name)}, seed {student.seed}"


def test_legends_lie_on_no_curve(drawings, files):
    for name in ("roc", "rejection"):
        figure = drawings[name].figure
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert len(legend.get_texts()) == len(set(text.get_text() for text in legend.get_texts())) >= 3
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 16])
def test_places_of_configurations_are_whole_numbers(tmp_path, count):
    analysis = analyse(make_study(tmp_path / "s", SMALL_GRID[:count], jets=300))
    figure = dict(configuration_figures(analysis))["configurations"]().figure
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert not any(tick.tick1line.get_visible() for tick in axes.xaxis.get_minor_ticks())
        ticks = [x for x in axes.get_xticks() if low <= x <= high]
        assert set(ticks) <= set(range(1, count + 1))
        assert len(ticks) >= 2


def test_all_of_the_mass_is_in_sight(drawings, store):
    """In bins of one width, what is drawn between the axis' ends adds up to all jets; ratios are of two kinds."""
    panels = drawings["mass"].figure.axes
    jets = store.shared("test")
    weights = jets["weights"].astype(float)
    mass = store.shared("test_kinematics")["mass"]
    for top, ratio in zip(panels[:3], panels[3:], strict=True):
        low, high = top.get_xlim()
        everything, signal, *passing = (patch.get_data() for patch in top.patches)
        assert len(passing) == 3
        for values, edges, _ in (everything, signal, *passing):
            assert np.ptp(np.diff(edges)) == pytest.approx(0.0)
            assert (low, high) == (edges[0], edges[-1])
            assert values @ np.diff(edges) == pytest.approx(100.0)
        middle = slice(1, -1)  # the outer bins hold what lies beyond
        for label, (values, edges, _) in ((0, everything), (1, signal)):
            own = jets["labels"] == label
            counts, _ = np.histogram(mass[own], edges, weights=weights[own])
            shares = counts / weights[own].sum() / np.diff(edges)
            np.testing.assert_allclose(values[middle], 100.0 * shares[middle])
        filled_bins = everything.values > 0.0
        for patch, found in zip(ratio.patches, passing, strict=True):
            expected = found.values[filled_bins] / everything.values[filled_bins]
            np.testing.assert_allclose(patch.get_data().values[filled_bins], expected)


def test_students_mass_divergences(drawings, analysis):
    """Each student's is what the table of the networks shown says of the best one."""
    best = next(n for n in analysis.networks if n.role == "student")
    run = next(r for r in analysis.runs if (r.run_name, r.seed) == (best.run_name, best.seed))
    shown = next(m for m in analysis.mass_sculpting if (m.role, m.efficiency) == ("student", 50))
    assert run.mass_divergence == pytest.approx(shown.divergence)
    (axes,) = drawings["sculpting"].figure.axes
    points = sum(
        len(line.get_xdata()) for line in axes.lines if line.get_label() in {s[0] for s in STRATEGIES.values()}
    )
    assert points == sum(r.mass_divergence is not None for r in analysis.runs)


def test_the_ratio_by_pt_is_of_the_same_jets(drawings, analysis):
    """The ratio of the two rejections of each bin, known better than either, as the jets are shared."""
    bins = {(b.role, b.pt_low): b for b in analysis.by_pt}
    assert analysis.pt_ratios
    for found in analysis.pt_ratios:
        student, baseline = (bins[role, found.pt_low].rejection for role in ("student", "baseline"))
        assert found.ratio.value == pytest.approx(student.value / baseline.value)
        apart = math.hypot(student.error / student.value, baseline.error / baseline.value)
        assert found.ratio.error / found.ratio.value < apart
    assert len(drawings["by_pt"].figure.axes) == 3


def test_histograms_of_scores_are_normalised(drawings):
    for axes in drawings["scores"].figure.axes:
        for patch in axes.patches:
            counts, edges, _ = patch.get_data()
            assert np.sum(counts * np.diff(edges)) == pytest.approx(1.0)
        assert len(axes.patches) == 2


def test_lower_limits_have_arrows(tmp_path):
    """Signal and background apart but for one jet: no background survives at 50 %."""
    from kdfast.report.figures.style import axes_grid, error_bars
    from kdfast.report.schema.values import Estimate

    labels = np.repeat([1, 0], 50)
    value = background_rejection(labels, labels * 1.0, 0.5)
    assert value.is_lower_limit
    with figure_style():
        _, ((axes,),) = axes_grid(size=(4, 3))
        error_bars(
            axes, [1, 2], [Estimate(value=value.value, lower_limit=True), Estimate(value=3.0, low=2.0, high=5.0)]
        )
    (container,) = axes.containers
    _, caps, (bars,) = container.lines
    assert [cap.get_marker() for cap in caps] == [matplotlib.markers.CARETUPBASE]
    below, above = bars.get_segments()[1][:, 1]
    assert (below, above) == (2.0, 5.0)
    assert bars.get_segments()[0][0, 1] == value.value  # nothing below a lower limit


# ---- files


@pytest.mark.parametrize("name", ORDER)
def test_files(files, drawings, name):
    found = files[name]
    assert found["png"].startswith(b"\x89PNG")
    assert found["pdf"].startswith(b"%PDF")
    svg = found["svg"].decode()
    root = ElementTree.fromstring(svg)
    title, description = root[0], root[1]
    assert (title.tag.rpartition("}")[2], description.tag.rpartition("}")[2]) == ("title", "desc")
    assert (title.text, description.text) == (drawings[name].title, drawings[name].description)
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(i.startswith(f"{name}-") for i in ids)
    references = re.findall(r'(?:href="|url\()([^")]+)', svg)
    assert all(r.startswith((f"#{name}-", "data:image/png;base64,")) for r in references)
    assert {r[1:] for r in references if r.startswith("#")} <= set(ids)


@pytest.mark.slow
def test_the_same_results_give_the_same_files(raced, files):
    with figure_style():
        again = {drawing.name: exports(drawing) for drawing in draw(analyse(raced), raced)}
    assert again == files


# ---- studies with parts missing


def names_of(store):
    with figure_style():
        return [drawing.name for drawing in draw(analyse(store), store)]


def test_an_imported_study_has_what_needs_no_scores(tmp_path):
    jobs = [Job(config, auc=0.8 + 0.001 * i, epochs=[(5, 0.7, 0.8, 0.8)]) for i, config in enumerate(SMALL_GRID)]
    store = StudyStore.open(import_study(write_logs(tmp_path / "logs", jobs), tmp_path / "s").path)
    shown = ["configurations", "leaders", "heat_maps", "strategies", "pareto", "schedules", "training"]
    assert names_of(store) == shown


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [
        ({"configs": [RunConfig(3.0, 0.5)]}, {"roc", "rejection", "scores", "training"}, {"pareto", "schedules"}),
        ({"configs": SMALL_GRID, "teacher": False}, {"roc", "configurations"}, set()),
        ({"configs": SMALL_GRID, "kinematics": False}, {"roc"}, {"by_pt", "mass"}),
        (
            {"configs": SMALL_GRID, "diverged": tuple(c.name for c in SMALL_GRID)},
            {"roc"},
            {"configurations", "schedules"},
        ),
        ({"configs": SMALL_GRID, "diverged": ("baseline",)}, {"roc", "rejection", "strategies", "leaders"}, set()),
    ],
)
def test_what_is_not_there_is_left_out(tmp_path, options, there, absent):
    found = set(names_of(make_study(tmp_path / "s", jets=300, **options)))
    assert there <= found
    assert not absent & found


def test_a_run_of_a_free_name(tmp_path):
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.5, 1.0)], jets=300)
    known = store.get(RunKey("student", "tempanneal_T3.0to1.0_A0.5", 42))
    metrics = {**known.metrics, "auc_val": 0.999}  # the one that is shown
    store.write(replace(known, name="my-run", config=RunConfig(5.0, 0.5, 2.0), metrics=metrics))
    assert "schedules" in names_of(store)


def test_an_empty_study(tmp_path):
    assert names_of(StudyStore.create_or_open(tmp_path / "s", SETTINGS, PROVENANCE)) == []


@pytest.mark.slow
def test_figures_of_a_whole_study_take_little_more_than_a_small_ones(tmp_path):
    """Processor time of 132 configurations relative to that of 16, with 3 seeds each."""

    def seconds(name, *configurations):
        store = make_study(tmp_path / name, *configurations, seeds=(1, 2, 3), jets=2400)
        analysis = analyse(store)
        begin = time.process_time()
        with figure_style():
            for drawing in draw(analysis, store):
                exports(drawing)
        return time.process_time() - begin

    small = seconds("small", SMALL_GRID)
    assert seconds("whole") < 4 * small


def test_a_race_shows_what_is_expected(raced, drawings):
    race = analyse(raced).race
    (axes,) = drawings["race"].figure.axes
    trained = [each for each in race.outlook if each.score is not None]
    assert race.trained == len(SMALL_GRID)  # one of them diverged
    assert len(trained) == len(SMALL_GRID) - 1
    assert race.candidates == 132
    assert np.array_equal(line(axes, "score").get_ydata(), [each.score for each in trained])
    leader = next(each for each in race.outlook if each.run_name == race.leader)
    assert set(line(axes, "leader").get_ydata()) == {leader.expected + race.tolerance}
