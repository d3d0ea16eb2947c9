"""The prompt table, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from clippan.catalogue import prompts
from clippan.catalogue.prompts import ClassPrompt, PromptTable, parse_prompts
from clippan.core.errors import ClippanError


def test_plain_text_is_classes_and_synonyms() -> None:
    table = parse_prompts("water; forest,  trees , woods;building, roof, house;\n")
    assert table.names == ("water", "forest", "building")
    assert [prompt.words for prompt in table.classes][1] == ("forest", "trees", "woods")
    assert parse_prompts("water\nforest, trees") == parse_prompts("water; forest, trees")


def test_a_table_comes_back_from_its_text() -> None:
    plain = parse_prompts("water; forest, trees")
    assert plain.text() == "water; forest, trees"
    rich = PromptTable(
        (ClassPrompt("Fluß, groß", ("river",), ("a winding line",), "#102030", 0.4, -1.5), ClassPrompt("land")),
        42.0,
        "x",
    )
    assert rich.text().startswith("{")
    assert parse_prompts(rich.text()) == rich
    assert "threshold" not in json.loads(rich.json())["classes"][1]  # what has its default is left out


def test_a_file_is_read_and_written_whole(tmp_path) -> None:
    table = parse_prompts("water; forest").with_colours()
    path = tmp_path / "prompts.json"
    prompts.save_prompts(table, str(path))
    assert parse_prompts(str(path)) == table
    assert [item.name for item in tmp_path.iterdir()] == ["prompts.json"]
    with pytest.raises(ClippanError, match="could not be written"):
        prompts.save_prompts(table, str(tmp_path / "missing" / "prompts.json"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "No classes were given"),
        (" ; ", "No classes were given|has no name"),
        ("water;;land", "Class 2 of “water;;land” has no name"),
        ("water; Water", "Classes 1 and 2 are both named"),
        ("; ".join(f"class {number}" for number in range(256)), "at most 255 classes, and the prompt table has 256"),
        ("x" * 201, "is too long for a prompt"),
        ("{", "is not valid JSON"),
        ('{"classes": [{"name": "a", "colour": "red"}]}', "The colour red of a is invalid"),
        ('{"classes": [{"name": "a", "threshold": 1.5}]}', "The threshold of a is 1.5"),
        ('{"classes": [{"name": "a", "size": 1}]}', "is invalid: Unknown parameter size"),
        ('{"classes": [{"name": "a", "synonyms": [""]}]}', "empty synonym"),
        ("nowhere.json", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_said(text, says) -> None:
    with pytest.raises(ClippanError, match=says):
        parse_prompts(text)


def test_many_classes_have_a_colour_each() -> None:
    table = parse_prompts("; ".join(f"class {number}" for number in range(200))).with_colours()
    assert len({prompt.colour for prompt in table.classes}) > 150
    assert table.with_colours() == table
    assert (
        parse_prompts("trees").with_colours().classes[0].colour
        != parse_prompts("water").with_colours().classes[0].colour
    )


def test_the_colour_is_that_of_a_word_of_the_name() -> None:
    grass = parse_prompts("grassland").with_colours().classes[0].colour
    for name in ("grassland, shrubs", "Wiese (grassland)", "xyz / Grassland", "xyz and grassland"):
        assert prompts.PromptTable((prompts.ClassPrompt(name),)).with_colours().classes[0].colour == grass
    assert prompts.PromptTable((prompts.ClassPrompt("xyz"),)).with_colours().classes[0].colour != grass


def test_presets_are_tables() -> None:
    found = prompts.preset_tables()
    assert {"landcover", "urban", "coast", "agriculture"} <= set(found)
    for label, table in found.values():
        assert label
        assert parse_prompts(table.text()) == table
        assert len({prompt.colour for prompt in table.classes}) == len(table.classes)
