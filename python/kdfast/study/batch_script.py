"""Files to submit to a batch system: a planned study as jobs of SLURM or HTCondor.

Each job is a `kdfast worker` for one pack, of the Python that made the file. Packs go by name, not by number,
so that planning more of them does not change what a job that waits in a queue will do.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdfast._version import __version__
from kdfast.errors import ConfigError, StudyError
from kdfast.files import writing_errors
from kdfast.store.key import RunKey
from kdfast.store.packs import PlannedPack, missing, no_packs, planned
from kdfast.store.store import StudyStore

__all__ = ["htcondor_dag", "slurm_script"]

# Seconds between the warning and the time limit. A worker needs up to ten to save its members; SLURM may warn
# a minute earlier or later.
WARNING = 120

# A job that has been requeued this often gives up: it never gets far enough to save anything.
RESTARTS = 100

# Of a job of HTCondor, whose own default is some 100 MB. A worker on the bundled jets takes 0.5 GB.
MEMORY = "2GB"

# Minutes that a job may take where the plan does not say how long a pack takes.
MINUTES = 60


def slurm_script(
    study: str | PathLike[str],
    *,
    time: str | None = None,
    cpus: int | None = None,
    memory: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    sbatch: Sequence[str] = (),
    retry: bool = False,
) -> str:
    """A bash script that submits a planned study's teacher, the packs that are not done, and the report.

    time, cpus: of each job; None: as planned. memory, partition, account: None: the cluster's defaults.
    sbatch: more of its options, quoted as for a shell; they take precedence. retry: submits also packs that
    have failed three times.

    Raises ConfigError for options that can't be split into words, StudyError for a study without packs to
    submit.
    """
    try:
        more = [word for options in sbatch for word in shlex.split(options)]
    except ValueError as error:
        raise ConfigError(f"can't be split into words: {error}", where="sbatch", hint="quote as for a shell") from None
    jobs = _jobs(study, cpus, retry)
    folder = Path(jobs["study"])
    name = "kdfast-" + re.sub(r"[^\w.-]", "_", folder.name, flags=re.ASCII)
    options = {
        "time": time or _minutes(jobs["packs"]),
        "cpus-per-task": jobs["cpus"],
        "mem": memory,
        "partition": partition,
        "account": account,
        "gpus": 1 if jobs["gpu"] else None,
        "signal": f"B:USR1@{WARNING}",
        "open-mode": "append",  # of the log: a requeued job appends to it
    }
    words = [f"--{option}={value}" for option, value in options.items() if value is not None]
    log = str(folder).replace("\\", r"\\").replace("%", "%%") + f"/logs/{name}"
    options_of_all = [*words, "--requeue", *more]
    return _render("slurm.sh", **jobs, name=name, restarts=RESTARTS, options=options_of_all, log=log)


def htcondor_dag(
    study: str | PathLike[str],
    *,
    cpus: int | None = None,
    memory: str = MEMORY,
    submit: Sequence[str] = (),
    retry: bool = False,
) -> str:
    """A file for condor_submit_dag: a planned study's teacher, the packs that are not done, and the report.

    All machines must see the study under the same path; its folder logs/ is made here. cpus, memory: of each
    job (no cpus: as planned). submit: more lines of the submit descriptions; they take precedence. retry: as
    in `slurm_script`.

    Raises StudyError for a study without packs to submit, or whose folder logs/ can't be made.
    """
    jobs = _jobs(study, cpus, retry)
    logs = Path(jobs["study"]) / "logs"
    with writing_errors(logs):  # HTCondor makes no folders
        logs.mkdir(exist_ok=True)
    return _render("htcondor.dag", **jobs, memory=memory, submit=submit)


def _jobs(study: str | PathLike[str], cpus: int | None, retry: bool) -> dict[str, Any]:
    """What the files of both systems say: of the study, and of its packs that are not done."""
    store = StudyStore.open(Path(study))
    packs = planned(store)
    if not packs:
        raise no_packs(store, "to submit")
    if "search" in store.settings:
        what = "is a race, whose rounds are planned one after the other: the packs to submit are not known yet"
        hint = "run `kdfast worker` in as many jobs as you like, each to the end of the race"
        raise StudyError(what, where=str(store.path), hint=hint)
    left = [pack for pack in packs if missing(store, pack).runs]
    if not left:
        hint = f"`kdfast report {shlex.quote(str(store.path))}` writes its report"
        raise StudyError(f"all {len(packs)} packs are done: nothing to submit", where=str(store.path), hint=hint)
    return {
        "study": str(store.path.absolute()),
        "packs": left,
        "teacher": not store.has(RunKey.teacher(store.settings["data"]["seed"])),
        "cpus": cpus or max(pack.threads or 1 for pack in left),
        "gpu": str(store.settings.get("device", "")).startswith("cuda"),
        "retry": retry,
    }


def _minutes(packs: Sequence[PlannedPack]) -> int:
    """Twice what the plan thinks, and ten minutes to read the data; in tens."""
    seconds = max(pack.seconds or 0.0 for pack in packs)
    return 10 * math.ceil(2 * seconds / 600 + 1) if seconds else MINUTES


def _render(template: str, **values: Any) -> str:
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {
        "quote": lambda word: shlex.quote(str(word)),
        "literal": lambda text: text.replace("$", "$(DOLLAR)"),  # HTCondor replaces nothing in it
        "node": lambda pack: pack.replace(".", "_"),  # names of a DAG's nodes have no dots
    }
    return environment.get_template(template).render(version=__version__, python=sys.executable, **values)
