"""The report's statements: what is claimed follows from the tests, and each says the numbers that it states."""

import re

import numpy as np
import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.report.analysis import analyse
from kdfast.report.findings import group_finding, versus
from kdfast.report.schema.settings import Group, GroupTable, MetricSummary
from kdfast.report.schema.values import Claim, Comparison, Estimate
from kdfast.store.grid import grid
from tests.report.fake_study import SMALL_GRID, make_study
from tests.report.test_analysis import with_pt


def alpha_helps(config):
    return 1.25 if config is None else 1.25 + 0.6 * config.alpha_init


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("findings") / "study"
    return analyse(make_study(path, SMALL_GRID, seeds=(5, 6, 7, 8, 9), strength=alpha_helps))


def comparison(value, low, high, p_adjusted):
    estimate = Estimate(value=value, error=0.001, low=low, high=high)
    p = None if p_adjusted is None else p_adjusted / 10
    return Comparison(difference=estimate, relative=None, p_value=p, p_adjusted=p_adjusted)


UP = "+0.0100 (interval +0.0020 to +0.0180)"
DOWN = "-0.0100 (interval -0.0180 to -0.0020)"
OPEN = "+0.0100 (interval -0.0020 to +0.0220)"
NOT_DIFFERENT = "A and B are not significantly different in AUC"


@pytest.mark.parametrize(
    ("compared", "code", "text"),
    [
        (comparison(0.01, 0.002, 0.018, 0.01), Claim.HIGHER, f"A has a higher AUC than B: {UP}, adjusted p = 0.01."),
        (comparison(-0.01, -0.018, -0.002, 0.01), Claim.LOWER, f"A has a lower AUC than B: {DOWN}, adjusted p = 0.01."),
        (comparison(0.01, 0.002, 0.018, 1e-9), Claim.HIGHER, f"A has a higher AUC than B: {UP}, adjusted p < 0.0001."),
        (comparison(0.01, -0.002, 0.022, 0.1), Claim.NOT_DIFFERENT, f"{NOT_DIFFERENT}: {OPEN}, adjusted p = 0.1."),
        (comparison(0.01, -0.002, 0.022, 0.05), Claim.NOT_DIFFERENT, f"{NOT_DIFFERENT}: {OPEN}, adjusted p = 0.05."),
    ],
)
def test_sentences(compared, code, text):
    found = versus("", "A", "B", compared, "auc")
    assert (found.code, found.text) == (code, text)
    assert found.supported == compared.supported == (code is not Claim.NOT_DIFFERENT)
    assert (found.numbers["one"], found.numbers["value"]) == ("A", compared.difference.value)
    assert (found.numbers["p_value"], found.numbers["p_adjusted"]) == (compared.p_value, compared.p_adjusted)


def test_what_is_not_tested_is_not_supported():
    """Also with an interval that excludes 0."""
    assert not comparison(0.01, 0.002, 0.018, None).supported
    assert not comparison(0.01, None, None, 1e-9).supported
    assert comparison(0.01, 0.002, 0.018, 1e-9).supported


def test_a_planned_contrast_says_that_other_settings_are_equal():
    text = versus(
        "", "T annealed", "T constant", comparison(0.01, -0.002, 0.022, 0.1), "auc", at_equal_settings=True
    ).text
    assert text == (
        "T annealed and T constant are not significantly different in AUC: "
        f"{OPEN}, adjusted p = 0.1, at equal other settings."
    )


def test_what_beats_the_baseline(report):
    row = report.configurations[0]
    better, worse = comparison(0.01, 0.002, 0.018, 0.01), comparison(-1.0, -1.5, -0.5, 0.01)
    unseen = comparison(0.01, -0.002, 0.022, 1.0)
    for auc, rejection, expected in (
        (better, unseen, True),
        (unseen, unseen, False),
        (better, worse, False),
        (None, None, False),
    ):
        compared = row.model_copy(update={"auc_vs_baseline": auc, "rejection_vs_baseline": rejection})
        assert compared.beats_baseline == expected


def test_a_strong_effect_is_found(report):
    """α helps: the report says so, and does not say so of the strategies."""
    by_topic = {finding.topic: finding for finding in report.findings}
    assert by_topic["correlation_auc"].supported
    assert by_topic["planned_alpha_auc"].supported
    topics = {"precision", "convergence", "improvement", "best_auc", "seeds", "pareto", "mass", "calibration", "pt"}
    assert topics <= set(by_topic)
    for question in ("annealing", "scheduling"):
        assert not by_topic[f"planned_{question}_auc"].supported
    assert not by_topic["strategy_auc"].supported


def sentences_of(made, topic):
    return [finding for finding in analyse(made).findings if finding.topic == topic]


def compared_group(label, value, p_adjusted):
    """A group whose difference to the reference is value ± 0.01."""
    difference = comparison(value, value - 0.01, value + 0.01, p_adjusted)
    summary = MetricSummary(mean=0.8, std=0.1, variance=0.01, min=0.7, max=0.9)
    return Group(
        label=label,
        runs=9,
        auc=summary,
        rejection=summary,
        consistency=None,
        auc_over_constant=None,
        rejection_over_constant=None,
        auc_difference=None if value == 0.0 else difference,
    )


HIGHEST, SOME, NONE, BELOW = (
    Claim.GROUP_HIGHEST,
    Claim.GROUP_HIGHER_THAN_SOME,
    Claim.GROUP_NOT_DIFFERENT,
    Claim.GROUP_BELOW_ANOTHER,
)


@pytest.mark.parametrize(
    ("differences", "unresolved", "code", "parts"),
    [
        ({"0.5": (-0.03, 0.001), "0.7": (-0.02, 0.01)}, [], HIGHEST, ["than each of the other 2 at", "0.5 by +0.0300"]),
        (
            {"0.5": (-0.03, 0.001), "0.7": (-0.05, 0.2)},
            [],
            SOME,
            ["it is higher than 0.5, over initial α 0.5 by +0.0300", "different from the rest"],
        ),
        ({"0.5": (-0.005, 0.2), "0.7": (0.005, 0.3)}, [], NONE, ["any of the other 2", "initial α 0.5: +0.0050"]),
        ({"0.5": (-0.005, 0.2)}, [], NONE, ["different from the other one at equal"]),
        (
            {"0.5": (0.03, 0.001)},
            [],
            BELOW,
            ["raw mean", "ones initial α 0.5 is higher, by +0.0300 (interval +0.0200"],
        ),
        (
            {"0.5": (0.03, 0.001), "0.7": (0.02, 0.01), "1.0": (-0.04, 0.001)},
            [],
            BELOW,
            ["0.5 is higher, by +0.0300", "and so is 0.7", "it is higher than 1.0, over initial α 1.0 by +0.0400"],
        ),
        # groups that the grid does not determine are none of "the others"
        (
            {"0.5": (-0.03, 0.001)},
            ["0.7"],
            HIGHEST,
            ["mean AUC than initial α 0.5 at equal", "For 0.7 the grid does not"],
        ),
        (
            {"0.1": (-0.03, 0.001), "0.5": (-0.03, 0.001)},
            ["0.7", "1.0"],
            HIGHEST,
            ["mean AUC than each of 0.1, 0.5 at", "For 0.7, 1.0 the grid does not"],
        ),
        ({"0.1": (-0.01, 0.2), "0.5": (-0.01, 0.2)}, ["0.7"], NONE, ["from any of 0.1, 0.5 at equal", "For 0.7 the"]),
        ({"0.5": (-0.01, 0.2)}, ["0.7"], NONE, ["different from initial α 0.5 at equal", "change with it."]),
        ({"0.5": (0.03, 0.001)}, ["0.7"], BELOW, ["0.5 is higher, by", "For 0.7 the grid does not"]),
    ],
)
def test_groups(differences, unresolved, code, parts):
    """The group of the highest raw mean is the reference; a difference that a test supports is never denied."""
    groups = [compared_group("0.9", 0.0, 1.0), *(compared_group(label, *d) for label, d in differences.items())]
    groups += [compared_group(label, 0.0, 1.0) for label in unresolved]
    table = GroupTable(setting="alpha_init", reference="0.9", reference_rejection=None, groups=groups)
    found = group_finding(table, "auc")
    assert (found.code, found.supported) == (code, code is not NONE)
    assert found.numbers["unresolved"] == unresolved
    assert found.numbers["compared"] == list(differences)
    for part in ("Initial α 0.9 has ", *parts):
        assert part in found.text, found.text
    assert not unresolved or "the other" not in found.text


def test_a_group_that_is_higher_at_equal_settings(tmp_path):
    """Annealed runs are better at equal α, but more of the constant ones have a high α, so that their raw mean is
    higher."""
    configs = [RunConfig(t, a) for t in (3.0, 5.0, 7.0, 10.0) for a in (0.3, 0.9, 0.95, 1.0)]
    configs += [RunConfig(t, a, 1.0) for t in (3.0, 5.0, 7.0, 10.0) for a in (0.3, 0.35, 0.4, 0.9)]

    def strength(config):
        return 1.25 if config is None else 1.25 + config.alpha_init + 0.25 * (config.strategy == "tempanneal")

    made = make_study(tmp_path / "study", configs, jets=1000, strength=strength)
    (found,) = sentences_of(made, "strategy_auc")
    assert (found.supported, found.code) == (True, Claim.GROUP_BELOW_ANOTHER)
    assert (found.numbers["reference"], found.numbers["highest"]) == ("baseline", "tempanneal")
    assert found.numbers["above"]["low"] > 0.0
    assert "at equal ones the strategy temperature annealing is higher, by +0.0" in found.text


def test_planned_contrasts_find_what_matters(tmp_path):
    """α matters much, T and schedules do not: sentences say so, with the interval of the tested difference."""
    configs = grid(
        temperature=[3.0, 5.0, 7.0, 10.0], alpha=[0.3, 0.5, 0.7, 0.9], temperature_final=[1.0], alpha_final=[0.1]
    )
    found = analyse(make_study(tmp_path / "study", configs, strength=alpha_helps))
    planned = {(c.question, c.metric): c.comparison for c in found.planned}
    assert set(planned) == {
        (q, m) for q in ("temperature", "annealing", "alpha", "scheduling") for m in ("auc", "rejection")
    }
    assert planned["alpha", "auc"].supported
    assert planned["alpha", "auc"].difference.low > 0.0
    by_topic = {finding.topic: finding for finding in found.findings}
    for (question, metric), compared in planned.items():
        said = by_topic[f"planned_{question}_{metric}"]
        assert (said.numbers["value"], said.supported) == (compared.difference.value, compared.supported)
    assert by_topic["planned_alpha_auc"].text.startswith("High α_init has a higher AUC than low α_init: +0.")
    assert by_topic["planned_alpha_auc"].text.endswith(", at equal other settings.")
    for question in ("temperature", "annealing", "scheduling"):
        assert by_topic[f"planned_{question}_auc"].code is Claim.NOT_DIFFERENT
    assert by_topic["planned_annealing_auc"].text.startswith("T annealed and T constant are not ")
    assert by_topic["planned_scheduling_auc"].text.startswith("α scheduled and α constant are not ")


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_what_a_difference_is_known_to(tmp_path, seeds):
    made = make_study(tmp_path / "study", SMALL_GRID, seeds=seeds)
    found = sentences_of(made, "precision")[0]
    assert found.numbers["kind"] == ("configuration" if len(seeds) > 1 else "trained network")
    assert found.numbers["paired"] > 0.0
    two = "two configurations' means over seeds" if len(seeds) > 1 else "two runs"
    assert f"the difference of {two} is known to" in found.text


def test_seeds_that_tell_nothing(tmp_path):
    """Two seeds, but one run of each configuration: nothing tells what a seed does, and the report says so."""
    half = len(SMALL_GRID) // 2
    make_study(tmp_path / "study", SMALL_GRID[:half], seeds=(1,), settings={"seeds": [1, 2]})
    found = analyse(make_study(tmp_path / "study", SMALL_GRID[half:], seeds=(2,), teacher=False))
    assert found.study.seeds == [1, 2]
    assert found.distribution.seed_df == 0
    assert "variance between seeds" in {item.what for item in found.missing}
    by_topic = {finding.topic: finding for finding in found.findings}
    assert by_topic["seeds"].code is Claim.SEED_VARIANCE_UNKNOWN
    assert by_topic["strategy_auc"].numbers["scope_seeds"] == "unknown"
    assert by_topic["strategy_auc"].text.startswith("Among these networks, whose variance between seeds is unknown: ")
    assert by_topic["best_auc"].numbers["kind"] == "trained network"


def test_a_trend_in_pt_names_its_bins(tmp_path):
    """Signal above 800 GeV alone: bins below are left out, and the first that is there is not the lowest of all."""

    def spectra(labels):
        rng = np.random.default_rng(1)
        return np.where(labels == 1, rng.uniform(800.0, 1200.0, len(labels)), rng.uniform(450.0, 1200.0, len(labels)))

    found = with_pt(tmp_path, spectra)
    assert any(item.what.startswith("AUC and rejection in") for item in found.missing)
    own = [b for b in found.by_pt if b.role == "teacher"]
    assert own[0].pt_low > 600.0
    statement = next(f for f in found.findings if f.topic == "pt")  # the teacher's
    for b, key in ((own[0], "other"), (own[-1], "one")):
        assert f"{b.pt_low:.0f} to {b.pt_high:.0f} GeV" in statement.numbers[key]


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3, 4, 5)])
def test_only_supported_statements_claim(tmp_path, seeds):
    claims = {Claim.HIGHER, Claim.LOWER, Claim.GROUP_HIGHEST, Claim.GROUP_HIGHER_THAN_SOME, Claim.GROUP_BELOW_ANOTHER}
    denials = {Claim.NOT_DIFFERENT, Claim.EQUAL, Claim.GROUP_NOT_DIFFERENT, Claim.GAP_UNCERTAIN}
    made = make_study(tmp_path / "study", SMALL_GRID, seeds=seeds, strength=alpha_helps)
    found = analyse(made).findings
    assert {finding.code for finding in found} & claims
    for finding in found:
        if finding.code in claims | denials:
            assert finding.supported == (finding.code in claims), finding.text
        assert bool(re.search(r"not significant|no significant|not change significant", finding.text)) <= (
            not finding.supported or finding.code in (Claim.BASELINE_COUNTS, Claim.GROUP_HIGHER_THAN_SOME)
        ), finding.text
