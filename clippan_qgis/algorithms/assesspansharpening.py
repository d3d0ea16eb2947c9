"""clippan:assesspansharpening"""

from __future__ import annotations

from clippan.jobs import FIGURES, AssessRequest

from . import base


def _figure(name: str, label: str) -> base.Output:
    return base.Output(name.upper(), label, lambda result: {**result.full, **result.reference}.get(name))


class AssessPansharpening(base.JobAlgorithm):
    """Measures how good a pansharpened raster is."""

    JOB = AssessRequest
    NAMES = {"ms": "SPECTRAL", "pan": "PANCHROMATIC", "report": "OUTPUT_HTML"}
    OUTPUTS = (*(_figure(name, label) for name, (label, _) in FIGURES.items()), base.SENSOR_USED)

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
