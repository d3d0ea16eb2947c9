"""Checks that requests share. They look at values and paths, never into a raster."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from clippan.errors import ClippanError

_OTHER_RASTERS = tuple(
    ".png .jpg .jpeg .jp2 .img .vrt .gpkg .nc .hdf .h5 .asc .bil .bsq .ers .ecw .sid .grd .bmp .gif .webp".split()  # noqa: SIM905
)


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


def output(path: str, inputs: Iterable[str]) -> None:
    """An output needs a writable folder, and is none of the inputs (through links, or with an input inside)."""
    if not path.strip():
        raise ClippanError("No output was given; name the file to write.")
    target = Path(path)
    if any(_same(target, item) for item in inputs):
        raise ClippanError(f"The output {path} is one of the inputs; choose another name.")
    if path.startswith("/vsi"):
        return
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


def geotiff(path: str) -> None:
    """A GeoTIFF is not called by another format's ending."""
    if path.lower().endswith(_OTHER_RASTERS):
        raise ClippanError(f"The output {path} would be a GeoTIFF; let its name end in .tif, or convert it afterwards.")


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


def bands(numbers: Sequence[int]) -> None:
    """Band numbers start at 1 and do not repeat."""
    if any(number < 1 for number in numbers):
        raise ClippanError("Band numbers start at 1.")
    if len(set(numbers)) < len(numbers):
        raise ClippanError("A band is listed twice; list each band once.")


def sensor(name: str) -> None:
    """The sensor is known, "auto" or "generic"."""
    from clippan.fusion.sensors import SENSORS, find

    if name != "auto" and find(name) is None:
        raise ClippanError(f"Unknown sensor '{name}'; choose auto or one of {', '.join(SENSORS)}.")


def model(name: str) -> None:
    """The model is known, or a file or folder with weights and their description."""
    from clippan.clip.models import find

    find(name)


def at_least(what: str, value: int, least: int) -> None:
    """A number has a lower bound."""
    if value < least:
        raise ClippanError(f"The {what} is {value}; it has to be {least} or more.")
