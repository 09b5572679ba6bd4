import dataclasses

import numpy as np
import pytest

from kdfast.errors import ConfigError, DataError
from kdfast.jets.hlt import HLT_PRESETS, HLTConfig, emulate_hlt, offline_view, study_view
from kdfast.ops.arrays import as_tensor
from kdfast.ops.hlt_emulation import hlt_emulation
from kdfast.ops.philox import derive_seed
from tests.synthetic import synthetic_jets

NOTHING = HLTConfig(0.0, 0.0, 0.0, 0.0, 0.0)


def change(**settings: float) -> HLTConfig:
    return dataclasses.replace(NOTHING, **settings)


@pytest.fixture(scope="module")
def jets():
    return synthetic_jets(400, seed=6)


def same(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_no_effect_gives_the_same_jets(jets):
    same(emulate_hlt(jets, NOTHING), jets)


def test_a_preset_with_changes():
    assert HLTConfig.preset("mild") == HLT_PRESETS["mild"]
    assert HLTConfig.preset("nominal", loss=0.1) == HLTConfig(2.0, 0.10, 0.20, 0.05, 0.1)
    assert HLTConfig.preset("study", pt_threshold=2.0).log_pt


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nominl", {}, "preset: unknown HLT preset 'nominl'\ndid you mean 'nominal'?"),
        ("mild", {"los": 0.1}, "HLTConfig.preset: unknown parameter 'los'\ndid you mean 'loss'?"),
        ("mild", {"loss": 2}, "loss: is a probability and must lie in [0, 1], is 2"),
    ],
)
def test_a_preset_with_impossible_changes(name, changes, message):
    with pytest.raises(ConfigError) as error:
        HLTConfig.preset(name, **changes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("preset", HLT_PRESETS)
def test_a_jet_is_the_same_from_any_batch_and_order(jets, preset):
    whole = emulate_hlt(jets, preset, seed=7)
    order = np.random.default_rng(0).permutation(len(jets))
    same(emulate_hlt(jets[order], preset, seed=7), whole[order])
    same(emulate_hlt(jets[100:103], preset, seed=7), whole[100:103])


def test_seed_and_index_make_the_random_numbers(jets):
    one = emulate_hlt(jets, seed=1)
    assert not np.array_equal(emulate_hlt(jets, seed=2).constituents[:100], one.constituents[:100])
    high = dataclasses.replace(jets, index=jets.index + (1 << 32))  # the high word counts
    assert not np.array_equal(emulate_hlt(high, seed=1).constituents[:100], one.constituents[:100])
    twins = dataclasses.replace(jets[[0, 0]], index=np.array([5, 5]))
    result = emulate_hlt(twins, "mild")
    np.testing.assert_array_equal(result[:1].constituents, result[1:].constituents)


def test_threshold_does_not_reshuffle_the_others(jets):
    smear = change(pt_resolution=0.1, angular_resolution=0.05, loss=0.3)
    harder = emulate_hlt(jets, dataclasses.replace(smear, pt_threshold=2.0))
    softer = emulate_hlt(jets, smear)
    for b in range(50):
        rows = {tuple(row) for row in softer[b : b + 1].constituents.tolist()}
        assert all(tuple(row) in rows for row in harder[b : b + 1].constituents.tolist())


def test_threshold_keeps_its_boundary():
    jets = synthetic_jets(3, seed=1)
    for value in (0.1, 0.3, 0.7, 2.0):  # 0.7 rounds down in float32
        jets.constituents[:, 0] = value
        assert len(emulate_hlt(jets, change(pt_threshold=value)).constituents) == len(jets.constituents)
        above = np.nextafter(np.float32(value), np.float32(9))
        assert len(emulate_hlt(jets, change(pt_threshold=float(above))).constituents) == 0


def test_result_is_in_falling_pt_with_finite_values(jets):
    for preset in HLT_PRESETS:
        x = emulate_hlt(jets, preset)
        assert np.all(np.isfinite(x.constituents))
        first = np.zeros(len(x.constituents), bool)
        first[x.offsets[:-1][x.counts > 0]] = True
        rising = np.diff(x.constituents[:, 0]) > 0
        assert not np.any(rising & ~first[1:])
        assert np.all(np.abs(x.constituents[:, 2]) <= np.float32(np.pi))


def test_thresholding_twice_equals_once(jets):
    once = emulate_hlt(jets, change(pt_threshold=2.0))
    same(emulate_hlt(once, change(pt_threshold=2.0)), once)


def test_merging_conserves_pt_and_energy(jets):
    merged = emulate_hlt(jets, change(merge_radius=0.2))
    assert len(merged.constituents) < 0.7 * len(jets.constituents)
    for column in (0, 3):
        before = np.add.reduceat(jets.constituents[:, column].astype(np.float64), jets.offsets[:-1])
        after = np.add.reduceat(merged.constituents[:, column].astype(np.float64), merged.offsets[:-1])
        np.testing.assert_allclose(after, before, rtol=1e-6)


def test_a_huge_radius_merges_all_and_loss_1_loses_all(jets):
    np.testing.assert_array_equal(emulate_hlt(jets, change(merge_radius=100.0)).counts, 1)
    lost = emulate_hlt(jets, change(loss=1.0))
    assert len(lost.constituents) == 0
    assert len(lost) == len(jets)


def test_smearing_has_its_mean_and_width(jets):
    for sigma_pt, sigma_angle in ((0.1, 0.02), (0.3, 0.0), (0.0, 0.1)):
        # One constituent a jet, so that the order stays.
        one = jets.with_constituents(jets.constituents[jets.offsets[:-1]], np.arange(len(jets) + 1))
        many = [
            emulate_hlt(one, change(pt_resolution=sigma_pt, angular_resolution=sigma_angle), seed=s) for s in range(50)
        ]
        ratio = np.stack([v.constituents[:, 0] / one.constituents[:, 0] for v in many]).astype(np.float64).ravel()
        d_eta = np.stack([v.constituents[:, 1] - one.constituents[:, 1] for v in many]).astype(np.float64).ravel()
        d_phi = np.stack([v.constituents[:, 2] - one.constituents[:, 2] for v in many]).astype(np.float64).ravel()
        d_phi = (d_phi + np.pi) % (2 * np.pi) - np.pi
        n = len(ratio)
        assert abs(ratio.mean() - 1) <= 5 * sigma_pt / n**0.5 + 1e-7
        if sigma_pt == 0.1:  # clipping at 5 σ is not felt
            assert abs(ratio.std() / sigma_pt - 1) < 5 / (2 * n) ** 0.5
        assert ratio.min() >= 0.5 * (1 - 1e-6)
        assert ratio.max() <= 1.5 * (1 + 1e-6)
        if sigma_pt == 0.3:
            share = np.mean(ratio <= 0.5 * (1 + 1e-6))
            assert abs(share - 0.04779) < 5 * (0.04779 / n) ** 0.5  # Φ(−5/3)
        for d in (d_eta, d_phi):
            assert abs(d.mean()) <= 5 * sigma_angle / n**0.5 + 1e-6
            assert abs(d.std() - sigma_angle) <= 5 * sigma_angle / (2 * n) ** 0.5 + 1e-6
        if sigma_pt and sigma_angle:
            correlations = np.corrcoef([ratio, d_eta, d_phi])[np.triu_indices(3, 1)]
            assert np.all(np.abs(correlations) < 5 / n**0.5)
        v = many[0].constituents.astype(np.float64)
        np.testing.assert_allclose(v[:, 3], v[:, 0] * np.cosh(v[:, 1]), rtol=1e-6)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5])
def test_loss_rate(jets, p):
    n = len(jets.constituents)
    kept = len(emulate_hlt(jets, change(loss=p), seed=3).constituents)
    assert abs(kept - n * (1 - p)) < 5 * (n * p * (1 - p)) ** 0.5


def removed(jets, preset, seed=0):
    """The op's numbers of constituents below the threshold, merged and lost, in `emulate_hlt` of these arguments."""
    given = study_view(jets) if HLT_PRESETS[preset].log_pt else jets
    arrays = (as_tensor(given.constituents), as_tensor(given.offsets), as_tensor(given.index))
    settings = {key: value for key, value in dataclasses.asdict(HLT_PRESETS[preset]).items() if key != "log_pt"}
    return hlt_emulation(*arrays, **settings, seed=derive_seed(seed, "hlt"))[2].tolist()


def test_numbers_of_removed_constituents_add_up(jets):
    for preset in HLT_PRESETS:
        left = len(jets.constituents) - sum(removed(jets, preset, seed=4))
        assert left == len(emulate_hlt(jets, preset, seed=4).constituents)
    assert removed(jets, "severe")[0] == np.sum(jets.constituents[:, 0] < 5)


def test_offline_view(jets):
    view = offline_view(jets)
    assert view.constituents[:, 0].min() >= 0.5
    same(view, jets.select_constituents(jets.constituents[:, 0] >= 0.5))
    same(offline_view(jets, "severe"), view)


def test_study_preset_works_on_logarithms(jets):
    oriented = study_view(jets)
    same(offline_view(jets, "study"), oriented.select_constituents(oriented.constituents[:, 0] >= 0.5))
    trigger = emulate_hlt(jets, "study")
    same(trigger, emulate_hlt(oriented, dataclasses.replace(HLT_PRESETS["study"], log_pt=False)))
    assert 11 < oriented.constituents[:, 0].max() < 15  # ln(1200 GeV / MeV) = 14


def test_empty_inputs():
    none = synthetic_jets(4)[:0]
    assert len(emulate_hlt(none)) == 0
    assert len(offline_view(none, "study")) == 0
    emptied = emulate_hlt(synthetic_jets(4), change(loss=1.0))
    same(emulate_hlt(emptied), emptied)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: change(pt_threshold=-1.0), "pt_threshold"),
        (lambda: change(merge_radius=float("nan")), "merge_radius"),
        (lambda: change(pt_resolution=float("inf")), "pt_resolution"),
        (lambda: change(angular_resolution="0.1"), "angular_resolution"),
        (lambda: change(loss=1.5), "loss"),
    ],
)
def test_settings_are_checked(make, where):
    with pytest.raises(ConfigError, match=f"^{where}: "):
        make()


def test_unknown_preset_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'nominal'"):
        emulate_hlt(synthetic_jets(1), "nominel")


def test_unsorted_jets_are_refused(jets):
    x = jets.constituents.copy()
    first = jets.offsets[7]
    x[[first + 1, first + 2]] = x[[first + 2, first + 1]]
    with pytest.raises(DataError, match=r"constituent 2 of jet 7: is not in falling pt\nsort"):
        emulate_hlt(jets.with_constituents(x, jets.offsets))
