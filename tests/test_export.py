"""Machines that are not here: steps lowered for TPUs and GPUs, and the compiled step of
eight devices, with what it sends and what memory it takes.
"""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from experiments.charlm import config as charlm_config
from experiments.charlm import model as charlm_model
from experiments.imdb import model as imdb_model
from jaxrnn import placement, sampling, training
from jaxrnn.metrics import Mean, cross_entropy
from jaxrnn.models import LanguageModel

pytestmark = pytest.mark.slow

VOCAB, HIDDEN, ROWS, TIME = 7, 8, 2, 6  # rows of each device


def make(dtype):
    """A language model and its variables; dtype is that of products and outputs."""
    model = LanguageModel(VOCAB, 5, jaxrnn.LSTM(HIDDEN, dtype=dtype))
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model, jax.eval_shape(model.init, jax.random.key(0), tokens)


def train_step(dtype, devices=2):
    model, variables = make(dtype)
    optimizer, mesh = optax.adam(0.1), placement.data_mesh(devices)

    def loss(params, batch, state, key):
        logits, state = model.apply(params, batch["inputs"], state=state)
        return {"loss": Mean.of(cross_entropy(logits, batch["targets"]))}, state

    state = jax.eval_shape(
        lambda: training.TrainState.create(
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables),
            optimizer,
            jax.random.key(0),
        )
    )
    step = training.make_stateful_train_step(loss, optimizer, mesh)
    return step, (on(mesh, P(), state), *rows(model, mesh))


def sentiment_step():
    """Of the program, with all that it drops and clips."""
    settings = imdb_model.Settings(embed=3, hidden=4, dtype="bfloat16")
    model = imdb_model.make_model(settings, VOCAB)
    optimizer, mesh = imdb_model.make_optimizer(settings, 10), placement.data_mesh(2)
    step = training.make_train_step(imdb_model.make_loss(model), optimizer, mesh)
    state = jax.eval_shape(lambda: imdb_model.make_state(model, optimizer, seed=0))
    count = ROWS * mesh.size
    batch = {
        "tokens": jax.ShapeDtypeStruct((count, TIME), jnp.int32),
        "lengths": jax.ShapeDtypeStruct((count,), jnp.int32),
        "labels": jax.ShapeDtypeStruct((count,), jnp.float32),
        "weights": jax.ShapeDtypeStruct((count,), jnp.float32),
    }
    return step, (on(mesh, P(), state), on(mesh, P("data"), batch))


def language_step():
    """Likewise."""
    mesh = placement.data_mesh(2)
    settings = charlm_config.Settings(
        embed=3, hidden=4, dropout=0.5, weight_drop=0.5, batch=ROWS * mesh.size
    )
    model = charlm_model.make_model(settings, VOCAB)
    optimizer = charlm_model.make_optimizer(settings, 10)
    step = charlm_model.make_train_step(model, optimizer, mesh, settings.weight_drop)
    state = jax.eval_shape(lambda: charlm_model.make_state(model, optimizer, settings))
    carry, batch = rows(model, mesh)
    starts = jax.ShapeDtypeStruct((settings.batch,), jnp.bool)
    batch["starts"] = on(mesh, P("data"), starts)
    state = training.StatefulTrainState(on(mesh, P(), state.train), carry)
    return step, (state, batch)


def eval_step(dtype):
    model, variables = make(dtype)
    mesh = placement.data_mesh(2)

    def measure(params, batch, state):
        logits, state = model.apply(params, batch["inputs"], state=state)
        return {"nats": Mean.of(cross_entropy(logits, batch["targets"]))}, state

    step = training.make_stateful_eval_step(measure, mesh)
    return step, (on(mesh, P(), variables), *rows(model, mesh))


def sampling_step(dtype):
    model, variables = make(dtype)

    step = functools.partial(model.apply, method="step")

    def draw(variables, key):
        prompt = jnp.zeros((2, 3), jnp.int32)
        keys = jax.random.split(key, 2)
        state = model.initial_state((2,))
        options = {"params": variables, "top_k": 3}
        return sampling.generate(step, state, prompt, 5, keys, **options).tokens

    return draw, (variables, jax.eval_shape(lambda: jax.random.key(0)))


def on(mesh, spec, tree):
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def rows(model, mesh):
    """A carry and a batch."""
    count = ROWS * mesh.size
    tokens = jax.ShapeDtypeStruct((count, TIME), jnp.int32)
    carry = jax.eval_shape(lambda: model.initial_state((count,)))
    return on(mesh, P("data"), (carry, {"inputs": tokens, "targets": tokens}))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("make_step", "devices"), [(train_step, 2), (eval_step, 2), (sampling_step, 1)]
)
def test_steps_are_lowered_for_accelerators(make_step, devices, dtype):
    with jax.numpy_dtype_promotion("standard"):  # the output is of float32
        step, arguments = make_step(dtype)
        expected = jax.tree.leaves(jax.eval_shape(step, *arguments))
        export = jax.export.export(jax.jit(step), platforms=["tpu", "cuda"])
        exported = export(*arguments)
    assert exported.platforms == ("tpu", "cuda")
    assert exported.nr_devices == devices
    found = [(aval.shape, aval.dtype) for aval in exported.out_avals]
    assert found == [(leaf.shape, leaf.dtype) for leaf in expected]
    module = exported.mlir_module()
    factors = set(re.findall(r"dot_general.*: \(tensor<\S*x(\w+)>", module))
    assert factors == ({"f32"} if dtype == jnp.float32 else {"f32", "bf16"})


@pytest.mark.parametrize(
    ("make_step", "measured"),
    # The totals of loss and accuracy with the weight they share, or of the loss alone.
    [(sentiment_step, 3), (language_step, 2)],
)
def test_the_programs_steps_are_lowered_and_send_no_more_than_needed(
    make_step, measured
):
    step, arguments = make_step()
    export = jax.export.export(jax.jit(step), platforms=["tpu", "cuda"])
    exported = export(*arguments)
    assert (exported.platforms, exported.nr_devices) == (("tpu", "cuda"), 2)
    state = getattr(arguments[0], "train", arguments[0])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    counted = counts(step, arguments)
    [summed] = counted["summed"]
    assert sum(summed) == parameters + measured
    assert counted["others"] == 0


def counts(step, arguments):
    """Of the compiled step: numbers that each all-reduce sums, other collectives, and
    the bytes that a device holds."""
    compiled = jax.jit(step).lower(*arguments).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    others = "all-gather|all-to-all|collective-permute|reduce-scatter"
    return {
        "summed": [
            [int(np.prod([int(n) for n in shape.split(",") if n]))
             for shape in re.findall(r"f32\[([\d,]*)\]", line)]
            for line in re.findall(r"= (.*) all-reduce\(", text)
        ],
        "others": len(re.findall(others, text)),
        "bytes": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def counted():
    """By the number of devices, from a process that has eight."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_export"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("devices", [2, 8])
def test_one_all_reduce_of_gradients_and_metrics(counted, devices):
    _, variables = make(jnp.float32)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    [summed] = counted[str(devices)]["summed"]
    assert sum(summed) == parameters + 2  # and the loss, as its total and weight
    assert counted[str(devices)]["others"] == 0


def test_memory_of_a_device_does_not_grow_with_their_number(counted):
    one, two, eight = (counted[str(devices)]["bytes"] for devices in (1, 2, 8))
    assert one == two == eight > 0


if __name__ == "__main__":
    counted = {n: counts(*train_step(jnp.float32, n)) for n in (1, 2, 8)}
    print(json.dumps(counted))
