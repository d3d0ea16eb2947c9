"""Sentences for people that can be translated after they were made, in another process too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional, Union


class Message(str):
    """A text in English that remembers its key and its values, so that whoever shows it can translate it.

    Attributes:
        key: the English text with ``{name}`` where values go, as ``str.format`` takes it; what catalogues translate.
        values: by name; messages among them are translated as well.
    """

    key: str
    values: Mapping[str, Any]

    def __new__(cls, key: str, /, **values: Any) -> Message:
        message = super().__new__(cls, key.format(**values) if values else key)
        message.key, message.values = str(key), values
        return message

    def to_json(self) -> dict[str, Any]:
        """The message as plain JSON values, with key and values."""
        return {"message": self.key, "values": {name: _plain(value) for name, value in self.values.items()}}

    @classmethod
    def from_json(cls, value: Any) -> str:
        """A message, or a plain text, from its JSON values."""
        if not isinstance(value, Mapping):
            return str(value)
        values = {
            name: cls.from_json(item) if isinstance(item, Mapping) else item for name, item in value["values"].items()
        }
        return cls(value["message"], **values)

    def translated(self, translate: Callable[[str], str]) -> str:
        """The text in the language of ``translate``, which maps a key to its translation or to itself."""
        values = {name: _translated(value, translate) for name, value in self.values.items()}
        text = translate(self.key) if self.key else ""  # catalogues keep their own description under the empty key
        try:
            return text.format(**values) if values else text
        except (KeyError, IndexError, ValueError):  # a translation whose placeholders are wrong must not hide the text
            return str(self)


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_json()
    return value if isinstance(value, (str, int, float)) else str(value)


class Table:
    """Rows of texts that are shown with aligned columns; the first is the heading, which is translated.

    Attributes:
        rows: all with as many columns.
    """

    def __init__(self, heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.rows = [tuple(map(Message, heading)), *map(tuple, rows)]


Line = Union[str, Table]  # what a result says to people: a text, or a table of several lines


def format_number(value: Optional[float], digits: int = 2) -> str:
    """A number of a table; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def render(parts: Iterable[Line], translate: Callable[[str], str] = str) -> list[str]:
    """Texts and tables as lines for people, in the language of ``translate``."""
    lines: list[str] = []
    for part in parts:
        if isinstance(part, Table):
            lines += _aligned([[_translated(cell, translate) for cell in row] for row in part.rows])
        else:
            lines += _translated(part, translate).splitlines()
    return lines


def _translated(value: Any, translate: Callable[[str], str]) -> Any:
    return value.translated(translate) if isinstance(value, Message) else value


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    # Names stand on the left, numbers on the right.
    numeric = [all(not cell or not cell[0].isalpha() for cell in column) for column in zip(*rows[1:])]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric)
        ).rstrip()
        for row in rows
    ]
