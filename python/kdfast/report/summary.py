"""results_summary.txt: the best configurations, tables by setting and strategy, and what such numbers can carry.

A run is chosen on the validation jets, and what is reported of it comes from the test jets; the tables of means and
the ranges are of test numbers, without a choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdfast.report.table import METRICS, STRATEGIES, combined_score, select_best
from kdfast.report.uncertainty import auc_error, rejection_error

__all__ = ["TestJets", "summary_text"]

_WIDTH = 100
_STRATEGY_NAMES = {
    "baseline": "baseline (T, α constant)",
    "tempanneal": "tempanneal (T annealed)",
    "alphasched": "alphasched (α scheduled)",
    "combined": "combined (both)",
}


@dataclass(frozen=True)
class TestJets:
    """The test jets and the scores on them of the student chosen by validation AUC: labels, weights, scores [B]."""

    __test__ = False  # not a test class of pytest's

    labels: NDArray[Any]
    weights: NDArray[Any]
    scores: NDArray[Any]


def summary_text(table: pd.DataFrame, *, jets: TestJets | None, baseline_rejection: Mapping[int, float]) -> str:
    """The text for a table of `results_table`.

    jets: None where no run has finished. baseline_rejection: at 50 %, of the baseline of each seed.
    """
    done = table[table["status"] == "done"].copy()
    parts = [_title("KNOWLEDGE DISTILLATION: RESULTS OF THE SWEEP"), _overview(table, done)]
    if jets is not None and not done.empty:
        done["combined"] = combined_score(done)
        parts += [
            _carry(done, jets),
            _best(done, baseline_rejection),
            _leaders(done),
            _by_value(done, "temp_init", "TEMPERATURE", "T_init"),
            _by_value(done, "alpha_init", "MIXING WEIGHT", "α_init"),
            _correlations(done),
            _strategies(done),
            _ranges(done, "temp", "TEMPERATURE RANGES (best to worst by mean AUC)"),
            _ranges(done, "alpha", "ALPHA RANGES (best to worst by mean AUC)"),
            _grid(done, "auc_student", "GRID T_init × α_init: mean AUC", "{:.4f}"),
            _grid(done, "bkg_rej_50", "GRID T_init × α_init: mean rejection at 50 %", "{:.2f}"),
            _distribution(done),
            _recommendations(done),
        ]
    failed = table[table["status"] != "done"]
    if not failed.empty:
        lines = (f"  {row.run_name}, seed {row.seed}: {row.status}" for row in failed.itertuples())
        parts.append(_section("RUNS WITHOUT A RESULT", lines))
    return "\n".join(parts)


# ---- sections


def _overview(table: pd.DataFrame, done: pd.DataFrame) -> str:
    seeds = ", ".join(str(seed) for seed in sorted(set(table["seed"])))
    lines = [
        f"Runs: {len(table)}, of which {len(done)} are done"
        + (f" and {len(table) - len(done)} are not (listed at the end)" if len(table) > len(done) else ""),
        f"Configurations: {table['run_name'].nunique()}; seeds: {seeds or 'none'}",
        "",
        "A best run is chosen by its numbers on the VALIDATION jets; numbers are from the TEST jets unless marked.",
        "Rejection is 1/ε_B at the given signal efficiency. Improvements are over the baseline of the same seed:",
        "the student without a teacher (α = 0). Standard deviations are with n − 1.",
    ]
    if not done.empty:
        auc, rejection = done["auc_student"], done["bkg_rej_50"]
        gain = auc - done["auc_baseline"]
        lines += [
            "",
            f"Teacher AUC:           {_unique(done['auc_teacher'])}",
            f"Baseline AUC:          {_unique(done['auc_baseline'])}",
            f"Student AUC:           {auc.min():.4f} to {auc.max():.4f}"
            + ("" if gain.isna().all() else f" ({gain.min():+.4f} to {gain.max():+.4f} against the baseline)"),
            f"Student rejection 50%: {rejection.min():.2f} to {rejection.max():.2f}",
        ]
        limits = {p: int((done[f"n_bkg_{p}"] == 0).sum()) for p in (30, 50, 80)}
        if any(limits.values()):
            counts = ", ".join(f"{count} runs at {p} %" for p, count in limits.items() if count)
            lines.append(
                f"No background jet survives for {counts}: there the rejection is a 68 % lower limit (n_B/1.14)."
            )
    return "\n".join(lines) + "\n"


def _carry(done: pd.DataFrame, jets: TestJets) -> str:
    """What one number at this number of test jets can carry."""
    signal = int((jets.labels == 1).sum())
    auc_sigma = auc_error(jets.labels, jets.scores, jets.weights)
    rejection_sigma = rejection_error(jets.labels, jets.scores, 0.5, jets.weights)
    lines = [
        f"Test jets: {len(jets.labels):,} ({signal:,} signal, {len(jets.labels) - signal:,} background).",
        f"Standard error of one AUC (DeLong):                  {auc_sigma:.4f}",
        "Standard error of one rejection at 50 % signal:      "
        + ("no background survives, limits only" if rejection_sigma is None else f"{rejection_sigma:.2f}"),
    ]
    if len(done) > 1:
        spread, rejection_spread = done["auc_student"].std(), done["bkg_rej_50"].std()
        relation = "smaller than" if spread < auc_sigma else "larger than"
        lines += [
            f"Standard deviation over the {len(done)} runs: AUC {spread:.4f}, rejection {rejection_spread:.2f}.",
            f"The runs' spread in AUC is {relation} the standard error of one AUC. All runs share the test jets, so",
            "part of that error cancels in differences, but a ranking does not establish the order of close ones.",
        ]
        if done["seed"].nunique() == 1:
            lines.append("With one seed the numbers compare trained networks, not configurations.")
    return _section("WHAT THESE NUMBERS CAN CARRY", lines)


def _best(done: pd.DataFrame, baseline_rejection: Mapping[int, float]) -> str:
    blocks = []
    for metric in ("auc", "bkg_rej_50", "combined"):
        row = select_best(done, metric)
        lines = [
            f"*** BEST BY {METRICS[metric].upper()} (chosen on validation) ***",
            f"Configuration: {row['run_name']}" + ("" if done["seed"].nunique() == 1 else f", seed {row['seed']}"),
            f"  Temperature: {_span(row['temp_init'], row['temp_final'])}",
            f"  Alpha: {_span(row['alpha_init'], row['alpha_final'])}",
            f"  Strategy: {_STRATEGY_NAMES[row['strategy']]}",
            f"  On the test jets: AUC {row['auc_student']:.4f}, rejection {_rejections(row)}, "
            f"combined score {row['combined']:.3f}",
            f"  On the validation jets: AUC {row['auc_val']:.4f}, rejection at 50 % {row['bkg_rej_50_val']:.2f}",
        ]
        if not math.isnan(row["auc_baseline"]):
            gain = row["auc_student"] - row["auc_baseline"]
            change = f"  Against the baseline: AUC {gain:+.4f} ({100 * gain / row['auc_baseline']:+.2f} %)"
            base = baseline_rejection.get(int(row["seed"]))
            if base:
                change += f", rejection at 50 % {100 * (row['bkg_rej_50'] / base - 1):+.1f} %"
            lines.append(change)
        blocks.append("\n".join(lines))
    return _section("BEST CONFIGURATIONS", ["\n\n".join(blocks)])


def _leaders(done: pd.DataFrame) -> str:
    top = done.sort_values("auc_val", ascending=False, kind="stable").head(10)
    test_rank = done["auc_student"].rank(ascending=False, method="min").astype(int)
    rows = [
        [
            str(place),
            row["run_name"],
            str(row["seed"]),
            f"{row['auc_val']:.4f}",
            f"{row['auc_student']:.4f}",
            str(test_rank[index]),
            _rejection(row, 50),
            f"{row['combined']:.3f}",
        ]
        for place, (index, row) in enumerate(top.iterrows(), start=1)
    ]
    heads = ["rank", "run", "seed", "AUC val", "AUC test", "rank test", "rej 50", "combined"]
    title = f"TOP {len(rows)} BY VALIDATION AUC"
    return _section(title, [_columns(heads, rows, left={1})])


def _statistics(group: pd.DataFrame) -> list[str]:
    auc, rejection = group["auc_student"], group["bkg_rej_50"]
    return [
        str(len(group)),
        f"{auc.mean():.4f}",
        _deviation(auc, 4),
        f"{auc.max():.4f}",
        f"{rejection.mean():.2f}",
        _deviation(rejection, 2),
        f"{rejection.max():.2f}",
    ]


_STATISTICS = ["runs", "AUC mean", "std", "max", "rej 50 mean", "std", "max"]


def _by_value(done: pd.DataFrame, column: str, title: str, head: str) -> str:
    rows = [[str(value), *_statistics(group)] for value, group in done.groupby(column)]
    return _section(f"BY INITIAL {title}", [_columns([head, *_STATISTICS], rows)])


def _correlations(done: pd.DataFrame) -> str:
    rows = []
    for column, head in (("temp_init", "T_init"), ("alpha_init", "α_init")):
        row = [head]
        for metric in ("auc_student", "bkg_rej_50"):
            varied = len(done) > 2 and done[column].nunique() > 1 and done[metric].nunique() > 1
            row.append(f"{np.corrcoef(done[column], done[metric])[0, 1]:+.3f}" if varied else "-")
        rows.append(row)
    title = "CORRELATION (Pearson's r over all runs; no test of significance)"
    return _section(title, [_columns(["", "with AUC", "with rej 50"], rows)])


def _consistency(group: pd.DataFrame) -> float:
    return 1.0 / (group["auc_student"].std() + 0.001)  # NaN for a single run


def _strategies(done: pd.DataFrame) -> str:
    groups = {name: group for name in STRATEGIES if len(group := done[done["strategy"] == name])}
    constant = groups["baseline"]["auc_student"].mean() if "baseline" in groups else math.nan
    rows = []
    for name, group in groups.items():
        consistency, improvement = _consistency(group), group["auc_student"].mean() - constant
        rows.append(
            [
                _STRATEGY_NAMES[name],
                *_statistics(group),
                "-" if math.isnan(consistency) else f"{consistency:.2f}",
                "-" if math.isnan(improvement) else f"{improvement:+.4f}",
            ]
        )
    lines = [
        _columns(["strategy", *_STATISTICS, "consistency", "vs constant"], rows, left={0}),
        "consistency = 1/(std of AUC + 0.001); vs constant: mean AUC minus that of the strategy `baseline`.",
    ]
    return _section("BY STRATEGY", lines)


def _ranges(done: pd.DataFrame, quantity: str, title: str) -> str:
    scheduled = done[done[f"{quantity}_final"].notna()]
    if scheduled.empty:
        return _section(title, ["  no run has one"])
    groups = [(_span(*pair), group) for pair, group in scheduled.groupby([f"{quantity}_init", f"{quantity}_final"])]
    groups.sort(key=lambda item: -item[1]["auc_student"].mean())
    return _section(title, [_columns(["range", *_STATISTICS], [[name, *_statistics(group)] for name, group in groups])])


def _grid(done: pd.DataFrame, column: str, title: str, form: str) -> str:
    means = done.pivot_table(index="temp_init", columns="alpha_init", values=column, aggfunc="mean")
    heads = ["T \\ α", *(str(alpha) for alpha in means.columns)]
    rows = [
        [f"{temp!s}", *("-" if math.isnan(value) else form.format(value) for value in means.loc[temp])]
        for temp in means.index
    ]
    return _section(title, [_columns(heads, rows)])


def _distribution(done: pd.DataFrame) -> str:
    auc, rejection = done["auc_student"], done["bkg_rej_50"]
    top = done.sort_values("auc_student", ascending=False, kind="stable").head(math.ceil(len(done) / 4))
    lines = [
        f"AUC:             mean {auc.mean():.4f}, std {_deviation(auc, 4)}, variance {_deviation(auc, 6, power=2)}",
        f"Rejection 50 %:  mean {rejection.mean():.2f}, std {_deviation(rejection, 2)}",
        "",
        f"Top quartile by test AUC ({len(top)} of {len(done)} runs; the share among all runs in brackets):",
        f"  mean T_init {top['temp_init'].mean():.1f} [{done['temp_init'].mean():.1f}], "
        f"mean α_init {top['alpha_init'].mean():.2f} [{done['alpha_init'].mean():.2f}]",
    ]

    def share(text: str, chosen: Any) -> str:
        return f"  {text}: {100 * chosen(top).mean():.0f} % [{100 * chosen(done).mean():.0f} %]"

    lines.append(share("α_init ≥ 0.7", lambda t: t["alpha_init"] >= 0.7))
    lines.append(share("T_init ≥ 7", lambda t: t["temp_init"] >= 7))
    lines += [share(_STRATEGY_NAMES[name], lambda t, name=name: t["strategy"] == name) for name in STRATEGIES]
    return _section("DISTRIBUTION", lines)


def _recommendations(done: pd.DataFrame) -> str:
    wishes = [(f"highest {METRICS[m]}" if m != "combined" else "best combined score", done, m) for m in _WISHES]
    constant = done[done["strategy"] == "baseline"]
    if not constant.empty:
        wishes.append(("simplest: best constant T and α", constant, "auc"))
    consistent = {str(name): _consistency(group) for name, group in done.groupby("strategy") if len(group) > 1}
    if consistent:
        name = max(consistent, key=lambda key: consistent[key])
        wishes.append((f"most consistent strategy ({name})", done[done["strategy"] == name], "auc"))
    rows = []
    for wish, among, metric in wishes:
        row = select_best(among, metric)
        rows.append([wish, str(row["run_name"]), f"{row['auc_student']:.4f}", _rejection(row, 50)])
    lines = [_columns(["wish", "configuration", "AUC", "rej 50"], rows, left={0, 1})]
    return _section("WHICH CONFIGURATION FOR WHICH WISH (chosen on validation, numbers from test)", lines)


_WISHES = ("auc", "bkg_rej_50", "combined")


# ---- text


def _title(text: str) -> str:
    return f"{'=' * _WIDTH}\n{text}\n{'=' * _WIDTH}\n"


def _section(title: str, lines: Iterable[str]) -> str:
    return f"{'-' * _WIDTH}\n{title}\n{'-' * _WIDTH}\n" + "\n".join(lines) + "\n"


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]], left: set[int] = frozenset()) -> str:  # type: ignore[assignment]
    """A table in plain text; columns in `left` are flush left, the others flush right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  " + "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in (heads, *rows))


def _span(first: float, last: float) -> str:
    return f"{first} (constant)" if math.isnan(last) else f"{first} → {last}"


def _rejection(row: pd.Series, percent: int) -> str:
    """A rejection, marked as a lower limit where no background survives."""
    return f"{'>' if row[f'n_bkg_{percent}'] == 0 else ''}{row[f'bkg_rej_{percent}']:.2f}"


def _rejections(row: pd.Series) -> str:
    return " / ".join(_rejection(row, p) for p in (30, 50, 80)) + " at 30 / 50 / 80 %"


def _deviation(values: pd.Series, digits: int, power: int = 1) -> str:
    return f"{values.std() ** power:.{digits}f}" if len(values) > 1 else "-"


def _unique(values: pd.Series) -> str:
    """The value that all rows share, or the span of several (one a seed)."""
    known = values.dropna()
    if known.empty:
        return "-"
    low, high = known.min(), known.max()
    return f"{low:.4f}" if low == high else f"{low:.4f} to {high:.4f} (by seed)"
