"""Networks of the user's own: how they are named, called and checked.

Opening a study or a model file never imports such code. Training and predicting need it named again.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdfast.errors import ConfigError, KdfastError, ModelError
from kdfast.jets.features import Standardisation
from kdfast.models.config import OwnModel
from kdfast.models.network import Network
from kdfast.ops.jet_features import NUM_FEATURES, jet_features
from kdfast.ops.philox import derive_seed

__all__ = ["NOT_STANDARDISED", "Adapter", "Factory", "OwnNetwork", "named_again", "own_model"]

Factory = str | Callable[[], Any]  # of networks of the user's own, or its name package.module:function

NOT_STANDARDISED = Standardisation(torch.zeros(NUM_FEATURES), torch.ones(NUM_FEATURES))

_SEED_BITS = (1 << 63) - 1
_TRIAL_JETS = (3, 0, 1, 2)  # constituents
_TRIAL_CONSTITUENTS = [[50.0 - 7 * i, 0.1 * i - 0.2, 0.3 - 0.1 * i, 60.0 - 7 * i] for i in range(sum(_TRIAL_JETS))]
_RANDOM = threading.Lock()  # torch's default generator is the process's


class Adapter(nn.Module):
    """How kdfast calls a network of one's own.

    Parameters
    ----------
    module : nn.Module
        The network.
    inputs : {"packed", "padded"}, optional
        ``"packed"``: it is called with features [M, F] of all constituents and offsets [B + 1], where each jet begins.
        ``"padded"``: with x [B, N, F] and mask [B, N], true for a constituent; a jet without constituents then has
        one, whose features are 0. By default the name of its second argument decides: offsets or mask.
    standardised : bool
        Whether the features are standardised. Otherwise they are those of `kdfast.features`, in GeV and rad.
    min_length : int
        Least N of padded input, for networks that need a number of places (ParticleNet's nearest neighbours).
    attention : bool
        Whether the module returns (logits, weights): a weight for each constituent, [M] or [B, N], which sum to 1
        over a jet. They serve the attention-transfer term.

    Examples
    --------
    >>> class Summed(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = nn.Linear(7, 1)
    ...     def forward(self, x, mask):
    ...         return (self.linear(x) * mask[..., None]).sum(1)
    >>> own_model(lambda: Adapter(Summed(), inputs="padded")).num_classes
    1
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Literal["packed", "padded"] | None = None,
        *,
        standardised: bool = True,
        min_length: int = 1,
        attention: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ConfigError(f"must be a torch.nn.Module, is {type(module).__name__}", where="module")
        if inputs not in (None, "packed", "padded"):
            raise ConfigError(f"must be 'packed' or 'padded', is {inputs!r}", where="inputs")
        self.module = module
        self.inputs = inputs or _inputs_of(module)
        self.standardised = standardised
        self.min_length = min_length
        self.attention = attention

    def forward(self, features: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits [B, C], weights [M] or None) of packed jets."""
        mask = None
        if self.inputs == "padded":
            x, mask, filled = _padded(features, offsets, self.min_length)
            answer = self.module(x, filled)
        else:
            answer = self.module(features, offsets)
        weights = None
        if self.attention:
            if not (isinstance(answer, tuple) and len(answer) == 2):
                raise ModelError("must return (logits, weights), as attention=True says", where="model")
            answer, weights = answer
        if not isinstance(answer, Tensor):
            raise ModelError(f"must return logits, returns {type(answer).__name__}", where="model")
        logits = answer[:, None] if answer.ndim == 1 else answer
        if weights is not None and mask is not None:
            weights = weights[mask]
        return logits.float(), weights


def _inputs_of(module: nn.Module) -> Literal["packed", "padded"]:
    code = getattr(module.forward, "__code__", None)
    second = code.co_varnames[2] if code is not None and code.co_argcount > 2 else ""
    if second == "offsets":
        return "packed"
    if second == "mask":
        return "padded"
    what = f"does not say what it takes: the second argument of its forward is {second or 'missing'!r}"
    hint = 'name it offsets or mask, or return kdfast.models.Adapter(module, inputs="packed" or "padded")'
    raise ConfigError(what, where=type(module).__name__, hint=hint)


def _padded(features: Tensor, offsets: Tensor, min_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, N, F], the mask of its constituents [B, N], and the mask with one more for each jet that has none."""
    counts = offsets.diff()
    longest = max(int(counts.max()), 1, min_length)
    place = torch.arange(longest, device=features.device)
    mask = place < counts[:, None]
    x = features.new_zeros(*mask.shape, features.shape[1])
    x[mask] = features
    return x, mask, place < counts.clamp(min=1)[:, None]


class OwnNetwork(Network):
    """A network of the user's own, as the engines call it.

    The function that makes it, and its dropout, see torch's default generator seeded; afterwards it is as it
    was. Raises ConfigError where the function is not at hand, or makes something that can't be trained.
    """

    config: OwnModel
    mean: Tensor
    std: Tensor

    def __init__(self, config: OwnModel, *, seed: int = 0) -> None:
        super().__init__()
        if config.factory is None:
            raise ConfigError(f"{config.name} is a network of your own", where="model", hint=_NAME_IT_AGAIN)
        self.config = config
        with _seeded(derive_seed(seed, "init", 0)):
            with _users_code("the function fails", config.name):
                made = config.factory()
            self.adapter = made if isinstance(made, Adapter) else Adapter(made)
            if not self.adapter.standardised:
                scaling = config.standardisation or NOT_STANDARDISED
                self.register_buffer("mean", scaling.mean, persistent=False)
                self.register_buffer("std", scaling.std, persistent=False)
            self._check()

    def _answer(self, features: Tensor, offsets: Tensor, dropout_seed: int | None) -> tuple[Tensor, Tensor | None]:
        """See Network."""
        if not self.adapter.standardised:
            features = features * self.std + self.mean
        with _seeded(dropout_seed) if self.training and dropout_seed is not None else nullcontext():
            answer: tuple[Tensor, Tensor | None] = self.adapter(features, offsets)
        return answer

    def _check(self) -> None:
        """Calls it once, which also makes the weights of lazy layers."""
        offsets = torch.tensor([0, *_TRIAL_JETS]).cumsum(0)
        features = jet_features(torch.tensor(_TRIAL_CONSTITUENTS), offsets)
        if self.config.standardisation is not None:
            features = self.config.standardisation.apply(features)
        jets = len(_TRIAL_JETS)
        self.eval()
        with torch.no_grad(), _users_code(f"fails with {jets} jets", self.config.name):
            logits, weights = self(features, offsets, return_attention=True)
        self.train()
        where = self.config.name
        expected = [jets, self.config.num_classes]
        if list(logits.shape) != expected:
            what = f"must return logits {expected} for {jets} jets, returns {list(logits.shape)}"
            raise ModelError(what, where=where)
        if weights is not None and weights.shape != features.shape[:1]:
            what = f"must return weights of {len(features)} constituents, returns {list(weights.shape)}"
            raise ModelError(what, where=where)
        if not bool(logits.isfinite().all()):
            hint = "a jet may have no constituents: divide by at least 1, take maxima from a finite value"
            raise ModelError(f"gives logits that are not finite: {logits.tolist()}", where=where, hint=hint)


@contextmanager
def _users_code(what: str, where: str) -> Iterator[None]:
    """Makes a ModelError of whatever the user's code raises."""
    try:
        yield
    except KdfastError:
        raise
    except Exception as error:
        what = f"{what}: {type(error).__name__}: {error}"
        raise ModelError(what, where=where, hint="--debug shows where") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _RANDOM, torch.random.fork_rng(devices):
        torch.manual_seed(seed & _SEED_BITS)
        yield


_NAME_IT_AGAIN = "name it again: --model package.module:function, or model=function in Python"


def own_model(factory: Factory, where: str = "model") -> OwnModel:
    """The description of networks that a function makes; the function is called once.

    It may be named as ``package.module:function``; modules of the working directory are found too. where: the
    setting. Raises ConfigError or ModelError where the network can't be used.
    """
    if isinstance(factory, nn.Module):
        hint = "give a function that makes the network: each run begins with weights of its own"
        raise ConfigError("is a network", where="model", hint=hint)
    if isinstance(factory, str):
        name = factory
        factory = _imported(name, f"{where}, {name}")
    else:
        name = f"{getattr(factory, '__module__', '')}:{getattr(factory, '__qualname__', type(factory).__name__)}"
    network = OwnNetwork(OwnModel(name=name, weights="", factory=factory))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ModelError("has no weights to train", where=name)
    for key, parameter in network.adapter.module.named_parameters():
        if parameter.dtype != torch.float32:
            what = f"its weight {key} is {parameter.dtype}, not float32"
            raise ModelError(what, where=name, hint='precision="bf16" trains it with autocast')
    digest = hashlib.sha256()
    for key, tensor in network.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
    return OwnModel(name=name, weights=digest.hexdigest()[:16], factory=factory)


def _imported(name: str, where: str) -> Callable[[], Any]:
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "name a function without arguments that returns the network: package.module:function"
        raise ConfigError(f"can't be imported ({error})", where=where, hint=hint) from None
    if not callable(found):
        raise ConfigError(f"is not a function: {found!r}", where=where)
    return found


def named_again(
    stored: OwnModel, given: OwnModel | None, where: str, standardisation: Standardisation | None = None
) -> OwnModel:
    """The stored description, with the function that is named again.

    Raises ConfigError where it is missing, or makes another network.
    """
    if given is None:
        raise ConfigError(f"{stored.name} is a network of your own", where=where, hint=_NAME_IT_AGAIN)
    if given.weights != stored.weights:
        what = f"{given.name} makes a network of other weights than {stored.name}, which was trained"
        raise ConfigError(what, where=where)
    return stored.model_copy(update={"factory": given.factory, "standardisation": standardisation})
