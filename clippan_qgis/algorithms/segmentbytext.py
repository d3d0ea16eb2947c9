"""clippan:segmentbytext"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsFeature,
    QgsFeatureSink,
    QgsFields,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingUtils,
    QgsRasterLayer,
    QgsVectorLayer,
)

from clippan.catalogue.prompts import parse, shapefile_hints
from clippan.core.errors import Cancelled, ClippanError
from clippan.jobs import Refinement, SegmentRequest

from .. import classmap, sources, styling
from . import base
from .segmentation import PromptAlgorithm


class SegmentByText(PromptAlgorithm):
    """Makes a map of the classes that one names."""

    LOGIT_SCALE = "LOGIT_SCALE"
    BACKGROUND = "BACKGROUND"
    REFINEMENT = "REFINEMENT"
    MIN_AREA = "MIN_AREA"
    SIMPLIFY = "SIMPLIFY"
    OUTPUT = "OUTPUT"
    CONFIDENCE = "CONFIDENCE"
    PROBABILITIES = "PROBABILITIES"
    POLYGONS = "POLYGONS"
    AREAS = "AREAS"

    NAME = "segmentbytext"
    TITLE = "Segment by text"
    TAGS = (
        *("segmentation", "classification", "text", "prompt", "open vocabulary", "land cover", "land use"),
        *("clip", "map", "classes", "polygons", "vectorize"),
    )
    HELP = (
        "Makes a map of the classes that you name: type “water; forest, trees; building, roof”, or choose a preset. No "
        "training and no samples are needed: a vision-language model compares each place with your words.\n\n"
        "The map is a raster with a value a class, in the order of the table, and opens with names and colours. Beside "
        "it you can have the confidence, the probability of each class, polygons, and a table of areas.\n\n"
        "Name all that covers a good part of the scene: each place gets the class that fits best. Other words for a "
        "class help, and so does “Looks like”. What should rather stay unclassified than be wrong gets a confidence "
        "under “At least”. “Calibrate prompts” fits the table to a few labelled places.\n\n"
        "The starter model comes with the plugin; larger models (Download model) know more words and see finer."
    )

    def __init__(self):
        super().__init__()
        self._answer = {}
        self._places = {}  # where each output lies, as QGIS knows it
        self._sink = None

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_input(
            "What to map: a satellite or aerial picture of any size, or a map service such as XYZ tiles (then choose "
            "an extent)."
        )
        self.add_extent("Only this part of the raster. Map services need one.")
        self.add_looking()
        integer, double = Qgis.ProcessingNumberParameterType.Integer, Qgis.ProcessingNumberParameterType.Double
        self.add(
            QgsProcessingParameterNumber(
                self.LOGIT_SCALE, "Sharpness of the confidence", double, None, optional=True, minValue=1e-6
            ),
            "What the likeness to each class is multiplied by before it becomes a probability: a larger number makes "
            "the model surer of itself. Empty means what a calibration has found, or 50.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterBoolean(self.BACKGROUND, "Leave all else unclassified", SegmentRequest.background),
            "Leaves unclassified what common words for other land covers and uses fit better than yours. With a single "
            "class it is always so.",
            advanced=True,
        )
        labels = {"guided": "Follow the edges of the picture", "none": "None: as the model sees it"}
        self.add(
            base.choice(self.REFINEMENT, "Refinement of edges", labels, SegmentRequest.refinement.value),
            "The model sees in cells of several pixels. This moves the borders of the classes to the edges in the "
            "picture.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterNumber(
                self.MIN_AREA, "Smallest polygon (pixels)", integer, SegmentRequest.min_area, minValue=0
            ),
            "Polygons that are smaller join their largest neighbour.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterNumber(
                *(self.SIMPLIFY, "Smoothing of polygons (pixels)", double, SegmentRequest.simplify),
                minValue=0,
                maxValue=100,
            ),
            "How far an outline may move, so that it does not follow every pixel; 0 leaves the edges of the pixels.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterRasterDestination(self.OUTPUT, "Class map"),
            "The GeoTIFF to write: 1 for the first class, 2 for the second, …, and 0 for what is unclassified.",
        )
        self.add(
            QgsProcessingParameterFeatureSink(
                *(self.POLYGONS, "Polygons", Qgis.ProcessingSourceType.VectorPolygon),
                optional=True,
                createByDefault=False,
            ),
            "The map as polygons, with class, mean confidence and area.",
        )
        for name, label, help_text in (
            (self.CONFIDENCE, "Confidence", "A raster of how sure the model is of each pixel's class, from 0 to 1."),
            (self.PROBABILITIES, "Probabilities", "A raster with a band for each class: its probability, from 0 to 1."),
        ):
            self.add(
                QgsProcessingParameterRasterDestination(name, label, optional=True, createByDefault=False), help_text
            )
        self.add(
            QgsProcessingParameterFileDestination(
                self.AREAS, "Table of areas", "CSV files (*.csv)", optional=True, createByDefault=False
            ),
            "A CSV file with the area and the mean confidence of each class; the log shows the same.",
        )
        self.addOutput(QgsProcessingOutputNumber("CLASS_COUNT", "Classes that were found"))
        self.addOutput(QgsProcessingOutputNumber("POLYGON_COUNT", "Polygons"))
        self.addOutput(QgsProcessingOutputNumber("UNCLASSIFIED", "Part that stayed unclassified, 0 to 1"))
        self.addOutput(QgsProcessingOutputString("MODEL_USED", "Model used"))
        self.addOutput(QgsProcessingOutputString("DEVICE_USED", "Device used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        extent, crs = self.extent(parameters, context)
        base.check_services(extent, self.rasters(parameters, self.INPUT, context))
        return SegmentRequest(
            raster=self.source(parameters, self.INPUT, context, sources.indexable),
            output="",
            min_area=self.parameterAsInt(parameters, self.MIN_AREA, context),
            simplify=self.parameterAsDouble(parameters, self.SIMPLIFY, context),
            logit_scale=self.number(parameters, self.LOGIT_SCALE, context),
            background=self.parameterAsBool(parameters, self.BACKGROUND, context),
            refinement=Refinement(self.parameterAsEnumString(parameters, self.REFINEMENT, context)),
            extent=extent,
            crs=crs,
            **self.looking(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        rasters = (self.OUTPUT, self.CONFIDENCE, self.PROBABILITIES)
        self._places = {name: self.parameterAsOutputLayer(parameters, name, context) for name in rasters}
        polygons = ""
        if base.is_wanted(parameters.get(self.POLYGONS), context):
            polygons = QgsProcessingUtils.generateTempFilename("polygons.gpkg", context)
            # The sink is made once there are polygons: a run that fails leaves no empty layer.
            self._sink = lambda fields, crs: self.parameterAsSink(
                parameters, self.POLYGONS, context, fields, Qgis.WkbType.MultiPolygon, crs
            )
        output, confidence, probabilities = (sources.absolute(self._places[name]) for name in rasters)
        return replace(
            request,
            output=output,
            confidence=confidence,
            probabilities=probabilities,
            polygons=polygons,
            areas=sources.absolute(self.parameterAsFileOutput(parameters, self.AREAS, context)),
        )

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        self._answer = answer
        for sentence in answer["hints"]:
            feedback.pushWarning(sentence)
        classes = answer["classes"]
        base.tell(feedback, [("Class", "Share", "Hectares", "Mean confidence"), *map(_row, classes)])
        feedback.pushInfo(
            f"{answer['width']} × {answer['height']} pixels in {answer['seconds']:.0f} s with {answer['model']} on "
            f"{answer['device']}, in windows of {', '.join(map(str, answer['window']))} pixels"
        )
        if self._sink is not None:
            self._places[self.POLYGONS] = self._copy(answer["polygons"], feedback)
        results = {name: output for name, output in self._places.items() if output}
        if answer["areas"]:
            results[self.AREAS] = answer["areas"]
        return {
            **results,
            "CLASS_COUNT": sum(1 for item in classes if item["value"] and item["pixels"]),
            "POLYGON_COUNT": answer["count"],
            "UNCLASSIFIED": sum(item["share"] for item in classes if not item["value"]),
            "MODEL_USED": answer["model"],
            "DEVICE_USED": answer["device"],
        }

    def postProcessAlgorithm(self, context, feedback):
        """Writes the styles beside the files, and has the layers styled if they are loaded."""
        classes, maker = self._answer["classes"], Path(self._answer["model"]).name
        style = partial(classmap.style, classes=classes, provenance=self._answer["provenance"])
        for name, shown in (
            (self.OUTPUT, style),
            (self.CONFIDENCE, classmap.style_confidence),
            (self.PROBABILITIES, classmap.style_confidence),
        ):
            if self._places[name]:
                styling.write_sidecar(sources.absolute(self._places[name]), shown)
                self.on_load(context, name, self._places[name], QgsRasterLayer, shown, maker)
        polygons = partial(classmap.style_polygons, classes=classes)
        self.on_load(context, self.POLYGONS, self._places.get(self.POLYGONS, ""), QgsVectorLayer, polygons, maker)
        return {}

    def _copy(self, path: str, feedback) -> str:
        """Copies the engine's polygons to where they are wanted, which any provider of QGIS may hold."""
        layer = QgsVectorLayer(path, "polygons", "ogr")
        fields = QgsFields()
        for field in layer.fields():
            if field.name() != "fid":  # GeoPackage's own number
                fields.append(field)
        sink, output = self._sink(fields, layer.crs())
        self._sink = None
        if sink is None:
            raise ClippanError(f"The layer {output} cannot be written; choose another place.")
        for feature in layer.getFeatures():
            if feedback.isCanceled():
                raise Cancelled("Cancelled; the map is written, its polygons are not all.")
            copy = QgsFeature(fields)
            copy.setAttributes([feature[field.name()] for field in fields])
            geometry = feature.geometry()
            geometry.convertToMultiType()
            copy.setGeometry(geometry)
            if not sink.addFeature(copy, QgsFeatureSink.Flag.FastInsert):
                raise ClippanError(f"The layer {output} cannot be written ({sink.lastError()}).")
        del sink  # written when it goes
        if output.lower().endswith(".shp"):
            for sentence in shapefile_hints(parse(self._request.classes)):
                feedback.pushWarning(sentence)
        return output


def _row(item) -> tuple[str, ...]:
    return (
        item["name"],
        f"{item['share']:.1%}",
        "–" if item["hectares"] is None else f"{item['hectares']:.2f}",
        "–" if item["confidence"] is None else f"{item['confidence']:.2f}",
    )
