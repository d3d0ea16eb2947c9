"""Any value of a type: what hypothesis makes of the annotations of requests and results."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

PRIMITIVES: dict[Any, st.SearchStrategy] = {
    str: st.text(max_size=8),
    bool: st.booleans(),
    int: st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(0, 8),
    float: st.floats(),  # NaN and the infinities too
}


def of_type(hint: Any) -> st.SearchStrategy:
    """Any value of an annotation; a dataclass's values need not be sensible ones."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in PRIMITIVES:
        return PRIMITIVES[hint]
    if hasattr(hint, "__supertype__"):  # a NewType
        return of_type(hint.__supertype__)
    if origin is typing.Union:
        return st.one_of(*(st.none() if item is type(None) else of_type(item) for item in arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(of_type(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of_type, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(of_type(arguments[0]), of_type(arguments[1]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(list(hint))
    hints = typing.get_type_hints(hint)
    return st.builds(hint, **{field.name: of_type(hints[field.name]) for field in dataclasses.fields(hint)})
