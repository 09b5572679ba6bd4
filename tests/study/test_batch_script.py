"""Files for batch systems: what they submit, by a stand-in of the batch system that keeps or runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdfast.cli import main
from kdfast.distill.recipe import Settings
from kdfast.errors import ConfigError, StudyError
from kdfast.store.packs import missing, planned
from kdfast.store.store import StudyStore
from kdfast.study.batch_script import htcondor_dag, slurm_script
from kdfast.study.plan import MemberCost, plan
from kdfast.study.worker import work
from tests.study.processes import wait_until
from tests.study.small_sweep import GRID

# Keeps the words that it was called with, a JSON list a line, and answers with a job's number, as `sbatch --parsable`
# does on one of several clusters.
SBATCH = """#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a+") as file:
    print(json.dumps(sys.argv[1:]), file=file)
    file.seek(0)
    print(f"{{100 + len(file.readlines())}};physics")
"""

ODD = 'it\'s "an odd" $(touch oops) `x` %j \\ \N{GREEK SMALL LETTER ALPHA}'


@pytest.fixture
def study(plan_in, tmp_path) -> Path:
    return plan_in(tmp_path / ODD)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder of commands that stand in for SLURM's; gives a function that returns the calls of sbatch so far."""
    commands = tmp_path / "commands"
    commands.mkdir()
    program(commands / "sbatch", SBATCH.format(python=sys.executable))
    program(commands / "scontrol", '#!/bin/sh\necho "$@" >> "$CALLS.scontrol"\n')
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def script(study: Path, path: Path, **options) -> Path:
    path.write_text(slurm_script(study, **options))
    subprocess.run(["bash", "-n", path], check=True)
    return path


def script_with_its_own_python(study: Path, **options) -> Path:
    """Beside the study, as is the Python."""
    text = slurm_script(study, **options).replace(f"python={sys.executable}", f"python={study.parent}/python")
    (study.parent / "mine.slurm").write_text(text)
    return study.parent / "mine.slurm"


def bash(file: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | variables
    return subprocess.run(
        ["bash", file, *arguments], env=environment, cwd=file.parent, text=True, capture_output=True, timeout=120
    )


def value(call: list[str], option: str) -> str:
    """Of the last one, which counts."""
    return [word for word in call if word.startswith(f"--{option}=")][-1].partition("=")[2]


def test_three_jobs_that_wait_for_each_other(study, tmp_path, cluster):
    file = script(study, tmp_path / "a file.slurm", time="2:00:00", memory="4G", partition="short", account="atlas")
    done = bash(file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "teacher: job 101, packs: array 102 of 3, report: job 103",
        "to take them back: scancel 101 102 103",
    ]
    teacher, array, report = cluster()
    assert [call[-3:] for call in (teacher, array, report)] == [
        ["--", str(file), role] for role in ("teacher", "pack", "report")
    ]
    common = {"time": "2:00:00", "mem": "4G", "partition": "short", "account": "atlas", "cpus-per-task": "3"}
    for call in (teacher, array, report):
        assert {option: value(call, option) for option in common} == common
        assert "--requeue" in call
        assert value(call, "signal").startswith("B:USR1@")
        # %% is a %, \\ a \ to SLURM; else it would put the job's number into the folder's name
        logs = str(study / "logs").replace("\\", "\\\\").replace("%", "%%")
        assert value(call, "output").startswith(logs + "/")
    assert value(array, "array") == "0-2"
    assert value(array, "dependency") == "afterok:101"
    assert value(report, "dependency") == "afterany:102"
    assert not list(tmp_path.glob("**/oops"))


@pytest.mark.slow
def test_a_job_trains_its_pack(study, tmp_path, cluster):
    """As SLURM would run it; ci/slurm has one that does."""
    file = script(study, tmp_path / "mine.slurm")
    done = bash(file, "pack", SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="1", SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 0, done.stderr
    store = StudyStore.open(study)
    assert [bool(missing(store, pack).runs) for pack in planned(store)] == [True, False, True]
    work(study, progress=False)
    with pytest.raises(StudyError, match="all 3 packs are done: nothing to submit\n`kdfast report "):
        slurm_script(study)


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("teacher", ["worker", "--store", "STUDY", "--pack", "teacher", "--threads", "4", "--retry"]),
        ("pack", ["worker", "--store", "STUDY", "--pack", "seed42.002", "--threads", "4", "--retry"]),
        ("report", ["report", "STUDY"]),
    ],
)
def test_what_a_job_runs(study, tmp_path, monkeypatch, role, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    file = script_with_its_own_python(study, retry=True)
    notes = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('OMP_NUM_THREADS')]))"
    program(tmp_path / "python", f"#!{sys.executable}\n{notes}\n")
    done = bash(file, role, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="4", SLURM_ARRAY_TASK_ID="2")
    words, threads = json.loads(done.stdout)
    assert words == ["-m", "kdfast", *(str(study) if word == "STUDY" else word for word in expected)]
    assert threads == (None if role == "report" else "4")
    assert bash(file, "other").returncode == 2


def test_what_is_stored_is_not_submitted(study, tmp_path, cluster):
    work(study, pack="seed42.001", progress=False)
    done = bash(script(study, tmp_path / "mine.slurm"))
    assert done.stdout.splitlines()[0] == "packs: array 101 of 2, report: job 102"
    array, _ = cluster()
    assert value(array, "array") == "0-1"
    assert not [word for word in array if word.startswith("--dependency")]


@pytest.mark.parametrize(
    ("number", "code", "requeued"),
    [(signal.SIGUSR1, 75, "5_0\n"), (signal.SIGUSR1, 1, ""), (signal.SIGTERM, 75, "")],
)
def test_a_job_is_requeued_when_its_limit_is_near(study, tmp_path, cluster, number, code, requeued):
    """And not when its pack failed, or when someone ends the job: SLURM then sends TERM to the worker as well."""
    file = script_with_its_own_python(study)
    program(tmp_path / "python", STAND_IN.format(python=sys.executable, code=code))
    job = {"SLURM_JOB_ID": "6", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "1"}
    process = subprocess.Popen(["bash", file, "pack"], env=os.environ | job, cwd=tmp_path, start_new_session=True)
    wait_until((tmp_path / "ready").exists, "the stand-in is ready", 30)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    assert process.wait(timeout=30) == code
    calls = tmp_path / "calls.scontrol"
    assert (calls.read_text() if calls.exists() else "") == (f"requeue {requeued}" if requeued else "")
    assert (tmp_path / "ready").read_text() == f"{number}\n"


# A stand-in of Python that notes the signal it gets, takes a moment, and exits with a code.
STAND_IN = """#!{python}
import os, pathlib, signal, time
ready = pathlib.Path("ready")
def stop(number, frame):
    with ready.open("a") as file:
        print(number, file=file)
    time.sleep(0.5)
    os._exit({code})
signal.signal(signal.SIGUSR1, stop), signal.signal(signal.SIGTERM, stop)
ready.touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("refused", "taken_back"), [("teacher", ""), ("pack", "101\n"), ("report", "101 102\n")])
def test_nothing_is_left_of_a_submission_that_fails(study, tmp_path, cluster, refused, taken_back):
    """Where the cluster refuses one of the three jobs."""
    file = script(study, tmp_path / "mine.slurm")
    refusing = SBATCH.format(python=sys.executable) + f"    sys.exit('no' if sys.argv[-1] == {refused!r} else 0)\n"
    program(tmp_path / "commands" / "sbatch", refusing)
    program(tmp_path / "commands" / "scancel", '#!/bin/sh\necho "$@" > "$CALLS.scancel"\n')
    done = bash(file)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "no\n")
    calls = tmp_path / "calls.scancel"
    assert (calls.read_text() if calls.exists() else "") == taken_back


def test_a_dag_of_htcondor(plan_in, tmp_path):
    """ci has no HTCondor; docs/how-to/clusters.md says what was tried with one."""
    study = plan_in(tmp_path / "a $(HOME) study")
    work(study, pack="seed42.001", progress=False)
    lines = htcondor_dag(study, submit=['+JobFlavour = "workday"']).splitlines()
    assert [line for line in lines if line.startswith(("JOB", "VARS", "PARENT", "RETRY"))] == [
        "JOB seed42_000 worker",
        'VARS seed42_000 name="seed42.000"',
        "JOB seed42_002 worker",
        'VARS seed42_002 name="seed42.002"',
        "JOB report report",
        'VARS report name="report"',
        "PARENT seed42_000 CHILD report",
        "PARENT seed42_002 CHILD report",
        "RETRY ALL_NODES 3",
    ]
    worker = dict(line.strip().split(" = ", 1) for line in lines[: lines.index("}")] if " = " in line)
    assert worker["executable"] == sys.executable
    assert worker["initialdir"] == str(tmp_path / "a $(DOLLAR)(HOME) study")  # else HTCondor fills in its HOME
    assert worker["arguments"] == '"-m kdfast worker --store . --pack $(name) --threads 3"'
    assert (worker["request_cpus"], worker["request_memory"], worker["+JobFlavour"]) == ("3", "2GB", '"workday"')
    assert worker["on_exit_remove"] == "ExitCode =!= 75"
    assert (study / "logs").is_dir()
    lines = htcondor_dag(plan_in(tmp_path / "new"), cpus=2, memory="4GB").splitlines()
    assert "JOB teacher worker" in lines
    assert "PARENT teacher CHILD seed42_000" in lines
    assert "    request_memory = 4GB" in lines


def test_limits_and_cpus_come_from_the_plan(tmp_path, cluster):
    store = StudyStore.create_or_open(tmp_path / "study", {"data": {"seed": 42}, "device": "cuda"}, {})
    plan(store, [1], GRID, 4, threads=2, costs={Settings(): MemberCost(seconds=1000.0)})
    assert [(pack.threads, pack.seconds) for pack in planned(store)] == [(2, 2000.0), (2, 1000.0)]
    bash(script(store.path, tmp_path / "mine.slurm"))
    array = cluster()[1]
    assert (value(array, "time"), value(array, "cpus-per-task"), value(array, "gpus")) == ("80", "2", "1")
    bash(
        script(store.path, tmp_path / "mine.slurm", cpus=5, sbatch=["--time=9 '--comment=two words'", "--gpus=a100:1"])
    )
    array = cluster()[4]
    assert (value(array, "time"), value(array, "cpus-per-task"), value(array, "gpus")) == ("9", "5", "a100:1")
    assert "--comment=two words" in array


def test_errors(tmp_path, capfd):
    store = StudyStore.create_or_open(tmp_path / "empty", {}, {})
    with pytest.raises(StudyError, match="has no packs to submit\n`kdfast sweep --plan-only` makes them"):
        slurm_script(store.path)
    with pytest.raises(ConfigError, match="sbatch: can't be split into words: No closing quotation"):
        slurm_script(store.path, sbatch=["--comment='"])
    assert main(["script", "slurm", str(tmp_path / "none")]) == 2
    assert capfd.readouterr().err.startswith(f"kdfast: {tmp_path / 'none'}: does not exist")


def test_the_command_prints_the_file(study, capfdbinary):
    options = ["--time=5", "--cpus=2", "--memory=1G", "--partition=a", "--account=b"]
    assert main(["script", "slurm", str(study), *options, "--sbatch", "--qos=c", "--retry"]) == 0
    expected = slurm_script(
        study, time="5", cpus=2, memory="1G", partition="a", account="b", sbatch=["--qos=c"], retry=True
    )
    assert capfdbinary.readouterr().out.decode() == expected
    assert main(["script", "htcondor", str(study), "--cpus=2", "--submit", "nice_user = True", "--retry"]) == 0
    expected = htcondor_dag(study, cpus=2, submit=["nice_user = True"], retry=True)
    assert "--threads 2 --retry" in expected
    assert capfdbinary.readouterr().out.decode() == expected
