"""What the command prints of a calibration and of a map."""

from __future__ import annotations

import dataclasses

from clippan import cli
from clippan.catalogue.band_names import BandChoice
from clippan.jobs import Accuracy, CalibrateResult, ClassArea, SegmentResult
from clippan.jobs.rendering import Rendering

PICTURE = Rendering("a & b.tif", BandChoice((3, 2, 1), "by the bands' names"), ((0.0, 1.0),) * 3)
RESULT = CalibrateResult(
    "folder/<out>.json",
    "r.html",
    ("wäter", "<b>roofs</b>", 'crops, "x"'),
    (1000, 500, 0),
    Accuracy(0.6, 0.4321, (0.5, 0.3642, None), ((700, 200, 0, 100), (250, 200, 50, 0), (0, 0, 0, 0))),
    Accuracy(0.8, 0.7654, (0.75, 0.7808, None), ((900, 100, 0, 0), (50, 300, 150, 0), (0, 0, 0, 0))),
    41.25,
    (0.125, -0.25, 0.0),
    ("Few <labels> of crops.",),
    12.3,
    (),
)


def test_command_prints_a_calibration():
    assert cli._text(RESULT).splitlines() == [
        "Class         Labelled pixels  IoU before  IoU after  Offset",
        "wäter                   1,000       0.500      0.750  +0.125",
        "<b>roofs</b>              500       0.364      0.781  -0.250",
        'crops, "x"                  0           –          –  +0.000',
        "mean                    1,500       0.432      0.765",
        "Accuracy: 60.0% before, 80.0% after",
        "folder/<out>.json: logit scale 41.25, 12.3 s",
        "Report: r.html",
        "Few <labels> of crops.",
    ]
    assert "Report" not in cli._text(dataclasses.replace(RESULT, report=""))


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
    assert cli._text(result).splitlines() == [
        "Value  Class          Share   Hectares  Mean confidence",
        "    1  water          30.0%  12,345.68             0.81",
        "    2  roofs, houses   0.0%          –                –",
        "    0  unclassified   70.0%       1.00             0.25",
        "map.tif: 100 × 10 pixels, windows of 512, 256 pixels, model starter",
        "Confidence: sure.tif",
        "Polygons: p.gpkg",
        "cpu, 3.2 s, 1.23 megapixels a second",
        "A hint.",
    ]
