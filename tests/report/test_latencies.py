"""AUC against latency: which networks are on the front, and that nothing is claimed where nothing was measured."""

from pathlib import Path

import pytest

from kdfast.report.analysis import analyse
from tests.report.fake_study import SMALL_GRID, make_study


def test_networks_of_one_size_share_a_measurement(tmp_path: Path) -> None:
    analysis = analyse(make_study(tmp_path / "s", SMALL_GRID, jets=300, latency=True))
    names = {each.run_name for each in analysis.latencies}
    assert names == {"teacher", "baseline", *(config.name for config in SMALL_GRID)}
    by_role = {each.role: (each.p50_us, each.p99_us, each.parameters) for each in analysis.latencies}
    assert by_role == {
        "teacher": (1800.0, 3600.0, 1280),
        "student": (200.0, 400.0, 320),
        "baseline": (200.0, 400.0, 320),
    }
    assert analysis.latencies[-1].flops == pytest.approx(100 * 30 + 30**2)
    auc = {row.run_name: row.auc for row in analysis.configurations}
    assert all(each.auc == auc[each.run_name] for each in analysis.latencies if each.role == "student")


def test_the_front_is_the_best_of_each_time(tmp_path: Path) -> None:
    latencies = analyse(make_study(tmp_path / "s", SMALL_GRID, jets=300, latency=True)).latencies
    front = [each for each in latencies if each.pareto]
    assert [each.role for each in front] == ["student", "teacher"]
    assert front[0].auc.value == max(each.auc.value for each in latencies if each.p50_us == 200.0)


def test_a_slow_network_that_is_no_better_is_not_on_it(tmp_path: Path) -> None:
    store = make_study(tmp_path / "s", SMALL_GRID, jets=300, latency=True, teacher_strength=0.5)
    assert [each.role for each in analyse(store).latencies if each.pareto] == ["student"]


def test_without_measurements_there_is_nothing(tmp_path: Path) -> None:
    store = make_study(tmp_path / "s", SMALL_GRID, jets=300)
    assert analyse(store).latencies == []
    assert store.latencies() == {}
