"""What temperature, mixing weight and their schedules do: effects at equal other settings, all of one family of tests.

Everything works on one number per configuration, its mean over seeds (comparisons.py). Errors have two parts,
as everywhere: the test jets that all share, and the scatter of configurations about the model, which seeds
are part of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from kdfast.distill.recipe import AXES, Value
from kdfast.report.comparisons import Configurations
from kdfast.report.families import Adjusted, adjust
from kdfast.report.fitting import Contrast, Fit, Part, fit, satterthwaite
from kdfast.report.records import estimate_of
from kdfast.report.sampling import LEVEL, Estimates, Floats
from kdfast.report.schema.settings import LinearModel, Term
from kdfast.report.schema.values import Metric
from kdfast.store.table import SCHEDULES, axis_columns

__all__ = [
    "PLANNED",
    "Effects",
    "correlation",
    "group_labels",
    "linear_model",
    "numeric",
    "questions",
    "settings_frame",
    "variance_shares",
]

# A scatter about a model that is known with fewer degrees of freedom is no basis of a test.
_LEAST_DF = 3

# Planned contrasts: by question, the table of groups whose columns are held equal, and the two sides.
PLANNED: dict[str, tuple[str, str, str]] = {
    "temperature": ("temp_init", "high T_init", "low T_init"),
    "annealing": ("temp_range", "T annealed", "T constant"),
    "alpha": ("alpha_init", "high α_init", "low α_init"),
    "scheduling": ("alpha_range", "α scheduled", "α constant"),
}

# Tables of groups, and the settings that their comparisons hold equal (columns of settings_frame): these, and
# all further axes. Each of those has a table, too, in which T and α are held equal.
TABLES: dict[str, list[str]] = {
    "temp_init": ["alpha_init", "temp_level", "alpha_level"],
    "alpha_init": ["temp_init", "temp_level", "alpha_level"],
    "strategy": ["temp_init", "alpha_init"],
    "temp_range": ["alpha_init", "alpha_level"],
    "alpha_range": ["temp_init", "temp_level"],
}


def settings_frame(runs: pd.DataFrame, names: Sequence[str], study: Mapping[str, Value] | None = None) -> pd.DataFrame:
    """A row per configuration, in the order of names: strategy, temp_init, temp_final, alpha_init,
    alpha_final (NaN: constant); the values of the last epoch, temp_last and alpha_last (the initial ones
    where constant); temp_level and alpha_level, the final ones with −1 for constant; further axes, with the
    study's own value where a configuration has none."""
    unique = runs.drop_duplicates("run_name").set_index("run_name").loc[list(names)]
    frame = unique[["strategy", *SCHEDULES]].copy()
    for name, column in axis_columns(runs).items():
        usual = (study or {}).get(name, "the study's")
        values = unique[column].astype(object)
        values = values.where(values.notna(), usual)
        frame[name] = values if values.map(type).eq(str).any() else values.astype(np.float64)
    for quantity in ("temp", "alpha"):
        final = frame[f"{quantity}_final"]
        frame[f"{quantity}_last"] = final.fillna(frame[f"{quantity}_init"])
        frame[f"{quantity}_level"] = final.fillna(-1.0)
    return frame


def group_labels(settings: pd.DataFrame) -> dict[str, pd.Series]:
    """Labels of the configurations by table; of a range only those that have one."""
    found = {
        "temp_init": settings["temp_init"].map(str),
        "alpha_init": settings["alpha_init"].map(str),
        "strategy": settings["strategy"],
    }
    for quantity in ("temp", "alpha"):
        last = settings[f"{quantity}_final"]
        first = settings[f"{quantity}_init"]
        found[f"{quantity}_range"] = (first.map(str) + " → " + last.map(str)).where(last.notna()).dropna()
    for name in further_axes(settings):
        found[name] = settings[name].map(lambda value: value if isinstance(value, str) else f"{value:g}")
    return {setting: labels for setting, labels in found.items() if len(labels)}


def further_axes(settings: pd.DataFrame) -> list[str]:
    """The further axes that vary."""
    return [name for name in AXES if name in settings and settings[name].nunique() > 1]


def numeric(settings: pd.DataFrame) -> dict[str, tuple[str, Floats]]:
    """Symbol and values of T_init, α_init, and the further axes of numbers that vary. One that spans a decade
    or more enters by its logarithm."""
    found = {"temp_init": ("T_init", settings["temp_init"].to_numpy(np.float64))}
    found["alpha_init"] = "α_init", settings["alpha_init"].to_numpy(np.float64)
    for name in further_axes(settings):
        if settings[name].dtype == object:
            continue
        values = settings[name].to_numpy(np.float64)
        symbol = AXES[name].label.lower()
        decades = values.min() > 0.0 and values.max() / values.min() > 10.0 - 1e-9
        found[name] = (f"ln {symbol}", np.log(values)) if decades else (symbol, values)
    return found


def questions(settings: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """PLANNED, and of each further axis of numbers high against low."""
    axes = [name for name in numeric(settings) if name in AXES]
    return PLANNED | {n: (n, f"high {AXES[n].label.lower()}", f"low {AXES[n].label.lower()}") for n in axes}


def _held(table: str, settings: pd.DataFrame) -> list[str]:
    """What comparisons of a table hold equal."""
    usual = TABLES.get(table, ["temp_init", "alpha_init", "temp_level", "alpha_level"])
    return [*usual, *(name for name in further_axes(settings) if name != table)]


@dataclass(frozen=True)
class Effect:
    """A contrast of configurations. direction [C]: its weights on their estimates; scatter: σ of
    configurations about its model."""

    contrast: Contrast
    direction: Floats
    scatter: float


class Effects:
    """All tested effects of settings on one metric, as one family.

    By key: ("planned", question); ("pair", table, group, other), for all pairs of groups of a table;
    ("slope", setting) for the simple slopes behind the correlations; ("importance", one, other), |slope ·
    standard deviation| of a setting minus that of one before it. Those that the grid can't determine are
    absent.
    """

    def __init__(self, estimates: Configurations, settings: pd.DataFrame, level: float) -> None:
        self._estimates = estimates
        self._settings = settings
        self._level = level

    @cached_property
    def found(self) -> dict[tuple[str, ...], Effect]:
        """Every effect by its key."""
        found: dict[tuple[str, ...], Effect] = {}
        for question, (table, _, _) in questions(self._settings).items():
            found |= self._planned(question, table)
        for table, labels in group_labels(self._settings).items():
            compared = _compared(self._estimates, self._settings, labels, _held(table, self._settings))
            found |= {("pair", table, *pair): effect for pair, effect in compared.items()}
        return found | self._slopes()

    @cached_property
    def adjusted(self) -> dict[tuple[str, ...], Adjusted]:
        """The same, tested as one family. As likely false as any other: the direction that the data chose."""
        effects = list(self.found.values())
        directions = np.array([effect.direction for effect in effects]).reshape(len(effects), -1)
        scatter = np.array([effect.scatter for effect in effects])
        factor = directions @ self._estimates.factor
        covariance = factor @ factor.T + np.outer(scatter, scatter) * (directions @ directions.T)
        tested = adjust([effect.contrast for effect in effects], covariance, self._level)
        return dict(zip(self.found, tested, strict=True))

    def _planned(self, question: str, table: str) -> dict[tuple[str, ...], Effect]:
        """Schedules against constant values; the upper half of other values against the lower half."""
        if table.endswith("_range"):
            quantity = table.removesuffix("_range")
            high = self._settings[f"{quantity}_final"].notna()
            held = [f"{other}_init" for other in ("temp", "alpha")]
            held += ["alpha_level" if quantity == "temp" else "temp_level", *further_axes(self._settings)]
            sides = high.map({True: "high", False: "low"})
        else:
            held = _held(table, self._settings)
            values = self._settings[table]
            levels = np.sort(values.unique())
            sides = pd.Series(index=values.index, dtype=object)
            sides[values.isin(levels[: len(levels) // 2])] = "low"
            sides[values.isin(levels[(len(levels) + 1) // 2 :])] = "high"
        compared = _compared(self._estimates, self._settings, sides.dropna(), held)
        if ("high", "low") in compared:
            return {("planned", question): compared["high", "low"]}
        if ("low", "high") in compared:
            effect = compared["low", "high"]
            turned = replace(effect, contrast=effect.contrast.times(-1.0), direction=-effect.direction)
            return {("planned", question): turned}
        return {}

    def _slopes(self) -> dict[tuple[str, ...], Effect]:
        varying = {name: values for name, (_, values) in numeric(self._settings).items() if np.ptp(values) > 0}
        found: dict[tuple[str, ...], Effect] = {}
        for name, values in varying.items():
            model = _model(self._estimates, [np.ones(len(values)), values])
            if model is not None and (effect := _effect(self._estimates, model, np.array([0.0, 1.0]))) is not None:
                found["slope", name] = effect
        words = [name for name in further_axes(self._settings) if name not in varying]
        factors = [column for name in words for column in _levels(self._settings[name]).T]
        model = _model(self._estimates, [np.ones(len(self._settings)), *varying.values(), *factors])
        if model is None:
            return found
        deviations = [float(np.std(values)) for values in varying.values()]
        scaled = np.sign(model.coefficients[1 : 1 + len(varying)]) * deviations
        for (i, other), (j, one) in combinations(enumerate(varying), 2):
            weights = np.zeros(len(model.coefficients))
            weights[1 + i] = -scaled[i]
            weights[1 + j] = scaled[j]
            effect = _effect(self._estimates, model, weights)
            if effect is not None:
                found["importance", one, other] = effect
        return found


def _compared(
    estimates: Configurations, settings: pd.DataFrame, groups: pd.Series, held: Sequence[str]
) -> dict[tuple[str, str], Effect]:
    """Each group minus each later one, in a linear model with other settings as factors, so that groups with
    different shares of, say, high α compare like with like. Pairs that the design can't separate from these
    are absent.

    groups: labels of the configurations that take part. held: columns of settings.
    """
    others = settings.loc[groups.index, list(held)]
    levels = list(dict.fromkeys(groups))
    columns = [(groups == level).to_numpy(np.float64) for level in levels]
    for name in others:
        columns += [(others[name] == value).to_numpy(np.float64) for value in sorted(others[name].unique())[1:]]
    part = estimates.without(*(name for name in settings.index if name not in groups.index))
    model = _model(part, columns) if len(levels) > 1 else None
    if model is None:
        return {}
    place = [estimates.index(name) for name in part.names]
    found = {}
    for i, j in combinations(range(len(levels)), 2):
        weights = np.zeros(len(columns))
        weights[i], weights[j] = 1.0, -1.0
        effect = _effect(part, model, weights)
        if effect is not None:
            direction = np.zeros(len(estimates.names))
            direction[place] = effect.direction
            found[levels[i], levels[j]] = Effect(effect.contrast, direction, effect.scatter)
    return found


def _model(estimates: Configurations, columns: Sequence[Floats]) -> Fit | None:
    """None where too few degrees of freedom tell how configurations scatter about it."""
    model = fit(Estimates(estimates.values, estimates.factor), np.column_stack(columns))
    return model if model.df >= _LEAST_DF else None


def _effect(estimates: Configurations, model: Fit, weights: Floats) -> Effect | None:
    """A contrast of a model of the configurations' estimates; None where the design can't tell it.

    With several seeds it is taken in each of them: its scatter counts, and of the scatter of configurations
    about the model what is more than the rest of a run. With one the latter includes both.
    """
    contrast = model.contrast(weights)
    if contrast is None:
        return None
    direction = weights @ model.solve
    by_seed = estimates.by_seed(direction)
    if by_seed is not None:
        unit = float(weights @ model.spread @ weights)
        number = float(by_seed.spread[0, 0])
        misfit = max(0.0, model.run_variance - estimates.model.run_variance * float(np.diag(estimates.spread).mean()))
        run = misfit * unit + by_seed.cautious_variance * number
        fluctuates = model.uncertain * unit if misfit > 0 else 0.0
        df = satterthwaite(
            contrast.test_variance + run, (fluctuates, model.df), (by_seed.uncertain * number, by_seed.df)
        )
        parts = by_seed.part(number)
        if misfit > 0:
            parts += (Part(misfit * unit, fluctuates, model.df),)
        contrast = Contrast(contrast.value, contrast.test_variance, run, df, parts)
    return Effect(contrast, direction, math.sqrt(model.cautious_variance))


# ---- correlation


def correlation(x: Floats, y: Floats) -> dict[str, float] | None:
    """Pearson's r, its interval (low, high; Fisher's z) and two-sided p_value, by scipy; None with fewer than
    4 points or where one of the two does not vary."""
    if len(x) < 4 or any(np.ptp(v) <= 1e-9 * np.abs(v).max() for v in (x, y)):
        return None
    result = stats.pearsonr(x, y)
    low, high = result.confidence_interval(LEVEL)
    numbers = {"r": result.statistic, "low": low, "high": high, "p_value": result.pvalue}
    return {name: float(number) for name, number in numbers.items()}


# ---- the linear model


def linear_model(estimates: Configurations, settings: pd.DataFrame, metric: Metric) -> LinearModel | None:
    """Slopes of ln T_init, ln T_last, α_init, α_last, further axes of numbers, and of the products of any
    two, all centred: a description, not tested. A main effect is the slope at the mean of the other settings.

    Settings that do not vary are left out, and last values that are the initial ones in every configuration;
    None where nothing varies, too few degrees of freedom are left, or no slope is determined.
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
    main |= dict(symbol_and_values for name, symbol_and_values in numeric(settings).items() if name in AXES)
    main = {name: values - values.mean() for name, values in main.items() if np.ptp(values) > 0}
    terms = dict(main) | {f"{a} × {b}": main[a] * main[b] for a, b in combinations(main, 2)}
    model = _model(estimates, [np.ones(len(settings)), *terms.values()]) if terms else None
    if model is None:
        return None
    effects = {
        name: _effect(estimates, model, weights)
        for name, weights in zip(terms, np.eye(len(terms) + 1)[1:], strict=True)
    }
    known = {name: estimate_of(effect.contrast) for name, effect in effects.items() if effect is not None}
    if not known:
        return None
    total = float(np.square(estimates.values - estimates.values.mean()).sum())
    return LinearModel(
        metric=metric,
        settings=list(main),
        terms=[Term(name=name, slope=slope) for name, slope in known.items()],
        undetermined=[name for name in terms if name not in known],
        df=model.df,
        r_squared=1.0 - model.mean_square * model.df / total if total > 0 else 0.0,
    )


# ---- shares of variance


def variance_shares(estimates: Configurations, settings: pd.DataFrame) -> dict[str, tuple[float, float]] | str:
    """Shares of the variance between configurations: of each setting (as a factor), of T_init × α_init, and
    the rest; each with the share that noise (test jets, and seeds where there are several) is expected to
    make of it.

    Analysis of variance with sums of squares of type II (each factor after all others, the product after
    both): a functional analysis of variance on the grid. A term's sum of squares is yᵀ Q y with a projection
    Q, and noise of covariance V makes tr(Q V) of it on average. In a grid that is not fully crossed the
    shares need not add up to 1. Returns the reason where the settings can't be separated.
    """
    symbols = {"temp_init": "T_init", "temp_level": "T_final", "alpha_init": "α_init", "alpha_level": "α_final"}
    symbols |= {name: AXES[name].label.lower() for name in further_axes(settings)}
    factors = {symbol: settings[column] for column, symbol in symbols.items() if settings[column].nunique() > 1}
    values = estimates.values - estimates.values.mean()
    total = float(values @ values)
    if not factors:
        return "the grid varies no setting"
    if total == 0.0:
        return "all configurations have the same value"
    columns = {symbol: _levels(setting) for symbol, setting in factors.items()}
    product = "T_init × α_init"
    parents = ("T_init", "α_init")
    if set(parents) <= set(factors):
        temperatures, alphas = (columns[parent] for parent in parents)
        columns[product] = np.hstack([column[:, None] * alphas for column in temperatures.T])
    noise = estimates.noise()

    def sums(names: Iterable[str]) -> tuple[float, float, int]:
        """Sum of squares that these terms take, that which noise is expected to make of it, and their rank."""
        design = np.hstack([np.ones((len(values), 1)), *(columns[name] for name in names)])
        left, singular, _ = np.linalg.svd(design, full_matrices=False)
        basis = left[:, singular > 1e-10 * singular[0]]
        return float(np.square(basis.T @ values).sum()), float(np.sum(basis * (noise @ basis))), basis.shape[1]

    taken, expected, rank = sums(columns)
    if rank < 1 + sum(part.shape[1] for part in columns.values()) or rank == len(values):
        return "the grid is too small, or its settings change together, so that their shares can't be separated"
    found = {}
    for symbol in columns:
        among = [name for name in columns if not (name == product and symbol in parents)]
        with_it = sums(among)
        without = sums(name for name in among if name != symbol)
        found[symbol] = ((with_it[0] - without[0]) / total, (with_it[1] - without[1]) / total)
    found["rest"] = (1.0 - taken / total, (float(np.trace(noise)) - expected) / total)
    return found


def _levels(setting: pd.Series) -> Floats:
    """[C, levels − 1]: a factor's columns, one for each level but the first."""
    return np.column_stack([(setting == level).to_numpy(np.float64) for level in sorted(setting.unique())[1:]])
