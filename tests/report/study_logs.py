"""Logs and summary files in the format of the reproduced study, written from known numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdfast.distill.schedules import RunConfig

NAMES = {"teacher": "Teacher (Offline)", "baseline": "Baseline HLT (no KD)", "student": "Student with KD"}


@dataclass(frozen=True)
class Job:
    """What one job of the study found. auc and rejection by kind; epochs: lines (epoch, loss, val_auc, best)."""

    config: RunConfig
    auc: float = 0.8242
    rejection: float = 9.44
    teacher: tuple[float, float] = (0.9210, 30.12)
    baseline: tuple[float, float] = (0.8040, 8.33)
    epochs: Sequence[tuple[int, float, float, float]] = ()
    early: int | None = None
    auc_val: float | None = 0.8199
    name: str = ""
    more: Mapping[str, str] = field(default_factory=dict)  # of the banner, over what config says

    @property
    def run_name(self) -> str:
        return self.name or self.config.name


def banner(job: Job, number: int) -> str:
    c = job.config
    numbers = {
        "Run Name": job.run_name,
        "Temperature Init": str(c.temp_init),
        "Temperature Final": "constant" if c.temp_final is None else f"{c.temp_final} (annealing)",
        "Alpha Init": str(c.alpha_init),
        "Alpha Final": "constant" if c.alpha_final is None else f"{c.alpha_final} (scheduling)",
        **job.more,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in numbers.items())
    return f"""{"=" * 42}
Transformer KD Training - ATLAS Top Tagging
{"=" * 42}
Job ID: {number}
Node: node17
{"=" * 42}

Hyperparameters:
{lines}

Running command:
{command(job)}

"""


def command(job: Job) -> str:
    c = job.config
    final = "".join(
        f" --{name} {value}"
        for name, value in (("temp_final", c.temp_final), ("alpha_final", c.alpha_final))
        if value is not None
    )
    return (
        f"python transformer_runner.py     --save_dir checkpoints/search     --run_name {job.run_name}"
        f"     --temp_init {c.temp_init}     --alpha_init {c.alpha_init}{final} --device cpu"
    )


def log_text(job: Job, number: int = 1000001, *, with_banner: bool = True) -> str:
    """The text of one job's log."""
    epochs = "".join(f"Ep {e}: loss={loss}, val_auc={val}, best={best}\n" for e, loss, val, best in job.epochs)
    early = f"Early stopping student at epoch {job.early}\n" if job.early is not None else ""
    kept = f"Skipped saving student model (best val AUC={job.auc_val:.4f})\n" if job.auc_val is not None else ""
    aucs = {"teacher": job.teacher[0], "baseline": job.baseline[0], "student": job.auc}
    rejections = {"Teacher": job.teacher[1], "Baseline": job.baseline[1], "Student": job.rejection}
    results = "\n".join(f"{NAMES[kind]:<40}{value:>11.4f}" for kind, value in aucs.items())
    rejected = "\n".join(f"  {kind + ':':<9} {value:.2f}" for kind, value in rejections.items())
    return f"""{banner(job, number) if with_banner else ""}Device: cpu
Save dir: checkpoints/search/{job.run_name}
Avg particles per jet (raw mask): 39.7

{"=" * 70}
STEP 1: TEACHER (Offline / high-quality view)
{"=" * 70}
Loaded teacher with AUC=0.9138

{"=" * 70}
STEP 2: BASELINE HLT (Low-quality view, no KD)
{"=" * 70}
Loaded baseline with AUC=0.8893

{"=" * 70}
STEP 3: STUDENT with KD (HLT view + teacher guidance)
{"=" * 70}
{epochs}{early}{kept}
{"=" * 70}
FINAL TEST EVALUATION
{"=" * 70}

Model                                           AUC
{"-" * 52}
{results}
{"-" * 52}

Analysis:
  HLT Degradation: {job.teacher[0] - job.baseline[0]:.4f}
  KD Improvement:  {job.auc - job.baseline[0]:.4f}

Background Rejection at 50% signal efficiency:
{rejected}

Saved results to: checkpoints/search/{job.run_name}/results.npz

{"=" * 42}
Training completed successfully
{"=" * 42}
"""


def block(job: Job) -> str:
    """A run's block of the summary file."""
    c = job.config

    def span(first: float, last: float | None, what: str) -> str:
        return f"{first:.2f} (constant)" if last is None else f"{first:.2f} -> {last:.2f} ({what})"

    return f"""
Run: {job.run_name}
  Temperature: {span(c.temp_init, c.temp_final, "annealing")}
  Alpha_KD: {span(c.alpha_init, c.alpha_final, "scheduling")}
  Background Rejection @ 50% efficiency: {job.rejection:.2f}
  AUC (Student): {job.auc:.4f}
  Saved to: checkpoints/search/{job.run_name}
{"=" * 70}
"""


HEADER = f"""{"=" * 70}
TRANSFORMER KD - HYPERPARAMETER SEARCH RESULTS
Dataset: ATLAS Top Tagging
Started: 2026-01-09
{"=" * 70}
"""


def summary_text(jobs: Sequence[Job]) -> str:
    """The text of hyperparameter_search_results.txt."""
    return HEADER + "".join(block(job) for job in jobs)


def write_logs(folder: Path, jobs: Sequence[Job]) -> list[Path]:
    """One log a job, numbered as the study's are."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, job in enumerate(jobs, 1000001):
        path = folder / f"transformer_{number}.out"
        path.write_text(log_text(job, number))
        paths.append(path)
    return paths
