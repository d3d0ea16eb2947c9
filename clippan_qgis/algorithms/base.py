"""What the algorithms share: building a request, running it in the engine, saying in one sentence what failed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    Qgis,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingUtils,
    QgsRasterLayer,
    QgsVariantUtils,
)
from qgis.PyQt.QtGui import QIcon

from clippan.errors import ClippanError
from clippan.fusion.sensors import SENSORS
from clippan.jobs import Device, Registration, Request, parse_bands

from .. import places, sources
from ..engine import python, worker
from ..settings import Settings

SPECTRAL = "SPECTRAL"
PANCHROMATIC = "PANCHROMATIC"
SENSOR = "SENSOR"
BANDS = "BANDS"
NODATA = "NODATA"
REGISTRATION = "REGISTRATION"
DEVICE = "DEVICE"

# Lazily imported by the dialogs: qgis_process needs no widgets.
_CHOICE_WIDGET = f"{__package__.rsplit('.', 1)[0]}.gui.choice.ChoiceWidget"


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

    def outputs(self) -> tuple[str, ...]:
        """Files that the job writes."""
        return ()

    def finish(self, answer: dict[str, Any], feedback) -> dict[str, Any]:
        """The algorithm's results from the job's answer; not in the main thread."""
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
        if self._failure:
            raise QgsProcessingException(self._failure)
        try:
            self._request = self.place(self._request, parameters, context)
            self._request.validate()
            answer = worker.shared.run(self._launch, self._request, feedback, self.outputs())
        except ClippanError as error:
            raise QgsProcessingException(str(error)) from None
        return self.finish(answer, feedback)

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

    def add_nodata(self) -> None:
        """NODATA: instead of what the rasters declare."""
        self.add(
            QgsProcessingParameterNumber(
                NODATA, "NoData value", Qgis.ProcessingNumberParameterType.Double, None, optional=True
            ),
            "The value that marks missing pixels, for rasters that do not declare it themselves. Missing pixels "
            "stay missing and take no part in any statistic.",
        )

    def add_registration(self, help_text: str) -> None:
        """REGISTRATION: what is done where the spectral rasters do not lie on PAN."""
        labels = {
            "auto": "Automatic, band by band",
            "global": "All bands together",
            "off": "Off: trust the coordinates",
        }
        self.add(choice(REGISTRATION, "Co-registration", labels, Registration.AUTO.value), help_text)

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

    def rasters(self, parameters, name, context) -> list[QgsRasterLayer]:
        """The layers of a raster parameter, in their order."""
        definition = self.parameterDefinition(name)
        if isinstance(definition, QgsProcessingParameterMultipleLayers):
            layers = self.parameterAsLayerList(parameters, name, context)
        else:
            layers = [self.parameterAsRasterLayer(parameters, name, context)]
        return [layer for layer in layers if layer is not None]

    def source(self, parameters, name, context) -> str:
        """The GDAL data source of a raster parameter; empty if there is none."""
        layers = self.rasters(parameters, name, context)
        if layers:
            return sources.data_source(layers[0])
        return self.parameterAsString(parameters, name, context)

    def bands(self, parameters, context) -> tuple[int, ...]:
        """The band numbers of BANDS; a list is taken too."""
        value = parameters.get(BANDS)
        if isinstance(value, (list, tuple)):
            value = ",".join(str(item) for item in value)
        elif isinstance(value, int):
            value = str(value)
        else:
            value = self.parameterAsString(parameters, BANDS, context)
        return parse_bands(value)

    def nodata(self, parameters, context) -> Optional[float]:
        """The value of NODATA, None if it was left empty."""
        value = parameters.get(NODATA)
        if QgsVariantUtils.isNull(value) or value == "":
            return None
        return self.parameterAsDouble(parameters, NODATA, context)

    def registration(self, parameters, context) -> Registration:
        """The choice of REGISTRATION."""
        return Registration(self.parameterAsEnumString(parameters, REGISTRATION, context) or Registration.AUTO.value)

    def device(self, parameters, context) -> Device:
        """The device of DEVICE, or that of the options."""
        value = Device(self.parameterAsEnumString(parameters, DEVICE, context) or "auto")
        preferred = Settings.read().device
        if value is Device.AUTO and preferred in {item.value for item in Device}:
            return Device(preferred)
        return value


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


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows of texts as lines with aligned columns."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
