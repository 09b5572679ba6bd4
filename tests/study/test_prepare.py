"""From jets to views: the split, the two views, and jets that can't be used."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdfast.errors import DataError
from kdfast.jets.features import features
from kdfast.jets.hlt import emulate_hlt, offline_view
from kdfast.jets.kinematics import jet_p4
from kdfast.jets.packed import PackedJets
from kdfast.jets.pairs import check_pairs
from kdfast.store.settings import DataSettings, StudySettings
from kdfast.study.prepare import SPLITS, load_sets, prepare
from tests.synthetic import synthetic_jets

SETTINGS = StudySettings.resolve(data_given=True)


@pytest.fixture(scope="module")
def jets() -> PackedJets:
    return load_sets({"data": synthetic_jets(400, seed=1)}, SETTINGS.data)[0]


def test_split_is_disjoint_complete_stratified_and_set_by_the_data_seed(jets):
    prepared = prepare(jets, SETTINGS)
    parts = [prepared.positions[split] for split in SPLITS]
    assert [len(part) for part in parts] == [280, 60, 60]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(400))
    share = jets.labels.mean()
    for part in parts:
        assert abs(jets.labels[part].sum() - share * len(part)) <= 1
    again = prepare(jets, SETTINGS)
    assert all(np.array_equal(again.positions[split], prepared.positions[split]) for split in SPLITS)
    other = prepare(jets, SETTINGS.model_copy(update={"data": DataSettings(seed=7)}))
    assert not np.array_equal(other.positions["test"], prepared.positions["test"])


def test_views_are_the_public_functions_on_all_jets(jets):
    prepared = prepare(jets, SETTINGS)
    standardisation = prepared.hlt_preparation.standardisation
    train = offline_view(jets[prepared.positions["train"]])
    mean = features(train).mean(dim=0)
    torch.testing.assert_close(standardisation.mean, mean, rtol=1e-4, atol=1e-5)
    for split, part in prepared.positions.items():
        for views, seen in (
            (prepared.offline, offline_view(jets)),
            (prepared.hlt, emulate_hlt(jets, "nominal", seed=42)),
        ):
            view = views[split]
            expected = seen[part]
            assert np.array_equal(view.offsets.numpy(), expected.offsets)
            torch.testing.assert_close(view.features, standardisation.apply(features(expected)))
            assert np.array_equal(view.labels.numpy(), jets.labels[part])
            assert view.labels.dtype == view.weights.dtype == view.features.dtype == torch.float32
    shared = prepared.shared_arrays("test")
    assert np.array_equal(shared["index"], jets.index[prepared.positions["test"]])


def test_real_hlt_jets_take_the_place_of_emulated_ones(jets):
    trigger = emulate_hlt(jets, "severe", seed=3)
    prepared = prepare(jets, SETTINGS, trigger)
    assert prepared.hlt_preparation.hlt is None
    assert len(prepared.hlt["train"].features) == len(trigger[prepared.positions["train"]].constituents)
    assert torch.equal(prepared.offline["train"].features, prepare(jets, SETTINGS).offline["train"].features)


def test_cutting_keeps_the_hardest(jets):
    short = jets.hardest(5)
    assert short.counts.max() == 5
    first = jets.offsets[:-1]
    assert np.array_equal(short.constituents[short.offsets[:-1]], jets.constituents[first])
    assert len(load_sets({"data": jets}, DataSettings(max_jets=30))[0]) == 30


def constituent_set(jets: PackedJets, row: int, column: int, value: float) -> PackedJets:
    constituents = jets.constituents.copy()
    constituents[jets.offsets[row], column] = value
    return jets.with_constituents(constituents, jets.offsets)


def with_array(jets: PackedJets, name: str, row: int, value: float) -> PackedJets:
    array = getattr(jets, name).copy()
    array[row] = value
    return replace(jets, **{name: array})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda j: j[:0], "data: there are no jets"),
        (lambda j: with_array(j, "labels", 5, 2), "data, row 5: label must be 0 or 1, is 2"),
        (lambda j: with_array(j, "weights", 6, -1), "data, row 6: weight must be finite and ≥ 0, is -1.0"),
        (lambda j: with_array(j, "weights", 6, np.nan), "data, row 6: weight must be finite"),
        (lambda j: constituent_set(j, 7, 0, np.nan), "data, row 7: a constituent is not finite or has pT < 0 (pt nan"),
        (lambda j: constituent_set(j, 8, 0, -2), "data, row 8: a constituent is not finite or has pT < 0 (pt -2.0"),
        (lambda j: constituent_set(j, 9, 3, np.inf), "energy inf)"),
        (lambda j: j[j.labels == 1], "data: holds one class only (0 background and "),
        (lambda j: j[np.r_[:4]], "data: too few jets to split ("),
        (lambda j: replace(j, weights=np.zeros_like(j.weights)), "no background jet of weight above 0"),
        (lambda j: replace(j, weights=(j.labels == 0).astype(np.float32)), "one class only: no signal jet of weight"),
        (lambda j: j.select_constituents(j.constituents[:, 0] < 0.1), "train jets, offline view: no jet has a const"),
        (lambda j: j.select_constituents(j.constituents[:, 0] < 1.9), "train jets, hlt view: no jet has a constituent"),
    ],
)
def test_bad_jets_say_what_is_wrong(make, message):
    with pytest.raises(DataError) as error:
        prepare(load_sets({"data": make(synthetic_jets(200, seed=2))}, SETTINGS.data)[0], SETTINGS)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda j: j[:-1], "hlt: 399 HLT jets for 400 offline jets"),
        (lambda j: j[np.r_[1, 0, 2:400]], "hlt, row 0: are not the same jets: index 1, offline 0"),
        (lambda j: with_array(j, "labels", 3, 1 - j.labels[3]), "hlt, row 3: are not the same jets: labels"),
        (lambda j: constituent_set(j, 7, 0, np.nan), "hlt, row 7: a constituent is not finite"),
    ],
)
def test_bad_hlt_jets_say_what_is_wrong(jets, make, message):
    with pytest.raises(DataError) as error:
        prepare(jets, SETTINGS, make(emulate_hlt(jets, "nominal")))
    assert message in str(error.value)


def within_classes(jets: PackedJets, share: float = 1.0) -> np.ndarray:
    """An order of the jets: a share of them is shuffled within each class, so that labels still agree."""
    rng = np.random.default_rng(5)
    order = np.arange(len(jets))
    for label in (0, 1):
        rows = np.flatnonzero(jets.labels == label)
        rows = rows[: int(share * len(rows))]
        order[rows] = rng.permutation(rows)
    return order


@pytest.mark.parametrize("seen", ["mild", "severe"])
@pytest.mark.parametrize("share", [1.0, 0.15])
def test_hlt_jets_shuffled_within_their_class_are_no_pairs(jets, seen, share):
    order = within_classes(jets, share)
    trigger = replace(emulate_hlt(jets, seen)[order], index=jets.index)  # as from a file: the row is the index
    assert np.array_equal(trigger.labels, jets.labels)
    with pytest.raises(DataError) as error:
        prepare(jets, SETTINGS, trigger)
    first = int(np.argmax(order != np.arange(len(jets))))
    found = re.match(r"hlt, row (\d+): are not the same jets: ΔR (\S+) between the axes, pT", str(error.value))
    assert found is not None
    assert first <= int(found[1]) <= first + 5  # strangers may be neighbours
    assert float(found[2]) > 0.8
    assert "pairs differ\ngive the same jets in the same order; for all but 5% of them, ΔR must be" in str(error.value)


def test_pairs_of_another_pt(jets):
    harder = replace(jets, p4=jets.p4 * np.float32([4, 1, 1, 4]))
    with pytest.raises(DataError, match=r"hlt, row 0: are not the same jets: ΔR 0.00 .* 400 of 400 pairs differ"):
        prepare(jets, SETTINGS, harder)


@pytest.mark.parametrize("factor", [1, 0.04])
@pytest.mark.parametrize("kept", [1, 40])
@pytest.mark.parametrize("seen", ["mild", "nominal", "severe"])
def test_views_of_hard_and_soft_jets_are_pairs(jets, factor, kept, seen):
    """Down to jets of 20 GeV, of which thresholds leave little or nothing."""
    soft = jets.with_constituents(jets.constituents * np.float32([factor, 1, 1, factor]), jets.offsets)
    soft = replace(soft, p4=jet_p4(soft.constituents, soft.offsets))
    trigger = emulate_hlt(soft, seen)
    trigger = replace(trigger, p4=jet_p4(trigger.constituents, trigger.offsets))
    check_pairs(soft.hardest(kept), trigger.hardest(kept))
    around = np.where(soft.constituents[:, 2] > 0, 0, 2 * np.pi).astype(np.float32)
    turned = soft.with_constituents(soft.constituents + around[:, None] * np.float32([0, 0, 1, 0]), soft.offsets)
    check_pairs(turned, trigger)


def test_a_few_pairs_may_differ(jets):
    order = np.arange(len(jets))
    order[:20] = order[:20][::-1]
    check_pairs(jets, replace(jets[order], index=jets.index, labels=jets.labels))
    check_pairs(jets[:2], replace(jets[[1, 0]], index=jets.index[:2], labels=jets.labels[:2]))
    check_pairs(jets[:0], jets[:0])
