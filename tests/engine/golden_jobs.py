"""Every job on small inputs, asked as any front asks: by its name and JSON values.

A case is a function ``case(bench)`` that runs one job, mostly several times; what it leaves in ``bench.out`` and what
it was answered are what ``golden`` describes. Nothing of CLIPPan is used here but the names of jobs and parameters.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from conftest import UTM, truth, write_raster
from osgeo import gdal, ogr, osr
from PIL import Image
from small_clip import make

from clippan.core.context import Context
from clippan.core.json import from_json, to_json
from clippan.handlers import run
from clippan.jobs import JOBS

COLOURS = {"RedSoil": (200, 60, 40), "green_field": (60, 180, 60), "open-water": (30, 60, 190)}
WORDS = "bare red soil; green fields, meadow; water"
TRAINED = {"threads": 1, "device": "cpu", "seed": 3}

Case = Callable[["Bench"], None]
CASES: dict[str, tuple[str, Case]] = {}  # by its name: the job, and what asks for it


def case(job: str, name: str = "") -> Callable[[Case], Case]:
    """Registers a case of a job; its name is the job's with what is particular about it."""

    def register(function: Case) -> Case:
        CASES[f"{job} {name}".strip()] = (job, function)
        return function

    return register


class Bench:
    """A folder to work in: inputs are made when they are first asked for; outputs lie in a folder a case.

    Attributes:
        out: the folder of the case.
        answers: results of the case's jobs, as JSON.
        words: what these jobs told on their way: messages of the progress, and lines of the log.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job, self.out, self.answers, self.words = "", root, [], []
        (root / "in").mkdir()
        os.environ["CLIPPAN_CACHE"] = str(root / "cache")
        os.environ["CLIPPAN_OFFLINE"] = str(root / "offline")

    def do(self, name: str) -> None:
        """Runs a case anew, from a known state of all generators of chance."""
        job, function = CASES[name]
        self.out, self.answers, self.words = self.root / "out" / name.replace(" ", "-"), [], []
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.job = job
        torch.set_num_threads(1)
        function(self)

    def ask(self, job: str, **values: Any) -> Any:
        """Runs a job, and gives its result as JSON."""
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        context = Context(lambda _, message: self.words.append(message), self.words.append)
        return to_json(run(from_json(JOBS[job], values), context))

    def __call__(self, **values: Any) -> Any:
        """Runs the case's job, and keeps its answer."""
        self.answers.append(self.ask(self.job, **values))
        return self.answers[-1]

    def to(self, name: str) -> str:
        """The path of an output."""
        return str(self.out / name)

    # Inputs

    def input(self, name: str) -> Path:
        return self.root / "in" / name

    @functools.cached_property
    def pair(self) -> dict[str, Any]:
        """PAN of 192 pixels and MS of four bands, ratio 4, with a corner without values."""
        high = truth(192, 4)
        low = high.reshape(4, 48, 4, 48, 4).mean((2, 4)).astype("uint16")
        low[:, :6, :9] = 0
        pan = write_raster(self.input("pan.tif"), (0.3 * high[0] + 0.7 * high[1:].mean(0)).astype("uint16"), 1.0)
        return {"pan": pan, "ms": [write_raster(self.input("ms.tif"), low, 4.0, nodata=0)]}

    @functools.cached_property
    def whole(self) -> dict[str, Any]:
        """A pair of 256 pixels that is valid everywhere, and PAN sees two of its bands."""
        high = truth(256, 4, 9)
        low = high.reshape(4, 64, 4, 64, 4).mean((2, 4)).astype("uint16")
        pan = write_raster(self.input("whole_pan.tif"), (0.2 * high[0] + 0.8 * high[1]).astype("uint16"), 1.0)
        return {"pan": pan, "ms": [write_raster(self.input("whole_ms.tif"), low, 4.0)]}

    @functools.cached_property
    def shifted(self) -> dict[str, Any]:
        """A pair of more than one tile, ratio 2, three bands of bytes, with MS two pixels off."""
        high = truth(320, 3, 4) / 8
        low = np.roll(high, (2, -2), (1, 2)).reshape(3, 160, 2, 160, 2).mean((2, 4))
        pan = write_raster(self.input("pan8.tif"), high.mean(0).astype("uint8"), 0.5)
        return {"pan": pan, "ms": [write_raster(self.input("ms8.tif"), low.astype("uint8"), 1.0)]}

    @functools.cached_property
    def bands(self) -> dict[str, Any]:
        """A pair of floats with NaN, MS as one file a band on a grid that is no multiple of PAN's."""
        high = truth(150, 3, 7)
        pan = high.mean(0).astype("float32") / 1000
        pan[100:110, 20:40] = np.nan
        low = high.reshape(3, 50, 3, 50, 3).mean((2, 4)).astype("float32") / 1000
        files = [
            write_raster(self.input(f"b{number}.tif"), band, 3.0, (500001.3, 4999998.1))
            for number, band in enumerate(low)
        ]
        return {"pan": write_raster(self.input("panf.tif"), pan, 1.0), "ms": files}

    @functools.cached_property
    def fields(self) -> tuple[str, np.ndarray]:
        """A raster of 96 × 128 pixels of 10 m in three colours, and its truth, 1 to 3 in the order of COLOURS."""
        rows, columns = np.mgrid[:96, :128]
        classes = 1 + ((rows // 40 + (columns + rows // 6) // 36) % 3)
        noise = np.random.default_rng(0).normal(0, 14, (3, 96, 128))
        picture = np.array(list(COLOURS.values()))[classes - 1].transpose(2, 0, 1) + noise
        path = write_raster(self.input("fields_20210630.tif"), np.clip(picture, 1, 255).astype("uint8"), 10.0)
        return path, classes

    @functools.cached_property
    def reflectance(self) -> str:
        """The same fields as reflectance of four bands, blue first, with a strip of nodata."""
        picture = gdal.Open(self.fields[0]).ReadAsArray().astype("float64")
        values = np.stack([*picture[::-1], 255 - picture.mean(0)]) * 9
        values[:, :, :10] = 0
        path = write_raster(self.input("reflectance.tif"), values.astype("uint16"), 10.0, nodata=0)
        dataset = gdal.Open(path, gdal.GA_Update)
        for number, name in enumerate(("blue", "green", "red", "nir"), 1):
            dataset.GetRasterBand(number).SetDescription(name)
        return path

    @functools.cached_property
    def radar(self) -> str:
        """Two bands of another sensor over the same fields, on pixels of 20 m."""
        picture = gdal.Open(self.fields[0]).ReadAsArray().astype("float64")
        mixed = np.einsum("sb,bhw->shw", [[0.05, -0.03, 0.02], [-0.02, 0.06, 0.01]], picture) - 15
        return write_raster(
            self.input("radar.tif"), mixed.reshape(2, 48, 2, 64, 2).mean((2, 4)).astype("float32"), 20.0
        )

    @functools.cached_property
    def small(self) -> list[str]:
        """The upper left corner of the fields and of what the other sensor sees there."""
        paths = [str(self.input(f"small_{number}.tif")) for number in range(2)]
        for source, path, scale in zip((self.fields[0], self.radar), paths, (2, 1)):
            gdal.Translate(path, source, srcWin=[0, 0, 24 * scale, 24 * scale])
        return paths

    @functools.cached_property
    def places(self) -> str:
        """Polygons and points over the fields, with their class."""
        source = ogr.GetDriverByName("GPKG").CreateDataSource(str(self.input("places.gpkg")))
        reference = osr.SpatialReference()
        reference.ImportFromEPSG(UTM)
        layer = source.CreateLayer("samples", reference, ogr.wkbPolygon)
        layer.CreateField(ogr.FieldDefn("class", ogr.OFTString))
        classes, chance = self.fields[1], np.random.default_rng(2)
        for value, name in enumerate(COLOURS, 1):
            spots = np.argwhere(classes[8:80:12, 16:120:12] == value) * 12 + (8, 16)
            for row, column in chance.permutation(spots)[:6]:
                x, y = 500000 + 10.0 * column, 5000000 - 10.0 * row
                ring = ", ".join(f"{x + dx} {y - dy}" for dx, dy in ((0, 0), (50, 0), (50, 50), (0, 50), (0, 0)))
                feature = ogr.Feature(layer.GetLayerDefn())
                feature["class"] = name
                feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POLYGON (({ring}))"))
                layer.CreateFeature(feature)
        return str(self.input("places.gpkg"))

    @functools.cached_property
    def table(self) -> str:
        """A prompt table that calls the classes as the places do."""
        classes = [{"name": name, "synonyms": [phrase]} for name, phrase in zip(COLOURS, ("soil", "meadow", "lake"))]
        path = self.input("table.json")
        path.write_text(json.dumps({"classes": classes}), encoding="utf-8")
        return str(path)

    @functools.cached_property
    def mask(self) -> str:
        return write_raster(self.input("mask.tif"), self.fields[1].astype("uint8"), 10.0)

    @functools.cached_property
    def convolutions(self) -> str:
        return make(self.input("convolutions"), "convolutions")

    @functools.cached_property
    def transformer(self) -> str:
        return make(self.input("transformer"), "transformer")

    def pictures(self, name: str, colours: dict[str, tuple[int, int, int]], count: int = 8) -> str:
        """A folder of pictures for each class."""
        root = self.input(name)
        for number, (kind, colour) in enumerate(colours.items()):
            (root / kind).mkdir(parents=True)
            for seed in range(count):
                noise = np.random.default_rng([number, seed]).normal(0, 25, (48, 48, 3))
                Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype("uint8")).save(
                    root / kind / f"{seed}.png"
                )
        return str(root)

    @functools.cached_property
    def new(self) -> str:
        return self.pictures("new", COLOURS)

    @functools.cached_property
    def old(self) -> str:
        return self.pictures("old", {"snow": (240, 240, 250), "asphalt": (90, 90, 90)})

    @functools.cached_property
    def index(self) -> str:
        """An index of the fields."""
        name = str(self.input("index.gpkg"))
        self.ask("index", rasters=[self.fields[0]], output=name, tile=[32], threads=1, device="cpu")
        return name


# Fusion


def _method(name: str) -> None:
    @case("pansharpen", name)
    def _(bench: Bench) -> None:
        bench(**bench.pair, output=bench.to("sharp.tif"), method=name, threads=1, device="cpu")


for _name in ("clippan", "mtf-glp-hpm-r", "mtf-glp-hpm", "mtf-glp-cbd", "bt-h", "bdsd", "gsa", "brovey", "cubic"):
    _method(_name)


@case("pansharpen", "as COG")
def _(bench: Bench) -> None:
    cog = {"format": "cog", "compression": "zstd", "sensor": "quickbird", "bands": [3, 2], "threads": 1}
    bench(**bench.pair, output=bench.to("cog.tif"), **cog, device="cpu")
    plain = {"compression": "none", "overviews": False, "method": "gsa", "threads": 1}
    bench(**bench.pair, output=bench.to("plain.tif"), **plain, device="cpu")


@case("pansharpen", "not in register")
def _(bench: Bench) -> None:
    for mode in ("auto", "global", "off"):
        options = {"registration": mode, "tile_size": 256, "threads": 1, "device": "cpu"}
        bench(**bench.shifted, output=bench.to(f"{mode}.tif"), method="mtf-glp-hpm-r", **options)
    bench(**bench.shifted, output=bench.to("network.tif"), **{**options, "registration": "auto"})


@case("pansharpen", "floats in files")
def _(bench: Bench) -> None:
    for method in ("clippan", "bt-h"):
        bench(**bench.bands, output=bench.to(f"{method}.tif"), method=method, threads=1, device="cpu")


@case("sharpen")
def _(bench: Bench) -> None:
    fine = write_raster(bench.input("fine.tif"), truth(192, 3, 5).astype("uint16"), 1.0)
    for radiometry in ("sensor", "area"):
        options = {"output": bench.to(f"{radiometry}.tif"), "radiometry": radiometry, "threads": 1, "device": "cpu"}
        bench(coarse=bench.pair["ms"], fine=[fine], **options)


@case("assess")
def _(bench: Bench) -> None:
    pair = bench.pair
    for method in ("brovey", "cubic"):
        fused = str(bench.input(f"{method}.tif"))
        bench.ask("pansharpen", **pair, output=fused, method=method, threads=1, device="cpu")
        bench(fused=fused, **pair, device="cpu")
    reference = write_raster(bench.input("reference.tif"), truth(192, 4).astype("uint16"), 1.0)
    bench(fused=fused, **pair, reference=reference, sensor="ikonos", report=bench.to("report.html"), device="cpu")


@case("adapt")
def _(bench: Bench) -> None:
    options = {**TRAINED, "sensor": "generic", "steps": 6, "seconds": 100_000.0}
    bench(**bench.whole, output=bench.to("own.safetensors"), clip="", **options)


RECIPE = """
network: detail
options: {width: 8, head: 8, depth: 1}
pairs: [{folder: pan}]
steps: 6
warmup: 2
batch: 2
size: 64
scene_batch: 1
scene_size: 64
truth: {supervised: 1}
scene: {khan: 1, detail: 0.5}
"""


@case("train fusion")
def _(bench: Bench) -> None:
    data = bench.input("data")
    for seed, name in enumerate(("quickbird__a", "landsat__b")):
        folder = data / "pan" / name
        folder.mkdir(parents=True)
        high = truth(128, 4, seed)
        write_raster(folder / "pan.tif", high.mean(axis=0).astype("uint16"), 1.0)
        low = high.reshape(4, 32, 4, 32, 4).mean((2, 4))
        write_raster(folder / "ms.tif", low.astype("uint16"), 4.0)
    bench.input("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    bench(data=str(data), output=bench.to("run"), recipe=str(bench.input("recipe.yaml")), device="cpu")


# Search


@case("index")
def _(bench: Bench) -> None:
    options = {"threads": 1, "device": "cpu"}
    name = bench.to("index.gpkg")
    bench(rasters=[bench.fields[0]], output=name, tile=[32], **options)
    bench(rasters=[bench.fields[0], bench.reflectance], output=name, tile=[32], **options)  # what is there is kept
    metres = {"tile_metres": [320.0, 640.0], "overlap": 0.0, "extent": [500100.0, 4999200.0, 500900.0, 4999900.0]}
    bench(rasters=[bench.reflectance], output=bench.to("metres.gpkg"), **metres, bands=[4, 3, 2], **options)


@case("search")
def _(bench: Bench) -> None:
    files = {"output": bench.to("hits.gpkg"), "heatmap": bench.to("heat.tif")}
    bench(index=bench.index, text=["water", "a green field"], without=["bare soil"], top=6, device="cpu", **files)
    bench(index=bench.index, text=["water"], top=50, overlapping=True, least=0.2, device="cpu")
    bench(index=bench.index, image=[bench.reflectance], top=3, device="cpu")
    degrees = {"at": [3.005, 45.1487], "extent": [2.99, 45.14, 3.01, 45.155], "crs": "EPSG:4326"}
    bench(index=bench.index, top=3, **degrees, device="cpu", since="2021", until="2021-12")
    bench(index=bench.index, like=[1, 2], unlike=[5], top=4, device="cpu")


@case("about")
def _(bench: Bench) -> None:
    bench(index=bench.index)


@case("thumbnails")
def _(bench: Bench) -> None:
    bench(index=bench.index, tiles=[1, 3], folder=str(bench.out), pixels=48)


# Maps by text


@case("segment")
def _(bench: Bench) -> None:
    files = {"confidence": "sure.tif", "probabilities": "shares.tif", "polygons": "outlines.gpkg", "areas": "areas.csv"}
    named = {what: bench.to(name) for what, name in files.items()}
    options = {"threads": 1, "device": "cpu"}
    bench(raster=bench.fields[0], classes=WORDS, output=bench.to("map.tif"), **named, min_area=20, **options)
    part = {"extent": [500200.0, 4999300.0, 501100.0, 4999900.0], "background": True, "refinement": "none"}
    bench(
        raster=bench.reflectance, classes=bench.table, output=bench.to("part_map.tif"), **part, window=[48], **options
    )


@case("segment", "with a transformer")
def _(bench: Bench) -> None:
    options = {"model": bench.transformer, "window": [32, 64], "flips": True, "threads": 1, "device": "cpu"}
    files = {"polygons": bench.to("outlines.geojson"), "simplify": 0.0, "confidence": bench.to("sure.tif")}
    bench(raster=bench.fields[0], classes=WORDS, output=bench.to("map.tif"), bias=-0.2, **files, **options)


@case("calibrate")
def _(bench: Bench) -> None:
    files = {"output": bench.to("table.json"), "report": bench.to("report.html")}
    samples = {"rasters": [bench.fields[0]], "samples": [bench.places], "classes": bench.table}
    bench(**samples, **files, threads=1, device="cpu")
    masks = {"rasters": [bench.fields[0]], "samples": [bench.mask], "classes": WORDS, "model": bench.convolutions}
    bench(**masks, output=bench.to("other.json"), threads=1, device="cpu")


# Few samples


def _few(bench: Bench, method: str, rasters: int = 1, **options: Any) -> None:
    asked = {"rasters": [bench.fields[0], bench.radar][:rasters], "samples": bench.places, "field": "class"}
    asked |= {"output": bench.to(f"{method}_map.tif"), "repeats": 1, "method": method}
    bench(**asked, **TRAINED, **options)


@case("classify")
def _(bench: Bench) -> None:
    files = {"confidence": "sure.tif", "areas": "areas.csv", "report": "report.html"}
    _few(bench, "svm-mean", 2, **{what: bench.to(name) for what, name in files.items()})
    for method in ("svm", "rf"):
        _few(bench, method)


@case("classify", "by words")
def _(bench: Bench) -> None:
    words = "RedSoil: red soil; green_field: meadow; open-water: lake"
    for method in ("tip", "tip-f", "linear"):
        _few(bench, method, descriptions=words, steps=4)


@case("classify", "diffclip")
def _(bench: Bench) -> None:
    asked = {"rasters": bench.small, "samples": bench.places, "field": "class", "method": "diffclip", "repeats": 0}
    bench(**asked, output=bench.to("map.tif"), steps=3, save_encoder=bench.to("scene.safetensors"), **TRAINED)


@case("pretrain scene")
def _(bench: Bench) -> None:
    bench(rasters=[bench.fields[0], bench.radar], output=bench.to("scene.safetensors"), steps=4, grid=2, **TRAINED)


# CLIP


@case("regions")
def _(bench: Bench) -> None:
    legend = "1=bare soil; 2=field; 3=water"
    raster, mask = bench.fields[0], bench.mask
    bench(rasters=[raster], labels=[mask], output=bench.to("mask"), legend=legend, size=64, least=8)
    options = {"size": 48, "overlap": 0.0, "least": 4, "fill": 0.1, "format": "jpeg"}
    bench(rasters=[bench.reflectance], labels=[bench.places], output=bench.to("places"), **options)


@case("train clip")
def _(bench: Bench) -> None:
    folder = bench.input("boxed")
    raster, mask = bench.fields[0], bench.mask
    bench.ask(
        "regions", rasters=[raster], labels=[mask], output=str(folder), legend="1=soil; 2=field; 3=water", size=64
    )
    options = {"steps": 2, "batch": 4, "least": 8, "rate": 1e-3, **TRAINED}
    bench(data=[bench.new, str(folder)], output=bench.to("run"), model=bench.convolutions, **options)
    other = {"teacher": "ema", "target": "cls", "stages": [1], "train_text": True}
    bench(data=[bench.new], output=bench.to("other"), model=bench.transformer, **other, **options)


@case("finetune clip")
def _(bench: Bench) -> None:
    options = {"steps": 4, "batch": 8, "rate": 5e-3, "model": bench.convolutions, **TRAINED}
    files = {"output": bench.to("run"), "report": bench.to("report.html")}
    bench(data=bench.new, control=bench.old, words="RedSoil=red soil", **files, **options)
    samples = {"samples": bench.places, "size": 8, "alpha": 0.5}
    bench(data=bench.fields[0], output=bench.to("places"), **samples, **options)


@case("align")
def _(bench: Bench) -> None:
    options = {"steps": 4, "batch": 8, "size": 16, "overlap": 0.5, "rate": 3e-3, "model": bench.convolutions}
    files = {"output": bench.to("run"), "report": bench.to("report.html")}
    pair = {"teacher_rasters": [bench.fields[0]], "sensor_rasters": [bench.radar]}
    bench(**pair, **files, words="water; forest; road", **options, **TRAINED)


# Models and the engine


@case("models")
def _(bench: Bench) -> None:
    bench()


@case("download")
def _(bench: Bench) -> None:
    bench(model="starter")


@case("remove")
def _(bench: Bench) -> None:
    bench(model="remoteclip-b32")


@case("doctor")
def _(bench: Bench) -> None:
    bench(device="cpu")
