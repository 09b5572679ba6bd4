"""ANALYSIS_SUMMARY.txt: the study's summary as its readers know it, section by section; claims only where tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kdfast.report.findings import NO_TEACHER, SIGNIFICANT, beats_baseline, seeds_are_known, versus
from kdfast.report.layout import (
    ADJUSTED_MEANS,
    STRATEGY_NAMES,
    at_least,
    auc,
    best_student,
    counted,
    interval,
    means_are_adjusted,
    percent,
    rejection,
    section,
    spans,
    student_chosen_on,
    title,
    wrapped,
)
from kdfast.report.schema import Analysis, Configuration, Group, GroupTable, Winner
from kdfast.report.texts.hyperparameter_analysis import sentences
from kdfast.report.texts.results_summary import MISSING, configurations_and_seeds, missing

__all__ = ["FILES", "analysis_summary"]

FILES = {
    "results_summary.txt": "Top configurations and grids",
    "results_summary.csv": "Full dataset, a row per run",
    "hyperparameter_analysis.txt": "Detailed hyperparameter effects",
    "detailed_comparison.txt": "Strategy comparisons and rankings",
    "ANALYSIS_SUMMARY.txt": "This document",
    "report.html": "The report as one page, with figures",
    "report.json": "Every number of the report, for scripts",
}


def analysis_summary(analysis: Analysis) -> str:
    study = analysis.study
    head = title(
        "TRANSFORMER KNOWLEDGE DISTILLATION - HYPERPARAMETER SEARCH",
        "COMPREHENSIVE ANALYSIS SUMMARY",
    )
    done, asked = study.counts.get("done", 0), sum(study.counts.values())
    runs = str(done) if done == asked else f"{done} done of {asked}"
    lines = [
        f"Study: {study.name}",
        f"Total Experiments: {runs} ({configurations_and_seeds(analysis)})",
        f"Made by: kdfast {study.kdfast}",
    ]
    if study.test is not None:
        lines.append(f"Test jets: {study.test.signal:,} signal, {study.test.background:,} background")
    parts = [head, "\n".join(lines) + "\n", section("EXECUTIVE SUMMARY", _executive(analysis))]
    if analysis.configurations:
        by: dict[str, GroupTable] = {table.setting: table for table in analysis.groups}
        parts += [
            section("TOP RESULTS - WINNERS", _winners(analysis)),
            section("HYPERPARAMETER EFFECTS", _effects(analysis, by)),
            section("SCHEDULING STRATEGY ANALYSIS", _schedules(analysis, by)),
            section("CONFIGURATION RECOMMENDATIONS", _scenarios(analysis)),
            section("KEY INSIGHTS AND DISCOVERIES", _insights(analysis)),
            section("STATISTICAL SUMMARY", _statistics(analysis)),
            section("PRACTICAL RECOMMENDATIONS", _practice(analysis)),
        ]
    parts += [missing(analysis), section("FILES GENERATED", _files()), title("END OF ANALYSIS")]
    return "\n".join(parts)


def _one_seed(analysis: Analysis) -> bool:
    return not seeds_are_known(analysis)


def _row(analysis: Analysis, name: str) -> Configuration:
    return next(row for row in analysis.configurations if row.run_name == name)


def _winner(analysis: Analysis, wish: str) -> Winner | None:
    return next((winner for winner in analysis.winners if winner.wish == wish), None)


# ---- executive summary


def _executive(analysis: Analysis) -> Iterator[str]:
    study, n = analysis.study, analysis.study.configurations
    what = (
        f"This analysis evaluates {counted(n, 'hyperparameter configuration')} for Knowledge Distillation (KD) in "
        "transformer models, "
        "comparing temperature and alpha scheduling strategies for improving HLT (High-Level Trigger) model "
        "performance."
    )
    yield wrapped(what, "")
    unfinished = sum(study.counts.values()) - study.counts.get("done", 0)
    if unfinished:
        asked = sum(study.counts.values())
        yield wrapped(f"{unfinished} of {asked} runs have no result (see {MISSING}).", "")
    yield ""
    yield "KEY METRICS:"
    yield "  - Student AUC (Area Under Curve): Primary performance metric"
    yield "  - Background Rejection at 50%: 1/ε_B at 50 % signal efficiency"
    names = {"baseline": "Baseline HLT Performance", "teacher": "Teacher Performance", "student": "Best single student"}
    for role, name in names.items():
        network = next((network for network in analysis.networks if network.role == role), None)
        if network is not None and network.auc is not None:
            at_50 = network.rejection.get("50")
            yield f"  - {name}: AUC {interval(network.auc, 4)}"
            if at_50 is not None:
                yield f"      rejection {interval(at_50, 2)}" + (f" (seed {network.seed})" if role != "student" else "")
            if role == "student":
                yield f"      ({best_student(analysis)}: highest AUC on the {student_chosen_on(analysis)} jets)"
    d = analysis.distribution
    if d is None:
        yield ""
        yield "No student has finished yet: there is nothing to compare."
        return
    gains = [run.auc_gain for run in analysis.runs if run.auc_gain is not None]
    yield ""
    yield "PERFORMANCE RANGES:"
    gain = f" ({min(gains):+.4f} to {max(gains):+.4f} against the baseline of the same seed)" if gains else ""
    yield f"  - Student AUC: {d.auc.min:.4f} - {d.auc.max:.4f}{gain}"
    low = at_least(d.rejection.min, d.rejection.limits == d.runs)
    yield f"  - Background Rejection: {low} - {at_least(d.rejection.max, d.rejection.limits)}"
    yield ""
    yield "WHAT THE DATA CARRY:"
    yield from sentences(analysis, ["improvement", "precision", "best_auc", "gap", "seeds"])


# ---- winners


def _winners(analysis: Analysis) -> Iterator[str]:
    if analysis.study.selected_on == "validation":
        text = (
            "Winners are chosen on the validation jets; the numbers are from the test jets. The highest number on the "
            "test jets themselves stands beside: it contains luck."
        )
    else:
        text = (
            "Winners are chosen on the test jets themselves, as the study has no validation numbers: the highest of "
            "many contains luck, and is too high on average."
        )
    if len(analysis.study.seeds) > 1:
        text += " A winner's numbers are means over its seeds"
        if name := best_student(analysis):
            text += f"; the best single network ({name}) may be one of another configuration"
        text += "."
    yield wrapped(text, "")
    if means_are_adjusted(analysis):
        yield wrapped(ADJUSTED_MEANS, "")
    headings = {"auc": "BEST OVERALL AUC", "rejection": "BEST BACKGROUND REJECTION", "combined": "BEST BALANCED"}
    shown: dict[str, str] = {}
    for wish, heading in headings.items():
        winner = _winner(analysis, wish)
        if winner is None:
            continue
        row = _row(analysis, winner.configuration)
        value = {
            "auc": auc(row.auc.value),
            "rejection": rejection(row.rejection),
            "combined": f"{auc(row.auc.value)} AUC + {rejection(row.rejection)} BKG, score {row.combined:.3f}",
        }[wish]
        yield ""
        yield f"*** {heading}: {value} ***"
        yield f"Configuration: {row.run_name}"
        if row.run_name in shown:
            yield f"  - Same as {shown[row.run_name]}"
            continue
        shown[row.run_name] = heading.lower().replace("auc", "AUC")
        yield from _facts(analysis, row)
        other = _row(analysis, winner.highest_on_test)
        if other.run_name != row.run_name:
            highest = {"auc": auc(other.auc.value), "rejection": rejection(other.rejection)}.get(
                wish, f"{other.combined:.3f}"
            )
            yield f"  - Highest on the test jets: {other.run_name} ({highest})"
        several = len(analysis.configurations) > 1
        digits = 4 if wish == "auc" else 2
        if several and winner.excess_on_test is not None and round(winner.excess_on_test, digits) > 0.0:
            yield (
                f"  - Expected excess of the highest of {len(analysis.configurations)} equal ones (winner's curse): "
                f"{winner.excess_on_test:.{digits}f}"
            )
        if several and winner.beside_best is not None:
            apart = "" if _beside_best(row, winner) else ", the chosen one not among them"
            yield f"  - Not told from the best: {winner.beside_best} of {len(analysis.configurations)}{apart}"


def _beside_best(row: Configuration, winner: Winner) -> bool:
    """Whether the configuration chosen for AUC or rejection can't be told from the best on the test jets. One that is
    chosen on validation may be beaten there."""
    return bool(row.beside_best_auc if winner.wish == "auc" else row.beside_best_rejection)


def _facts(analysis: Analysis, row: Configuration) -> Iterator[str]:
    temperature, alpha = spans(row)
    yield f"  - Temperature: {temperature}"
    yield f"  - Alpha: {alpha}"
    yield f"  - AUC: {interval(row.auc, 4)}"
    yield f"  - Background Rejection: {interval(row.rejection, 2)}"
    yield f"  - Strategy: {STRATEGY_NAMES[row.strategy]}"
    runs = [run for run in analysis.runs if run.run_name == row.run_name and run.auc is not None]
    if analysis.study.test is None:
        yield from (f"  - File: {run.message.removeprefix('from ')}" for run in runs if run.message)
    elif len(runs) == 1:
        yield f"  - File: results/student.{row.run_name}.seed{runs[0].seed}"
    else:
        yield f"  - Files: results/student.{row.run_name}.seed{{{','.join(str(run.seed) for run in runs)}}}"
    for name, comparison, digits in (
        ("AUC", row.auc_vs_baseline, 4),
        ("background rejection", row.rejection_vs_baseline, 2),
    ):
        if comparison is not None:
            relative = "" if comparison.relative is None else f" ({100 * comparison.relative:+.2f} %)"
            yield f"  - {name} over baseline: {interval(comparison.difference, digits, sign=True)}{relative}"
    if row.auc_vs_baseline is None:
        for run in runs:
            if run.auc is None or run.auc_gain is None:
                continue
            text = f"  - Improvement over baseline: {run.auc_gain:+.4f} AUC"
            if baseline := run.auc.value - run.auc_gain:
                text += f" ({100 * run.auc_gain / baseline:+.2f} %)"
            if run.rejection_gain is not None:
                text += f", {100 * run.rejection_gain:+.1f} % background rejection"
            yield f"{text}; errors not known"
    if row.gap_recovered_auc is not None:
        gap = row.gap_recovered_auc
        ends = "" if gap.low is None or gap.high is None else f" [{percent(gap.low)}, {percent(gap.high)}]"
        yield f"  - Teacher-student gap recovered (AUC): {percent(gap.value)}{ends}"
    epochs = [run for run in runs if run.best_epoch is not None]
    if epochs:
        best = ", ".join(f"{(run.best_epoch or 0) + 1} of {run.epochs}" for run in epochs)
        times = [run.seconds_to_best for run in epochs if run.seconds_to_best is not None]
        took = f" ({', '.join(f'{time:.1f} s' for time in times)})" if times else ""
        yield f"  - Best epoch: {best}{took}"


# ---- effects


def _effects(analysis: Analysis, by: Mapping[str, GroupTable]) -> Iterator[str]:
    for number, (setting, name, label) in enumerate(
        (("temp_init", "TEMPERATURE INITIALIZATION", "Temp"), ("alpha_init", "ALPHA INITIALIZATION", "Alpha")), start=1
    ):
        yield f"{number}. {name}"
        own = [c for c in analysis.correlations if c.setting == setting and c.metric == "auc"]
        if own:
            c = own[0]
            effect = "No trend seen"
            if c.slope_p_holm < SIGNIFICANT:
                effect = "Positive correlation with AUC" if c.r > 0 else "Negative correlation with AUC"
            elif not c.low <= 0.0 <= c.high:
                effect = "No trend seen beyond what shared test jets can make"
            yield f"   Effect: {effect} (r = {c.r:+.3f})"
            yield f"   Slope of AUC per unit: {interval(c.slope, 5, sign=True)}"
        yield ""
        yield f"   Performance by {label}:"
        for group in by[setting].groups:
            mark = _best_mark(by[setting], group)
            yield f"     - {label} {group.label}: {_means(group)}{mark}"
        yield ""
        yield "   Key Finding:"
        yield from _indented(sentences(analysis, [f"{setting}_auc", f"{setting}_rejection"]))
        yield ""
    yield "3. SCHEDULING STRATEGIES"
    yield ""
    yield "   Strategy Comparison:"
    groups = sorted(by["strategy"].groups, key=lambda g: -g.auc.mean)
    for place, group in enumerate(groups, start=1):
        name = STRATEGY_NAMES[group.label] + ":"
        yield f"     {place}. {name:<26} {_means(group)}{_best_mark(by['strategy'], group)}"
    yield ""
    yield "   Consistency (Higher = Better):"
    for place, group in enumerate(sorted(groups, key=lambda g: -(g.consistency or 0.0)), start=1):
        value = "-" if group.consistency is None else f"{group.consistency:.2f}"
        yield f"     {place}. {STRATEGY_NAMES[group.label] + ':':<26} {value}"
    yield ""
    yield from _indented(sentences(analysis, ["strategy_auc", "strategy_rejection", "consistency"]))


def _means(group: Group) -> str:
    return f"Mean AUC = {group.auc.mean:.4f}, Mean BKG = {at_least(group.rejection.mean, group.rejection.limits)}"


def _best_mark(table: GroupTable, group: Group) -> str:
    """The highest mean, marked as best only where it beats every other group."""
    if group.label != table.reference or len(table.groups) < 2:
        return ""
    others = [g.auc_difference for g in table.groups if g.label != group.label]
    beaten = all(c is not None and (c.p_holm or 0.0) < SIGNIFICANT and c.difference.value < 0 for c in others)
    return " ✓ BEST" if beaten else " (highest mean)"


def _indented(lines: list[str]) -> Iterator[str]:
    yield from (line.replace("\n", "\n ").replace("  - ", "   - ", 1) for line in lines)


def _schedules(analysis: Analysis, by: Mapping[str, GroupTable]) -> Iterator[str]:
    for setting, name in (("temp_range", "TEMPERATURE ANNEALING"), ("alpha_range", "ALPHA SCHEDULING")):
        yield f"{name} RANGES (Best to Worst by mean AUC):"
        table = by.get(setting)
        if table is None:
            yield "  none in this grid"
        else:
            for place, group in enumerate(table.groups, start=1):
                yield f"  {place}. {group.label + ':':<13} {_means(group)}"
            if len(table.groups) > 1:
                yield ""
                yield "Key Insight:"
                yield from sentences(analysis, [f"{setting}_auc", f"{setting}_rejection"])
        yield ""


# ---- recommendations

_SCENARIOS = (
    ("auc", "SCENARIO 1: YOU WANT MAXIMUM PERFORMANCE"),
    ("rejection", "SCENARIO 2: YOU WANT MAXIMUM BACKGROUND REJECTION"),
    ("constant", "SCENARIO 3: YOU WANT SIMPLICITY AND RELIABILITY"),
    ("consistent", "SCENARIO 4: YOU WANT CONSISTENT/PREDICTABLE RESULTS"),
)


def _scenarios(analysis: Analysis) -> Iterator[str]:
    for wish, heading in _SCENARIOS:
        yield heading
        winner = _winner(analysis, wish)
        if winner is None:
            why = "no run has constant T and α" if wish == "constant" else "no strategy has two runs"
            yield f"→ no configuration: {why}"
            yield ""
            continue
        row = _row(analysis, winner.configuration)
        temperature, alpha = spans(row)
        if wish == "consistent":
            yield f"→ Strategy: {STRATEGY_NAMES[row.strategy]} (smallest spread of AUC over its runs)"
        yield f"→ Configuration: {row.run_name}"
        yield f"  - Temperature: {temperature}"
        yield f"  - Alpha: {alpha}"
        yield f"  - Expected: AUC = {interval(row.auc, 4)}"
        yield f"              BKG = {interval(row.rejection, 2)}"
        yield f"  - Rank on the test jets: {row.rank_auc} by AUC, {row.rank_rejection} by rejection"
        if wish == "auc":
            yield f"  - Trade-off: {'needs no schedule' if row.strategy == 'baseline' else 'needs a schedule'}"
            yield from _others(row, winner)
        elif any(finding.topic == f"choice_{wish}" for finding in analysis.findings):
            yield from sentences(analysis, [f"choice_{wish}"])
        elif (first := _winner(analysis, "auc")) is not None and first.configuration == row.run_name:
            yield "  - Note: the same as in scenario 1"
        if wish == "consistent":
            yield from sentences(analysis, ["consistency"])
        yield ""


def _others(row: Configuration, winner: Winner) -> Iterator[str]:
    """Whether others are as good as the chosen one, or better."""
    size = winner.beside_best
    if size is None:
        return
    if not _beside_best(row, winner):
        many = f"others beat it: it is not among the {size} that can't be told from the best"
        yield wrapped(f"Note: on the test jets {many if size > 1 else 'another configuration beats it'}", "  - ")
    elif size > 1:
        others = f"{size - 1} other{'s' * (size > 2)}"
        yield wrapped(f"Note: {others} can't be told from the best, so cost and simplicity may decide", "  - ")


def _insights(analysis: Analysis) -> Iterator[str]:
    headings = {
        "ALPHA AND TEMPERATURE": ["importance", "correlation_auc", "correlation_rejection", "shares_auc"],
        "SLOPES": ["model_auc", "model_rejection"],
        "SCHEDULING": ["strategy_auc", "temp_range_auc", "alpha_range_auc", "consistency"],
        "SIMPLICITY": ["choice_constant"],
        "AUC AND BACKGROUND REJECTION": ["choice_rejection", "pareto"],
        "THE BEST, AND LUCK": ["best_auc", "best_rejection", "top_two"],
        "WHAT THE TAGGER DOES": ["pt", "mass", "calibration"],
    }
    number = 0
    for heading, topics in headings.items():
        if any(finding.topic in topics for finding in analysis.findings):
            number += 1
            yield f"{number}. {heading}"
            yield from sentences(analysis, topics)
            yield ""


# ---- statistics


def _statistics(analysis: Analysis) -> Iterator[str]:
    d, top = analysis.distribution, analysis.top_quartile
    if d is None or top is None:
        return
    yield "PERFORMANCE DISTRIBUTION:"
    yield f"  - AUC Mean: {d.auc.mean:.4f}"
    if d.auc.std is not None:
        yield f"  - AUC Std Dev: {d.auc.std:.4f}"
        yield f"  - AUC Variance: {d.auc.variance:.6f}"
    yield f"  - Background Rejection Mean: {at_least(d.rejection.mean, d.rejection.limits)}"
    if d.rejection.std is not None:
        yield f"  - Background Rejection Std Dev: {d.rejection.std:.2f}"
    if d.auc_error is not None:
        yield f"  - Standard error of one AUC (test jets): {d.auc_error:.4f}"
    if d.rejection_error is not None:
        yield f"  - Standard error of one rejection (test jets): {d.rejection_error:.2f}"
    if d.auc_seed_std is not None:
        yield f"  - AUC Std Dev from seed to seed, beyond the test jets: {d.auc_seed_std:.4f}"
    if d.rejection_seed_std is not None:
        yield f"  - Background Rejection Std Dev from seed to seed, beyond the test jets: {d.rejection_seed_std:.2f}"
    yield ""
    yield f"TOP QUARTILE CHARACTERISTICS (Top {counted(top.runs, 'experiment')}; all experiments in brackets):"
    yield f"  - Average Temperature: {top.mean_temp_init:.1f} [{top.all_mean_temp_init:.1f}]"
    yield f"  - Average Alpha: {top.mean_alpha_init:.2f} [{top.all_mean_alpha_init:.2f}]"
    for key, text in (("α_init ≥ 0.7", "use alpha ≥ 0.7"), ("T_init ≥ 7", "use temperature ≥ 7.0")):
        yield f"  - {100 * top.shares[key]:.0f}% {text} [{100 * top.all_shares[key]:.0f}%]"
    for key, text in STRATEGY_NAMES.items():
        yield f"  - {100 * top.shares[key]:.0f}% use {text[0].lower() + text[1:]} [{100 * top.all_shares[key]:.0f}%]"
    yield ""
    yield "EXPERIMENT TYPE DISTRIBUTION:"
    names = {
        "combined": "Combined (Temp + Alpha scheduling)",
        "tempanneal": "Temperature annealing only",
        "alphasched": "Alpha scheduling only",
        "baseline": "Baseline (constant)",
    }
    total = sum(analysis.strategies.values())
    for key, text in names.items():
        number = analysis.strategies.get(key, 0)
        yield f"  - {text}: {counted(number, 'experiment')} ({100 * number / max(total, 1):.0f}%)"


def _practice(analysis: Analysis) -> Iterator[str]:
    for wish, heading, why in (
        ("auc", "FOR RESEARCH/EXPERIMENTATION:", f"highest AUC on {analysis.study.selected_on}"),
        ("constant", "FOR PRODUCTION/DEPLOYMENT:", "best constant T and α: no schedule to carry along"),
    ):
        yield heading
        winner = _winner(analysis, wish)
        if winner is None:
            yield "  - no run has constant T and α"
            yield ""
            continue
        row = _row(analysis, winner.configuration)
        yield f"  ✓ Use: {row.run_name} ({why})"
        if row.auc_vs_baseline is not None and not beats_baseline(row):
            text = "But it is not seen to beat the student trained without a teacher, which needs none."
            yield wrapped(text, "  - ")
        if row.auc_vs_baseline is not None:
            yield wrapped(versus(row.run_name, NO_TEACHER, row.auc_vs_baseline, "auc").text, "  - ")
        if winner.auc_vs_best is not None:
            yield from sentences(analysis, [f"choice_{wish}"])
        yield from _others(row, winner)
        yield ""
    yield "FOR FUTURE HYPERPARAMETER SEARCHES:"
    for number, text in enumerate(_advice(analysis), start=1):
        yield wrapped(text, f"  {number}. ")


def _advice(analysis: Analysis) -> Iterator[str]:
    """What to do next, each piece with the number behind it."""
    important = next((f for f in analysis.findings if f.topic == "importance" and "AUC" in f.text), None)
    if important is not None:
        start = important.text.split(": ")[-2]
        yield f"{start}{': tune it first.' if important.supported else ', so tune both.'}"
    symbols = {"temp_init": "T", "alpha_init": "α"}
    for table in analysis.groups:
        seen = any(f.topic == f"{table.setting}_auc" and f.supported for f in analysis.findings)
        labels = [group.label for group in table.groups]
        if table.setting in symbols and seen and len(labels) > 1 and table.reference in (labels[0], labels[-1]):
            side = "below" if table.reference == labels[0] else "above"
            symbol = symbols[table.setting]
            yield f"The best initial {symbol} ({table.reference}) lies at the edge of the grid: search {side} it too."
    compared = [row for row in analysis.configurations if row.auc_vs_baseline is not None]
    if compared and not any(beats_baseline(row) for row in compared):
        yield (
            "No configuration is seen to beat the student without a teacher: before a finer grid, look at the recipe "
            "(epochs, learning rate, the teacher's lead)."
        )
    winner = _winner(analysis, "auc")
    if "imported" in analysis.study.provenance:
        yield "Run the leaders again with several seeds (`kdfast sweep`): one run each can't tell skill from luck."
    elif _one_seed(analysis):
        yield "Add seeds before choosing among the leaders: `kdfast refine STUDY --top 10 --seeds 5`."
    elif winner is not None and winner.beside_best is not None and winner.beside_best > 1:
        yield (
            f"{winner.beside_best} configurations are left beside the best: more seeds for the leaders (`kdfast "
            "refine`) and "
            "more test jets would part them, a finer grid would not."
        )
    d = analysis.distribution
    if d is not None and d.auc_error is not None and d.auc.std is not None and d.auc.std < d.auc_error:
        yield (f"Test on more jets: one AUC is known to {d.auc_error:.4f} while the runs spread by {d.auc.std:.4f}.")


def _files() -> Iterator[str]:
    for number, (name, what) in enumerate(FILES.items(), start=1):
        yield f"{number}. {name:<28} - {what}"
