"""clippan:searchbytext and clippan:searchbyexample"""

from __future__ import annotations

from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessingParameterFeatureSink,
    QgsRasterLayer,
    QgsVectorLayer,
)

from clippan.core.errors import ClippanError
from clippan.jobs import SearchRequest

from .. import hits, query
from . import base
from .parameters import CrsEditor, Editor, FileEditor


class _SinkEditor(Editor):
    """The places, as a layer of any provider; the engine writes no file of them."""

    def definition(self, item, name, label):
        return QgsProcessingParameterFeatureSink(name, label, Qgis.ProcessingSourceType.VectorPolygon)

    def value(self, algorithm, item, name, parameters, context):
        return ""


class _PlaceCrsEditor(CrsEditor):
    """The coordinate system of the extent, and else that of the place."""

    def value(self, algorithm, item, name, parameters, context):
        found = super().value(algorithm, item, name, parameters, context)
        if not found and parameters.get("PLACE"):
            found = query.crs_name(algorithm.parameterAsPointCrs(parameters, "PLACE", context))
        return found


class _Search(base.JobAlgorithm):
    """What both have: where to search, how much, and what to do with it."""

    JOB = SearchRequest
    GROUP = "Search"
    NAMES = {"rasters": "ONLY", "at": "PLACE"}
    HIDDEN = frozenset({"like", "unlike"})
    EDITORS = {"output": _SinkEditor(), "crs": _PlaceCrsEditor()}
    OUTPUTS = (base.Output("FOUND", "Places found", lambda result: len(result.hits)),)

    def __init__(self):
        super().__init__()
        self._sink = None

    def place(self, request, parameters, context):
        """Keeps how the sink is made: its CRS is known once the index has told it."""
        self._sink = lambda crs: self.parameterAsSink(
            parameters, "OUTPUT", context, hits.fields(), Qgis.WkbType.Polygon, crs
        )
        return super().place(request, parameters, context)

    def finish(self, result, feedback) -> dict[str, Any]:
        """Writes the places."""
        sink, output = self._sink(hits.crs(result))
        if sink is None:
            raise ClippanError("The layer {layer} cannot be written; choose another place.", layer=output)
        sink.addFeatures(hits.features(result))
        del sink  # written when it goes
        self._sink = None
        self.placed("OUTPUT", output)
        return super().finish(result, feedback)

    def postProcessAlgorithm(self, context, feedback):
        """Has the layers styled if they are loaded."""
        self.on_load(context, "OUTPUT", QgsVectorLayer, hits.style)
        self.on_load(context, "HEATMAP", QgsRasterLayer, hits.style_heat)
        return {}


class SearchByText(_Search):
    """Finds places that fit a text."""

    HIDDEN = frozenset({*_Search.HIDDEN, "image", "at"})

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

    def initAlgorithm(self, configuration=None):
        """Here the text has to be given."""
        super().initAlgorithm(configuration)
        text = self.parameterDefinition("TEXT")
        text.setFlags(text.flags() & ~Qgis.ProcessingParameterFlag.Optional)


class SearchByExample(_Search):
    """Finds places that look like a picture or another place."""

    EDITORS = {**_Search.EDITORS, "image": FileEditor()}

    NAME = "searchbyexample"
    TITLE = "Search by example"
    TAGS = ("find", "similar", "image", "picture", "example", "clip", "retrieval", "place")
    HELP = (
        "Finds the places of an index that look like an example: a picture, or the tile at a place on the map. If a "
        "text is given as well, the places have to match both.\n\n"
        "The index is made by Build tile index."
    )
