from __future__ import annotations

from dataclasses import replace

from qgis.core import QgsRasterLayer

from clippan.jobs import PansharpenRequest

from .. import styling
from . import base
from .parameters import JobParameters


class Pansharpen(base.JobAlgorithm):
    PARAMETERS = JobParameters(PansharpenRequest, names={"ms": "SPECTRAL", "pan": "PANCHROMATIC"})
    RESULT_VALUES = (
        base.ResultValue("SHIFT_X", "Shift to the right (panchromatic pixels)", lambda result: result.shift[0]),
        base.ResultValue("SHIFT_Y", "Shift down (panchromatic pixels)", lambda result: result.shift[1]),
        base.ResultValue("METHOD_USED", "Method used", lambda result: result.method, number=False),
        base.SENSOR_USED,
        base.DEVICE_USED,
    )

    NAME = "pansharpen"
    GROUP = "Pansharpening"
    TAGS = (
        *("pan", "sharpen", "fusion", "panchromatic", "multispectral", "resolution"),
        *("brovey", "gram-schmidt", "mtf", "landsat"),
    )
    HELP = (
        "Sharpens a multispectral raster with the panchromatic band of the same scene. The result has the colours of "
        "the multispectral raster and the pixel size of the panchromatic one.\n\n"
        "Any sensor, resolution ratio, number of bands and raster size is supported. The rasters are matched by their "
        "coordinates, even if their extents or coordinate systems differ. The result covers the area that they share. "
        "Rasters without coordinates are matched by their corners.\n\n"
        "The result uses the band selection and the stretch of the multispectral layer. Its metadata record how it was "
        "made.\n\n"
        "The recommended method is <b>CLIPPan</b>, a neural network that comes with the plugin. On our 31 test scenes "
        "of seven sensors, its mean HQNR at full resolution (best 1) is 0.92, and 0.91 if the network is trained "
        "without the sensor it is tested on. <b>MTF-GLP-HPM-R</b> reaches 0.85, the highest value of the sharpening "
        "methods without a network. <b>BT-H</b> is faster than both. <b>Cubic</b> interpolates without sharpening and "
        "serves for comparison. “Adapt fusion model” fine-tunes the network to your scene, and “Assess pansharpening” "
        "measures the quality of the result."
    )
    _style = None

    def build(self, parameters, context):
        request = super().build(parameters, context)
        spectral = self.layers(parameters, "SPECTRAL", context)
        self._style = styling.Style.of_layers(spectral, request.bands, context.project())
        return request

    def postProcessAlgorithm(self, context, feedback):
        style = replace(self._style, sensor=self._result.sensor, provenance=self._result.provenance)
        styling.write_sidecar(self._result.output, style.apply)
        self.style_on_load(context, "OUTPUT", QgsRasterLayer, style.apply, self._result.method.upper())
        return {}
