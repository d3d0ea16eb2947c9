"""Reads what a network is trained on into memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clippan.fusion.sensors import SENSORS, recognise
from clippan.fusion.training.scenes import Pairing, Truth
from clippan.jobs.base import Context
from clippan.raster.grid import Axis
from clippan.raster.pair import open_pair
from clippan.raster.tiles import Window


def pairing(name: str, group: str, pan: str, ms: Sequence[str], context: Context, shift=(0.,0.)) -> Pairing:
    """A pair of rasters, all of it."""
    with open_pair(pan, ms) as pair:
        grid = pair.grid
        light, light_valid = pair.read_pan(Window(0, 0, grid.width, grid.height))
        left, right = (max(0, int(np.ceil(pair.x.to_ms(-0.5)))), int(pair.x.to_ms(grid.width - 0.5)) + 1)
        top, bottom = (max(0, int(np.ceil(pair.y.to_ms(-0.5)))), int(pair.y.to_ms(grid.height - 0.5)) + 1)
        right, bottom = min(right, pair.ms.grid.width), min(bottom, pair.ms.grid.height)
        bands, valid = pair.read_ms(Window(left, top, right - left, bottom - top))
        bands = bands.astype(np.float32)
        joint = np.ones(bands.shape[1:], bool) if valid is None else valid.all(axis=0)
        joint &= (bands != 0).any(axis=0)
        x = Axis(pair.x.ratio, pair.x.offset + left * pair.x.ratio + shift[1])
        y = Axis(pair.y.ratio, pair.y.offset + top * pair.y.ratio + shift[0])
        sensor = recognise([group]) or SENSORS["generic"]
        gains = sensor.gains(range(len(bands)), len(bands))
        light = light.astype(np.float32)
        if light_valid is not None:
            light = np.where(light_valid, light, light[light_valid].mean())
    return Pairing(name, group, light, bands, x, y, joint, gains, sensor.pan)


def pictures(archive: Path, factor: int, group: str, limit: int) -> Iterator[Truth]:
    """The pictures of a zip, shrunk by a factor (they are JPEG, and soft): PAN is made of their bands."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(archive) as files:
        names = sorted(n for n in files.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png", ".tif")))
        names = [n for n in names if "mask" not in n.lower()]
        for name in rng.permutation(names)[:limit]:
            picture = Image.open(io.BytesIO(files.read(str(name)))).convert("RGB")
            picture = picture.reduce(factor)
            bands = np.asarray(picture, np.float32).transpose(2, 0, 1) + 1
            weights = rng.dirichlet([1.0] * 3).astype(np.float32)
            pan = np.tensordot(weights, bands ** float(rng.uniform(0.8, 1.2)), 1)
            yield Truth(str(name), group, pan, bands, np.ones(pan.shape, bool), 4, (0.3, 0.3, 0.3))
