"""Data-parallel train and eval steps over a mesh of devices, for any model.

One code path for any number of devices of any number of processes: the mesh has the one
axis "data", the batch is split over it and the state copied to all. Each device
differentiates the *total* of its own part of the loss; one all-reduce sums gradients
and metrics, and only then is divided by the weight of the global batch. So padding,
masked rows and uneven parts change nothing: the step is that of one device with the
whole batch. Random numbers are the exception: each device draws its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key, PyTree

from jaxrnn import placement
from jaxrnn._validation import check_callable
from jaxrnn.metrics import Mean
from jaxrnn.types import accumulation_dtype

Batch = dict[str, Any]
Metrics = dict[str, Mean]


# Collections of Flax that hold no parameters.
_FIXED = {"batch_stats", "cache", "intermediates", "perturbations"}


class TrainState(flax.struct.PyTreeNode):
    """Step count, parameters, optimizer state and PRNG key of a training run.

    Attributes:
        step: how many steps were made.
        params: what the optimizer changes: a model's variables, or their `"params"`.
        opt_state: the optimizer's.
        key: the random key that each step folds its number into.

    >>> state = TrainState.create({}, optax.sgd(0.1), jax.random.key(0))
    >>> state.step
    Array(0, dtype=int32)
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    key: Key[Array, ""]

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        key: Key[Array, ""],
    ) -> "TrainState":
        """The state before the first step.

        Arrays are copied, since a train step donates its state.

        Raises:
            TypeError: `optimizer` is none of Optax.
            ValueError: `params` has one of Flax's collections that are no parameters,
                such as `"batch_stats"`.

        >>> params = {"w": jnp.ones(2)}
        >>> state = TrainState.create(params, optax.sgd(0.1), jax.random.key(0))
        >>> state.params, state.params["w"] is params["w"]
        ({'w': Array([1., 1.], dtype=float32)}, False)
        """
        fixed = _FIXED & {*params} if isinstance(params, Mapping) else None
        if fixed:
            raise ValueError(
                f"params has {sorted(fixed)}, which is not for an optimizer to change "
                "and which a train step does not carry: give the parameters alone"
            )
        optimizer = _transformation(optimizer)
        step = jnp.zeros((), jnp.int32)
        state = cls(step, params, optimizer.init(params), key)
        return jax.tree.map(jnp.copy, state)


class StatefulTrainState(flax.struct.PyTreeNode):
    """A train state and what is carried from batch to batch: one tree to save.

    Attributes:
        train: parameters and optimizer.
        carry: that of `make_stateful_train_step`, such as the state of a recurrent
            layer for each row of the batch.

    >>> train = TrainState.create({}, optax.sgd(0.1), jax.random.key(0))
    >>> StatefulTrainState(train, carry=jnp.zeros(2)).step
    Array(0, dtype=int32)
    """

    train: TrainState
    carry: PyTree

    @property
    def step(self) -> Int[Array, ""]:
        """The number of train steps done.

        >>> train = TrainState.create({}, optax.sgd(0.1), jax.random.key(0))
        >>> StatefulTrainState(train, carry=()).step == train.step
        Array(True, dtype=bool)
        """
        return self.train.step


def make_train_step(
    loss: Callable[[PyTree, Batch, Key[Array, ""]], Metrics],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A compiled `step(state, batch) -> (state, metrics)`.

    `loss(params, batch, key)` sees one device's rows and returns its `Mean`s; the one
    named "loss" is minimised. Its key is `state.key` folded with the step and with the
    device's index. Every array of the batch is split along its first axis.

    The state given to a step is donated: only the returned one may be used again. The
    metrics stay on the devices until they are read; to those of `loss` the step adds
    "gradient_norm", of the gradient before the optimizer. A batch whose whole
    weight is zero has no mean: its loss, and the parameters after it, are NaN.

    >>> def loss(params, batch, key):
    ...     return {"loss": Mean.of((params["w"] * batch["x"] - batch["y"]) ** 2)}
    >>> optimizer = optax.sgd(0.1)
    >>> step = make_train_step(loss, optimizer, placement.data_mesh(1))
    >>> state = TrainState.create({"w": jnp.zeros(())}, optimizer, jax.random.key(0))
    >>> state, metrics = step(state, {"x": jnp.ones(2), "y": jnp.ones(2)})
    >>> metrics["loss"].value, state.params["w"]
    (Array(1., dtype=float32), Array(0.2, dtype=float32))

    Raises:
        TypeError: the first step, if `loss` returns anything but a dict of `Mean`s.
        ValueError: the first step, if none of them is named "loss"; any step, as
            `placement.shard_batch`.
    """
    check_callable(loss=loss)

    def loss_without_carry(params, batch, carry, key):
        return loss(params, batch, key), carry

    carried_step = make_stateful_train_step(loss_without_carry, optimizer, mesh)

    def step(state, batch):
        state, _, metrics = carried_step(state, (), batch)
        return state, metrics

    return step


def make_stateful_train_step(
    loss: Callable[[PyTree, Batch, PyTree, Key[Array, ""]], tuple[Metrics, PyTree]],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, PyTree, Batch], tuple[TrainState, PyTree, Metrics]]:
    """A compiled `step(state, carry, batch) -> (state, carry, metrics)`.

    It is for truncated backpropagation through time (Williams and Peng, 1990). As
    `make_train_step`, of a `loss(params, batch, carry, key) -> (metrics, carry)`:
    what it returns as carry, such as the state of a recurrent layer, the next step
    gives back to it. The carry is a constant to the step: gradients do not flow into
    the batch before. It is split over the devices as the batch is, so the first axis of
    every array is the batch. Unlike the state it is not donated.

    >>> def loss(params, batch, carry, key):
    ...     return {"loss": Mean.of(params["w"] * carry)}, carry + batch["x"]
    >>> optimizer = optax.sgd(0.1)
    >>> step = make_stateful_train_step(loss, optimizer, placement.data_mesh(1))
    >>> state = TrainState.create({"w": jnp.ones(())}, optimizer, jax.random.key(0))
    >>> carry = jnp.zeros(2)
    >>> for _ in range(2):
    ...     state, carry, metrics = step(state, carry, {"x": jnp.array([1.0, 3.0])})
    >>> metrics["loss"].value, carry
    (Array(2., dtype=float32), Array([2., 6.], dtype=float32))
    """
    check_callable(loss=loss)
    optimizer = optax.with_extra_args_support(_transformation(optimizer))

    def step_on_device(state, carry, batch):
        key = jax.random.fold_in(state.key, state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))

        def loss_total(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
            metrics, after = loss(params, batch, carry, key)
            _require_means("loss", metrics)
            if "loss" not in metrics:
                raise ValueError(
                    'the loss function must return a Mean named "loss", '
                    f"not only {sorted(metrics)}"
                )
            return metrics["loss"].total, (metrics, after)

        differentiate = jax.grad(loss_total, has_aux=True)
        gradients, (metrics, after) = differentiate(state.params)
        gradients, metrics = jax.lax.psum((gradients, metrics), "data")
        weight = metrics["loss"].weight
        gradients = jax.tree.map(lambda g: _divided(g, weight), gradients)
        norm = optax.tree.norm(gradients)
        # Adam in optax takes float powers of an int: strict promotion would refuse it.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(
                gradients, state.opt_state, state.params, value=metrics["loss"].value
            )
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )
        metrics = metrics | {"gradient_norm": Mean(norm, jnp.ones_like(norm))}
        return state, after, metrics

    out_specs = (P(), P("data"), P())
    compiled = _synchronous_on_cpus(
        jax.jit(_over_devices(step_on_device, mesh, out_specs), donate_argnums=0), mesh
    )

    def step(state, carry, batch):
        carry = placement.shard_leading_axis(carry, mesh, "carry")
        batch = placement.shard_batch(batch, mesh)
        return compiled(placement.replicate(state, mesh), carry, batch)

    return step


def make_eval_step(
    metrics: Callable[[PyTree, Batch], Metrics], mesh: Mesh
) -> Callable[[PyTree, Batch], Metrics]:
    """A compiled `step(params, batch) -> metrics` over the global batch.

    `metrics(params, batch)` sees one device's rows and returns its `Mean`s.

    >>> def metrics(params, batch):
    ...     return {"mean": Mean.of(params["w"] * batch["x"])}
    >>> step = make_eval_step(metrics, placement.data_mesh(1))
    >>> step({"w": jnp.ones(())}, {"x": jnp.array([1.0, 2.0])})["mean"].value
    Array(1.5, dtype=float32)

    Raises:
        ValueError: the step, as `placement.shard_batch`.
    """
    check_callable(metrics=metrics)

    def metrics_without_carry(params, batch, carry):
        return metrics(params, batch), carry

    carried_step = make_stateful_eval_step(metrics_without_carry, mesh)

    def step(params, batch):
        _, measured = carried_step(params, (), batch)
        return measured

    return step


def make_stateful_eval_step(
    metrics: Callable[[PyTree, Batch, PyTree], tuple[Metrics, PyTree]], mesh: Mesh
) -> Callable[[PyTree, PyTree, Batch], tuple[PyTree, Metrics]]:
    """A compiled `step(params, carry, batch) -> (carry, metrics)`.

    As `make_eval_step`, of a `metrics(params, batch, carry) -> (metrics, carry)`.

    >>> def metrics(params, batch, carry):
    ...     return {"mean": Mean.of(params["w"] * carry)}, carry + batch["x"]
    >>> step = make_stateful_eval_step(metrics, placement.data_mesh(1))
    >>> carry, measured = step({"w": jnp.ones(())}, jnp.ones(2), {"x": jnp.ones(2)})
    >>> carry, measured["mean"].value
    (Array([2., 2.], dtype=float32), Array(1., dtype=float32))
    """
    check_callable(metrics=metrics)

    def step_on_device(params, carry, batch):
        measured, after = metrics(params, batch, carry)
        _require_means("metrics", measured)
        return after, jax.lax.psum(measured, "data")

    compiled = _synchronous_on_cpus(
        jax.jit(_over_devices(step_on_device, mesh, (P("data"), P()))), mesh
    )

    def step(params, carry, batch):
        carry = placement.shard_leading_axis(carry, mesh, "carry")
        batch = placement.shard_batch(batch, mesh)
        return compiled(placement.replicate(params, mesh), carry, batch)

    return step


def _transformation(optimizer: Any) -> optax.GradientTransformation:
    if isinstance(optimizer, optax.MultiSteps):
        return optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, got {optimizer!r}"
        )
    return optimizer


def _require_means(name: str, measured: Any) -> None:
    """The sum over devices of anything but a `Mean` would grow with their number."""
    values = measured.values() if isinstance(measured, dict) else [measured]
    wrong = [type(value).__name__ for value in values if not isinstance(value, Mean)]
    if wrong:
        raise TypeError(
            f"{name} must return a dict of metrics.Mean, not of {wrong[0]}: "
            "Mean.of(values, weights) takes what is not reduced yet"
        )


def _divided(gradient: Array, weight: Array) -> Array:
    """In half precision a weight of 70,000 would be rounded, or infinite."""
    sums = accumulation_dtype(gradient.dtype)
    return (gradient.astype(sums) / weight.astype(sums)).astype(gradient.dtype)


def _over_devices(function: Callable, mesh: Mesh, out_specs: PyTree) -> Callable:
    """`function(replicated, carry, batch)` on every device, with its own rows."""
    # check_vma would sum gradients by itself, once for each parameter, and refuse any
    # scan in a model that starts from zeros.
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=out_specs,
        check_vma=False,
    )


def _synchronous_on_cpus(compiled: Callable, mesh: Mesh) -> Callable:
    """`compiled`; on several CPU devices of a process it returns when it is done.

    There (jax 0.10.2) a device that waits in an all-reduce holds a thread of the pool
    that places the next batch on the devices. With steps dispatched ahead all threads
    wait, and after a minute XLA ends the process.
    """
    local = mesh.local_devices
    if len(local) == 1 or local[0].platform != "cpu":
        return compiled
    return lambda *arguments: jax.block_until_ready(compiled(*arguments))
