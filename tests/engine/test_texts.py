"""Texts that stand for themselves or for a file, in every option that takes such, and words that are none."""

from __future__ import annotations

import dataclasses

import pytest

from clippan.catalogue.prompts import parse_prompts
from clippan.clip.encoder import load_encoder
from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.jobs import Context, Device, SearchRequest
from clippan.jobs.classify import parse_descriptions

READERS = {
    "classes": (parse_prompts, "water\nforest, trees\n", parse_prompts("water; forest, trees")),
    "descriptions": (parse_descriptions, "corn: rows\ncorn: tall\n", {"corn": ("rows", "tall")}),
    "legend": (texts.parse_legend, "1=water\n#3c1098=house\n", {"1": "water", "#3C1098": "house"}),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["words.txt", "@words.txt", "WORDS.CSV", "words.list", "@words"])
def test_a_text_file_is_read(reader, name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    read, content, meant = READERS[reader]
    file = tmp_path / name.lstrip("@")
    for encoding, ends in (("utf-8", "\n"), ("utf-8-sig", "\r\n")):
        file.write_bytes(content.replace("\n", ends).encode(encoding))
        assert read(name) == meant
    assert read(str(file)) == meant
    file.write_text("\n\n" + content.replace("\n", " ;\n\n"), encoding="utf-8")
    assert read(name) == meant


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_none_is_said(reader, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    read, content, _ = READERS[reader]
    for name, encoding in (("wide.txt", "utf-16"), ("wide.json", "utf-16-le"), ("old.txt", "latin-1")):
        (tmp_path / name).write_bytes(f"{content}1=Wälder: dürr".encode(encoding))
        with pytest.raises(ClippanError, match=f"{name} is not a UTF-8 text file; save it as UTF-8"):
            read(name)
    (tmp_path / "scene.tif").write_bytes(b"II*\0\x08\0\0\0")
    with pytest.raises(ClippanError, match=r"scene.tif is not a UTF-8 text file"):
        read("scene.tif")
    for name in ("missing.txt", "missing.csv", "missing.JSON", "@missing.txt"):
        with pytest.raises(ClippanError, match=rf"{name.lstrip('@')} cannot be read \(No such file"):
            read(name)


def test_a_class_is_no_file_unless_it_is_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "water").write_text("land")
    assert parse_prompts("water").names == ("water",)
    assert parse_prompts("@x; =1+1; -minus; a.b; 🌲").names == ("@x", "=1+1", "-minus", "a.b", "🌲")
    assert parse_prompts("@nobody").names == ("@nobody",)
    with pytest.raises(ClippanError, match=r"“classes.txt” is the name of a file; give either"):
        parse_prompts("classes.txt; water; land")
    for written in ("water; land; classes.txt", "@water; land;classes.JSON"):
        with pytest.raises(ClippanError, match=r"“classes.\w+” is the name of a file; give either"):
            parse_prompts(written)
    (tmp_path / "a;b.txt").write_text("water; land")
    assert parse_prompts("a;b.txt").names == ("water", "land")


@pytest.mark.parametrize("word", ["???", "--", "…", "+", "$ $", "()", "·"])
def test_what_has_neither_letter_nor_digit_is_refused(word) -> None:
    for make in (
        lambda: parse_prompts(f"water; {word}"),
        lambda: parse_prompts(f"water, {word}"),
        lambda: parse_descriptions(f"corn: {word}"),
        lambda: SearchRequest(index="i.gpkg", text=(word,)).validate(),
        lambda: SearchRequest(index="i.gpkg", text=("water",), without=(word,)).validate(),
    ):
        with pytest.raises(ClippanError, match="no letter or digit"):
            make()


def test_words_of_other_scripts_are_told_apart() -> None:
    english = ["water", "l'eau", "Øre, wet", "50 % grass", "=1+1", "ｗａｔｅｒ", "Wälder № 5", "2", "m²"]
    foreign = ["水", "город", "숲", "غابة", "wasser 水", "🌲", "δάσος"]
    assert texts.non_latin([*english, *foreign, "水"]) == foreign
    for word in foreign:
        assert not texts.is_wordless(word)


def test_what_a_model_does_not_read_is_told() -> None:
    model = load_encoder("starter", Device.CPU, Context())
    assert model.spec.languages == ("en",)
    assert model.text_warnings(["water", "a river with sandbanks and a few small islands"]) == []
    (foreign,) = model.text_warnings(["water", "город", "🌲"])
    assert "was trained on English" in foreign
    assert "“город”, “🌲”" in foreign
    length = model._loaded.tokenizer([""]).shape[1]
    room = length - 2 - len(model._loaded.tokenizer.encode("a satellite photo of"))
    fits, long = " ".join(["x"] * room), " ".join(["x"] * (room + 1))
    (cut,) = model.text_warnings([fits, long])
    assert f"reads at most {length} tokens" in cut
    assert cut.count("“") == 1


def test_a_model_of_whose_languages_nothing_is_known_is_trusted(monkeypatch) -> None:
    model = load_encoder("starter", Device.CPU, Context())
    monkeypatch.setattr(model, "spec", dataclasses.replace(model.spec, languages=()))
    assert model.text_warnings(["水"]) == []
