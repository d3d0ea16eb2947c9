from __future__ import annotations

from dataclasses import replace

from qgis.core import QgsRasterLayer

from clippan.jobs import SharpenRequest

from .. import styling
from . import base
from .parameters import JobParameters


class SharpenBands(base.JobAlgorithm):
    PARAMETERS = JobParameters(SharpenRequest)
    RESULT_VALUES = (base.DEVICE_USED,)

    NAME = "sharpenbands"
    GROUP = "Pansharpening"
    TAGS = (
        *(
            "sharpen",
            "sentinel-2",
            "sentinel",
            "landsat",
            "thermal",
            "near infrared",
            "nir",
            "swir",
            "super-resolution",
        ),
        *("fusion", "downscaling", "resolution", "pan"),
    )
    HELP = (
        "Sharpens coarse bands with finer bands of the same place. No panchromatic band is needed.\n\n"
        "Examples: the 20 m and 60 m bands of Sentinel-2 with its 10 m bands; Landsat's thermal bands with its 30 m "
        "bands or its panchromatic band; a near-infrared band with an aerial picture in natural colours. The fine "
        "pixels may be 1.2 to 20 times as small as the coarse ones.\n\n"
        "Around every coarse pixel, the algorithm measures how the coarse band follows from the fine ones, and adds "
        "their detail accordingly. A coarse band that the fine ones do not explain stays nearly as it is, and the log "
        "names it. The result has the data type and the names of the coarse bands, and the pixels of the fine raster; "
        "it covers the area that all rasters share.\n\n"
        "From a Sentinel-2 scene (folder .SAFE or its .zip) or a Landsat folder, the command line and Python take "
        "the coarse and the fine bands by themselves. In the dialog, choose the files of the bands as layers."
    )
    _style = None

    def build(self, parameters, context):
        request = super().build(parameters, context)
        coarse = self.layers(parameters, "COARSE", context)
        self._style = styling.Style.of_layers(coarse, request.bands, context.project())
        return request

    def postProcessAlgorithm(self, context, feedback):
        style = replace(self._style, provenance=self._result.provenance)
        styling.write_sidecar(self._result.output, style.apply)
        self.style_on_load(context, "OUTPUT", QgsRasterLayer, style.apply, "SHARPEN")
        return {}
