"""The report's statements. Each has a code, the numbers that it states, and a sentence of them
(templates/findings.j2).

A difference or an effect is claimed only where a test supports it at the 5 % level, after correction for
the number of comparisons where there are several; else the statement says "not significantly different",
with the interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kdfast.report.layout import first_upper
from kdfast.report.physics import FEWEST_IN_BIN
from kdfast.report.rendering import environment
from kdfast.report.schema import (
    SIGNIFICANT,
    Analysis,
    Claim,
    Comparison,
    Configuration,
    Estimate,
    Finding,
    GroupTable,
    Importance,
    Metric,
)

__all__ = [
    "NO_TEACHER",
    "beats_baseline",
    "finding",
    "findings",
    "group_finding",
    "seeds_are_known",
    "versus",
]

NO_TEACHER = "the baseline without a teacher"

# Metrics with the digits that sentences show.
_METRICS: dict[Metric, int] = {"auc": 4, "rejection": 2}


def findings(analysis: Analysis) -> list[Finding]:
    """All statements, by topic."""
    return [
        *_precision(analysis),
        *_baseline(analysis),
        *_best(analysis),
        *_seeds(analysis),
        *_groups(analysis),
        *_effects(analysis),
        *_consistency(analysis),
        *_choices(analysis),
        *_gap(analysis),
        *_pt(analysis),
        *_mass(analysis),
        *_calibration(analysis),
    ]


def finding(topic: str, code: Claim, supported: bool, **numbers: Any) -> Finding:
    """A statement with its sentence."""
    template = environment().get_template("findings.j2")
    text = str(getattr(template.module, code.value)(numbers, supported))
    return Finding(topic=topic, code=code, supported=supported, numbers=numbers, text=text)


def beats_baseline(row: Configuration) -> bool:
    """Whether a configuration has a significantly higher AUC or rejection than the baseline, and neither
    lower."""
    known = [c for c in (row.auc_vs_baseline, row.rejection_vs_baseline) if c is not None and c.supported]
    return bool(known) and all(c.difference.value > 0 for c in known)


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
    tests = {"p_value": comparison.p_value, "p_holm": comparison.p_holm}
    needed = {"seeds_needed": None, "jets_needed": None} | more
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
    """How far statements on settings go: what is seen among networks of one seed need not hold for another,
    and without scores per jet the error that all runs share is not in it."""
    seeds = "known" if seeds_are_known(analysis) else "one" if len(analysis.study.seeds) == 1 else "unknown"
    return {"scope_seeds": seeds, "scored": analysis.study.scored}


# ---- what the numbers support


def _precision(analysis: Analysis) -> Iterator[Finding]:
    d = analysis.distribution
    test = analysis.study.test
    if d is None:
        return
    if not analysis.study.scored:
        yield finding("precision", Claim.NO_SCORES, False)
    if test is not None and min(test.signal, test.background) < FEWEST_IN_BIN:
        numbers: dict[str, Any] = {"signal": test.signal, "background": test.background, "fewest": FEWEST_IN_BIN}
        yield finding("precision", Claim.FEW_JETS, False, **numbers)
    for metric, digits in _METRICS.items():
        spread = getattr(d, metric).std
        error = getattr(d, f"{metric}_error")
        if spread is None or not error:  # 0: all AUCs are 1
            continue
        paired = getattr(d, f"{metric}_paired_error")
        numbers = {
            "metric": metric,
            "runs": d.runs,
            "spread": spread,
            "error": error,
            "paired": paired if paired is not None and round(paired, digits) > 0.0 else None,
            "kind": _kind(analysis),
        }
        yield finding("precision", Claim.SPREAD, True, **numbers)


def _baseline(analysis: Analysis) -> Iterator[Finding]:
    rows = analysis.configurations
    kind = _kind(analysis)
    several = len(rows) > 1  # of a single one the last statement speaks
    for metric in _METRICS if several else ():
        compared = [found for row in rows if (found := getattr(row, f"{metric}_vs_baseline")) is not None]
        if not compared:
            continue
        significant = [c.difference.value for c in compared if c.supported]
        numbers: dict[str, Any] = {
            "metric": metric,
            "kind": kind,
            "compared": len(compared),
            "higher": sum(value > 0 for value in significant),
            "lower": sum(value < 0 for value in significant),
            "limits": len(rows) - len(compared),
        }
        yield finding("improvement", Claim.BASELINE_COUNTS, bool(significant), **numbers)
    for metric, comparison in analysis.mean_vs_baseline.items() if several else ():
        yield versus("improvement", f"The mean of all {len(rows)} {kind}s", NO_TEACHER, comparison, metric)
    chosen = _chosen(analysis)
    for metric in _METRICS if chosen is not None else ():
        comparison = getattr(chosen, f"{metric}_vs_baseline")
        if comparison is not None and chosen is not None:
            yield versus("improvement", chosen.run_name, NO_TEACHER, comparison, metric)


def _chosen(analysis: Analysis) -> Configuration | None:
    """The configuration that is chosen for its AUC."""
    names = [winner.configuration for winner in analysis.winners if winner.wish == "auc"]
    return next((row for row in analysis.configurations if row.run_name in names), None)


def _best(analysis: Analysis) -> Iterator[Finding]:
    n = len(analysis.configurations)
    for winner in analysis.winners:
        if winner.beside_best is None or n < 2:
            continue
        metric: Metric = "auc" if winner.wish == "auc" else "rejection"
        excess = winner.excess_on_test
        shown = excess is not None and round(excess, _METRICS[metric]) > 0.0
        numbers: dict[str, Any] = {
            "metric": metric,
            "kind": _kind(analysis),
            "size": winner.beside_best,
            "of": n,
            "excess": excess if shown else None,
            "excess_chosen": winner.excess_chosen,
        }
        yield finding(f"best_{winner.wish}", Claim.BEST_SET, winner.beside_best < n, **numbers)
    for two in analysis.top_two:
        needed = {"seeds_needed": two.seeds_needed, "jets_needed": two.jets_needed}
        yield versus("top_two", two.first, two.second, two.difference, two.metric, **needed)


def _seeds(analysis: Analysis) -> Iterator[Finding]:
    if not seeds_are_known(analysis):
        yield finding("seeds", Claim.SEED_VARIANCE_UNKNOWN, False, seeds=len(analysis.study.seeds))
    for agreement in analysis.rank_agreement:
        numbers: dict[str, Any] = {"seeds": list(agreement.seeds), "rho": agreement.rho, "p_value": agreement.p_value}
        yield finding("seeds", Claim.RANK_AGREEMENT, agreement.p_value < SIGNIFICANT, **numbers)


# ---- effects of settings


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
    scope = {"scope_seeds": "known", "scored": True} | scope
    return finding(f"{table.setting}_{metric}", code, bool(significant), **numbers, **scope)


def _effects(analysis: Analysis) -> Iterator[Finding]:
    scope = _scope(analysis)
    for c in analysis.correlations:
        supported = c.slope_p_holm < SIGNIFICANT and c.slope.excludes(0.0)
        numbers: dict[str, Any] = {"metric": c.metric, "setting": c.setting, "r": c.r, **_ends(c.slope)}
        yield finding(f"correlation_{c.metric}", Claim.TREND, supported, **numbers, **scope)
    for importance in analysis.importance:
        yield _importance(importance, scope)
    for model in analysis.models:
        terms = [{"name": t.name, **_ends(t.slope)} for t in model.terms if t.p_holm < SIGNIFICANT]
        products = {1: [], 2: ["their product"]}.get(len(model.settings), ["their products"])
        numbers = {
            "metric": model.metric,
            "settings": [*model.settings, *products],
            "r_squared": model.r_squared,
            "df": model.df,
            "terms": terms,
            "unresolved": model.untold,
        }
        yield finding(f"model_{model.metric}", Claim.SLOPES, bool(terms), **numbers, **scope)
    for shares in analysis.variance_shares:
        numbers = {
            "metric": shares.metric,
            "shares": shares.shares,
            "expected_noise": shares.expected_noise,
        }
        yield finding(f"shares_{shares.metric}", Claim.SHARES, True, **numbers, **scope)


def _importance(importance: Importance, scope: dict[str, Any]) -> Finding:
    numbers: dict[str, Any] = {"metric": importance.metric, **_ends(importance.difference.difference)}
    return finding("importance", Claim.IMPORTANCE, importance.difference.supported, **numbers, **scope)


def _consistency(analysis: Analysis) -> Iterator[Finding]:
    for table in analysis.groups:
        if table.setting != "strategy" or table.spread_p_value is None:
            continue
        known = [g for g in table.groups if g.consistency is not None]
        steadiest = max(known, key=lambda g: g.consistency or 0.0)
        numbers: dict[str, Any] = {
            "strategy": steadiest.label,
            "std": steadiest.auc.std,
            "p_value": table.spread_p_value,
        }
        supported = table.spread_p_value < SIGNIFICANT
        yield finding("consistency", Claim.CONSISTENCY, supported, **numbers, **_scope(analysis))


def _choices(analysis: Analysis) -> Iterator[Finding]:
    first = _chosen(analysis)
    rows = analysis.configurations
    if first is None:
        return
    for winner in analysis.winners:
        for metric in _METRICS:
            comparison = getattr(winner, f"{metric}_vs_best")
            if comparison is not None:
                yield versus(f"choice_{winner.wish}", winner.configuration, first.run_name, comparison, metric)
    if len(rows) > 1 and not any(row.rejection.lower_limit for row in rows):
        yield finding("pareto", Claim.PARETO, True, front=[row.run_name for row in rows if row.pareto])


def _gap(analysis: Analysis) -> Iterator[Finding]:
    chosen = _chosen(analysis)
    for metric in _METRICS if chosen is not None else ():
        gap: Estimate | None = getattr(chosen, f"gap_recovered_{metric}")
        if gap is None or chosen is None:
            continue
        numbers: dict[str, Any] = {"metric": metric, "run_name": chosen.run_name, **_ends(gap)}
        code = Claim.GAP_UNCERTAIN if gap.low is None or gap.high is None else Claim.GAP
        yield finding("gap", code, gap.low is not None and gap.low > 0, **numbers)


# ---- the tagger


def _networks(analysis: Analysis) -> dict[str, str]:
    """The networks shown, by role, in words."""
    words = {
        "teacher": "the teacher",
        "baseline": "the baseline (seed {0.seed})",
        "student": "the best student ({0.run_name}, seed {0.seed})",
    }
    return {network.role: words[network.role].format(network) for network in analysis.networks}


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
        numbers: dict[str, Any] = {
            "network": _networks(analysis)[mass.role],
            "corrected": mass.corrected,
            "low": mass.low,
            "high": mass.high,
            "p_value": mass.p_value,
            "survivors": mass.survivors,
        }
        yield finding("mass", Claim.MASS, mass.p_value < SIGNIFICANT, **numbers)


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
