"""clippan:buildtileindex"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsProcessingContext,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
)

from clippan.clip.models import MODELS
from clippan.errors import ClippanError
from clippan.jobs import IndexRequest, Stretch

from .. import query, sources
from . import base


class BuildTileIndex(base.JobAlgorithm):
    """Makes rasters searchable by text."""

    RASTERS = "RASTERS"
    FOLDER = "FOLDER"
    MODEL = "MODEL"
    WEIGHTS = "WEIGHTS"
    TILE_METRES = "TILE_METRES"
    TILE = "TILE"
    OVERLAP = "OVERLAP"
    STRETCH = "STRETCH"
    EXTENT = "EXTENT"
    THREADS = "THREADS"
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
            "A folder whose rasters are indexed as well, with all folders below it.",
        )
        labels = {name: model.label for name, model in MODELS.items()}
        self.add(
            base.choice(self.MODEL, "Model", labels, IndexRequest.model),
            "Which model describes the tiles. An index is searched with the model that made it.\n"
            + "\n".join(f"{model.label}: {model.notes}" for model in MODELS.values()),
        )
        self.add(
            QgsProcessingParameterFile(
                self.WEIGHTS, "Own model", Qgis.ProcessingFileParameterBehavior.Folder, optional=True
            ),
            "A folder with a model of your own, in the form of open_clip (open_clip_config.json and weights), in place "
            "of the one above.",
            advanced=True,
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
        self.add_bands()
        self.add(
            base.choice(
                self.STRETCH,
                "Stretch",
                {
                    "auto": "Automatic: bytes as they are, all else by its brightness",
                    "percentile": "1st to 99th percentile, each band for itself",
                    "reflectance": "Reflectance, 0 to 0.3 (whole numbers: 0 to 3000)",
                    "none": "None: values are 0 to 255",
                },
                IndexRequest.stretch.value,
            ),
            "How values become a picture for the model, the same for all of a raster.",
            advanced=True,
        )
        self.add_nodata()
        self.add(
            QgsProcessingParameterExtent(self.EXTENT, "Extent", optional=True),
            "Only tiles that touch it. Map services need one.",
        )
        self.add_device()
        self.add(
            QgsProcessingParameterNumber(
                self.THREADS, "Threads", Qgis.ProcessingNumberParameterType.Integer, IndexRequest.threads, minValue=0
            ),
            "How many processor cores to use; 0 means all.",
            advanced=True,
        )
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
        extent = self.parameterAsExtent(parameters, self.EXTENT, context)
        crs = self.parameterAsExtentCrs(parameters, self.EXTENT, context)
        if extent.isNull() and any(sources.is_service(layer) for layer in layers):
            raise ClippanError("A map service has no end; choose an extent.")
        return IndexRequest(
            rasters=tuple([*rasters, sources.absolute(folder)] if folder else rasters),
            output="",
            model=self.parameterAsString(parameters, self.WEIGHTS, context)
            or self.parameterAsEnumString(parameters, self.MODEL, context),
            tile_metres=_numbers(self.parameterAsString(parameters, self.TILE_METRES, context)),
            tile=tuple(round(edge) for edge in _numbers(self.parameterAsString(parameters, self.TILE, context))),
            overlap=self.parameterAsDouble(parameters, self.OVERLAP, context),
            bands=self.bands(parameters, context),
            stretch=Stretch(self.parameterAsEnumString(parameters, self.STRETCH, context)),
            nodata=self.nodata(parameters, context),
            extent=(
                () if extent.isNull() else (extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum())
            ),
            crs="" if extent.isNull() else query.crs_name(crs),
            threads=self.parameterAsInt(parameters, self.THREADS, context),
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
        for sentence in answer["failed"]:
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


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in text.replace(";", " ").replace(",", " ").split())
    except ValueError:
        raise ClippanError(f"The tile size “{text}” is not understood; write it like 200 or 200, 800.") from None
