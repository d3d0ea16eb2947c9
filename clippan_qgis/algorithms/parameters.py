"""How each parameter of a job looks in Processing, and how its value is read there.

An editor turns the declaration of a parameter into Processing's definition, and what the user has chosen into the value
of the request. ``EDITORS`` says which kind of parameter has which editor; algorithms name their own for exceptions.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from qgis.core import (
    Qgis,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
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
from clippan.jobs import Device, kinds, parse_bands
from clippan.jobs.param import Param

from .. import query, sources
from ..i18n import tr
from ..settings import OPTIONS, Settings

_GUI = f"{__package__.rsplit('.', 1)[0]}.gui"  # imported by dialogs alone: qgis_process needs no widgets
_CHOICE_WIDGET = f"{_GUI}.choice.ChoiceWidget"
_PROMPTS_WIDGET = f"{_GUI}.prompts.PromptsWidget"
_SMALLEST = 1e-9  # what stands for "greater than 0" in a number's definition
_EXTENT = re.compile(r"\s*" + r"\s*,\s*".join([r"([-+\d.eE]+)"] * 4) + r"\s*(?:\[|$)")  # west, east, south, north
WEIGHTS = "WEIGHTS"


class Editor:
    """Shows a parameter as a text; the base of all others.

    Attributes:
        late: whether the value is read when the algorithm runs and not when it is prepared: destinations, which QGIS
            gives the run itself, and layers that are written to files for the engine.
    """

    late = False

    def definitions(self, item: Param, name: str) -> list[QgsProcessingParameterDefinition]:
        """Processing's definitions of the parameter, complete with help and flags."""
        definition = self.definition(item, name, tr(item.label))
        definition.setHelp(self.help(item))
        if item.advanced:
            definition.setFlags(definition.flags() | Qgis.ProcessingParameterFlag.Advanced)
        return [definition]

    def help(self, item: Param) -> str:
        """The help of the parameter."""
        return tr(item.help)

    def definition(self, item: Param, name: str, label: str) -> QgsProcessingParameterDefinition:
        """Processing's definition, without help and flags."""
        default = None if item.required or item.many else item.default or None
        return QgsProcessingParameterString(name, label, default, optional=not item.required)

    def value(self, algorithm, item: Param, name: str, parameters, context) -> Any:
        """The value of the request.

        Raises:
            ClippanError: it cannot be understood.
        """
        return _or_default(item, algorithm.parameterAsString(parameters, name, context).strip())


class TextListEditor(Editor):
    """Texts between semicolons."""

    def value(self, algorithm, item, name, parameters, context):
        return query.split(algorithm.parameterAsString(parameters, name, context))


class PhrasesEditor(Editor):
    """Texts on lines of their own, or the path of a file of them."""

    def definition(self, item, name, label):
        return QgsProcessingParameterString(name, label, None, multiLine=True, optional=not item.required)

    def value(self, algorithm, item, name, parameters, context):
        """The texts between semicolons, JSON, or an absolute path."""
        text = algorithm.parameterAsString(parameters, name, context).strip()
        path = texts.named_file(text)
        if path:
            return sources.absolute(path)
        if text.startswith("{"):
            return text
        return "; ".join(filter(None, (line.strip(" \t;") for line in text.splitlines())))


class PromptsEditor(Editor):
    """A prompt table, which dialogs show as one."""

    def definition(self, item, name, label):
        definition = QgsProcessingParameterString(name, label)
        definition.setMetadata({"widget_wrapper": {"class": _PROMPTS_WIDGET}})
        return definition

    def value(self, algorithm, item, name, parameters, context):
        text = algorithm.parameterAsString(parameters, name, context).strip()
        path = texts.named_file(text)
        return sources.absolute(path) if path else text


class NumberEditor(Editor):
    """A number; one without a default may be left empty.

    Args:
        default: what is proposed in place of the job's default.
    """

    def __init__(self, default: Optional[float] = None) -> None:
        self._default = default

    def definition(self, item, name, label):
        whole = Qgis.ProcessingNumberParameterType.Integer
        kind = whole if item.type is int else Qgis.ProcessingNumberParameterType.Double
        default = self._default if self._default is not None else None if item.required else item.default
        definition = QgsProcessingParameterNumber(name, label, kind, default, optional=default is None)
        least = item.low if item.above is None else item.above + _SMALLEST
        if least is not None:
            definition.setMinimum(least)
        if item.high is not None:
            definition.setMaximum(item.high)
        return definition

    def value(self, algorithm, item, name, parameters, context):
        """The number; None if it may be left empty and was."""
        if not item.required and item.default is None and self._default is None:
            given = parameters.get(name)
            if QgsVariantUtils.isNull(given) or given == "":
                return None
        number = algorithm.parameterAsDouble(parameters, name, context)
        return round(number) if item.type is int else number


class NumbersEditor(Editor):
    """Numbers between commas or blanks."""

    def value(self, algorithm, item, name, parameters, context):
        text = algorithm.parameterAsString(parameters, name, context)
        try:
            numbers = [float(part) for part in text.replace(";", " ").replace(",", " ").split()]
        except ValueError:
            raise ClippanError(
                "“{title}”, {text}, is not understood; write numbers between commas.",
                title=Message(item.title),
                text=text,
            ) from None
        return tuple(round(number) if item.type is int else number for number in numbers)


class BandsEditor(Editor):
    """Band numbers such as 1,2,3 or 2-4."""

    def value(self, algorithm, item, name, parameters, context):
        value = parameters.get(name)
        if isinstance(value, (list, tuple)):
            value = ",".join(str(number) for number in value)
        elif isinstance(value, int):
            value = str(value)
        else:
            value = algorithm.parameterAsString(parameters, name, context)
        return parse_bands(value)


class SwitchEditor(Editor):
    """Yes or no."""

    def definition(self, item, name, label):
        return QgsProcessingParameterBoolean(name, label, item.default)

    def value(self, algorithm, item, name, parameters, context):
        return algorithm.parameterAsBool(parameters, name, context)


class ChoiceEditor(Editor):
    """A list whose values are words, the same in scripts, models and qgis_process; dialogs show the labels."""

    def definition(self, item, name, label):
        default = item.default.value if isinstance(item.default, enum.Enum) else item.default
        return choice(name, label, self.labels(item), default)

    def labels(self, item: Param) -> dict[str, str]:
        """What the list shows for each value."""
        return {value: tr(text) for value, text in item.choices.items()}

    def value(self, algorithm, item, name, parameters, context):
        """The member, or the word where the type is a text."""
        return item.type(algorithm.parameterAsEnumString(parameters, name, context) or item.default)


class DeviceEditor(ChoiceEditor):
    """Where to compute; "auto" takes what the options say."""

    def help(self, item):
        """With where the options are."""
        more = tr("In QGIS, “auto” uses the device set under {options}, if there is one.", options=OPTIONS)
        return f"{super().help(item)} {more}"

    def value(self, algorithm, item, name, parameters, context):
        chosen = super().value(algorithm, item, name, parameters, context)
        preferred = Settings.read().device
        if chosen is Device.AUTO and preferred in item.choices:
            return Device(preferred)
        return chosen


class ModelEditor(ChoiceEditor):
    """A vision-language model: one of the list, or a folder of the user's own as a second parameter."""

    def __init__(self, own: str = Message("Own model")) -> None:
        self._own = own

    def definitions(self, item, name):
        folder = QgsProcessingParameterFile(
            WEIGHTS, tr(self._own), Qgis.ProcessingFileParameterBehavior.Folder, optional=True
        )
        folder.setHelp(
            tr(
                "A folder with your own model in open_clip format (open_clip_config.json and weights). It is "
                "used instead of the model above."
            )
        )
        folder.setFlags(folder.flags() | Qgis.ProcessingParameterFlag.Advanced)
        return [*super().definitions(item, name), folder]

    def help(self, item):
        """With what each model is good for."""
        notes = "\n".join(f"{model.label}: {tr(model.notes)}" for model in MODELS.values())
        return f"{super().help(item)}\n{notes}"

    def value(self, algorithm, item, name, parameters, context):
        folder = algorithm.parameterAsString(parameters, WEIGHTS, context)
        return sources.absolute(folder) or algorithm.parameterAsEnumString(parameters, name, context)


class RasterEditor(Editor):
    """A raster layer, or several."""

    def definition(self, item, name, label):
        if item.many:
            return QgsProcessingParameterMultipleLayers(
                name, label, Qgis.ProcessingSourceType.Raster, optional=not item.required
            )
        return QgsProcessingParameterRasterLayer(name, label, optional=not item.required)

    def source(self, layer) -> str:
        """What the engine opens to read a layer."""
        return sources.data_source(layer)

    def value(self, algorithm, item, name, parameters, context):
        layers = algorithm.layers(parameters, name, context)
        found = tuple(self.source(layer) for layer in layers)
        if item.many:
            return found
        return found[0] if found else _or_default(item, algorithm.parameterAsString(parameters, name, context))


class OneRasterEditor(RasterEditor):
    """One raster layer where the job takes several."""

    def definition(self, item, name, label):
        return QgsProcessingParameterRasterLayer(name, label)

    def value(self, algorithm, item, name, parameters, context):
        """Its data source, as the only one of the list."""
        layers = algorithm.layers(parameters, name, context)
        return (self.source(layers[0]) if layers else algorithm.parameterAsString(parameters, name, context),)


class GridEditor(Editor):
    """One of the raster layers, where the job takes its number."""

    def definition(self, item, name, label):
        return QgsProcessingParameterRasterLayer(name, label, optional=True)

    def value(self, algorithm, item, name, parameters, context):
        """The number of the layer among RASTERS; 0 if it was left empty."""
        rasters = [sources.data_source(layer) for layer in algorithm.layers(parameters, "RASTERS", context)]
        for layer in algorithm.layers(parameters, name, context):
            source = sources.data_source(layer)
            if source not in rasters:
                raise ClippanError("{layer} is not one of the rasters; choose one of them.", layer=layer.name())
            return rasters.index(source) + 1
        return 0


class ServiceEditor(RasterEditor):
    """A raster layer that may be a map service, which needs an extent."""

    def source(self, layer):
        """A description of the service that GDAL reads."""
        return sources.indexable(layer)


class SamplesEditor(Editor):
    """Labelled places of any vector layer, which are written to a file for the engine."""

    late = True

    def __init__(self, *geometries: Qgis.ProcessingSourceType) -> None:
        self._geometries = list(geometries) or [
            Qgis.ProcessingSourceType.VectorPolygon,
            Qgis.ProcessingSourceType.VectorPoint,
        ]

    def definition(self, item, name, label):
        return QgsProcessingParameterFeatureSource(name, label, self._geometries, optional=not item.required)

    def value(self, algorithm, item, name, parameters, context):
        """The file, or one in a list; nothing if no layer was chosen."""
        if not is_given(parameters.get(name), context):
            return () if item.many else ""
        field = algorithm.parameterAsString(parameters, "FIELD", context) or "class"
        path = algorithm.export_samples(parameters, name, field, context)
        return (path,) if item.many else path


class FieldEditor(Editor):
    """The field of the labelled places that holds the class.

    Args:
        default: what is proposed where the job has no default.
    """

    def __init__(self, default: str = "") -> None:
        self._default = default

    def definition(self, item, name, label):
        samples = "SAMPLES"
        default = self._default or item.default
        return QgsProcessingParameterField(name, label, default, samples, optional=not (item.required or self._default))

    def value(self, algorithm, item, name, parameters, context):
        return algorithm.parameterAsString(parameters, name, context) or self._default or item.default


class FileEditor(Editor):
    """A file to read."""

    def definition(self, item, name, label):
        ending = getattr(item.kind, "ending", "").lstrip(".")
        return QgsProcessingParameterFile(name, label, extension=ending, optional=not item.required)

    def value(self, algorithm, item, name, parameters, context):
        path = sources.absolute(algorithm.parameterAsFile(parameters, name, context))
        return (path,) if item.many and path else () if item.many else path


class FolderEditor(FileEditor):
    """A folder to read."""

    def definition(self, item, name, label):
        folder = Qgis.ProcessingFileParameterBehavior.Folder
        return QgsProcessingParameterFile(name, label, folder, optional=not item.required)


class IndexEditor(Editor):
    """A tile index: a file, or a catalogue in PostgreSQL."""

    def definition(self, item, name, label):
        files = tr("GeoPackage (*.gpkg);;All files (*)")
        return QgsProcessingParameterFile(name, label, fileFilter=files)

    def value(self, algorithm, item, name, parameters, context):
        index = algorithm.parameterAsString(parameters, name, context)
        return index if kinds.is_database(index) else sources.absolute(index)


class ExtentEditor(Editor):
    """A part of the map; its coordinate system comes with it."""

    def definition(self, item, name, label):
        return QgsProcessingParameterExtent(name, label, optional=True)

    def value(self, algorithm, item, name, parameters, context):
        """The corners; west is above east, as it was written, where it lies across the 180th meridian."""
        extent = algorithm.parameterAsExtent(parameters, name, context)
        if extent.isNull():
            return ()
        crs = algorithm.parameterAsExtentCrs(parameters, name, context)
        written = _EXTENT.match(str(parameters.get(name)))
        if written and crs.isGeographic() and float(written[1]) > float(written[2]):  # QGIS exchanges the two
            west, east, south, north = map(float, written.groups())
            return (west, south, east, north)
        return query.corners(extent)


class CrsEditor(Editor):
    """The coordinate system of the extent; no parameter of its own."""

    def definitions(self, item, name):
        return []

    def value(self, algorithm, item, name, parameters, context):
        if algorithm.parameterAsExtent(parameters, "EXTENT", context).isNull():
            return ""
        return query.crs_name(algorithm.parameterAsExtentCrs(parameters, "EXTENT", context))


class PointEditor(Editor):
    """A place on the map."""

    def definition(self, item, name, label):
        return QgsProcessingParameterPoint(name, label, optional=not item.required)

    def value(self, algorithm, item, name, parameters, context):
        """Its coordinates in the coordinate system of the extent, or in its own without one."""
        if not parameters.get(name):
            return ()
        if algorithm.parameterAsExtent(parameters, "EXTENT", context).isNull():
            crs = algorithm.parameterAsPointCrs(parameters, name, context)
        else:
            crs = algorithm.parameterAsExtentCrs(parameters, "EXTENT", context)
        point = algorithm.parameterAsPoint(parameters, name, context, crs)
        return (point.x(), point.y())


class OutputEditor(Editor):
    """A file to write."""

    late = True

    def definition(self, item, name, label):
        files = f"{tr(item.kind.description)} (*{item.kind.endings[0]})"
        return QgsProcessingParameterFileDestination(
            name, label, files, optional=not item.required, createByDefault=item.required or item.proposed
        )

    def value(self, algorithm, item, name, parameters, context):
        """The absolute path; the default if the output is not wanted."""
        return _or_default(item, algorithm.placed(name, self.destination(algorithm, name, parameters, context)))

    def destination(self, algorithm, name, parameters, context) -> str:
        """Where QGIS wants it; empty if the output is not wanted."""
        return algorithm.parameterAsFileOutput(parameters, name, context)


class FolderOutputEditor(OutputEditor):
    """A folder to write."""

    def definition(self, item, name, label):
        return QgsProcessingParameterFolderDestination(name, label, optional=not item.required)


class RasterOutputEditor(OutputEditor):
    """A raster to write, which QGIS may load."""

    def definition(self, item, name, label):
        return QgsProcessingParameterRasterDestination(
            name, label, optional=not item.required, createByDefault=item.required or item.proposed
        )

    def destination(self, algorithm, name, parameters, context):
        """Where QGIS wants it, announced as a layer to load."""
        return algorithm.parameterAsOutputLayer(parameters, name, context)


# The first that fits counts.
EDITORS: Mapping[type[kinds.Kind], type[Editor]] = {
    kinds.RasterOutput: RasterOutputEditor,
    kinds.Output: OutputEditor,
    kinds.FolderOutput: FolderOutputEditor,
    kinds.VectorInput: SamplesEditor,
    kinds.FileInput: FileEditor,
    kinds.RasterInput: RasterEditor,
    kinds.FolderInput: FolderEditor,
    kinds.IndexKind: IndexEditor,
    kinds.BandsKind: BandsEditor,
    kinds.ExtentKind: ExtentEditor,
    kinds.CrsKind: CrsEditor,
    kinds.PointKind: PointEditor,
    kinds.PromptsKind: PromptsEditor,
    kinds.PhrasesKind: PhrasesEditor,
    kinds.ModelKind: ModelEditor,
    kinds.SensorKind: ChoiceEditor,
    kinds.FieldKind: FieldEditor,
}


def editor(item: Param) -> Editor:
    """The editor of a parameter, by what it means and then by its type."""
    for kind, found in EDITORS.items():
        if isinstance(item.kind, kind):
            return found()
    if item.type is Device:
        return DeviceEditor()
    if issubclass(item.type, enum.Enum):
        return ChoiceEditor()
    if item.type is bool:
        return SwitchEditor()
    if item.type in (int, float):
        return NumbersEditor() if item.many else NumberEditor()
    return TextListEditor() if item.many else Editor()


def choice(name: str, description: str, labels: dict[str, str], default: str) -> QgsProcessingParameterEnum:
    """A list whose values are words, the same in scripts, models and qgis_process; dialogs show the labels."""
    definition = QgsProcessingParameterEnum(
        name, description, list(labels), allowMultiple=False, defaultValue=default, usesStaticStrings=True
    )
    definition.setMetadata({"widget_wrapper": {"class": _CHOICE_WIDGET}, "clippan_labels": dict(labels)})
    return definition


def _or_default(item: Param, text: str) -> Any:
    return text or ("" if item.required else item.default)


def is_given(destination: Any, context) -> bool:
    """Whether an optional output was asked for, or an optional layer was given.

    Told without making the output, which reading the parameter would do.
    """
    if isinstance(destination, QgsProcessingOutputLayerDefinition):
        destination = destination.sink
    if isinstance(destination, QgsProperty):
        destination, _ = destination.valueAsString(context.expressionContext())
    return not QgsVariantUtils.isNull(destination) and destination != ""


def check_services(extent: tuple[float, ...], layers: Iterable[QgsRasterLayer]) -> None:
    """Raises ClippanError where a map service is to be read without an extent."""
    if not extent and any(sources.is_service(layer) for layer in layers):
        raise ClippanError("A map service is not limited in extent; choose an extent.")
