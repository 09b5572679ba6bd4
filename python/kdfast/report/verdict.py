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
    lights = [_seeds(analysis), _jets(analysis), _convergence(analysis)]
    template = environment().get_template("verdict.txt.j2")
    rows = analysis.judged.configurations
    compared = [(row.auc.value, row.auc_vs_baseline) for row in rows if row.auc_vs_baseline is not None]
    significant = [c.difference.value for _, c in compared if c.supported]
    values = [auc - c.difference.value for auc, c in compared]  # of the baselines, over the same seeds
    text = template.render(
        a=analysis,
        d=analysis.distribution,
        kind="configurations" if seeds_are_known(analysis) else "students",
        compared=len(compared),
        higher=sum(value > 0.0 for value in significant),
        lower=sum(value < 0.0 for value in significant),
        mean=analysis.mean_vs_baseline.get("auc"),
        baseline=sum(values) / len(values) if values else None,
        several=bool(values) and max(values) - min(values) > ROUNDING,
        advice=[light.advice for light in lights if light.advice],
    )
    return Verdict(text=" ".join(text.split()), rows=_rows(analysis), lights=lights)


def _rows(analysis: Analysis) -> list[VerdictRow]:
    found = []
    mean = analysis.mean_vs_baseline.get("auc")
    if mean is not None and len(analysis.configurations) > 1:
        found.append(VerdictRow(label=f"mean of all {len(analysis.configurations)}", comparison=mean))
    rows = {row.run_name: row for row in analysis.judged.configurations}
    words = {"auc": "chosen", "constant": "best with constant T and α"}
    for winner in analysis.judged.winners:
        comparison = rows[winner.configuration].auc_vs_baseline
        if winner.goal in words and comparison is not None:
            label = f"{words[winner.goal]}: {shown(winner.configuration)}"
            found.append(VerdictRow(label=label, comparison=comparison))
    return found


# ---- what limits the answer


def _seeds(analysis: Analysis) -> Light:
    number = len(analysis.study.seeds)
    if not analysis.study.seeds_given:
        return Light(about="seeds", state="unknown", text="the imported files name no seeds", advice="")
    if analysis.refinement is not None:
        number = len(analysis.refinement.seeds)
        if number >= _ENOUGH_SEEDS:
            return Light(about="seeds", state="good", text=f"the leaders have {number} further seeds", advice="")
        text = f"the leaders are judged by {number} further seeds"
        text = text if number > 1 else "the leaders have one further seed"
        return Light(about="seeds", state="fair", text=text, advice="give the leaders more seeds (kdfast refine)")
    if number >= _ENOUGH_SEEDS and seeds_are_known(analysis):
        return Light(about="seeds", state="good", text=f"{number} seeds", advice="")
    if number > 1 and seeds_are_known(analysis):
        text = f"{number} seeds: the variance between seeds is known roughly"
        return Light(about="seeds", state="fair", text=text, advice=f"train with {_ENOUGH_SEEDS} seeds")
    why = "one seed" if number == 1 else "too few runs share seeds"
    text = f"{why}: trained networks are compared, not configurations"
    imported = "imported" in analysis.study.provenance
    advice = "" if imported else "train with five seeds, or give the leaders more (kdfast refine)"
    return Light(about="seeds", state="poor", text=text, advice=advice)


def _jets(analysis: Analysis) -> Light:
    """Whether the test jets resolve differences as large as the spread of the configurations."""
    d = analysis.distribution
    test = analysis.study.test
    if d is None or test is None or d.auc_paired_error is None or d.auc.std is None:
        text = "no scores per jet: no difference can be tested"
        return Light(about="test jets", state="unknown", text=text, advice="sweep with kdfast, which keeps the scores")
    jets = f"{test.signal + test.background:,} test jets tell two {'means' if seeds_are_known(analysis) else 'runs'} "
    jets += f"apart to ± {d.auc_paired_error:.4f}; all spread by {d.auc.std:.4f}"
    if d.auc_paired_error <= d.auc.std / 3.0:
        return Light(about="test jets", state="good", text=jets, advice="")
    state = "fair" if d.auc_paired_error <= d.auc.std else "poor"
    return Light(about="test jets", state=state, text=jets, advice="test on more jets")  # type: ignore[arg-type]


def _convergence(analysis: Analysis) -> Light:
    c = analysis.convergence
    if c is None:
        return Light(about="convergence", state="unknown", text="no epochs are known", advice="")
    text = f"{c.late} of {c.runs} runs peak in the last tenth of their epochs"
    if c.runs == 1:
        text = f"the run {'peaks' if c.late else 'does not peak'} in the last tenth of its epochs"
    if converged(c):
        return Light(about="convergence", state="good", text=text, advice="")
    state = "fair" if c.late <= c.runs / 3 else "poor"
    advice = f"train longer ({text})"
    return Light(about="convergence", state=state, text=text, advice=advice)  # type: ignore[arg-type]
