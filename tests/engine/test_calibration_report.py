"""The report of a calibration, and what the command prints of it and of a map."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from osgeo import gdal

from clippan import cli
from clippan.catalogue.colours import Choice
from clippan.catalogue.prompts import parse
from clippan.core.errors import ClippanError
from clippan.jobs import Accuracy, CalibrateRequest, CalibrateResult, ClassArea, SegmentResult
from clippan.jobs.picture import RasterPicture
from clippan.segmentation import report
from clippan.segmentation.report import Panel

PICTURE = RasterPicture("a & b.tif", Choice((3, 2, 1), "by the bands' names"), ((0.0, 1.0),) * 3)
TABLE = parse(
    '{"classes": [{"name": "wäter", "colour": "#0000ff"}, {"name": "<b>roofs</b>"}, {"name": "crops, \\"x\\""}]}'
)
REQUEST = CalibrateRequest(("a & b.tif",), ("labels.gpkg",), "wäter; roofs; crops", "out.json", report="r.html")
RESULT = CalibrateResult(
    "folder/<out>.json",
    "r.html",
    TABLE.names,
    (1000, 500, 0),
    Accuracy(0.6, 0.4321, (0.5, 0.3642, None), ((700, 200, 0, 100), (250, 200, 50, 0), (0, 0, 0, 0))),
    Accuracy(0.8, 0.7654, (0.75, 0.7808, None), ((900, 100, 0, 0), (50, 300, 150, 0), (0, 0, 0, 0))),
    41.25,
    (0.125, -0.25, 0.0),
    ("Few <labels> of crops.",),
    12.3,
    (),
)


def panel(height=30, width=40):
    values = np.zeros((height, width), np.uint8)
    values[:10], values[10:20] = 1, 2
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return Panel("a & b.tif", image, values, values[::-1], np.where(values == 1, 1, 0).astype(np.uint8))


def written(tmp_path, result=RESULT, panels=()):
    path = tmp_path / "a <b> & é.html"
    report.write(str(path), REQUEST, result, TABLE, panels)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    return path.read_text(encoding="utf-8")


def test_says_what_was_found(tmp_path):
    text = written(tmp_path, panels=[panel()])
    for words in ("60.0 %", "80.0 %", "0.432", "0.765", "0.781", "+0.125", "-0.250", "41.25", "1,500", "12.3 s"):
        assert words in text
    assert "20.0 % more of the labelled pixels right" in text
    assert "rgb(0, 0, 255)" in text
    assert not re.search(r'(src|href)="(?!data:)|url\(|<script|https?://', text)  # needs nothing from outside


def test_escapes_names(tmp_path):
    text = written(tmp_path, panels=[panel()])
    for raw in ("<b>roofs", "<out>", "<labels>", "a & b"):
        assert raw not in text
    for shown in ("wäter", "&lt;b&gt;roofs", "crops, &quot;x&quot;", "&lt;out&gt;.json", "Few &lt;labels&gt;"):
        assert shown in text


def test_confusion_is_read_by_rows(tmp_path):
    text = written(tmp_path)
    tables = re.findall(r'<table class="matrix">.*?</table>', text)
    assert len(tables) == 2
    cells = re.findall(r"<td style=\"background: rgba\((\d+), .*?\">(.*?)<small>(.*?)</small>", tables[0])
    assert [cell[1:] for cell in cells[:4]] == [("70.0 %", "700"), ("20.0 %", "200"), ("0.0 %", "0"), ("10.0 %", "100")]
    assert [cell[0] for cell in cells[4:7]] == ["198", "46", "198"]  # red, green on the diagonal, red
    assert "unclassified" in tables[0]
    square = dataclasses.replace(RESULT.before, confusion=((5, 5, 0), (0, 9, 1), (0, 0, 0)))
    text = written(tmp_path, dataclasses.replace(RESULT, before=square, after=square))
    assert "unclassified" not in re.findall(r'<table class="matrix">.*?</table>', text)[0]


@pytest.mark.parametrize(
    ("after", "words"), [(0.602, "hardly changes"), (0.5, "10.0 % more of the labelled pixels wrong")]
)
def test_says_when_it_does_not_help(tmp_path, after, words):
    result = dataclasses.replace(RESULT, after=dataclasses.replace(RESULT.after, accuracy=after))
    assert words in written(tmp_path, result)


def test_pictures_show_classes_over_the_raster(tmp_path):
    shown = panel()
    text = written(tmp_path, panels=[shown, panel(12, 9)])
    found = []
    for number, picture in enumerate(re.findall(r'data:image/png;base64,([^"]+)"', text)):
        name = f"/vsimem/calibration{number}.png"
        gdal.FileFromMemBuffer(name, base64.b64decode(picture))
        dataset = gdal.Open(name)
        found.append(dataset.ReadAsArray().astype(int))
        dataset = None
        gdal.Unlink(name)
    assert [picture.shape for picture in found] == [(3, 30, 40)] * 3 + [(3, 12, 9)] * 3
    before, after, labels = found[:3]
    grey = shown.image.mean(axis=2)
    assert np.abs(before[:, 20:] - grey[20:]).max() <= 1  # nothing is there
    assert (before[2, :10] - before[0, :10] > 100).all()  # blue over it
    assert np.abs(after[:, 20:] - before[:, :10][..., ::1]).mean() > 0
    assert (after[2, 20:] - after[0, 20:] > 100).all()
    assert np.abs(labels[:, 10:] - grey[10:]).max() <= 1


def test_that_cannot_be_written(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ClippanError, match=r"The disk of .* is full; free some space or choose another folder."):
        report.write(str(tmp_path / "r.html"), REQUEST, RESULT, TABLE)
    assert not list(tmp_path.iterdir())


def test_command_prints_a_calibration():
    lines = cli._PRINT[CalibrateResult](RESULT).splitlines()
    assert lines[0].split() == ["class", "labelled", "before", "after", "offset"]
    assert lines[1].split() == ["wäter", "1,000", "0.500", "0.750", "+0.125"]
    assert lines[3].split()[-4:] == ["0", "-", "-", "+0.000"]
    assert lines[4].split() == ["mean", "IoU", "0.432", "0.765"]
    assert lines[5].split() == ["right", "0.600", "0.800"]
    assert lines[6:] == [
        "folder/<out>.json: logit scale 41.25, 12.3 s",
        "Report: r.html",
        "Few <labels> of crops.",
    ]
    assert "Report" not in cli._PRINT[CalibrateResult](dataclasses.replace(RESULT, report=""))


def test_command_prints_a_map():
    classes = (
        ClassArea(1, "water", "#0000ff", 300, 0.3, 12345.678, 0.812),
        ClassArea(2, "roofs, houses", "#ff0000", 0, 0.0, None, None),
        ClassArea(0, "unclassified", "", 700, 0.7, 1.0, 0.25),
    )
    result = SegmentResult(
        *("map.tif", 100, 10, classes, "starter", "cpu", (512, 256), 3.21, 1.234),
        *("sure.tif", "", "p.gpkg", "", 42, ("A hint.",), {}, PICTURE),
    )
    lines = cli._PRINT[SegmentResult](result).splitlines()
    assert lines[0].split() == ["value", "class", "share", "hectares", "confidence"]
    assert lines[1].split() == ["1", "water", "30.00", "%", "12,345.68", "0.81"]
    assert lines[2].split() == ["2", "roofs,", "houses", "0.00", "%", "-", "-"]
    assert len({len(line) for line in lines[:4]}) == 1  # columns stand under each other
    assert lines[4] == "map.tif: 100 × 10 pixels, windows of 512, 256 pixels, starter"
    assert lines[5:] == ["Confidence: sure.tif", "Polygons: p.gpkg (42)", "cpu, 3.2 s, 1.23 MPix/s", "A hint."]
