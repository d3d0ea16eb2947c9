"""Dataclasses as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

from clippan.core.errors import ClippanError
from clippan.core.messages import Message

T = TypeVar("T")

_INTEGER_LIMIT = 2**63  # whole numbers from here on fit into no array or file
REQUIRED: Any = enum.Enum("Required", "REQUIRED").REQUIRED  # type: ignore[attr-defined]  # default of fields without one


def to_json(value: Any, messages: bool = False) -> Any:
    """A request or result as plain JSON values; NaN and infinities become "NaN", "Infinity" and "-Infinity".

    With ``messages``, translatable sentences become objects with key and values instead of English texts.
    """
    if isinstance(value, Message):
        return value.to_json() if messages else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name), messages) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item, messages) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, messages) for item in value]
    return value


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """Builds the dataclass ``kind`` from JSON values; raises ClippanError for wrong names, missing names and types."""
    if not isinstance(values, Mapping):
        raise ClippanError("A {type} is written as a JSON object with named values.", type=kind.__name__)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ClippanError(
            "Unknown parameter {unknown} for {type}; known are {fields}.",
            unknown=", ".join(unknown),
            type=kind.__name__,
            fields=", ".join(fields),
        )
    missing = [name for name, field in fields.items() if name not in values and _is_required(field)]
    if missing:
        raise ClippanError("Missing parameter {missing} for {type}.", missing=", ".join(missing), type=kind.__name__)
    return kind(**{name: _convert(value, hints[name], name) for name, value in values.items()})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    absent = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return absent or field.default is REQUIRED


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
    if hint is str and isinstance(value, Mapping) and set(value) == {"message", "values"}:
        try:
            return Message.from_json(value)
        except (AttributeError, LookupError, TypeError, ValueError):  # values that do not go with the key
            pass
    if isinstance(hint, type):
        if dataclasses.is_dataclass(hint):
            return from_json(hint, value)
        if issubclass(hint, enum.Enum):
            try:
                return hint(value)
            except ValueError:
                known = ", ".join(str(item.value) for item in hint)
                raise ClippanError(
                    "Unknown {name} '{value}'; choose one of {known}.", name=name, value=value, known=known
                ) from None
        if hint in (int, float) and isinstance(value, int) and abs(value) >= _INTEGER_LIMIT:
            raise ClippanError("{name} is too large a number; choose a smaller one.", name=name)
        if hint is float and value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
    wanted = getattr(hint, "__name__", None) or str(hint)
    raise ClippanError("Parameter {name} should be {wanted}, not {value!r}.", name=name, wanted=wanted, value=value)
