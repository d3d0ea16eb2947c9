"""Scenes as they are delivered: folders and archives of many files, which are one raster to whoever names them.

Names tell what a file is, and no pixel is read: a band of a scene (``…_B04_10m.jp2``, ``…_SR_B4.TIF``), a picture, a
quality mask, a preview. The bands of a scene are laid on the grid of the finest by a VRT in memory. Known are
``.SAFE`` of Sentinel-1 and 2, Landsat and others with a file a band, ``.TIL`` (Maxar) and DIMAP (Airbus), in folders as
in ``.zip`` and ``.tar``.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Optional

from osgeo import gdal

from clippan.catalogue.band_names import COLOURS, band_number, band_order, colour_of_band, colours_by_number
from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.texts import join_names
from clippan.jobs.pansharpen import PansharpenRequest
from clippan.jobs.sharpen import SharpenRequest

_RASTER_SUFFIXES = tuple(
    ".tif .tiff .vrt .jp2 .png .jpg .jpeg .img .bmp .webp .nc .ecw .sid .bil .bsq .ers .kea".split()  # noqa: SIM905
)
_ARCHIVE_PREFIXES = {".zip": "/vsizip/", ".tar": "/vsitar/", ".tgz": "/vsitar/", ".tar.gz": "/vsitar/"}
_QUALITY = re.compile(
    # Landsat, also as ESPA calls them; Sentinel-2, also of MAJA; Planet; HLS; angles
    r"(?:^|[_.\- ])(?:QA_?(?:PIXEL|RADSAT|AEROSOL|10|20|60)?|SR_(?:CLOUD_QA|QA_AEROSOL|QA|ATMOS_OPACITY|AEROSOL)|"
    r"(?:PIXEL|RADSAT)_QA|BQA|CFMASK(?:_CONF)?|ST_(?:QA|ATRAN|CDIST|DRAD|EMIS|EMSD|TRAD|URAD)|"
    r"(?:SCL|CLD|SNW|AOT|WVP|DDV)(?:_(?:10|20|60)M)?|MSK_[A-Z]+(?:_B\w\w)?(?:_(?:10|20|60)M)?|"
    r"(?:CLM|EDG|SAT|MG2|IAB|ATB)_(?:R[12]|XS)|UDM2?(?:_8B)?|(?:CLOUD[_ -]?|F)?MASK|CLOUD[_ -]?PROB\w*|"
    r"[SV][AZ]A|(?:SOLAR|SENSOR|VIEW|SUN)_(?:AZIMUTH|ZENITH)(?:_BAND\d+)?)(?:_CLIP)?$",
    re.IGNORECASE,
)
_PREVIEW = re.compile(
    r"(?:^|[_.\- ])(?:PVI|PREVIEW|THUMB(?:NAIL)?(?:[_-](?:SMALL|LARGE))?|BROWSE|QUICK-?LOOK|QKL\w*|REFL|THERMAL)$"
    r"|^(?:ICON|PREVIEW)_",
    re.IGNORECASE,
)
_BAND = re.compile(
    r"(?P<stem>.*?)(?:(?:^|[_.\- ])(?P<kind>SR|FRE|SRE|BOA|TOA|TOAR|ST|BT))?(?:^|[_.\- ])"
    r"(?P<band>(?:B|BAND)_?\d{1,2}A?(?:_VCID_[12])?|RED|GREEN|BLUE|NIR\d*|TCI|VISUAL|VV|VH|HH|HV)"
    r"(?:_(?:10|20|60)m)?(?:_clip)?",
    re.IGNORECASE,
)
_REFLECTANCE_KINDS = ("SR", "FRE", "BOA", "SRE", "TOAR", "TOA", "")  # of reflectance, the best first
_RADAR = ("VV", "VH", "HH", "HV")
_TRUE_COLOUR = ("TCI", "VISUAL")  # pictures in natural colours, which stand for bands that are not there
# Bands that show the ground in other ways than by the sun's light, or at another resolution.
_NOT_STACKED = frozenset({"pan", "cirrus", "thermal", "thermal1", "thermal2"})
_GRANULE = re.compile(r"(?P<root>(?:.*/)?)(?P<home>GRANULE/[^/]+)/IMG_DATA/")
_IMAGE_FOLDERS = re.compile(r"(?:(?:^|/)IMG_DATA)?(?:(?:^|/)R(?:10|20|60)m)?$")
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)")
_TILE = re.compile(r'filename\s*=\s*"([^"]+)"', re.IGNORECASE)
_MAX_TEXT_BYTES = 2**27  # of a text that describes rasters
_MAX_NAMES = 5  # files that a sentence lists
_THERMAL_RATIO = 3  # pixels of 30 m in one of Landsat's thermal sensors, about


@dataclass(frozen=True)
class Product:
    """A scene of several files.

    Attributes:
        name: its name, which ``open_product`` opens.
        files: of the bands in order; or one that GDAL opens by itself, then the tiles that it lists.
        bands: band names (``B8A``); empty for what GDAL opens by itself.
        pan: file of the panchromatic band; empty without one.
        metadata_files: that may hold the scale of the values.
        thermal: (band name, file) of each thermal band, which is not among the bands.
    """

    name: str
    files: tuple[str, ...]
    bands: tuple[str, ...] = ()
    pan: str = ""
    metadata_files: tuple[str, ...] = ()
    thermal: tuple[tuple[str, str], ...] = ()

    def open(self) -> gdal.Dataset:
        """The scene as one raster on the grid of the finest band; raises RuntimeError if GDAL fails."""
        if not self.bands:
            try:
                return gdal.OpenEx(self.files[0], gdal.OF_RASTER | gdal.OF_VERBOSE_ERROR)
            except RuntimeError:
                if len(self.files) == 1:
                    raise
                return gdal.BuildVRT("", list(self.files[1:]), strict=True)  # without the .IMD, say
        bands = [gdal.Open(path) for path in self.files]
        finest = min(bands, key=lambda band: abs(band.GetGeoTransform()[1]))
        left, dx, _, top, _, dy = finest.GetGeoTransform()
        grid: dict[str, Any] = {}
        if finest.GetGeoTransform(can_return_null=True) is not None:
            bounds = [left, top + finest.RasterYSize * dy, left + finest.RasterXSize * dx, top]
            grid = {"resolution": "user", "xRes": abs(dx), "yRes": abs(dy), "outputBounds": bounds}
        dataset = gdal.BuildVRT("", list(self.files), separate=True, strict=True, resampleAlg="cubic", **grid)
        scales = _reflectance_scales(self.metadata_files)
        for number, (name, source) in enumerate(zip(self.bands, bands), 1):
            band, own = dataset.GetRasterBand(number), source.GetRasterBand(1)
            # Outside of the picture, deliveries of whole numbers have 0.
            if own.GetNoDataValue() is None and own.DataType == gdal.GDT_UInt16:
                band.SetNoDataValue(0)
            band.SetDescription(name)
            if name in scales:
                band.SetScale(scales[name][0])
                band.SetOffset(scales[name][1])
        first = PurePosixPath(self.files[0]).name
        day = _DATE.search(first)
        dated = {"ACQUISITION_DATE": "-".join(day.groups())} if day else {}
        dataset.SetMetadata({"SOURCE_FILE": first, **dated})  # its name tells the sensor
        return dataset

    def can_be_stacked(self) -> bool:
        """Whether the bands fit on one grid: all north-up in one CRS, or all of one size without place. True too where
        a file cannot be opened, which ``open`` reports."""
        if not self.bands:
            return True
        try:
            bands = [gdal.Open(path) for path in self.files]
        except RuntimeError:
            return True
        places = [band.GetGeoTransform(can_return_null=True) for band in bands]
        crs = [band.GetSpatialRef() for band in bands]
        if not all(own.IsSame(crs[0]) if own and crs[0] else own is crs[0] for own in crs):
            return False
        if any(places):
            return all(place is not None and place[1] > 0 > place[5] and place[2] == place[4] == 0 for place in places)
        if any(band.GetGCPCount() or band.GetMetadata("RPC") or band.GetMetadata("GEOLOCATION") for band in bands):
            return False
        return len({(band.RasterXSize, band.RasterYSize) for band in bands}) == 1


@dataclass
class Contents:
    """Files in a folder or an archive.

    Attributes:
        products: scenes of several files.
        rasters: other images.
        masks, previews, maps: quality bands and masks, small copies of a scene, maps made by CLIPPan.
        archives: in a folder.
    """

    products: list[Product] = field(default_factory=list)
    rasters: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    previews: list[str] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)

    def skipped_notes(self) -> list[str]:
        """A sentence for each kind of file that is skipped."""
        kinds = {
            "Skipped quality bands and masks: {count:,} ({files}).": self.masks,
            "Skipped previews: {count:,} ({files}).": self.previews,
            "Skipped maps made by CLIPPan: {count:,} ({files}).": self.maps,
            "Skipped archives without a known scene: {count:,} ({files}).": self.archives,
        }
        return [
            Message(sentence, count=len(files), files=join_names(list(map(_file_name, files))))
            for sentence, files in kinds.items()
            if files
        ]


def open_product(path: str, what: str) -> Optional[gdal.Dataset]:
    """Opens the one raster in a folder, an archive or a scene's metadata file, which GDAL does not open by itself; None
    if ``path`` is none of these. ``what`` is how a sentence calls it. Raises ClippanError if it contains no raster,
    several, or one that cannot be read."""
    products, rasters = _resolve(path)
    try:
        if len(products) == 1 and not rasters:
            if not products[0].can_be_stacked():
                raise ClippanError(
                    "The bands of the {what} {path} have different CRSs or are not north up; choose one band, or warp "
                    "all to one CRS (Raster > Projections > Warp) ({bands}).",
                    what=what,
                    path=path,
                    bands=_join_paths(products[0].files),
                )
            return products[0].open()
        if len(rasters) == 1 and not products:
            return gdal.OpenEx(rasters[0], gdal.OF_RASTER | gdal.OF_VERBOSE_ERROR)
    except RuntimeError as error:
        raise ClippanError(
            "The {what} {path} is a scene whose files cannot be combined; check whether it is complete ({reason}).",
            what=what,
            path=path,
            reason=one_line(error),
        ) from error
    if not (_vsi_archive(path) or _is_folder(path)):
        return None
    names = [*(product.name for product in products), *rasters]
    if not names:
        raise ClippanError(
            "The {what} {path} cannot be read as an archive; check whether it is complete."
            if _is_damaged(path)
            else "The {what} {path} contains no raster; choose a raster.",
            what=what,
            path=path,
        )
    raise ClippanError(
        "The {what} {path} contains {count} rasters; choose one of them ({rasters}).",
        what=what,
        path=path,
        count=len(names),
        rasters=_join_paths(names),
    )


def split_by_pixel_size(path: str) -> Optional[tuple[gdal.Dataset, list[gdal.Dataset]]]:
    """The bands of a scene of one file a band at their own pixel sizes: the finest, which are the panchromatic one
    where there is one, and the coarser ones, a dataset a size, the finest first. Thermal bands of Landsat, which are
    delivered at 30 m and seen at 100 m, are averaged to three times their pixel size. None for any other raster; raises
    RuntimeError if GDAL fails."""
    products, rasters = _resolve(path)
    if len(products) != 1 or rasters or not products[0].bands or not products[0].can_be_stacked():
        return None
    product = products[0]
    sizes: dict[float, list[tuple[str, str]]] = {}
    for called, name in zip(product.bands, product.files):
        own = _native_file(called, name)
        pixel = abs(gdal.Open(own).GetGeoTransform()[1])
        sizes.setdefault(round(pixel, 3), []).append((called, own))
    levels = [_subset(product, sizes[size]).open() for size in sorted(sizes)]
    if product.pan:
        levels.insert(0, _subset(product, [("pan", product.pan)]).open())
    if product.thermal:
        thermal = _subset(product, product.thermal).open()
        pixel = abs(thermal.GetGeoTransform()[1]) * _THERMAL_RATIO
        levels.append(gdal.Translate("", thermal, format="VRT", xRes=pixel, yRes=pixel, resampleAlg="average"))
    return levels[0], levels[1:]


def _subset(product: Product, bands: Sequence[tuple[str, str]]) -> Product:
    """Some bands (name, file) of a scene."""
    names, files = zip(*bands)
    return Product(product.name, files, names, "", product.metadata_files)


def _native_file(called: str, path: str) -> str:
    """The file of a Sentinel-2 band at the pixel size at which the sensor sees it: level 2 holds bands 1 and 9, which
    are seen at 60 m, resampled to 20 m as well."""
    coarse = path.replace("R20m/", "R60m/").replace("_20m.", "_60m.")
    return coarse if called in ("B1", "B9") and coarse != path and _vsi_stat(coarse) else path


def product_files(path: str) -> list[str]:
    """Files of all scenes and rasters in a folder, an archive or a scene; none for what GDAL opens."""
    products, rasters = _resolve(path)
    found = list(rasters)
    for product in products:
        thermal = [name for _, name in product.thermal]
        found += [name for name in (*product.files, product.pan, *thermal) if name]
    return found


def panchromatic(path: str) -> str:
    """The panchromatic file of a scene of several files; any other path unchanged."""
    products, _ = _resolve(path)
    return products[0].pan if len(products) == 1 and products[0].pan else path


class FoundImages(NamedTuple):
    """Paths of images, absolute where they are files; a sentence for each folder or archive without any; and one for
    each kind of skipped file."""

    paths: list[str]
    failures: list[str]
    skipped_notes: list[str]


def find_images(names: Sequence[str]) -> FoundImages:
    """The images in files, folders (recursively), archives and data sources, each once."""
    found: dict[str, str] = {}  # by the file itself: a link to it is no other raster
    failed: list[str] = []
    skipped = Contents()

    def add(path: str) -> None:
        if path.startswith("/vsi") or not exists(path):
            found.setdefault(path, path)
        else:
            found.setdefault(os.path.realpath(path), os.path.abspath(path))  # noqa: PTH100 (resolve follows links)

    for name in names:
        root = _vsi_archive(name) or (name if name.strip() and _is_folder(name) else "")
        if not root or _is_gdal_raster(name):
            add(name)
            continue
        inside = list_contents(root)
        pictures = list(inside.rasters)
        for product in inside.products:
            pictures += [product.name] if product.can_be_stacked() else product.files
        if _vsi_archive(name) and len(pictures) == 1:
            pictures = [name]
        for path in inside.archives:
            (pictures if _holds_scene(path) else skipped.archives).append(path)
        maps = [path for path in pictures if _is_clippan_map(path)]
        for path in sorted(set(pictures) - set(maps)):
            add(path)
        skipped.maps += maps
        skipped.masks += inside.masks
        skipped.previews += inside.previews
        if len(maps) == len(pictures):
            sentence = "{path} contains only maps made by CLIPPan; choose a folder or archive with images."
            if not pictures:
                sentence = "{path} contains no rasters; choose another folder or archive."
            if not pictures and _is_damaged(name):
                sentence = "The file {path} cannot be read as an archive; check whether it is complete."
            failed.append(Message(sentence, path=name))
    return FoundImages(list(found.values()), failed, skipped.skipped_notes())


def exists(path: str) -> bool:
    """Whether a file, folder or scene of this name exists; False too for texts that cannot be a name."""
    try:
        place = Path(path)
        if place.exists() or "*" not in place.name:
            return place.exists()
        before, _, after = place.name.partition("*")
        names = [other.name for other in place.parent.iterdir()]
        return any(name.startswith(before) and name.endswith(after) for name in names)
    except (OSError, ValueError):
        return False


def is_quality(name: str) -> bool:
    """Whether this is the name of a quality band or mask, or of its file; its codes cannot be interpolated."""
    return bool(_QUALITY.search(name))


def is_panchromatic(path: str) -> bool:
    """Whether the file name is that of a known sensor's panchromatic band (``LC08_…_B8.TIF``)."""
    name = PurePosixPath(path.replace("\\", "/")).name
    order, number = band_order([name]), band_number(_stem(path))
    return bool(order and number and order.numbers.get(number) == "pan")


def is_categorical(dataset: gdal.Dataset) -> bool:
    """Whether values are codes, not amounts: a class map made by CLIPPan, or quality bands."""
    bands = [dataset.GetRasterBand(number) for number in range(1, dataset.RasterCount + 1)]
    if _has_clippan_tags(dataset) and bands[0].DataType == gdal.GDT_Byte:
        return True
    names = [band.GetDescription() for band in bands if band.GetColorInterpretation() != gdal.GCI_AlphaBand]
    if any(names):
        return all(map(is_quality, names))
    files = [name for name in dataset.GetFileList() or [] if _is_raster(name) and not name.lower().endswith(".vrt")]
    return bool(files) and all(is_quality(_stem(name)) for name in files)


def list_contents(root: str, recursive: bool = True) -> Contents:
    """What a folder or an archive (by GDAL's path of it) holds, with all folders below it if ``recursive``."""
    if not root.startswith("/vsi"):
        return _read_contents(root, recursive)
    # An archive is read to its end to list it, and many threads ask.
    return _cached_contents(root, recursive, _archive_state(root))


def til_tiles(path: str) -> list[str]:
    """The files that a .TIL lists, by their names in its folder."""
    return _TILE.findall(read_text(path))


def read_text(path: str) -> str:
    """A file's content, read by GDAL as UTF-8; empty if it cannot be read."""
    file = None
    try:
        file = gdal.VSIFOpenL(path, "rb")
        return bytes(gdal.VSIFReadL(1, _MAX_TEXT_BYTES, file) or b"").decode("utf-8", "replace") if file else ""
    except RuntimeError:  # nothing there, or a folder
        return ""
    finally:
        if file is not None:
            gdal.VSIFCloseL(file)


@functools.lru_cache(maxsize=32)
def _cached_contents(root: str, recursive: bool, state: tuple[float, ...]) -> Contents:
    return _read_contents(root, recursive)


def _read_contents(root: str, recursive: bool) -> Contents:
    files, inside = _visible_files(root, recursive), Contents()
    taken: set[str] = set()
    for product, own in (*_sentinel_products(root, files), *_tiled_products(root, files)):
        inside.products.append(product)
        taken |= own
    groups: dict[tuple[str, str], list[str]] = {}
    for name in files:
        if name in taken:
            continue
        path = PurePosixPath(name)
        if name.lower().endswith(tuple(_ARCHIVE_PREFIXES)):
            inside.archives.append(f"{root}/{name}")
        elif not _is_raster(name):
            continue
        elif is_quality(path.stem):
            inside.masks.append(f"{root}/{name}")
        elif match := _BAND.fullmatch(path.stem):
            home = _IMAGE_FOLDERS.sub("", path.parent.as_posix().lstrip("."))
            groups.setdefault((home, match["stem"].lower()), []).append(name)
        else:
            inside.rasters.append(f"{root}/{name}")
    for (home, _), names in groups.items():
        if scene := _product_of_bands(root, home, names, files):
            inside.products.append(scene)
        else:
            inside.rasters += [f"{root}/{name}" for name in names]
    inside.rasters.sort()
    if inside.products:  # beside a scene, small pictures are copies of it
        inside.previews = [path for path in inside.rasters if _PREVIEW.search(_stem(path))]
        inside.rasters = [path for path in inside.rasters if path not in inside.previews]
    return inside


def _visible_files(root: str, recursive: bool) -> list[str]:
    """The files of a folder or archive by their paths from there, but for hidden ones."""
    if root.startswith("/vsi"):
        hidden = re.compile(r"(?:^|/)(?:\.|__MACOSX)|/$")
        return sorted(name for name in _archive_names(root, recursive) if not hidden.search(name))
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        home = Path(folder).relative_to(root)
        found += [(home / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def _sentinel_products(root: str, files: Sequence[str]) -> Iterator[tuple[Product, set[str]]]:
    """Scenes of Sentinel-1 and 2, with all files of each."""
    granules: dict[str, dict[str, list[str]]] = {}
    for name in files:
        if match := _GRANULE.match(name):
            granules.setdefault(match["root"], {}).setdefault(match["home"], []).append(name)
    for scene_folder, granule_files in granules.items():
        own = {name for name in files if name.startswith(scene_folder)}
        delivery = scene_folder if len(granule_files) == 1 else None
        for granule, names in granule_files.items():
            if scene := _product_of_bands(root, f"{scene_folder}{granule}", names, files, delivery):
                yield scene, own
    for name in files:
        scene_folder = name[: -len("manifest.safe")]
        measurements = f"{scene_folder}measurement/"
        if name == f"{scene_folder}manifest.safe" and any(other.startswith(measurements) for other in files):
            own = {other for other in files if other.startswith(scene_folder)}
            yield Product(f"{root}/{scene_folder}".rstrip("/"), (f"{root}/{name}",)), own


def _tiled_products(root: str, files: Sequence[str]) -> list[tuple[Product, set[str]]]:
    """Scenes whose tiles are listed in a file that GDAL opens (.TIL, DIMAP), with all files of each."""
    found: dict[str, set[str]] = {}
    for name in files:
        path = PurePosixPath(name)
        if path.suffix.lower() == ".til":
            own = "|".join([*map(re.escape, til_tiles(f"{root}/{name}")), rf"{re.escape(path.stem)}.*"])
        elif re.fullmatch(r"DIM_\w+\.XML", path.name, re.IGNORECASE):
            own = r"(?:IMG|PREVIEW|ICON|DIM|RPC|LUT)_.*"
        else:
            continue
        folder = re.escape(name[: -len(path.name)])
        found[name] = {other for other in files if re.fullmatch(f"{folder}(?:{own})", other)}
    halves = {_pan_counterpart(name): name for name in found if _pan_counterpart(name) != name.upper()}
    pans = {halves[name.upper()]: name for name in found if name.upper() in halves}
    scenes = []
    for name in found.keys() - set(pans.values()):
        pan = pans.get(name, "")
        tiles = [other for other in sorted(found[name]) if re.search(r"_R\d+C\d+[-.]", other) and _is_raster(other)]
        files_of = tuple(f"{root}/{other}" for other in (name, *tiles))
        product = Product(f"{root}/{name}", files_of, (), f"{root}/{pan}" if pan else "")
        scenes.append((product, found[name] | found.get(pan, set())))
    return sorted(scenes, key=lambda scene: scene[0].name)


def _pan_counterpart(name: str) -> str:
    """The name of the panchromatic half of a multispectral delivery, in capitals."""
    folders = re.sub(r"_MUL(?=/)", "_PAN", name.upper())
    return re.sub(r"_MS_", "_P_", re.sub(r"(?<=-)M(?=\d[AB]S)", "P", folders))


def _product_of_bands(
    root: str, folder: str, names: Sequence[str], files: Sequence[str], delivery: Optional[str] = None
) -> Optional[Product]:
    """The scene made of single-band files; None if they give neither natural colours nor radar.

    Args:
        root, files: the folder or archive, and all its files.
        folder: the folder of the scene.
        names: files that may be bands.
        delivery: folder of a delivery with this scene alone, which names it; else its folder or common file name does.
    """
    kinds: dict[str, dict[str, str]] = {}
    order = band_order([PurePosixPath(name).name for name in names] + [folder])
    for name in sorted(names, key=_resolution_key):
        path = PurePosixPath(name)
        match = _BAND.fullmatch(path.stem) if _is_raster(name) else None
        if match and not is_quality(path.stem):
            number = band_number(match["band"])
            called = f"B{number}" if number else match["band"].upper()
            kinds.setdefault((match["kind"] or "").upper(), {}).setdefault(called, name)
    beside = delivery if delivery is not None else f"{folder}/" if folder else ""
    metadata_files = tuple(
        f"{root}/{name}"
        for name in files
        if re.fullmatch(re.escape(beside) + r"(?:MTD_MSI\w+\.xml|[^/]+_MTL\.txt)", name)
    )
    for kind in _REFLECTANCE_KINDS:
        bands = kinds.get(kind, {})
        known = {called: colour_of_band(called) or colours_by_number(order).get(called[1:], "") for called in bands}
        radar = [called for called in bands if called in _RADAR]
        shown = [called for called in bands if called in _TRUE_COLOUR]
        if set(COLOURS) <= set(known.values()):
            kept = [called for called in bands if known[called] not in _NOT_STACKED and called not in _TRUE_COLOUR]
            pan = next((bands[called] for called in bands if known[called] == "pan"), "")
        elif len(radar) > 1 or shown:
            kept, pan = radar if len(radar) > 1 else shown[:1], ""
        else:
            continue
        kept.sort(key=_band_key)
        paths = tuple(f"{root}/{bands[called]}" for called in kept)
        if not order and not shown and not all(map(_is_single_band, paths)):
            return None  # pictures that are called like bands
        name = _product_name(root, folder, [bands[called] for called in kept])
        if delivery is not None:
            name = f"{root}/{delivery}".rstrip("/")
        called_by = tuple(kept) if not (shown and kept == shown[:1]) else ()
        numbered = colours_by_number(order)
        thermal = {  # of Landsat's level 2, they are of another kind
            called: f"{root}/{path}"
            for of_kind in (kinds.get("BT", {}), kinds.get("ST", {}), bands)
            for called, path in of_kind.items()
            if numbered.get(called[1:], "").startswith("thermal")
        }
        in_order = tuple(sorted(thermal.items(), key=lambda item: _band_key(item[0])))
        return Product(name, paths, called_by, f"{root}/{pan}" if pan else "", metadata_files, in_order)
    return None


def _product_name(root: str, folder: str, names: Sequence[str]) -> str:
    """A scene's name: its folder where bands lie in several, else their common file name."""
    if len({PurePosixPath(name).parent for name in names}) > 1:
        return f"{root}/{folder}".rstrip("/")
    path = PurePosixPath(names[0])
    match = _BAND.fullmatch(path.stem)
    assert match is not None
    letter = match["band"][0] if match["band"][0] in "bB" and len(names) > 1 else ""
    start = path.name[: match.start("band")]
    return f"{root}/{path.with_name(f'{start}{letter}*{path.suffix}') if len(names) > 1 else path}"


def _resolution_key(name: str) -> tuple[int, str]:
    """Sorts the finest of several files of a band first."""
    match = re.search(r"(10|20|60)m(?:_clip)?(?:\.|/)", name)
    return (int(match[1]) if match else 0, name)


def _band_key(called: str) -> tuple[int, str]:
    """Sorts B8 before B8A, and that before B9."""
    match = re.fullmatch(r"B(\d+)(A?)", called)
    return (int(match[1]), match[2]) if match else (0, "" if called in _RADAR else called)


def _is_single_band(path: str) -> bool:
    try:
        return gdal.Open(path).RasterCount == 1
    except RuntimeError:
        return False


def _resolve(path: str) -> tuple[list[Product], list[str]]:
    """The scenes and rasters that a path may mean which GDAL does not open."""
    root = _vsi_archive(path)
    if root or _is_folder(path):
        inside = list_contents(root or path.rstrip("/\\") or path)
        return inside.products, inside.rasters
    folder, name = os.path.split(path)
    if not (folder and path.startswith("/vsi")) and not exists(path):
        return [], []
    if "*" in name or name.lower().endswith((".til", ".xml")):
        wanted = os.path.normcase(os.path.normpath(path))
        products = list_contents(folder or ".", False).products
        products = [one for one in products if os.path.normcase(os.path.normpath(one.name)) == wanted]
        if products:
            return products, []
    if re.fullmatch(r"MTD_\w+\.xml|manifest\.safe", name, re.IGNORECASE):
        return list_contents(folder or ".").products, []
    if match := re.fullmatch(r"(.+)_MTL\.(?:txt|json|xml)", name, re.IGNORECASE):
        products = list_contents(folder or ".", False).products
        return [product for product in products if PurePosixPath(product.name).name.startswith(match[1])], []
    return [], []


def _vsi_archive(path: str) -> str:
    """GDAL's path of an archive (``/vsizip//data/scene.zip``); empty for other files."""
    prefix = next((prefix for ending, prefix in _ARCHIVE_PREFIXES.items() if path.lower().endswith(ending)), "")
    try:
        return f"{prefix}{os.path.abspath(path)}" if prefix and Path(path).is_file() else ""  # noqa: PTH100
    except (OSError, ValueError):
        return ""


def _is_folder(path: str) -> bool:
    status = _vsi_stat(path) if path.strip() else None
    return bool(status and status.IsDirectory())


def _vsi_stat(path: str) -> Optional[gdal.StatBuf]:
    try:
        return gdal.VSIStatL(path)
    except (RuntimeError, TypeError, ValueError):  # it cannot be a path
        return None


def _archive_state(path: str) -> tuple[float, ...]:
    """Size and time of the archive that holds a path, to notice a replaced one; empty if it is no file."""
    path = re.sub(r"^/vsi(?:zip|tar)/|[{}]", "", path)
    while path:
        status = _vsi_stat(path)
        if status and not status.IsDirectory():
            return (status.mtime, status.size)
        above = os.path.dirname(path)  # noqa: PTH120 (of //host/a, or of /vsicurl/http://a)
        path = above if above != path else ""
    return ()


def _archive_names(path: str, recursive: bool) -> list[str]:
    """What an archive lists; empty for a damaged one."""
    try:
        return (gdal.ReadDirRecursive(path) if recursive else gdal.ReadDir(path)) or []
    except RuntimeError:
        return []


def _is_damaged(path: str) -> bool:
    """Whether a file that is called as an archive lists nothing at all."""
    root = _vsi_archive(path)
    return bool(root) and not _archive_names(root, False)


def _is_gdal_raster(path: str) -> bool:
    """Whether GDAL opens a folder or an archive as a raster by itself."""
    gdal.PushErrorHandler("CPLQuietErrorHandler")
    try:
        return bool(gdal.OpenEx(path, gdal.OF_RASTER).RasterCount)
    except RuntimeError:
        return False
    finally:
        gdal.PopErrorHandler()


def _holds_scene(path: str) -> bool:
    """Whether an archive in a folder is a known scene; compressed ones are judged by name, as listing reads them."""
    if not path.lower().endswith((".zip", ".tar")) and not band_order([PurePosixPath(path).name]):
        return False
    root = _vsi_archive(path)
    inside = list_contents(root) if root else Contents()
    return len(inside.products) == 1 and not inside.rasters


def _is_clippan_map(path: str) -> bool:
    """Whether CLIPPan made it, other than by sharpening."""
    if not path.lower().endswith((".tif", ".tiff")):
        return False
    try:
        return _has_clippan_tags(gdal.OpenEx(path, gdal.OF_RASTER, allowed_drivers=["GTiff"]))
    except RuntimeError:
        return False


def _has_clippan_tags(dataset: gdal.Dataset) -> bool:
    tags = dataset.GetMetadata() or {}
    sharpened = (PansharpenRequest.name, SharpenRequest.name)
    return any(tag.startswith("CLIPPAN_") for tag in tags) and tags.get("CLIPPAN_ALGORITHM") not in sharpened


def _reflectance_scales(metadata_files: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Reflectance scale and offset by band from the metadata of Sentinel-2 or Landsat."""
    found: dict[str, tuple[float, float]] = {}
    for path in metadata_files:
        text = read_text(path)
        quantified = re.search(r"<(?:BOA_)?QUANTIFICATION_VALUE[^>]*>(\d+)<", text)
        if quantified:
            added = re.search(r"<(?:BOA|RADIO)_ADD_OFFSET[^>]*>(-?\d+)<", text)  # the same for all bands
            value = float(quantified[1])
            numbers = [*map(str, range(1, 13)), "8A"]
            found.update((f"B{number}", (1 / value, float(added[1]) / value if added else 0.0)) for number in numbers)
        # Of level 2, the metadata of level 1 follow.
        for number, scale in re.findall(r"REFLECTANCE_MULT_BAND_(\d+) = (\S+)", text):
            offset = re.search(rf"REFLECTANCE_ADD_BAND_{number} = (\S+)", text)
            found.setdefault(f"B{number}", (float(scale), float(offset[1]) if offset else 0.0))
    return found


def _is_raster(name: str) -> bool:
    return name.lower().endswith(_RASTER_SUFFIXES)


def _stem(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).stem


def _file_name(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name


def _join_paths(paths: Sequence[str]) -> str:
    return "; ".join(paths[:_MAX_NAMES]) + (" …" if len(paths) > _MAX_NAMES else "")
