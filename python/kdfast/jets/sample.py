"""The sample of jets that comes with the package."""

from importlib.resources import as_file, files

from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets

__all__ = ["sample"]


def sample() -> PackedJets:
    """16,000 jets at generator level: hadronic top jets (label 1) and as many QCD jets (label 0), in random order.

    Pythia 8, pp at 13 TeV, anti-kT R = 1.0, 450–1200 GeV, |η| < 2, equal pT spectra; written by
    `kdfast generate --jets 16000 --seed 42` and described in docs/explanation/sample.md.
    """
    with as_file(files("kdfast.jets") / "data" / "sample.h5") as path:
        return load_jets(path)
