"""Scenes that come as folders and archives of many files."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import UTM, write_raster
from osgeo import gdal

from clippan.core.errors import ClippanError
from clippan.fewshot.stack import open_stack
from clippan.handlers import run
from clippan.jobs import Context, Method, PansharpenRequest
from clippan.raster import products
from clippan.raster.files import source_files
from clippan.raster.pair import open_pair
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.raster.source import open_dataset

SAFE = "S2A_MSIL2A_20220315T103021_N0400_R108_T32UMC_20220315T134155.SAFE"
LANDSAT = "LC08_L2SP_195024_20220315_20220322_02_T1"
PLANET = "20220315_103021_12_2421_3B_AnalyticMS_SR_8b_clip.tif"


def band(path: Path, value: int, edge: int = 12, pixel: float = 10.0, count: int = 1, dtype=np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, np.full((count, edge, edge), value, dtype), pixel)


def sentinel(folder: Path, granules: int = 1) -> Path:
    safe = folder / SAFE
    for number in range(granules):
        home = safe / "GRANULE" / f"L2A_T32UM{number}_A035152_20220315T103024"
        for name, edge in (("R10m", 12), ("R20m", 6), ("R60m", 2)):
            stem = f"T32UMC_20220315T10302{number}"
            own = {12: "2 3 4 8", 6: "2 3 4 5 6 7 8A 11 12", 2: "1 2 3 4 9"}[edge].split()
            for item in own:
                called = f"B{item:0>2}"
                band(home / "IMG_DATA" / name / f"{stem}_{called}_{name[1:]}.jp2", 100 * int(item[0]), edge, 120 / edge)
            for mask in ("AOT", "SCL", "WVP"):
                band(home / "IMG_DATA" / name / f"{stem}_{mask}_{name[1:]}.jp2", 1, edge, 120 / edge)
            band(home / "IMG_DATA" / name / f"{stem}_TCI_{name[1:]}.jp2", 9, edge, 120 / edge, 3, np.uint8)
        band(home / "QI_DATA" / "MSK_CLDPRB_20m.jp2", 1)
        band(home / "QI_DATA" / f"{stem}_PVI.jp2", 1, count=3)
    (safe / "MTD_MSIL2A.xml").write_text(
        "<a><BOA_QUANTIFICATION_VALUE unit='none'>10000</BOA_QUANTIFICATION_VALUE>"
        "<BOA_ADD_OFFSET band_id='0'>-1000</BOA_ADD_OFFSET></a>"
    )
    return safe


def landsat(folder: Path, name: str = LANDSAT) -> Path:
    for number in range(1, 8):
        band(folder / f"{name}_SR_B{number}.TIF", 100 * number, 6, 30)
    for other in ("QA_PIXEL", "QA_RADSAT", "SR_QA_AEROSOL", "ST_B10", "ST_QA", "ST_EMIS"):
        band(folder / f"{name}_{other}.TIF", 1, 6, 30)
    (folder / f"{name}_MTL.txt").write_text(
        "    REFLECTANCE_MULT_BAND_4 = 2.75e-05\n    REFLECTANCE_ADD_BAND_4 = -0.2\n"
        "    REFLECTANCE_MULT_BAND_4 = 2.0E-05\n    REFLECTANCE_ADD_BAND_4 = -0.1\n"
    )
    return folder


def described(dataset: gdal.Dataset) -> list[str]:
    return [dataset.GetRasterBand(number + 1).GetDescription() for number in range(dataset.RasterCount)]


def shown(path) -> list[int]:
    """The values that are red, green and blue."""
    scene = Renderer(str(path), RenderOptions())
    dataset = open_dataset(str(path), "raster")
    return [int(dataset.GetRasterBand(number).ReadAsArray(3, 3, 1, 1)[0, 0]) for number in scene.bands]


def test_a_safe_folder_is_one_raster(tmp_path):
    safe = sentinel(tmp_path)
    assert products.find_images([str(tmp_path)]) == ([str(safe)], [], [])
    dataset = open_dataset(str(safe), "raster")
    assert (dataset.RasterXSize, dataset.GetGeoTransform()[1]) == (12, 10)
    assert described(dataset) == ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"]
    assert dataset.GetRasterBand(1).GetNoDataValue() == 0
    assert dataset.GetRasterBand(4).GetScale() == pytest.approx(1e-4)
    assert dataset.GetRasterBand(4).GetOffset() == pytest.approx(-0.1)
    assert {Path(name).parent.name for name in source_files(dataset)} == {"R10m", "R20m", "R60m"}
    assert shown(safe) == [400, 300, 200]
    assert Renderer(str(safe), RenderOptions()).date() == "2022-03-15"
    assert Renderer(str(safe), RenderOptions()).fingerprint()
    for inside in ("MTD_MSIL2A.xml", "GRANULE", "GRANULE/L2A_T32UM0_A035152_20220315T103024/IMG_DATA/R10m"):
        assert shown(safe / inside) == [400, 300, 200]


def test_each_granule_of_an_older_safe_is_a_raster(tmp_path):
    safe = sentinel(tmp_path, 2)
    found, _, _ = products.find_images([str(tmp_path)])
    assert [Path(path).parent for path in found] == [safe / "GRANULE"] * 2
    assert [shown(path) for path in found] == [[400, 300, 200]] * 2
    with pytest.raises(ClippanError, match="contains 2 rasters; choose one of them"):
        open_dataset(str(safe), "raster")


def test_a_landsat_folder_is_one_raster(tmp_path):
    folder = landsat(tmp_path / "scene")
    band(folder / f"{LANDSAT}_thumb_small.jpeg", 1, count=3, dtype=np.uint8)
    found, failed, left = products.find_images([str(tmp_path)])
    assert [Path(path).name for path in found] == [f"{LANDSAT}_SR_B*.TIF"]
    assert failed == []
    assert left[0].startswith("Skipped quality bands and masks: 5 (")
    assert left[1].startswith("Skipped previews: 1 (")
    for name in (found[0], folder, folder / f"{LANDSAT}_MTL.txt"):
        assert shown(name) == [400, 300, 200]
        dataset = open_dataset(str(name), "raster")
        assert described(dataset) == [f"B{number}" for number in range(1, 8)]
        assert dataset.GetRasterBand(4).GetScale() == pytest.approx(2.75e-5)  # of level 2
    assert products.exists(found[0])
    assert not products.exists(found[0].replace("LC08", "LC09"))
    assert open_dataset(str(folder / f"{LANDSAT}_SR_B5.TIF"), "raster").RasterCount == 1  # as it is


def test_scenes_of_one_folder_stay_apart(tmp_path):
    landsat(tmp_path)
    old = "LT05_L1TP_195024_19870315_20200322_02_T1"
    for number in range(1, 8):
        band(tmp_path / f"{old}_B{number}.TIF", 100 * number, 6, 30)
    found, _, _ = products.find_images([str(tmp_path)])
    assert [Path(path).name for path in found] == [f"{LANDSAT}_SR_B*.TIF", f"{old}_B*.TIF"]
    assert shown(found[1]) == [300, 200, 100]  # its blue is band 1
    with pytest.raises(ClippanError, match="contains 2 rasters"):
        open_dataset(str(tmp_path), "raster")


def test_pictures_that_are_called_like_bands_stay_pictures(tmp_path):
    for name in ("plot_B2", "plot_B3", "plot_B4", "river_red", "a_VV"):
        band(tmp_path / f"{name}.tif", 5, count=3)
    band(tmp_path / "b_B5.tif", 5)
    found, _, left = products.find_images([str(tmp_path)])
    assert len(found) == 6
    assert left == []


def test_radar_is_one_raster(tmp_path):
    for polarisation in ("VV", "VH"):
        band(tmp_path / f"S1A_IW_20220315T103021_RTC_{polarisation}.tif", 7)
    found, _, _ = products.find_images([str(tmp_path)])
    assert len(found) == 1
    assert Renderer(found[0], RenderOptions()).band_choice.bands == (1,)
    assert described(open_dataset(found[0], "raster")) == ["VH", "VV"]


def test_masks_maps_and_hidden_folders_are_no_pictures(tmp_path):
    band(tmp_path / "files" / PLANET, 5, count=8)
    band(tmp_path / "files" / PLANET.replace("AnalyticMS_SR_8b", "udm2"), 1, count=8, dtype=np.uint8)
    band(tmp_path / ".trash" / "old.tif", 5)
    band(tmp_path / "._files.tif", 5)
    band(tmp_path / ".clippan-half.tif", 5)
    (tmp_path / ".a.gpkg.lock").write_text("")
    for name, tags in (
        ("map.tif", {"CLIPPAN_ALGORITHM": "segment"}),
        ("heat.tif", {"CLIPPAN_MODEL": "starter", "CLIPPAN_PROMPT": "sea"}),
        ("sharp.tif", {"CLIPPAN_ALGORITHM": "pansharpen", "CLIPPAN_METHOD": "gsa"}),
    ):
        band(tmp_path / name, 5)
        gdal.Open(str(tmp_path / name), gdal.GA_Update).SetMetadata(tags)
    found, _, left = products.find_images([str(tmp_path)])
    assert [Path(path).name for path in found] == [PLANET, "sharp.tif"]
    assert [sentence.split(" (")[0] for sentence in left] == [
        "Skipped quality bands and masks: 1",
        "Skipped maps made by CLIPPan: 2",
    ]
    assert "heat.tif, map.tif" in left[1]
    assert Renderer(str(tmp_path / "files"), RenderOptions()).bands == (6, 4, 2)
    # what is named is taken
    assert products.find_images([str(tmp_path / "map.tif")]) == ([str(tmp_path / "map.tif")], [], [])


def test_a_folder_without_pictures(tmp_path):
    band(tmp_path / "a_QA_PIXEL.TIF", 1)
    _, failed, _ = products.find_images([str(tmp_path)])
    assert "contains no rasters" in failed[0]
    with pytest.raises(ClippanError, match="contains no raster; choose a raster"):
        open_dataset(str(tmp_path), "raster")
    band(tmp_path / "a.tif", 1)
    band(tmp_path / "b.tif", 1)
    with pytest.raises(ClippanError, match=r"contains 2 rasters; .*a\.tif; .*b\.tif\)"):
        open_dataset(str(tmp_path), "raster")


def test_archives(tmp_path):
    safe, folder = sentinel(tmp_path / "in"), landsat(tmp_path / "in" / "l")
    with zipfile.ZipFile(tmp_path / "safe.zip", "w") as archive:
        for path in safe.rglob("*"):
            archive.write(path, path.relative_to(safe.parent))
    for name, mode in (("landsat.tar", "w"), (f"{LANDSAT}.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            for path in folder.iterdir():
                archive.add(path, path.name)
    band(tmp_path / "in" / "p.tif", 5)
    for name, members in (("one.zip", ["p.tif"]), ("two.zip", ["a.tif", "b/c.tif"]), ("none.zip", ["a_udm2.tif"])):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.write(tmp_path / "in" / "p.tif", member)
    for name in ("safe.zip", "landsat.tar", f"{LANDSAT}.tgz"):
        assert shown(tmp_path / name) == [400, 300, 200]
    assert open_dataset(str(tmp_path / "one.zip"), "raster").RasterCount == 1
    with pytest.raises(
        ClippanError, match=r"contains 2 rasters; choose one of them \(/vsizip/.*two\.zip/a\.tif; .*b/c\.tif\)"
    ):
        open_dataset(str(tmp_path / "two.zip"), "raster")
    with pytest.raises(ClippanError, match="contains no raster"):
        open_dataset(str(tmp_path / "none.zip"), "raster")
    found, _, left = products.find_images([str(tmp_path / name) for name in ("safe.zip", "two.zip")])
    assert [Path(path).name for path in found] == ["safe.zip", "a.tif", "c.tif"]
    # in a folder, archives of scenes alone
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file():
            path.unlink()
    found, _, left = products.find_images([str(tmp_path)])
    assert [Path(path).name for path in found] == [f"{LANDSAT}.tgz", "landsat.tar", "safe.zip"]
    assert "archives without a known scene: 3" in left[0]


def three(folder: Path, grids, edges=(12, 12, 12), epsgs=(32632,) * 3) -> Path:
    """Bands 2, 3 and 4 of an unknown sensor; each on its grid (GDAL's geotransform), if it has one."""
    folder.mkdir()
    for number, grid, edge, epsg in zip((2, 3, 4), grids, edges, epsgs):
        values = np.full((1, edge, edge), 100 * number, np.uint16)
        path = write_raster(folder / f"scene_B{number}.tif", values, 1, None, epsg)
        if grid:
            gdal.Open(path, gdal.GA_Update).SetGeoTransform(grid)
    return folder


NORTH_UP = (5e5, 10, 0, 5e6, 0, -10)


def test_bands_without_a_place_are_one_raster(tmp_path):
    folder = three(tmp_path / "a", [None] * 3, epsgs=[None] * 3)
    assert products.find_images([str(folder)]) == ([str(folder / "scene_B*.tif")], [], [])
    dataset = open_dataset(str(folder), "raster")
    assert dataset.GetGeoTransform(can_return_null=True) is None
    assert dataset.ReadAsArray()[:, 5, 5].tolist() == [200, 300, 400]
    assert described(dataset) == ["B2", "B3", "B4"]


@pytest.mark.parametrize(
    "layout",
    [
        {"grids": [(5e5, 10, 0, 5e6, 0, 10)] * 3},
        {"grids": [(5e5, 10, 1, 5e6, 1, -10)] * 3},
        {"grids": [NORTH_UP, None, None]},
        {"grids": [None] * 3, "edges": (12, 6, 6)},
        {"grids": [NORTH_UP] * 3, "epsgs": (32632, 32632, 32633)},
        {"grids": [NORTH_UP] * 3, "epsgs": (32632, 32632, None)},
    ],
    ids=["south up", "rotated", "one placed", "two sizes", "two CRSs", "one without CRS"],
)
def test_bands_that_do_not_go_together_stay_rasters(tmp_path, layout):
    folder = three(tmp_path / "a", **layout)
    singles = [str(folder / f"scene_B{number}.tif") for number in (2, 3, 4)]
    assert products.find_images([str(folder)]) == (singles, [], [])
    for name in (folder, folder / "scene_B*.tif"):
        with pytest.raises(ClippanError, match=r"different CRSs or are not north up; choose one band.*scene_B2\.tif; "):
            open_dataset(str(name), "raster")


def test_zeros_are_nodata_in_bands_that_declare_none(tmp_path):
    folder = three(tmp_path / "a", [NORTH_UP] * 3, epsgs=[UTM] * 3)
    values = np.full((1, 6, 6), 400, np.uint16)
    values[0, 0] = 0
    write_raster(folder / "scene_B4.tif", values, 20, (5e5, 5e6), nodata=65535)
    write_raster(folder / "scene_B3.tif", values, 20, (5e5, 5e6))
    dataset = open_dataset(str(folder), "raster")
    assert [dataset.GetRasterBand(number).GetNoDataValue() for number in (1, 2, 3)] == [0, 0, 65535]
    assert dataset.GetRasterBand(3).GetMaskBand().ReadAsArray().all()
    assert not dataset.GetRasterBand(2).GetMaskBand().ReadAsArray()[0].any()


def test_an_archive_that_is_replaced_is_looked_into_again(tmp_path):
    band(tmp_path / "a.tif", 5)
    inside = f"/vsizip/{tmp_path}/a.zip/sub"
    for count in (1, 2):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for number in range(count):
                archive.write(tmp_path / "a.tif", f"sub/{number}.tif")
        assert len(products.list_contents(inside).rasters) == count


def test_gdal_that_raises_for_what_is_not_there(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such file")

    (tmp_path / "a.zip").write_text("a")
    for name in ("VSIFOpenL", "VSIStatL", "ReadDir", "ReadDirRecursive"):  # as newer ones do
        monkeypatch.setattr(gdal, name, fails)
    assert products.read_text("a.til") == ""
    with pytest.raises(ClippanError, match="is not a raster that GDAL can read"):
        open_dataset("/vsizip//a.zip/a", "raster")
    with pytest.raises(ClippanError, match="cannot be read as an archive"):
        open_dataset(str(tmp_path / "a.zip"), "raster")


def test_tiles_that_a_til_lists(tmp_path):
    stem = "16MAR15104512-{}-012345678010_01_P001"
    for kind, folder in (("M2AS", "P001_MUL"), ("P2AS", "P001_PAN")):
        tile = stem.format(f"{kind}_R1C1")
        band(tmp_path / folder / f"{tile}.TIF", 5, count=4 if kind == "M2AS" else 1)
        (tmp_path / folder / f"{stem.format(kind)}.TIL").write_text(f'numTiles = 1;\n filename = "{tile}.TIF";\nEND;\n')
        band(tmp_path / folder / f"{stem.format(kind)}-BROWSE.JPG", 5, count=3, dtype=np.uint8)
    found, _, _ = products.find_images([str(tmp_path)])
    assert [Path(path).name for path in found] == [f"{stem.format('M2AS')}.TIL"]
    assert open_dataset(found[0], "raster").RasterCount == 4  # though GDAL misses the .IMD
    assert open_dataset(str(tmp_path), "raster").RasterCount == 4
    assert products.panchromatic(str(tmp_path)).endswith(f"{stem.format('P2AS')}.TIL")


def test_a_file_that_is_no_raster_is_told_as_before(tmp_path):
    (tmp_path / "note.txt").write_text("a")
    (tmp_path / "bad.zip").write_text("a")
    with pytest.raises(ClippanError, match="is not a raster that GDAL can read"):
        open_dataset(str(tmp_path / "note.txt"), "raster")
    sentence = "bad.zip cannot be read as an archive; check whether it is complete"
    with pytest.raises(ClippanError, match=sentence):
        open_dataset(str(tmp_path / "bad.zip"), "raster")
    assert sentence in products.find_images([str(tmp_path / "bad.zip")])[1][0]
    with pytest.raises(ClippanError, match="does not exist"):
        open_dataset(str(tmp_path / "LC08_B*.TIF"), "raster")


@pytest.mark.parametrize(
    "name",
    [
        "QA_PIXEL",
        "LC08_x_SR_QA_AEROSOL",
        "x_pixel_qa",
        "BQA",
        "T32_x_SCL_20m",
        "MSK_CLDPRB_20m",
        "MSK_DETFOO_B02",
        "x_3B_udm2_clip",
        "x_udm2_8b",
        "QA60",
        "x.Fmask",
        "x_CLM_R1",
        "l8_BQA",
        "cloud_mask",
    ],
)
def test_quality_bands(name):
    assert products.is_quality(name)


@pytest.mark.parametrize(
    "name", ["B4", "red", "image_sat", "photo", "qatar", "mask_town", "B10", "SR_B4", "ST_B10", "sclera"]
)
def test_other_bands(name):
    assert not products.is_quality(name)


def test_pan_and_masks_among_multispectral_rasters(tmp_path):
    rng = np.random.default_rng(0)
    pan = write_raster(tmp_path / f"{LANDSAT}_B8.TIF", rng.integers(1, 999, (1, 64, 64), np.uint16), 15)
    ms = [
        write_raster(tmp_path / f"{LANDSAT}_B{number}.TIF", rng.integers(1, 999, (1, 32, 32), np.uint16), 30)
        for number in (2, 3, 4)
    ]
    output = str(tmp_path / "out.tif")
    copy = write_raster(tmp_path / "sharp.tif", rng.integers(1, 999, (1, 64, 64), np.uint16), 15)
    with pytest.raises(ClippanError, match="is the panchromatic band; leave it out"):
        run(PansharpenRequest(pan=pan, ms=(*ms, pan), output=output))
    with open_pair(pan, (*ms, copy)) as pair:
        assert "sharp.tif has the pixel size of the panchromatic raster" in pair.notes[-1]
    quality = write_raster(tmp_path / f"{LANDSAT}_QA_PIXEL.TIF", np.ones((1, 32, 32), np.uint16), 30)
    with pytest.raises(ClippanError, match="QA_PIXEL, a quality band or mask, whose codes cannot be sharpened"):
        run(PansharpenRequest(pan=pan, ms=(*ms, quality), output=output))
    assert run(PansharpenRequest(pan=pan, ms=(*ms, quality), output=output, bands=(1, 2, 3), method=Method.GSA))


def test_codes_are_not_interpolated(tmp_path):
    coarse = np.zeros((8, 8), np.uint8)
    coarse[::2] = 200
    values = np.random.default_rng(1).integers(1, 999, (2, 32, 32), np.uint16)
    fine = write_raster(tmp_path / "fine.tif", values, 5)
    codes = write_raster(tmp_path / "x_SCL_20m.tif", coarse[None], 20)
    stack = open_stack((fine, codes), 0, None, Context())
    assert set(np.unique(stack.sources[1].read(0, 0, 32, 32)[0])) == {0, 200}
    assert "x_SCL_20m.tif holds codes" in stack.hints()[0]
    mixed = write_raster(tmp_path / "mixed.tif", np.stack([coarse, coarse]), 20)
    dataset = gdal.Open(mixed, gdal.GA_Update)
    for number, name in enumerate(("B4", "SCL"), 1):
        dataset.GetRasterBand(number).SetDescription(name)
    del dataset
    one, other = open_stack((fine, mixed), 0, None, Context()).sources[1].read(0, 0, 32, 32)[0]
    assert set(np.unique(other)) == {0, 200}
    assert len(np.unique(one)) > 2
