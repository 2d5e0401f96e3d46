"""Latency and throughput of what is served: the contenders do the same work."""

import jax
import numpy as np
import pytest

from experiments.bench import serving

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Of torch.compile, when it is imported.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [serving.classifier_calls, serving.character_calls])
def test_all_return_the_same(make, tmp_path):
    pytest.importorskip("torch")
    calls = make(tmp_path)
    del calls["torch.compile"]  # It needs a compiler, and its own time.
    found = [np.asarray(call()) for call in calls.values()]
    assert len(found) >= 3  # ExecuTorch, where it is installed
    assert np.isfinite(found).all()
    assert np.ptp(found, axis=0).max() < 1e-4
    if found[0].size > 1:
        assert np.ptp(found[0]) > 0.01


def test_contenders_that_differ_are_refused():
    with pytest.raises(AssertionError):
        serving.latency({"a": lambda: 1.0, "b": lambda: 1.1})


def test_people_get_characters(monkeypatch):
    monkeypatch.setattr(serving, "PEOPLE", (1, 3))
    monkeypatch.setattr(serving, "TEXTS", 1)
    monkeypatch.setattr(serving, "LENGTH", 100)
    found = serving.throughput()
    assert {people: len(rates) for people, rates in found.items()} == {1: 3, 3: 3}
    assert all(min(rates) > 10 for rates in found.values())
