"""Prompt tables: the classes of a map and the words that describe them.

A table is plain text (``water; forest, trees; building, roof``: classes separated by semicolons, synonyms by commas, of
which the first is the name), or JSON with colours, descriptions, thresholds and calibration. Free of torch and GDAL,
since the plugin imports it too.
"""

from __future__ import annotations

import colorsys
import contextlib
import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any, Optional

from clippan import resources
from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.core.json import from_json, to_json
from clippan.core.messages import Message
from clippan.core.outputs import Outputs, write_output

MAX_CLASSES = 255  # of a map of bytes, whose value 0 is unclassified
SHAPEFILE_BYTES = 254  # of a text field in a shapefile
_MAX_LETTERS = 200  # of a word or a description
_SEPARATORS = re.compile(r"[,/;()]|\band\b")
_GOLDEN_RATIO = 0.618034  # steps of it distribute any number of hues evenly


@dataclass(frozen=True)
class ClassPrompt:
    """A class of a prompt table.

    Attributes:
        name: in the legend, and the first of its words.
        synonyms: other words; the most similar word counts.
        descriptions: phrases for its appearance, which are averaged with each word.
        colour: in the legend, as #rrggbb; empty for a colour by name.
        threshold: confidence below which pixels stay unclassified, 0 to 1.
        offset: added to the class's logits by calibration.
        vector: calibrated text vector for the table's model; empty if the words are used.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    colour: str = ""
    threshold: float = 0.0
    offset: float = 0.0
    vector: tuple[float, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class PromptTable:
    """A prompt table.

    Attributes:
        classes: in the order of the map's values 1, 2, ….
        logit_scale: factor of cosines before the softmax, set by calibration; None for the default.
        model: for which it was calibrated; empty if it was not.
        about: free text.
    """

    classes: tuple[ClassPrompt, ...]
    logit_scale: Optional[float] = None
    model: str = ""
    about: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(prompt.name for prompt in self.classes)

    def with_colours(self) -> PromptTable:
        """The table with a colour for each class: its own, that of a preset class with the same word, or a new hue."""
        known = _preset_colours()
        classes = []
        taken = {prompt.colour.lower() for prompt in self.classes}
        for number, prompt in enumerate(self.classes):
            # Names often consist of several words, as in "grassland, shrubs".
            words = (part for word in prompt.words for part in (word, *_SEPARATORS.split(word)))
            colour = prompt.colour or next(filter(None, (known.get(_normalised(word)) for word in words)), "")
            if not prompt.colour and (not colour or colour in taken):
                colour = _colour_of_number(number)
            taken.add(colour)
            classes.append(replace(prompt, colour=colour))
        return replace(self, classes=tuple(classes))

    def text(self) -> str:
        """The table as plain text if that can hold all of it, else as JSON."""
        plain = "; ".join(", ".join(prompt.words) for prompt in self.classes)
        with contextlib.suppress(ClippanError):
            if parse_prompts(plain) == self:
                return plain
        return self.json()

    def json(self) -> str:
        """The table as JSON without default values."""
        values = to_json(self)
        values["classes"] = [_without_defaults(prompt, ClassPrompt("")) for prompt in values["classes"]]
        return json.dumps(_without_defaults(values, PromptTable(())), ensure_ascii=False, indent=1)


def parse_prompts(text: str) -> PromptTable:
    """Parses a table: plain text, where line breaks also separate classes, JSON, or the path of a file with either.

    Raises:
        ClippanError: the text cannot be parsed, has no or too many classes, an empty or repeated name, words without
            letters, or values out of range.
    """
    written = texts.resolve_text(text)
    if texts.is_json(text, written):
        return _validated(_parse_json(written, text[:80]))
    rows = [row.strip() for row in re.split(r";?\s*\n|;", written)]
    while rows and not rows[-1]:  # the text may end with a semicolon
        rows.pop()
    classes: list[ClassPrompt] = []
    for row in rows:
        words = [word for word in (" ".join(word.split()) for word in row.split(",")) if word]
        if not words:
            raise ClippanError(
                "Class {number} of “{text}” has no name; write classes like water; forest, trees.",
                number=len(classes) + 1,
                text=_shortened(text),
            )
        named = next((word for word in words if word.lower().endswith(texts.TEXT_SUFFIXES)), "")
        if named:
            raise ClippanError(
                "“{name}” is the name of a file; give either only the file or the classes.", name=_shortened(named)
            )
        classes.append(ClassPrompt(words[0], tuple(dict.fromkeys(words[1:]))))
    return _validated(PromptTable(tuple(classes)))


def shapefile_hints(table: PromptTable) -> list[str]:
    """Hints about classes whose name or words are too long for a shapefile."""
    cut = [  # the words begin with the name
        _shortened(prompt.name) for prompt in table.classes if len(", ".join(prompt.words).encode()) > SHAPEFILE_BYTES
    ]
    if not cut:
        return []
    return [
        Message(
            "A text in a shapefile has at most {count} bytes, so the words of {classes} are truncated; write a "
            "GeoPackage to keep all of them.",
            count=SHAPEFILE_BYTES,
            classes=texts.join_names(cut),
        )
    ]


def save_prompts(table: PromptTable, path: str, outputs: Optional[Outputs] = None) -> None:
    """Writes a table as JSON, completely or not at all; ``outputs`` are the other outputs of the run.

    Raises:
        ClippanError: the file cannot be written.
    """
    with write_output(path, outputs) as part:
        part.write_text(table.json() + "\n", encoding="utf-8")


def preset_tables() -> dict[str, tuple[str, PromptTable]]:
    """Label and table of each preset, by its key in ``resources/presets.json``."""
    values = json.loads((resources() / "presets.json").read_text(encoding="utf-8"))
    return {
        name: (entry["label"], _validated(from_json(PromptTable, {"classes": entry["classes"]})))
        for name, entry in values.items()
    }


def _parse_json(text: str, shown: str) -> PromptTable:
    try:
        return from_json(PromptTable, json.loads(text))
    except ValueError as error:
        raise ClippanError(
            "“{text}” is not valid JSON ({error}); correct it, or write classes like water; forest, trees.",
            text=shown,
            error=error,
        ) from None
    except ClippanError as error:
        raise ClippanError("“{text}” is invalid: {error}", text=shown, error=error.message) from None


def _validated(table: PromptTable) -> PromptTable:
    if not table.classes:
        raise ClippanError("No classes were given; write them like water; forest, trees; building, roof.")
    if len(table.classes) > MAX_CLASSES:
        raise ClippanError(
            "A map can have at most {most} classes, and the prompt table has {count}; remove some.",
            most=MAX_CLASSES,
            count=len(table.classes),
        )
    seen: dict[str, int] = {}
    for number, prompt in enumerate(table.classes, 1):
        if not prompt.name.strip():
            raise ClippanError("Class {number} has no name; give it one.", number=number)
        for text in (*prompt.words, *prompt.descriptions):
            if not text.strip():
                raise ClippanError("The class {name} has an empty synonym or description; remove it.", name=prompt.name)
            if texts.is_wordless(text):
                raise ClippanError(
                    "“{text}” of class {number} has no letter or digit; write a word.",
                    text=_shortened(text),
                    number=number,
                )
            if len(text) > _MAX_LETTERS:
                raise ClippanError(
                    "“{text}” is too long for a prompt; use at most {most} characters.",
                    text=_shortened(text),
                    most=_MAX_LETTERS,
                )
        if prompt.name.lower() in seen:
            raise ClippanError(
                "Classes {other} and {number} are both named {name}; give each its own name, and separate other words "
                "for a class by commas.",
                other=seen[prompt.name.lower()],
                number=number,
                name=prompt.name,
            )
        seen[prompt.name.lower()] = number
        if prompt.colour and not texts.COLOUR.fullmatch(prompt.colour):
            raise ClippanError(
                "The colour {colour} of {name} is invalid; write it like #1f78b4.",
                colour=prompt.colour,
                name=prompt.name,
            )
        if not 0 <= prompt.threshold < 1:
            raise ClippanError(
                "The threshold of {name} is {threshold:g}, but has to be at least 0 and less than 1; correct it.",
                name=prompt.name,
                threshold=prompt.threshold,
            )
        if not all(math.isfinite(value) for value in (prompt.offset, *prompt.vector)):
            raise ClippanError(
                "The calibration of {name} is not a number; calibrate the table again.", name=prompt.name
            )
    if table.logit_scale is not None and not 0 < table.logit_scale <= 1000:
        raise ClippanError(
            "The logit scale is {value:g}, but has to be above 0 and at most 1000; correct it.", value=table.logit_scale
        )
    return table


def _without_defaults(values: dict[str, Any], default: Any) -> dict[str, Any]:
    usual = to_json(default)
    return {name: value for name, value in values.items() if name in ("name", "classes") or value != usual[name]}


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _preset_colours() -> dict[str, str]:
    classes = [prompt for _, table in preset_tables().values() for prompt in table.classes]
    synonyms = {
        _normalised(word): prompt.colour.lower() for prompt in reversed(classes) for word in prompt.synonyms[::-1]
    }
    return {**synonyms, **{_normalised(prompt.name): prompt.colour.lower() for prompt in classes}}


def _normalised(word: str) -> str:
    return word.strip().lower().rstrip("s")  # singular and plural are the same


def _colour_of_number(number: int) -> str:
    value = 0.9 if number % 2 else 0.7
    parts = colorsys.hsv_to_rgb((0.05 + number * _GOLDEN_RATIO) % 1, 0.65, value)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
