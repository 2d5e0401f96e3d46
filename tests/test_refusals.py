"""Every public function says what is wrong with what it is given: which argument, and
what it got. The tables are in files called `refused_...`."""

import inspect

import pytest

from tests import (
    refused_cells,
    refused_data,
    refused_models,
    refused_objectives,
    refused_sampling,
)
from tests.test_structure import public_objects

REFUSED = {
    **refused_cells.REFUSED,
    **refused_data.REFUSED,
    **refused_models.REFUSED,
    **refused_objectives.REFUSED,
    **refused_sampling.REFUSED,
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named_with_their_values(name):
    assert REFUSED[name]
    for call, *words in REFUSED[name]:
        with pytest.raises((ValueError, TypeError)) as error:
            call()
        for word in words:
            assert word in str(error.value)


def public_functions():
    """The functions, and of the classes what takes arguments: themselves and methods.

    Records of what a function returned, and states, have nothing to check when made.
    """
    for name, thing in public_objects():
        if inspect.isfunction(thing) or not (
            issubclass(thing, tuple) or "State" in name
        ):
            yield name
        for method, value in vars(thing).items():
            function = getattr(value, "__func__", value)
            is_public = not method.startswith("_") or method == "__call__"
            if is_public and inspect.isfunction(function) and is_ours(function):
                yield f"{name}.{method}"


def is_ours(method):
    """And takes more than the object itself."""
    takes = inspect.signature(method).parameters
    return method.__module__.startswith("jaxrnn") and len(takes) > 1


def test_every_public_function_is_in_the_tables():
    functions = set(public_functions())
    assert {"LSTM", "sampling.prefill", "text.Vocab.build", "Stack.step"} <= functions
    # Cells are called with what `Recurrent` prepared.
    cells = {name for name in functions if "Cell." in name}
    assert functions - cells <= REFUSED.keys()
