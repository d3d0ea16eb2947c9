"""What the engine opens to read a raster layer: files, GDAL data sources, and map services."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from qgis.core import QgsProviderRegistry, QgsRasterLayer

from clippan.core.errors import ClippanError

from .settings import Settings

_WEB_MAP_EDGE = 20037508.342789244  # metres from the middle of a web map to its edge
_MAX_ZOOM = 19  # zoom level, where a layer names none
_WMS_PIXELS = 2**20  # along the longer edge of a WMS layer: finer than anybody reads it
_CACHE_SECONDS = 604_800  # seconds that fetched map tiles are kept


def data_source(layer: QgsRasterLayer) -> str:
    """What GDAL opens to read a layer.

    Raises:
        ClippanError: another provider than GDAL reads it, or only with a password.
    """
    if layer.providerType() != "gdal":
        raise ClippanError(
            "Layer {layer} comes from the provider {provider}; export it to a GeoTIFF first.",
            layer=layer.name(),
            provider=layer.providerType(),
        )
    source = layer.source()
    parts = QgsProviderRegistry.instance().decodeUri("gdal", source)
    if "authcfg=" in source or parts.get("credentialOptions"):
        raise _login_error(layer)
    if parts.pop("openOptions", None):  # QGIS's own notation, which GDAL does not know
        source = QgsProviderRegistry.instance().encodeUri("gdal", parts)
    return absolute(source) if Path(source).exists() else source


def absolute(path: str) -> str:
    """A path that means the same in the engine, which runs in another folder; GDAL's virtual ones stay."""
    return path if not path or path.startswith("/vsi") else str(Path(path).absolute())


def data_source_or_service(layer: QgsRasterLayer) -> str:
    """What the index reads: as ``data_source``, and for map services (XYZ, WMS) a description that GDAL reads.

    The description is written into the cache folder, so that the index can name it.

    Raises:
        ClippanError: the engine cannot read the layer.
    """
    if layer.providerType() != "wms":
        return data_source(layer)
    # The source is a query string, and a name may come several times: a WMS's layers do.
    values = {name: ",".join(found) for name, found in parse_qs(layer.source(), keep_blank_values=True).items()}
    if "authcfg" in values or values.get("username"):
        raise _login_error(layer)
    text = _xyz_description(layer, values) if values.get("type") == "xyz" else _wms_description(layer, values)
    cache = Settings.read().cache_folder / "services"
    tiles = f"<Cache><Path>{escape(str(cache / 'tiles'))}</Path><Expires>{_CACHE_SECONDS}</Expires></Cache>"
    text = text.replace("</GDAL_WMS>", f"{tiles}</GDAL_WMS>")
    name = re.sub(r"[^\w-]+", "_", layer.name()) or "layer"
    file = cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.xml"  # layers may share a name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not (file.is_file() and file.read_text(encoding="utf-8") == text):  # its time tells the index of a change
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ClippanError(
            "The cache folder {folder} is not writable ({reason}); choose another in the options.",
            folder=cache,
            reason=error.strerror or error,
        ) from error
    return str(file)


def is_service(layer: QgsRasterLayer) -> bool:
    """Whether a layer is a map service, which has an end nowhere near."""
    return layer.providerType() == "wms"


def _login_error(layer: QgsRasterLayer) -> ClippanError:
    return ClippanError(
        "Layer {layer} needs a login, which is not passed to the engine; export it to a GeoTIFF first.",
        layer=layer.name(),
    )


def _xyz_description(layer: QgsRasterLayer, values: dict[str, str]) -> str:
    url = values.get("url", "")
    if not all(mark in url for mark in ("{z}", "{x}")) or not re.search(r"\{-?y\}", url):
        raise ClippanError(
            "The address of layer {layer} does not have the form {form}; export it to a GeoTIFF first.",
            layer=layer.name(),
            form="…/{z}/{x}/{y}",
        )
    origin = "bottom" if "{-y}" in url else "top"
    for mark in ("{z}", "{x}", "{y}"):
        url = url.replace(mark, "$" + mark)
    url = url.replace("{-y}", "${y}")
    level = int(values["zmax"]) if values.get("zmax", "").isdecimal() else _MAX_ZOOM
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{escape(url)}</ServerUrl></Service><DataWindow>'
        f"<UpperLeftX>-{_WEB_MAP_EDGE}</UpperLeftX><UpperLeftY>{_WEB_MAP_EDGE}</UpperLeftY>"
        f"<LowerRightX>{_WEB_MAP_EDGE}</LowerRightX><LowerRightY>-{_WEB_MAP_EDGE}</LowerRightY>"
        f"<TileLevel>{level}</TileLevel><TileCountX>1</TileCountX><TileCountY>1</TileCountY>"
        f"<YOrigin>{origin}</YOrigin></DataWindow><Projection>EPSG:3857</Projection>"
        "<BlockSizeX>256</BlockSizeX><BlockSizeY>256</BlockSizeY><BandsCount>3</BandsCount></GDAL_WMS>"
    )


def _wms_description(layer: QgsRasterLayer, values: dict[str, str]) -> str:
    if not (values.get("url") and values.get("layers")) or values.get("tileMatrixSet"):
        raise ClippanError(
            "Layer {layer} uses a tiling that GDAL does not read; export it to a GeoTIFF first.",
            layer=layer.name(),
        )
    extent = layer.extent()
    pixel = max(extent.width(), extent.height()) / _WMS_PIXELS
    size = (max(round(extent.width() / pixel), 1), max(round(extent.height() / pixel), 1))
    return (
        '<GDAL_WMS><Service name="WMS"><Version>1.1.1</Version>'
        f"<ServerUrl>{escape(values['url'])}</ServerUrl><SRS>{escape(layer.crs().authid())}</SRS>"
        f"<ImageFormat>{escape(values.get('format', 'image/png'))}</ImageFormat>"
        f"<Layers>{escape(values['layers'])}</Layers><Styles>{escape(values.get('styles', ''))}</Styles></Service>"
        f"<DataWindow><UpperLeftX>{extent.xMinimum()}</UpperLeftX><UpperLeftY>{extent.yMaximum()}</UpperLeftY>"
        f"<LowerRightX>{extent.xMaximum()}</LowerRightX><LowerRightY>{extent.yMinimum()}</LowerRightY>"
        f"<SizeX>{size[0]}</SizeX><SizeY>{size[1]}</SizeY></DataWindow>"
        f"<Projection>{escape(layer.crs().authid())}</Projection><BandsCount>3</BandsCount></GDAL_WMS>"
    )
