"""Every kind of raster through every job that reads rasters: right as from a plain file, or refused in one sentence.

A kind writes one raster in an unusual way; a job is tried with it in place of the plain one. A new job that reads
rasters has to be added to ``JOBS_WITH_RASTERS`` (the first test sees to it), and gets all kinds for free.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
from conftest import read_raster, truth, write_raster
from osgeo import gdal, ogr, osr

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from safetensors.torch import load_file  # noqa: E402
from small_clip import make  # noqa: E402

from clippan.core.errors import ClippanError  # noqa: E402
from clippan.handlers import calibrate, run  # noqa: E402
from clippan.jobs import JOBS, Context, Device, Method, Registration, from_json, to_json  # noqa: E402

SIZE, RATIO, BANDS = 96, 2, 4
EDGE = (500000.0, 5000000.0)
HOLE = (slice(None), slice(20, 31), slice(37, 48))  # off the lattices on which jobs look for gaps
LOWEST = np.finfo(np.float32).min
CLASSES = "water; forest"
SLOW = {"calibrate", "finetune clip", "align"}
NOT_RASTERS = {"search", "about", "thumbnails", "models", "download", "remove", "train fusion", "train clip", "doctor"}


def picture() -> np.ndarray:
    """The multispectral raster, uint16 (bands, size, size)."""
    fine = truth(SIZE * RATIO, BANDS)
    return fine.reshape(BANDS, SIZE, RATIO, SIZE, RATIO).mean((2, 4)).astype(np.uint16)


@dataclass(frozen=True)
class Kind:
    """A way to write the multispectral raster.

    Attributes:
        write: puts it into a folder, and returns what to open.
        like: writes the plain raster whose results are the right ones; None for the plain uint16 one.
        refused: what the sentence says that refuses it, in jobs that cannot do with it; empty if none may refuse.
        told: what the log or the hints have to say where it is taken.
        near: relative and absolute difference that is no difference.
    """

    write: Callable[[Path], str]
    like: Optional[Callable[[Path], str]] = None
    refused: str = ""
    told: str = ""
    near: float = 2e-3


def plain(folder: Path) -> str:
    return write_raster(folder / "ms.tif", picture(), float(RATIO), EDGE)


def with_crs(code: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        path = write_raster(folder / "ms.tif", picture(), float(RATIO), EDGE)
        reference = osr.SpatialReference()
        reference.SetFromUserInput(code)
        dataset = gdal.Open(path, gdal.GA_Update)
        dataset.SetProjection(reference.ExportToWkt())
        return path

    return write


def near_infrared_as_alpha(folder: Path) -> str:
    """As NAIP comes: water is 0 in it."""
    values = (picture() / 8).astype(np.uint8)
    values[3, 40:60, 40:60] = 0
    return write_raster(folder / "ms.tif", values, float(RATIO), EDGE, options=["PHOTOMETRIC=RGB", "ALPHA=YES"])


def near_infrared(folder: Path) -> str:
    values = (picture() / 8).astype(np.uint8)
    values[3, 40:60, 40:60] = 0
    path = write_raster(folder / "ms.tif", values, float(RATIO), EDGE, options=["PHOTOMETRIC=RGB", "ALPHA=NO"])
    return path


def masked(folder: Path, mask: int) -> str:
    values = (picture() / 8).astype(np.uint8)
    alpha = np.full((1, SIZE, SIZE), mask, np.uint8)
    alpha[HOLE] = 0
    options = ["PHOTOMETRIC=RGB", "ALPHA=YES"]
    return write_raster(folder / "ms.tif", np.concatenate([values[:3], alpha]), float(RATIO), EDGE, options=options)


def reflectances(hole: float) -> np.ndarray:
    values = (picture() / 4000).astype(np.float32)
    values[HOLE] = hole
    return values


def gaps(hole: float, declared: Optional[float]) -> Callable[[Path], str]:
    """Floating point with gaps; in ENVI's format, whose header keeps the declared value as it is written."""

    def write(folder: Path) -> str:
        path = write_raster(folder / "gaps.tif", reflectances(hole), float(RATIO), EDGE)
        copy = gdal.GetDriverByName("ENVI").CreateCopy(str(folder / "ms.dat"), gdal.Open(path))
        for number in range(BANDS) if declared is not None else ():
            copy.GetRasterBand(number + 1).SetNoDataValue(declared)
        del copy
        Path(path).unlink()
        return str(folder / "ms.dat")

    return write


def scaled(folder: Path) -> str:
    path = plain(folder)
    dataset = gdal.Open(path, gdal.GA_Update)
    for number in range(BANDS):
        dataset.GetRasterBand(number + 1).SetScale(1e-4)  # and no offset
    return path


def virtual(folder: Path) -> str:
    gdal.Translate(str(folder / "ms.vrt"), plain(folder), format="VRT")
    return str(folder / "ms.vrt")


def archived(folder: Path) -> str:
    with zipfile.ZipFile(folder / "ms.zip", "w") as archive:
        archive.write(plain(folder), "inside/ms.tif")
    return str(folder / "ms.zip")


def half(folder: Path, sparse: bool) -> str:
    options = ["TILED=YES", "BLOCKXSIZE=16", "BLOCKYSIZE=16", f"SPARSE_OK={'TRUE' if sparse else 'FALSE'}"]
    path = str(folder / "ms.tif")
    dataset = gdal.GetDriverByName("GTiff").Create(path, SIZE, SIZE, BANDS, gdal.GDT_UInt16, options)
    dataset.SetGeoTransform((EDGE[0], RATIO, 0, EDGE[1], 0, -RATIO))
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32631)
    dataset.SetProjection(reference.ExportToWkt())
    for number in range(BANDS):
        dataset.GetRasterBand(number + 1).SetNoDataValue(0)
    dataset.WriteArray(picture()[:, :, :80], 0, 0)
    if not sparse:
        dataset.WriteArray(np.zeros((BANDS, SIZE, SIZE - 80), np.uint16), 80, 0)
    return path


def dead_band(folder: Path) -> str:
    values = picture()
    values[2] = 0
    path = write_raster(folder / "ms.tif", values, float(RATIO), EDGE, nodata=0)
    dataset = gdal.Open(path, gdal.GA_Update)
    dataset.GetRasterBand(3).SetDescription("the dead one")
    return path


def swath(folder: Path) -> str:
    """Placed by geolocation arrays alone."""
    path = write_raster(folder / "pixels.tif", picture(), float(RATIO), None, None)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for name, values in (("x", columns * 0.01 + rows * 0.001), ("y", 50 - rows * 0.01)):
        write_raster(folder / f"{name}.tif", values, origin=None, epsg=None)
    dataset = gdal.Translate(str(folder / "ms.vrt"), path, format="VRT")
    axes = {f"{axis}_DATASET": str(folder / f"{axis.lower()}.tif") for axis in "XY"}
    steps = {"PIXEL_OFFSET": "0", "LINE_OFFSET": "0", "PIXEL_STEP": "1", "LINE_STEP": "1"}
    dataset.SetMetadata({"SRS": "EPSG:4326", "X_BAND": "1", "Y_BAND": "1", **axes, **steps}, "GEOLOCATION")
    del dataset
    return str(folder / "ms.vrt")


KINDS = {
    "metres above a geoid": Kind(with_crs("EPSG:32631+5773")),
    "feet": Kind(with_crs("EPSG:32631+6360")),
    "near infrared tagged as alpha": Kind(
        near_infrared_as_alpha,
        near_infrared,
        told="tagged as alpha",
        near=0.03,  # its windows are resampled by themselves
    ),
    "a mask of 255 and 0": Kind(lambda folder: masked(folder, 255), lambda folder: masked(folder, 255)),
    "-FLT_MAX as numpy prints it": Kind(gaps(LOWEST, -3.4028235e38), gaps(np.nan, None)),
    "-FLT_MAX with nine digits": Kind(gaps(LOWEST, -3.40282347e38), gaps(np.nan, None)),
    "-FLT_MAX that nobody declared": Kind(gaps(LOWEST, None), gaps(np.nan, None)),
    "infinity": Kind(gaps(np.inf, None), gaps(np.nan, None)),
    "infinity that is declared": Kind(gaps(-np.inf, -np.inf), gaps(np.nan, None)),
    "a scale without an offset": Kind(scaled),
    "a virtual raster": Kind(virtual),
    "a raster in an archive": Kind(archived),
    "half of it never written": Kind(lambda folder: half(folder, True), lambda folder: half(folder, False)),
    "a band without data": Kind(dead_band, dead_band, refused="the dead one.*(choose|leave)", told="the dead one"),
    "a swath": Kind(swath, refused=r"geolocation arrays.*gdalwarp -geoloc"),
}


class Place:
    """A folder with what jobs need beside the raster.

    Attributes:
        pan, samples: paths.
        model: a tiny CLIP.
        files: what is there before a job runs.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.pan = write_raster(
            folder / "pan.tif", truth(SIZE * RATIO, BANDS).mean(axis=0).astype(np.uint16), 1.0, EDGE
        )
        self.samples = str(folder / "samples.gpkg")
        layers = ogr.GetDriverByName("GPKG").CreateDataSource(self.samples)
        reference = osr.SpatialReference()
        reference.ImportFromEPSG(32631)
        layer = layers.CreateLayer("samples", reference, ogr.wkbPolygon)
        layer.CreateField(ogr.FieldDefn("class", ogr.OFTString))
        for number, (row, column) in enumerate((y, x) for y in (2, 26, 50) for x in (2, 26, 50, 74)):
            feature = ogr.Feature(layer.GetLayerDefn())
            feature["class"] = CLASSES.split("; ")[number % 2]
            x, y = EDGE[0] + column * RATIO, EDGE[1] - row * RATIO
            edge = 18 * RATIO
            ring = f"{x} {y}, {x + edge} {y}, {x + edge} {y - edge}, {x} {y - edge}, {x} {y}"
            feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POLYGON(({ring}))"))
            layer.CreateFeature(feature)
        del feature, layer, layers

    def at(self, name: str) -> str:
        return str(self.folder / name)


def weights(path: str) -> np.ndarray:
    return np.concatenate([tensor.float().flatten().numpy() for _, tensor in sorted(load_file(path).items())])


def vectors(path: str) -> np.ndarray:
    return np.fromfile(f"{path}.vectors", np.float16).astype(np.float64)


# For each job the parameters that try a raster, and the numbers that say whether its result is right.
Trial = tuple[Callable[[Place, str], dict[str, Any]], Callable[[Any], Any]]
JOBS_WITH_RASTERS: dict[str, Trial] = {
    "pansharpen": (
        lambda place, ms: {"pan": place.pan, "ms": [ms], "output": place.at("o.tif"), "method": Method.BT_H.value},
        lambda result: read_raster(result.output),
    ),
    "sharpen": (
        lambda place, ms: {"coarse": [ms], "fine": [place.pan], "output": place.at("o.tif"), "register": False},
        lambda result: read_raster(result.output),
    ),
    "assess": (
        lambda place, ms: {"fused": fused(place, ms), "pan": place.pan, "ms": [ms]},
        lambda result: [value for _, value in sorted(result.full.items())],
    ),
    "adapt": (
        lambda place, ms: {
            "pan": place.pan,
            "ms": [ms],
            "output": place.at("o.safetensors"),
            "clip": "",
            "steps": 1,
            "registration": Registration.OFF.value,
        },
        lambda result: [value for _, value in sorted(result.before.items())],
    ),
    "index": (
        lambda place, ms: {"rasters": [ms], "output": place.at("o.gpkg"), "model": place.model, "tile": [32]},
        lambda result: vectors(result.output),
    ),
    "segment": (
        lambda place, ms: {
            "raster": ms,
            "classes": CLASSES,
            "output": place.at("o.tif"),
            "confidence": place.at("c.tif"),
            "model": place.model,
            "window": [32],
        },
        lambda result: read_raster(result.confidence),
    ),
    "calibrate": (
        lambda place, ms: {
            "rasters": [ms],
            "samples": [place.samples],
            "classes": CLASSES,
            "output": place.at("o.json"),
            "model": place.model,
            "window": [32],
        },
        lambda result: [*result.offsets, result.logit_scale, result.after.accuracy],
    ),
    "classify": (
        lambda place, ms: {
            "rasters": [ms],
            "samples": place.samples,
            "field": "class",
            "output": place.at("o.tif"),
            "confidence": place.at("c.tif"),
            "method": "svm-mean",
            "repeats": 1,
            "model": place.model,
        },
        lambda result: read_raster(result.confidence),
    ),
    "pretrain scene": (
        lambda place, ms: {"rasters": [ms], "output": place.at("o.safetensors"), "steps": 2},
        lambda result: [result.loss],
    ),
    "finetune clip": (
        lambda place, ms: {
            "data": ms,
            "samples": place.samples,
            "field": "class",
            "output": place.at("run"),
            "model": place.model,
            "size": 16,
            "steps": 1,
            "batch": 4,
            "alpha": 1.0,
        },
        lambda result: [result.loss],
    ),
    "align": (
        lambda place, ms: {
            "teacher_rasters": [ms],
            "sensor_rasters": [ms],
            "output": place.at("run"),
            "model": place.model,
            "size": 16,
            "steps": 1,
            "batch": 4,
        },
        lambda result: [*result.low, *result.high, result.cosine],
    ),
    "regions": (
        lambda place, ms: {
            "rasters": [ms],
            "labels": [place.samples],
            "output": place.at("run"),
            "size": 48,
            "least": 4,
        },
        lambda result: sorted(result.objects.items()),
    ),
}


def fused(place: Place, ms: str) -> str:
    """The raster by PAN's method that does least; from the same MS, as an assessment asks for its bands."""
    path = place.at("fused.tif")
    if not Path(path).exists():
        job("pansharpen", {"pan": place.pan, "ms": [ms], "output": path, "method": "cubic", "registration": "off"})
    return path


def job(name: str, values: dict[str, Any], log: Optional[list[str]] = None) -> Any:
    fields = JOBS[name].__dataclass_fields__
    common = {"threads": 1, "device": Device.CPU.value}
    request = from_json(JOBS[name], {**{key: value for key, value in common.items() if key in fields}, **values})
    try:
        return run(request, Context(log=log.append if log is not None else None))
    except ClippanError as error:
        figures = re.match(r"No better model .* \(HQNR ([\d.]+) before, .*; SAM ([\d.]+) and", str(error))
        if name == "adapt" and figures:  # it has read and measured the rasters, which is what counts here
            return SimpleNamespace(before={str(number): float(text) for number, text in enumerate(figures.groups())})
        raise


@pytest.fixture(autouse=True)
def _few_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a raster holds does not depend on how many fits are compared."""
    monkeypatch.setattr(calibrate, "_CANDIDATES", calibrate._CANDIDATES[:1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("models") / "small", "transformer")


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory, model: str) -> Callable[[str, Callable[[Path], str]], Any]:
    """What a job makes of a raster that is written in a plain way; each once."""
    known: dict[tuple[str, Any], Any] = {}

    def of(name: str, write: Callable[[Path], str]) -> Any:
        if (name, write) not in known:
            folder = tmp_path_factory.mktemp("plain")
            place = Place(folder, model)
            values, numbers = JOBS_WITH_RASTERS[name]
            known[name, write] = numbers(job(name, values(place, write(folder))))
        return known[name, write]

    return of


def test_every_job_that_reads_rasters_is_tried() -> None:
    assert set(JOBS_WITH_RASTERS) | NOT_RASTERS >= set(JOBS), "add the new job to JOBS_WITH_RASTERS"
    assert not set(JOBS_WITH_RASTERS) & NOT_RASTERS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in JOBS_WITH_RASTERS]
)
def test_a_kind_of_raster(name, kind, tmp_path, model, right) -> None:
    tried, (values, numbers) = KINDS[kind], JOBS_WITH_RASTERS[name]
    place = Place(tmp_path, model)
    path = tried.write(tmp_path)
    before = sorted(item.name for item in tmp_path.rglob("*"))
    log: list[str] = []
    refusal = ""
    try:
        result = job(name, values(place, path), log)
    except ClippanError as error:
        refusal = str(error)
    if refusal:
        assert tried.refused, f"{kind} is refused: {refusal}"
        assert re.search(tried.refused, refusal), refusal
        assert "\n" not in refusal
        assert sorted(item.name for item in tmp_path.rglob("*")) == before
        return
    said = "\n".join([*log, *getattr(result, "hints", ())])
    assert re.search(tried.told, said), f"nobody is told: {said}"
    found, expected = numbers(result), right(name, tried.like or plain)
    if isinstance(found, list) and found and isinstance(found[0], tuple):
        assert found == expected
    else:
        holes = np.asarray(found, float), np.asarray(expected, float)
        # Each declares its own nodata value.
        found, expected = (np.where(np.abs(values) < 1e30, values, np.nan) for values in holes)
        np.testing.assert_allclose(found, expected, rtol=tried.near, atol=tried.near)


def test_results_keep_a_scale_without_an_offset(tmp_path, model) -> None:
    place = Place(tmp_path, model)
    result = job("pansharpen", JOBS_WITH_RASTERS["pansharpen"][0](place, scaled(tmp_path)))
    dataset = gdal.Open(result.output)
    assert [dataset.GetRasterBand(number + 1).GetScale() for number in range(BANDS)] == [1e-4] * BANDS


def test_requests_of_the_table_are_plain_values(tmp_path, model) -> None:
    place = Place(tmp_path, model)
    path = plain(tmp_path)
    for name, (values, _) in JOBS_WITH_RASTERS.items():
        request = from_json(JOBS[name], values(place, path))
        assert from_json(JOBS[name], to_json(request)) == request
