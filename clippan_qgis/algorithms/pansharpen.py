"""clippan:pansharpen"""

from __future__ import annotations

from qgis.core import QgsRasterLayer

from clippan.jobs import PansharpenRequest

from .. import styling
from . import base


class Pansharpen(base.JobAlgorithm):
    """Gives a multispectral raster the detail of a panchromatic one."""

    JOB = PansharpenRequest
    NAMES = {"ms": "SPECTRAL", "pan": "PANCHROMATIC"}
    OUTPUTS = (
        base.Output("SHIFT_X", "Shift to the right (panchromatic pixels)", lambda result: result.shift[0]),
        base.Output("SHIFT_Y", "Shift down (panchromatic pixels)", lambda result: result.shift[1]),
        base.Output("METHOD_USED", "Method used", lambda result: result.method, number=False),
        base.SENSOR_USED,
        base.DEVICE_USED,
    )

    NAME = "pansharpen"
    TITLE = "Pansharpen"
    GROUP = "Pansharpening"
    TAGS = (
        "pan",
        "sharpen",
        "fusion",
        "panchromatic",
        "multispectral",
        "resolution",
        "brovey",
        "gram-schmidt",
        "mtf",
        "landsat",
    )
    HELP = (
        "Sharpens a multispectral raster with the panchromatic band of the same scene: the result has the colours "
        "of the one and the pixel size of the other.\n\n"
        "Any sensor, ratio, number of bands and size will do. The rasters are brought together by their "
        "coordinates, also where extent or coordinate system differ; the result covers what both cover. Pictures "
        "without coordinates are laid corner to corner.\n\n"
        "The result takes over the band choice and the stretch of the multispectral layer, and says in its "
        "metadata how it was made.\n\n"
        "Which method? <b>CLIPPan</b>, a neural network that ships with the plugin, gave the best figures on our "
        "test scenes, also on sensors it had never seen; “Adapt fusion model” tunes it to a scene of yours. "
        "<b>MTF-GLP-HPM-R</b> is the best without a network, <b>BT-H</b> the fastest. <b>Cubic</b> does not sharpen, "
        "it is there to compare. “Assess pansharpening” measures the outcome."
    )

    def __init__(self):
        super().__init__()
        self._style = None

    def build(self, parameters, context):
        """Remembers how the multispectral layers look as well: the result takes it over."""
        request = super().build(parameters, context)
        spectral = self.layers(parameters, "SPECTRAL", context)
        self._style = styling.Style.of(spectral, request.bands, context.project())
        return request

    def postProcessAlgorithm(self, context, feedback):
        """Writes the style beside the file, and has the layer styled if it is loaded."""
        style = self._style.of_result(self._result.sensor, self._result.provenance)
        styling.write_sidecar(self._result.output, style.apply)
        self.on_load(context, "OUTPUT", QgsRasterLayer, style.apply, self._result.method.upper())
        return {}
