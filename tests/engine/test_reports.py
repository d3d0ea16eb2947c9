"""The HTML reports: what they say and show, whatever files and classes are called, in every language."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from osgeo import gdal

pytest.importorskip("torch")

import jinja2
from report_examples import EXAMPLES, calibration, classification, finetuning, overview, samples

from clippan.core.errors import ClippanError
from clippan.jobs.classify import Classifier
from clippan.report import page, pictures

HOSTILE = (
    "<script>alert(1)<b>",
    '" onerror="x" \'',
    "a & b &lt;c&gt; --> ]]>",
    "{{ 7*7 }}{% raw %}",
    "</title></style></main><img src=x>",
)
KINDS = pytest.mark.parametrize("kind", EXAMPLES)


class Page(HTMLParser):
    """What a page is made of: its elements, each with the names of its attributes, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.words: list[str] = []
        self.pictures: list[bytes] = []
        self._style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self._style = tag == "style"
        if tag == "img":
            values = dict(attrs)
            self.words.append(values["alt"])
            self.pictures.append(base64.b64decode(values["src"].removeprefix("data:image/png;base64,")))

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data: str) -> None:
        if not self._style and data.strip():
            self.words.append(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "NOW", " ".join(data.split())))

    @property
    def text(self) -> str:
        return "\n".join(self.words)


def written(folder: Path, template: str, values: dict[str, Any], **changes: Any) -> str:
    """The report, with other values of its request and result."""
    values = dict(values)
    for owner in ("request", "result"):
        names = {field.name for field in dataclasses.fields(values[owner])}
        own = {name: value for name, value in changes.items() if name in names}
        values[owner] = dataclasses.replace(values[owner], **own)
    path = folder / "a <b> & é.html"
    page.write(str(path), template, **values)
    assert [file.name for file in folder.iterdir()] == [path.name]
    return path.read_text(encoding="utf-8")


@KINDS
@pytest.mark.parametrize("name", HOSTILE)
def test_names_stay_words(tmp_path: Path, kind: str, name: str) -> None:
    plain = Page(written(tmp_path, kind, EXAMPLES[kind]("meadow")))
    found = Page(written(tmp_path, kind, EXAMPLES[kind](name)))
    assert found.elements == plain.elements
    assert plain.text.count("meadow") >= 7
    if "/" not in name:  # else headings show what follows the last one
        assert found.text == plain.text.replace("meadow", name)


@KINDS
def test_a_page_needs_no_other_file(tmp_path: Path, kind: str) -> None:
    text = written(tmp_path, kind, EXAMPLES[kind]("meadow"))
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r'(src|href)="(?!data:)|url\(|<script|https?://', text)


@KINDS
def test_a_value_that_is_missing_is_no_gap(tmp_path: Path, kind: str) -> None:
    values = EXAMPLES[kind]("meadow")
    for name in values:
        with pytest.raises(jinja2.UndefinedError):
            page.write(str(tmp_path / "r.html"), kind, **{key: value for key, value in values.items() if key != name})
    assert not list(tmp_path.iterdir())


def test_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ClippanError, match=r"The disk of .* is full; free some space or choose another folder."):
        page.write(str(tmp_path / "r.html"), "calibration", **calibration("meadow"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def translated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str], str], None]:
    """Sets the language, for this test."""

    def use(gettext: Callable[[str], str], language: str) -> None:
        monkeypatch.setattr(page, "translator", lambda _: gettext)
        monkeypatch.setattr(page, "current_language", lambda: language)

    return use


# What stays as it is in every language: names of measures, programs and files, and what the jobs say.
UNTRANSLATED = re.compile(
    r"meadow( ([abc12]|field|pan|truth|sar|rgb|run|control|teacher)\b)?|\b(folder|models|data|x)/|"
    r"\.(tif|json|gpkg)|Sensor|HQNR|QNR|Dλ,K \(Khan\)|Dλ \(Alparone\)|Ds|Q2n|SAM|ERGAS|SCC|PSNR|SSIM|dB|VV|VH|"
    r"Few (labels|samples) of meadow|Another hint|A hint of meadow|"
    r"clippan|PyTorch|GDAL|NumPy|\+cpu|\+cu\d+|svm-mean|linear|starter"
)


@KINDS
def test_no_english_is_left(tmp_path: Path, kind: str, translated: Callable[..., None]) -> None:
    seen = []

    def gettext(text: str) -> str:
        seen.append(text)
        return f"«{text}»"

    english = Page(written(tmp_path, kind, EXAMPLES[kind]("meadow")))
    translated(gettext, "xx")
    text = written(tmp_path, kind, EXAMPLES[kind]("meadow"))
    assert '<html lang="xx">' in text
    found = Page(text)
    assert found.elements == english.elements
    assert re.sub(r"[«»\s]", "", found.text) == re.sub(r"\s", "", english.text)
    inner = re.compile("«[^«»]*»")
    rest = found.text
    while inner.search(rest):
        rest = inner.sub("", rest)
    assert re.findall(r"[^\W\d_]{2,}.*", UNTRANSLATED.sub("", rest)) == []
    assert len(seen) > 20
    assert all("\n" not in text for text in seen)  # as a translator sees it


def test_assessment(tmp_path: Path) -> None:
    values = EXAMPLES["assessment"]("meadow")
    text = written(tmp_path, "assessment", values)
    found = Page(text).text
    for word in ("Quality of\nmeadow.tif", "HQNR\n0.9455", "PSNR\n∞ dB", "SCC\n–", "1,234,567", "4, 2, 1", "2.346 °"):
        assert word in found
    assert "assumed to be shifted by (−1.25, 0.50) PAN pixels (x, y), band 2 by (0.00, 1.00)" in found
    assert len(Page(text).pictures) == 4
    del values["pictures"]["reference"]
    text = written(tmp_path, "assessment", values, reference={}, shift=(0.0, 0.0), band_shifts=(), hints=())
    assert "used as georeferenced" in text
    assert "ERGAS" not in text
    assert "Hints" not in text
    assert len(Page(text).pictures) == 3


def test_calibration(tmp_path: Path) -> None:
    text = written(tmp_path, "calibration", calibration("meadow"))
    for word in ("60.0 %", "80.0 %", "0.432", "0.765", "0.781", "+0.125", "-0.250", "41.25", "1,500", "12.3 s"):
        assert word in text
    assert "raises the accuracy on the labelled pixels by 20.0 percentage points" in text
    assert "rgb(0, 0, 255)" in text


@pytest.mark.parametrize(
    ("accuracy", "words"), [(0.602, "hardly changes"), (0.5, "lowers the accuracy on the labelled pixels by 10.0")]
)
def test_calibration_that_does_not_help(tmp_path: Path, accuracy: float, words: str) -> None:
    values = calibration("meadow")
    after = dataclasses.replace(values["result"].after, accuracy=accuracy)
    assert words in Page(written(tmp_path, "calibration", values, after=after)).text


def test_confusion_is_read_by_rows(tmp_path: Path) -> None:
    values = calibration("meadow")
    text = written(tmp_path, "calibration", values)
    tables = re.findall(r'<table class="matrix">.*?</table>', text, re.DOTALL)
    assert len(tables) == 2
    cells = re.findall(r"<td style=\"background: rgba\((\d+), .*?\">(.*?)<small>(.*?)</small>", tables[0])
    assert [cell[1:] for cell in cells[:4]] == [("70.0 %", "700"), ("20.0 %", "200"), ("0.0 %", "0"), ("10.0 %", "100")]
    assert [cell[0] for cell in cells[4:7]] == ["198", "46", "198"]  # red, green on the diagonal, red
    assert "unclassified" in tables[0]
    square = dataclasses.replace(values["result"].before, confusion=((5, 5, 0), (0, 9, 1), (0, 0, 0)))
    text = written(tmp_path, "calibration", {**values, "panels": []}, before=square, after=square)
    assert "<th>unclassified" not in text


def test_classification(tmp_path: Path) -> None:
    values = classification("meadow")
    found = Page(written(tmp_path, "classification", values)).text
    assert "(repeats: 5): each polygon is left out in turn" in found
    assert "± 1.2 %" in found
    assert "1,234.50" in found
    assert ("tr", "class") in Page(written(tmp_path, "classification", values)).elements  # the chosen method
    once = dataclasses.replace(values["result"].accuracy, repeats=1)
    text = written(tmp_path, "classification", values, accuracy=once, method=Classifier.TIP)
    assert "comes from cross-validation (repeats: 1): each polygon" in Page(text).text
    assert "CLIP sees more of the surroundings" in text
    for repeats, words in ((5, "too few places are labelled"), (0, "switched off")):
        text = written(tmp_path, "classification", values, accuracy=None, chosen=(), repeats=repeats)
        assert words in Page(text).text
        assert "Confusion" not in text
        assert "Methods compared" not in text


def test_finetuning(tmp_path: Path) -> None:
    values = finetuning("meadow")
    text = written(tmp_path, "finetuning", values)
    assert text.count("<polyline") == 2
    assert text.count("<circle") == 22
    assert text.count("stroke-dasharray") == 2
    assert "keeps 86.7 % of its former accuracy. Alpha is the value" in Page(text).text.replace("\n", " ")
    assert "Alpha was set by hand." in written(tmp_path, "finetuning", values, alpha=0.5)
    result = values["result"]
    curve = tuple(dataclasses.replace(point, control=None, control_validation=None) for point in result.curve)
    alone = {"curve": curve, "before": curve[0], "after": curve[6], "control": "", "samples": ""}
    text = written(tmp_path, "finetuning", values, **alone)
    assert text.count("<polyline") == 1
    assert "set halfway" in Page(text).text
    assert "Control set\nnone" in Page(text).text


def read(picture: bytes) -> np.ndarray:
    """Values of a PNG file (bands, height, width)."""
    name = "/vsimem/report.png"
    gdal.FileFromMemBuffer(name, picture)
    try:
        return gdal.Open(name).ReadAsArray().astype(int)
    finally:
        gdal.Unlink(name)


def test_overlay_shows_classes_over_the_raster() -> None:
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    classes = np.zeros((30, 40), np.uint8)
    classes[:10] = 1
    found = read(pictures.class_overlay_png(image, classes, np.array([(0, 0, 0), (0, 0, 255)], np.float32)))
    assert found.shape == (3, 30, 40)
    assert np.abs(found[:, 10:] - image.mean(axis=2)[10:]).max() <= 1  # nothing is there
    assert (found[2, :10] - found[0, :10] > 100).all()  # blue over it


def test_stretch() -> None:
    image = np.linspace(0, 1000, 10_000, dtype=np.float32).reshape(1, 100, 100)
    valid = np.ones((100, 100), bool)
    valid[:50] = False
    found = read(pictures.stretched_png(image, valid))
    assert (found[1] == np.where(valid, 255, 0)).all()
    assert found[0, 50].max() < 5
    assert found[0, 99].min() > 250
    shared = pictures.percentile_limits(image, np.ones_like(valid))
    assert 120 < read(pictures.stretched_png(image, valid, shared))[0, 50].mean() < 135
    for nothing in (np.zeros_like(valid), valid):
        assert pictures.stretched_png(np.ones((3, 100, 100), np.float32), nothing).startswith(b"\x89PNG")


def test_pictures_of_a_map() -> None:
    small = overview()
    assert small.step == 2
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    shown = {kind: read(png) for kind, png in small.pictures(samples("x"), [(0, 0, 0), red, green, blue]).items()}
    assert {picture.shape for picture in shown.values()} == {(3, 320, 400)}
    assert tuple(shown["samples"][:, 5, 300]) == red  # row 10, column 600
    assert tuple(shown["map"][:, 110, 0]) == red
    assert tuple(shown["map"][:, 0, 0]) == pictures.NODATA_COLOUR
    assert tuple(shown["confidence"][:, 0, 0]) == pictures.NODATA_COLOUR
    assert shown["confidence"][0, 100, 0] < 10
    assert shown["confidence"][0, 100, 399] > 240
