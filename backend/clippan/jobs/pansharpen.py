"""Pansharpen: a multispectral raster takes the detail of a panchromatic one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.core.device import Device
from clippan.jobs import check
from clippan.jobs.base import Request
from clippan.jobs.options import Compression, Format, Method, Registration


@dataclass(frozen=True)
class PansharpenResult:
    """What was made.

    Attributes:
        output: the written file.
        width, height, bands: its size in pixels and bands.
        dtype: its GDAL data type, that of the multispectral input.
        nodata: its nodata value, None if every pixel is valid.
        method, sensor, device: what was used, once "auto" was resolved.
        ratio: multispectral over panchromatic pixel size (x, y).
        seconds: wall time.
        provenance: what the file's GDAL tags hold as well.
        hints: what the user may have overlooked, each a sentence.
        shift: how far MS was moved to the right and down, in PAN pixels (x, y).
        band_shifts: the same for each band, where they differ; else empty.
    """

    output: str
    width: int
    height: int
    bands: int
    dtype: str
    nodata: Optional[float]
    method: str
    sensor: str
    device: str
    ratio: tuple[float, ...]
    seconds: float
    provenance: Mapping[str, str]
    hints: tuple[str, ...] = ()
    shift: tuple[float, ...] = (0.0, 0.0)
    band_shifts: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class PansharpenRequest(Request):
    """Parameters of a pansharpening.

    Attributes:
        pan: the panchromatic raster, one band (any GDAL data source).
        ms: one multi-band raster, or several that are stacked in this order.
        output: the GeoTIFF to write.
        method: how to fuse.
        sensor: an id of ``resources/sensors.json``, "auto" or "generic".
        bands: which bands of the stack to sharpen, from 1; empty means all.
        nodata: overrides the nodata value that the inputs declare.
        tile_size: edge, in PAN pixels, of what is read and written at a time; it never changes the result.
        threads: CPU threads, 0 means all.
        device: where to compute.
        format, compression, overviews: of the output.
        registration: whether MS is moved onto PAN where they do not lie on each other.
        model: a fusion model's file for the method ``clippan``; empty means the one that ships with it.
    """

    name: ClassVar[str] = "pansharpen"
    result: ClassVar[type] = PansharpenResult

    pan: str
    ms: tuple[str, ...]
    output: str
    method: Method = Method.CLIPPAN
    sensor: str = "auto"
    bands: tuple[int, ...] = ()
    nodata: Optional[float] = None
    tile_size: int = 2048
    threads: int = 0
    device: Device = Device.AUTO
    format: Format = Format.GTIFF
    compression: Compression = Compression.DEFLATE
    overviews: bool = True
    registration: Registration = Registration.AUTO
    model: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.pan, *self.ms, self.model)

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Request."""
        return (self.output,)

    def validate(self) -> None:
        """See Request."""
        check.source("panchromatic raster", self.pan)
        check.sources("multispectral raster", self.ms)
        check.output(self.output, self.inputs)
        check.geotiff(self.output)
        check.bands(self.bands)
        if self.model and self.method is not Method.CLIPPAN:
            check.fail(f"A model is for the method clippan, not for {self.method.value}; leave one of them out.")
        check.sensor(self.sensor)
        check.at_least("tile size", self.tile_size, 256)
        check.at_least("number of threads", self.threads, 0)
