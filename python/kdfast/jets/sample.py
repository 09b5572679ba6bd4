"""The sample of jets that comes with the package."""

from importlib.resources import as_file, files

from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets

__all__ = ["sample"]


def sample() -> PackedJets:
    """Return the bundled sample: 16,000 jets at generator level, in random order.

    Half are hadronic top jets (label 1), half are QCD jets (label 0). Pythia 8, pp at 13 TeV, anti-kT with
    R = 1.0, 450–1200 GeV, abs(η) < 2, equal pT spectra, weight 1. Written by ``kdfast generate --jets 16000
    --seed 42``; the page "The bundled sample" of the documentation describes it.

    Returns
    -------
    PackedJets

    Examples
    --------
    >>> import kdfast
    >>> len(kdfast.sample())
    16000
    """
    with as_file(files("kdfast.jets") / "data" / "sample.h5") as path:
        return load_jets(path)
