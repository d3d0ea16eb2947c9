"""clippan:pansharpen"""

from __future__ import annotations

from dataclasses import replace

from qgis.core import (
    Qgis,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsRasterLayer,
)

from clippan.jobs import Compression, Format, Method, PansharpenRequest

from .. import sources, styling
from . import base


class Pansharpen(base.JobAlgorithm):
    """Gives a multispectral raster the detail of a panchromatic one."""

    METHOD = "METHOD"
    MODEL = "MODEL"
    TILE_SIZE = "TILE_SIZE"
    FORMAT = "FORMAT"
    COMPRESSION = "COMPRESSION"
    OVERVIEWS = "OVERVIEWS"
    OUTPUT = "OUTPUT"

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
        self._answer = {}
        self._output = ""

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add_spectral()
        self.add_panchromatic()
        self.add(
            base.choice(
                self.METHOD,
                "Method",
                {item.value: item.label for item in Method},
                PansharpenRequest.method.value,
            ),
            "How the detail is added, the best first. In scripts and models write the short name, such as bt-h.",
        )
        self.add(
            QgsProcessingParameterFile(self.MODEL, "Fusion model", extension="safetensors", optional=True),
            "For the method CLIPPan: a model that “Adapt fusion model” or “clippan train fusion” has written. "
            "Left empty, it is the one that ships with the plugin.",
        )
        self.add_sensor()
        self.add_bands()
        self.add_nodata()
        self.add_registration(
            "Satellites often deliver the two a little beside each other, which gives edges coloured fringes. This "
            "measures by how much, and moves the multispectral raster onto the panchromatic one where that helps; "
            "the result keeps the panchromatic grid. The log says what was done."
        )
        self.add(
            QgsProcessingParameterNumber(
                self.TILE_SIZE,
                "Tile size (pixels)",
                Qgis.ProcessingNumberParameterType.Integer,
                PansharpenRequest.tile_size,
                minValue=256,
            ),
            "How many panchromatic pixels, along each side, are worked on at a time. It never changes the result; "
            "a smaller tile needs less memory.",
            advanced=True,
        )
        self.add_device()
        self.add(
            base.choice(
                self.FORMAT,
                "File format",
                {"gtiff": "GeoTIFF", "cog": "Cloud-optimised GeoTIFF (COG)"},
                PansharpenRequest.format.value,
            ),
            "A cloud-optimised GeoTIFF can be read piece by piece from a web server or object storage.",
            advanced=True,
        )
        self.add(
            base.choice(
                self.COMPRESSION,
                "Compression",
                {
                    "deflate": "DEFLATE (read by everything)",
                    "zstd": "ZSTD (faster, for newer programs)",
                    "lzw": "LZW (for old programs)",
                    "none": "None (largest and fastest)",
                },
                PansharpenRequest.compression.value,
            ),
            "How the file is made smaller. None of these loses anything.",
            advanced=True,
        )
        self.add(
            QgsProcessingParameterBoolean(self.OVERVIEWS, "Build overviews", PansharpenRequest.overviews),
            "Adds smaller copies to the file, so that it draws fast when zoomed out.",
            advanced=True,
        )
        self.add_threads()
        self.add(
            QgsProcessingParameterRasterDestination(self.OUTPUT, "Pansharpened"),
            "The GeoTIFF to write. It keeps the data type of the multispectral raster.",
        )
        self.addOutput(QgsProcessingOutputNumber("SHIFT_X", "Shift to the right (panchromatic pixels)"))
        self.addOutput(QgsProcessingOutputNumber("SHIFT_Y", "Shift down (panchromatic pixels)"))
        self.addOutput(QgsProcessingOutputString("METHOD_USED", "Method used"))
        self.addOutput(QgsProcessingOutputString("SENSOR_USED", "Sensor used"))
        self.addOutput(QgsProcessingOutputString("DEVICE_USED", "Device used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        spectral = self.rasters(parameters, base.SPECTRAL, context)
        bands = self.bands(parameters, context)
        request = PansharpenRequest(
            pan=self.source(parameters, base.PANCHROMATIC, context),
            ms=tuple(sources.data_source(layer) for layer in spectral),
            output="",
            method=Method(self.parameterAsEnumString(parameters, self.METHOD, context)),
            model=self.parameterAsFile(parameters, self.MODEL, context),
            sensor=self.parameterAsEnumString(parameters, base.SENSOR, context),
            bands=bands,
            nodata=self.nodata(parameters, context),
            registration=self.registration(parameters, context),
            tile_size=self.parameterAsInt(parameters, self.TILE_SIZE, context),
            threads=self.threads(parameters, context),
            device=self.device(parameters, context),
            format=Format(self.parameterAsEnumString(parameters, self.FORMAT, context)),
            compression=Compression(self.parameterAsEnumString(parameters, self.COMPRESSION, context)),
            overviews=self.parameterAsBool(parameters, self.OVERVIEWS, context),
        )
        self._style = styling.Style.of(spectral, bands, context.project())
        return request

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        output = self.parameterAsOutputLayer(parameters, self.OUTPUT, context)
        self._output = output  # as QGIS knows it
        return replace(request, output=sources.absolute(output))

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        self._style = self._style.of_result(answer["sensor"], answer["provenance"])
        self._answer = answer
        return {
            self.OUTPUT: self._output,
            "SHIFT_X": answer["shift"][0],
            "SHIFT_Y": answer["shift"][1],
            "METHOD_USED": answer["method"],
            "SENSOR_USED": answer["sensor"],
            "DEVICE_USED": answer["device"],
        }

    def postProcessAlgorithm(self, context, feedback):
        """Writes the style beside the file, and has the layer styled if it is loaded."""
        styling.write_sidecar(self._answer["output"], self._style.apply)
        maker = self._answer["method"].upper()
        self.on_load(context, self.OUTPUT, self._output, QgsRasterLayer, self._style.apply, maker)
        return {}
