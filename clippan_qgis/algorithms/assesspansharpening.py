from __future__ import annotations

from clippan.jobs import FIGURES, AssessRequest

from . import base
from .parameters import JobParameters


def _figure(name: str, label: str) -> base.ResultValue:
    return base.ResultValue(name.upper(), label, lambda result: {**result.full, **result.reference}.get(name))


class AssessPansharpening(base.JobAlgorithm):
    PARAMETERS = JobParameters(AssessRequest, names={"ms": "SPECTRAL", "pan": "PANCHROMATIC", "report": "OUTPUT_HTML"})
    RESULT_VALUES = (*(_figure(name, label) for name, (label, _) in FIGURES.items()), base.SENSOR_USED)

    NAME = "assesspansharpening"
    GROUP = "Pansharpening"
    TAGS = ("quality", "metrics", "qnr", "hqnr", "sam", "ergas", "q2n", "psnr", "ssim", "pan", "sharpen")
    HELP = (
        "Measures the quality of a pansharpened raster. The raster may come from any program.\n\n"
        "Without a reference, the raster is compared with the two rasters that it was made from: whether it keeps "
        "their colours (D_λ,K, best 0), whether it has their detail (D_s, best 0), and both in one figure (HQNR, best "
        "1).\n\n"
        "With a reference, which is a true raster with the same pixel size, the algorithm also computes Q2n (best 1), "
        "the spectral angle SAM (degrees, best 0), ERGAS (best 0), SCC, PSNR and SSIM. A reference rarely exists. To "
        "get one, pansharpen a degraded scene and use the original as the reference.\n\n"
        "The figures are logged, returned as numbers, and written to an HTML report with a picture."
    )
