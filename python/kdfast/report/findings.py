"""The report's statements. Each has a code, the numbers that it states, and a sentence of them
(templates/findings.j2).

A direction (higher, lower, rises, falls) is stated only where its family of tests supports it (families.py);
else the statement says "not significantly different", with the interval. Without scores per jet nothing is
tested, and nothing is stated but that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdfast.distill.schedules import shown
from kdfast.report.layout import first_upper
from kdfast.report.physics import FEWEST_IN_BIN
from kdfast.report.rendering import environment
from kdfast.report.schema import Analysis
from kdfast.report.schema.choices import Convergence
from kdfast.report.schema.runs import Configuration
from kdfast.report.schema.settings import GroupTable
from kdfast.report.schema.values import SIGNIFICANT, Claim, Comparison, Estimate, Finding, Metric

__all__ = ["converged", "finding", "findings", "group_finding", "seeds_are_known", "versus"]

NO_TEACHER = "the baseline without a teacher"

# Metrics with the digits that sentences show.
_METRICS: dict[Metric, int] = {"auc": 4, "rejection": 2}


def findings(analysis: Analysis) -> list[Finding]:
    """All statements, by topic."""
    if not analysis.study.scored:
        return [*_precision(analysis), *_convergence(analysis)]
    return [
        *_precision(analysis),
        *_convergence(analysis),
        *_baseline(analysis),
        *_refined(analysis),
        *_best(analysis),
        *_seeds(analysis),
        *_planned(analysis),
        *_groups(analysis),
        *_effects(analysis),
        *_choices(analysis),
        *_gap(analysis),
        *_pt(analysis),
        *_mass(analysis),
        *_calibration(analysis),
    ]


def finding(topic: str, code: Claim, supported: bool, **numbers: Any) -> Finding:
    """A statement with its sentence."""
    template = environment().get_template("findings.j2")
    text = shown(str(getattr(template.module, code.value)(numbers, supported)))
    return Finding(topic=topic, code=code, supported=supported, numbers=numbers, text=text)


def versus(topic: str, one: str, other: str, comparison: Comparison, metric: Metric, **more: Any) -> Finding:
    """One against the other. one: as at the beginning of a sentence. more: further numbers to state."""
    difference = comparison.difference
    supported = comparison.supported
    if difference.value == difference.error == 0.0:
        code = Claim.EQUAL
    elif not supported:
        code = Claim.NOT_DIFFERENT
    else:
        code = Claim.HIGHER if difference.value > 0 else Claim.LOWER
    tests = {"p_value": comparison.p_value, "p_adjusted": comparison.p_adjusted}
    needed = {"seeds_needed": None, "jets_needed": None, "at_equal_settings": False} | more
    return finding(topic, code, supported, one=one, other=other, metric=metric, **_ends(difference), **tests, **needed)


def seeds_are_known(analysis: Analysis) -> bool:
    """Whether the variance between seeds could be measured: not with one seed, nor where too few runs share
    them."""
    return analysis.distribution is not None and analysis.distribution.seed_df > 0


def _ends(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _kind(analysis: Analysis) -> str:
    """Where the variance between seeds is unknown, trained networks are compared."""
    return "configuration" if seeds_are_known(analysis) else "trained network"


def _scope(analysis: Analysis) -> dict[str, Any]:
    """How far statements on settings go: what is seen among networks of one seed need not hold for another."""
    seeds = "known" if seeds_are_known(analysis) else "one" if len(analysis.study.seeds) == 1 else "unknown"
    return {"scope_seeds": seeds}


# ---- what the numbers support


def _precision(analysis: Analysis) -> Iterator[Finding]:
    d = analysis.distribution
    test = analysis.study.test
    if d is None:
        return
    if not analysis.study.scored:
        yield finding("precision", Claim.NO_SCORES, False)
    if test is not None and min(test.signal, test.background) < FEWEST_IN_BIN:
        jets = {"signal": test.signal, "background": test.background}
        yield finding("precision", Claim.FEW_JETS, False, **jets, fewest=FEWEST_IN_BIN)
    for metric, digits in _METRICS.items():
        spread = getattr(d, metric).std
        error = getattr(d, f"{metric}_error")
        if spread is None or not error:  # 0: all AUCs are 1
            continue
        paired = getattr(d, f"{metric}_paired_error")
        if paired is not None and round(paired, digits) == 0.0:
            paired = None
        numbers = {"metric": metric, "runs": d.runs, "spread": spread, "error": error, "paired": paired}
        yield finding("precision", Claim.SPREAD, False, **numbers, kind=_kind(analysis))


def _convergence(analysis: Analysis) -> Iterator[Finding]:
    c = analysis.convergence
    if c is None:
        return
    slope = None if c.slope is None or c.slope.error is None else {"value": c.slope.value, "error": c.slope.error}
    groups = {name: list(counts) for name, counts in c.groups.items()}
    numbers = {"runs": c.runs, "late": c.late, "stopped": c.stopped, "slope": slope, "groups": groups}
    yield finding("convergence", Claim.CONVERGENCE, converged(c), **numbers)


def converged(convergence: Convergence) -> bool:
    """Whether at most a tenth of the runs were best among their last epochs; of fewer than ten, one may be."""
    return convergence.late <= max(1.0, convergence.runs / 10)


def _versus_baseline(topic: str, one: str, row: Configuration) -> Iterator[Finding]:
    """A configuration against the baseline, by each metric that has a comparison."""
    for metric in _METRICS:
        comparison = getattr(row, f"{metric}_vs_baseline")
        if comparison is not None:
            yield versus(topic, one, NO_TEACHER, comparison, metric)


def _baseline(analysis: Analysis) -> Iterator[Finding]:
    rows = analysis.configurations
    kind = _kind(analysis)
    several = len(rows) > 1  # of a single one the last statement speaks
    for metric in _METRICS if several else ():
        compared = [found for row in rows if (found := getattr(row, f"{metric}_vs_baseline")) is not None]
        if not compared:
            continue
        significant = [c.difference.value for c in compared if c.supported]
        counts = {
            "compared": len(compared),
            "higher": sum(value > 0 for value in significant),
            "lower": sum(value < 0 for value in significant),
            "limits": len(rows) - len(compared),
        }
        numbers = {"metric": metric, "kind": kind, **counts}
        yield finding("improvement", Claim.BASELINE_COUNTS, bool(significant), **numbers)
    for metric, comparison in analysis.mean_vs_baseline.items() if several else ():
        yield versus("improvement", f"The mean of all {len(rows)} {kind}s", NO_TEACHER, comparison, metric)
    chosen = _chosen(analysis)
    if chosen is not None:
        yield from _versus_baseline("improvement", chosen.run_name, chosen)


def _refined(analysis: Analysis) -> Iterator[Finding]:
    """The leaders against the baseline, by the seeds that did not choose them."""
    if analysis.refinement is not None:
        for row in analysis.refinement.configurations:
            yield from _versus_baseline("refined", f"With {row.runs} further seeds, {row.run_name}", row)


def _chosen(analysis: Analysis) -> Configuration | None:
    """The configuration that is chosen for its AUC."""
    names = [winner.configuration for winner in analysis.winners if winner.goal == "auc"]
    return next((row for row in analysis.configurations if row.run_name in names), None)


def _best(analysis: Analysis) -> Iterator[Finding]:
    n = len(analysis.configurations)
    for winner in analysis.winners:
        if winner.best_set_size is None or n < 2:
            continue
        metric: Metric = "auc" if winner.goal == "auc" else "rejection"
        excess = winner.excess_on_test
        if excess is not None and round(excess, _METRICS[metric]) == 0.0:
            excess = None
        size = winner.best_set_size
        numbers = {"metric": metric, "kind": _kind(analysis), "size": size, "of": n, "excess": excess}
        numbers["excess_chosen"] = winner.excess_chosen
        yield finding(f"best_{winner.goal}", Claim.BEST_SET, size < n, **numbers)
    for two in analysis.top_two:
        needed = {"seeds_needed": two.seeds_needed, "jets_needed": two.jets_needed}
        yield versus("top_two", two.first, two.second, two.difference, two.metric, **needed)


def _seeds(analysis: Analysis) -> Iterator[Finding]:
    if not seeds_are_known(analysis):
        yield finding("seeds", Claim.SEED_VARIANCE_UNKNOWN, False, seeds=len(analysis.study.seeds))
    if analysis.rank_agreement is not None:
        agreement = analysis.rank_agreement
        supported = agreement.p_adjusted < SIGNIFICANT
        yield finding("seeds", Claim.RANK_AGREEMENT, supported, **agreement.model_dump())


# ---- effects of settings


def _planned(analysis: Analysis) -> Iterator[Finding]:
    for contrast in analysis.planned:
        topic = f"planned_{contrast.question}_{contrast.metric}"
        one, other = first_upper(contrast.one), contrast.other
        yield versus(topic, one, other, contrast.comparison, contrast.metric, at_equal_settings=True)


def _groups(analysis: Analysis) -> Iterator[Finding]:
    for table in analysis.groups:
        for metric in _METRICS:
            found = group_finding(table, metric, **_scope(analysis))
            if found is not None:
                yield found


def group_finding(table: GroupTable, metric: Metric, **scope: Any) -> Finding | None:
    """The group of the highest mean against the others. At equal other settings another one may be higher,
    as groups have different shares of these. None where nothing is compared."""
    reference = table.reference if metric == "auc" else table.reference_rejection
    compared = {g.label: c for g in table.groups if (c := getattr(g, f"{metric}_difference")) is not None}
    if not compared or reference is None:
        return None
    significant = {label: c.difference for label, c in compared.items() if c.supported}
    lower = [label for label, difference in significant.items() if difference.value < 0]
    higher = [label for label, difference in significant.items() if difference.value > 0]
    among = {label: c.difference for label, c in compared.items() if label in lower or not lower}
    against = min(among, key=lambda label: among[label].value)
    gain = among[against]
    numbers: dict[str, Any] = {
        "setting": table.setting,
        "metric": metric,
        "reference": reference,
        "compared": list(compared),
        "unresolved": [g.label for g in table.groups if g.label != reference and g.label not in compared],
        "lower": lower,
        "higher": higher,
        "against": against,
        "value": -gain.value,
        "low": None if gain.high is None else -gain.high,
        "high": None if gain.low is None else -gain.low,
    }
    if higher:
        code = Claim.GROUP_BELOW_ANOTHER
        numbers["highest"] = max(higher, key=lambda label: significant[label].value)
        numbers["above"] = _ends(significant[numbers["highest"]])
    elif len(lower) == len(compared):
        code = Claim.GROUP_HIGHEST
    else:
        code = Claim.GROUP_HIGHER_THAN_SOME if lower else Claim.GROUP_NOT_DIFFERENT
    scope = {"scope_seeds": "known"} | scope
    return finding(f"{table.setting}_{metric}", code, bool(significant), **numbers, **scope)


def _effects(analysis: Analysis) -> Iterator[Finding]:
    scope = _scope(analysis)
    for c in analysis.correlations:
        numbers = {"metric": c.metric, "setting": c.setting, "symbol": c.symbol, "r": c.r}
        numbers |= _ends(c.slope.difference)
        yield finding(f"correlation_{c.metric}", Claim.TREND, c.slope.supported, **numbers, **scope)
    for i in analysis.importance:
        numbers = {"metric": i.metric, "one": i.one, "other": i.other, **_ends(i.difference.difference)}
        yield finding("importance", Claim.IMPORTANCE, i.difference.supported, **numbers, **scope)
    for shares in analysis.variance_shares:
        yield finding(f"shares_{shares.metric}", Claim.SHARES, False, **shares.model_dump(), **scope)


def _choices(analysis: Analysis) -> Iterator[Finding]:
    first = _chosen(analysis)
    rows = analysis.configurations
    if first is None:
        return
    for winner in analysis.winners:
        for metric in _METRICS:
            comparison = getattr(winner, f"{metric}_vs_best")
            if comparison is not None:
                yield versus(f"choice_{winner.goal}", winner.configuration, first.run_name, comparison, metric)
    if len(rows) > 1 and not any(row.rejection.lower_limit for row in rows):
        yield finding("pareto", Claim.PARETO, False, front=[row.run_name for row in rows if row.pareto])


def _gap(analysis: Analysis) -> Iterator[Finding]:
    chosen = _chosen(analysis)
    if chosen is None:
        return
    for metric in _METRICS:
        gap: Estimate | None = getattr(chosen, f"gap_recovered_{metric}")
        if gap is not None:
            code = Claim.GAP_UNCERTAIN if gap.low is None or gap.high is None else Claim.GAP
            supported = gap.low is not None and gap.low > 0
            yield finding("gap", code, supported, metric=metric, run_name=chosen.run_name, **_ends(gap))


# ---- the tagger


def _networks(analysis: Analysis) -> dict[str, str]:
    """The networks shown, by role, in words."""
    words = {"baseline": "the baseline", "student": "the best student"}
    found = {}
    for network in analysis.networks:
        if network.role == "teacher":
            found["teacher"] = "the teacher"
        else:
            name = "" if network.run_name == "baseline" else f"{network.run_name}, "  # with further settings
            found[network.role] = f"{words[network.role]} ({name}seed {network.seed})"
    return found


def _pt(analysis: Analysis) -> Iterator[Finding]:
    for trend in analysis.pt_differences:
        bins = [b for b in analysis.by_pt if b.role == trend.role]  # outer ones may be left out
        low, high = (f"{b.pt_low:.0f} to {b.pt_high:.0f} GeV" for b in (bins[0], bins[-1]))
        network = _networks(analysis)[trend.role]
        yield versus("pt", f"{first_upper(network)} at pT of {high}", f"at {low}", trend.auc, "auc")


def _mass(analysis: Analysis) -> Iterator[Finding]:
    for mass in analysis.mass_sculpting:
        if mass.efficiency != 50:
            continue
        stated = ("corrected", "low", "high", "p_adjusted", "survivors")
        numbers = {name: getattr(mass, name) for name in stated}
        network = _networks(analysis)[mass.role]
        yield finding("mass", Claim.MASS, mass.p_adjusted < SIGNIFICANT, network=network, **numbers)


def _calibration(analysis: Analysis) -> Iterator[Finding]:
    for calibration in analysis.calibration:
        slope = calibration.slope
        intercept = calibration.intercept
        if slope is None or intercept is None:
            continue
        faults = []
        if slope.excludes(1.0):
            faults.append("extreme" if slope.value < 1 else "timid")
        if intercept.excludes(0.0):
            faults.append("signal" if intercept.value < 0 else "background")
        numbers: dict[str, Any] = {
            "network": _networks(analysis)[calibration.role],
            "faults": faults,
            "slope": _ends(slope),
            "intercept": _ends(intercept),
            "expected_error": calibration.expected_error,
        }
        yield finding("calibration", Claim.CALIBRATION, bool(faults), **numbers)
