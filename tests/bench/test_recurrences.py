"""The recurrence alone: every contender's states and gradients are those of a loop."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import recurrences
from experiments.bench.frameworks import Task, UnavailableError

TASK = Task("min-gru", batch=4, time=9, inputs=3, hidden=5)


def loop(task):
    """States and gradients in float64, one step after the other, time first."""
    a, b, cotangent = (np.moveaxis(x, 0, 1) for x in recurrences.arrays(task))
    a, b, cotangent = (x.astype(np.float64) for x in (a, b, cotangent))
    states, before = np.zeros_like(a), np.zeros_like(a)
    h = np.zeros(a.shape[1:])
    for t in range(len(a)):
        before[t] = h
        h = states[t] = a[t] * h + b[t]
    d_b, passed = np.zeros_like(a), np.zeros(a.shape[1:])
    for t in reversed(range(len(a))):
        d_b[t] = passed + cotangent[t]
        passed = a[t] * d_b[t]
    return states, d_b * before, d_b


class ScanType:
    """As recurrentgemma's: what there is to choose from, by name."""

    def __class_getitem__(cls, name):
        return {"AUTO": "a loop", "ASSOCIATIVE_NATIVE": "associative"}[name]


@pytest.fixture
def recurrentgemma(monkeypatch):
    """A module with its function and the batch first; records what it was asked for."""
    asked = []

    def linear_scan(x, a, h0=None, reverse=False, scan_type=None):
        asked.append(scan_type)
        h, found = jnp.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            found.append(h)
        return jnp.stack(found, axis=1), h

    module = types.SimpleNamespace(linear_scan=linear_scan, ScanType=ScanType)
    monkeypatch.setitem(sys.modules, "recurrentgemma", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "recurrentgemma.jax", module)
    return asked


def assert_is_the_loop(found, batch_axis):
    for ours, expected in zip(found, loop(TASK), strict=True):
        # 9 steps in float32.
        np.testing.assert_allclose(
            np.moveaxis(ours, 1 - batch_axis, 0), expected, rtol=2e-6, atol=2e-6
        )


@pytest.mark.parametrize("devices", [1, 2])
def test_ours(devices):
    assert_is_the_loop(recurrences.ours(TASK, devices=devices)(), batch_axis=1)


def test_that_of_jax():
    assert_is_the_loop(recurrences.associative_scan(TASK)(), batch_axis=1)


@pytest.mark.parametrize(
    ("name", "kind"), [("AUTO", "a loop"), ("ASSOCIATIVE_NATIVE", "associative")]
)
def test_recurrentgemma_gets_the_batch_first(recurrentgemma, name, kind):
    assert_is_the_loop(recurrences.recurrentgemma(TASK, name)(), batch_axis=0)
    assert set(recurrentgemma) == {kind}


def test_recurrentgemma_beside_a_typeguard_that_it_cannot_bear(monkeypatch):
    def load(module):
        raise SyntaxError("invalid syntax: *b t f")

    monkeypatch.setattr(recurrences, "load", load)
    with pytest.raises(UnavailableError, match="it needs typeguard 2"):
        recurrences.recurrentgemma(TASK)


@pytest.mark.parametrize(
    ("build", "package", "rest"),
    [
        (recurrences.recurrentgemma, "recurrentgemma", ".jax"),
        (recurrences.memorax_min_gru, "memorax", ".networks.sequence_models"),
    ],
)
def test_those_not_installed_are_named(monkeypatch, build, package, rest):
    monkeypatch.setitem(sys.modules, package + rest, None)
    with pytest.raises(UnavailableError, match=f"^{package} is not installed$"):
        build(TASK)
