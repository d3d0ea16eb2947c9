"""Every text has its German and its Spanish, with the same placeholders; what programs read is made of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from clippan.core.messages import Message, Table, render
from clippan.core.translation import translator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def messages():
    spec = importlib.util.spec_from_file_location("gathered_messages", ROOT / "scripts" / "messages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("language", ["de", "es"])
def test_catalogues_are_whole_and_up_to_date(messages, language: str) -> None:
    path = messages.languages()[language]
    people, programs, catalogue = messages.updated(path, language)
    assert messages.problems(catalogue) == []
    assert path.read_bytes() == people, "run scripts/messages.py update"
    assert path.with_suffix(".mo").read_bytes() == programs, "run scripts/messages.py update"


def test_texts_of_every_kind_are_gathered(messages) -> None:
    texts = messages.texts()
    for text in (
        "Tile size",  # a declaration
        "Cloud-optimised GeoTIFF (COG)",  # a choice
        "pixels",  # a unit
        "“{title}” is {value}; it has to be between {low} and {high}.",  # an error
        "Mean confidence",  # the heading of a table
        "Segment by text",  # an algorithm
        "Spatial correlation SCC",
    ):
        assert text in texts, text


def test_a_message_is_translated_with_its_values_and_theirs() -> None:
    message = Message("“{title}” is missing; {remedy}.", title=Message("Tile size"), remedy=Message("give a value"))
    german = message.translated(translator("de"))
    assert german != str(message)
    assert translator("de")("Tile size") in german
    assert message.translated(translator("xx")) == str(message)


def test_a_translation_with_wrong_placeholders_does_not_hide_the_text() -> None:
    message = Message("{count} bands", count=3)
    assert message.translated(lambda _: "{number} Bänder") == "3 bands"


def test_tables_are_aligned_in_the_language_that_is_shown() -> None:
    table = Table(("Class", "Share"), [("water", "1.0 %"), ("forest", "99.0 %")])
    assert render([table]) == ["Class    Share", "water    1.0 %", "forest  99.0 %"]
    shown = render([table], lambda text: {"Class": "Eine lange Klasse"}.get(text, text))
    assert shown[0] == "Eine lange Klasse   Share"
    assert len({line.rindex("%") for line in shown[1:]}) == 1
