"""Which files data sources read, through virtual rasters, archives and names of subdatasets too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, Optional

from osgeo import gdal

from clippan.core.errors import ClippanError
from clippan.core.outputs import affected_files
from clippan.raster.products import product_files, read_text, til_tiles

# Files that read no others but those beside them; there may be thousands, so they are not opened.
_LEAVES = tuple(".tif .tiff .jp2 .png .jpg .jpeg .bmp .webp .ecw .sid .hdf .h5 .nc .gpkg .geojson .csv .zip".split())  # noqa: SIM905
_VRT_SUFFIXES = (".vrt", ".ovf")
_SIDECAR_SUFFIXES = (".aux.xml", ".ovr", ".msk")
# Around the file in vrt://a.tif?bands=1, NETCDF:"a.nc":x, GTIFF_DIR:1:a.tif, /vsizip/{a.zip}/b.tif, /vsisubfile/0_9,a
_DELIMITERS = re.compile(r"""[:"'?&=,;{}]""")
_MAX_DELIMITERS = 20

# By whether another file than the output itself would be replaced; then by whether an input only leads to it.
_OVERWRITES = (
    (
        "The output {output} is one of the inputs; choose another name.",
        "The output {output} is one of the inputs, through {source}; choose another name.",
    ),
    (
        "The output {output} touches {file}, which is one of the inputs; choose another name.",
        "The output {output} touches {file}, which is one of the inputs, through {source}; choose another name.",
    ),
)


def source_files(dataset: gdal.Dataset) -> list[str]:
    """The files that a dataset reads, each once."""
    return [name for _, name in _walk_sources([*(dataset.GetFileList() or []), dataset.GetDescription()])]


def refuse_overwriting(outputs: Iterable[str], inputs: Iterable[str]) -> None:
    """Raises ClippanError if writing an output would replace a file that an input reads.

    Args:
        outputs: files to write; empty names are skipped.
        inputs: files, GDAL data sources or XML descriptions; names of nothing are ignored.
    """
    there: dict[Any, tuple[str, str]] = {}  # what only is to be made can be no input
    for output in filter(None, outputs):
        owners = [output[: -len(side)] for side in _SIDECAR_SUFFIXES if output.endswith(side)]
        for name in (*affected_files(output), *owners):
            known = _identity(name)
            if known is not None:
                there.setdefault(known, (output, name))
    if not there:
        return
    for source in inputs:
        for known, name in _walk_sources([source, *product_files(source)]):
            if known in there:
                output, target = there[known]
                sentence = _OVERWRITES[target != output][name != source]
                label = "its XML" if source.lstrip().startswith("<") else source
                raise ClippanError(sentence, output=output, file=target, source=label)


def _walk_sources(sources: Iterable[str]) -> Iterator[tuple[Any, str]]:
    """The files that data sources read, each once, with what tells it from all others."""
    waiting = [(source, "") for source in sources]
    seen: set[Any] = set()
    while waiting:
        text, folder = waiting.pop()
        if text.lstrip().startswith("<"):
            waiting += _xml_values(text, folder)
            continue
        for name in _path_candidates(text, folder):
            known = _identity(name)
            if known is not None and known not in seen:
                seen.add(known)
                yield known, name
                waiting += _referenced_files(name)


def _identity(name: str) -> Optional[Any]:
    """What identifies a file under all its names; None if there is no such file."""
    try:
        if name.startswith("/vsi"):
            return name if gdal.VSIStatL(name) is not None else None
        state = os.stat(name)  # noqa: PTH116
        return (state.st_dev, state.st_ino)
    except (OSError, ValueError, RuntimeError):
        return None


def _path_candidates(text: str, folder: str) -> Iterator[str]:
    """What in a data source's name may be a file; in a folder, if one is given."""
    marks = [match.start() for match in _DELIMITERS.finditer(text)][:_MAX_DELIMITERS]
    starts, ends = [0, *(mark + 1 for mark in marks)], [*marks, len(text)]
    for start in starts:
        for end in ends:
            part = text[start:end]
            if not part:
                continue
            # vrt://a.tif, and after it is cut off //a.tif, mean a file of this folder
            for name in dict.fromkeys((part, part.lstrip("/") if part.startswith("//") else part)):
                place = os.path.join(folder, name) if folder and not name.startswith("/vsi") else name  # noqa: PTH118
                yield place
                yield from _enclosing_archives(place)


def _enclosing_archives(name: str) -> Iterator[str]:
    """The files outside that a path inside an archive may stand for."""
    inner = re.sub(r"^(/?vsi\w+/)+", "", name)
    while inner and inner != name:
        if os.path.isfile(inner):  # noqa: PTH113
            yield inner
        inner, name = os.path.dirname(inner), inner  # noqa: PTH120


def _referenced_files(name: str) -> list[tuple[str, str]]:
    """What a file names as its sources, each with the folder that it starts from."""
    lower = name.lower()
    if lower.endswith(_LEAVES):
        return []
    folder = os.path.dirname(name)  # noqa: PTH120
    if lower.endswith(".til"):
        return [(tile, folder) for tile in til_tiles(name)]
    if lower.endswith(_VRT_SUFFIXES):
        return _xml_values(read_text(name), folder)
    try:
        dataset = gdal.OpenEx(name, gdal.OF_RASTER | gdal.OF_VECTOR)
        return [(other, "") for other in dataset.GetFileList() or [] if other != name]
    except RuntimeError:  # no data source: a text, a model
        return []


def _xml_values(text: str, folder: str) -> list[tuple[str, str]]:
    """All values in an XML description, whatever they mean, each with the folder that it starts from."""
    found: list[tuple[str, str]] = []
    try:
        waiting = [gdal.ParseXMLString(text)]
    except RuntimeError:
        return found
    while waiting:
        kind, _, *children = waiting.pop() or (gdal.CXT_Comment, "")
        if kind != gdal.CXT_Element:
            continue
        attributes = {child[1].lower(): child[2][1] for child in children if child[0] == gdal.CXT_Attribute}
        start = folder if attributes.get("relativetovrt") == "1" else ""
        found += [(child[1].strip(), start) for child in children if child[0] == gdal.CXT_Text]
        waiting += children
    return [(text, start) for text, start in found if text]
