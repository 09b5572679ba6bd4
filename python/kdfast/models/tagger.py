"""A tagger: a trained model with everything that it needs to score new jets, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from kdfast._version import __version__
from kdfast.errors import DataError, KdfastError, KdfastWarning, ModelError
from kdfast.files import write_content, writing_errors
from kdfast.jets.features import Standardisation, features
from kdfast.jets.hlt import HLTConfig, emulate_hlt, offline_view
from kdfast.jets.packed import PackedJets
from kdfast.jets.units import check_in_gev
from kdfast.mapped import release
from kdfast.models.build import build_network
from kdfast.models.config import NetworkConfig, OwnModel, model_config
from kdfast.models.evaluation import evaluate_model
from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.models.network import Network
from kdfast.models.own_model import named_again, own_model
from kdfast.models.plain import PlainTagger

__all__ = ["Preparation", "Tagger", "load_model", "model_bytes", "tagger_card"]

_FORMAT = 1
_PREPARED = 1 << 16  # jets at a time: their features take some 100 MB
_SEVERAL = 20  # jets: fewer may all be soft, empty or alike


@dataclass(frozen=True)
class Preparation:
    """How jets as they are read become a model's inputs.

    Parameters
    ----------
    view : str
        "offline" or "hlt".
    hlt : str, HLTConfig or None
        Preset or numbers of the emulation; None where the HLT jets came from a real trigger, which are then
        to be given as they are.
    hlt_seed : int
        Of the emulation's random numbers.
    max_constituents : int or None
        How many of the hardest constituents of a jet are kept; None keeps all.
    standardisation : Standardisation
        Of the features.
    """

    view: str
    hlt: str | HLTConfig | None
    hlt_seed: int
    max_constituents: int | None
    standardisation: Standardisation

    def view_of(self, jets: PackedJets) -> PackedJets:
        """The jets as the model sees them."""
        jets = jets.hardest(self.max_constituents)
        if self.view == "offline":
            return offline_view(jets) if self.hlt is None else offline_view(jets, self.hlt)
        return jets if self.hlt is None else emulate_hlt(jets, self.hlt, seed=self.hlt_seed)

    def inputs(self, view: PackedJets) -> tuple[Tensor, Tensor]:
        """(features [M, F] standardised, offsets [B + 1]) of jets as the model sees them."""
        return self.standardisation.apply(features(view)), torch.from_numpy(view.offsets)

    def to_json(self) -> dict[str, Any]:
        """As plain data; `from_json` reads it back."""
        hlt = self.hlt if self.hlt is None or isinstance(self.hlt, str) else asdict(self.hlt)
        return {
            "view": self.view,
            "hlt": hlt,
            "hlt_seed": self.hlt_seed,
            "max_constituents": self.max_constituents,
            "standardisation": self.standardisation.to_dict(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preparation:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for something else."""
        hlt = data["hlt"]
        return cls(
            str(data["view"]),
            HLTConfig(**hlt) if isinstance(hlt, dict) else hlt,
            int(data["hlt_seed"]),
            data["max_constituents"],
            Standardisation.from_dict(data["standardisation"]),
        )


def tagger_card(
    config: NetworkConfig, preparation: Preparation, trained_on: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a model file holds besides the weights, as plain data: its metadata "kdfast" is this as JSON.

    trained_on: a sample of the training jets' hashes (jets.fingerprint.sampled), where it is known.
    """
    card = {
        "format": _FORMAT,
        "kdfast": __version__,
        "model": config.model_dump(),
        "preparation": preparation.to_json(),
    }
    return card if trained_on is None else card | {"trained_on": list(trained_on)}


class Tagger:
    """A trained model with its preparation of jets.

    Parameters
    ----------
    model : Network
        JetTransformer, DeepSets, or a network of one's own (kdfast.models.own_model). It is set to evaluation mode.
    preparation : Preparation
        How jets become its inputs.
    trained_on : sequence of str, optional
        A sample of the training jets' hashes, as a sweep writes it into a teacher's file.

    Examples
    --------
    >>> import tempfile, kdfast
    >>> jets = kdfast.sample()[:100]
    >>> scaling = Standardisation.fit(features(jets))
    >>> from kdfast.models import JetTransformer
    >>> tagger = Tagger(JetTransformer("small"), Preparation("offline", "nominal", 0, None, scaling))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tagger.save(f"{folder}/tagger.safetensors")
    ...     scores = load_model(f"{folder}/tagger.safetensors").predict(jets)
    >>> scores.shape
    (100, 1)
    """

    def __init__(self, model: Network, preparation: Preparation, trained_on: Sequence[str] | None = None) -> None:
        self.model = model.eval()
        self.preparation = preparation
        self.trained_on = trained_on

    def logits(self, jets: PackedJets, *, prepared: bool = False) -> Tensor:
        """[B, C] logits. prepared: the jets are already as the model's view has them (a real trigger's jets).

        Warnings and errors as in `predict`.
        """
        several = len(jets) >= _SEVERAL
        check_in_gev(jets, "jets", also_soft=several and not prepared)
        parts: list[Tensor] = []
        constituents = 0
        for start in range(0, len(jets), _PREPARED):
            block = jets[start : start + _PREPARED]
            view = block if prepared else self.preparation.view_of(block)
            constituents += len(view.constituents)
            inputs, offsets = self.preparation.inputs(view)
            parts += [logits for logits, _, _ in evaluate_model(self.model, inputs, offsets)]
            release(vars(jets).values())
        if several and not constituents:
            hint = "the pT threshold of the model's view is above that of every constituent: give harder jets"
            raise DataError("no jet has a constituent left", where="jets", hint=hint)
        if len(parts) == 1:
            logits = parts[0]
        else:
            logits = torch.cat(parts) if parts else torch.empty(0, self.model.config.num_classes)
        if several and bool((logits == logits[0]).all()):
            what = f"the scores of all {len(jets):,} jets are equal"
            warnings.warn(f"{what}: check the jets, and that the model has learnt", KdfastWarning, stacklevel=3)
        return logits

    def predict(self, jets: PackedJets, *, prepared: bool = False) -> NDArray[np.float32]:
        """Scores of jets.

        Parameters
        ----------
        jets : PackedJets
            B jets as `kdfast.load_jets` gives them.
        prepared : bool
            Whether the jets are already as the model's view has them, as a real trigger's are. The model's
            HLT emulation or offline threshold is then not applied.

        Returns
        -------
        ndarray [B, C], float32
            Probability of signal for C = 1, class probabilities otherwise.

        Raises
        ------
        DataError
            For jets that can't be in GeV (see `load_jets`), or of which none has a constituent in the model's
            view.

        Warns
        -----
        KdfastWarning
            If all scores are equal.
        """
        logits = self.logits(jets, prepared=prepared)
        return (logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)).numpy()

    def to_torch(self) -> PlainTagger:
        """The tagger as a plain torch module, for `torch.export`, `torch.jit.trace` and AOTInductor.

        Returns
        -------
        PlainTagger
            Takes jets [B, N, 4] float32, padded with rows of pt = 0: pt (GeV), eta, phi (rad), energy (GeV).
            Gives logits [B, C]. It computes the features, their standardisation and the network, by torch's
            own functions. The jets must be as the model's view has them, as for ``predict(…, prepared=True)``.

        Raises
        ------
        ModelError
            For a model that has no plain form.

        Examples
        --------
        >>> import kdfast
        >>> from kdfast.models import JetTransformer, Preparation, Tagger
        >>> jets = kdfast.sample()[:100]
        >>> scaling = Standardisation.fit(features(jets))
        >>> tagger = Tagger(JetTransformer("small"), Preparation("hlt", None, 0, None, scaling))
        >>> padded, _ = jets.to_padded(200)
        >>> tagger.to_torch()(torch.from_numpy(padded)).shape
        torch.Size([100, 1])
        """
        return PlainTagger(self.preparation.standardisation, self.model)

    def save(self, path: str | Path) -> None:
        """Writes the tagger, whole or not at all. Raises ModelError where it can't be written."""
        with writing_errors(Path(path), ModelError):
            write_content(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of a model file."""
        card = tagger_card(self.model.config, self.preparation, self.trained_on)
        return model_bytes(self.model.state_dict(), card)


def model_bytes(state: Mapping[str, Tensor], card: Mapping[str, Any]) -> bytes:
    """A model file of these weights and this card, with a checksum of both."""
    # clones: views of one flat buffer share memory, which the format refuses
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return save(tensors, {"kdfast": json.dumps({**card, "sha256": _digest(tensors, card)})})


def _digest(state: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """SHA-256 over a card and tensors."""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_model(path: str | Path, *, model: str | Callable[[], Any] | None = None) -> Tagger:
    """Read a tagger from a safetensors file.

    Parameters
    ----------
    path : str or Path
        A file that `Tagger.save` or a sweep wrote.
    model : callable or str, optional
        For a network of your own: the function that makes it, or its name ``package.module:function``. The file
        holds no code.

    Returns
    -------
    Tagger

    Raises
    ------
    ModelError
        Where the file is missing, damaged, of a newer format, or none that kdfast wrote.
    ConfigError
        For a network of your own without `model`, or with one that makes another network.

    See Also
    --------
    Tagger : with an example.
    """
    where = str(path)
    if not Path(path).is_file():
        what = "is not a file" if Path(path).exists() else "there is no such model file"
        raise ModelError(what, where=where)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        hint = "copy it again from where it was made"
        raise ModelError(f"is damaged or not a safetensors file ({error})", where=where, hint=hint) from None
    if "kdfast" not in metadata:
        raise ModelError("holds weights of something else", where=where, hint="give a model that kdfast wrote")
    try:
        card = json.loads(metadata["kdfast"])
        if card["format"] > _FORMAT:
            hint = f"update kdfast (this is {__version__}, it was written by {card['kdfast']})"
            raise ModelError(f"has format {card['format']}, newer than this kdfast reads", where=where, hint=hint)
        expected = card.pop("sha256", None)  # None: an older file
        if expected is not None and _digest(state, card) != expected:
            hint = "copy it again from where it was made"
            raise ModelError("is damaged: its content does not match its checksum", where=where, hint=hint)
        config = model_config(dict(card["model"]), where=where)
        preparation = Preparation.from_json(card["preparation"])
        trained_on = _sample_in(card)
        if isinstance(config, OwnModel):
            given = own_model(model) if model else None
            config = named_again(config, given, where, preparation.standardisation)
        network = build_network(config)
        network.load_state_dict(state)
        flatten_parameters(network)  # which `predict` then needs no copy of
        flatten_running(network)
    except KdfastError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"its weights and its description do not fit together ({reason})", where=where) from None
    return Tagger(network, preparation, trained_on)


def _sample_in(card: Mapping[str, Any]) -> list[str] | None:
    """The card's sample of training jets. Raises ValueError for something else."""
    sample = card.get("trained_on")
    if sample is None:
        return None
    if not isinstance(sample, list) or not all(re.fullmatch("[0-9a-f]{16}", str(text)) for text in sample):
        raise ValueError("trained_on")
    return [str(text) for text in sample]
