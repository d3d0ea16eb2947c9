"""Thumbnails of tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from osgeo import gdal

from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.outputs import write_output
from clippan.jobs.search import ThumbnailsRequest, ThumbnailsResult
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.search.backends import open_reader


def run(request: ThumbnailsRequest, context: Context) -> ThumbnailsResult:
    index = open_reader(request.index)
    Path(request.folder).mkdir(exist_ok=True)
    files: dict[str, str] = {}
    number, scene = 0, None  # one raster is open at a time
    tiles = sorted(index.tiles(list(request.tiles)), key=lambda tile: tile.raster)
    for position, tile in enumerate(tiles):
        context.progress(100 * position / len(tiles), "Creating thumbnails")
        # The numbers of tiles are reused after a raster was removed, those of rasters are not.
        target = Path(request.folder) / f"{tile.raster}-{tile.id}.png"
        if not target.is_file():
            raster = index.rasters[tile.raster]
            try:
                if scene is None or number != tile.raster:
                    number, scene = tile.raster, Renderer(raster.path, RenderOptions.of(raster.look), raster.stretch)
                picture, _ = scene.picture(tile.window, request.pixels)
                _write(target, picture)
            except ClippanError as error:  # the raster was moved, or its disk is not connected
                context.log(str(error))
                continue
        files[str(tile.id)] = str(target)
    return ThumbnailsResult(files)


def _write(target: Path, picture: np.ndarray) -> None:
    """Writes a picture uint8 (3, height, width) as PNG."""
    memory = gdal.GetDriverByName("MEM").Create("", picture.shape[2], picture.shape[1], 3, gdal.GDT_Byte)
    memory.WriteArray(picture)
    with write_output(str(target)) as part:
        gdal.GetDriverByName("PNG").CreateCopy(str(part), memory)
