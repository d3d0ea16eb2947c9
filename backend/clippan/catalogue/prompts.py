"""The prompt table: which classes a map is to have, and by which words they are found.

A table is written as plain text (``water; forest, trees; building, roof``: classes between semicolons, synonyms between
commas, the first of them the class's name), or as JSON with colours, descriptions, thresholds and what a calibration
found. No torch and no GDAL here: the plugin reads it too.
"""

from __future__ import annotations

import colorsys
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

MAX_CLASSES = 255  # classes that a band of bytes can tell apart from 0
SHAPEFILE_BYTES = 254  # of a text in a shapefile
_MAX_LETTERS = 200  # letters of a word or a description
_SEPARATORS = re.compile(r"[,/;()]|\band\b")
_GOLDEN_RATIO = 0.618034  # steps of the golden ratio spread hues evenly, however many there are


@dataclass(frozen=True)
class ClassPrompt:
    """A class.

    Attributes:
        name: in the legend, and the first of the words that are looked for.
        synonyms: other words for it; what fits any of them is of the class.
        descriptions: phrases that say what it looks like; they are averaged with each of the words.
        colour: in the legend, as #rrggbb; empty means a colour by the name.
        threshold: confidence below which a pixel stays unclassified, 0 to 1.
        offset: what calibration adds to the class's logits.
        vector: what calibration made of the words, for its model; empty where the words stand for themselves.
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
        """The name and the synonyms."""
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class PromptTable:
    """A prompt table.

    Attributes:
        classes: in the order of the map's values 1, 2, ….
        logit_scale: what cosines are multiplied by before a softmax; None for the default, or what was calibrated.
        model: for which it was calibrated; empty if for none.
        about: free text.
    """

    classes: tuple[ClassPrompt, ...]
    logit_scale: Optional[float] = None
    model: str = ""
    about: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(prompt.name for prompt in self.classes)

    def with_colours(self) -> PromptTable:
        """With a colour for every class: its own, that of the preset class of a word of it, or the next free hue."""
        known = _preset_colours()
        classes = []
        taken = {prompt.colour.lower() for prompt in self.classes}
        for number, prompt in enumerate(self.classes):
            # Labels are often several words, as in “grassland, shrubs”.
            words = (part for word in prompt.words for part in (word, *_SEPARATORS.split(word)))
            colour = prompt.colour or next(
                (known[_normalised(word)] for word in words if _normalised(word) in known), ""
            )
            if not prompt.colour and (not colour or colour in taken):
                colour = _colour_of_number(number)
            taken.add(colour)
            classes.append(replace(prompt, colour=colour))
        return replace(self, classes=tuple(classes))

    def text(self) -> str:
        """As plain text, if that holds all of it, else as JSON."""
        plain = "; ".join(", ".join(prompt.words) for prompt in self.classes)
        try:
            return plain if parse_prompts(plain) == self else self.json()
        except ClippanError:
            return self.json()

    def json(self) -> str:
        """As JSON, of which what has its default is left out."""
        values = to_json(self)
        values["classes"] = [_without_defaults(prompt, ClassPrompt("")) for prompt in values["classes"]]
        return json.dumps(_without_defaults(values, PromptTable(())), ensure_ascii=False, indent=1)


def parse_prompts(text: str) -> PromptTable:
    """The table of a text: plain, JSON, or the path of a file of either; plain, a class may have a line of its own.

    Raises:
        ClippanError: it is none, has no or too many classes, an empty or doubled name, words without a letter, or
            values out of range.
    """
    written = texts.resolve_text(text, "prompt table")
    if texts.is_json(text, written):
        return _validated(_parse_json(written, f"The prompt table {texts.named_file(text)}".rstrip()))
    rows = [row.strip() for row in re.split(r";?\s*\n|;", written)]
    while rows and not rows[-1]:  # text may end with a semicolon
        rows.pop()
    classes: list[ClassPrompt] = []
    for row in rows:
        words = [word for word in (" ".join(word.split()) for word in row.split(",")) if word]
        if not words:
            raise ClippanError(
                "Class {count} of “{cut}” has no name; write classes like water; forest, trees.",
                count=len(classes) + 1,
                cut=_shortened(text),
            )
        named = next((word for word in words if word.lower().endswith(texts.TEXT_SUFFIXES)), "")
        if named:
            raise ClippanError(
                "“{cut}” is the name of a file; give either the file alone, or the classes.", cut=_shortened(named)
            )
        classes.append(ClassPrompt(words[0], tuple(dict.fromkeys(words[1:]))))
    return _validated(PromptTable(tuple(classes)))


def shapefile_hints(table: PromptTable) -> list[str]:
    """Sentences about classes whose name or words, together, are cut in a shapefile's table."""
    cut = [
        _shortened(prompt.name)
        for prompt in table.classes
        if any(len(text.encode()) > SHAPEFILE_BYTES for text in (prompt.name, ", ".join(prompt.words)))
    ]
    if not cut:
        return []
    return [
        Message(
            "A shapefile holds {SHAPEFILE_BYTES} bytes of a text, so the words of {cut} are cut short; write a "
            "GeoPackage to have all of them.",
            SHAPEFILE_BYTES=SHAPEFILE_BYTES,
            cut=texts.join_names(cut),
        )
    ]


def save_prompts(table: PromptTable, path: str, outputs: Optional[Outputs] = None) -> None:
    """Writes a table as JSON, whole or not at all; with the other outputs of a run if it has some.

    Raises:
        ClippanError: it cannot be written.
    """
    with write_output(path, "prompt table", outputs) as part:
        part.write_text(table.json() + "\n", encoding="utf-8")


def preset_tables() -> dict[str, tuple[str, PromptTable]]:
    """The tables that come with CLIPPan, by their word in ``resources/presets.json``, each with its label."""
    values = json.loads((resources() / "presets.json").read_text(encoding="utf-8"))
    return {
        name: (entry["label"], _validated(from_json(PromptTable, {"classes": entry["classes"]})))
        for name, entry in values.items()
    }


def _parse_json(text: str, what: str) -> PromptTable:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ClippanError(
            "{what} is no JSON ({error}); write classes like water; forest, trees.", what=what, error=error
        ) from None
    try:
        return from_json(PromptTable, values)
    except ClippanError as error:
        raise ClippanError("{what} is not understood: {error}", what=what, error=error) from None


def _validated(table: PromptTable) -> PromptTable:
    if not table.classes:
        raise ClippanError("No classes were given; write them like water; forest, trees; building, roof.")
    if len(table.classes) > MAX_CLASSES:
        raise ClippanError(
            "{count} classes are too many for a map of bytes; give {MOST} at most.",
            count=len(table.classes),
            MOST=MAX_CLASSES,
        )
    seen: dict[str, int] = {}
    for number, prompt in enumerate(table.classes, 1):
        if not prompt.name.strip():
            raise ClippanError("Class {number} has no name; give it one.", number=number)
        for text in (*prompt.words, *prompt.descriptions):
            if not text.strip():
                raise ClippanError("Class {name} has an empty synonym or description; remove it.", name=prompt.name)
            if texts.is_wordless(text):
                raise ClippanError(
                    "“{cut}” of class {number} has no letter or digit; write a word.",
                    cut=_shortened(text),
                    number=number,
                )
            if len(text) > _MAX_LETTERS:
                raise ClippanError(
                    "“{cut}” is too long for a prompt; use {_LONGEST} letters at most.",
                    cut=_shortened(text),
                    _LONGEST=_MAX_LETTERS,
                )
        if prompt.name.lower() in seen:
            raise ClippanError(
                "Classes {seen} and {number} are both called {name}; give each its own name, and other words for one "
                "class after commas.",
                seen=seen[prompt.name.lower()],
                number=number,
                name=prompt.name,
            )
        seen[prompt.name.lower()] = number
        if prompt.colour and not texts.COLOUR.fullmatch(prompt.colour):
            raise ClippanError(
                "The colour {colour} of {name} is not understood; write it like #1f78b4.",
                colour=prompt.colour,
                name=prompt.name,
            )
        if not 0 <= prompt.threshold < 1:
            raise ClippanError(
                "The threshold of {name} is {threshold:g}; it has to be from 0 to 1.",
                name=prompt.name,
                threshold=prompt.threshold,
            )
        if not all(math.isfinite(value) for value in (prompt.offset, *prompt.vector)):
            raise ClippanError("The offset of {name} is no number; calibrate again.", name=prompt.name)
    if table.logit_scale is not None and not 0 < table.logit_scale <= 1000:
        raise ClippanError(
            "The logit scale is {logit_scale:g}; it has to be above 0 and at most 1000.", logit_scale=table.logit_scale
        )
    return table


def _without_defaults(values: dict[str, Any], default: Any) -> dict[str, Any]:
    usual = to_json(default)
    return {name: value for name, value in values.items() if name in ("name", "classes") or value != usual[name]}


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _preset_colours() -> dict[str, str]:
    classes = [prompt for _, table in preset_tables().values() for prompt in table.classes]
    found = {_normalised(prompt.name): prompt.colour.lower() for prompt in classes}  # a name comes before a synonym
    for prompt in classes:
        for word in prompt.synonyms:
            found.setdefault(_normalised(word), prompt.colour.lower())
    return found


def _normalised(word: str) -> str:
    return word.strip().lower().rstrip("s")  # one building, many buildings


def _colour_of_number(number: int) -> str:
    value = 0.9 if number % 2 else 0.7
    parts = colorsys.hsv_to_rgb((0.05 + number * _GOLDEN_RATIO) % 1, 0.65, value)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
