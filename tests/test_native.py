"""The C++ kernels inside of JAX: that they run where they should, that no
transformation is lost, and that the library does without them. Values are for
test_functional.py.

Where they are not compiled there is nothing to test but that; CI compiles them."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import functional
from jaxrnn.adversarial import (
    adversarial_perturbation,
    virtual_adversarial_perturbation,
)
from jaxrnn.native import ffi_calls, library
from tests.test_functional import IDS, NATIVE, Case, assert_close, masks

if not NATIVE:
    pytest.skip("the kernels are not compiled", allow_module_level=True)

B, T, D, H = 4, 5, 3, 4
VALID = jnp.asarray(IDS > 0)


def loss(backend, cell="lstm", **options):
    """Of weights and x: outputs and last state."""
    function = getattr(functional, cell)

    def value(weights, x):
        outputs, state = function(weights, None, x, backend=backend, **options)
        leaves = [outputs, *jax.tree.leaves(state)]
        return sum(jnp.sum(leaf * jnp.sin(leaf + 1)) for leaf in leaves)

    return value


def gradient(backend, **options):
    return jax.value_and_grad(loss(backend, **options), argnums=(0, 1))


@pytest.fixture
def given(rng):
    case = Case("lstm", rng)
    return jax.tree.map(jnp.asarray, (case.weights, case.x))


def operations(function, *arguments):
    """How often the compiled program calls the kernels and moves data."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    targets = re.findall(r'custom_call_target="jaxrnn_(\w+?)_v\d+"', text)
    words = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "while")
    moved = {w: len(re.findall(rf" {w}(?:-start)?\(", text)) for w in words}
    counts = {name: targets.count(name) for name in ("forward", "backward")} | moved
    return {name: count for name, count in counts.items() if count}


def test_it_runs(given):
    assert operations(loss("native"), *given) == {"forward": 1}
    assert operations(gradient("native"), *given) == {"forward": 1, "backward": 1}
    assert operations(loss("fused"), *given) == {"while": 1}
    layer = jaxrnn.GRU(4, num_layers=2)
    assert layer.resolved_backends == ("native", "native")
    variables = layer.init(jax.random.key(0), given[1])
    apply = functools.partial(layer.apply, lengths=np.array([5, 0, 1, 4]))
    assert operations(apply, variables, given[1]) == {"forward": 2}


def kernel_results(function, *arguments):
    """The sizes of what each call of a kernel writes, by kernel."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    lines = [line for line in text.splitlines() if "jaxrnn_" in line]
    return {
        re.search(r"jaxrnn_(\w+?)_v", line)[1]: re.findall(
            r"f32\[([\d,]*)\]", line.split(" custom-call(")[0]
        )
        for line in lines
    }


def test_only_what_is_needed_is_written(given):
    """No residuals where there is no backward pass, and no gradient of inputs that are
    not differentiated, or whose gradient nobody reads."""
    found = kernel_results(loss("native"), *given)
    assert found["forward"] == ["4,5,4", "4,4", "4,4", "0", "0"]
    found = kernel_results(jax.grad(loss("native")), *given)
    assert found["forward"] == ["4,5,4", "4,4", "4,4", "4,5,4", "4,5,16"]
    assert found["backward"][:4] == ["0", "3,16", "16", "4,16"]
    found = kernel_results(lambda *g: jax.grad(loss("native"), (0, 1))(*g)[0], *given)
    assert found["backward"][0] == "0"
    found = kernel_results(jax.grad(loss("native"), 1), *given)
    assert found["backward"][:4] == ["4,5,3", "0", "0", "0"]


def test_a_perturbation_needs_no_second_derivatives(given):
    """The kernels have none: loops would take their place."""

    def perturbed(weights, x):
        def of_input(x):
            return loss("native")(weights, x)

        return of_input(x + adversarial_perturbation(of_input, x, 1.0))

    found = operations(jax.value_and_grad(perturbed), *given)
    assert found == {"forward": 2, "backward": 2}

    def virtual(weights, x):
        def of_input(x):
            outputs, _ = functional.lstm(weights, None, x, backend="native")
            return outputs[:, -1]

        key = jax.random.key(0)
        r = virtual_adversarial_perturbation(of_input, x, 1.0, key)
        return of_input(x + r).sum()

    found = operations(jax.value_and_grad(virtual), *given)
    assert (found["forward"], found["backward"]) == (3, 2)


def test_what_jax_checkpoint_computes_again(given):
    remat = jax.checkpoint(loss("native"))
    assert operations(jax.value_and_grad(remat), *given) == {
        "forward": 2,
        "backward": 1,
    }
    keeping = jax.checkpoint(
        loss("native"), policy=lambda prim, *_, **__: prim.name == "recurrence"
    )
    assert operations(jax.grad(keeping), *given) == {"forward": 1, "backward": 1}
    for policy in ("dots_saveable", "nothing_saveable", "everything_saveable"):
        saving = jax.checkpoint(
            loss("native"), policy=getattr(jax.checkpoint_policies, policy)
        )
        found = jax.jit(jax.grad(saving, (0, 1)))(*given)
        assert_close(found, jax.jit(jax.grad(loss("scan"), (0, 1)))(*given), 5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm-projected", "gru", "rnn"])
@pytest.mark.parametrize("masked", [False, True])
def test_forward_mode_and_second_derivatives(cell, masked, rng):
    case = Case(cell, rng)
    options = masks(False, rng) if masked else {}
    tangents = jax.tree.map(lambda leaf: case.normal(*leaf.shape), case.given)

    def results(backend):
        run = case.run(backend, **options)

        def total(*given):
            leaves = jax.tree.leaves(run(*given))
            return sum(jnp.sum(leaf * jnp.sin(leaf + 1)) for leaf in leaves)

        every = tuple(range(4))
        gradient = jax.grad(total, every)
        return (
            jax.jvp(run, case.given, tangents),
            jax.jvp(gradient, case.given, tangents),
            jax.grad(lambda *g: jax.jvp(total, g, tangents)[1], every)(*case.given),
            jax.jacfwd(total)(*case.given),
        )

    found, expected = (
        jax.jit(results, static_argnums=0)(b) for b in ("native", "scan")
    )
    assert_close(found, expected, 2e-5)


AXES = {
    "rows": (None, 0),
    "weights": (0, None),
    "both": (0, 0),
    "inner rows": (None, 2),
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_vmap(axes, given):
    weights, x = given
    if axes[0] == 0:
        weights = jax.tree.map(lambda w: jnp.stack([w, w / 2, w + 1]), weights)
    if axes[1] is not None:
        x = jnp.stack([x, x + 1, 2 * x], axis=axes[1])
    options = {"valid": VALID}
    for make in (loss, gradient):
        found, expected = (
            jax.jit(jax.vmap(make(backend, **options), axes))(weights, x)
            for backend in ("native", "scan")
        )
        assert_close(found, expected, 5e-6)
    # The same weights: more rows for one call.
    count = operations(jax.vmap(loss("native"), axes), weights, x)
    assert count == {"forward": 1} | ({} if axes[0] is None else {"while": 1})


def test_gradients_of_each_example(given):
    weights, x = given

    def each(backend):
        def value(weights, x, valid):
            return loss(backend, valid=valid)(weights, x)

        return jax.jit(jax.vmap(jax.grad(value), (None, 0, 0)))(weights, x, VALID)

    assert_close(each("native"), each("scan"), 5e-6)


def test_inside_of_other_loops(given):
    def total(backend):
        def step(carry, x):
            taken = jax.lax.cond(
                x.sum() > -100, lambda: loss(backend)(given[0], carry * x), lambda: 0.0
            )
            return jnp.tanh(carry + taken), taken

        return lambda s: jax.lax.scan(step, s, given[1][:, None])[1].sum()

    found, expected = (jax.value_and_grad(total(b))(0.5) for b in ("native", "scan"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ------------------------------------------------------------------------ many devices


def spread(mesh, weights, x):
    spec = P(mesh.axis_names[0])
    return (
        jax.device_put(weights, NamedSharding(mesh, P())),
        jax.device_put(x, NamedSharding(mesh, spec)),
    )


def test_rows_stay_on_their_devices(given):
    """Under `jit` alone: the weights' gradients are added up once, and nothing else
    moves."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharded = spread(mesh, *given)
    assert operations(loss("native"), *sharded).get("all-gather", 0) == 0
    train = gradient("native", valid=VALID)
    count = operations(train, *sharded)
    assert count.pop("all-reduce") <= 2  # of the loss too
    assert count == {"forward": 1, "backward": 1}
    found, (d_weights, d_x) = jax.jit(train)(*sharded)
    assert d_x.sharding.spec[0] == "data"
    expected = jax.jit(gradient("scan", valid=VALID))(*given)
    assert_close((found, (d_weights, d_x)), expected, 5e-6)
    # Outside of `jit`, and with weights that are split as well.
    assert_close(gradient("native", valid=VALID)(*sharded), expected, 5e-6)
    split = jax.tree.map(
        lambda w: jax.device_put(
            w, NamedSharding(mesh, P(*(None,) * (w.ndim - 1), "data"))
        ),
        given[0],
    )
    assert_close(jax.jit(train)(split, sharded[1]), expected, 5e-6)


def test_vmap_over_rows_that_are_sharded(given):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    weights, x = given[0], jnp.stack([given[1], given[1] + 1])
    sharded = spread(mesh, weights, x)
    total = lambda b: lambda *g: jax.vmap(loss(b), (None, 0))(*g).sum()  # noqa: E731
    train = jax.grad(total("native"), (0, 1))
    assert "all-gather" not in operations(train, *sharded)
    expected = jax.jit(jax.grad(total("scan"), (0, 1)))(weights, x)
    assert_close(jax.jit(train)(*sharded), expected, 5e-6)


@pytest.mark.parametrize("check_vma", [False, True])
def test_shard_map(check_vma, given):
    mesh = jax.make_mesh((2,), ("data",))
    sharded = spread(mesh, *given)

    def per_device(backend):
        def outputs(weights, x):
            return functional.lstm(weights, None, x, backend=backend)[0]

        return jax.shard_map(
            outputs,
            mesh=mesh,
            in_specs=(P(), P("data")),
            out_specs=P("data"),
            check_vma=check_vma,
        )

    def total(backend):
        return lambda weights, x: jnp.sum(per_device(backend)(weights, x) ** 2)

    # On meshes of explicit axes, whose types know the devices.
    train = jax.jit(jax.grad(total("native"), (0, 1)))
    with jax.set_mesh(mesh):
        found = train(*sharded)
    alone = jax.grad(
        lambda w, x: jnp.sum(functional.lstm(w, None, x, backend="scan")[0] ** 2),
        (0, 1),
    )(*given)
    assert_close(found, alone, 5e-6)


def test_an_explicit_mesh(given):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = spread(mesh, *given)
        found = jax.jit(gradient("native"))(*sharded)
        assert jax.typeof(found[1][1]).sharding.spec[0] == "data"
    assert_close(found, jax.jit(gradient("scan"))(*given), 5e-6)


# --------------------------------------------------------------------- where it cannot


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("cpu", "cuda", "tpu")])
def test_exports_run_without_this_library(platforms, given):
    weights, x = given
    b, t = export.symbolic_shape("b, t")
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), weights)
    train = jax.jit(gradient("native"))
    assert "@jaxrnn_forward" in train.lower(weights, x).as_text()
    for shape in (x.shape, (b, t, D)):
        inputs = jax.ShapeDtypeStruct(shape, x.dtype)
        artefact = export.export(train, platforms=platforms)(shapes, inputs)
        assert "@jaxrnn_" not in artefact.mlir_module()
        if "cpu" in platforms:
            assert_close(artefact.call(weights, x), train(weights, x), 5e-6)


def test_without_kernels_that_fit_it_warns_once_and_is_pure(monkeypatch, given):
    def refuse(*_, **__):
        raise RuntimeError("API version 0.1 is not 0.3\nand a trace")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    library.instruction_set.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="API version 0.1 is not 0.3. Install"):
            assert functional.resolve_backend("auto") == "fused"
        assert functional.resolve_backend("auto") == "fused"  # no second warning
        with pytest.raises(ValueError, match="not compiled"):
            functional.lstm(given[0], None, given[1], backend="native")
    finally:
        library.instruction_set.cache_clear()


SCRIPT = """
import jax, jax.numpy as jnp, numpy as np, jaxrnn
from jaxrnn.native import library
layer = jaxrnn.GRU(37)
x = jnp.sin(jnp.arange(5 * 7 * 6.0)).reshape(5, 7, 6)
variables = layer.init(jax.random.key(0), x)
gradient = jax.grad(lambda v: jnp.sum(layer.apply(v, x)[0] ** 2))(variables)
total = sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(gradient))
print(library.instruction_set(), layer.resolved_backends[0], repr(total))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["portable", "avx2", "none"])
def test_the_environment_chooses_the_instruction_set(name):
    def run(**environment):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **environment},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        isa, backend, total = done.stdout.split()
        return isa, backend, float(total)

    isa, backend, total = run(JAXRNN_ISA=name)
    best, _, expected = run()
    assert best == library.instruction_set()
    if name == "none":
        assert (isa, backend) == ("None", "fused")
    else:
        # A processor without AVX2 has but one.
        assert isa in (name, "portable", "neon")
        assert backend == "native"
    np.testing.assert_allclose(total, expected, rtol=1e-5)


# ------------------------------------------------------------------------------ threads


def large(rng):
    """Enough rows and work for several threads."""
    case = Case("lstm", rng)
    x = case.normal(40, 50, 60)
    shapes = {"w_x": (60, 400), "w_h": (100, 400), "b": (400,)}
    weights = {name: case.normal(*shape) / 10 for name, shape in shapes.items()}
    return jax.tree.map(jnp.asarray, (weights, x))


def test_threads_change_nothing_but_the_order_of_sums(rng, monkeypatch):
    weights, x = large(rng)

    def results(threads):
        monkeypatch.setattr(ffi_calls, "threads", lambda: threads)
        jax.clear_caches()

        def value(weights, x):
            outputs, state = functional.lstm(weights, None, x, backend="native")
            return jnp.sum(outputs**2) + jnp.sum(state.c), outputs

        run = jax.jit(jax.grad(value, (0, 1), has_aux=True))
        return jax.device_get([run(weights, x) for _ in range(3)])

    one, *again = results(1)
    two, *others = results(2)
    # From one run to the next not a bit.
    for first, rest in ((one, again), (two, others)):
        for other in rest:
            jax.tree.map(np.testing.assert_array_equal, first, other)
    ((of_weights, of_x), outputs), ((expected, of_x_too), outputs_too) = two, one
    np.testing.assert_array_equal(outputs, outputs_too)
    np.testing.assert_array_equal(of_x, of_x_too)
    assert_close(of_weights, expected, 2e-6)


def test_a_device_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert ffi_calls.threads() == 4  # the tests have two CPU devices
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1), raising=False)
    assert ffi_calls.threads() == 1
