"""Texts that users write: in place, or in a file that they name; and what of them are words at all.

No torch and no GDAL here: the plugin reads them too.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clippan.core.errors import ClippanError
from clippan.core.messages import Message

TEXT_SUFFIXES = (".txt", ".csv", ".json")  # what ends so is the name of a file
_MAX_BYTES = 2**24  # bytes; what is larger was not written by hand
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def named_file(text: str) -> str:
    """The path of the file that a text names; empty for a literal text.

    A file name ends in .txt, .csv or .json and has no semicolon; or the file exists and the text has a suffix, a
    folder, or a leading @, which is dropped.
    """
    text = text.strip()
    if "\n" in text or text.startswith(("{", "[")):
        return ""
    path = text[1:].strip() if text.startswith("@") else text
    if path.lower().endswith(TEXT_SUFFIXES) and ";" not in path:  # with one, it is rather a list that ends in a file
        return path
    try:
        place = Path(path)
        named = bool(place.suffix or len(place.parts) > 1 or path != text) and place.is_file()
    except (OSError, ValueError):  # a text that can be no path
        named = False
    return path if named else ""


def resolve_text(text: str) -> str:
    """The text itself, or the content of the UTF-8 file that it names. Raises ClippanError if it cannot be read."""
    path = named_file(text)
    if not path:
        return text.strip()
    try:
        large = Path(path).stat().st_size > _MAX_BYTES
        found = "\0" if large else Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        found = "\0"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClippanError(
            "The file {path} cannot be read ({reason}); check the path.", path=path, reason=reason
        ) from None
    if "\0" in found:  # as UTF-16 has
        raise ClippanError(
            "The file {path} is not a UTF-8 text file; save it as UTF-8, or choose another file.", path=path
        )
    return found.strip()


def origin_note(text: str) -> str:
    """A line for the log about the file that a text names; empty if it stands for itself."""
    path = named_file(text)
    return Message("Texts are read from the file {path}.", path=path) if path else ""


def is_json(text: str, content: str) -> bool:
    """Whether a text is written as JSON, or the file that it names is."""
    return content.startswith("{") or named_file(text).lower().endswith(".json")


def split_items(content: str) -> list[str]:
    """Items between semicolons or on lines of their own, without empty ones."""
    return list(filter(None, map(str.strip, re.split(r"[;\n]", content))))


def join_names(names: Sequence[str], most: int = 5) -> str:
    """The first ``most`` names, as a sentence lists them."""
    shown = ", ".join(names[:most])
    return Message("{names} and {count} more", names=shown, count=len(names) - most) if len(names) > most else shown


def parse_legend(text: str) -> dict[str, str]:
    """Names by value, from ``1=water; #3C1098=building`` or a file of the same or of JSON; colours in capitals. Raises
    ClippanError for other texts."""
    found: Any
    written = resolve_text(text)
    if is_json(text, written):
        try:
            found = json.loads(written)
        except ValueError as error:
            raise ClippanError(
                "“{text}” is not valid JSON ({error}); write it like 1=water; 2=forest.", text=text[:80], error=error
            ) from error
    else:
        pairs = [part.partition("=") for part in split_items(written)]
        found = {value: name for value, _, name in pairs}
    if not isinstance(found, dict):
        found = {"": ""}
    names = {}
    for value, name in found.items():
        value, name = str(value).strip(), str(name).strip()
        if not value or not name:
            raise ClippanError("“{text}” is not understood; write it like 1=water; 2=forest.", text=text)
        names[value.upper() if COLOUR.fullmatch(value) else value] = name
    return names


def is_wordless(text: str) -> bool:
    """Whether a text has neither a letter nor a digit nor a picture (emoji): nothing that a model could look for."""
    return not any(unicodedata.category(sign)[0] in "LN" or unicodedata.category(sign) == "So" for sign in text)


def non_latin(texts: Iterable[str]) -> list[str]:
    """Those texts, each once, that have letters of another script than Latin, or neither letters nor digits."""
    found = []
    for text in dict.fromkeys(texts):
        signs = [sign for sign in unicodedata.normalize("NFKC", text) if sign.isalnum()]
        if not signs or any(sign.isalpha() and not unicodedata.name(sign, "").startswith("LATIN") for sign in signs):
            found.append(text)
    return found
