"""Every public function says what is wrong with what it is given: which argument, and
what it got. The tables are `refused_data` and `refused_models`."""

import inspect
import types

import pytest

import jaxrnn
from tests import refused_data, refused_models

REFUSED = refused_data.REFUSED | refused_models.REFUSED


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_named_with_their_values(name):
    assert REFUSED[name]
    for call, *words in REFUSED[name]:
        with pytest.raises((ValueError, TypeError)) as error:
            call()
        for word in words:
            assert word in str(error.value)


def public_functions():
    """Those of the package and of its public modules, methods included."""
    found = set()
    for name in jaxrnn.__all__:
        value = getattr(jaxrnn, name)
        if isinstance(value, types.ModuleType):
            for inner in getattr(value, "__all__", vars(value)):
                item = getattr(value, inner)
                if getattr(item, "__module__", "").startswith("jaxrnn") and (
                    hasattr(value, "__all__") or item.__module__ == value.__name__
                ):
                    found |= functions_of(f"{value.__name__[7:]}.{inner}", item)
        else:
            found |= functions_of(name, value)
    return found


def functions_of(name, item):
    """The function; or the class and its methods that take anything."""
    if name.rpartition(".")[2].startswith("_"):
        return set()
    if inspect.isfunction(item):
        return {name}
    if not inspect.isclass(item) or issubclass(item, Exception):
        return set()
    found = set()
    for method, value in vars(item).items():
        function = getattr(value, "__func__", value)
        is_public = not method.startswith("_") or method == "__call__"
        if not is_public or not inspect.isfunction(function):
            continue
        if len(inspect.signature(function).parameters) > 1:  # self is one
            found.add(f"{name}.{method}")
    # Records of what a function returned, and states, have nothing to check.
    return found if issubclass(item, tuple) or "State" in name else found | {name}


def test_every_public_function_is_in_the_tables():
    functions = public_functions()
    assert {"LSTM", "sampling.read", "text.Vocab.build", "Stack.step"} <= functions
    # Cells are called with what `Recurrent` prepared.
    cells = {name for name in functions if "Cell." in name}
    assert functions - cells == REFUSED.keys()
