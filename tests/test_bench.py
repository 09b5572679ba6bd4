import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kdfast.bench import BenchmarkRow, find_benchmarks, ratio_table, read_rows, run_benchmarks
from kdfast.errors import ConfigError

INFO = {
    "ratio": 12.5,
    "ratio_p20": 11.0,
    "ratio_p80": 13.0,
    "ours_s": [9e-6, 1e-5, 1.1e-5],
    "plain_s": [1.2e-5, 1.25e-5, 1.3e-5],
    "floor": 5.0,
    "aim": 20.0,
    "baseline": "plain PyTorch",
    "plain_work": 0.1,
    "rounds": 101,
    "threads": 2,
    "isa": "avx2",
    "cpu": "a CPU",
    "versions": {"kdfast": "1", "torch": "2"},
}


def row(ratio: float, floor: float | None, aim: float | None) -> BenchmarkRow:
    return BenchmarkRow("b", 1e-5, 1e-4, "plain", ratio, ratio, ratio, floor, aim, "a CPU")


@pytest.mark.parametrize(
    ("ratio", "floor", "aim", "verdict"),
    [(4, 5, 10, "below"), (5, 5, 10, "floor"), (10, 5, 10, "aim"), (3, None, None, ""), (7, None, 6, "aim")],
)
def test_verdict(ratio: float, floor: float | None, aim: float | None, verdict: str) -> None:
    assert row(ratio, floor, aim).verdict == verdict


def test_table_of_a_saved_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    entries = [{"name": "test_loss[fp32]", "extra_info": INFO}, {"name": "test_no_baseline", "extra_info": {}}]
    report.write_text(json.dumps({"benchmarks": entries}))
    rows = read_rows(report)
    assert [r.name for r in rows] == ["loss[fp32]"]
    console = Console(width=160)
    with console.capture() as capture:
        console.print(ratio_table(rows))
    text = capture.get()
    for expected in (
        "loss[fp32]",
        "10 µs",
        "125 µs plain PyTorch",
        "12.5×",
        "11.0–13.0",
        "5×",
        "20×",
        "avx2, 2 threads",
    ):
        assert expected in text


def test_a_narrow_table_folds_names_and_cuts_none() -> None:
    name = "constituent_attention[N=40, 79 %]"
    console = Console(width=70)
    with console.capture() as capture:
        console.print(ratio_table([replace(row(4, 5, 10), name=name)]))
    column = "".join(line[1:].split("│")[0].strip() for line in capture.get().splitlines() if line.startswith("│"))
    assert column.replace(" ", "") == name.replace(" ", "")


def test_finds_the_source_tree_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "ratio.py").touch()
    (tmp_path / "docs").mkdir()
    assert find_benchmarks(tmp_path / "docs") == tmp_path.resolve() / "bench"
    monkeypatch.chdir(tmp_path)
    assert find_benchmarks() == tmp_path.resolve() / "bench"


def test_an_installed_package_says_where_the_benchmarks_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdfast.bench.__file__", str(tmp_path / "lib" / "site-packages" / "kdfast" / "bench.py"))
    with pytest.raises(ConfigError, match=r"part of the source tree.*\n.*clone"):
        find_benchmarks(tmp_path)


@pytest.mark.slow
def test_nothing_selected() -> None:
    with pytest.raises(ConfigError, match="no benchmark matches 'there_is_no_such_benchmark'"):
        run_benchmarks("there_is_no_such_benchmark")


def test_a_missing_plugin_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdfast.bench.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"kdfast\[bench\]"):
        run_benchmarks()
