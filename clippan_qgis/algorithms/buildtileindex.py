from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qgis.core import Qgis, QgsProcessingContext, QgsProcessingParameterBoolean, QgsProcessingParameterFile

from clippan.jobs import IndexRequest

from .. import sources
from ..i18n import tr
from . import base
from .parameters import JobParameters, MapServiceAdapter


class BuildTileIndex(base.JobAlgorithm):
    FOLDER = "FOLDER"
    LOAD = "LOAD"

    PARAMETERS = JobParameters(
        IndexRequest,
        adapters={"rasters": MapServiceAdapter},
        defaults={"rasters": ()},  # a folder may be given instead
    )
    RESULT_VALUES = (
        base.ResultValue("TILES", "Tiles in the index", lambda result: result.tiles),
        base.ResultValue("ADDED", "Tiles added", lambda result: result.added),
    )

    NAME = "buildtileindex"
    GROUP = "Search"
    TAGS = ("search", "text", "clip", "embedding", "index", "tiles", "retrieval", "catalogue")
    HELP = (
        "Divides rasters into tiles and describes each tile by a vector, which a vision-language model computes. The "
        "index can then be searched by text, by an example picture or by a place on the map, with Search by text, "
        "Search by example or the search panel.\n\n"
        "The index can cover rasters of the project, whole folders, mosaics and map services (XYZ, WMS; they need an "
        "extent). It is a GeoPackage, which can be opened as a normal layer, and a file of vectors beside it. Keep the "
        "two files together. To update an index, run the algorithm again with the same settings: new rasters are "
        "added, changed rasters are indexed again, and missing rasters are removed. An interrupted run is resumed.\n\n"
        "The starter model comes with the plugin and knows land cover and land use. Larger models (see Download model) "
        "know much more."
    )
    _layer_to_show = ()  # source and name, if the tiles are to be loaded

    def initAlgorithm(self, configuration=None):
        super().initAlgorithm(configuration)
        self.add(
            QgsProcessingParameterFile(
                self.FOLDER, tr("Folder of rasters"), Qgis.ProcessingFileParameterBehavior.Folder, optional=True
            ),
            tr(
                "A folder whose rasters are also indexed, including all subfolders. A scene of several files "
                "(.SAFE, Landsat, …) counts as one raster. Masks, previews and maps made by CLIPPan are skipped."
            ),
        )
        self.add(
            QgsProcessingParameterBoolean(self.LOAD, tr("Show the tiles as a layer"), False),
            tr("Adds the outlines of all tiles to the project as a layer."),
        )

    def build(self, parameters, context):
        request = super().build(parameters, context)
        folder = self.parameterAsString(parameters, self.FOLDER, context)
        return replace(request, rasters=(*request.rasters, sources.absolute(folder))) if folder else request

    def resolve_outputs(self, request, parameters, context):
        request = super().resolve_outputs(request, parameters, context)
        if self.parameterAsBool(parameters, self.LOAD, context):
            self._layer_to_show = (f"{request.output}|layername=tiles", Path(request.output).stem)
        return request

    def postProcessAlgorithm(self, context, feedback):
        if self._layer_to_show:
            details = QgsProcessingContext.LayerDetails(self._layer_to_show[1], context.project(), "OUTPUT")
            context.addLayerToLoadOnCompletion(self._layer_to_show[0], details)
        return {}
