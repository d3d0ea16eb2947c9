"""Checks that requests share. They look at values and paths, never into a raster."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clippan.catalogue import models, sensors
from clippan.core.errors import ClippanError

_OTHER_RASTERS = tuple(
    ".png .jpg .jpeg .jp2 .img .vrt .gpkg .nc .hdf .h5 .asc .bil .bsq .ers .ecw .sid .grd .bmp .gif .webp".split()  # noqa: SIM905
)
_NO_RASTERS = (".geojson", ".json", ".fgb", ".shp", ".csv", ".html", ".htm", ".safetensors")


def source(what: str, path: str) -> None:
    """A data source has to be named."""
    if not path.strip() or "\0" in path:
        raise ClippanError(f"No {what} was given; name a file or a GDAL data source.")


def sources(what: str, paths: Sequence[str]) -> None:
    """At least one data source has to be named."""
    if not paths:
        raise ClippanError(f"No {what} was given; name at least one file or GDAL data source.")
    for path in paths:
        source(what, path)


def fail(sentence: str) -> None:
    """Raises ClippanError."""
    raise ClippanError(sentence)


def folder(what: str, path: str) -> None:
    """A folder has to exist."""
    if is_file(path):
        raise ClippanError(f"The {what} {path} is a file; choose a folder.")
    if not os.path.isdir(path):  # noqa: PTH112 - pathlib raises for texts that cannot be a path
        raise ClippanError(f"The {what} {path} does not exist; create it or choose another.")


def is_file(path: str) -> bool:
    """Whether there is a file of this name; False too for texts that cannot be one."""
    return os.path.isfile(path)  # noqa: PTH113 - pathlib raises for those


def is_database(name: str) -> bool:
    """Whether an index is named by a connection to PostgreSQL."""
    return name.startswith(("postgresql://", "postgres://"))


def index(name: str) -> None:
    """An index is a GeoPackage, or lies in a PostgreSQL database."""
    source("index", name)
    if not is_database(name):
        geopackage(name)


def text(value: Any) -> None:
    """Texts and names are UTF-8 without NUL, as GDAL and all formats that we write want them; value is a request as
    JSON values."""
    if isinstance(value, Mapping):
        for item in value.values():
            text(item)
    elif isinstance(value, list):
        for item in value:
            text(item)
    elif isinstance(value, str):
        if not value.isascii():
            utf8(value)
        if "\0" in value:
            fail("A text holds the character NUL, which no name may have; remove it.")


def utf8(name: str) -> None:
    """A text or a name is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise ClippanError(
            f"“{shown}” is not written in UTF-8, which GDAL needs; rename the file or folder, or set the terminal to "
            "UTF-8."
        ) from None


def output(path: str, inputs: Iterable[str], beside: str = "") -> None:
    """An output needs a writable folder that takes its name, also with the ending of a file beside it, and is none of
    the inputs (through links, or with an input inside)."""
    if not path.strip():
        raise ClippanError("No output was given; name the file to write.")
    target = Path(path)
    if any(_same(target, item) for item in inputs):
        raise ClippanError(f"The output {path} is one of the inputs; choose another name.")
    if path.startswith("/vsi"):
        return
    _fits(target, beside)
    try:
        folder_named = target.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClippanError(f"The output {path} cannot be written ({reason}); choose another name.") from None
    if folder_named:
        raise ClippanError(f"The output {path} is a folder; add a file name.")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise ClippanError(f"The output folder {folder} does not exist; create it or choose another.")
    if not os.access(folder, os.W_OK):
        raise ClippanError(f"The output folder {folder} is not writable; choose another.")


def _fits(target: Path, beside: str) -> None:
    name = target.name + beside
    longest = 255
    with contextlib.suppress(AttributeError, OSError, ValueError):
        longest = os.pathconf(target.absolute().parent, "PC_NAME_MAX")
    size = len(name.encode("utf-16-le")) // 2 if os.name == "nt" else len(os.fsencode(name))
    if size > longest:
        which = f" with the {beside} file beside it" if beside else ""
        more = f"{size - longest} byte{'s' * (size - longest > 1)}"
        raise ClippanError(f"The name of the output {target}{which} is {more} too long; choose a shorter one.")


def on_disk(path: str) -> None:
    """An output lies on a disk, not in one of GDAL's file systems."""
    if path.startswith("/vsi"):
        raise ClippanError(f"The output {path} is no file on this machine; choose a folder here.")


def apart(outputs: Sequence[str]) -> None:
    """No two outputs are one file, however they are written."""
    named = [os.path.normcase(os.path.realpath(path)) for path in outputs]
    for number, path in enumerate(outputs):
        if named[number] in named[:number]:
            raise ClippanError(f"Two of the outputs are called {path}; give each a name of its own.")


def geotiff(path: str) -> None:
    """A GeoTIFF is not called by another format's ending, nor by a model's."""
    if path.lower().endswith((*_OTHER_RASTERS, *_NO_RASTERS)):
        raise ClippanError(f"The output {path} would be a GeoTIFF; let its name end in .tif, or convert it afterwards.")


def geopackage(path: str) -> None:
    """A GeoPackage is called by what it is: QGIS goes by the name."""
    if not path.lower().endswith(".gpkg"):
        raise ClippanError(f"{path} would be a GeoPackage; choose a name that ends in .gpkg.")


def html(path: str) -> None:
    """A report is called by what it is, lest it replace a file of another kind."""
    if not path.lower().endswith((".html", ".htm")):
        raise ClippanError(f"The report {path} is a web page; choose a name that ends in .html.")


def _same(target: Path, item: str) -> bool:
    if item == str(target):
        return True
    # /vsizip/{a.zip}/b.tif, /vsisubfile/0_99,a.tif: the file that is read, or an archive as its members are
    inner = re.sub(r"^(/vsi((zip|tar|gzip|7z|rar|cached)/|subfile/[0-9_]+,))+", "", item)
    paths = [Path(item)]
    if inner != item:
        archived = Path(re.sub("[{}]", "", inner))
        paths += [archived, *archived.parents]
    try:
        return any(_equal(target, path) for path in paths)
    except (OSError, ValueError):  # a text that is no path: XML, a connection string
        return False


def _equal(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    return one.samefile(other) if one.exists() else one.resolve() == other.resolve()


def positive_bands(numbers: Sequence[int]) -> None:
    """Band numbers start at 1."""
    if any(number < 1 for number in numbers):
        raise ClippanError("Band numbers start at 1.")


def bands(numbers: Sequence[int]) -> None:
    """Band numbers start at 1 and do not repeat."""
    positive_bands(numbers)
    if len(set(numbers)) < len(numbers):
        raise ClippanError("A band is listed twice; list each band once.")


def picture_bands(numbers: Sequence[int]) -> None:
    """A picture has three bands, one for grey, or those that are found."""
    if numbers and len(numbers) not in (1, 3):
        raise ClippanError(f"{len(numbers)} bands were chosen; choose three for red, green and blue, or one for grey.")
    positive_bands(numbers)


def tiles(numbers: Iterable[int]) -> None:
    """Tiles are numbered from 1, and a database counts no further than 63 bits."""
    for number in numbers:
        if not 0 < number < 2**63:
            raise ClippanError(f"There is no tile {number}; take the numbers that a search has told.")


def sensor(name: str) -> None:
    """The sensor is known, "auto" or "generic"."""
    if name != "auto" and sensors.find(name) is None:
        raise ClippanError(f"Unknown sensor '{name}'; choose auto or one of {', '.join(sensors.SENSORS)}.")


def model(name: str) -> None:
    """The model is known, or a file or folder with weights and their description."""
    models.find(name)


def run_folder(path: str, start: str) -> None:
    """The folder of a training is named, and does not hold the model that it starts from, which it would replace."""
    if not path.strip():
        raise ClippanError("No output folder was given; name the folder of the run.")
    known = Path(start).resolve()
    if known.exists() and Path(path).resolve() in (known, known.parent):
        raise ClippanError(f"The folder {path} holds the model to start from; choose another for what is trained.")


def at_least(what: str, value: int, least: int) -> None:
    """A number has a lower bound."""
    if value < least:
        raise ClippanError(f"The {what} is {value}; it has to be {least} or more.")


def positive(what: str, value: float) -> None:
    """A number is above zero."""
    if not 0 < value < math.inf:
        raise ClippanError(f"The {what} is {value:g}; it has to be above 0.")


def between(what: str, value: float, least: float, most: float) -> None:
    """A number has two bounds."""
    if not least <= value <= most:
        raise ClippanError(f"The {what} is {value:g}; it has to be between {least:g} and {most:g}.")


def extent(values: Sequence[float]) -> None:
    """An extent is empty, or xmin, ymin, xmax, ymax; xmin is above xmax if it lies, in degrees, across 180°."""
    if not values:
        return
    if len(values) != 4 or not all(math.isfinite(value) for value in values):
        raise ClippanError("An extent has four numbers; write it as XMIN,YMIN,XMAX,YMAX.")
    left, bottom, right, top = values
    across = -360 <= right < left <= 360  # the engine knows whether these are degrees
    if (left >= right and not across) or bottom >= top:
        raise ClippanError("The extent is empty; write it as XMIN,YMIN,XMAX,YMAX.")


def date(what: str, text: str) -> None:
    """A date is empty, or a year, a month of it, or a day of that."""
    if text and not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?", text):
        raise ClippanError(f"The {what} “{text}” is not understood; write it like 2021-06-30, 2021-06 or 2021.")
