"""Thumbnails of tiles."""

from __future__ import annotations

from pathlib import Path

from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.outputs import write_error, write_output
from clippan.jobs.search import ThumbnailsRequest, ThumbnailsResult
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.report.pictures import png
from clippan.search.backends import open_reader


def run(request: ThumbnailsRequest, context: Context) -> ThumbnailsResult:
    index = open_reader(request.index)
    try:
        Path(request.folder).mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(request.folder, error) from error
    files: dict[str, str] = {}
    opened, scene = 0, None  # one raster is open at a time
    tiles = sorted(index.tiles(list(request.tiles)), key=lambda tile: tile.raster_id)
    for position, tile in enumerate(tiles):
        context.progress(100 * position / len(tiles), "Creating thumbnails")
        # The numbers of tiles are reused after a raster was removed, those of rasters are not.
        target = Path(request.folder) / f"{tile.raster_id}-{tile.id}.png"
        if not target.is_file():
            raster = index.rasters[tile.raster_id]
            try:
                if scene is None or opened != tile.raster_id:
                    opened, scene = (
                        tile.raster_id,
                        Renderer(raster.path, RenderOptions.from_json(raster.options), raster.stretch),
                    )
                picture, _ = scene.picture(tile.window, request.pixels)
                with write_output(str(target)) as part:
                    part.write_bytes(png(picture))
            except ClippanError as error:  # the raster was moved, or its disk is not connected
                context.log(error.message)
                continue
        files[str(tile.id)] = str(target)
    return ThumbnailsResult(files)
