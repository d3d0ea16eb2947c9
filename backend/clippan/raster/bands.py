"""What GDAL says of a raster's bands, and which of them show it in natural colours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Optional
from xml.etree import ElementTree  # nosec B405 (of GDAL's own text)

from osgeo import gdal

from clippan.catalogue.band_names import Band, BandChoice, band_order, natural_colours, parse_wavelength
from clippan.raster.source import sensor_texts

_COLOUR_NAMES = {gdal.GCI_RedBand: "red", gdal.GCI_GreenBand: "green", gdal.GCI_BlueBand: "blue"}
_NAME_KEYS = ("common_name", "eo:common_name", "band_name", "bandname", "name", "long_name")  # in metadata of bands
_MAX_VRT_FILES = 64  # of a virtual raster: more are the tiles of a mosaic
_MICROMETRES = 100.0  # a wavelength without a unit is in micrometres below this, else in nanometres


def natural_colour_bands(
    dataset: gdal.Dataset, original: gdal.Dataset, path: str, numbers: Sequence[int]
) -> BandChoice:
    """The bands for a picture in natural colours, or the one that is shown in grey.

    Args:
        dataset: whose ``numbers`` (bands other than masks) are chosen from.
        original, path: the file behind it, which may reveal the sensor.
    """
    files = [PurePosixPath(name.replace("\\", "/")).name for name in original.GetFileList() or []]
    found = natural_colours(
        band_metadata(dataset, numbers), band_order([*sensor_texts(original, path), *files[:_MAX_VRT_FILES]])
    )
    return BandChoice(tuple(numbers[band - 1] for band in found.bands), found.reason, found.guessed)


def band_metadata(dataset: gdal.Dataset, numbers: Sequence[int]) -> list[Band]:
    """Names, colours and wavelengths of bands, as far as the raster, its bands or an ENVI header tell."""
    general, envi = _metadata(dataset), _metadata(dataset, "ENVI")
    listed = envi.get("wavelength", "")
    header = [part.strip() for part in listed.strip("{} \n").split(",")] if listed else []
    unit = envi.get("wavelength_units", general.get("wavelength_units", ""))
    files = _vrt_file_stems(dataset)
    bands = []
    for number in numbers:
        band = dataset.GetRasterBand(number)
        own = {**_metadata(band), **_metadata(band, "IMAGERY")}
        name = band.GetDescription() or general.get(f"band_{number}", "")
        name = name or next((own[key] for key in _NAME_KEYS if own.get(key)), "") or files[number - 1]
        centre = _centre_wavelength(own.get("central_wavelength_um", ""), "um") or _centre_wavelength(
            own.get("wavelength", ""), own.get("wavelength_units", own.get("wavelength_unit", unit))
        )
        if centre is None and len(header) == dataset.RasterCount:
            centre = _centre_wavelength(header[number - 1], unit)
        bands.append(Band(name, _COLOUR_NAMES.get(band.GetColorInterpretation(), ""), centre))
    return bands


def _vrt_file_stems(dataset: gdal.Dataset) -> list[str]:
    """For each band of a virtual raster the stem of its only source file; empty where it has several.

    (GDAL 3.6 crashes on a band's own list of sources if the raster was made in memory.)
    """
    if dataset.GetDriver().ShortName != "VRT" or len(dataset.GetFileList() or []) > _MAX_VRT_FILES:
        return [""] * dataset.RasterCount
    names = []
    for band in ElementTree.fromstring(dataset.GetMetadata("xml:VRT")[0]).iterfind("VRTRasterBand"):  # nosec B314
        files = [item.text or "" for item in band.iter("SourceFilename")]
        names.append(PurePosixPath(files[0].replace("\\", "/")).stem if len(files) == 1 else "")
    return names if len(set(names)) == len(names) else [""] * len(names)


def _metadata(item: gdal.MajorObject, domain: str = "") -> dict[str, str]:
    return {key.lower(): value for key, value in (item.GetMetadata(domain) or {}).items()}


def _centre_wavelength(text: str, unit: str) -> Optional[float]:
    """In nanometres; None for what is no wavelength."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*", text)
    if match is None:
        return parse_wavelength(text)
    if unit.strip().lower() in ("", "unknown"):
        unit = "um" if float(match.group(1)) < _MICROMETRES else "nm"
    return parse_wavelength(match.group(1), unit)
