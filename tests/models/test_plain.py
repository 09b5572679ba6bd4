"""Tagger.to_torch: the same function of padded jets, and what torch's exporters make of it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdfast.errors import ModelError
from kdfast.jets.features import Standardisation, features
from kdfast.jets.hlt import emulate_hlt, offline_view
from kdfast.jets.packed import PackedJets
from kdfast.models import DeepSets, JetTransformer, Preparation, Tagger
from kdfast.models.own_model import OwnNetwork, own_model
from tests.synthetic import synthetic_jets

pytestmark = pytest.mark.filterwarnings("ignore:kdfast.ops.encoder runs its PyTorch reference")

FAMILIES: list[tuple[str, Callable[[], Any]]] = [
    ("deepsets", lambda: DeepSets(seed=4)),
    ("deepsets-2-classes", lambda: DeepSets(seed=4, layers=1, head_layers=1, width=5, num_classes=2)),
]
SIZES: list[dict[str, Any]] = [
    {"preset": "small"},
    {"preset": "demo", "num_classes": 3},
    {"width": 48, "layers": 1, "heads": 3, "ffn": 80, "pooling_heads": 2},
]


def trained_like(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with moments, norms and biases that are not their initial ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return model


def tagger_of(model: Any, jets: PackedJets) -> Tagger:
    standardisation = Standardisation.fit(features(offline_view(jets)))
    return Tagger(trained_like(model), Preparation("hlt", "nominal", 3, None, standardisation))


def models() -> list[Any]:
    transformers = [(str(sizes), partial(JetTransformer, seed=4, **sizes)) for sizes in SIZES]
    return [pytest.param(make, id=name) for name, make in (*transformers, *FAMILIES)]


@pytest.fixture(scope="module")
def jets() -> PackedJets:
    return synthetic_jets(80, seed=1)


def padded(view: PackedJets, spare: int = 2) -> Tensor:
    return torch.from_numpy(view.to_padded(int(view.counts.max()) + spare)[0])


@pytest.mark.parametrize("model", models())
def test_logits_are_those_of_the_model(model: Any, jets: PackedJets) -> None:
    tagger = tagger_of(model(), jets)
    view = emulate_hlt(jets, seed=3)
    view = view.select_constituents(np.repeat(np.arange(80) % 7 > 0, view.counts))  # some jets have none
    assert (view.counts == 0).any()
    plain = tagger.to_torch()
    x = padded(view)
    expected = tagger.logits(view, prepared=True)
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-5)

    shuffled = x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(plain(shuffled), expected, rtol=0, atol=1e-5)  # padding anywhere
    x[..., 1:] = torch.where(x[..., :1] > 0, x[..., 1:], torch.nan)
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-5)


def test_jets_without_axis_energy_or_company(jets: PackedJets) -> None:
    """Opposite momenta, no energy, one constituent, one at φ = π: as the features' specification has them."""
    rows = [
        [[50.0, 0.3, 0.5, 60.0], [50.0, -0.3, 0.5 - np.pi, 60.0]],
        [[80.0, 0.1, 1.0, 0.0], [20.0, 0.2, 1.1, 0.0]],
        [[100.0, 1.0, -2.0, 155.0], [0.0, 0.0, 0.0, 0.0]],
        [[60.0, -0.5, np.pi, 70.0], [40.0, -0.4, -np.pi + 0.1, 45.0]],
    ]
    x = np.array(rows, np.float32)
    tagger = tagger_of(JetTransformer("small", seed=4), jets)
    expected = tagger.logits(PackedJets.from_padded(x, x[..., 0] > 0), prepared=True)
    torch.testing.assert_close(tagger.to_torch()(torch.from_numpy(x)), expected, rtol=0, atol=1e-5)


def test_it_is_a_copy_without_gradients(jets: PackedJets) -> None:
    tagger = tagger_of(JetTransformer("small", seed=4), jets)
    plain = tagger.to_torch()
    before = plain(padded(jets))
    with torch.no_grad():
        for parameter in tagger.model.parameters():
            parameter.zero_()
    assert torch.equal(plain(padded(jets)), before)
    assert not before.requires_grad
    assert not plain.training


@pytest.mark.parametrize("model", [JetTransformer("small"), DeepSets()], ids=["transformer", "deepsets"])
def test_layers_are_torchs_own(model: Any, jets: PackedJets) -> None:
    """A tracer as hls4ml's steps into subclasses of torch's layers, and does not know what it finds."""
    modules = list(tagger_of(model, jets).to_torch().modules())
    assert all(type(module).__module__.startswith(("torch.nn.", "kdfast.models.plain")) for module in modules)


@pytest.mark.slow
@pytest.mark.parametrize("model", models())
def test_torch_export_with_dynamic_sizes(model: Any, jets: PackedJets) -> None:
    plain = tagger_of(model(), jets).to_torch()
    program = exported(plain, jets)
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "sym_", "<built-in", "_operator")) for name in used), used
    for part in (jets[:1], jets[5:40]):
        torch.testing.assert_close(program.module()(padded(part)), plain(padded(part)), rtol=0, atol=1e-6)


def exported(plain: torch.nn.Module, jets: PackedJets) -> Any:
    sizes = {0: torch.export.Dim("jets", max=4096), 1: torch.export.Dim("constituents", max=512)}
    return torch.export.export(plain, (padded(jets[:3]),), dynamic_shapes=(sizes,))


@pytest.mark.parametrize("model", models())
def test_torchscript_trace(model: Any, jets: PackedJets) -> None:
    plain = tagger_of(model(), jets).to_torch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        traced = torch.jit.trace(plain, padded(jets[:3]))
    for part in (jets[:1], jets[5:40]):
        torch.testing.assert_close(traced(padded(part)), plain(padded(part)), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_aot_inductor(jets: PackedJets, tmp_path: Any) -> None:
    plain = tagger_of(JetTransformer("small", seed=4), jets).to_torch()
    program = exported(plain, jets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "tagger.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
    for part in (jets[:1], jets[5:40]):
        torch.testing.assert_close(compiled(padded(part)), plain(padded(part)), rtol=0, atol=1e-5)


# ---- networks of one's own


def own(name: str, jets: PackedJets) -> Tagger:
    standardisation = Standardisation.fit(features(offline_view(jets)))
    config = own_model(f"tests.own_networks:{name}").model_copy(update={"standardisation": standardisation})
    return Tagger(OwnNetwork(config, seed=2), Preparation("hlt", "nominal", 3, None, standardisation))


@pytest.mark.parametrize("name", ["attentive", "particle_transformer", "particle_net"])
def test_own_networks_on_padded_jets(name: str, jets: PackedJets) -> None:
    if name != "attentive":
        pytest.importorskip("weaver")
    tagger = own(name, jets)
    view = emulate_hlt(jets, seed=3)
    view = view.select_constituents(np.repeat(np.arange(80) % 7 > 0, view.counts))
    expected = tagger.logits(view, prepared=True)
    # The same features for both: ParticleTransformer takes logarithms of the masses of collinear pairs, which are
    # rounding errors.
    features, _ = tagger.preparation.inputs(view)
    there = torch.from_numpy(view.to_padded(int(view.counts.max()) + 2)[1])
    x = torch.zeros(*there.shape, 7)
    x[there] = features
    torch.testing.assert_close(tagger.to_torch().network(x, there), expected, rtol=1e-4, atol=1e-5)


def test_own_networks_are_exported(jets: PackedJets) -> None:
    plain = own("attentive", jets).to_torch()
    program = exported(plain, jets)
    for part in (jets[:1], jets[5:40]):
        torch.testing.assert_close(program.module()(padded(part)), plain(padded(part)), rtol=0, atol=1e-6)


def test_own_networks_on_packed_jets_have_no_plain_form(jets: PackedJets) -> None:
    with pytest.raises(ModelError, match="takes packed jets, which exporters can't follow"):
        own("PlainDeepSets", jets).to_torch()
