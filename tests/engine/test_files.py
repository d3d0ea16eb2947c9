"""No output replaces what an input reads, however that names it."""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from conftest import write_raster
from osgeo import gdal, ogr

from clippan.core.errors import ClippanError
from clippan.handlers import run
from clippan.jobs import JOBS, SegmentRequest
from clippan.raster.files import refuse_overwriting, source_files

gdal.UseExceptions()


def vrt(path: str, source: str, relative: bool = False) -> str:
    """A virtual raster of any source, as text; as a file if the path has a name."""
    text = (
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="{int(relative)}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    if path:
        Path(path).write_text(text, encoding="utf-8")
    return path or text


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def til(path: str, source: str) -> str:
    Path(path).write_text(f'numTiles = 1;\nBEGIN_GROUP = TILE_1\n\tfilename = "{source}";\nEND_GROUP = TILE_1\nEND;\n')
    return path


def zipped(path: str, source: str) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(source, "in/side.tif")
    return path


def layer(path: str, source: str) -> str:
    Path(path).write_text(
        f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource relativeToVRT="1">{source}</SrcDataSource>'
        "</OGRVRTLayer></OGRVRTDataSource>"
    )
    return path


def linked(path: str, how: Callable[[str, str], object]) -> str:
    how("a.tif", path)
    return path


# From the folder that holds a.tif: what is read, and the output that would replace it.
KINDS: dict[str, Callable[[], tuple[str, str]]] = {
    "the file": lambda: ("a.tif", "./a.tif"),
    "absolute": lambda: (os.path.abspath("a.tif"), "a.tif"),  # noqa: PTH100
    "a band of a virtual raster": lambda: (vrt("m.vrt", "a.tif", True), "a.tif"),
    "not relative": lambda: (vrt("sub/m.vrt", "a.tif"), "a.tif"),
    "in another folder": lambda: (vrt("sub/m.vrt", "../a.tif", True), "a.tif"),
    "nested": lambda: (vrt("n.vrt", vrt("sub/m.vrt", "../a.tif", True), True), "a.tif"),
    "XML": lambda: (vrt("", "a.tif"), "a.tif"),
    "XML in XML": lambda: (vrt("n.vrt", escaped(vrt("", "a.tif"))), "a.tif"),
    "tiles": lambda: (til("sub/m.TIL", "../a.tif"), "a.tif"),
    "virtual raster of tiles": lambda: (vrt("m.vrt", til("m.til", "a.tif"), True), "a.tif"),
    "vrt://": lambda: ("vrt://a.tif?bands=1", "a.tif"),
    "vrt:// of a virtual raster": lambda: (f"vrt://{vrt('m.vrt', 'a.tif', True)}?bands=1,1", "a.tif"),
    "page": lambda: ("GTIFF_DIR:1:a.tif", "a.tif"),
    "page in a virtual raster": lambda: (vrt("sub/m.vrt", "GTIFF_DIR:1:../a.tif", True), "a.tif"),
    "absolute page": lambda: (f"GTIFF_DIR:off:8:{os.path.abspath('a.tif')}", "a.tif"),  # noqa: PTH100
    "raw": lambda: ("GTIFF_RAW:a.tif", "a.tif"),
    "subdataset": lambda: ('NETCDF:"a.tif":x', "a.tif"),
    "derived": lambda: ("DERIVED_SUBDATASET:AMPLITUDE:a.tif", "a.tif"),
    "archive": lambda: (f"/vsizip/{zipped('z.tif', 'a.tif')}/in/side.tif", "z.tif"),
    "archive in braces": lambda: (f"/vsizip/{{{zipped('z.tif', 'a.tif')}}}/in/side.tif", "z.tif"),
    "archive in a virtual raster": lambda: (vrt("m.vrt", f"/vsizip/{zipped('z.tif', 'a.tif')}/in/side.tif"), "z.tif"),
    "part of a file": lambda: ("/vsisubfile/0_99,a.tif", "a.tif"),
    "cached": lambda: ("/vsicached?chunk_size=1024&file=a.tif", "a.tif"),
    "hard link": lambda: (linked("h.tif", os.link), "a.tif"),
    "symbolic link": lambda: (linked("s.tif", os.symlink), "a.tif"),
    "output is a link": lambda: (vrt("m.vrt", "a.tif", True), linked("s.tif", os.symlink)),
    "overview of the output": lambda: (str(Path("a.tif").rename("b.tif.ovr")), "b.tif"),
    "virtual raster of the output's mask": lambda: (vrt("m.vrt", str(Path("a.tif").rename("b.tif.msk"))), "b.tif"),
    "overview of the input": lambda: (
        vrt("m.vrt", "a.tif", True),
        linked("a.tif.ovr", shutil.copyfile),
    ),
    "layer": lambda: (layer("v.vrt", "points.gpkg"), "points.gpkg"),
    "part of a shapefile": lambda: ("points.dbf", "points.shp"),
    "comma in the name": lambda: (vrt("m.vrt", str(Path("a.tif").rename("a,b: c.tif")), True), "a,b: c.tif"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    write_raster(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8))
    write_raster(tmp_path / "other.tif", np.zeros((1, 4, 4), np.uint8))
    for driver, name in (("GPKG", "points.gpkg"), ("ESRI Shapefile", "points.shp")):
        dataset = gdal.GetDriverByName(driver).Create(name, 0, 0, 0, gdal.GDT_Unknown)
        dataset.CreateLayer("points", None, ogr.wkbPoint)
        dataset = None
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_an_input_reads(place, kind):
    source, output = KINDS[kind]()
    with pytest.raises(ClippanError, match=r"^The output .* is one of the inputs.*; choose another name\.$"):
        refuse_overwriting(["", output], ["nothing.tif", source])
    for spared in ("other.tif", "new.tif"):
        refuse_overwriting([spared], [source, "<broken", "no such; thing", ""])


def test_it_is_said_through_what(place):
    with pytest.raises(ClippanError, match=r"^The output a.tif is one of the inputs, through m.vrt; choose"):
        refuse_overwriting(["a.tif"], [vrt("m.vrt", "a.tif", True)])
    Path("a.tif.ovr").write_bytes(Path("a.tif").read_bytes())
    with pytest.raises(ClippanError, match=r"^The output a.tif touches a.tif.ovr, which is one of the inputs; choose"):
        refuse_overwriting(["a.tif"], ["a.tif.ovr"])


def test_a_virtual_raster_of_itself_comes_to_an_end(place):
    refuse_overwriting(["other.tif"], [vrt("m.vrt", "m.vrt", True)])


def test_the_files_of_a_dataset(place):
    dataset = gdal.Open(vrt("n.vrt", vrt("sub/m.vrt", "../a.tif", True), True))
    assert {os.path.basename(name) for name in source_files(dataset)} == {"n.vrt", "m.vrt", "a.tif"}  # noqa: PTH119


def test_a_job_looks_before_it_begins(place):
    before = Path("a.tif").read_bytes()
    for name in ("output", "confidence", "probabilities"):
        values = {"output": "new.tif", name: "a.tif"}
        with pytest.raises(ClippanError, match=r"is one of the inputs, through m\.vrt"):
            run(SegmentRequest(raster=vrt("m.vrt", "a.tif", True), classes="water; land", **values))
    assert Path("a.tif").read_bytes() == before


WRITTEN = {"output", "report", "confidence", "probabilities", "polygons", "areas", "save_encoder", "heatmap"}
FOLDERS = {"train fusion", "train clip", "finetune clip", "align"}  # whose output is the folder of a run


@pytest.mark.parametrize("job", JOBS)
def test_every_job_tells_what_it_writes_and_reads(job):
    kind = JOBS[job]
    named = {field.name for field in fields(kind)} & WRITTEN - ({"output"} if job in FOLDERS else set())
    many = {field.name: field.type for field in fields(kind)}
    values = {name: (f"{name}.x",) if "tuple" in str(many[name]) else f"{name}.x" for name in many}
    request = kind(**values)
    assert {f"{name}.x" for name in named} <= set(request.outputs)
    if named and job != "index":  # whose folders are looked into first
        assert request.inputs
        assert not set(request.inputs) & set(request.outputs)
