"""Jets in another unit than was said: found by their pT, from 20 GeV to several TeV."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdfast.errors import ConfigError, DataError
from kdfast.jets.features import Standardisation, features
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from kdfast.models import JetTransformer, Preparation, Tagger
from kdfast.store.settings import StudySettings
from kdfast.study.prepare import load_sets, prepare
from tests.jets.atlas_files import atlas_arrays, write_arrays
from tests.synthetic import synthetic_jets

JETS = synthetic_jets(200, max_constituents=20)
MEDIAN = float(np.median(JETS.p4[:, 0]))  # 600 GeV
MOMENTA = ("fjet_clus_pt", "fjet_clus_E", "fjet_pt", "fjet_m")


def scaled(factor: float) -> PackedJets:
    """The jets with other momenta: harder ones, or the same in another unit."""
    jets = JETS.with_constituents(JETS.constituents * np.float32([factor, 1, 1, factor]), JETS.offsets)
    return replace(jets, p4=JETS.p4 * np.float32([factor, 1, 1, factor]))


def write(path: Path, *, unit: str = "MeV", median: float = MEDIAN, only: tuple[str, ...] = MOMENTA) -> Path:
    """A file of jets with this median pT (GeV), of which `only` these datasets are in `unit`, the others in MeV."""
    arrays = atlas_arrays(scaled(median / MEDIAN), width=20)
    for name in only if unit == "GeV" else ():
        arrays[name] = arrays[name] / np.float32(1000)
    return write_arrays(path, arrays)


@pytest.mark.parametrize("median", [25, 600, 4500])
@pytest.mark.parametrize(("there", "said"), [("GeV", "MeV"), ("MeV", "GeV")])
def test_the_error_names_the_unit_that_the_file_has(tmp_path: Path, there: str, said: str, median: float) -> None:
    file = write(tmp_path / "jets.h5", unit=there, median=median)
    with pytest.raises(DataError) as error:
        load_jets(file, unit=said)
    seen = median / 1000 if there == "GeV" else median * 1000
    assert str(error.value) == (
        f"{file}: the median jet pT is {seen:.3g} GeV if the file is in {said}\n"
        f"the file seems to be in {there}: unit='{there}' reads it so"
    )
    read = load_jets(file, unit=there)
    np.testing.assert_allclose(read.p4, scaled(median / MEDIAN).p4, rtol=1e-6)
    np.testing.assert_allclose(read.constituents, scaled(median / MEDIAN).constituents, rtol=1e-6)


def test_each_file_is_judged_and_only_the_jets_that_are_read(tmp_path: Path) -> None:
    files = [write(tmp_path / "mev.h5"), write(tmp_path / "gev.h5", unit="GeV")]
    with pytest.raises(DataError, match=r"gev\.h5: the median jet pT is 0\.592 GeV if"):
        load_jets(files)
    assert len(load_jets(files, max_jets=200)) == 200
    with pytest.raises(DataError, match=r"gev\.h5: the median jet pT is 0\.[0-9]+ GeV if"):
        load_jets(files, max_jets=201, max_constituents=1)


@pytest.mark.parametrize("only", [("fjet_clus_pt", "fjet_clus_E"), ("fjet_pt", "fjet_m")])
@pytest.mark.parametrize("max_constituents", [1, 20])
def test_jets_and_constituents_in_different_units(tmp_path: Path, only: tuple[str, ...], max_constituents: int) -> None:
    file = write(tmp_path / "jets.h5", unit="GeV", only=only)
    with pytest.raises(DataError) as error:
        load_jets(file, unit="GeV" if "fjet_pt" in only else "MeV", max_constituents=max_constituents)
    assert "the constituents' pT add up to" in str(error.value)


@pytest.mark.parametrize("median", [1e-3, 1e8])
def test_a_unit_that_is_neither(tmp_path: Path, median: float) -> None:
    with pytest.raises(DataError, match="\njets of 5 GeV to 20 TeV are expected: bring fjet_pt to MeV or GeV"):
        load_jets(write(tmp_path / "jets.h5", median=median))


def test_an_unknown_unit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unit: must be 'MeV' or 'GeV', is 'TeV'"):
        load_jets(write(tmp_path / "jets.h5"), unit="TeV")  # type: ignore[arg-type]


def test_a_file_of_empty_jets(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS.select_constituents(np.zeros(len(JETS.constituents), bool)), width=20)
    file = write_arrays(tmp_path / "jets.h5", arrays)
    with pytest.raises(
        DataError, match=r"jets\.h5, dataset fjet_clus_pt: every jet is empty: no constituent has pT > 0"
    ):
        load_jets(file)


@pytest.mark.parametrize(
    ("factor", "remedy"), [(1000, "they seem to be in MeV: divide"), (0.001, "they seem to be in TeV: multiply")]
)
@pytest.mark.parametrize("use", ["sweep", "predict"])
def test_jets_in_memory(factor: float, remedy: str, use: str) -> None:
    uses: dict[str, Callable[[PackedJets], object]] = {
        "sweep": lambda jets: load_sets({"data": jets}, StudySettings().data),
        "predict": tagger().predict,
    }
    uses[use](JETS)
    with pytest.raises(DataError) as error:
        uses[use](scaled(factor))
    assert ": the median jet pT is " in str(error.value)
    assert f"\n{remedy} pt and energy (and p4) by 1000, as PackedJets are in GeV" in str(error.value)


def test_hlt_jets_in_memory() -> None:
    with pytest.raises(DataError, match=r"hlt: the median jet pT is .*\nthey seem to be in MeV"):
        prepare(JETS, StudySettings(), scaled(1000))


def tagger(threshold: float = 2.0) -> Tagger:
    hlt = {"pt_threshold": threshold, "merge_radius": 0.1, "pt_resolution": 0.1, "angular_resolution": 0.1, "loss": 0.1}
    settings = StudySettings.resolve({"hlt": hlt})
    scaling = Standardisation.fit(features(JETS))
    model = JetTransformer(width=16, layers=1, heads=1, ffn=16)
    assert not isinstance(settings.hlt, str)
    return Tagger(model, Preparation("hlt", settings.hlt, 0, None, scaling))
