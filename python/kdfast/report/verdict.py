"""The first screen of a report: the answer in a few sentences, three comparisons, and what limits the answer."""

from __future__ import annotations

from kdfast.distill.schedules import shown
from kdfast.report.findings import converged, seeds_are_known
from kdfast.report.fitting import ROUNDING
from kdfast.report.rendering import environment
from kdfast.report.schema import Analysis
from kdfast.report.schema.choices import Light, Verdict, VerdictRow

__all__ = ["verdict"]

# From so many seeds on a mean over seeds has a variance that is known well enough (four degrees of freedom).
_ENOUGH_SEEDS = 5


def verdict(analysis: Analysis) -> Verdict:
    """The answer to the question whether a teacher helps, with its limits."""
    limits = {"seeds": _seeds, "test jets": _jets, "convergence": _convergence}
    lights = []
    for about, limit in limits.items():
        state, words, advice = limit(analysis)
        lights.append(Light(about=about, state=state, text=words, advice=advice))  # type: ignore[arg-type]
    template = environment().get_template("verdict.txt.j2")
    rows = analysis.judged.configurations
    compared = [(row.auc.value, row.auc_vs_baseline) for row in rows if row.auc_vs_baseline is not None]
    significant = [c.difference.value for _, c in compared if c.supported]
    values = [auc - c.difference.value for auc, c in compared]  # of the baselines, over the same seeds
    kind = "configurations" if seeds_are_known(analysis) else "students"
    text = template.render(
        a=analysis,
        d=analysis.distribution,
        kind=kind,
        judged=kind if analysis.refinement is None else "refined leaders",
        compared=len(compared),
        higher=sum(value > 0.0 for value in significant),
        lower=sum(value < 0.0 for value in significant),
        mean=analysis.mean_vs_baseline.get("auc"),
        baseline=sum(values) / len(values) if values else None,
        several=bool(values) and max(values) - min(values) > ROUNDING,
        advice=[light.advice for light in lights if light.advice],
        first_seeds=_first_seeds(analysis),
    )
    return Verdict(text=" ".join(text.split()), rows=_rows(analysis), lights=lights)


def _rows(analysis: Analysis) -> list[VerdictRow]:
    found = []
    mean = analysis.mean_vs_baseline.get("auc")
    if mean is not None and len(analysis.configurations) > 1:
        number = len(analysis.configurations)
        label = (
            f"mean of all {number}" if analysis.refinement is None else f"mean of {number}, {_first_seeds(analysis)}"
        )
        found.append(VerdictRow(label=label, comparison=mean))
    rows = {row.run_name: row for row in analysis.judged.configurations}
    words = {"auc": "chosen", "constant": "best with constant T and α"}
    for winner in analysis.judged.winners:
        comparison = rows[winner.configuration].auc_vs_baseline
        if winner.goal in words and comparison is not None:
            label = f"{words[winner.goal]}: {shown(winner.configuration)}"
            found.append(VerdictRow(label=label, comparison=comparison))
    return found


def _first_seeds(analysis: Analysis) -> str:
    """How many seeds the students had before a refinement gave the leaders more."""
    further = 0 if analysis.refinement is None else len(analysis.refinement.seeds)
    number = len(analysis.study.seeds) - further
    return "one seed" if number == 1 else f"{number} seeds"


# ---- what limits the answer: state, text and advice


def _seeds(analysis: Analysis) -> tuple[str, str, str]:
    number = len(analysis.study.seeds)
    if not analysis.study.seeds_given:
        return "unknown", "the imported files name no seeds", ""
    if analysis.refinement is not None:
        number = len(analysis.refinement.seeds)
        if number >= _ENOUGH_SEEDS:
            return "good", f"the leaders have {number} further seeds", ""
        text = f"the leaders are judged by {number} further seeds"
        text = text if number > 1 else "the leaders have one further seed"
        return "fair", text, "give the leaders more seeds (kdfast refine)"
    if number >= _ENOUGH_SEEDS and seeds_are_known(analysis):
        return "good", f"{number} seeds", ""
    if number > 1 and seeds_are_known(analysis):
        text = f"{number} seeds: the variance between seeds is known roughly"
        return "fair", text, f"train with {_ENOUGH_SEEDS} seeds"
    why = "one seed" if number == 1 else "too few runs share seeds"
    imported = "imported" in analysis.study.provenance
    advice = "" if imported else "train with five seeds, or give the leaders more (kdfast refine)"
    return "poor", f"{why}: trained networks are compared, not configurations", advice


def _jets(analysis: Analysis) -> tuple[str, str, str]:
    """Whether the test jets resolve differences as large as the spread of the configurations."""
    d = analysis.distribution
    test = analysis.study.test
    if d is None or test is None or d.auc_paired_error is None or d.auc.std is None:
        text = "no scores per jet: no difference can be tested"
        return "unknown", text, "sweep with kdfast, which keeps the scores"
    pair = "two means" if seeds_are_known(analysis) else "two runs"
    jets = f"{test.signal + test.background:,} test jets resolve the difference of {pair} "
    jets += f"to ± {d.auc_paired_error:.4f}; the spread of all is {d.auc.std:.4f}"
    if d.auc_paired_error <= d.auc.std / 3.0:
        return "good", jets, ""
    return "fair" if d.auc_paired_error <= d.auc.std else "poor", jets, "test on more jets"


def _convergence(analysis: Analysis) -> tuple[str, str, str]:
    c = analysis.convergence
    if c is None:
        return "unknown", "no epochs are known", ""
    text = f"{c.late} of {c.runs} runs peak in the last tenth of their epochs"
    if c.runs == 1:
        text = f"the run {'peaks' if c.late else 'does not peak'} in the last tenth of its epochs"
    if converged(c):
        return "good", text, ""
    return "fair" if c.late <= c.runs / 3 else "poor", text, f"train longer ({text})"
