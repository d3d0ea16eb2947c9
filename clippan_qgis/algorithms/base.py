"""What the algorithms share: building a request, running it in the engine, saying in one sentence what failed."""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Callable, NamedTuple

from qgis.core import (
    QgsFeatureRequest,
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterRasterLayer,
    QgsProcessingUtils,
    QgsRasterLayer,
    QgsVectorFileWriter,
)
from qgis.PyQt.QtGui import QIcon

from clippan.core.errors import ClippanError
from clippan.core.messages import render
from clippan.jobs.base import Request, Result

from .. import paths, sources, styling
from ..engine import python, worker
from ..i18n import tr
from ..settings import Settings
from .parameters import JobParameters


class Algorithm(QgsProcessingAlgorithm):
    """Names, help and icon from class attributes."""

    NAME = ""
    TITLE = ""
    GROUP = ""
    TAGS: tuple[str, ...] = ()
    HELP = ""

    def createInstance(self):
        return type(self)()

    def name(self):
        return self.NAME

    def displayName(self):
        return tr(self.TITLE)

    def group(self):
        return tr(self.GROUP)

    def groupId(self):
        return self.GROUP.lower()

    def tags(self):
        return list(self.TAGS)

    def shortHelpString(self):
        return tr(self.HELP)

    def icon(self):
        return QIcon(self.svgIconPath())

    def svgIconPath(self):
        return str(paths.RESOURCES / "icon.svg")

    def add(self, definition: QgsProcessingParameterDefinition, help_text: str = "") -> None:
        """Adds a parameter, with its help if it has none yet."""
        if help_text:
            definition.setHelp(help_text)
        if not self.addParameter(definition):
            raise RuntimeError(f"the parameter {definition.name()} was refused")


class ResultValue(NamedTuple):
    """A number or a text that an algorithm returns beside its layers and files."""

    name: str  # as scripts and models have it
    label: str
    read: Callable[[Any], Any]  # from the job's result; None is left out
    number: bool = True


DEVICE_USED = ResultValue("DEVICE_USED", "Device used", lambda result: result.device, number=False)
MODEL_USED = ResultValue("MODEL_USED", "Model used", lambda result: result.model, number=False)
SENSOR_USED = ResultValue("SENSOR_USED", "Sensor used", lambda result: result.sensor, number=False)


class JobAlgorithm(Algorithm):
    """An algorithm that does one job of the engine; its parameters are those that the job declares."""

    PARAMETERS: JobParameters
    RESULT_VALUES: tuple[ResultValue, ...] = ()

    def __init__(self):
        super().__init__()
        self._launch = self._request = self._result = None
        self._failure = ""
        self._destinations = {}  # where each output lies, as QGIS knows it, by the parameter's name

    def displayName(self):
        return tr(self.TITLE or self.PARAMETERS.job.title)

    def initAlgorithm(self, configuration=None):
        self.PARAMETERS.declare(self)
        for item in self.RESULT_VALUES:
            kind = QgsProcessingOutputNumber if item.number else QgsProcessingOutputString
            self.addOutput(kind(item.name, tr(item.label)))

    def build(self, parameters, context) -> Request:
        """The job's request, without its outputs; in the main thread.

        Raises:
            ClippanError: the values cannot be meant.
        """
        return self.PARAMETERS.request(self, parameters, context)

    def resolve_outputs(self, request: Request, parameters, context) -> Request:
        """The request with its outputs, and with the layers that are written to files for the engine.

        Not in the main thread: QGIS loads only those layers that are announced to the context of the run itself.
        """
        return replace(request, **self.PARAMETERS.values(self, parameters, context, read_at_run=True))

    def run_job(self, feedback) -> Result:
        """Has the engine do the job, and what has to come before it."""
        return worker.shared_worker.run(self._launch, self._request, feedback)

    def finish(self, result: Result, feedback) -> dict[str, Any]:
        """The algorithm's results from the job's; not in the main thread.

        Raises:
            ClippanError: one of them cannot be written.
        """
        log_result(feedback, result)
        values = {item.name: item.read(result) for item in self.RESULT_VALUES}
        files = {name: path for name, path in self._destinations.items() if path}
        return {**files, **{name: value for name, value in values.items() if value is not None}}

    def set_destination(self, name: str, path: str) -> str:
        """Keeps in mind where QGIS wants an output, and returns the absolute path for the engine."""
        self._destinations[name] = path
        return sources.absolute(path)

    def canExecute(self):
        try:
            python.find_interpreter(Settings.read())
        except ClippanError as error:
            return False, tr(error.message)
        return True, ""

    def checkParameterValues(self, parameters, context):
        for definition in self.parameterDefinitions():
            if isinstance(definition, (QgsProcessingParameterRasterLayer, QgsProcessingParameterMultipleLayers)):
                value = parameters.get(definition.name())
                for source in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(source, str) and source.strip() and not _is_raster(source, context):
                        return False, _why_unreadable(definition.description(), source)
        return super().checkParameterValues(parameters, context)

    def prepareAlgorithm(self, parameters, context, feedback):
        """Looks for the engine and builds the request, both in the main thread.

        processing.run and qgis_process do not ask canExecute, so the engine is looked for here. An exception
        raised here would reach scripts without its text; so it is kept and raised by processAlgorithm.
        """
        try:
            self._launch = worker.launch_for(Settings.read())
            self._request = self.build(parameters, context)
        except ClippanError as error:
            self._failure = tr(error.message)
        return True

    def processAlgorithm(self, parameters, context, feedback):
        if not self._failure:
            try:
                self._request = self.resolve_outputs(self._request, parameters, context)
                self._request.validate()
                self._result = self.run_job(feedback)
                return self.finish(self._result, feedback)
            except ClippanError as error:
                self._failure = tr(error.message)
            except QgsProcessingException as error:
                self._failure = str(error)
        # Not raised where it was caught: QGIS never lets go of an exception, nor so of the layers in its frames.
        raise QgsProcessingException(self._failure)

    def layers(self, parameters, name, context) -> list[QgsRasterLayer]:
        """The layers of a raster parameter, in their order."""
        definition = self.parameterDefinition(name)
        if isinstance(definition, QgsProcessingParameterMultipleLayers):
            layers = self.parameterAsLayerList(parameters, name, context)
        else:
            layers = [self.parameterAsRasterLayer(parameters, name, context)]
        return [layer for layer in layers if layer is not None]

    def export_samples(self, parameters, name, field, context) -> str:
        """Writes the labelled places of a vector parameter, from any provider and in any CRS, where the engine can read
        them: those that are selected if only these are wanted, with the field of their class.

        Raises:
            ClippanError: there is no such field, or they cannot be written.
        """
        source = self.parameterAsSource(parameters, name, context)
        if source is None:
            raise ClippanError(self.invalidSourceError(parameters, name))
        number = source.fields().lookupField(field)
        if number < 0:
            raise ClippanError(
                "The labelled places have no field {field}; choose the one that holds the class.", field=field
            )
        # Reports and sentences name the file, so it is called as the layer is.
        stem = re.sub(r"[^\w -]+", "_", source.sourceName()).strip() or "places"
        path = QgsProcessingUtils.generateTempFilename(f"{stem[:60]}.gpkg", context)
        options = QgsVectorFileWriter.SaveVectorOptions()
        # Else a field that is called fid or geom could not be written beside the layer's own.
        options.layerOptions = ["FID=clippan_fid", "GEOMETRY_NAME=clippan_geom"]
        samples = source.materialize(QgsFeatureRequest().setSubsetOfAttributes([number]))
        error, reason, *_ = QgsVectorFileWriter.writeAsVectorFormatV3(
            samples, path, context.transformContext(), options
        )
        if error != QgsVectorFileWriter.WriterError.NoError:
            raise ClippanError("The labelled places cannot be written ({reason}).", reason=reason)
        return path

    def style_on_load(
        self, context, name: str, kind: type[QgsMapLayer], style: Callable[[Any], None], name_suffix: str = ""
    ) -> None:
        """Has an output's layer styled if QGIS loads it, and named after what made it if nobody has named it."""
        output = self._destinations.get(name, "")
        if not output or not context.willLoadLayerOnCompletion(output):
            return
        details = context.layerToLoadOnCompletionDetails(output)
        description = self.parameterDefinition(name).description()
        if name_suffix and details.name in ("", description):  # a model or the user may have named it
            details.name = f"{description} ({name_suffix})"
        details.setPostProcessor(styling.post_processor(kind, style))

    def style_raster(self, context, name: str, style: Callable[[Any], None], name_suffix: str) -> None:
        """Writes a style beside a raster output, if it is wanted, and has its layer styled if QGIS loads it."""
        output = self._destinations.get(name, "")
        if output:
            styling.write_sidecar(sources.absolute(output), style)
            self.style_on_load(context, name, QgsRasterLayer, style, name_suffix)


def _is_raster(source: str, context) -> bool:
    kind = QgsProcessingUtils.LayerHint.Raster
    return QgsProcessingUtils.mapLayerFromString(source, context, True, kind) is not None


def _why_unreadable(title: str, source: str) -> str:
    path = Path(source)
    if path.is_absolute() and not source.startswith("/vsi") and not path.exists():
        return tr("“{title}”, {path}, does not exist; check the path.", title=title, path=source)
    return tr(
        "“{title}”, {path}, cannot be opened as a raster; choose a file that GDAL reads.", title=title, path=source
    )


def log_result(feedback, result: Result) -> None:
    """Writes a result and its hints into the log, in the language of QGIS and with aligned columns."""
    for line in render(result.describe(), tr):
        feedback.pushFormattedMessage(f"<pre>{escape(line)}</pre>", line)
    for sentence in getattr(result, "hints", ()):
        feedback.pushWarning(tr(sentence))
