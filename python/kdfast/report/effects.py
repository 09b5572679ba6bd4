"""What temperature and mixing weight do: marginal tables, correlations, a linear model, shares of variance.

Everything works on one number per configuration, its mean over seeds (comparisons.py). Errors have two
parts, as everywhere: the test jets that all share, and the scatter of configurations about the model, which
seeds are part of.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kdfast.report.comparisons import Configurations, holm
from kdfast.report.fitting import Contrast, Fit, fit, satterthwaite
from kdfast.report.sampling import LEVEL, Estimates

__all__ = [
    "Correlation",
    "GroupDifference",
    "LinearModel",
    "correlation",
    "equal_spread",
    "group_differences",
    "linear_model",
    "rank_agreement",
    "seen_over_seeds",
    "settings_frame",
    "slopes",
    "variance_shares",
]

Floats = NDArray[np.float64]


def settings_frame(runs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A row per configuration, in the order of names: strategy, temp_init, temp_final, alpha_init,
    alpha_final (NaN: constant), and the values of the last epoch, temp_last and alpha_last (the initial
    ones where constant)."""
    columns = ["strategy", "temp_init", "temp_final", "alpha_init", "alpha_final"]
    frame = runs.drop_duplicates("run_name").set_index("run_name").loc[list(names), columns].copy()
    frame["temp_last"] = frame["temp_final"].fillna(frame["temp_init"])
    frame["alpha_last"] = frame["alpha_final"].fillna(frame["alpha_init"])
    return frame


def seen_over_seeds(estimates: Configurations, model: Fit, weights: Floats) -> Contrast | None:
    """A contrast of a model of the configurations' estimates, as seeds and configurations let it be known.

    With several seeds it is taken in each of them: its scatter counts, and of the scatter of configurations
    about the model what is more than the rest of a run. With one the latter includes both.
    """
    contrast = model.contrast(weights)
    by_seed = estimates.by_seed(weights @ model.solve)
    if contrast is None or by_seed is None:
        return contrast
    unit = float(weights @ model.spread @ weights)
    number = float(by_seed.spread[0, 0])
    misfit = max(0.0, model.run_variance - estimates.model.run_variance * float(np.diag(estimates.spread).mean()))
    run = misfit * unit + by_seed.cautious_variance * number
    parts = (model.uncertain * unit if misfit > 0 else 0.0, model.df), (by_seed.uncertain * number, by_seed.df)
    df = satterthwaite(contrast.test_variance + run, *parts)
    return Contrast(contrast.value, contrast.test_variance, run, df)


# ---- correlation


@dataclass(frozen=True)
class Correlation:
    """Pearson's r over n points, its interval (Fisher's z) and two-sided p-value."""

    r: float
    low: float
    high: float
    p_value: float
    n: int


def correlation(x: Floats, y: Floats) -> Correlation | None:
    """scipy's; None with fewer than 4 points or where one of the two does not vary."""
    if len(x) < 4 or any(np.ptp(v) <= 1e-9 * np.abs(v).max() for v in (x, y)):
        return None
    result = stats.pearsonr(x, y)
    interval = result.confidence_interval(LEVEL)
    return Correlation(float(result.statistic), float(interval.low), float(interval.high), float(result.pvalue), len(x))


def slopes(estimates: Configurations, *settings: Floats) -> list[Contrast] | None:
    """Slopes [settings] of one linear model of the metric on these settings [C], and, for two of them,
    |slope · standard deviation| of the second minus that of the first. None where the design does not
    determine them."""
    design = np.column_stack([np.ones(len(estimates.values)), *settings])
    model = fit(Estimates(estimates.values, estimates.factor), design)
    if model.df < 1:
        return None
    combinations_ = list(np.eye(design.shape[1])[1:])
    if len(settings) == 2:
        scaled = np.sign(model.coefficients[1:]) * np.std(design[:, 1:], axis=0)
        combinations_.append(np.array([0.0, -scaled[0], scaled[1]]))
    found = [c for weights in combinations_ if (c := seen_over_seeds(estimates, model, weights)) is not None]
    return found if len(found) == len(combinations_) else None


# ---- groups


@dataclass(frozen=True)
class GroupDifference:
    """A group's mean minus the reference group's, as a contrast. p_holm: its p-value after Holm's
    correction for all pairs of groups, so that the reference may be chosen by the same data."""

    group: str
    contrast: Contrast
    p_holm: float


def group_differences(
    estimates: Configurations, groups: pd.Series, others: pd.DataFrame, reference: str
) -> list[GroupDifference]:
    """Each group against the reference, adjusted for other settings.

    groups [C]: a label for each configuration. others: columns [C] whose values enter the model as factors,
    so that groups with different shares of, say, high α compare like with like. Groups that the design
    can't separate from these are left out; none where no degree of freedom is left.
    """
    levels = list(dict.fromkeys(groups))
    own = [(groups == level).to_numpy(np.float64) for level in levels]
    factors = [
        (others[column] == value).to_numpy(np.float64)
        for column in others
        for value in sorted(others[column].unique())[1:]
    ]
    design = np.column_stack([*own, *factors])
    model = fit(Estimates(estimates.values, estimates.factor), design)
    if model.df < 1:
        return []
    pairs = []
    for i, j in combinations(range(len(levels)), 2):
        if levels[i] == reference:
            i, j = j, i  # group minus reference
        weights = np.zeros(design.shape[1])
        weights[i], weights[j] = 1.0, -1.0
        if (contrast := seen_over_seeds(estimates, model, weights)) is not None:
            pairs.append((levels[i], levels[j], contrast))
    p_holm = holm([contrast.p_value for _, _, contrast in pairs])
    return [GroupDifference(a, c, p) for (a, b, c), p in zip(pairs, p_holm, strict=True) if b == reference]


def equal_spread(groups: Sequence[Floats]) -> float | None:
    """p-value of the hypothesis that groups scatter alike: scipy's Brown–Forsythe test (Levene's about the
    medians). None unless at least two groups have three members, and any of them scatters."""
    enough = [group for group in groups if len(group) >= 3]
    if len(enough) < 2 or not any(np.ptp(group) > 0 for group in enough):
        return None
    p = float(stats.levene(*enough, center="median").pvalue)
    return p if math.isfinite(p) else None


# ---- the linear model


@dataclass(frozen=True)
class LinearModel:
    """slopes by term: a main effect is the slope at the mean of the other settings. settings: the main
    effects. untold: terms that the design does not determine. df: residual degrees of freedom."""

    settings: list[str]
    slopes: dict[str, Contrast]
    untold: list[str]
    df: int
    r_squared: float


def linear_model(estimates: Configurations, settings: pd.DataFrame) -> LinearModel | None:
    """Slopes of ln T_init, ln T_last, α_init, α_last and of their products, all centred.

    Settings that do not vary are left out, and last values that are the initial ones in every
    configuration; None where nothing varies, no degree of freedom is left, or no slope is determined.
    """
    main = {
        "ln T_init": np.log(settings["temp_init"].to_numpy()),
        "ln T_last": np.log(settings["temp_last"].to_numpy()),
        "α_init": settings["alpha_init"].to_numpy(),
        "α_last": settings["alpha_last"].to_numpy(),
    }
    for setting in ("ln T", "α"):
        if np.array_equal(main[f"{setting}_init"], main[f"{setting}_last"]):
            del main[f"{setting}_last"]
    main = {name: values - values.mean() for name, values in main.items() if np.ptp(values) > 0}
    terms = dict(main) | {f"{a} × {b}": main[a] * main[b] for a, b in combinations(main, 2)}
    if not terms:
        return None
    design = np.column_stack([np.ones(len(settings)), *terms.values()])
    model = fit(Estimates(estimates.values, estimates.factor), design)
    if model.df < 1:
        return None
    slopes = {}
    for i, name in enumerate(terms, start=1):
        if (contrast := seen_over_seeds(estimates, model, np.eye(design.shape[1])[i])) is not None:
            slopes[name] = contrast
    if not slopes:
        return None
    total = float(np.square(estimates.values - estimates.values.mean()).sum())
    r_squared = 1.0 - model.mean_square * model.df / total if total > 0 else 0.0
    return LinearModel(list(main), slopes, [name for name in terms if name not in slopes], model.df, r_squared)


# ---- shares of variance


def variance_shares(estimates: Configurations, settings: pd.DataFrame) -> tuple[dict[str, float], float] | str:
    """Shares of the variance between configurations: of each setting (as a factor), of T_init × α_init, and
    the rest.

    statsmodels' analysis of variance with sums of squares of type II (each factor after all others): a
    functional analysis of variance on the grid. In a grid that is not fully crossed the shares need not add
    up to 1. With them comes the share that noise (test jets, and seeds where there are several) is expected
    to make by itself. Returns the reason where the settings can't be separated.
    """
    # not statsmodels.api, whose import takes as long as the rest
    from statsmodels.regression.linear_model import OLS
    from statsmodels.stats.anova import anova_lm

    frame = pd.DataFrame(
        {
            "y": estimates.values - estimates.values.mean(),
            "T_init": settings["temp_init"].to_numpy(),
            "T_final": settings["temp_final"].fillna(-1.0).to_numpy(),  # −1: constant, a level of its own
            "alpha_init": settings["alpha_init"].to_numpy(),
            "alpha_final": settings["alpha_final"].fillna(-1.0).to_numpy(),
        }
    )
    factors = [name for name in ("T_init", "T_final", "alpha_init", "alpha_final") if frame[name].nunique() > 1]
    if not factors:
        return "the grid varies no setting"
    total = float(np.square(frame["y"]).sum())
    if total == 0.0:
        return "all configurations have the same value"
    terms = [f"C({name})" for name in factors]
    if {"T_init", "alpha_init"} <= set(factors):
        terms.append("C(T_init):C(alpha_init)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rank deficiency is asked for below
        model = OLS.from_formula("y ~ " + " + ".join(terms), frame).fit()
    if model.df_resid < 1 or np.linalg.matrix_rank(model.model.exog) < model.model.exog.shape[1]:
        return "the grid is too small, or its settings change together, so that their shares can't be separated"
    table = anova_lm(model, typ=2)
    names = dict(zip(terms, [*factors, "T_init × α_init"], strict=False))
    symbols = {"alpha_init": "α_init", "alpha_final": "α_final"}
    shares = {}
    for term, row in table.iterrows():
        name = names.get(str(term), "rest")
        shares[symbols.get(name, name)] = float(row["sum_sq"]) / total
    noise = estimates.noise()
    n = len(noise)
    expected = float(np.trace(noise) - noise.sum() / n) / total
    return shares, expected


# ---- agreement between seeds


def rank_agreement(values: pd.Series, names: pd.Series, seeds: pd.Series) -> list[tuple[int, int, float, float, int]]:
    """Spearman's ρ of the configurations' order under two seeds, with its p-value (one-sided, ρ > 0) and
    the number of configurations that both have, for each pair of seeds; pairs with fewer than 4 in common
    are left out."""
    table = pd.DataFrame({"v": values, "name": names, "seed": seeds}).pivot(index="name", columns="seed", values="v")
    found = []
    for a, b in combinations(sorted(table.columns), 2):
        both = table[[a, b]].dropna()
        if len(both) >= 4 and both[a].nunique() > 1 and both[b].nunique() > 1:
            rho, p = stats.spearmanr(both[a], both[b], alternative="greater")
            if len(both) < 8:  # Student's t is far off: all orders instead
                p = stats.permutation_test(
                    (both[a],),
                    lambda x, y=both[b]: stats.spearmanr(x, y).statistic,
                    permutation_type="pairings",
                    alternative="greater",
                    n_resamples=5040,
                ).pvalue
            found.append((int(a), int(b), float(rho), float(p), len(both)))
    return found
