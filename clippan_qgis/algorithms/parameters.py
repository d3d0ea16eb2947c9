"""How each parameter of a job looks in Processing, and how its value is read there.

``ADAPTERS`` says which kind of parameter has which adapter; algorithms name their own for exceptions.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSink,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterPoint,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProperty,
    QgsRasterLayer,
    QgsVariantUtils,
)

from clippan.catalogue.models import MODELS
from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.jobs import Device, Request, kinds, parse_bands
from clippan.jobs.param import Param, params

from .. import query, sources
from ..i18n import tr
from ..settings import OPTIONS, Settings

_GUI = f"{__package__.rsplit('.', 1)[0]}.gui"  # imported by dialogs alone: qgis_process needs no widgets
_CHOICE_WIDGET = f"{_GUI}.choice.ChoiceWidget"
_PROMPTS_WIDGET = f"{_GUI}.prompt_table.PromptsWidget"
_SMALLEST = 1e-9  # what stands for "greater than 0" in a number's definition
_EXTENT = re.compile(r"\s*" + r"\s*,\s*".join([r"([-+\d.eE]+)"] * 4) + r"\s*(?:\[|$)")  # west, east, south, north
_NO_CRS = QgsCoordinateReferenceSystem()
WEIGHTS = "WEIGHTS"


class ParameterAdapter:
    """Shows a parameter of a job in Processing as a text, and reads its value there; the base of all others.

    Attributes:
        read_at_run: whether the value is read when the algorithm runs and not when it is prepared, as QGIS gives
            destinations to the run itself, and layers are then written to files for the engine.
        name: the parameter's name in Processing.
        label, optional: what the dialog calls it, and whether it may be left out.
    """

    read_at_run = False

    def __init__(self, algorithm, param: Param, name: str, parameters: JobParameters) -> None:
        self.algorithm, self.param, self.name = algorithm, param, name
        self.label, self.optional = tr(param.label), not param.required
        self._parameters = parameters

    @property
    def help(self) -> str:
        return tr(self.param.help)

    def definitions(self) -> list[QgsProcessingParameterDefinition]:
        """Processing's definitions of the parameter, complete with help and flags."""
        definition = self.definition()
        definition.setHelp(self.help)
        if self.param.advanced:
            definition.setFlags(definition.flags() | Qgis.ProcessingParameterFlag.Advanced)
        if definition.isDestination():
            definition.setCreateByDefault(self.param.required or self.param.proposed)
        return [definition]

    def definition(self) -> QgsProcessingParameterDefinition:
        """Processing's definition, without help and flags."""
        default = None if self.param.required or self.param.many else self.param.default or None
        return QgsProcessingParameterString(self.name, self.label, default, optional=self.optional)

    def value(self, parameters, context) -> Any:
        """The value of the request.

        Raises:
            ClippanError: it cannot be understood.
        """
        return self.or_default(self.text(parameters, context))

    def text(self, parameters, context) -> str:
        """What was typed or chosen, as a text."""
        return self.algorithm.parameterAsString(parameters, self.name, context).strip()

    def or_default(self, text: str) -> Any:
        """The text, or the default if it is empty."""
        return text or ("" if self.param.required else self.param.default)

    def sibling(self, kind: type[kinds.Kind]) -> Optional[ParameterAdapter]:
        """The shown parameter of the same job that is of this kind; None if there is none."""
        others = self._parameters.bind(self.algorithm)
        return next((other for other in others if type(other.param.kind) is kind), None)


class TextListAdapter(ParameterAdapter):
    """Texts between semicolons."""

    def value(self, parameters, context):
        return query.split_texts(self.text(parameters, context))


class PromptsAdapter(ParameterAdapter):
    """A prompt table, which dialogs show as one, or the path of a file of it."""

    def definition(self):
        definition = QgsProcessingParameterString(self.name, self.label)
        definition.setMetadata({"widget_wrapper": {"class": _PROMPTS_WIDGET}})
        return definition

    def value(self, parameters, context):
        text = self.text(parameters, context)
        path = texts.named_file(text)
        return sources.absolute(path) if path else text


class PhrasesAdapter(PromptsAdapter):
    """Texts on lines of their own, JSON, or the path of a file of them."""

    def definition(self):
        return QgsProcessingParameterString(self.name, self.label, None, multiLine=True, optional=self.optional)

    def value(self, parameters, context):
        text = super().value(parameters, context)
        if text.startswith("{"):
            return text
        return "; ".join(filter(None, (line.strip(" \t;") for line in text.splitlines())))


class NumberAdapter(ParameterAdapter):
    """A number; one without a default may be left empty."""

    def definition(self):
        whole = self.param.type is int
        kind = Qgis.ProcessingNumberParameterType.Integer if whole else Qgis.ProcessingNumberParameterType.Double
        default = None if self.param.required else self.param.default
        definition = QgsProcessingParameterNumber(self.name, self.label, kind, default, optional=default is None)
        minimum = self.param.low if self.param.above is None else self.param.above + _SMALLEST
        if minimum is not None:
            definition.setMinimum(minimum)
        if self.param.high is not None:
            definition.setMaximum(self.param.high)
        return definition

    def value(self, parameters, context):
        if self.param.default is None and not is_given(parameters.get(self.name), context):
            return None
        number = self.algorithm.parameterAsDouble(parameters, self.name, context)
        return round(number) if self.param.type is int else number


class NumbersAdapter(ParameterAdapter):
    """Numbers between commas or blanks."""

    def value(self, parameters, context):
        text = self.algorithm.parameterAsString(parameters, self.name, context)
        try:
            numbers = [float(part) for part in text.replace(";", " ").replace(",", " ").split()]
        except ValueError:
            raise ClippanError(
                "“{title}”, {text}, is not understood; write numbers between commas.",
                title=Message(self.param.title),
                text=text,
            ) from None
        return tuple(round(number) if self.param.type is int else number for number in numbers)


class BandsAdapter(ParameterAdapter):
    """Band numbers such as 1,2,3 or 2-4; scripts may give a list."""

    def value(self, parameters, context):
        value = parameters.get(self.name)
        if isinstance(value, (list, tuple)):
            return parse_bands(",".join(map(str, value)))
        return parse_bands(self.text(parameters, context))


class SwitchAdapter(ParameterAdapter):
    """Yes or no."""

    def definition(self):
        return QgsProcessingParameterBoolean(self.name, self.label, self.param.default)

    def value(self, parameters, context):
        return self.algorithm.parameterAsBool(parameters, self.name, context)


class ChoiceAdapter(ParameterAdapter):
    """A list whose values are words, the same in scripts, models and qgis_process; dialogs show the labels."""

    def definition(self):
        default = self.param.default
        return choice_parameter(
            self.name, self.label, self.labels, default.value if isinstance(default, enum.Enum) else default
        )

    @property
    def labels(self) -> dict[str, str]:
        """What the list shows for each value."""
        return {value: tr(text) for value, text in self.param.choices.items()}

    def chosen(self, parameters, context) -> str:
        """The chosen word."""
        return self.algorithm.parameterAsEnumString(parameters, self.name, context)

    def value(self, parameters, context):
        """The member, or the word where the type is a text."""
        return self.param.type(self.chosen(parameters, context) or self.param.default)


class DeviceAdapter(ChoiceAdapter):
    """Where to compute; "auto" takes what the options say."""

    @property
    def help(self):
        more = tr("In QGIS, “auto” uses the device set under {options}, if there is one.", options=OPTIONS)
        return f"{super().help} {more}"

    def value(self, parameters, context):
        chosen = super().value(parameters, context)
        return Settings.read().preferred_device if chosen is Device.AUTO else chosen


class ModelAdapter(ChoiceAdapter):
    """A vision-language model: one of the list, or a folder of the user's own as a second parameter."""

    folder_title = Message("Own model")

    def definitions(self):
        folder = QgsProcessingParameterFile(
            WEIGHTS, tr(self.folder_title), Qgis.ProcessingFileParameterBehavior.Folder, optional=True
        )
        folder.setHelp(
            tr(
                "A folder with your own model in open_clip format (open_clip_config.json and weights). It is "
                "used instead of the model above."
            )
        )
        folder.setFlags(folder.flags() | Qgis.ProcessingParameterFlag.Advanced)
        return [*super().definitions(), folder]

    @property
    def help(self):
        notes = "\n".join(f"{model.label}: {tr(model.notes)}" for model in MODELS.values())
        return f"{super().help}\n{notes}"

    def value(self, parameters, context):
        folder = self.algorithm.parameterAsString(parameters, WEIGHTS, context)
        return sources.absolute(folder) or self.chosen(parameters, context)


class RasterAdapter(ParameterAdapter):
    """A raster layer, or several."""

    def definition(self):
        if self.param.many:
            kind = Qgis.ProcessingSourceType.Raster
            return QgsProcessingParameterMultipleLayers(self.name, self.label, kind, optional=self.optional)
        return QgsProcessingParameterRasterLayer(self.name, self.label, optional=self.optional)

    def layers(self, parameters, context) -> list[QgsRasterLayer]:
        """The layers that were chosen, in their order."""
        return self.algorithm.layers(parameters, self.name, context)

    def source(self, layer) -> str:
        """What the engine opens to read a layer."""
        return sources.data_source(layer)

    def value(self, parameters, context):
        found = tuple(map(self.source, self.layers(parameters, context)))
        if self.param.many:
            return found
        return found[0] if found else self.or_default(self.text(parameters, context))


class OneRasterAdapter(RasterAdapter):
    """One raster layer where the job takes several."""

    def __init__(self, algorithm, param, *others) -> None:
        super().__init__(algorithm, dataclasses.replace(param, many=False), *others)

    def value(self, parameters, context):
        return (super().value(parameters, context),)


class ReferenceRasterAdapter(RasterAdapter):
    """One of the raster layers, where the job takes its number from 1; 0 if it was left empty."""

    def value(self, parameters, context):
        layers = self.layers(parameters, context)
        if not layers:
            return 0
        rasters = self.sibling(kinds.RasterInput).value(parameters, context)
        source = self.source(layers[0])
        if source not in rasters:
            raise ClippanError("{layer} is not one of the rasters; choose one of them.", layer=layers[0].name())
        return rasters.index(source) + 1


class MapServiceAdapter(RasterAdapter):
    """Raster layers that may be map services, of which the engine gets a description; these need an extent."""

    def source(self, layer):
        return sources.data_source_or_service(layer)

    def value(self, parameters, context):
        found = super().value(parameters, context)
        service = any(map(sources.is_service, self.layers(parameters, context)))
        if service and not self.sibling(kinds.ExtentKind).value(parameters, context):
            raise ClippanError("A map service is not limited in extent; choose an extent.")
        return found


class SamplesAdapter(ParameterAdapter):
    """Labelled places of any vector layer, which are written to a file for the engine."""

    read_at_run = True
    geometries = (Qgis.ProcessingSourceType.VectorPolygon, Qgis.ProcessingSourceType.VectorPoint)

    def definition(self):
        return QgsProcessingParameterFeatureSource(self.name, self.label, list(self.geometries), optional=self.optional)

    def value(self, parameters, context):
        """The file, or one in a list; nothing if no layer was chosen."""
        if not is_given(parameters.get(self.name), context):
            return () if self.param.many else ""
        field = self.sibling(kinds.FieldKind).value(parameters, context)
        path = self.algorithm.export_samples(parameters, self.name, field, context)
        return (path,) if self.param.many else path


class FieldAdapter(ParameterAdapter):
    """The field of the labelled places that holds the class."""

    def definition(self):
        samples = self.sibling(kinds.VectorInput)
        return QgsProcessingParameterField(
            self.name, self.label, self.param.default, samples.name, optional=not samples.param.required
        )


class FileAdapter(ParameterAdapter):
    """A file or a folder to read."""

    def definition(self):
        is_folder = isinstance(self.param.kind, kinds.FolderInput)
        behavior = (
            Qgis.ProcessingFileParameterBehavior.Folder if is_folder else Qgis.ProcessingFileParameterBehavior.File
        )
        ending = getattr(self.param.kind, "ending", "").lstrip(".")
        return QgsProcessingParameterFile(self.name, self.label, behavior, extension=ending, optional=self.optional)

    def value(self, parameters, context):
        path = sources.absolute(self.text(parameters, context))
        return path if not self.param.many else (path,) if path else ()


class IndexAdapter(ParameterAdapter):
    """A tile index: a file, or a catalogue in PostgreSQL."""

    def definition(self):
        files = tr("GeoPackage (*.gpkg);;All files (*)")
        return QgsProcessingParameterFile(self.name, self.label, fileFilter=files)

    def value(self, parameters, context):
        index = self.text(parameters, context)
        return index if kinds.is_database(index) else sources.absolute(index)


class ExtentAdapter(ParameterAdapter):
    """A part of the map; its coordinate system comes with it."""

    def definition(self):
        return QgsProcessingParameterExtent(self.name, self.label, optional=True)

    def value(self, parameters, context):
        """The corners; west is above east, as it was written, where it lies across the 180th meridian."""
        extent = self.algorithm.parameterAsExtent(parameters, self.name, context)
        if extent.isNull():
            return ()
        written = _EXTENT.match(str(parameters.get(self.name)))
        if written and self.crs(parameters, context).isGeographic():
            west, east, south, north = map(float, written.groups())
            if west > east:  # QGIS exchanges the two
                return (west, south, east, north)
        return query.bounds(extent)

    def crs(self, parameters, context) -> QgsCoordinateReferenceSystem:
        """The coordinate system of the extent; an invalid one if there is no extent."""
        missing = self.algorithm.parameterAsExtent(parameters, self.name, context).isNull()
        return _NO_CRS if missing else self.algorithm.parameterAsExtentCrs(parameters, self.name, context)


class PointAdapter(ParameterAdapter):
    """A place on the map."""

    def definition(self):
        return QgsProcessingParameterPoint(self.name, self.label, optional=self.optional)

    def value(self, parameters, context):
        """Its coordinates in the coordinate system of the extent, or in its own without one."""
        if not parameters.get(self.name):
            return ()
        crs = self.sibling(kinds.ExtentKind).crs(parameters, context)
        point = self.algorithm.parameterAsPoint(parameters, self.name, context, crs)
        return (point.x(), point.y())

    def crs(self, parameters, context) -> QgsCoordinateReferenceSystem:
        """The coordinate system of the place; an invalid one if there is no place."""
        given = parameters.get(self.name)
        return self.algorithm.parameterAsPointCrs(parameters, self.name, context) if given else _NO_CRS


class CrsAdapter(ParameterAdapter):
    """The coordinate system of the extent, and else that of the place; no parameter of its own."""

    def definitions(self):
        return []

    def value(self, parameters, context):
        owners = filter(None, (self.sibling(kinds.ExtentKind), self.sibling(kinds.PointKind)))
        return next(filter(None, (query.crs_name(owner.crs(parameters, context)) for owner in owners)), "")


class OutputAdapter(ParameterAdapter):
    """A file or a folder to write."""

    read_at_run = True

    def definition(self):
        kind = self.param.kind
        if isinstance(kind, kinds.FolderOutput):
            return QgsProcessingParameterFolderDestination(self.name, self.label, optional=self.optional)
        files = f"{tr(kind.description)} (*{kind.endings[0]})"
        return QgsProcessingParameterFileDestination(self.name, self.label, files, optional=self.optional)

    def value(self, parameters, context):
        """The absolute path; the default if the output is not wanted."""
        path = self.destination(parameters, context)
        return self.or_default(self.algorithm.set_destination(self.name, path))

    def destination(self, parameters, context) -> str:
        return self.algorithm.parameterAsFileOutput(parameters, self.name, context)


class RasterOutputAdapter(OutputAdapter):
    """A raster to write, which QGIS may load."""

    def definition(self):
        return QgsProcessingParameterRasterDestination(self.name, self.label, optional=self.optional)

    def destination(self, parameters, context):
        return self.algorithm.parameterAsOutputLayer(parameters, self.name, context)


class PolygonSinkAdapter(OutputAdapter):
    """Polygons as a layer of any provider, which the algorithm writes itself."""

    def definition(self):
        kind = Qgis.ProcessingSourceType.VectorPolygon
        return QgsProcessingParameterFeatureSink(self.name, self.label, kind, optional=self.optional)

    def value(self, parameters, context):
        return ""


# The first that fits counts.
ADAPTERS: Mapping[type[kinds.Kind], type[ParameterAdapter]] = {
    kinds.RasterOutput: RasterOutputAdapter,
    kinds.Output: OutputAdapter,
    kinds.FolderOutput: OutputAdapter,
    kinds.VectorInput: SamplesAdapter,
    kinds.FileInput: FileAdapter,
    kinds.RasterInput: RasterAdapter,
    kinds.FolderInput: FileAdapter,
    kinds.IndexKind: IndexAdapter,
    kinds.BandsKind: BandsAdapter,
    kinds.ExtentKind: ExtentAdapter,
    kinds.CrsKind: CrsAdapter,
    kinds.PointKind: PointAdapter,
    kinds.PromptsKind: PromptsAdapter,
    kinds.PhrasesKind: PhrasesAdapter,
    kinds.ModelKind: ModelAdapter,
    kinds.SensorKind: ChoiceAdapter,
    kinds.FieldKind: FieldAdapter,
}


def adapter_for(param: Param) -> type[ParameterAdapter]:
    """What adapts a parameter, by its meaning and then by its type."""
    for kind, found in ADAPTERS.items():
        if isinstance(param.kind, kind):
            return found
    if param.type is Device:
        return DeviceAdapter
    if issubclass(param.type, enum.Enum):
        return ChoiceAdapter
    if param.type is bool:
        return SwitchAdapter
    if param.type in (int, float):
        return NumbersAdapter if param.many else NumberAdapter
    return TextListAdapter if param.many else ParameterAdapter


@dataclass(frozen=True)
class JobParameters:
    """How an algorithm shows the parameters of a job.

    Attributes:
        names: Processing's names of parameters where they are not the job's in capitals; scripts and models know them.
        adapters: exceptions to how a parameter is shown and read by its kind.
        defaults: where they are not the job's.
    """

    job: type[Request]
    names: Mapping[str, str] = field(default_factory=dict)
    hidden: Collection[str] = ()
    adapters: Mapping[str, type[ParameterAdapter]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, algorithm) -> list[ParameterAdapter]:
        """Adapters of all parameters that are shown, in the order of the dialog."""
        found = []
        for param in params(self.job):
            if param.name not in self.hidden:
                param = dataclasses.replace(param, default=self.defaults.get(param.name, param.default))
                adapter = self.adapters.get(param.name) or adapter_for(param)
                found.append(adapter(algorithm, param, self.names.get(param.name, param.name.upper()), self))
        return found

    def declare(self, algorithm) -> None:
        for adapter in self.bind(algorithm):
            for definition in adapter.definitions():
                algorithm.add(definition)

    def values(self, algorithm, parameters, context, read_at_run: bool) -> dict[str, Any]:
        """The values of those parameters that are read when the algorithm runs (``read_at_run``), or before it runs."""
        adapters = [adapter for adapter in self.bind(algorithm) if adapter.read_at_run == read_at_run]
        return {adapter.param.name: adapter.value(parameters, context) for adapter in adapters}

    def request(self, algorithm, parameters, context, **hidden: Any) -> Request:
        """The request, with values of hidden parameters, and with nothing yet in place of what is read at the run."""
        nothing = {adapter.param.name: () if adapter.param.many else "" for adapter in self.bind(algorithm)}
        return self.job(**{**nothing, **self.values(algorithm, parameters, context, read_at_run=False), **hidden})


def choice_parameter(name: str, description: str, labels: dict[str, str], default: str) -> QgsProcessingParameterEnum:
    """A list whose values are words, the same in scripts, models and qgis_process; dialogs show the labels."""
    definition = QgsProcessingParameterEnum(
        name, description, list(labels), allowMultiple=False, defaultValue=default, usesStaticStrings=True
    )
    definition.setMetadata({"widget_wrapper": {"class": _CHOICE_WIDGET}, "clippan_labels": dict(labels)})
    return definition


def is_given(destination: Any, context) -> bool:
    """Whether an optional output was asked for, or an optional layer was given.

    Told without making the output, which reading the parameter would do.
    """
    if isinstance(destination, QgsProcessingOutputLayerDefinition):
        destination = destination.sink
    if isinstance(destination, QgsProperty):
        destination, _ = destination.valueAsString(context.expressionContext())
    return not QgsVariantUtils.isNull(destination) and destination != ""
