"""What a sweep shows, in a terminal and without one."""

import io
import re
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from kdfast.distill.pack import EpochReport, MemberResult
from kdfast.study import progress as module
from kdfast.study.progress import SweepProgress, duration


def report(member: str, epoch: int, auc: float = 0.8) -> EpochReport:
    return EpochReport(member, epoch, 4, 0.5, auc, auc, jets=1000, seconds=0.1)


def finished(name: str, auc: float = 0.8, status: str = "done") -> MemberResult:
    curves = {"auc_val": [0.5, auc]} if status == "done" else {"auc_val": []}
    return MemberResult(name, status, "loss not finite in epoch 1" if status != "done" else "", 1, 2, 0.2, curves)


def show(terminal: bool, enabled: bool = True) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200, color_system=None)
    with SweepProgress(enabled, console) as shown:
        shown.say("16,000 jets")
        shown.begin("seed 42", members=3, epochs=4, done=2)
        shown.best("baseline_T3.0_A0.5", 0.9)
        for epoch in range(4):
            shown.epoch(report("tempanneal_T3.0to1.0_A0.5", epoch))
        shown.member(finished("tempanneal_T3.0to1.0_A0.5"))
        shown.epoch(report("x", 0))
        shown.best("x", 0.95)
        shown.member(finished("x", 0.95))  # stopped early
        shown.member(finished("y", status="diverged"))
    return text.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    lines = show(terminal=False).splitlines()
    assert lines[0] == "16,000 jets"
    assert lines[1].startswith("seed 42: tempanneal_T3.0to1.0_A0.5 done, AUC(val) 0.8000 (3/5 done, ")
    assert lines[1].endswith(" s left, best so far 0.9000 constant_T3.0_A0.5)")
    assert lines[2].startswith("seed 42: x done, AUC(val) 0.9500 (4/5 done, ")
    assert "best so far 0.9500 x" in lines[2]
    assert lines[3].startswith("seed 42: y diverged: loss not finite in epoch 1 (5/5 done, ")
    assert " left" not in lines[3]
    assert len(lines) == 4


def test_long_members_give_a_sign_of_life(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_INTERVAL", 0.0)
    assert "x in training, AUC(val) 0.8000 (3/5 done, epoch 1/4, " in show(terminal=False)


def test_a_live_line_in_a_terminal():
    text = show(terminal=True)
    assert "seed 42" in text
    assert "5/5 done" in text
    assert "best so far 0.9500 x" in text
    assert "y diverged: loss not finite" in text
    assert "x done" not in text


def test_nothing_is_cut_in_a_terminal_of_80_columns(monkeypatch):
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    text, longest = io.StringIO(), "combined_T10.0to1.0_A0.9to0.3"
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    with SweepProgress(True, console) as shown:
        shown.begin("seed42.003", members=132, epochs=50, done=67)
        shown.best(longest, 0.9253)
        shown.epoch(EpochReport(longest, 11, 50, 0.5, 0.9, 0.9, jets=4_200_000, seconds=60.0))
    lines = [Text.from_ansi(line).plain.strip() for line in text.getvalue().splitlines()]
    bar, best = [line for line in lines if line][-2:]
    assert re.fullmatch(r"seed42\.003 ━+ +67/199 done, epoch 12/50, 70,000 jets/s, 109.8 h left", bar), bar
    assert best == f"best so far 0.9253 {longest}"


def test_plain_lines_in_a_notebook_without_ipywidgets(monkeypatch, capsys):
    """rich would warn at each update that it needs ipywidgets, and show nothing: a warning fails this test."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with SweepProgress() as shown:
        shown.begin("seed 42", members=1, epochs=4)
        shown.epoch(report("x", 0))
        shown.member(finished("x"))
    assert capsys.readouterr().err.startswith("seed 42: x done, AUC(val) 0.8000 (1/1 done, ")


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet(terminal):
    assert show(terminal, enabled=False) == ""


def test_events_may_come_from_several_threads():
    text = io.StringIO()
    with SweepProgress(True, Console(file=text, width=200)) as shown:
        shown.begin("seed 42", members=8, epochs=50)

        def member(name: str) -> None:
            for epoch in range(50):
                shown.epoch(report(name, epoch))
            shown.member(finished(name))

        threads = [threading.Thread(target=member, args=(f"m{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = text.getvalue().splitlines()
    assert len(lines) == 8
    assert "8/8 done" in lines[-1]


def test_what_an_earlier_process_trained_of_a_member_is_not_waited_for():
    text = io.StringIO()
    with SweepProgress(True, Console(file=text, width=200)) as shown:
        shown.begin("seed 42", members=2, epochs=50)
        shown.epoch(report("a", 47))  # went on inside its 48th epoch
        shown.member(finished("b"))
        shown.epoch(report("a", 48))
        shown.epoch(report("a", 49))
        shown.member(finished("a"))
    b, a = text.getvalue().splitlines()
    assert "1/2 done, epoch 48/50, " in b
    assert b.rstrip(")").endswith(" left")  # two epochs
    assert " left" not in a


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (200, "3 min"), (9000, "2.5 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
