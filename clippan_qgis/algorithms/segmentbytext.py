from __future__ import annotations

from functools import partial
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsFeature,
    QgsFeatureSink,
    QgsFields,
    QgsProcessingUtils,
    QgsVectorLayer,
)

from clippan.catalogue.prompts import parse_prompts, shapefile_hints
from clippan.core.errors import Cancelled, ClippanError
from clippan.jobs import SegmentRequest

from .. import classmap
from ..i18n import tr
from . import base
from .parameters import JobParameters, MapServiceAdapter, PolygonSinkAdapter, is_given


class _PolygonSinkAdapter(PolygonSinkAdapter):
    """The polygons, which the engine writes to a file from which they are copied."""

    def value(self, parameters, context):
        """A temporary file; empty if the polygons are not wanted."""
        given = is_given(parameters.get(self.name), context)
        return QgsProcessingUtils.generateTempFilename("polygons.gpkg", context) if given else ""


class SegmentByText(base.JobAlgorithm):
    PARAMETERS = JobParameters(
        SegmentRequest,
        names={"raster": "INPUT"},
        adapters={"raster": MapServiceAdapter, "polygons": _PolygonSinkAdapter},
    )
    RESULT_VALUES = (
        base.ResultValue(
            "CLASS_COUNT",
            "Classes found",
            lambda result: sum(1 for item in result.classes if item.value and item.pixels),
        ),
        base.ResultValue("POLYGON_COUNT", "Polygons", lambda result: result.count),
        base.ResultValue(
            "UNCLASSIFIED",
            "Unclassified share, 0 to 1",
            lambda result: sum(item.share for item in result.classes if not item.value),
        ),
        base.MODEL_USED,
        base.DEVICE_USED,
    )

    NAME = "segmentbytext"
    GROUP = "Segmentation"
    TAGS = (
        *("segmentation", "classification", "text", "prompt", "open vocabulary", "land cover", "land use"),
        *("clip", "map", "classes", "polygons", "vectorize"),
    )
    HELP = (
        "Maps the classes that you name. Type “water; forest, trees; building, roof”, or choose a preset. No training "
        "and no samples are needed: a vision-language model compares each place with your words.\n\n"
        "The map is a raster with one value per class, in the order of the table, and is loaded with class names and "
        "colours. The confidence, the probability of each class, polygons and a table of areas are optional.\n\n"
        "Name all classes that cover a large part of the scene, because each place gets the class that fits best. "
        "Synonyms and “Looks like” improve the result. To leave uncertain places unclassified, set a minimum "
        "confidence under “At least”. “Calibrate prompts” adjusts the table to a few labelled places.\n\n"
        "The starter model comes with the plugin. Larger models (see Download model) know more words and show finer "
        "detail."
    )
    _make_sink = None  # makes the layer of the polygons from their fields and CRS

    def resolve_outputs(self, request, parameters, context):
        """Keeps how the sink of the polygons is made: their fields and CRS are known once they exist."""
        request = super().resolve_outputs(request, parameters, context)
        if request.polygons:
            self._make_sink = lambda fields, crs: self.parameterAsSink(
                parameters, "POLYGONS", context, fields, Qgis.WkbType.MultiPolygon, crs
            )
        return request

    def finish(self, result, feedback):
        if self._make_sink is not None:
            self.set_destination("POLYGONS", self._copy_to_sink(result.polygons, feedback))
        return super().finish(result, feedback)

    def postProcessAlgorithm(self, context, feedback):
        classes, name_suffix = self._result.classes, Path(self._result.model).name
        style = partial(classmap.style, classes=classes, provenance=self._result.provenance)
        self.style_raster(context, "OUTPUT", style, name_suffix)
        for name in ("CONFIDENCE", "PROBABILITIES"):
            self.style_raster(context, name, classmap.style_confidence, name_suffix)
        self.style_on_load(
            context, "POLYGONS", QgsVectorLayer, partial(classmap.style_polygons, classes=classes), name_suffix
        )
        return {}

    def _copy_to_sink(self, path: str, feedback) -> str:
        layer = QgsVectorLayer(path, "polygons", "ogr")
        fields = QgsFields(layer.fields())
        fields.remove(fields.indexOf("fid"))  # GeoPackage's own number
        sink, output = self._make_sink(fields, layer.crs())
        self._make_sink = None
        if sink is None:
            raise ClippanError("The layer {layer} cannot be written; choose another place.", layer=output)
        for feature in layer.getFeatures():
            if feedback.isCanceled():
                raise Cancelled("Cancelled; the map is complete, but some of its polygons are missing.")
            copy = QgsFeature(fields)
            copy.setAttributes([feature[field.name()] for field in fields])
            geometry = feature.geometry()
            geometry.convertToMultiType()
            copy.setGeometry(geometry)
            if not sink.addFeature(copy, QgsFeatureSink.Flag.FastInsert):
                raise ClippanError(
                    "The layer {layer} cannot be written ({reason}).", layer=output, reason=sink.lastError()
                )
        del sink  # written when it goes
        if output.lower().endswith(".shp"):
            for sentence in shapefile_hints(parse_prompts(self._request.classes)):
                feedback.pushWarning(tr(sentence))
        return output
