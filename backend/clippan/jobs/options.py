"""The choices and the groups of parameters that several jobs share."""

from __future__ import annotations

import functools
from typing import Optional

from clippan.core.choice import Choice
from clippan.core.device import Device
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.jobs.kinds import (
    BandNumbers,
    CrsName,
    Extent,
    ModelName,
    PictureBands,
    PromptText,
    Raster,
    Rasters,
    Report,
    RunFolder,
    SensorName,
)
from clippan.jobs.param import advanced_param, group, inherited, param

SHIPPED_FUSION_MODEL = "fusion/clippan.safetensors"  # the fusion model that comes with CLIPPan, below the resources


class Method(Choice):
    """Pansharpening methods, the best first."""

    CLIPPAN = "clippan", "CLIPPan: neural network for every sensor (recommended)"
    MTF_GLP_HPM_R = "mtf-glp-hpm-r", "MTF-GLP-HPM-R: modulation with regression (best without a network)"
    MTF_GLP_HPM = "mtf-glp-hpm", "MTF-GLP-HPM: high-pass modulation"
    MTF_GLP_CBD = "mtf-glp-cbd", "MTF-GLP-CBD: regression-based injection"
    BT_H = "bt-h", "BT-H: Brovey with haze correction (fast)"
    BDSD = "bdsd", "BDSD: band-dependent spatial detail"
    GSA = "gsa", "GSA: adaptive Gram-Schmidt"
    BROVEY = "brovey", "Weighted Brovey (as in GDAL)"
    CUBIC = "cubic", "Cubic interpolation (no sharpening, for comparison)"


class Registration(Choice):
    """What is done where the multispectral raster does not lie on the panchromatic one."""

    AUTO = "auto", "Automatic, band by band"
    GLOBAL = "global", "All bands together"
    OFF = "off", "Off: trust the coordinates"


class MtfSource(Choice):
    """Where the optics (MTF) of the bands come from."""

    AUTO = "auto", "Automatic: the images where they are clear, else the sensor"
    TABLE = "table", "Sensor table"
    DATA = "data", "Images"


class Radiometry(Choice):
    """What of the coarse bands a sharpening keeps."""

    SENSOR = "sensor", "The coarse band, as its sensor mixes the ground (most accurate)"
    AREA = "area", "The plain mean over the area of each coarse pixel"


class Format(Choice):
    """File format of a raster output."""

    GTIFF = "gtiff", "GeoTIFF"
    COG = "cog", "Cloud-optimised GeoTIFF (COG)"


class Compression(Choice):
    """Lossless compression of a raster output."""

    DEFLATE = "deflate", "DEFLATE (read by everything)"
    ZSTD = "zstd", "ZSTD (faster, for newer programs)"
    LZW = "lzw", "LZW (for old programs)"
    NONE = "none", "None (largest and fastest)"


class Stretch(Choice):
    """How a raster's values become a picture, the same way for the whole raster."""

    AUTO = "auto", "Automatic: bytes unchanged, other values by brightness"
    PERCENTILE = "percentile", "1st to 99th percentile of each band"
    REFLECTANCE = "reflectance", "Reflectance, 0 to 0.3 (integers: 0 to 3000)"
    NONE = "none", "None: values are 0 to 255"


class Refinement(Choice):
    """How the edges of a map follow those of the picture."""

    GUIDED = "guided", "Follow the edges of the picture"
    NONE = "none", "None: as the model sees it"


loss_weight = functools.partial(advanced_param, low=0, high=1000)


@group
class DeviceOptions:
    """Where a job computes."""

    device: Device = advanced_param(
        Device.AUTO,
        title="Device",
        help="Where to compute. “auto” takes a graphics card if one works, and the processor otherwise.",
    )


@group
class RunOptions(DeviceOptions):
    """Where a job computes, and with how much of the processor."""

    threads: int = advanced_param(0, title="Threads", help="How many processor cores to use; 0 means all.", low=0)


@group
class RasterFileOptions:
    """How a raster is written."""

    format: Format = advanced_param(
        Format.GTIFF,
        title="File format",
        help="A cloud-optimised GeoTIFF can be read piece by piece from a web server or object storage.",
    )
    compression: Compression = advanced_param(
        Compression.DEFLATE, title="Compression", help="How the file is compressed, without loss in all cases."
    )
    overviews: bool = advanced_param(
        True, title="Build overviews", help="Adds reduced copies, with which the file draws fast when zoomed out."
    )


@group
class NodataOption:
    """What marks missing pixels."""

    nodata: Optional[float] = advanced_param(
        None,
        title="NoData value",
        help="The value of missing pixels, for rasters that do not declare it or declare a wrong one. Missing pixels "
        "stay missing and are kept out of all statistics.",
    )


@group
class PictureOptions(NodataOption):
    """How a raster becomes a picture for a vision-language model."""

    bands: PictureBands = advanced_param(
        (),
        title="Bands for red, green and blue",
        example="4,3,2",
        help="Numbers of the three bands that the model sees as red, green and blue, or of one band for grey, counted "
        "from 1. By default, natural colours are found from the names of the bands or the sensor.",
    )
    stretch: Stretch = advanced_param(
        Stretch.AUTO,
        title="Stretch",
        help="How values are scaled to a picture for the model, in the same way for the whole raster.",
    )


@group
class LayerOption:
    """Where labelled places are in a vector file."""

    layer: str = advanced_param(
        "", title="Layer of the labelled places", help="By default, the first layer with places that have a class."
    )


@group
class ExtentOptions:
    """A part of a raster."""

    extent: Extent = param(
        (),
        title="Extent",
        help="Limits the work to this part. In degrees, a west above the east means across the 180th meridian.",
    )
    crs: CrsName = advanced_param(
        "",
        title="CRS of the extent",
        help="Coordinate system of the extent, such as EPSG:4326. By default, that of the raster.",
    )


@group
class PairOptions(NodataOption):
    """A multispectral and a panchromatic raster of one scene."""

    nodata: Optional[float] = inherited(None, advanced=False)

    ms: Rasters = param(
        title="Multispectral raster(s)",
        help="The colour bands: one raster with several bands, or several rasters, which are stacked in their order.",
    )
    pan: Raster = param(
        title="Panchromatic raster",
        help="The sharp grey raster, with one band. The result has its pixel size and its grid.",
    )
    sensor: SensorName = param(
        "auto",
        title="Sensor",
        help="The satellite that took the scene, whose optics (MTF) say how much detail each band already has. “auto” "
        "reads its name from the metadata and file names, and takes generic values if there is none.",
    )
    bands: BandNumbers = param(
        (),
        title="Bands",
        example="4,3,2",
        help="Numbers of the multispectral bands to work on, counted from 1 through all rasters, such as 1,2,3 or 2-4. "
        "The result has them in this order. By default, all.",
    )
    registration: Registration = param(
        Registration.AUTO,
        title="Co-registration",
        help="Measures how far the multispectral raster is displaced from the panchromatic one, and corrects it where "
        "that helps. The log says what was done.",
    )


@group
class MtfOption:
    """How much the multispectral bands are blurred."""

    mtf: MtfSource = advanced_param(
        MtfSource.AUTO,
        title="Optics (MTF)",
        help="How blurred the multispectral bands are, compared with the panchromatic one, which decides how much "
        "detail they lack. The images show it where the product was resampled, or differs from its sensor.",
    )


@group
class PromptOptions(PictureOptions):
    """Classes that are named by words, and how a vision-language model looks for them."""

    classes: PromptText = param(
        title="Classes",
        help="The classes of the map, in English: classes between semicolons and synonyms between commas, such as "
        "“water; forest, trees; building, roof”; or the path of a .txt file with one class per line, or of a .json "
        "file as the table saves it.",
    )
    model: ModelName = param(
        "starter",
        title="Model",
        help="The vision-language model: one of the list, or a folder with a model of your own.",
    )
    window: tuple[int, ...] = advanced_param(
        (),
        title="Window",
        example="128 or 128,256",
        help="Edge of the square that the model sees at a time. Smaller windows show smaller objects, larger ones more "
        "of their surroundings; the results of several are averaged. By default, what suits the model and the pixel "
        "size.",
        low=16,
        unit="pixels",
    )
    flips: bool = advanced_param(
        False,
        title="Average over mirrored pictures",
        help="Averages over four mirrored pictures, which is slightly more accurate and takes four times as long.",
    )
    bias: Optional[float] = advanced_param(
        None,
        title="Bias of the whole window",
        help="This part of the similarity of the whole window to a class is added to that of each cell (SegEarth-OV, "
        "Li et al. 2025). A negative part, such as -0.3, makes small objects stand out; 0 changes nothing. By default, "
        "what suits the model.",
        low=-1,
        high=1,
    )


@group
class SeedOption:
    """What random numbers start from."""

    seed: int = advanced_param(
        0, title="Seed", help="Starting value of the random numbers. The same seed gives the same result again.", low=0
    )


@group
class RasterStackOptions(NodataOption, SeedOption, RunOptions):
    """Rasters of one place that are learned from together."""

    rasters: Rasters = param(
        title="Raster(s)",
        help="One raster or several of the same place, with any number of bands: multispectral, hyperspectral, radar, "
        "elevation. They may differ in coordinate system and pixel size. Each raster is one modality; bands that "
        "belong together belong in one raster (a virtual raster will do).",
    )
    grid: int = advanced_param(
        0,
        title="Raster that sets the grid",
        help="Number of the raster, counted from 1, whose pixels and coordinate system the result has; the others are "
        "warped to them. 0 means the raster with the smallest pixels.",
        low=0,
    )
    steps: Optional[int] = advanced_param(
        None,
        title="Steps of pre-training",
        help="Number of steps in which the network learns what the scene looks like. More take longer and can be "
        "better. By default, 400.",
        low=1,
    )

    def check(self) -> None:
        """Raises ClippanError if there is no raster of this number."""
        if self.grid > len(self.rasters):
            raise ClippanError(
                "“{title}” is {number}; it has to be between 0 and {count}, the number of rasters.",
                title=Message("Raster that sets the grid"),
                number=self.grid,
                count=len(self.rasters),
            )


@group
class TrainingOptions(SeedOption, RunOptions):
    """How a vision-language model is trained. A run that was interrupted is resumed by the same request."""

    output: RunFolder = param(
        title="Trained model",
        help="The folder of the run and, in the end, of the model in the form of open_clip. An interrupted run with "
        "the same parameters is resumed.",
    )
    model: ModelName = param(
        "starter",
        title="Model",
        help="The vision-language model to start from: one of the list, or a folder with a model of your own. Its "
        "licence holds for what is made of it.",
    )
    epochs: int = param(
        5,
        title="Epochs",
        help="How often each chip is seen. More take longer, and with few chips lead to overfitting. At least 40 "
        "steps are taken.",
        low=1,
    )
    steps: Optional[int] = advanced_param(
        None, title="Steps", help="Number of training steps, instead of the epochs.", low=1
    )
    batch: int = advanced_param(
        32, title="Batch size", help="Number of chips in a training step; fewer need less memory and time.", low=1
    )
    rate: float = advanced_param(
        1e-4,
        title="Learning rate",
        help="The largest learning rate. Too small a rate learns nothing, too large a one forgets what was known.",
        above=0,
    )
    weight_decay: float = advanced_param(
        0.5,
        title="Weight decay",
        help="Weight decay of AdamW, for matrices and kernels; it reduces overfitting.",
        low=0,
        high=100,
    )


@group
class ChipOptions(TrainingOptions, PictureOptions):
    """A training on chips that are cut out of rasters, with a report."""

    size: int = advanced_param(
        0, title="Edge of the chips", help="Edge of the chips; 0 means what suits the pixel size.", low=0, unit="pixels"
    )
    report: Report = param(
        "", title="Report", help="A web page with what was learned and how well, with figures.", proposed=True
    )


_MAX_RANGE = 100_000  # numbers that a range like 2-4 may stand for
_MAX_DIGITS = 18  # of a number; Python refuses to read those of some thousand digits


def parse_bands(text: str) -> tuple[int, ...]:
    """Band numbers from a text such as ``1,2,3``, ``4 3 2`` or ``2-4``.

    Raises:
        ClippanError: it is no such list.
    """
    numbers: list[int] = []
    for item in text.replace(",", " ").replace(";", " ").split():
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or max(len(first), len(last)) > _MAX_DIGITS:
            raise ClippanError("The band list “{text}” is not understood; write it like 1,2,3 or 2-4.", text=text)
        start, end = int(first), int(last) if dash else int(first)
        if abs(end - start) > _MAX_RANGE:
            raise ClippanError("The list “{text}” is too long; write fewer numbers.", text=text)
        numbers.extend(range(start, end + 1) if start <= end else range(start, end - 1, -1))
    return tuple(numbers)
