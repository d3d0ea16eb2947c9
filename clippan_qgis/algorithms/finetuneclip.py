from __future__ import annotations

from qgis.core import Qgis, QgsProcessingParameterFile, QgsProcessingParameterRasterLayer

from clippan.core.errors import ClippanError
from clippan.jobs import FinetuneClipRequest, kinds

from .. import sources
from ..i18n import tr
from . import base
from .parameters import JobParameters, ParameterAdapter, is_given


class _DataAdapter(ParameterAdapter):
    """A folder of pictures or a raster: two parameters, of which one is given."""

    def definitions(self):
        folder = Qgis.ProcessingFileParameterBehavior.Folder
        pictures = QgsProcessingParameterFile("PICTURES", tr("Folder of pictures"), folder, optional=True)
        pictures.setHelp(
            tr(
                "A folder that holds one folder of pictures for each class, named after it. Leave it empty to learn "
                "from a raster."
            )
        )
        raster = QgsProcessingParameterRasterLayer("INPUT", tr("Raster"), optional=True)
        raster.setHelp(
            tr(
                "The raster that contains the labelled places, if no folder is chosen. A picture is cut out "
                "around each place."
            )
        )
        return [pictures, raster]

    def value(self, parameters, context):
        pictures = sources.absolute(self.algorithm.parameterAsFile(parameters, "PICTURES", context))
        raster = self.algorithm.parameterAsString(parameters, "INPUT", context)
        for layer in self.algorithm.layers(parameters, "INPUT", context):
            raster = sources.data_source(layer)
        if bool(pictures) == bool(raster):
            raise ClippanError(
                "The model can be trained on a folder of pictures or on a raster, not on both; choose one of the two."
            )
        if bool(raster) != is_given(parameters.get(self.sibling(kinds.VectorInput).name), context):
            raise ClippanError(
                "A raster needs labelled places, and labelled places need a raster; choose both, or only a "
                "folder of pictures."
            )
        return pictures or raster


class FinetuneClip(base.JobAlgorithm):
    PARAMETERS = JobParameters(FinetuneClipRequest, hidden={"layer"}, adapters={"data": _DataAdapter})
    RESULT_VALUES = (
        base.ResultValue("ALPHA_USED", "How far it went (α)", lambda result: result.alpha),
        base.ResultValue(
            "TASK_BEFORE", "Share of your pictures named correctly, before", lambda result: result.before.task
        ),
        base.ResultValue(
            "TASK_AFTER", "Share of your pictures named correctly, after", lambda result: result.after.task
        ),
        base.ResultValue(
            "CONTROL_BEFORE", "Share of the control set named correctly, before", lambda result: result.before.control
        ),
        base.ResultValue(
            "CONTROL_AFTER", "Share of the control set named correctly, after", lambda result: result.after.control
        ),
        base.ResultValue("CHIPS", "Training pictures", lambda result: result.chips),
        base.DEVICE_USED,
    )

    NAME = "finetuneclip"
    GROUP = "Models"
    TAGS = ("train", "fine-tune", "clip", "patch", "patching", "interpolation", "model", "classes", "scene", "robust")
    HELP = (
        "Trains a model of the list on your own classes, from pictures whose class you know, without losing its other "
        "knowledge. A model that is trained on new classes alone forgets others. The result therefore lies between the "
        "original model and the fully trained one. The position between them, α from 0 to 1, is chosen so that almost "
        "all of the former accuracy remains.\n\n"
        "The training data are either a folder that holds one folder of pictures for each class, named in English, or "
        "a raster with polygons or points that have a field with the class. The control set, a second folder of the "
        "same form with other classes, measures what the model should not forget. Without a control set, the loss "
        "cannot be measured, and α is 0.5.\n\n"
        "The log and the report show the share of pictures that are named correctly before and after, for your classes "
        "and for the control set, on pictures that were not used for training. The result is a folder. Choose it as "
        "“Own model” in Segment by text, Build tile index and other algorithms.\n\n"
        "This algorithm trains the model to name whole pictures. To distinguish places within a picture, use “Train "
        "region-aligned CLIP”."
    )
