"""How results look: the band choice and stretch of the spectral layer, or else natural colours."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
from qgis.core import (
    Qgis,
    QgsColorRampShader,
    QgsContrastEnhancement,
    QgsGradientColorRamp,
    QgsGradientStop,
    QgsLayerMetadata,
    QgsMapLayer,
    QgsMultiBandColorRenderer,
    QgsProcessingLayerPostProcessorInterface,
    QgsProject,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsRasterRenderer,
    QgsRasterShader,
    QgsSingleBandGrayRenderer,
    QgsSingleBandPseudoColorRenderer,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor

from clippan.catalogue.band_names import Band, BandOrder, band_order, colour_of_band, colour_of_file, natural_colours
from clippan.catalogue.sensors import SENSORS

from .i18n import tr

SAMPLE_PIXELS = 250_000  # pixels that a stretch is estimated from
LOWER_CUT, UPPER_CUT = 0.02, 0.98


@dataclass(frozen=True)
class Style:
    """What a result takes over from the layers that it was made from.

    Attributes:
        renderer: a copy of the spectral layer's renderer, None if it has none that fits.
        bands: which band of the stack each band of the result is, from 1; empty means all, in their order.
        names: what the bands of the stack are called, as far as is known.
        sensor: the sensor's id, once it is known.
        files: names of the layers' files, which may tell the order of the bands.
    """

    renderer: Optional[QgsRasterRenderer] = None
    bands: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    sensor: str = ""
    files: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_layers(cls, layers: Sequence[QgsRasterLayer], bands: Sequence[int], project: Optional[QgsProject]) -> Style:
        """The style of the spectral layers; in the main thread.

        Only a layer of the project, or one with a style file, has a style that somebody chose; QGIS's own
        default (bands 1, 2, 3) would show blue as red on most satellites.
        """
        renderer = None
        if len(layers) == 1 and layers[0].bandCount() > 1 and _is_styled(layers[0], project):
            renderer = layers[0].renderer().clone()
        names = tuple(name for layer in layers for name in band_names(layer, single_band=len(layers) > 1))
        return cls(renderer, tuple(bands), names, files=tuple(map(_file, layers)))

    def apply(self, layer: QgsRasterLayer) -> None:
        """Gives a layer the renderer and the provenance."""
        renderer = renderer_for_bands(self.renderer, self.bands)
        if renderer is not None and max(renderer.usesBands(), default=0) <= layer.bandCount():
            layer.setRenderer(renderer)
        else:
            show_bands(layer, self._natural(layer.bandCount()))
        if self.provenance:
            write_metadata(layer, self.provenance)
        layer.triggerRepaint()

    def _natural(self, count: int) -> tuple[int, ...]:
        bands = self.bands or range(1, len(self.names) + 1)
        names = [self.names[band - 1] for band in bands if band <= len(self.names)]
        sensor = SENSORS.get(self.sensor)
        # Which bands a sensor has says something only of a stack of all its bands.
        complete = sensor is not None and 0 < len(sensor.bands) == len(self.names)
        known = tuple(sensor.bands[band - 1] for band in bands) if complete else ()
        order = BandOrder(self.sensor, (known,)) if known or self.bands else band_order(self.files)
        return natural_colours([Band(name) for name in (*names, *[""] * count)[:count]], order).bands


def band_names(layer: QgsRasterLayer, single_band: bool) -> tuple[str, ...]:
    """What a layer's bands are called: by colour where that is known, else by description.

    ``single_band``: the layer is one of several single-band ones, and its file name says which.
    """
    provider = layer.dataProvider()
    file = _file(layer)
    names = []
    for band in range(1, layer.bandCount() + 1):
        interpretation = provider.colorInterpretation(band)
        interpreted = {
            Qgis.RasterColorInterpretation.RedBand: "red",
            Qgis.RasterColorInterpretation.GreenBand: "green",
            Qgis.RasterColorInterpretation.BlueBand: "blue",
        }.get(interpretation)
        text = provider.generateBandName(band).partition(":")[2]
        names.append(colour_of_band(text) or (single_band and colour_of_file(file)) or interpreted or text.strip())
    return tuple(names)


def _file(layer: QgsRasterLayer) -> str:
    return Path(layer.source().split("|")[0]).name


def renderer_for_bands(renderer: Optional[QgsRasterRenderer], bands: Sequence[int]) -> Optional[QgsRasterRenderer]:
    """A copy of a renderer of the stack for a result that holds only ``bands`` of it.

    None if the renderer shows a band that the result has not.
    """
    if renderer is None:
        return None
    renderer = renderer.clone()
    if not bands:
        return renderer
    place = {band: position for position, band in enumerate(bands, 1)}
    place[-1] = -1  # a colour that is not set
    if any(band not in place for band in renderer.usesBands()):
        return None
    if renderer.alphaBand() > 0:
        renderer.setAlphaBand(place[renderer.alphaBand()])
    if isinstance(renderer, QgsMultiBandColorRenderer):
        renderer.setRedBand(place[renderer.redBand()])
        renderer.setGreenBand(place[renderer.greenBand()])
        renderer.setBlueBand(place[renderer.blueBand()])
        return renderer
    return renderer if renderer.setInputBand(place[renderer.inputBand()]) else None


def show_bands(layer: QgsRasterLayer, bands: Sequence[int]) -> None:
    """Shows bands in colour, or one in grey, stretched between the 2nd and the 98th percentile."""
    provider = layer.dataProvider()
    stretches = [_stretch(provider, band) for band in bands]
    if len(bands) == 1:
        renderer = QgsSingleBandGrayRenderer(provider, bands[0])
        renderer.setContrastEnhancement(stretches[0])
    else:
        renderer = QgsMultiBandColorRenderer(provider, *bands)
        renderer.setRedContrastEnhancement(stretches[0])
        renderer.setGreenContrastEnhancement(stretches[1])
        renderer.setBlueContrastEnhancement(stretches[2])
    origin = QgsRasterMinMaxOrigin()
    origin.setLimits(QgsRasterMinMaxOrigin.Limits.CumulativeCut)
    origin.setCumulativeCutLower(LOWER_CUT)
    origin.setCumulativeCutUpper(UPPER_CUT)
    renderer.setMinMaxOrigin(origin)
    layer.setRenderer(renderer)


def show_by_ramp(layer: QgsRasterLayer, colours: Sequence[QColor]) -> None:
    """Shows a layer's first band, whose values are 0 to 1, by a ramp of colours that are equally far apart."""
    step = 1 / (len(colours) - 1)
    stops = [QgsGradientStop(number * step, colour) for number, colour in enumerate(colours)]
    gradient = QgsGradientColorRamp(colours[0], colours[-1], False, stops[1:-1])
    ramp = QgsColorRampShader(0, 1, gradient, Qgis.ShaderInterpolationMethod.Linear)
    ramp.classifyColorRamp(len(colours))
    shader = QgsRasterShader(0, 1)
    shader.setRasterShaderFunction(ramp)
    renderer = QgsSingleBandPseudoColorRenderer(layer.dataProvider(), 1, shader)
    renderer.setClassificationMin(0)
    renderer.setClassificationMax(1)
    layer.setRenderer(renderer)
    layer.triggerRepaint()


def with_alpha(colour: QColor, alpha: int) -> QColor:
    """The colour with another opacity, 0 to 255."""
    copy = QColor(colour)
    copy.setAlpha(alpha)
    return copy


def set_aliases(layer: QgsVectorLayer, aliases: Mapping[str, str]) -> None:
    """Gives the fields of a layer names that analysts read, in the language of QGIS."""
    for name, alias in aliases.items():
        index = layer.fields().indexOf(name)
        if index >= 0:
            layer.setFieldAlias(index, tr(alias))


def _stretch(provider, band: int) -> QgsContrastEnhancement:
    lower, upper = _percentiles(provider, band)
    stretch = QgsContrastEnhancement(provider.dataType(band))
    stretch.setMinimumValue(lower)
    stretch.setMaximumValue(upper)
    stretch.setContrastEnhancementAlgorithm(QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum)
    return stretch


def _percentiles(provider, band: int) -> tuple[float, float]:
    """The percentiles of a sample; QGIS's own cumulativeCut would leave a histogram in an .aux.xml file."""
    width, height = provider.xSize(), provider.ySize()
    scale = min(1.0, (SAMPLE_PIXELS / (width * height)) ** 0.5)
    block = provider.block(band, provider.extent(), max(int(width * scale), 1), max(int(height * scale), 1))
    values = block.as_numpy(use_masking=False).astype(float)
    valid = np.isfinite(values)
    if block.hasNoDataValue():
        valid &= values != block.noDataValue()
    if not valid.any():
        return 0.0, 1.0
    return tuple(np.percentile(values[valid], (100 * LOWER_CUT, 100 * UPPER_CUT)).tolist())


def write_metadata(layer: QgsRasterLayer, provenance: Mapping[str, str]) -> None:
    """Writes how a result was made into the layer's metadata."""
    metadata = QgsLayerMetadata(layer.metadata())
    lines = [f"{name}: {value}" for name, value in provenance.items()]
    metadata.setType("dataset")
    metadata.setTitle(layer.name())
    metadata.setAbstract("\n".join([tr("Made by CLIPPan for QGIS."), *lines]))
    metadata.setHistory(lines)
    metadata.setCrs(layer.crs())
    layer.setMetadata(metadata)


def write_sidecar(output: str, style: Callable[[QgsRasterLayer], None]) -> None:
    """Writes the style beside the file, so that it opens styled everywhere, also when QGIS did not load it."""
    if output.startswith("/vsi"):
        return
    histogram = Path(f"{output}.aux.xml")  # opening an unstyled raster makes QGIS leave one beside it
    keep = histogram.exists()
    layer = QgsRasterLayer(output, Path(output).stem, "gdal")
    if layer.isValid():
        style(layer)
        layer.saveNamedStyle(str(Path(output).with_suffix(".qml")))
    del layer  # closes the file, and only then is the histogram written
    if not keep:
        with contextlib.suppress(OSError):
            histogram.unlink()


class _PostProcessor(QgsProcessingLayerPostProcessorInterface):
    def __init__(self, kind: type[QgsMapLayer], style: Callable[[Any], None]):
        super().__init__()
        self._kind = kind
        self._style = style

    def postProcessLayer(self, layer, context, feedback):
        if isinstance(layer, self._kind):
            self._style(layer)


_kept: list[_PostProcessor] = []  # Processing does not own them, and calls them after the algorithm is gone


def post_processor(kind: type[QgsMapLayer], style: Callable[[Any], None]) -> QgsProcessingLayerPostProcessorInterface:
    """Styles the layer, if it is of this kind, once QGIS has loaded it."""
    processor = _PostProcessor(kind, style)
    _kept.append(processor)
    return processor


def _is_styled(layer: QgsRasterLayer, project: Optional[QgsProject]) -> bool:
    in_project = project is not None and project.mapLayer(layer.id()) is not None
    styled = in_project or Path(layer.source().split("|")[0]).with_suffix(".qml").exists()
    return layer.renderer() is not None and styled
