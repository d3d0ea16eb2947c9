"""Requests and results: JSON both ways, and one sentence for each value that cannot be meant."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from clippan.core.errors import Cancelled, ClippanError
from clippan.handlers import run
from clippan.jobs import (
    JOBS,
    AssessRequest,
    AssessResult,
    Check,
    Compression,
    Context,
    Device,
    DoctorRequest,
    DoctorResult,
    DownloadModelRequest,
    DownloadModelResult,
    Format,
    IndexRequest,
    ListModelsRequest,
    ListModelsResult,
    Method,
    ModelRow,
    PansharpenRequest,
    PansharpenResult,
    RemoveModelRequest,
    RemoveModelResult,
    Status,
    ThumbnailsRequest,
    TrainFusionRequest,
    from_json,
    to_json,
)

EXAMPLES = [
    PansharpenRequest(pan="pan.tif", ms=("a.tif", "b.tif"), output="out.tif"),
    PansharpenRequest(
        pan="pän 1.tif",
        ms=("ms.tif",),
        output="out.tif",
        method=Method.GSA,
        sensor="worldview3",
        bands=(3, 2, 1),
        nodata=-9999.0,
        tile_size=512,
        threads=4,
        device=Device.CPU,
        format=Format.COG,
        compression=Compression.ZSTD,
        overviews=False,
    ),
    AssessRequest(
        fused="fused.tif",
        pan="pan.tif",
        ms=("ms.tif",),
        reference="truth.tif",
        sensor="landsat",
        bands=(1,),
        nodata=0.0,
        report="r.html",
        device=Device.CUDA,
    ),
    DoctorRequest(device=Device.MPS),
    ListModelsRequest(),
    DownloadModelRequest(model="farslip2-b16", accept_licence=True),
    RemoveModelRequest(model="farslip2-b16"),
    PansharpenResult(
        "out.tif", 10, 20, 3, "uint16", None, "gsa", "generic", "cpu", (4.0, 4.0), 1.5, {"CLIPPAN_VERSION": "0"}
    ),
    AssessResult({"HQNR": 0.9}, {}, "generic", 100, None, 0.1),
    ListModelsResult(
        (ModelRow("a-b", "A", "Good.", "MIT", "https://x", 10, "cache", "/c/a.pt", "0" * 40, None),), "/c", 10
    ),
    DownloadModelResult("/c/a.pt", None, "f" * 64, 2.5),
    RemoveModelResult(10),
    DoctorResult(False, (Check("GDAL", Status.FAILED, "none", "install it"),), "cpu", "why", "text"),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda item: type(item).__name__)
def test_json_both_ways(example):
    text = json.dumps(to_json(example))
    assert from_json(type(example), json.loads(text)) == example


def test_defaults_need_not_be_written():
    request = from_json(PansharpenRequest, {"pan": "p", "ms": ["m"], "output": "o"})
    assert request == PansharpenRequest(pan="p", ms=("m",), output="o")


PAIR = {"pan": "p", "ms": ["m"], "output": "o"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({**PAIR, "sharp": 1}, "Unknown parameter sharp for PansharpenRequest; known are "),
        ({"pan": "p"}, "Missing parameter ms, output for PansharpenRequest."),
        ({**PAIR, "pan": 3}, "Parameter pan should be str, not 3."),
        ({**PAIR, "pan": None}, "Parameter pan should be str, not None."),
        ({**PAIR, "ms": "m.tif"}, "Parameter ms should be .*, not 'm.tif'."),
        ({**PAIR, "bands": ["1"]}, "Parameter bands should be int, not '1'."),
        ({**PAIR, "threads": True}, "Parameter threads should be int, not True."),
        ({**PAIR, "threads": 1.5}, "Parameter threads should be int, not 1.5."),
        ({**PAIR, "overviews": 1}, "Parameter overviews should be bool, not 1."),
        ({**PAIR, "nodata": "x"}, "Parameter nodata should be float, not 'x'."),
        ({**PAIR, "method": "magic"}, "Unknown method 'magic'; choose one of clippan, "),
        ([1, 2], "A PansharpenRequest is written as a JSON object"),
    ],
)
def test_what_json_cannot_say(values, sentence):
    with pytest.raises(ClippanError, match=sentence):
        from_json(PansharpenRequest, values)


def test_integers_are_numbers():
    assert from_json(PansharpenRequest, {**PAIR, "nodata": 0}).nodata == 0.0


@pytest.fixture
def files(tmp_path: Path) -> dict:
    for name in ("pan.tif", "ms.tif", "fused.tif"):
        (tmp_path / name).write_bytes(b"")
    return {"pan": str(tmp_path / "pan.tif"), "ms": (str(tmp_path / "ms.tif"),), "output": str(tmp_path / "out.tif")}


def test_good_requests_pass(files):
    PansharpenRequest(**files).validate()
    AssessRequest(fused=files["output"], pan=files["pan"], ms=files["ms"]).validate()
    DoctorRequest().validate()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pan": "  "}, "“Panchromatic raster” is missing; name a file or a GDAL data source."),
        ({"ms": ()}, "“Multispectral raster.s.” is missing; name a file or a GDAL data source."),
        ({"ms": ("",)}, "“Multispectral raster.s.” is missing"),
        ({"output": ""}, "“Pansharpened” is missing; name the file to write."),
        ({"output": "/no/such/folder/out.tif"}, "The output folder /no/such/folder does not exist; create it"),
        ({"bands": (0,)}, "Band numbers start at 1."),
        ({"bands": (1, 1)}, "A band is listed twice; list each band once."),
        ({"sensor": "sputnik"}, "Unknown sensor 'sputnik'; choose auto or one of generic, "),
        ({"tile_size": 100}, "“Tile size” is 100; it has to be 256 or more."),
        ({"threads": -1}, "“Threads” is -1; it has to be 0 or more."),
    ],
)
def test_values_that_cannot_be_meant(files, change, sentence):
    with pytest.raises(ClippanError, match=sentence):
        PansharpenRequest(**{**files, **change}).validate()


def test_output_must_not_be_an_input(files, tmp_path):
    sentence = "is one of the inputs; choose another name"
    for output in (files["pan"], files["ms"][0], str(tmp_path / "." / "pan.tif")):
        with pytest.raises(ClippanError, match=sentence):
            PansharpenRequest(**{**files, "output": output}).validate()
    link = tmp_path / "link.tif"
    link.symlink_to(files["pan"])
    with pytest.raises(ClippanError, match=sentence):
        PansharpenRequest(**{**files, "output": str(link)}).validate()
    with pytest.raises(ClippanError, match=sentence):
        AssessRequest(fused=files["output"], pan=files["pan"], ms=files["ms"], report=files["pan"]).validate()


def test_output_must_not_be_a_folder(files, tmp_path):
    with pytest.raises(ClippanError, match="is a folder; add a file name"):
        PansharpenRequest(**{**files, "output": str(tmp_path)}).validate()


def test_every_job_has_a_name_and_a_result():
    for name, request in JOBS.items():
        assert request.name == name
        assert request.result.__name__.endswith("Result")


def test_every_method_has_a_label():
    assert all(method.label for method in Method)


def test_run_checks_first(files):
    with pytest.raises(ClippanError, match="A band is listed twice"):
        run(PansharpenRequest(**files, bands=(2, 2)))


def test_context_reports_and_cancels():
    seen: list = []
    stop = False
    context = Context(lambda percent, text: seen.append((percent, text)), seen.append, lambda: stop)
    context.subrange(50, 100).subrange(0, 50).progress(50, "half")
    context.log("line")
    assert seen == [(62.5, "half"), "line"]
    stop = True
    with pytest.raises(Cancelled):
        context.subrange(0, 10).raise_if_cancelled()
    with pytest.raises(Cancelled):
        context.progress(1)


def test_jobs_import_no_heavy_library():
    code = "import sys, clippan.jobs, clippan.cli; print([m for m in ('torch', 'osgeo', 'numpy') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_numbers_that_json_does_not_know():
    request = PansharpenRequest(pan="p", ms=("m",), output="o", nodata=float("nan"))
    text = json.dumps(to_json(request), allow_nan=False)
    assert math.isnan(from_json(PansharpenRequest, json.loads(text)).nodata)
    result = AssessResult({"PSNR": float("inf"), "D": float("-inf")}, {}, "generic", 1, None, 0.1)
    assert from_json(AssessResult, json.loads(json.dumps(to_json(result), allow_nan=False))) == result


def test_folders_that_are_filled_are_outputs_and_those_of_runs_are_resumed():
    thumbnails = ThumbnailsRequest(index="a.gpkg", tiles=(1,), folder="pictures")
    assert (thumbnails.inputs, thumbnails.outputs) == (("a.gpkg",), ("pictures",))
    assert TrainFusionRequest(data="pairs", output="run").outputs == ()
    assert IndexRequest(rasters=("a.tif",), output="a.gpkg").outputs == ("a.gpkg", "a.gpkg.vectors")
    assert IndexRequest(rasters=("a.tif",), output="postgresql://host/db").outputs == ()
