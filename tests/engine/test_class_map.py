"""Maps of classes as GeoTIFFs: colours, names and counts arrive, and overviews never mix classes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from osgeo import gdal

from clippan.catalogue.prompts import ClassPrompt, PromptTable, parse_prompts
from clippan.core.errors import Cancelled, ClippanError
from clippan.jobs.options import Compression, Format
from clippan.labels.legend import colours, palette
from clippan.raster.grid import Grid
from clippan.raster.source import BandInfo
from clippan.raster.writer import Palette, Writer, affected_files

NAMES = ("unclassified", 'wäter, "deep"', "森林; <b> & c", "roofs")
COLOURS = ((0, 0, 0, 0), (31, 120, 180, 255), (51, 160, 44, 255), (227, 26, 28, 255))
GRID = Grid(1300, 900, (500000, 2, 0, 5000000, 0, -2), "")


def write(path, values, legend, **options):
    grid = Grid(values.shape[1], values.shape[0], GRID.geotransform, "")
    options = {"nodata": 0, "palette": legend, **options}
    with Writer(str(path), grid, np.dtype("uint8"), [BandInfo("class")], **options) as writer:
        for y in range(0, len(values), 256):
            writer.write(0, y, values[None, y : y + 256])


def categories(path):
    dataset = gdal.Open(str(path))
    dataset.GetGeoTransform()  # GDAL 3.6 looks into the sidecar then, and not for categories
    return dataset.GetRasterBand(1).GetCategoryNames()


def sparse():
    """Three in four pixels are unclassified, but for the left, which is of class 3."""
    values = np.zeros((GRID.height, GRID.width), np.uint8)
    values[::2, ::2] = 1
    values[:, :600] = 3
    return values


@pytest.mark.parametrize("format", list(Format))
@pytest.mark.parametrize("compression", [Compression.DEFLATE, Compression.NONE])
def test_legend_is_read_again(tmp_path, format, compression):
    path = tmp_path / "map.tif"
    values = sparse()
    write(path, values, Palette(NAMES, COLOURS), format=format, compression=compression, tags={"CLIPPAN_MODEL": "x"})
    assert sorted(os.listdir(tmp_path)) == ["map.tif", "map.tif.aux.xml"]
    dataset = gdal.Open(str(path))
    band = dataset.GetRasterBand(1)
    assert np.array_equal(band.ReadAsArray(), values)
    assert band.GetColorInterpretation() == gdal.GCI_PaletteIndex
    assert [band.GetColorTable().GetColorEntry(value) for value in range(4)] == list(COLOURS)
    assert categories(path) == list(NAMES)
    assert band.GetNoDataValue() == 0
    assert band.GetDescription() == "class"
    assert dataset.GetMetadataItem("CLIPPAN_MODEL") == "x"
    table = band.GetDefaultRAT()
    assert [table.GetNameOfCol(column) for column in range(7)] == [
        *("Value", "Class", "Red", "Green", "Blue", "Alpha", "Count")
    ]
    assert [table.GetValueAsString(value, 1) for value in range(table.GetRowCount())] == list(NAMES)
    assert [table.GetValueAsInt(1, column) for column in range(2, 6)] == list(COLOURS[1])
    counts = [table.GetValueAsDouble(value, 6) for value in range(4)]
    assert counts == np.bincount(values.ravel(), minlength=4).tolist()


def test_names_stay_with_a_file_that_lost_its_sidecar(tmp_path):
    path = tmp_path / "map.tif"
    write(path, sparse(), Palette(NAMES, COLOURS))
    (tmp_path / "map.tif.aux.xml").unlink()
    dataset = gdal.Open(str(path))
    band = dataset.GetRasterBand(1)
    assert [band.GetMetadataItem(f"CLASS_{value}") for value in range(4)] == list(NAMES)
    assert band.GetColorTable().GetColorEntry(2) == COLOURS[2]


@pytest.mark.parametrize("format", list(Format))
def test_overviews_show_what_is_most_frequent(tmp_path, format):
    path = tmp_path / "map.tif"
    write(path, sparse(), Palette(NAMES, COLOURS), format=format)
    dataset = gdal.Open(str(path))
    band = dataset.GetRasterBand(1)
    assert band.GetOverviewCount() > 0
    for number in range(band.GetOverviewCount()):
        found = band.GetOverview(number).ReadAsArray()
        assert set(np.unique(found)) == {0, 3}  # neither a class between, nor sparse ones spread over nothing
        assert (found[:, : found.shape[1] * 590 // GRID.width] == 3).all()


def test_255_classes(tmp_path):
    table = PromptTable(tuple(ClassPrompt(f"class {number}") for number in range(255)))
    legend = palette(table)
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write(tmp_path / "map.tif", values, legend)
    dataset = gdal.Open(str(tmp_path / "map.tif"))
    band = dataset.GetRasterBand(1)
    assert categories(tmp_path / "map.tif") == ["unclassified", *table.names]
    assert band.GetDefaultRAT().GetRowCount() == 256
    entries = [band.GetColorTable().GetColorEntry(value) for value in range(256)]
    assert entries[0][3] == 0
    assert entries[255] == (*colours(table)[255], 255)


def test_palette_of_a_table():
    legend = palette(parse_prompts('{"classes": [{"name": "water", "colour": "#0a141e"}, {"name": "thing"}]}'))
    assert legend.names == ("unclassified", "water", "thing")
    assert legend.colours[:2] == ((0, 0, 0, 0), (10, 20, 30, 255))
    assert len(set(legend.colours)) == 3


@pytest.mark.parametrize("format", list(Format))
def test_cancelled_at_the_end_leaves_nothing(tmp_path, format):
    def stop(percent):
        raise Cancelled

    with pytest.raises(Cancelled):
        write(tmp_path / "map.tif", sparse(), Palette(NAMES, COLOURS), format=format, progress=stop)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file_with_its_sidecar(tmp_path):
    path = tmp_path / "map.tif"
    write(path, sparse(), Palette(NAMES, COLOURS))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    legend = Palette(("unclassified", "other"), COLOURS[:2])

    def fail():
        with Writer(str(path), GRID, np.dtype("uint8"), [BandInfo()], nodata=0, palette=legend) as writer:
            writer.write(0, 0, sparse()[None])
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    write(path, sparse() // 3, legend)
    assert categories(path) == list(legend.names)
    assert sorted(os.listdir(tmp_path)) == ["map.tif", "map.tif.aux.xml"]
    assert set(os.listdir(tmp_path)) <= {os.path.basename(name) for name in affected_files(str(path))}  # noqa: PTH119


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises((ClippanError, FileNotFoundError)):
        write(tmp_path / "none" / "map.tif", sparse(), Palette(NAMES, COLOURS))


def test_maps_are_small(tmp_path):
    """Runs of one class, not differences: noise in blocks of 8 pixels takes less than a tenth of a byte a pixel."""
    blocks = np.random.default_rng(0).integers(1, 8, (128, 128)).astype(np.uint8)
    values = np.kron(blocks, np.ones((8, 8), np.uint8))
    write(tmp_path / "map.tif", values, palette(parse_prompts("a;b;c;d;e;f;g")), overviews=False)
    assert (tmp_path / "map.tif").stat().st_size < values.size / 10
