"""clippan:searchbytext and clippan:searchbyexample: one search, asked in two ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from qgis.core import (
    Qgis,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterPoint,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterString,
    QgsRasterLayer,
    QgsVectorLayer,
)

from clippan.core.errors import ClippanError
from clippan.jobs import SearchRequest, check

from .. import hits, query, sources
from . import base


class _Search(base.JobAlgorithm):
    """What both have: where to search, how much, and what to do with it."""

    INDEX = "INDEX"
    TEXT = "TEXT"
    WITHOUT = "WITHOUT"
    TOP = "TOP"
    LEAST = "LEAST"
    ONLY = "ONLY"
    SINCE = "SINCE"
    UNTIL = "UNTIL"
    OVERLAPPING = "OVERLAPPING"
    HEATMAP = "HEATMAP"
    OUTPUT = "OUTPUT"

    GROUP = "Search"

    def __init__(self):
        super().__init__()
        self._sink = None
        self._output = ""
        self._heatmap = ""

    def add_index(self) -> None:
        """INDEX: where to search."""
        self.add(
            QgsProcessingParameterFile(self.INDEX, "Index", fileFilter="GeoPackage (*.gpkg);;All files (*)"),
            "What Build tile index has made; or a catalogue in PostgreSQL, written as "
            "postgresql://user@host/database?schema=name.",
        )

    def add_rest(self) -> None:
        """What narrows a search, and its outputs."""
        self.add(
            QgsProcessingParameterString(self.WITHOUT, "Without", optional=True),
            "What the places should not show; several texts are separated by semicolons.",
        )
        self.add(
            QgsProcessingParameterNumber(
                self.TOP,
                "Number of places at most",
                Qgis.ProcessingNumberParameterType.Integer,
                SearchRequest.top,
                minValue=1,
            ),
            "How many places to find, the best first.",
        )
        self.add(
            QgsProcessingParameterNumber(
                self.LEAST,
                "Confidence at least (0 to 1)",
                Qgis.ProcessingNumberParameterType.Double,
                SearchRequest.least,
                minValue=0,
                maxValue=1,
            ),
            "Leaves out places that are less probable.",
        )
        self.add_extent("Only places that touch it, such as the current view.")
        self.add(
            QgsProcessingParameterString(self.ONLY, "Only these rasters", optional=True),
            "File names of rasters of the index, separated by semicolons; empty means all.",
            advanced=True,
        )
        for name, label in ((self.SINCE, "Taken since"), (self.UNTIL, "Taken until")):
            self.add(
                QgsProcessingParameterString(name, label, optional=True),
                "A day, month or year, such as 2021-06-30, 2021-06 or 2021. Rasters that tell no date are left out.",
                advanced=True,
            )
        self.add(
            QgsProcessingParameterBoolean(self.OVERLAPPING, "Keep overlapping places", SearchRequest.overlapping),
            "Tiles overlap, and the best ones often do; usually only the best of them is kept.",
            advanced=True,
        )
        self.add_device()
        self.add(
            QgsProcessingParameterFeatureSink(self.OUTPUT, "Places found", Qgis.ProcessingSourceType.VectorPolygon),
            "The places as polygons, with rank, confidence, raster and date.",
        )
        self.add(
            QgsProcessingParameterRasterDestination(self.HEATMAP, "Heat map", optional=True, createByDefault=False),
            "A raster of the confidence everywhere.",
        )
        self.addOutput(QgsProcessingOutputNumber("FOUND", "Places found"))

    def asked(self, parameters, context) -> SearchRequest:
        """The request with what both algorithms ask for."""
        extent, crs = self.extent(parameters, context)
        index = self.parameterAsString(parameters, self.INDEX, context)
        return SearchRequest(
            index=index if check.is_database(index) else sources.absolute(index),
            text=query.split(self.parameterAsString(parameters, self.TEXT, context)),
            without=query.split(self.parameterAsString(parameters, self.WITHOUT, context)),
            top=self.parameterAsInt(parameters, self.TOP, context),
            least=self.parameterAsDouble(parameters, self.LEAST, context),
            extent=extent,
            crs=crs,
            rasters=query.split(self.parameterAsString(parameters, self.ONLY, context)),
            since=self.parameterAsString(parameters, self.SINCE, context).strip(),
            until=self.parameterAsString(parameters, self.UNTIL, context).strip(),
            overlapping=self.parameterAsBool(parameters, self.OVERLAPPING, context),
            device=self.device(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        # The sink is made once the CRS is known, which the index tells.
        self._sink = lambda crs: self.parameterAsSink(
            parameters, self.OUTPUT, context, hits.fields(), Qgis.WkbType.Polygon, crs
        )
        self._heatmap = self.parameterAsOutputLayer(parameters, self.HEATMAP, context)
        return replace(request, heatmap=sources.absolute(self._heatmap))

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        for sentence in answer["hints"]:
            feedback.pushWarning(sentence)
        for hit in answer["hits"]:
            feedback.pushInfo(f"{hit['rank']}. {hit['prompt']} ({hit['confidence']:.0%}), {hit['raster']}")
        sink, self._output = self._sink(hits.crs(answer))
        if sink is None:
            raise ClippanError(f"The layer {self._output} cannot be written; choose another place.")
        sink.addFeatures(hits.features(answer))
        del sink  # written when it goes
        self._sink = None
        results = {self.OUTPUT: self._output, "FOUND": len(answer["hits"])}
        return {**results, self.HEATMAP: self._heatmap} if self._heatmap else results

    def postProcessAlgorithm(self, context, feedback):
        """Has the layers styled if they are loaded."""
        self.on_load(context, self.OUTPUT, self._output, QgsVectorLayer, hits.style)
        self.on_load(context, self.HEATMAP, self._heatmap, QgsRasterLayer, hits.style_heat)
        return {}


class SearchByText(_Search):
    """Finds places that fit a text."""

    NAME = "searchbytext"
    TITLE = "Search by text"
    TAGS = ("find", "text", "clip", "prompt", "retrieval", "semantic", "place", "query")
    HELP = (
        "Finds the places of an index that fit what you write, such as “beach”, “river mouth with sandbanks” or "
        "“greenhouses; solar panels”, the best first. The confidence says how probable it is that a place shows that, "
        "compared with what places show in general.\n\n"
        "Build tile index makes the index. The search panel does the same with pictures, and flies to what it finds."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_index()
        self.add(
            QgsProcessingParameterString(self.TEXT, "What to look for"),
            "Words for what a place shows, in English. Of several texts, separated by semicolons, each place is told "
            "which one fits it best.",
        )
        self.add_rest()

    def build(self, parameters, context):
        """See JobAlgorithm."""
        return self.asked(parameters, context)


class SearchByExample(_Search):
    """Finds places that look like a picture or another place."""

    IMAGE = "IMAGE"
    PLACE = "PLACE"

    NAME = "searchbyexample"
    TITLE = "Search by example"
    TAGS = ("find", "similar", "image", "picture", "example", "clip", "retrieval", "place")
    HELP = (
        "Finds the places of an index that look like an example: a picture, or the tile at a place on the map. With a "
        "text beside it, places have to fit both.\n\n"
        "Build tile index makes the index."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_index()
        self.add(
            QgsProcessingParameterFile(self.IMAGE, "Example picture", optional=True),
            "A picture or raster of what you look for, seen from above at about the scale of the tiles.",
        )
        self.add(
            QgsProcessingParameterPoint(self.PLACE, "Place on the map", optional=True),
            "A point in the index whose surroundings you look for elsewhere.",
        )
        self.add(
            QgsProcessingParameterString(self.TEXT, "What it should show besides", optional=True),
            "Words that places have to fit as well.",
        )
        self.add_rest()

    def build(self, parameters, context):
        """See JobAlgorithm."""
        request = self.asked(parameters, context)
        image = self.parameterAsString(parameters, self.IMAGE, context)
        at: Optional[tuple[float, float]] = None
        if parameters.get(self.PLACE):
            crs = self.parameterAsExtentCrs(parameters, base.EXTENT, context) if request.extent else None
            crs = crs or self.parameterAsPointCrs(parameters, self.PLACE, context)
            point = self.parameterAsPoint(parameters, self.PLACE, context, crs)
            at = (point.x(), point.y())
            request = replace(request, crs=query.crs_name(crs))
        return replace(request, image=(sources.absolute(image),) if image else (), at=at or ())
