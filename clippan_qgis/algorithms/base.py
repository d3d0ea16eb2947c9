"""What the algorithms share: building a request, running it in the engine, saying in one sentence what failed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, Callable, Optional

from qgis.core import (
    Qgis,
    QgsFeature,
    QgsFeatureRequest,
    QgsFields,
    QgsMapLayer,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFile,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingUtils,
    QgsProperty,
    QgsRasterLayer,
    QgsVariantUtils,
    QgsVectorFileWriter,
)
from qgis.PyQt.QtGui import QIcon

from clippan.catalogue.models import MODELS
from clippan.catalogue.sensors import SENSORS
from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.jobs import Device, Registration, Request, Stretch, parse_bands

from .. import places, query, sources, styling
from ..engine import python, worker
from ..settings import Settings

SPECTRAL = "SPECTRAL"
PANCHROMATIC = "PANCHROMATIC"
SENSOR = "SENSOR"
BANDS = "BANDS"
NODATA = "NODATA"
REGISTRATION = "REGISTRATION"
MODEL = "MODEL"
WEIGHTS = "WEIGHTS"
STRETCH = "STRETCH"
EXTENT = "EXTENT"
SEED = "SEED"
DEVICE = "DEVICE"
THREADS = "THREADS"

# Lazily imported by the dialogs: qgis_process needs no widgets.
_GUI = f"{__package__.rsplit('.', 1)[0]}.gui"
_CHOICE_WIDGET = f"{_GUI}.choice.ChoiceWidget"
PROMPTS_WIDGET = f"{_GUI}.prompts.PromptsWidget"


_EXTENT = re.compile(r"\s*" + r"\s*,\s*".join([r"([-+\d.eE]+)"] * 4) + r"\s*(?:\[|$)")  # west, east, south, north


class Algorithm(QgsProcessingAlgorithm):
    """Names, help and icon from class attributes.

    Attributes:
        NAME, TITLE, GROUP, TAGS: what the toolbox shows and searches.
        HELP: the text beside the parameters.
    """

    NAME = ""
    TITLE = ""
    GROUP = ""
    TAGS: tuple[str, ...] = ()
    HELP = ""

    def createInstance(self):
        """See QgsProcessingAlgorithm."""
        return type(self)()

    def name(self):
        """See QgsProcessingAlgorithm."""
        return self.NAME

    def displayName(self):
        """See QgsProcessingAlgorithm."""
        return self.TITLE

    def group(self):
        """See QgsProcessingAlgorithm."""
        return self.GROUP

    def groupId(self):
        """See QgsProcessingAlgorithm."""
        return self.GROUP.lower()

    def tags(self):
        """See QgsProcessingAlgorithm."""
        return list(self.TAGS)

    def shortHelpString(self):
        """See QgsProcessingAlgorithm."""
        return self.HELP

    def icon(self):
        """See QgsProcessingAlgorithm."""
        return QIcon(self.svgIconPath())

    def svgIconPath(self):
        """See QgsProcessingAlgorithm."""
        return str(places.RESOURCES / "icon.svg")

    def add(self, definition: QgsProcessingParameterDefinition, help_text: str, advanced: bool = False) -> None:
        """Adds a parameter with its help."""
        definition.setHelp(help_text)
        if advanced:
            definition.setFlags(definition.flags() | Qgis.ProcessingParameterFlag.Advanced)
        if not self.addParameter(definition):
            raise RuntimeError(f"the parameter {definition.name()} was refused")


class JobAlgorithm(Algorithm):
    """An algorithm that does one job of the engine.

    Subclasses declare parameters, build the request and read the answer; they compute nothing themselves.
    """

    def __init__(self):
        super().__init__()
        self._launch = None
        self._request = None
        self._failure = ""

    def build(self, parameters, context) -> Request:
        """The job's request, without its outputs; in the main thread.

        Raises:
            ClippanError: the values cannot be meant.
        """
        raise NotImplementedError

    def place(self, request: Request, parameters, context) -> Request:
        """The request with its outputs.

        Not in the main thread: QGIS loads only those layers that are announced to the context of the run itself.
        """
        return request

    def work(self, feedback) -> dict[str, Any]:
        """Has the engine do the job, and what has to come before it."""
        return worker.shared.run(self._launch, self._request, feedback)

    def finish(self, answer: dict[str, Any], feedback) -> dict[str, Any]:
        """The algorithm's results from the job's answer; not in the main thread.

        Raises:
            ClippanError: one of them cannot be written.
        """
        raise NotImplementedError

    def canExecute(self):
        """Without an engine there is nothing to fill in; says how to get one."""
        try:
            python.find(Settings.read())
        except ClippanError as error:
            return False, str(error)
        return True, ""

    def checkParameterValues(self, parameters, context):
        """Says of a raster that cannot be opened which one it is and why, in one sentence."""
        for definition in self.parameterDefinitions():
            if isinstance(definition, (QgsProcessingParameterRasterLayer, QgsProcessingParameterMultipleLayers)):
                sentence = _unreadable(definition, parameters.get(definition.name()), context)
                if sentence:
                    return False, sentence
        return super().checkParameterValues(parameters, context)

    def prepareAlgorithm(self, parameters, context, feedback):
        """Looks for the engine and builds the request, both in the main thread.

        processing.run and qgis_process do not ask canExecute, so the engine is looked for here. An exception
        raised here would reach scripts without its text; so it is kept and raised by processAlgorithm.
        """
        try:
            self._launch = worker.launch(Settings.read())
            self._request = self.build(parameters, context)
        except ClippanError as error:
            self._failure = str(error)
        return True

    def processAlgorithm(self, parameters, context, feedback):
        """Runs the job in the engine."""
        if not self._failure:
            try:
                self._request = self.place(self._request, parameters, context)
                self._request.validate()
                return self.finish(self.work(feedback), feedback)
            except (ClippanError, QgsProcessingException) as error:
                self._failure = str(error)
        # Not raised where it was caught: QGIS never lets go of an exception, nor so of the layers in its frames.
        raise QgsProcessingException(self._failure)

    def add_number(
        self,
        name: str,
        label: str,
        kind: type[float],
        value: Optional[float],
        help_text: str,
        least: Optional[float] = None,
        most: Optional[float] = None,
        advanced: bool = True,
    ) -> None:
        """Adds a number, whole if ``kind`` is int; one without a value may be left empty."""
        whole, real = Qgis.ProcessingNumberParameterType.Integer, Qgis.ProcessingNumberParameterType.Double
        definition = QgsProcessingParameterNumber(
            name, label, whole if kind is int else real, value, optional=value is None
        )
        if least is not None:
            definition.setMinimum(least)
        if most is not None:
            definition.setMaximum(most)
        self.add(definition, help_text, advanced)

    # Parameters that several algorithms have, and their values.

    def add_spectral(self) -> None:
        """SPECTRAL: one multi-band raster or several single-band ones."""
        self.add(
            QgsProcessingParameterMultipleLayers(SPECTRAL, "Multispectral raster(s)", Qgis.ProcessingSourceType.Raster),
            "The colour bands: one raster with several bands, or several single-band rasters (as Landsat comes). "
            "Several rasters are stacked in the order of the list, so drag them into the order of the sensor's "
            "bands.",
        )

    def add_panchromatic(self) -> None:
        """PANCHROMATIC: the sharp raster."""
        self.add(
            QgsProcessingParameterRasterLayer(PANCHROMATIC, "Panchromatic raster"),
            "The sharp grey raster, with one band. The result has its pixel size and its grid.",
        )

    def add_sensor(self) -> None:
        """SENSOR: whose optics blurred the bands."""
        labels = {"auto": "Recognise from the data"}
        labels.update((name, sensor.label) for name, sensor in SENSORS.items())
        self.add(
            choice(SENSOR, "Sensor", labels, "auto"),
            "The satellite that took the scene: it says how much detail each band has already. “auto” looks for "
            "its name in the rasters' metadata and file names, and takes generic values where it finds none; the "
            "log says which was used.",
        )

    def add_bands(self) -> None:
        """BANDS: a selection."""
        self.add(
            QgsProcessingParameterString(BANDS, "Bands, such as 4,3,2 (all if empty)", optional=True),
            "Numbers of the multispectral bands to work on, counted from 1 through all rasters of the list, "
            "such as 1,2,3 or 2-4. Their order is that of the result. Empty means all.",
        )

    def add_picture_bands(self) -> None:
        """BANDS: those of the picture that a vision-language model sees."""
        self.add(
            QgsProcessingParameterString(BANDS, "Bands for red, green and blue, such as 4,3,2", optional=True),
            "Numbers of the three bands that the model sees as red, green and blue, or of one band for grey, counted "
            "from 1. Empty means natural colours, by the names of the bands or the order of the sensor's.",
            advanced=True,
        )

    def add_stretch(self) -> None:
        """STRETCH: how values become a picture."""
        labels = {
            "auto": "Automatic: bytes as they are, all else by its brightness",
            "percentile": "1st to 99th percentile, each band for itself",
            "reflectance": "Reflectance, 0 to 0.3 (whole numbers: 0 to 3000)",
            "none": "None: values are 0 to 255",
        }
        self.add(
            choice(STRETCH, "Stretch", labels, Stretch.AUTO.value),
            "How values become a picture for the model, the same for all of a raster.",
            advanced=True,
        )

    def add_model(self, help_text: str, default: str) -> None:
        """MODEL and WEIGHTS: which vision-language model looks at the raster."""
        labels = {name: model.label for name, model in MODELS.items()}
        notes = "\n".join(f"{model.label}: {model.notes}" for model in MODELS.values())
        self.add(choice(MODEL, "Model", labels, default), f"{help_text}\n{notes}")
        self.add_weights("Own model")

    def add_weights(self, description: str) -> None:
        """WEIGHTS: a vision-language model that is not in the list."""
        folder = Qgis.ProcessingFileParameterBehavior.Folder
        self.add(
            QgsProcessingParameterFile(WEIGHTS, description, folder, optional=True),
            "A folder with a model of your own, in the form of open_clip (open_clip_config.json and weights), in place "
            "of the one above.",
            advanced=True,
        )

    def add_extent(self, help_text: str) -> None:
        """EXTENT: a part of the raster."""
        self.add(
            QgsProcessingParameterExtent(EXTENT, "Extent", optional=True),
            f"{help_text} In degrees, a west above the east means across the 180th meridian.",
        )

    def add_nodata(self, advanced: bool = False) -> None:
        """NODATA: instead of what the rasters declare."""
        self.add(
            QgsProcessingParameterNumber(
                NODATA, "NoData value", Qgis.ProcessingNumberParameterType.Double, None, optional=True
            ),
            "The value that marks missing pixels, for rasters that do not declare it themselves. Missing pixels "
            "stay missing and take no part in any statistic.",
            advanced,
        )

    def add_registration(self, help_text: str) -> None:
        """REGISTRATION: what is done where the spectral rasters do not lie on PAN."""
        labels = {
            "auto": "Automatic, band by band",
            "global": "All bands together",
            "off": "Off: trust the coordinates",
        }
        self.add(choice(REGISTRATION, "Co-registration", labels, Registration.AUTO.value), help_text)

    def add_seed(self, value: int) -> None:
        """SEED: of what is drawn."""
        self.add_number(
            *(SEED, "Seed", int, value),
            "Decides what is drawn at random; the same number gives the same result again, another one a slightly "
            "different result.",
            least=0,
        )

    def add_device(self) -> None:
        """DEVICE: where to compute."""
        labels = {
            "auto": "Automatic (as in the options)",
            "cpu": "Processor (CPU)",
            "cuda": "NVIDIA graphics card (CUDA)",
            "mps": "Apple graphics (MPS)",
        }
        self.add(
            choice(DEVICE, "Device", labels, "auto"),
            f"Where to compute. “auto” takes what is chosen under {python.OPTIONS}, and, if nothing is, a "
            "graphics card where there is one that works.",
            advanced=True,
        )

    def add_threads(self) -> None:
        """THREADS: how much of the processor."""
        self.add(
            QgsProcessingParameterNumber(THREADS, "Threads", Qgis.ProcessingNumberParameterType.Integer, 0, minValue=0),
            "How many processor cores to use; 0 means all.",
            advanced=True,
        )

    def rasters(self, parameters, name, context) -> list[QgsRasterLayer]:
        """The layers of a raster parameter, in their order."""
        definition = self.parameterDefinition(name)
        if isinstance(definition, QgsProcessingParameterMultipleLayers):
            layers = self.parameterAsLayerList(parameters, name, context)
        else:
            layers = [self.parameterAsRasterLayer(parameters, name, context)]
        return [layer for layer in layers if layer is not None]

    def source(self, parameters, name, context, read: Callable[[QgsRasterLayer], str] = sources.data_source) -> str:
        """The GDAL data source of a raster parameter; empty if there is none."""
        layers = self.rasters(parameters, name, context)
        if layers:
            return read(layers[0])
        return self.parameterAsString(parameters, name, context)

    def bands(self, parameters, context, name: str = BANDS) -> tuple[int, ...]:
        """The band numbers of BANDS; a list is taken too."""
        value = parameters.get(name)
        if isinstance(value, (list, tuple)):
            value = ",".join(str(item) for item in value)
        elif isinstance(value, int):
            value = str(value)
        else:
            value = self.parameterAsString(parameters, name, context)
        return parse_bands(value)

    def nodata(self, parameters, context) -> Optional[float]:
        """The value of NODATA, None if it was left empty."""
        return self.number(parameters, NODATA, context)

    def number(self, parameters, name, context) -> Optional[float]:
        """The value of an optional number, None if it was left empty."""
        value = parameters.get(name)
        if QgsVariantUtils.isNull(value) or value == "":
            return None
        return self.parameterAsDouble(parameters, name, context)

    def count(self, parameters, name, context) -> Optional[int]:
        """The value of an optional whole number, None if it was left empty."""
        value = self.number(parameters, name, context)
        return None if value is None else round(value)

    def phrases(self, parameters, name, context) -> str:
        """A text whose parts lie between semicolons or on lines of their own, or JSON, or the path of a file of it."""
        text = self.parameterAsString(parameters, name, context).strip()
        path = texts.file_of(text)
        if path:
            return sources.absolute(path)
        if text.startswith("{"):
            return text
        return "; ".join(filter(None, (line.strip(" \t;") for line in text.splitlines())))

    def registration(self, parameters, context) -> Registration:
        """The choice of REGISTRATION."""
        return Registration(self.parameterAsEnumString(parameters, REGISTRATION, context) or Registration.AUTO.value)

    def model(self, parameters, context) -> str:
        """The model of MODEL, or the folder of WEIGHTS."""
        folder = self.parameterAsString(parameters, WEIGHTS, context)
        return sources.absolute(folder) or self.parameterAsEnumString(parameters, MODEL, context)

    def stretch(self, parameters, context) -> Stretch:
        """The choice of STRETCH."""
        return Stretch(self.parameterAsEnumString(parameters, STRETCH, context))

    def extent(self, parameters, context) -> tuple[tuple[float, ...], str]:
        """The corners of EXTENT and their CRS; both empty if it was left empty. West is above east, as it was written,
        where it lies across the 180th meridian."""
        extent = self.parameterAsExtent(parameters, EXTENT, context)
        if extent.isNull():
            return (), ""
        crs = self.parameterAsExtentCrs(parameters, EXTENT, context)
        written = _EXTENT.match(str(parameters.get(EXTENT)))
        if written and crs.isGeographic() and float(written[1]) > float(written[2]):  # QGIS exchanges the two
            west, east, south, north = map(float, written.groups())
            return (west, south, east, north), query.crs_name(crs)
        return (extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum()), query.crs_name(crs)

    def threads(self, parameters, context) -> int:
        """The number of THREADS."""
        return self.parameterAsInt(parameters, THREADS, context)

    def device(self, parameters, context) -> Device:
        """The device of DEVICE, or that of the options."""
        value = Device(self.parameterAsEnumString(parameters, DEVICE, context) or "auto")
        preferred = Settings.read().device
        if value is Device.AUTO and preferred in {item.value for item in Device}:
            return Device(preferred)
        return value

    def places(self, parameters, name, field, context) -> str:
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
            raise ClippanError(f"The labelled places have no field {field}; choose the one that holds the class.")
        fields = QgsFields()
        fields.append(source.fields().at(number))
        # Reports and sentences name the file, so it is called as the layer is.
        plain = re.sub(r"[^\w -]+", "_", source.sourceName()).strip() or "places"
        path = QgsProcessingUtils.generateTempFilename(f"{plain[:60]}.gpkg", context)
        options = QgsVectorFileWriter.SaveVectorOptions()
        # Else a field that is called fid or geom could not be written beside the layer's own.
        options.layerOptions = ["FID=clippan_fid", "GEOMETRY_NAME=clippan_geom"]
        writer = QgsVectorFileWriter.create(
            path, fields, source.wkbType(), source.sourceCrs(), context.transformContext(), options
        )
        for feature in source.getFeatures(QgsFeatureRequest().setSubsetOfAttributes([number])):
            place = QgsFeature(fields)
            place.setAttributes([feature.attributes()[number]])
            place.setGeometry(feature.geometry())
            writer.addFeature(place)
        if writer.hasError():
            raise ClippanError(f"The labelled places cannot be written ({writer.errorMessage()}).")
        del writer  # written when it goes
        return path

    def on_load(
        self, context, name: str, output: str, kind: type[QgsMapLayer], style: Callable[[Any], None], maker: str = ""
    ) -> None:
        """Has an output's layer styled if QGIS loads it, and named after what made it if nobody has named it."""
        if not output or not context.willLoadLayerOnCompletion(output):
            return
        details = context.layerToLoadOnCompletionDetails(output)
        description = self.parameterDefinition(name).description()
        if maker and details.name in ("", description):  # a model or the user may have named it
            details.name = f"{description} ({maker})"
        details.setPostProcessor(styling.post_processor(kind, style))


def choice(name: str, description: str, labels: dict[str, str], default: str) -> QgsProcessingParameterEnum:
    """A list whose values are words, the same in scripts, models and qgis_process; dialogs show the labels."""
    definition = QgsProcessingParameterEnum(
        name, description, list(labels), allowMultiple=False, defaultValue=default, usesStaticStrings=True
    )
    definition.setMetadata({"widget_wrapper": {"class": _CHOICE_WIDGET}, "clippan_labels": dict(labels)})
    return definition


def _unreadable(definition, value, context) -> str:
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(item, str) or not item.strip():
            continue
        kind = QgsProcessingUtils.LayerHint.Raster
        if QgsProcessingUtils.mapLayerFromString(item, context, True, kind) is None:
            what = definition.description().replace("(s)", "").lower()
            path = Path(item)
            if path.is_absolute() and not item.startswith("/vsi") and not path.exists():
                return f"The {what} {item} does not exist; check the path."
            return f"The {what} {item} cannot be opened as a raster; choose a file that GDAL reads."
    return ""


def numbers(text: str, what: str, like: str = "200 or 200, 800") -> tuple[float, ...]:
    """Numbers from a text such as ``200`` or ``200, 800``.

    Raises:
        ClippanError: it is no such list.
    """
    try:
        return tuple(float(item) for item in text.replace(";", " ").replace(",", " ").split())
    except ValueError:
        raise ClippanError(f"The {what} “{text}” is not understood; write it like {like}.") from None


def is_wanted(destination: Any, context) -> bool:
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
        raise ClippanError("A map service has no end; choose an extent.")


def figure(value: Any, digits: int = 2) -> str:
    """A number of an answer as the log shows it; a dash where there is none."""
    return "–" if value is None else f"{float(value):.{digits}f}"


def tell(feedback, rows: Iterable[tuple[str, ...]]) -> None:
    """Writes rows of texts into the log, with aligned columns."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()
        feedback.pushFormattedMessage(f"<pre>{escape(line)}</pre>", line)
