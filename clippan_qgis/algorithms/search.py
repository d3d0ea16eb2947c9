from __future__ import annotations

from dataclasses import replace

from qgis.core import Qgis, QgsRasterLayer, QgsVectorLayer

from clippan.core.errors import ClippanError
from clippan.core.json import REQUIRED
from clippan.jobs import SearchRequest

from .. import hits
from . import base
from .parameters import JobParameters, PolygonSinkAdapter


class _Search(base.JobAlgorithm):
    """What both have: where to search, how much, and what to do with it."""

    GROUP = "Search"
    PARAMETERS = JobParameters(
        SearchRequest,
        names={"rasters": "ONLY", "at": "PLACE"},
        hidden={"like", "unlike"},
        adapters={"output": PolygonSinkAdapter},
        defaults={"output": REQUIRED},
    )
    RESULT_VALUES = (base.ResultValue("FOUND", "Places found", lambda result: len(result.hits)),)

    _make_sink = None  # makes the layer of the places from their CRS

    def resolve_outputs(self, request, parameters, context):
        """Keeps how the sink is made: its CRS is known once the index has told it."""
        self._make_sink = lambda crs: self.parameterAsSink(
            parameters, "OUTPUT", context, hits.fields(), Qgis.WkbType.Polygon, crs
        )
        return super().resolve_outputs(request, parameters, context)

    def finish(self, result, feedback):
        sink, output = self._make_sink(hits.crs(result))
        if sink is None:
            raise ClippanError("The layer {layer} cannot be written; choose another place.", layer=output)
        sink.addFeatures(hits.features(result))
        del sink  # written when it goes
        self._make_sink = None
        self.set_destination("OUTPUT", output)
        return super().finish(result, feedback)

    def postProcessAlgorithm(self, context, feedback):
        self.style_on_load(context, "OUTPUT", QgsVectorLayer, hits.style)
        self.style_on_load(context, "HEATMAP", QgsRasterLayer, hits.style_heat)
        return {}


class SearchByText(_Search):
    PARAMETERS = replace(
        _Search.PARAMETERS,
        hidden={*_Search.PARAMETERS.hidden, "image", "at"},
        defaults={**_Search.PARAMETERS.defaults, "text": REQUIRED},
    )

    NAME = "searchbytext"
    TITLE = "Search by text"
    TAGS = ("find", "text", "clip", "prompt", "retrieval", "semantic", "place", "query")
    HELP = (
        "Finds the places of an index that best match a text, such as “beach”, “river mouth with sandbanks” or "
        "“greenhouses; solar panels”, and lists the best match first. The confidence is the probability that a place "
        "shows what the text says, compared with common land covers and land uses.\n\n"
        "The index is made by Build tile index. The search panel offers the same search with previews, and zooms to "
        "the places found."
    )


class SearchByExample(_Search):
    NAME = "searchbyexample"
    TITLE = "Search by example"
    TAGS = ("find", "similar", "image", "picture", "example", "clip", "retrieval", "place")
    HELP = (
        "Finds the places of an index that look like an example: a picture, or the tile at a place on the map. If a "
        "text is given as well, the places have to match both.\n\n"
        "The index is made by Build tile index."
    )
