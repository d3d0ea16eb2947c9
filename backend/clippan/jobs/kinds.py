"""What the values of parameters can be: data to read, files to write, and texts with a meaning.

They look at values and paths, never into a raster.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

from clippan.catalogue import models, prompts, recipes, sensors
from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.jobs.param import Kind, Param

# What no GeoTIFF is called: endings of other rasters, and of the other files that we write.
_OTHER_RASTERS = (
    *(".png", ".jpg", ".jpeg", ".jp2", ".img", ".vrt", ".gpkg", ".nc", ".hdf", ".h5", ".asc", ".bil", ".bsq", ".ers"),
    *(".ecw", ".sid", ".grd", ".bmp", ".gif", ".webp"),
)
_NO_RASTERS = (".geojson", ".json", ".fgb", ".shp", ".csv", ".html", ".htm", ".safetensors")
_ARCHIVES = re.compile(r"^(/vsi((zip|tar|gzip|7z|rar|cached)/|subfile/[0-9_]+,))+")
_DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")
_LAST_TILE = 2**63 - 1  # databases number rows with 63 bits


def is_database(name: str) -> bool:
    """Whether an index is named by a connection to PostgreSQL."""
    return name.startswith(("postgresql://", "postgres://"))


# What is read.


@dataclass(frozen=True)
class RasterInput(Kind):
    """A raster: a file, the folder or archive of a scene, or any GDAL data source."""

    missing = "“{title}” is missing; name a file or a GDAL data source."

    def inputs(self, value: Any) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else (value,)

    def check(self, param: Param, value: Any) -> None:
        for path in value if param.many else (value,):
            if not path.strip() or "\0" in path:
                raise ClippanError(self.missing, title=param.title)


@dataclass(frozen=True)
class VectorInput(RasterInput):
    """A vector file with points or polygons; or labels in a raster, where the job takes them."""


@dataclass(frozen=True)
class FileInput(RasterInput):
    """A file of another kind, by the ending of its name if it has to have one."""

    ending: str = ""


@dataclass(frozen=True)
class FolderInput(Kind):
    """A folder that exists."""

    missing = "“{title}” is missing; choose a folder."

    def inputs(self, value: Any) -> tuple[str, ...]:
        return (value,)

    def check(self, param: Param, value: Any) -> None:
        if is_file(value):
            raise ClippanError("“{title}”, {path}, is a file; choose a folder.", title=param.title, path=value)
        if not is_folder(value):
            raise ClippanError(
                "“{title}”, {path}, does not exist; create the folder or choose another.", title=param.title, path=value
            )


@dataclass(frozen=True)
class IndexKind(Kind):
    """A tile index: a GeoPackage, or a connection to PostgreSQL."""

    missing = "“{title}” is missing; name a GeoPackage, or a catalogue as postgresql://…."

    def inputs(self, value: Any) -> tuple[str, ...]:
        return (value,)

    def check(self, param: Param, value: Any) -> None:
        if not is_database(value):
            _ends(param, value, (".gpkg",))


# What is written.


@dataclass(frozen=True)
class Output(Kind):
    """A file to write.

    Attributes:
        endings: of its name; the first is that which is proposed.
        description: of files of this kind, in the plural.
        beside: what is appended to its name for a file that is written beside it, if one is.
    """

    writes = True
    missing = "“{title}” is missing; name the file to write."
    endings: tuple[str, ...] = ()
    description: str = ""
    beside: str = ""

    def outputs(self, value: Any) -> tuple[str, ...]:
        return (value, value + self.beside) if self.beside else (value,)

    def check_place(self, path: str, inputs: Iterable[str]) -> None:
        """Raises ClippanError, in one sentence, if the file cannot be written there, or would replace an input."""
        check_writable(path, inputs, self.beside)

    def check(self, param: Param, value: Any) -> None:
        if value.startswith("/vsi"):
            raise ClippanError(
                "“{title}”, {path}, is not on this machine; choose a folder here.", title=param.title, path=value
            )
        _ends(param, value, self.endings)


@dataclass(frozen=True)
class RasterOutput(Output):
    """A GeoTIFF to write, on this machine or in one of GDAL's file systems."""

    endings: tuple[str, ...] = (".tif", ".tiff")

    def check(self, param: Param, value: Any) -> None:
        if value.lower().endswith((*_OTHER_RASTERS, *_NO_RASTERS)):
            raise ClippanError(
                "“{title}”, {path}, would be a GeoTIFF; let its name end in .tif, or convert it afterwards.",
                title=param.title,
                path=value,
            )


@dataclass(frozen=True)
class DatabaseOutput(Output):
    """A file to write, or a connection to PostgreSQL."""

    def outputs(self, value: Any) -> tuple[str, ...]:
        return () if is_database(value) else super().outputs(value)

    def check_place(self, path: str, inputs: Iterable[str]) -> None:
        if not is_database(path):
            super().check_place(path, inputs)

    def check(self, param: Param, value: Any) -> None:
        if not is_database(value):
            super().check(param, value)


@dataclass(frozen=True)
class FolderOutput(Kind):
    """A folder to make.

    Attributes:
        resumed: whether a run goes on in it, and so replaces nothing.
    """

    writes = True
    missing = "“{title}” is missing; name the folder to write."
    resumed: bool = False

    def outputs(self, value: Any) -> tuple[str, ...]:
        return () if self.resumed else (value,)

    def check(self, param: Param, value: Any) -> None:
        if is_file(value):
            raise ClippanError("“{title}”, {path}, is a file; choose a folder.", title=param.title, path=value)
        parent = Path(value).absolute().parent
        if not is_folder(parent):
            raise ClippanError(
                "The folder {folder} does not exist; create it or choose another for “{title}”.",
                folder=parent,
                title=param.title,
            )


# Texts and lists with a meaning.


@dataclass(frozen=True)
class BandsKind(Kind):
    """Band numbers from 1, each at most once; three or one where they make a picture."""

    metavar = "N,N"
    picture: bool = False

    def check(self, param: Param, value: Any) -> None:
        if self.picture and len(value) not in (1, 3):
            raise ClippanError(
                "“{title}” lists {count} bands; choose three for red, green and blue, or one for grey.",
                title=param.title,
                count=len(value),
            )
        if any(number < 1 for number in value):
            raise ClippanError("Band numbers start at 1.")
        if not self.picture and len(set(value)) < len(value):
            raise ClippanError("A band is listed twice; list each band once.")


@dataclass(frozen=True)
class TileNumbersKind(Kind):
    """Numbers of things that are counted from 1."""

    metavar = "N,N"

    def check(self, param: Param, value: Any) -> None:
        for number in value:
            if not 0 < number <= _LAST_TILE:
                raise ClippanError("There is no tile {number}; take the numbers that a search has told.", number=number)


@dataclass(frozen=True)
class ExtentKind(Kind):
    """xmin, ymin, xmax, ymax; in degrees, xmin is above xmax across the 180th meridian (RFC 7946)."""

    metavar = "XMIN,YMIN,XMAX,YMAX"

    def check(self, param: Param, value: Any) -> None:
        if len(value) != 4 or not all(math.isfinite(number) for number in value):
            raise ClippanError("An extent has four numbers; write it as XMIN,YMIN,XMAX,YMAX.")
        left, bottom, right, top = value
        across = -360 <= right < left <= 360  # the engine knows whether these are degrees
        if (left >= right and not across) or bottom >= top:
            raise ClippanError("The extent is empty; write it as XMIN,YMIN,XMAX,YMAX.")


@dataclass(frozen=True)
class CrsKind(Kind):
    """A coordinate system, as EPSG:4326."""

    metavar = "CRS"


@dataclass(frozen=True)
class PointKind(Kind):
    """A place: x, y."""

    metavar = "X,Y"

    def check(self, param: Param, value: Any) -> None:
        if len(value) != 2 or not all(math.isfinite(number) for number in value):
            raise ClippanError("A place has two coordinates; write it as X,Y.")


@dataclass(frozen=True)
class DateKind(Kind):
    """A day, a month or a year, as 2021-06-30, 2021-06 or 2021."""

    metavar = "DATE"

    def check(self, param: Param, value: Any) -> None:
        if not _DATE.fullmatch(value):
            raise ClippanError(
                "“{title}”, {text}, is not understood; write it like 2021-06-30, 2021-06 or 2021.",
                title=param.title,
                text=value,
            )


@dataclass(frozen=True)
class PhrasesKind(Kind):
    """Names and words for them, in place or in a file that the text names."""

    def inputs(self, value: Any) -> tuple[str, ...]:
        return (texts.named_file(value),)


@dataclass(frozen=True)
class PromptsKind(PhrasesKind):
    """A prompt table: in place, or in a file that the text names."""

    def check(self, param: Param, value: Any) -> None:
        prompts.parse_prompts(value)


@dataclass(frozen=True)
class ModelKind(Kind):
    """A vision-language model: an id of the catalogue, or a folder or file of the user's own.

    Attributes:
        none: whether an empty name is possible, and means no model.
    """

    none: bool = False

    def check(self, param: Param, value: Any) -> None:
        if value or not self.none:
            models.find_model(value)

    def choices(self) -> Mapping[str, str]:
        return {name: model.label for name, model in models.MODELS.items()}


@dataclass(frozen=True)
class RecipeKind(Kind):
    """A recipe of a training: the name of one that comes with CLIPPan, or a YAML file."""

    def inputs(self, value: Any) -> tuple[str, ...]:
        return (value,)

    def check(self, param: Param, value: Any) -> None:
        recipes.find_recipe(value)

    def choices(self) -> Mapping[str, str]:
        return {name: name for name in recipes.RECIPES}


@dataclass(frozen=True)
class SensorKind(Kind):
    """A sensor of the catalogue, or "auto"."""

    def check(self, param: Param, value: Any) -> None:
        if value != "auto" and sensors.find_sensor(value) is None:
            raise ClippanError(
                "Unknown sensor '{name}'; choose auto or one of {known}.", name=value, known=", ".join(sensors.SENSORS)
            )

    def choices(self) -> Mapping[str, str]:
        return {"auto": "Recognise from the data", **{name: item.label for name, item in sensors.SENSORS.items()}}


@dataclass(frozen=True)
class FieldKind(Kind):
    """A field of the labelled places."""


Raster = Annotated[str, RasterInput()]
Rasters = Annotated[tuple[str, ...], RasterInput()]
Vector = Annotated[str, VectorInput()]
Vectors = Annotated[tuple[str, ...], VectorInput()]
File = Annotated[str, FileInput()]
Files = Annotated[tuple[str, ...], FileInput()]
FusionModelFile = Annotated[str, FileInput(".safetensors")]
AdapterFile = Annotated[str, FileInput(".safetensors")]
SceneEncoderFile = Annotated[str, FileInput(".safetensors")]
Folder = Annotated[str, FolderInput()]
IndexName = Annotated[str, IndexKind()]
RasterFile = Annotated[str, RasterOutput()]
ClassMapFile = Annotated[str, RasterOutput(beside=".aux.xml")]  # which holds the names of the classes
Report = Annotated[str, Output((".html", ".htm"), "HTML files")]
AreaTable = Annotated[str, Output((".csv",), "CSV files")]
PromptFile = Annotated[str, Output((".json",), "Prompt tables")]
FusionModelOutput = Annotated[str, Output((".safetensors",), "Fusion models")]
SceneEncoderOutput = Annotated[str, Output((".safetensors",), "Pre-trained scenes")]
GeoPackage = Annotated[str, Output((".gpkg",), "GeoPackages")]
IndexOutput = Annotated[str, DatabaseOutput((".gpkg",), "GeoPackages", ".vectors")]
PolygonFile = Annotated[str, Output((".gpkg", ".geojson", ".fgb", ".shp"), "Vector files")]
OutputFolder = Annotated[str, FolderOutput()]
RunFolder = Annotated[str, FolderOutput(resumed=True)]
BandNumbers = Annotated[tuple[int, ...], BandsKind()]
PictureBands = Annotated[tuple[int, ...], BandsKind(picture=True)]
TileNumbers = Annotated[tuple[int, ...], TileNumbersKind()]
Extent = Annotated[tuple[float, ...], ExtentKind()]
Point = Annotated[tuple[float, ...], PointKind()]
CrsName = Annotated[str, CrsKind()]
Date = Annotated[str, DateKind()]
PromptText = Annotated[str, PromptsKind()]
Phrases = Annotated[str, PhrasesKind()]
ModelName = Annotated[str, ModelKind()]
OptionalModelName = Annotated[str, ModelKind(none=True)]
RecipeName = Annotated[str, RecipeKind()]
SensorName = Annotated[str, SensorKind()]
FieldName = Annotated[str, FieldKind()]


def is_file(path: Union[str, Path]) -> bool:
    """Whether there is a file of this name; False too for texts that cannot be one, for which pathlib raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Union[str, Path]) -> bool:
    """Whether there is a folder of this name; False too for texts that cannot be one, for which pathlib raises."""
    return os.path.isdir(path)  # noqa: PTH112


def check_writable(path: str, inputs: Iterable[str], beside: str = "") -> None:
    """A file to write lies in a writable folder that takes its name, also with ``beside`` appended, and is none of the
    inputs, neither through links nor with an input inside."""
    target = Path(path)
    if any(_same(target, item) for item in inputs):
        raise ClippanError("The output {path} is one of the inputs; choose another name.", path=path)
    if path.startswith("/vsi"):
        return
    _check_length(target, beside)
    try:
        taken = target.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClippanError(
            "The output {path} cannot be written ({reason}); choose another name.", path=path, reason=reason
        ) from None
    if taken:
        raise ClippanError("The output {path} is a folder; add a file name.", path=path)
    folder = target.absolute().parent
    if not is_folder(folder):
        raise ClippanError("The output folder {folder} does not exist; create it or choose another.", folder=folder)
    if not os.access(folder, os.W_OK):
        raise ClippanError("The output folder {folder} is not writable; choose another.", folder=folder)


def check_distinct(paths: Sequence[str]) -> None:
    """No two outputs are one file, however they are written."""
    named = [os.path.normcase(os.path.realpath(path)) for path in paths]
    for number, path in enumerate(paths):
        if named[number] in named[:number]:
            raise ClippanError("Two of the outputs are called {path}; give each a name of its own.", path=path)


def check_start_is_kept(folder: str, start: str) -> None:
    """The folder of a training does not hold the model that it starts from, which it would replace."""
    known = Path(start).resolve()
    if (is_file(known) or is_folder(known)) and Path(folder).resolve() in (known, known.parent):
        raise ClippanError(
            "The folder {folder} holds the model to start from; choose another for what is trained.", folder=folder
        )


def _ends(param: Param, path: str, endings: Sequence[str]) -> None:
    if endings and not path.lower().endswith(tuple(endings)):
        raise ClippanError(
            "The name {path} does not fit “{title}”; let it end in {endings}.",
            title=param.title,
            path=path,
            endings=", ".join(endings),
        )


def _check_length(target: Path, beside: str) -> None:
    name = target.name + beside
    longest = 255
    with contextlib.suppress(AttributeError, OSError, ValueError):
        longest = os.pathconf(target.absolute().parent, "PC_NAME_MAX")
    size = len(name.encode("utf-16-le")) // 2 if os.name == "nt" else len(os.fsencode(name))
    if size > longest:
        raise ClippanError(
            "The name of the output {path} is too long (bytes too many: {excess}); choose a shorter one.",
            path=f"{target}{beside}",
            excess=size - longest,
        )


def _same(target: Path, item: str) -> bool:
    if item == str(target):
        return True
    # /vsizip/{a.zip}/b.tif, /vsisubfile/0_99,a.tif: the file that is read, or an archive as its members are
    inner = _ARCHIVES.sub("", item)
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
