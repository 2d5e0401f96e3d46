"""Pre-trained encoders in a classifier: what they compute, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.cells import LAYERS
from experiments.imdb import encoder as encoder_module
from experiments.imdb import model as imdb_model
from experiments.imdb import pretraining
from experiments.imdb.encoder import (
    Encoder,
    TrainedOn,
    encoder_settings,
    initial_params,
    load_encoders,
)
from experiments.imdb.language_model import (
    UNSUITED,
    LanguageSettings,
    make_language_model,
)
from experiments.imdb.model import Settings
from jaxrnn.text import Vocab

pytestmark = pytest.mark.slow

VOCAB = Vocab(("<pad>", "<unk>", *"abcdefg"))


def language_model(direction, layers=1, cell="lstm"):
    """A language model, its variables, and the same as an `Encoder`."""
    settings = LanguageSettings(
        direction=direction, embed=3, hidden=4, layers=layers, cell=cell
    )
    model = make_language_model(settings, len(VOCAB))
    seed = ["forward", "backward"].index(direction)
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))
    # Biases, which are zeros at first, and means of the embeddings are to count.
    keys = iter(jax.random.split(jax.random.key(seed + 10), 20))
    variables = jax.tree.map(
        lambda leaf: leaf + 0.5 + 0.5 * jax.random.normal(next(keys), leaf.shape),
        variables,
    )
    params = jax.device_get(variables["params"])
    made = Encoder(
        Path(direction),
        settings,
        VOCAB,
        params["embed"]["embedding"],
        params["encoder"],
        TrainedOn("reviews", "0123"),
    )
    return model, variables, made


def outputs_of(model, variables, tokens, lengths):
    """What the recurrent layers of a model return for its own embeddings."""

    def read(model, tokens, lengths):
        return model.encoder(model.embed(tokens), lengths)

    return model.apply(variables, tokens, lengths, method=read)


SUITED = sorted({*LAYERS} - UNSUITED - {"lstm"})


@pytest.mark.parametrize(
    ("directions", "layers", "cell"),
    [
        (("forward",), 1, "lstm"),
        (("forward", "backward"), 1, "lstm"),
        (("forward", "backward"), 2, "lstm"),
        *((("forward", "backward"), 1, cell) for cell in SUITED),
    ],
)
def test_the_layer_computes_what_the_language_models_do(rng, directions, layers, cell):
    models = [language_model(direction, layers, cell) for direction in directions]
    encoders = [made for *_, made in models]
    settings = encoder_settings(Settings(pooling=("last", "first", "max")), encoders)
    classifier = imdb_model.make_model(settings, len(VOCAB))
    variables = classifier.init(jax.random.key(9), jnp.zeros((1, 1), jnp.int32))
    counts = rng.integers(0, 50, len(VOCAB))
    params = initial_params(variables["params"], encoders, counts)
    lengths = jnp.array([6, 3, 1])
    tokens = jnp.asarray(rng.integers(0, len(VOCAB), (3, 6)), jnp.int32)
    found, _ = outputs_of(classifier, {"params": params}, tokens, lengths)
    for k, (model, own, made) in enumerate(models):
        for row, length in enumerate(lengths.tolist()):
            text = tokens[row, :length]
            backward = made.settings.direction == "backward"
            text = text[::-1] if backward else text
            [expected], _ = outputs_of(model, own, text[None], jnp.array([length]))
            expected = expected[::-1] if backward else expected
            part = found[row, :length, 4 * k : 4 * (k + 1)]
            np.testing.assert_allclose(part, expected, atol=2e-5)
    # Normalized over the words that are read.
    read = np.repeat(params["embed"]["embedding"], np.maximum(counts, 1), axis=0)
    np.testing.assert_allclose(read.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(read.std(axis=0), 1, atol=1e-5)
    # The output is the classifier's own.
    jax.tree.map(
        np.testing.assert_array_equal, params["output"], variables["params"]["output"]
    )


@pytest.mark.parametrize("cell", sorted(UNSUITED))
def test_cells_whose_inputs_cannot_be_normalized_are_refused(cell):
    with pytest.raises(ValueError, match=f"--cell {cell} is not for language models"):
        LanguageSettings(cell=cell).check()


def test_one_direction_does_not_pool_its_first_step():
    _, _, forward = language_model("forward")
    _, _, backward = language_model("backward")
    settings = Settings(pooling=("first", "max"), vocab=5)
    one = encoder_settings(settings, [forward])
    assert (one.embed, one.bidirectional, one.pooling) == (3, False, ("max",))
    both = encoder_settings(settings, [forward, backward])
    assert (both.embed, both.bidirectional, both.pooling) == (6, True, ("first", "max"))
    assert both.hidden == 4
    only_first = dataclasses.replace(settings, pooling=("first",))
    assert encoder_settings(only_first, [forward]).pooling == ("last",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with language models of both directions."""
    path = tmp_path_factory.mktemp("encoders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        patch.setattr(
            pretraining, "SMOKE", dataclasses.replace(pretraining.SMOKE, epochs=1)
        )
        for direction in ("forward", "backward"):
            settings = dataclasses.replace(pretraining.SMOKE, direction=direction)
            options = pretraining.Options(
                smoke=True, workdir=path / direction, settings=settings
            )
            pretraining.main(options)
    return path


def test_encoders_are_found_in_a_directory_of_both(trained):
    found = load_encoders([trained])
    assert [e.settings.direction for e in found] == ["forward", "backward"]
    assert found[0].vocab == found[1].vocab
    separate = load_encoders([trained / "backward", trained / "forward"])
    assert [e.fingerprint for e in separate] == [e.fingerprint for e in found]
    assert len({e.fingerprint.split()[1] for e in found}) == 2
    [forward] = load_encoders([trained / "forward"])
    assert forward.fingerprint == found[0].fingerprint


def test_encoders_that_do_not_fit_are_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"no pre-trained encoder in .*: make one"):
        load_encoders([tmp_path])
    with pytest.raises(ValueError, match="both read forward: give one --encoder of"):
        load_encoders([trained, trained / "forward"])
    with pytest.raises(ValueError, match="backward reads backward: give a forward one"):
        load_encoders([trained / "backward"])
    _, _, one = language_model("forward")
    _, _, other = language_model("backward")
    other = dataclasses.replace(
        other,
        settings=dataclasses.replace(other.settings, hidden=7),
        vocab=Vocab(VOCAB.tokens[::-1]),
    )
    message = "do not fit together: they have different hidden 4 and 7, vocabularies"
    with pytest.raises(ValueError, match=message):
        encoder_module._require_alike(one, other)


def test_settings_without_the_texts_are_refused(trained, tmp_path):
    shutil.copytree(trained / "forward", tmp_path / "run")
    file = tmp_path / "run" / "settings.json"
    settings = json.loads(file.read_text())
    del settings["texts"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"settings.json is of another .* no texts"):
        load_encoders([tmp_path / "run"])
