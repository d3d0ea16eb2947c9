"""clippan:buildtileindex"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
)

from clippan.jobs import IndexRequest

from .. import sources
from . import base


class BuildTileIndex(base.JobAlgorithm):
    """Makes rasters searchable by text."""

    RASTERS = "RASTERS"
    FOLDER = "FOLDER"
    TILE_METRES = "TILE_METRES"
    TILE = "TILE"
    OVERLAP = "OVERLAP"
    LOAD = "LOAD"
    OUTPUT = "OUTPUT"

    NAME = "buildtileindex"
    TITLE = "Build tile index"
    GROUP = "Search"
    TAGS = ("search", "text", "clip", "embedding", "index", "tiles", "retrieval", "catalogue")
    HELP = (
        "Cuts rasters into tiles and lets a vision-language model describe each by numbers, so that places can be "
        "searched by words, by an example or by a place on the map: with Search by text, Search by example, or in the "
        "search panel.\n\n"
        "Rasters of the project, whole folders, mosaics and map services (XYZ, WMS; with an extent) will do. The index "
        "is a GeoPackage, which opens as a normal layer, with a file of vectors beside it: keep the two together. Run "
        "the same again to add what is new, to index anew what has changed, and to drop what is gone; what was "
        "interrupted goes on where it stopped.\n\n"
        "The starter model comes with the plugin and knows land cover and land use; larger models (Download model) "
        "know much more."
    )

    def __init__(self):
        super().__init__()
        self._show = ()

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add(
            QgsProcessingParameterMultipleLayers(
                self.RASTERS, "Rasters", Qgis.ProcessingSourceType.Raster, optional=True
            ),
            "What to index: rasters of any size and kind, also map services such as XYZ tiles (then choose an extent).",
        )
        self.add(
            QgsProcessingParameterFile(
                self.FOLDER, "Folder of rasters", Qgis.ProcessingFileParameterBehavior.Folder, optional=True
            ),
            "A folder whose rasters are indexed as well, with all folders below it. A scene of several files (.SAFE, "
            "Landsat, …) is one raster; masks, previews and maps that CLIPPan made are left aside.",
        )
        self.add_model(
            "Which model describes the tiles. An index is searched with the model that made it.", IndexRequest.model
        )
        self.add(
            QgsProcessingParameterString(
                self.TILE_METRES, "Tile size (metres), such as 200 or 200, 800", optional=True
            ),
            "The edge of the tiles on the ground: about as large as what you look for with some of its surroundings. "
            "Several sizes find small and large things. Empty means what suits the pixel size: 640 m at 10 m, "
            "160 m at 1 m.",
        )
        self.add(
            QgsProcessingParameterString(self.TILE, "Tile size (pixels)", optional=True),
            "The same in pixels; for pictures without coordinates.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterNumber(
                self.OVERLAP,
                "Overlap of tiles",
                Qgis.ProcessingNumberParameterType.Double,
                IndexRequest.overlap,
                minValue=0,
                maxValue=0.9,
            ),
            "How much neighbouring tiles overlap, as a part of their edge. More finds things at borders of tiles "
            "better, and takes longer.",
            advanced=True,
        )
        self.add_picture_bands()
        self.add_stretch()
        self.add_nodata()
        self.add_extent("Only tiles that touch it. Map services need one.")
        self.add_device()
        self.add_threads()
        self.add(
            QgsProcessingParameterBoolean(self.LOAD, "Show the tiles as a layer", False),
            "Adds the outlines of all tiles to the map.",
        )
        self.add(
            QgsProcessingParameterFileDestination(self.OUTPUT, "Index", "GeoPackage (*.gpkg)"),
            "The index to make, or to bring up to date if it exists.",
        )
        self.addOutput(QgsProcessingOutputNumber("TILES", "Tiles in the index"))
        self.addOutput(QgsProcessingOutputNumber("ADDED", "Tiles added"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        layers = self.rasters(parameters, self.RASTERS, context)
        rasters = [sources.indexable(layer) for layer in layers]
        folder = self.parameterAsString(parameters, self.FOLDER, context)
        extent, crs = self.extent(parameters, context)
        base.check_services(extent, layers)
        return IndexRequest(
            rasters=tuple([*rasters, sources.absolute(folder)] if folder else rasters),
            output="",
            model=self.model(parameters, context),
            tile_metres=base.numbers(self.parameterAsString(parameters, self.TILE_METRES, context), "tile size"),
            tile=tuple(
                round(edge)
                for edge in base.numbers(self.parameterAsString(parameters, self.TILE, context), "tile size")
            ),
            overlap=self.parameterAsDouble(parameters, self.OVERLAP, context),
            bands=self.bands(parameters, context),
            stretch=self.stretch(parameters, context),
            nodata=self.nodata(parameters, context),
            extent=extent,
            crs=crs,
            threads=self.threads(parameters, context),
            device=self.device(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        output = sources.absolute(self.parameterAsFileOutput(parameters, self.OUTPUT, context))
        if self.parameterAsBool(parameters, self.LOAD, context):
            self._show = (f"{output}|layername=tiles", Path(output).stem)
        return replace(request, output=output)

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        for sentence in (*answer["failed"], *answer["hints"]):
            feedback.pushWarning(sentence)
        feedback.pushInfo(
            f"{answer['tiles']} tiles: {answer['added']} added, {answer['kept']} kept, {answer['dropped']} dropped, "
            f"{answer['empty']} without data; {answer['rate']:.0f} tiles a second on {answer['device']}."
        )
        return {self.OUTPUT: answer["output"], "TILES": answer["tiles"], "ADDED": answer["added"]}

    def postProcessAlgorithm(self, context, feedback):
        """Has the tiles loaded, if that is wanted."""
        if self._show:
            details = QgsProcessingContext.LayerDetails(self._show[1], context.project(), self.OUTPUT)
            context.addLayerToLoadOnCompletion(self._show[0], details)
        return {}
