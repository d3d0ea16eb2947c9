"""The values of each kind of report, whose every name is the one that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from clippan.catalogue.prompts import ClassPrompt, PromptTable
from clippan.core.messages import Message
from clippan.jobs import (
    Accuracy,
    AlignSensorRequest,
    AlignSensorResult,
    AssessRequest,
    AssessResult,
    CalibrateRequest,
    CalibrateResult,
    ClassArea,
    ClassifyRequest,
    ClassifyResult,
    FinetuneClipRequest,
    FinetuneClipResult,
)
from clippan.jobs.align import Recall
from clippan.jobs.classify import Classifier, MapAccuracy, Score
from clippan.jobs.finetune_clip import AlphaPoint, ClassGain
from clippan.labels.legend import colours
from clippan.labels.samples import Samples
from clippan.report.map_preview import MapPreview
from clippan.report.pictures import class_overlay_png, stretched_png

FULL = {"D_lambda_K": 0.0212, "D_s": 0.034, "HQNR": 0.9455, "D_lambda": 0.01, "QNR": 0.95, "HP_correlation": 0.8123}
REFERENCE = {
    **{"Q2n": 0.912, "SAM": 2.3456, "ERGAS": 1.987, "SCC": float("nan"), "PSNR": float("inf"), "SSIM": 0.9333},
}


def assessment(name: str) -> dict[str, Any]:
    """An assessment with a reference."""
    request = AssessRequest(
        fused=f"/data/{name}.tif",
        pan=f"/data/{name} pan.tif",
        ms=(f"{name} 1.tif", f"{name} 2.tif"),
        reference=f"{name} truth.tif",
        bands=(4, 2, 1),
    )
    shift = (-1.25, 0.5)
    hints = (Message("The values of {name} are odd.", name=name),)
    result = AssessResult(FULL, REFERENCE, "wv3", 1234567, "r.html", 12.34, shift, (shift, (0.0, 1.0)), hints)
    image, valid = np.random.default_rng(0).normal(100, 10, (3, 40, 50)).astype(np.float32), np.ones((40, 50), bool)
    pictures = {kind: stretched_png(image, valid) for kind in ("pan", "ms", "fused", "reference")}
    return {
        **{"request": request, "result": result, "sensor": f"Sensor {name}", "ratio": 4.0},
        "pictures": pictures,
    }


def table(name: str) -> PromptTable:
    """Three classes."""
    names = ((f"{name} a", "#0000ff"), (f"{name} b", "#ff8800"), (f"{name} c", "#00aa00"))
    return PromptTable(tuple(ClassPrompt(words, colour=colour) for words, colour in names))


def calibration(name: str) -> dict[str, Any]:
    """A calibration that helps."""
    rasters, samples = (f"{name} 1.tif", f"{name} 2.tif"), (f"{name} 1.gpkg", f"{name} 2.gpkg")
    request = CalibrateRequest(rasters=rasters, samples=samples, classes=name, output=f"{name}.json", model=name)
    result = CalibrateResult(
        f"folder/{name}.json",
        "r.html",
        table(name).names,
        (1000, 500, 0),
        Accuracy(0.6, 0.4321, (0.5, 0.3642, None), ((700, 200, 0, 100), (250, 200, 50, 0), (0, 0, 0, 0))),
        Accuracy(0.8, 0.7654, (0.75, 0.7808, None), ((900, 100, 0, 0), (50, 300, 150, 0), (0, 0, 0, 0))),
        41.25,
        (0.125, -0.25, 0.0),
        (f"Few labels of {name}.", "Another hint."),
        12.3,
        (),
    )
    values = np.zeros((30, 40), np.uint8)
    values[:10], values[10:20] = 1, 2
    shown = {"before": values, "after": values[::-1], "labels": np.where(values == 1, 1, 0)}
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    legend = colours(table(name))
    panel = {kind: class_overlay_png(image, classes, np.array(legend, np.float32)) for kind, classes in shown.items()}
    return {"request": request, "result": result, "colours": legend, "panels": [{"name": name, **panel}]}


def samples(name: str) -> Samples:
    """Six pixels of three classes."""
    places = np.array([10, 200, 300, 400, 500, 600])
    labels = np.array([0, 0, 1, 1, 2, 2])
    return Samples(table(name).names, places, places[::-1].copy(), labels, labels, "polygon", ())


def overview() -> MapPreview:
    """A map of 800 × 640 pixels."""
    small = MapPreview.of(800, 640)
    rows, columns = np.indices((640, 800))
    small.add(0, 0, ((rows + columns) // 200 % 4).astype(np.uint8), np.where(rows < 40, np.nan, columns / 800))
    small.picture[:] = 90
    return small


def classification(name: str) -> dict[str, Any]:
    """A map that the best of two classifiers made."""
    request = ClassifyRequest(
        rasters=(f"{name} 1.tif", f"{name} 2.tif"),
        samples=f"folder/{name}.gpkg",
        field=f"{name} field",
        output=f"folder/{name}.tif",
    )
    areas = tuple(
        ClassArea(value, f"{name} {letter}", "#123456", 1000 * value, 0.25 * value, hectares, 0.5)
        for value, letter, hectares in ((1, "a", 1234.5), (2, "b", 0.0), (3, "c", None))
    )
    confusion = ((60, 20, 0), (5, 75, 1), (0, 0, 0))
    result = ClassifyResult(
        *(f"folder/{name}.tif", 800, 640, "", "r.html", "", "", Classifier.SVM_MEAN),
        (
            Score(Classifier.SVM_MEAN, 0.91, 0.012, 0.9, 0.85, 1.25),
            Score(Classifier.LINEAR, 0.89, 0.02, 0.88, 0.81, 33.0),
        ),
        MapAccuracy(0.91, 0.012, 0.9, 0.85, (0.92, 0.9, None), confusion, "polygon", 5),
        *(areas, (2, 2, 2), (1, 2, 1), (f"Few samples of {name}.",), name, "cpu", 45.67, {}),
    )
    known, legend = samples(name), colours(table(name))
    return {
        **{"request": request, "result": result, "samples": known, "distance": 14, "colours": legend},
        "pictures": overview().pictures(known, legend),
    }


def finetuning(name: str) -> dict[str, Any]:
    """A fine-tuning with a control set."""
    request = FinetuneClipRequest(
        data=f"/data/{name}", output=f"{name} run", samples=f"/x/{name}.gpkg", control=f"{name} control"
    )
    curve = tuple(AlphaPoint(a / 10, 0.2 + 0.06 * a, 0.9 - 0.02 * a, 0.25 + 0.05 * a, 0.88) for a in range(11))
    gains = (
        ClassGain(f"{name} a", False, 12, 0.25, 0.75),
        ClassGain(f"{name} b", False, 0, None, None),
        ClassGain(f"{name} c", True, 7, 0.9, 0.8),
    )
    result = FinetuneClipResult(
        *(name, "r.html", f"models/{name}", 0.6, curve[0], curve[6], curve, gains, 321, 400, 0.1),
        *((f"A hint of {name}.",), "cpu", 98.7, None),
    )
    return {"request": request, "result": result}


def alignment(name: str) -> dict[str, Any]:
    """An alignment with words."""
    request = AlignSensorRequest(
        teacher_rasters=(f"{name} rgb.tif",), sensor_rasters=(f"{name} sar.tif",), output=f"{name} run"
    )
    result = AlignSensorResult(
        *(f"folder/{name}", "r.html", f"{name} teacher", (f"{name} VV", "VH"), (-25.0, -30.5), (0.0, 1.25)),
        *(285, 20, Recall(0.4, 0.7, 0.9), Recall(0.35, 0.65, 0.85), Recall(0.05, 0.2, 0.5), Recall(0.05, 0.25, 0.5)),
        *(0.8765, 0.6, 40, {"mse": 0.1}, (f"A hint of {name}.",), "cpu", 12.0, ()),
    )
    return {"request": request, "result": result}


EXAMPLES = {make.__name__: make for make in (assessment, calibration, classification, finetuning, alignment)}
