"""Dataclasses as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

from clippan.core.errors import ClippanError

T = TypeVar("T")

_LARGEST = 2**63  # whole numbers from here on fit into no array or file


def to_json(value: Any) -> Any:
    """A request or result as plain JSON values (dict, list, str, float, int, bool, None).

    JSON has no NaN and no infinity: they become the words "NaN", "Infinity" and "-Infinity", which ``from_json`` takes.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """Builds the dataclass ``kind`` from JSON values.

    Raises:
        ClippanError: a name is unknown or missing, or a value is not of the declared type.
    """
    if not isinstance(values, Mapping):
        raise ClippanError(f"A {kind.__name__} is written as a JSON object with named values.")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ClippanError(
            f"Unknown parameter {', '.join(unknown)} for {kind.__name__}; known are {', '.join(fields)}."
        )
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ClippanError(f"Missing parameter {', '.join(missing)} for {kind.__name__}.")
    return kind(**{name: _convert(value, hints[name], name) for name, value in values.items()})


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        if value is None:
            return None
        return _convert(value, next(item for item in arguments if item is not type(None)), name)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(item, arguments[0], name) for item in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _convert(item, arguments[1], name) for key, item in value.items()}
    if hint is Any:
        return value
    if isinstance(hint, type):
        if dataclasses.is_dataclass(hint):
            return from_json(hint, value)
        if issubclass(hint, enum.Enum):
            try:
                return hint(value)
            except ValueError:
                known = ", ".join(str(item.value) for item in hint)
                raise ClippanError(f"Unknown {name} '{value}'; choose one of {known}.") from None
        if hint in (int, float) and isinstance(value, int) and abs(value) >= _LARGEST:
            raise ClippanError(f"Parameter {name} is larger than any number that is meant here; choose a smaller one.")
        if hint is float and value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    wanted = getattr(hint, "__name__", None) or str(hint)
    raise ClippanError(f"Parameter {name} should be {wanted}, not {value!r}.")
