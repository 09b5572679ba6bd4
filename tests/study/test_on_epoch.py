"""on_epoch: every epoch of every run, a clean stop where it raises, and the examples of the documentation."""

import sys
import threading
from unittest.mock import MagicMock

import pytest

import kdfast
from kdfast.distill.pack import EpochReport
from kdfast.errors import CallbackError, ConfigError
from kdfast.store.store import StudyStore
from tests.study.small_sweep import GRID, small_sweep
from tests.test_documentation import python_blocks


def test_every_epoch_of_every_run_one_at_a_time(tmp_path):
    reports: list[EpochReport] = []
    free = threading.Lock()

    def on_epoch(report: EpochReport) -> None:
        assert free.acquire(blocking=False)
        reports.append(report)
        free.release()

    small_sweep(tmp_path / "study", seeds=(1, 2), on_epoch=on_epoch)
    runs = {("teacher", 42), *((name, seed) for seed in (1, 2) for name in ("baseline", *(run.name for run in GRID)))}
    assert sorted((r.member, r.seed, r.epoch) for r in reports) == sorted((*run, e) for run in runs for e in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("member", ["teacher", GRID[1].name])
def test_an_error_stops_the_sweep_which_then_resumes(tmp_path, swept, member):
    out = tmp_path / "study"

    def on_epoch(report: EpochReport) -> None:
        if report.member == member and report.epoch == 0:
            raise ValueError("no connection")

    with pytest.raises(CallbackError) as caught:
        small_sweep(out, on_epoch=on_epoch)
    assert str(caught.value) == (
        f"on_epoch, {member}, seed 42, epoch 0: raised ValueError: no connection\n"
        "finished runs and checkpoints are stored: rerun the same call to resume"
    )
    assert isinstance(caught.value.__cause__, ValueError)
    assert StudyStore.open(out).attempts() == []  # the pack has not failed
    (checkpoint,) = out.glob(f"checkpoints/*.{member}.seed42/*/checkpoint.json")
    assert '"step"' in checkpoint.read_text()
    resumed: list[EpochReport] = []
    study = small_sweep(out, on_epoch=resumed.append)
    assert 0 not in [report.epoch for report in resumed if report.member == member]
    assert study.results.equals(swept.results)


def test_not_where_other_processes_train(tmp_path):
    with pytest.raises(ConfigError, match="on_epoch: is called where the training runs, and other processes train"):
        small_sweep(tmp_path / "study", plan_only=True, on_epoch=print)


REPORT = EpochReport("baseline", 3, 4, 0.5, 0.8, 0.81, 1000, 2.0, seed=7)


@pytest.mark.parametrize("tracker", ["torch.utils.tensorboard", "wandb", "mlflow"])
def test_examples_of_trackers(tracker, monkeypatch):
    """With a stand-in for the tracker that notes the calls."""
    (block,) = (
        block
        for block in python_blocks("docs/how-to/sweeps.md")
        if f"{tracker} import" in block or f"import {tracker}\n" in block
    )
    fake = MagicMock()
    monkeypatch.setitem(sys.modules, tracker, fake)
    monkeypatch.setattr(kdfast, "sweep", lambda on_epoch: on_epoch(REPORT))
    exec(compile(block, tracker, "exec"), {"kdfast": kdfast})
    name = "auc_val/baseline/seed7"
    if tracker == "wandb":
        fake.init.return_value.log.assert_called_once_with({name: 0.8, "epoch": 3})
    elif tracker == "mlflow":
        run_id = fake.start_run.return_value.info.run_id
        fake.log_metric.assert_called_once_with(name, 0.8, 3, run_id=run_id)
    else:
        fake.SummaryWriter.return_value.add_scalar.assert_called_once_with(name, 0.8, 3)


def test_tensorboard_itself(monkeypatch, tmp_path):
    pytest.importorskip("tensorboard")
    (block,) = (block for block in python_blocks("docs/how-to/sweeps.md") if "tensorboard" in block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kdfast, "sweep", lambda on_epoch: on_epoch(REPORT))
    names = {"kdfast": kdfast}
    exec(compile(block, "tensorboard", "exec"), names)
    names["writer"].close()
    assert list(tmp_path.glob("runs/events.out.*"))
