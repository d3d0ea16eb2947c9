"""clippan:assesspansharpening"""

from __future__ import annotations

from dataclasses import replace

from qgis.core import (
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterRasterLayer,
)

from clippan.jobs import FIGURES, AssessRequest

from .. import sources
from . import base


class AssessPansharpening(base.JobAlgorithm):
    """Measures how good a pansharpened raster is."""

    FUSED = "FUSED"
    REFERENCE = "REFERENCE"
    OUTPUT_HTML = "OUTPUT_HTML"

    NAME = "assesspansharpening"
    TITLE = "Assess pansharpening"
    GROUP = "Pansharpening"
    TAGS = ("quality", "metrics", "qnr", "hqnr", "sam", "ergas", "q2n", "psnr", "ssim", "pan", "sharpen")
    HELP = (
        "Measures how good a pansharpened raster is, whoever made it.\n\n"
        "Without a reference it compares the raster with the two it was made from: are the colours kept "
        "(D_λ,K, best 0), is the detail there (D_s, best 0), and both in one figure (HQNR, best 1).\n\n"
        "With a reference, that is a true raster at the same pixel size, it also gives Q2n (best 1), the spectral "
        "angle SAM (degrees, best 0), ERGAS (best 0), SCC, PSNR and SSIM. A reference rarely exists: to get one, "
        "pansharpen a degraded scene and take the original as the reference.\n\n"
        "The figures are logged, returned as numbers, and written to an HTML report with a picture."
    )

    def initAlgorithm(self, configuration=None):
        """See QgsProcessingAlgorithm."""
        self.add(
            QgsProcessingParameterRasterLayer(self.FUSED, "Pansharpened raster"),
            "The raster to measure. It may come from any program.",
        )
        self.add_spectral()
        self.add_panchromatic()
        self.add(
            QgsProcessingParameterRasterLayer(self.REFERENCE, "Reference raster", optional=True),
            "The true raster at the pixel size of the pansharpened one, if there is one.",
        )
        self.add_sensor()
        self.add_bands()
        self.add_nodata()
        self.add_registration(
            "Satellites often deliver the two a little beside each other. The figures allow for that as measured, so "
            "a result that lies on the panchromatic raster is not taken for a wrong one."
        )
        self.add_device()
        self.add(
            QgsProcessingParameterFileDestination(
                self.OUTPUT_HTML, "Report", "HTML files (*.html)", optional=True, createByDefault=True
            ),
            "A web page with the figures, what they mean, and a picture before and after.",
        )
        for name, (label, _) in FIGURES.items():
            self.addOutput(QgsProcessingOutputNumber(name.upper(), label))
        self.addOutput(QgsProcessingOutputString("SENSOR_USED", "Sensor used"))

    def build(self, parameters, context):
        """See JobAlgorithm."""
        return AssessRequest(
            fused=self.source(parameters, self.FUSED, context),
            pan=self.source(parameters, base.PANCHROMATIC, context),
            ms=tuple(sources.data_source(layer) for layer in self.rasters(parameters, base.SPECTRAL, context)),
            reference=self.source(parameters, self.REFERENCE, context) or None,
            sensor=self.parameterAsEnumString(parameters, base.SENSOR, context),
            bands=self.bands(parameters, context),
            nodata=self.nodata(parameters, context),
            registration=self.registration(parameters, context),
            device=self.device(parameters, context),
        )

    def place(self, request, parameters, context):
        """See JobAlgorithm."""
        report = self.parameterAsFileOutput(parameters, self.OUTPUT_HTML, context)
        return replace(request, report=sources.absolute(report) or None)

    def finish(self, answer, feedback):
        """See JobAlgorithm."""
        for sentence in answer["hints"]:
            feedback.pushWarning(sentence)
        figures = {name: float(value) for name, value in {**answer["full"], **answer["reference"]}.items()}
        rows = [("Figure", "Value", "Best", "Meaning")]
        for name, (label, best) in FIGURES.items():
            if name in figures:
                rows.append((name, f"{figures[name]:.4f}", best, label))
        base.tell(feedback, rows)
        feedback.pushInfo(f"{answer['pixels']} valid pixels compared, sensor {answer['sensor']}")
        results = {name.upper(): value for name, value in figures.items()}
        results["SENSOR_USED"] = answer["sensor"]
        if answer["report"]:
            results[self.OUTPUT_HTML] = answer["report"]
        return results
