"""The replays of searches: what they count, on a made-up table."""

import numpy as np
import pytest

from kdfast.store.grid import grid

optuna = pytest.importorskip("optuna")
from bench.search_replay import Replay, Table, at_random, pruned, race, ranks_table, results_table, sampled, seeds_table  # noqa: E402


@pytest.fixture(scope="module")
def table():
    """A maximum in the middle of T and α; curves keep the order of the end."""
    runs = grid("study")
    auc = np.array([0.95 - 0.01 * abs(run.temp_init - 5) / 5 - 0.01 * abs(run.alpha_init - 0.7) for run in runs])
    auc += 1e-5 * np.arange(len(runs)) / len(runs)
    return Table("made up", runs, auc, auc - 0.01, [np.linspace(0.6, value, 10)[1:] for value in auc], 1e-3)


def test_epochs_and_regret_are_counted(table):
    best = int(np.argmax(table.validation))
    replay = Replay(table, [3, best, 7], [9, 9, 2], [True, True, False])
    assert replay.spent[-1] == pytest.approx(20 / (9 * 132))
    assert replay.choice() == best
    assert replay.regret() == 0
    assert replay.choice(10 / (9 * 132)) == 3
    assert replay.regret(10 / (9 * 132)) == pytest.approx(table.test[best] - table.test[3])
    assert replay.choice(1e-6) is None
    assert np.isnan(replay.regret(1e-6))


def test_searches_are_replayed(table):
    random = np.random.default_rng(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    whole = pruned(lambda epochs: optuna.pruners.NopPruner())(table, random)
    assert all(whole.ended)
    assert whole.spent[-1] == pytest.approx(1)
    halved = pruned(lambda epochs: optuna.pruners.SuccessiveHalvingPruner())(table, random)
    assert halved.spent[-1] < 0.5
    assert halved.regret() == 0  # the order never changes
    drawn = sampled(lambda seed: optuna.samplers.RandomSampler(seed=seed), False, 20)(table, random)
    assert len(set(drawn.numbers)) == 20
    raced = race(table, random)
    assert 10 <= len(set(raced.numbers)) == len(raced.numbers) < 132
    assert raced.regret() <= table.tolerance
    replays = {"race": [raced], "random": [at_random(table, random)], "halving": [halved]}
    assert len(results_table(replays).splitlines()) == 5
    assert "(100%)" in seeds_table(replays, [table]).splitlines()[4]
    assert "+1.00 (1)" in ranks_table([table])
