import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kdfast.errors import DataError, KdfastWarning, ModelError
from kdfast.jets.features import Standardisation, features
from kdfast.jets.hlt import HLTConfig, emulate_hlt, offline_view
from kdfast.models import JetTransformer, Preparation, Tagger, load_model, tagger_card
from kdfast.ops import backend
from tests.global_random import unchanged_random_state
from tests.synthetic import synthetic_jets


@pytest.fixture(scope="module")
def jets():
    return synthetic_jets(60, seed=1)


def tagger_for(jets, **changes):
    preparation = {"view": "hlt", "hlt": "nominal", "hlt_seed": 3, "max_constituents": None} | changes
    standardisation = Standardisation.fit(features(offline_view(jets)))
    model = JetTransformer("small", seed=4, num_classes=changes.pop("num_classes", 1))
    preparation.pop("num_classes", None)
    return Tagger(model, Preparation(**preparation, standardisation=standardisation))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"view": "offline"},
        {"hlt": HLTConfig(1.0, 0.05, 0.1, 0.02, 0.02), "max_constituents": 20},
        {"hlt": "study"},
        {"hlt": None},
        {"num_classes": 3},
    ],
)
def test_a_saved_tagger_scores_alike(jets, tmp_path, changes):
    tagger = tagger_for(jets, **changes)
    tagger.save(tmp_path / "tagger.safetensors")
    loaded = load_model(tmp_path / "tagger.safetensors")
    scores = loaded.predict(jets)
    assert scores.shape == (60, changes.get("num_classes", 1))
    assert np.array_equal(scores, tagger.predict(jets))
    assert ((scores > 0) & (scores < 1)).all()
    if scores.shape[1] > 1:
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("forced", [None, "reference"])
def test_loading_and_scoring_leave_the_global_random_state_alone(jets, tmp_path, forced):
    tagger_for(jets).save(tmp_path / "tagger.safetensors")
    with unchanged_random_state(), nullcontext() if forced is None else backend.backend(forced):
        load_model(tmp_path / "tagger.safetensors").predict(jets)


def test_prepared_jets_are_taken_as_they_are(jets):
    tagger = tagger_for(jets)
    view = emulate_hlt(jets, "nominal", seed=3)
    assert np.array_equal(tagger.predict(view, prepared=True), tagger.predict(jets))
    assert not np.array_equal(tagger.predict(jets, prepared=True), tagger.predict(jets))


def test_jets_of_which_the_threshold_leaves_nothing(jets):
    tagger = tagger_for(jets, hlt=HLTConfig.preset("nominal", pt_threshold=1e6))
    with pytest.raises(DataError, match="jets: no jet has a constituent left\nthe pT threshold of the model's view"):
        tagger.predict(jets)
    assert tagger.predict(jets[:3]).shape == (3, 1)  # a few jets may be empty


def test_equal_scores_are_warned_of(jets):
    tagger = tagger_for(jets)
    with torch.no_grad():
        tagger.model.classify.weight.zero_()
    with pytest.warns(KdfastWarning, match="the scores of all 60 jets are equal") as caught:
        tagger.predict(jets)
    assert caught[0].filename == __file__


def test_only_the_hardest_constituents_are_kept(jets):
    few = jets.select_constituents(np.arange(len(jets.constituents)) - np.repeat(jets.offsets[:-1], jets.counts) < 5)
    tagger = tagger_for(jets, view="offline", max_constituents=5)
    assert np.array_equal(tagger.predict(jets), tagger.predict(few))


def test_scores_do_not_depend_on_the_batch(jets):
    tagger = tagger_for(jets)
    np.testing.assert_allclose(tagger.predict(jets[7:9]), tagger.predict(jets)[7:9], rtol=1e-5)
    assert tagger.predict(jets[:0]).shape == (0, 1)


def rewrite(path, change):
    with safe_open(path, "pt") as file:
        state, card = {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["kdfast"])  # noqa: SIM118
    del card["sha256"]  # as older versions wrote it: what the checksum would tell is told otherwise
    change(state, card)
    save_file(state, path, {"kdfast": json.dumps(card)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "there is no such model file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged or not a safetensors file"),
        (lambda path: path.write_bytes(b"PK\x03\x04" * 100), "is damaged or not a safetensors file"),
        (lambda path: save_file({"w": torch.zeros(3)}, path), "holds weights of something else"),
        (lambda path: rewrite(path, lambda _, card: card.update(format=99)), "newer than this kdfast reads"),
        (lambda path: rewrite(path, lambda state, _: state.pop("classify.bias")), "do not fit together"),
        (lambda path: rewrite(path, lambda _, card: card["model"].update(width=64)), "do not fit together"),
        (lambda path: rewrite(path, lambda _, card: card.pop("preparation")), "do not fit together"),
        (lambda path: rewrite(path, lambda _, card: card.update(trained_on=["12"])), r"together \(trained_on"),
        (lambda path: rewrite(path, lambda _, card: card.update(trained_on=7)), r"do not fit together \(trained_on"),
    ],
)
def test_bad_files_are_named(jets, tmp_path, damage, message):
    path = tmp_path / "tagger.safetensors"
    tagger_for(jets).save(path)
    damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_a_flipped_bit_never_changes_a_score(jets, tmp_path):
    path = tmp_path / "tagger.safetensors"
    tagger = tagger_for(jets)
    tagger.save(path)
    content, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    header = int.from_bytes(content[:8], "little") + 8
    positions = [*rng.integers(0, header, 150), *rng.integers(header, len(content), 50), len(content) - 1]
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(changed))
        try:
            read = load_model(path)
        except ModelError:
            refused += 1
            continue
        assert tagger_card(read.model.config, read.preparation) == tagger_card(tagger.model.config, tagger.preparation)
        for name, tensor in tagger.model.state_dict().items():
            assert torch.equal(read.model.state_dict()[name], tensor), (position, name)
    assert refused > 0.9 * len(positions)
