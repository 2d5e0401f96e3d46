"""The same recurrent layer in several libraries, for `experiments.bench`.

Each contender is a function from a `Task` to a thunk that runs it once and blocks until
it is done. Training means outputs and the gradients of `sum(outputs * cotangent)` with
respect to parameters and inputs. Inputs and outputs are batch-major. The other
libraries run as their users run them: whole batches on one device with all its threads.
With the same weights all compute the same values, those at padding excepted; but
Haiku's GRU applies the reset gate before its product, its RNN has a relu for tanh, and
PyTorch, if not packed, starts the backward direction in the padding.
"""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.harness.cells import LAYERS, CellName
from jaxrnn import placement
from jaxrnn.recurrent import Backend
from jaxrnn.types import Dtype

SEED = 0


class UnavailableError(Exception):
    """A library is not installed, or cannot do the task."""


@dataclass(frozen=True)
class Task:
    """A recurrent layer, the shape of its batch, and whether gradients are computed."""

    cell: CellName
    batch: int
    time: int
    inputs: int
    hidden: int
    training: bool = True
    """Forward and backward, else forward only."""
    ragged: bool = False
    """Rows of different lengths, 0.6 of `time` on average."""
    bidirectional: bool = False

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Inputs, lengths or None, and the cotangent of the outputs.

        The cotangent is zero at padding, where the outputs of the libraries differ.

        >>> x, lengths, cotangent = Task("gru", 4, 10, 3, 8, ragged=True).arrays()
        >>> x.shape, sorted(lengths.tolist()), cotangent.shape
        ((4, 10, 3), [2, 5, 7, 10], (4, 10, 8))
        """
        rng = np.random.default_rng(SEED)
        outputs = self.hidden * (2 if self.bidirectional else 1)
        x = rng.normal(size=(self.batch, self.time, self.inputs)).astype(np.float32)
        cotangent = rng.normal(size=(self.batch, self.time, outputs))
        if not self.ragged:
            return x, None, cotangent.astype(np.float32)
        lengths = np.linspace(0.2 * self.time, self.time, self.batch).round()
        lengths = rng.permutation(np.maximum(lengths, 1).astype(np.int32))
        valid = np.arange(self.time) < lengths[:, None]
        return x, lengths, (cotangent * valid[..., None]).astype(np.float32)


class Compiled(NamedTuple):
    """A jitted function and its arguments.

    >>> double = Compiled(jax.jit(lambda x: 2 * x), (jnp.ones(()),))
    >>> double(), double.temporary_bytes() >= 0
    (Array(2., dtype=float32), True)
    """

    function: Any
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        """Calls the function and waits for its result."""
        return jax.block_until_ready(self.function(*self.arguments))

    def temporary_bytes(self) -> int:
        """Bytes that XLA allocates on a device for one call, beside inputs, outputs."""
        compiled = self.function.lower(*self.arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes


def ours(
    task: Task,
    *,
    devices: int | None = None,
    backend: Backend = "auto",
    dtype: Dtype | None = None,
    remat_chunk: int | None = None,
) -> Compiled:
    """This library's layer, data-parallel as in `jaxrnn.training`.

    Over `devices` devices, or the most that divide the batch.

    >>> outputs, d_params, d_x = ours(Task("gru", 2, 5, 3, 8), devices=1)()
    >>> outputs.shape, d_x.shape
    ((2, 5, 8), (2, 5, 3))
    """
    layer = LAYERS[task.cell](
        task.hidden,
        bidirectional=task.bidirectional,
        backend=backend,
        dtype=dtype,
        remat_chunk=remat_chunk,
    )
    x, lengths, cotangent = task.arrays()

    def apply(params: Any, x: Any, lengths: Any) -> Any:
        return layer.apply(params, x, lengths=lengths)[0]

    def differentiate(params: Any, *batch: Any) -> Any:
        outputs, d_params, d_x = _differentiate(apply)(params, *batch)
        return outputs, jax.lax.psum(d_params, "data"), d_x

    mesh = placement.data_mesh(devices, batch_size=task.batch)
    params = jax.jit(layer.init)(jax.random.key(SEED), x[:1, :1])
    params = jax.device_put(params, NamedSharding(mesh, P()))
    batch = (x, lengths, cotangent) if task.training else (x, lengths)
    batch = jax.device_put(batch, NamedSharding(mesh, P("data")))
    function = jax.shard_map(
        differentiate if task.training else apply,
        mesh=mesh,
        in_specs=(P(), *[P("data")] * len(batch)),
        out_specs=(P("data"), P(), P("data")) if task.training else P("data"),
        check_vma=False,  # As jaxrnn.training.
    )
    return Compiled(jax.jit(function), (params, *batch))


def _differentiate(apply: Callable) -> Callable:
    def differentiate(params: Any, x: Any, lengths: Any, cotangent: Any) -> Any:
        outputs, pull = jax.vjp(lambda p, x: apply(p, x, lengths), params, x)
        return outputs, *pull(cotangent.astype(outputs.dtype))

    return differentiate


def torch_padded(task: Task) -> Callable[[], Any]:
    """`torch.nn`'s layer on the padded batch, padding treated as data."""
    torch = load("torch")
    layer, x, _, cotangent = _torch_parts(torch, task)
    return _torch_thunk(torch, lambda: layer(x)[0], (layer, x, cotangent), task)


def torch_packed(task: Task) -> Callable[[], Any]:
    """`torch.nn`'s layer on a packed sequence, packing and unpacking included."""
    torch = load("torch")
    layer, x, lengths, cotangent = _torch_parts(torch, task)
    rnn = torch.nn.utils.rnn

    def forward() -> Any:
        rows = rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        outputs, _ = rnn.pad_packed_sequence(
            layer(rows)[0], batch_first=True, total_length=task.time
        )
        return outputs

    return _torch_thunk(torch, forward, (layer, x, cotangent), task)


def _torch_parts(torch: Any, task: Task) -> tuple[Any, Any, Any, Any]:
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[task.cell]
    layer = make(
        task.inputs, task.hidden, batch_first=True, bidirectional=task.bidirectional
    )
    x, lengths, cotangent = task.arrays()
    if lengths is None:
        lengths = np.full(task.batch, task.time)
    x = torch.from_numpy(x).requires_grad_(task.training)
    return layer, x, torch.from_numpy(lengths), torch.from_numpy(cotangent)


def _torch_thunk(
    torch: Any, forward: Callable[[], Any], parts: tuple[Any, Any, Any], task: Task
) -> Callable[[], Any]:
    layer, x, cotangent = parts
    wanted = [*layer.parameters(), x]

    def evaluate() -> Any:
        with torch.no_grad():
            return forward()

    def differentiate() -> Any:
        outputs = forward()
        return outputs, torch.autograd.grad(outputs, wanted, cotangent)

    return differentiate if task.training else evaluate


def flax(task: Task) -> Compiled:
    """`flax.linen.RNN` over the cell that its documentation recommends.

    >>> flax(Task("rnn", 2, 5, 3, 8, training=False))().shape
    (2, 5, 8)
    """
    cells = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}
    make = functools.partial(cells[task.cell], task.hidden)
    layer: nn.Module = nn.RNN(make())
    if task.bidirectional:
        layer = nn.Bidirectional(nn.RNN(make()), nn.RNN(make()))
    params = jax.jit(layer.init)(jax.random.key(SEED), task.arrays()[0][:1, :1])

    def apply(params: Any, x: Any, lengths: Any) -> Any:
        return layer.apply(params, x, seq_lengths=lengths)

    return on_one_device(apply, params, task)


def keras(task: Task) -> Compiled:
    """Keras 3 on JAX."""
    os.environ["KERAS_BACKEND"] = "jax"  # Read when Keras is imported.
    library = load("keras")
    if library.backend.backend() != "jax":
        raise UnavailableError("keras was imported with another backend than jax")
    layers = library.layers
    cells = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.SimpleRNN}
    layer = cells[task.cell](task.hidden, return_sequences=True)
    if task.bidirectional:
        layer = layers.Bidirectional(layer)
    layer.build((None, None, task.inputs))
    params = [variable.value for variable in layer.trainable_variables]
    others = [variable.value for variable in layer.non_trainable_variables]

    def apply(params: Any, x: Any, lengths: Any) -> Any:
        mask = None
        if lengths is not None:
            mask = jnp.arange(task.time)[None] < lengths[:, None]
        outputs, _ = layer.stateless_call(params, others, x, mask=mask)
        return outputs

    return on_one_device(apply, params, task)


def haiku(task: Task) -> Compiled:
    """`haiku.dynamic_unroll`, which supports neither lengths nor two directions."""
    if task.ragged or task.bidirectional:
        raise UnavailableError("it has no ragged batches and no bidirectional layer")
    library = load("haiku")
    cores = {"lstm": library.LSTM, "gru": library.GRU, "rnn": library.VanillaRNN}

    def unroll(x: Any) -> Any:
        core = cores[task.cell](task.hidden)
        state = core.initial_state(x.shape[0])
        return library.dynamic_unroll(core, x, state, time_major=False)[0]

    network = library.without_apply_rng(library.transform(unroll))
    params = network.init(jax.random.key(SEED), task.arrays()[0][:1, :1])

    def apply(params: Any, x: Any, lengths: Any) -> Any:
        return network.apply(params, x)

    return on_one_device(apply, params, task)


def torch_threads() -> int:
    """Number of PyTorch's threads; 0 without PyTorch."""
    try:
        return load("torch").get_num_threads()
    except UnavailableError:
        return 0


def load(module: str) -> Any:
    """One of the optional modules.

    >>> load("turtles")
    Traceback (most recent call last):
    experiments.bench.frameworks.UnavailableError: turtles is not installed

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name not in (package, module):  # It is, but something else is missing.
            raise
        raise UnavailableError(f"{package} is not installed") from error


def on_one_device(apply: Callable, params: Any, task: Task) -> Compiled:
    """`apply(params, x, lengths)`, with its gradients if the task is training.

    >>> task = Task("rnn", 2, 5, inputs=3, hidden=8, training=False)
    >>> on_one_device(lambda params, x, lengths: params * x, 2.0, task)().shape
    (2, 5, 3)
    """
    x, lengths, cotangent = jax.device_put(task.arrays())
    if task.training:
        return Compiled(jax.jit(_differentiate(apply)), (params, x, lengths, cotangent))
    return Compiled(jax.jit(apply), (params, x, lengths))
