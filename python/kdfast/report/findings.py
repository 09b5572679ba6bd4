"""The report's sentences. Each is made from a tested quantity: "higher" and "lower" only where the test says so at 5 %
(after correction for the number of comparisons, where there are several), else "no difference seen" with the interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kdfast.report.layout import STRATEGY_NAMES, p_text, percent
from kdfast.report.physics import FEWEST_IN_BIN
from kdfast.report.schema import Analysis, Comparison, Configuration, Estimate, Finding, GroupTable

__all__ = [
    "NO_TEACHER",
    "SIGNIFICANT",
    "beats_baseline",
    "findings",
    "is_supported",
    "seeds_are_known",
    "versus",
]

SIGNIFICANT = 0.05
NO_TEACHER = "the baseline without a teacher"
_METRICS = {"auc": ("AUC", 4), "rejection": ("rejection at 50 %", 2)}
_SETTINGS = {
    "temp_init": "initial temperature {}",
    "alpha_init": "initial α {}",
    "strategy": "the strategy {}",
    "temp_range": "annealing T {}",
    "alpha_range": "scheduling α {}",
}


def findings(analysis: Analysis) -> list[Finding]:
    """All sentences, by topic."""
    return [
        *_precision(analysis),
        *_baseline(analysis),
        *_best(analysis),
        *_seeds(analysis),
        *_with_scope(analysis, _groups(analysis)),
        *_with_scope(analysis, _importance(analysis)),
        *_with_scope(analysis, _consistency(analysis)),
        *_choices(analysis),
        *_gap(analysis),
        *_physics(analysis),
    ]


def is_supported(comparison: Comparison) -> bool:
    """Whether a difference is there: p (adjusted, where it is) below 5 %, and the interval without 0."""
    p = comparison.p_value if comparison.p_holm is None else comparison.p_holm
    low, high = comparison.difference.low, comparison.difference.high
    return p < SIGNIFICANT and low is not None and high is not None and not low <= 0.0 <= high


def beats_baseline(row: Configuration) -> bool:
    """Whether a configuration is seen to have a higher AUC or rejection than the baseline, and neither lower."""
    known = [c for c in (row.auc_vs_baseline, row.rejection_vs_baseline) if c is not None and is_supported(c)]
    return bool(known) and all(c.difference.value > 0 for c in known)


def versus(one: str, other: str, comparison: Comparison, metric: str) -> Finding:
    """A sentence on one against the other."""
    name, digits = _METRICS[metric]
    shown = _difference(comparison.difference, digits)
    supported = is_supported(comparison)
    if comparison.difference.value == comparison.difference.error == 0.0:
        text = f"{_capital(one)} and {other} have the same {name}: on these test jets nothing sets them apart."
    elif supported:
        word = "higher" if comparison.difference.value > 0 else "lower"
        text = f"{_capital(one)} has a {word} {name} than {other}: {shown}, {p_text(comparison)}."
    else:
        text = f"No difference in {name} seen between {one} and {other}: {shown}, {p_text(comparison)}."
    return Finding(topic="", text=text, supported=supported)


def _difference(difference: Estimate, digits: int) -> str:
    low, high = difference.low, difference.high
    return f"{difference.value:+.{digits}f} (95 % interval {low:+.{digits}f} to {high:+.{digits}f})"


def _negative(difference: Estimate) -> Estimate:
    low, high = difference.high, difference.low
    ends = {"low": None if low is None else -low, "high": None if high is None else -high}
    return difference.model_copy(update={"value": -difference.value, **ends})


def _capital(text: str) -> str:
    """The first letter as a capital, but for the names of runs."""
    return text if "_" in text.split(" ")[0] else text[0].upper() + text[1:]


def _with_scope(analysis: Analysis, found: Iterator[Finding]) -> Iterator[Finding]:
    """Says in front of what speaks of settings how far it goes: what is seen among networks of one seed need not hold
    for another, and without scores per jet the error that all share is not in it."""
    scope = ""
    if not seeds_are_known(analysis):
        one = len(analysis.study.seeds) == 1
        scope = "Among networks of one seed" if one else "Among these networks, whose seeds' part is not known"
    if not _has_scores(analysis):
        scope += ", by their scatter alone" if scope else "By the scatter of runs alone"
    for finding in found:
        yield finding.model_copy(update={"text": f"{scope}: {finding.text}"}) if scope else finding


def seeds_are_known(analysis: Analysis) -> bool:
    """Whether the variance between seeds could be measured: not with one seed, nor where too few runs share them."""
    return analysis.distribution is not None and analysis.distribution.seed_df > 0


def _has_scores(analysis: Analysis) -> bool:
    """Whether the errors from the test jets are known (an AUC of 1 has none, with scores as without)."""
    return analysis.study.scored


def _about(topic: str, finding: Finding) -> Finding:
    return finding.model_copy(update={"topic": topic})


def _kind(analysis: Analysis, number: int = 2) -> str:
    """Where nothing tells the variance between seeds, what is compared are trained networks."""
    word = "configuration" if seeds_are_known(analysis) else "trained network"
    return word if number == 1 else f"{word}s"


# ---- what the numbers can carry


def _precision(analysis: Analysis) -> Iterator[Finding]:
    d = analysis.distribution
    if d is None:
        return
    if not _has_scores(analysis):
        text = (
            "Without scores per jet the errors from the test jets are not known. All runs share them, so that trends "
            "may come about by chance: what is said of settings goes by the scatter of runs alone and looks surer than "
            "it is."
        )
        yield Finding(topic="precision", text=text, supported=False)
    test = analysis.study.test
    if test is not None and min(test.signal, test.background) < FEWEST_IN_BIN:
        text = (
            f"{test.signal} signal and {test.background} background test jets are too few: errors and tests hold only "
            f"with {FEWEST_IN_BIN} of each or more, and no sentence here can be relied on."
        )
        yield Finding(topic="precision", text=text, supported=False)
    for metric, (name, digits) in _METRICS.items():
        spread, error = getattr(d, metric).std, getattr(d, f"{metric}_error")
        if spread is None or not error:  # 0: all AUCs are 1
            continue
        word = "smaller" if spread < error else "larger"
        text = (
            f"The spread of {name} over the {d.runs} runs ({spread:.{digits}f}) is {word} than the standard error of "
            f"one run's number from the finite test jets ({error:.{digits}f})."
        )
        paired = getattr(d, f"{metric}_paired_error")
        if paired is not None and round(paired, digits) > 0.0:
            two = "two configurations' means over seeds" if seeds_are_known(analysis) else "two runs"
            text += f" All runs share the jets: the difference of {two} is known to {paired:.{digits}f} (median)."
        yield Finding(topic="precision", text=text, supported=True)


def _baseline(analysis: Analysis) -> Iterator[Finding]:
    rows = analysis.configurations
    for metric, (name, _) in _METRICS.items():
        compared = [c for row in rows if (c := getattr(row, f"{metric}_vs_baseline")) is not None]
        if not compared or len(rows) == 1:  # of a single one the last sentence speaks
            continue
        n, limits = len(compared), len(rows) - len(compared)
        above = sum(is_supported(c) and c.difference.value > 0 for c in compared)
        below = sum(is_supported(c) and c.difference.value < 0 for c in compared)
        text = (
            f"Of {n} {_kind(analysis, n)}, {above} {'has' if above == 1 else 'have'} a higher {name} than the baseline "
            f"without a teacher and {below} a lower one (5 % level after Holm's correction); for the other "
            f"{n - above - below} no difference is seen."
        )
        if limits:
            text += f" {limits} more {'is' if limits == 1 else 'are'} not compared: no background survives there."
        yield Finding(topic="improvement", text=text, supported=above + below > 0)
    for metric, comparison in analysis.mean_vs_baseline.items() if len(rows) > 1 else ():
        found = versus(f"the mean of all {len(rows)} {_kind(analysis)}", NO_TEACHER, comparison, metric)
        yield _about("improvement", found)
    chosen = _chosen(analysis, "auc")
    if chosen is not None:
        for metric in _METRICS:
            if (comparison := getattr(chosen, f"{metric}_vs_baseline")) is not None:
                yield _about("improvement", versus(chosen.run_name, NO_TEACHER, comparison, metric))


def _chosen(analysis: Analysis, wish: str) -> Configuration | None:
    names = [winner.configuration for winner in analysis.winners if winner.wish == wish]
    return next((row for row in analysis.configurations if row.run_name in names), None)


def _best(analysis: Analysis) -> Iterator[Finding]:
    n = len(analysis.configurations)
    for winner in analysis.winners:
        if winner.beside_best is None or n < 2:
            continue
        name, digits = _METRICS[winner.wish]
        inside = winner.beside_best
        text = f"{inside} of {n} {_kind(analysis)} can't be told from the best by {name} (95 % confidence set)."
        if winner.excess_on_test is not None and round(winner.excess_on_test, digits) > 0.0:
            text += (
                f" The highest of {n} equal ones would exceed its true value by {winner.excess_on_test:.{digits}f} on "
                f"average"
            )
            if winner.excess_chosen is not None:
                text += f"; chosen on validation and quoted from the test jets, by {winner.excess_chosen:.{digits}f} "
                text += "(luck of the seeds)."
            else:
                known = seeds_are_known(analysis)
                text += "." if known else " (luck of the test jets; that of the seed is not known)."
        yield Finding(topic=f"best_{winner.wish}", text=text, supported=winner.beside_best < n)
    for two in analysis.top_two:
        found = versus(two.first, two.second, two.difference, two.metric)
        needs = []
        if two.seeds_needed is not None:
            needs.append(f"{two.seeds_needed:,} seeds")
        if two.jets_needed is not None:
            million = two.jets_needed > 1_000_000
            needs.append("over a million test jets" if million else f"{two.jets_needed:,} test jets")
        if not found.supported and needs:
            more = f" If the difference were real as it is, it would take {' or '.join(needs)} to see it (80 % power)."
            found = found.model_copy(update={"text": found.text + more})
        yield _about("top_two", found)


def _seeds(analysis: Analysis) -> Iterator[Finding]:
    if not seeds_are_known(analysis):
        one = len(analysis.study.seeds) == 1
        why = "With one seed" if one else "As too few runs share configurations and seeds,"
        text = (
            f"{why} the numbers compare trained networks, not configurations: how much another seed would change them "
            "is not known."
        )
        yield Finding(topic="seeds", text=text, supported=False)
    for agreement in analysis.rank_agreement:
        a, b = agreement.seeds
        agree = agreement.p_value < SIGNIFICANT
        text = (
            f"Seeds {a} and {b} {'agree' if agree else 'are not seen to agree'} on the order of configurations by AUC: "
        )
        text += f"Spearman's ρ = {agreement.rho:+.2f} (p = {agreement.p_value:.2g}; the same test jets serve both)."
        yield Finding(topic="seeds", text=text, supported=agree)


# ---- effects


def _groups(analysis: Analysis) -> Iterator[Finding]:
    for table in analysis.groups:
        for metric in _METRICS:
            yield from _group_findings(table, metric)


def _group_findings(table: GroupTable, metric: str) -> Iterator[Finding]:
    """The group of the highest mean against the others. At equal other settings another one may be higher, as groups
    have different shares of these."""
    reference = table.reference if metric == "auc" else table.reference_rejection
    name, digits = _METRICS[metric]
    compared = [(g.label, c) for g in table.groups if (c := getattr(g, f"{metric}_difference")) is not None]
    if not compared or reference is None:
        return

    def called(label: str) -> str:
        shown = STRATEGY_NAMES[label].lower() if table.setting == "strategy" else label
        return _SETTINGS[table.setting].format(shown)

    def listing(labels: list[str]) -> str:
        return ", ".join(STRATEGY_NAMES[x].lower() if table.setting == "strategy" else x for x in labels)

    seen = {label: c.difference for label, c in compared if is_supported(c)}
    below = [label for label, difference in seen.items() if difference.value < 0]
    above = [label for label, difference in seen.items() if difference.value > 0]
    best = _capital(called(reference))
    among = {label: c.difference for label, c in compared if label in below or not below}
    lowest = min(among, key=lambda label: among[label].value)
    over = f"over {called(lowest)} {'by ' if below else ''}{_difference(_negative(among[lowest]), digits)}"
    told = [label for label, _ in compared]
    untold = [g.label for g in table.groups if g.label != reference and g.label not in told]
    if untold:  # "the others" would speak of these, too
        others = called(told[0]) if len(told) == 1 else f"each of {listing(told)}"
    else:
        others = "the other one" if len(told) == 1 else f"each of the other {len(told)}"
    if above:
        highest = max(above, key=lambda label: seen[label].value)
        text = (
            f"{best} has the highest raw mean {name}, but groups differ in their shares of other settings: at equal "
            f"ones {called(highest)} is higher, by {_difference(seen[highest], digits)}"
        )
        if rest := [label for label in above if label != highest]:
            text += f", and so {'is' if len(rest) == 1 else 'are'} {listing(rest)}"
        text += f"; it is higher than {listing(below)}, {over}" if below else ""
        text += " (5 % level after Holm's correction)."
    elif len(below) == len(compared):
        text = f"{best} has a higher mean {name} than {others}, at equal other settings; {over}."
    elif below:
        text = (
            f"{best} has the highest mean {name}; higher, at equal other settings, than {listing(below)} (5 % level "
            f"after Holm's correction), not seen to differ from the rest; {over}."
        )
    else:
        any_other = others.replace("each", "any")
        text = (
            f"{best} has the highest mean {name}, but is not seen to differ from {any_other} at equal other settings; "
            f"{over}."
        )
    if untold:
        them = "it" if len(untold) == 1 else "them"
        text += f" For {listing(untold)} this can't be told, as other settings change together with {them}."
    yield Finding(topic=f"{table.setting}_{metric}", text=text, supported=bool(seen))


def _importance(analysis: Analysis) -> Iterator[Finding]:
    symbols = {"temp_init": "T_init", "alpha_init": "α_init"}
    for c in analysis.correlations:
        name, digits = _METRICS[c.metric]
        seen = c.slope_p_holm < SIGNIFICANT and _excludes(c.slope, 0.0)
        word = ("rises" if c.slope.value > 0 else "falls") if seen else "is not seen to change"
        text = f"{_capital(name)} {word} with {symbols[c.setting]}: by {_difference(c.slope, digits + 1)} per unit"
        text += f", r = {c.r:+.3f}."
        yield Finding(topic=f"correlation_{c.metric}", text=text, supported=seen)
    for importance in analysis.importance:
        name, digits = _METRICS[importance.metric]
        supported = is_supported(importance.difference)
        ahead, behind = ("α_init", "T_init") if importance.difference.difference.value > 0 else ("T_init", "α_init")
        text = (
            f"{ahead} goes with larger changes of {name} over this grid than {behind}"
            if supported
            else f"The data can't tell which of T_init and α_init matters more for {name}"
        )
        shown = _difference(importance.difference.difference, digits)
        text += f": effect of one standard deviation, α_init minus T_init, {shown}."
        yield Finding(topic="importance", text=text, supported=supported)
    for model in analysis.models:
        name, digits = _METRICS[model.metric]
        seen_terms = [t for t in model.terms if t.p_holm < SIGNIFICANT]
        listing = "; ".join(f"{t.name} {_difference(t.slope, digits + 1)}" for t in seen_terms)
        products = ["their products" if len(model.settings) > 2 else "their product"]
        what = _joined(model.settings + products if len(model.settings) > 1 else model.settings)
        text = (
            f"In a linear model of {name} on {what} (R² = {model.r_squared:.2f}, {model.df} degrees of freedom) "
            f"{f'these slopes differ from 0 (Holm): {listing}' if seen_terms else 'no slope is seen to differ from 0'}"
        )
        text += f"; this grid can't tell those of {_joined(model.untold)}." if model.untold else "."
        yield Finding(topic=f"model_{model.metric}", text=text, supported=bool(seen_terms))
    for shares in analysis.variance_shares:
        name, _ = _METRICS[shares.metric]
        parts = ", ".join(f"{key} {100 * value:.0f} %" for key, value in shares.shares.items())
        text = f"Shares of the variance of {name} between configurations: {parts}."
        if shares.expected_noise > 0:
            text += (
                f" Noise alone (test jets, seeds) is expected to make {100 * min(shares.expected_noise, 1.0):.0f} %."
            )
        yield Finding(topic=f"shares_{shares.metric}", text=text, supported=True)


def _joined(names: Sequence[str]) -> str:
    """ "a, b and c" """
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)


def _consistency(analysis: Analysis) -> Iterator[Finding]:
    for table in analysis.groups:
        if table.setting != "strategy" or table.spread_p_value is None:
            continue
        known = [g for g in table.groups if g.consistency is not None]
        steadiest = max(known, key=lambda g: g.consistency or 0.0)
        differ = table.spread_p_value < SIGNIFICANT
        text = f"{STRATEGY_NAMES[steadiest.label]} has the smallest spread of AUC (std {steadiest.auc.std:.4f})"
        text += (
            f", and the strategies' spreads differ (Brown–Forsythe test, p = {table.spread_p_value:.2g})."
            if differ
            else f", but the strategies' spreads are not seen to differ (Brown–Forsythe test, p = "
            f"{table.spread_p_value:.2g})."
        )
        yield Finding(topic="consistency", text=text, supported=differ)


def _choices(analysis: Analysis) -> Iterator[Finding]:
    first = _chosen(analysis, "auc")
    if first is None:
        return
    for winner in analysis.winners:
        for metric in _METRICS:
            if (comparison := getattr(winner, f"{metric}_vs_best")) is not None:
                found = versus(winner.configuration, first.run_name, comparison, metric)
                yield _about(f"choice_{winner.wish}", found)
    front = [row.run_name for row in analysis.configurations if row.pareto]
    if (
        len(front)
        and len(analysis.configurations) > 1
        and not any(r.rejection.lower_limit for r in analysis.configurations)
    ):
        few = ", ".join(front[:6]) + (f" and {len(front) - 6} more" if len(front) > 6 else "")
        verb = "lies" if len(front) == 1 else "lie"
        text = f"On the Pareto front of mean AUC and mean rejection, errors aside, {verb} {few}."
        yield Finding(topic="pareto", text=text, supported=True)


def _gap(analysis: Analysis) -> Iterator[Finding]:
    chosen = _chosen(analysis, "auc")
    if chosen is None:
        return
    for metric, (name, _) in _METRICS.items():
        gap: Estimate | None = getattr(chosen, f"gap_recovered_{metric}")
        if gap is None:
            continue
        of = f"of the gap in {name} between baseline and teacher"
        if gap.low is None or gap.high is None:
            text = f"What {chosen.run_name} recovers {of} can't be told: the gap itself is too uncertain."
            yield Finding(topic="gap", text=text, supported=False)
            continue
        span = f"{percent(gap.value)} (95 % interval {percent(gap.low)} to {percent(gap.high)})"
        if gap.low > 0:
            text = f"{chosen.run_name} recovers {span} {of}."
        else:
            text = f"{chosen.run_name} is not seen to recover any {of}: {span}."
        yield Finding(topic="gap", text=text, supported=gap.low > 0)


# ---- physics


def _roles(analysis: Analysis) -> dict[str, str]:
    """The networks shown, by role, in words."""
    words = {
        "teacher": "the teacher",
        "baseline": "the baseline (seed {0.seed})",
        "student": "the best student ({0.run_name}, seed {0.seed})",
    }
    return {network.role: words[network.role].format(network) for network in analysis.networks}


def _physics(analysis: Analysis) -> Iterator[Finding]:
    roles = _roles(analysis)
    for trend in analysis.pt_differences:
        bins = [b for b in analysis.by_pt if b.role == trend.role]  # outer ones may be left out
        low, high = (f"{b.pt_low:.0f} to {b.pt_high:.0f} GeV" for b in (bins[0], bins[-1]))
        yield _about("pt", versus(f"{roles[trend.role]} at pT of {high}", f"at {low}", trend.auc, "auc"))
    for mass in analysis.mass_sculpting:
        if mass.efficiency != 50:
            continue
        seen = mass.p_value < SIGNIFICANT
        text = (
            f"Background that passes {roles[mass.role]} at 50 % signal efficiency "
            f"{'has another mass distribution than' if seen else 'is not seen to differ in mass from'} all background: "
            f"Jensen–Shannon divergence {mass.corrected:.3f} bits (95 % interval {mass.low:.3f} to {mass.high:.3f}; "
            f"p = {mass.p_value:.2g}, {mass.survivors} jets)."
        )
        yield Finding(topic="mass", text=text, supported=seen)
    for calibration in analysis.calibration:
        slope, intercept = calibration.slope, calibration.intercept
        if slope is None or intercept is None:
            continue
        faults = []
        if _excludes(slope, 1.0):
            faults.append("too extreme (slope below 1)" if slope.value < 1 else "too timid (slope above 1)")
        if _excludes(intercept, 0.0):
            faults.append("shifted towards signal" if intercept.value < 0 else "shifted towards background")
        what = f"are {' and '.join(faults)}" if faults else "are not seen to be off"
        text = (
            f"As probabilities of signal, the scores of {roles[calibration.role]} {what}: calibration slope "
            f"{_plain(slope)}, intercept {_plain(intercept)}; mean error {100 * calibration.expected_error:.1f} % "
            "(ECE)."
        )
        yield Finding(topic="calibration", text=text, supported=bool(faults))


def _excludes(estimate: Estimate, value: float) -> bool:
    return estimate.low is not None and estimate.high is not None and not estimate.low <= value <= estimate.high


def _plain(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} (95 % interval {estimate.low:.2f} to {estimate.high:.2f})"
