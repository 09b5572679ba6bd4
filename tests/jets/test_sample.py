"""The bundled sample: the layout that readers expect, and physics that a collider physicist would expect."""

import json
from importlib.resources import files

import h5py
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import kdfast.jets
from kdfast.jets.kinematics import jet_p4
from kdfast.jets.readers import sample

PATH = files(kdfast.jets) / "data" / "sample.h5"
FIELDS = ("fjet_clus_pt", "fjet_clus_eta", "fjet_clus_phi", "fjet_clus_E")


@pytest.fixture(scope="module")
def stored():
    """All datasets of the file, GeV."""
    with h5py.File(PATH) as file:
        arrays = {name: file[name][:] for name in file}
    for name in ("fjet_clus_pt", "fjet_clus_E", "fjet_pt", "fjet_m"):
        arrays[name] = arrays[name].astype(np.float64) / 1000.0
    return arrays


def between(values, low, high):
    return float(np.mean((values > low) & (values < high)))


def test_size_and_layout():
    assert PATH.stat().st_size < 15e6
    with h5py.File(PATH) as file:
        jets = len(file["labels"])
        assert jets >= 16_000
        for name in FIELDS:
            assert file[name].shape == (jets, 200)
            assert file[name].dtype == np.float32
            assert file[name].compression == "gzip"
            assert file[name].shuffle
        for name in ("fjet_pt", "fjet_eta", "fjet_phi", "fjet_m", "weights"):
            assert file[name].shape == (jets,)
            assert file[name].dtype == np.float32


def test_attributes_say_how_it_was_made():
    with h5py.File(PATH) as file:
        attributes = dict(file.attrs)
        assert {name: file[name].attrs["unit"] for name in FIELDS} == dict(
            zip(FIELDS, ("MeV", "", "rad", "MeV"), strict=True)
        )
    assert list(attributes["constit"]) == list(FIELDS)
    assert (attributes["jets"], attributes["seed"]) == (16_000, 42)
    assert attributes["pythia8mc"] == "8.317.2"
    assert "HardQCD:all = on" in json.loads(attributes["pythia_settings"])["QCD"]
    assert "24:onIfAny = 1 2 3 4 5" in json.loads(attributes["pythia_settings"])["top"]
    assert set(json.loads(attributes["selection"])) >= {"jets", "pt", "eta", "top"}
    assert len(set(attributes["pythia_seeds"])) == len(attributes["pythia_seeds"])


def test_half_of_each_class_in_random_order(stored):
    labels = stored["labels"]
    assert set(np.unique(labels)) == {0, 1}
    assert labels.sum() * 2 == len(labels)
    changes = np.mean(labels[1:] != labels[:-1])
    assert abs(changes - 0.5) < 5 * 0.5 / np.sqrt(len(labels))
    assert np.all(stored["weights"] == 1)


def test_constituents_are_sound(stored):
    pt, eta, phi, energy = (stored[name].astype(np.float64) for name in FIELDS)
    used = pt > 0
    assert np.all(np.diff(pt, axis=1) <= 0)
    for values in (eta, phi, energy):
        assert np.all(values[~used] == 0)
        assert np.all(np.isfinite(values))
    assert np.all(energy[used] >= pt[used] * np.cosh(eta[used]) * (1 - 1e-3))
    assert np.all(np.abs(phi) <= np.pi * (1 + 2**-13))
    raw = stored["fjet_clus_eta"].view(np.uint32)
    assert np.all(raw & 0x3FF == 0)  # 13 bits of mantissa


def test_jets_lie_in_the_window_and_are_the_sums_of_their_constituents(stored):
    pt, eta = stored["fjet_pt"], stored["fjet_eta"]
    assert np.all((pt > 450) & (pt < 1200) & (np.abs(eta) < 2))
    pt_c = stored["fjet_clus_pt"]
    counts = (pt_c > 0).sum(axis=1)
    whole = counts < 200
    assert whole.mean() > 0.99
    constituents = np.stack([stored[name][pt_c > 0] for name in FIELDS], axis=1).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    p4 = jet_p4(constituents, offsets)[whole].astype(np.float64)
    # A constituent is off by up to 2^-14 of its pT and E and by 2^-13 in η and φ (|η|, |φ| < 4).
    np.testing.assert_allclose(p4[:, 0], pt[whole], rtol=2**-12)
    np.testing.assert_allclose(p4[:, 1], eta[whole], atol=2**-12)
    difference = (p4[:, 2] - stored["fjet_phi"][whole] + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(difference, 0, atol=2**-12)
    # m² = E² − |p|² is off by less than 2E·(2^-14 + 2^-14 + 2^-13)·E.
    mass, energy = stored["fjet_m"][whole], stored["fjet_clus_E"][whole].sum(axis=1)
    assert np.all(np.abs(p4[:, 3] ** 2 - mass**2) < 2**-11 * energy**2)
    assert np.quantile(np.abs(p4[:, 3] / mass - 1), 0.95) < 0.005


def test_top_mass_peak(stored):
    top = stored["labels"] == 1
    mass = stored["fjet_m"]
    counts, edges = np.histogram(mass[top], np.arange(100, 301, 5.0))
    assert 170 <= edges[counts.argmax()] <= 185  # 172.5 GeV and what falls into R = 1.0 beside the top
    assert between(mass[top], 140, 220) > 0.75
    assert between(mass[~top], 140, 220) < 0.3
    assert 80 < np.median(mass[~top]) < 140
    assert 0.82 < roc_auc_score(top, mass) < 0.89


def test_pt_tells_nothing(stored):
    assert 0.48 < roc_auc_score(stored["labels"], stored["fjet_pt"]) < 0.52
    edges = np.linspace(450, 1200, 16)
    top = stored["labels"] == 1
    spectra = [np.histogram(stored["fjet_pt"][which], edges)[0] for which in (top, ~top)]
    np.testing.assert_array_equal(*spectra)  # bin by bin, by construction
    assert np.all(np.diff(spectra[0][:8]) < 0)


def test_multiplicities(stored):
    counts = (stored["fjet_clus_pt"] > 0).sum(axis=1)
    top = stored["labels"] == 1
    assert 80 < counts[top].mean() < 110
    assert 65 < counts[~top].mean() < 95
    assert counts.min() >= 5
    hard = (stored["fjet_clus_pt"] > 2.0).sum(axis=1)
    assert 25 < hard.mean() < 60


def test_sample_is_the_file_in_gev(stored):
    jets = sample()
    assert len(jets) == len(stored["labels"])
    np.testing.assert_array_equal(jets.labels, stored["labels"])
    np.testing.assert_array_equal(jets.counts, (stored["fjet_clus_pt"] > 0).sum(axis=1))
    np.testing.assert_allclose(jets.p4[:, 0], stored["fjet_pt"], rtol=1e-6)
    np.testing.assert_allclose(jets.p4[:, 3], stored["fjet_m"], rtol=1e-6)
    np.testing.assert_allclose(jets.constituents[:, 0], stored["fjet_clus_pt"][stored["fjet_clus_pt"] > 0], rtol=1e-6)
