"""What stands in JSON files: objects, and values for the fields of a dataclass."""

import json
import types
from typing import Any, Literal, get_args, get_origin


def read_object(text: str) -> dict[str, Any]:
    """The object that a text of JSON is.

    Raises:
        ValueError: it is none.

    >>> read_object('{"seed": 0}')
    {'seed': 0}
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What two objects do not have in common, in words.

    >>> differences({"seed": 0, "layers": 1}, {"seed": 2, "layers": 1})
    'seed 0, not 2'
    """
    names = sorted(
        name for name in found.keys() | wanted if found.get(name) != wanted.get(name)
    )
    return ", ".join(
        f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in names
    )


def fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is what the type of a field says.

    >>> fits([1, 2], tuple[int, ...]), fits(True, int)
    (True, False)
    """
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return value in arguments
    if get_origin(hint) is tuple:  # of any length
        is_list = isinstance(value, list)
        return is_list and all(fits(item, arguments[0]) for item in value)
    if get_origin(hint) is types.UnionType:
        return any(fits(value, argument) for argument in arguments)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
