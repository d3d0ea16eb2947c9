"""What an index contains, without opening its model or its rasters."""

from __future__ import annotations

from clippan.catalogue.band_names import BandChoice
from clippan.catalogue.models import find_model
from clippan.clip import cache
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.jobs.index import AboutIndexRequest, AboutIndexResult
from clippan.jobs.rendering import Rendering
from clippan.raster.rendering import RenderOptions, short_crs
from clippan.search.backends import model_changed, open_reader


def run(request: AboutIndexRequest, context: Context) -> AboutIndexResult:
    index = open_reader(request.index)
    warning = ""
    try:
        found = cache.locate(find_model(index.info.model))
        if found is None:
            warning = Message(
                "The model {label} is not on this computer; the first search downloads it.", label=index.info.label
            )
        elif found.sha256 and index.info.sha256 and found.sha256 != index.info.sha256:
            warning = model_changed(index)
    except ClippanError as error:
        warning = error.message
    return AboutIndexResult(
        index.path,
        index.info.model,
        index.info.label,
        index.count,
        len(index.rasters),
        short_crs(index.info.crs),
        index.extent,
        tuple(raster.path for raster in index.rasters.values()),
        index.complete,
        tuple(
            Rendering(raster.path, BandChoice(bands, "as they were indexed"), raster.stretch)
            for raster in index.rasters.values()
            # An index of version 0.1 records only bands that were requested.
            if (bands := RenderOptions.from_json(raster.options).bands)
        ),
        warning,
    )
