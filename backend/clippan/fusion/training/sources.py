"""Reads what a network is trained on into memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from clippan.errors import ClippanError
from clippan.fusion.registration import estimate
from clippan.fusion.sensors import SENSORS, Sensor, recognise
from clippan.fusion.training.recipe import Pairs, Pictures
from clippan.fusion.training.scenes import Pairing, Truth
from clippan.jobs.base import Context
from clippan.raster.pair import Pair, open_pair
from clippan.raster.source import Source, open_dataset
from clippan.raster.tiles import Window

_GAIN = 0.3  # of the MTF that the moments of pictures are taken with
_GAMMA = (0.8, 1.2)  # of PAN made of a picture's bands: real ones are no exact sum of them
_SEED = 0


def pairs(root: Path, source: Pairs, without: Sequence[str], context: Context) -> Iterator[Pairing]:
    """The pairs of a folder; ready-made reduced ones (with a ``gt.tif``) are left out, as they are often out of phase.

    Raises:
        ClippanError: there are none.
    """
    folder = root / source.folder
    found = [path for path in sorted(folder.glob("*__*")) if not (path / "gt.tif").exists()]
    if not found:
        raise ClippanError(f"There are no pairs in {folder}; each is a folder SENSOR__SCENE with pan.tif and ms.tif.")
    for path in found:
        group = path.name.split("__")[0]
        if group in without or path.name in source.without:
            continue
        context.log(path.name)
        sensor = recognise([group]) or SENSORS["generic"]
        with open_pair(str(path / "pan.tif"), [str(path / "ms.tif")]) as pair:
            yield load(pair, path.name, group, sensor, context)


def load(pair: Pair, name: str, group: str, sensor: Sensor, context: Context) -> Pairing:
    """All of a pair, registered."""
    gains = sensor.gains(range(pair.ms.count), pair.ms.total)
    return whole(estimate(pair, gains, 1, context, own=False).apply(pair), name, group, gains, sensor.pan)


def whole(pair: Pair, name: str, group: str, gains: Sequence[float], pan_gain: float) -> Pairing:
    """All of a pair as it lies."""
    grid = pair.grid
    pan, pan_valid = pair.read_pan(Window(0, 0, grid.width, grid.height))
    ms, valid = pair.read_ms(Window(0, 0, pair.ms.grid.width, pair.ms.grid.height))
    return pairing(pair, pan, pan_valid, ms, valid, name, group, tuple(gains), pan_gain)


def pictures(root: Path, source: Pictures) -> Iterator[Truth]:
    """Pictures with PAN made of their bands.

    Raises:
        ClippanError: they are not there.
    """
    path = root / source.path
    rng = np.random.default_rng(_SEED)
    if not path.exists():
        raise ClippanError(f"The pictures {path} are not there; correct the recipe or the data folder.")
    for name, bands in _bands(path, source) if source.bands else _archive(path, source, rng):
        count = len(bands)
        weights = rng.dirichlet(np.ones(count)).astype(np.float32)
        pan = np.tensordot(weights, bands ** np.float32(rng.uniform(*_GAMMA)), 1)
        yield Truth(name, path.stem, pan, bands, (bands > 0).all(axis=0), (_GAIN,) * count)


def _archive(path: Path, source: Pictures, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(path) as files:
        names = sorted(name for name in files.namelist() if name.lower().endswith((".jpg", ".jpeg", ".tif")))
        for name in sorted(rng.permutation(names)[: source.limit]):
            picture = Image.open(io.BytesIO(files.read(str(name)))).convert("RGB").reduce(source.factor)
            yield str(name), np.asarray(picture, np.float32).transpose(2, 0, 1) + 1  # black is no missing pixel


def _bands(path: Path, source: Pictures) -> Iterator[tuple[str, np.ndarray]]:
    datasets = [open_dataset(str(path / name), "training raster") for name in source.bands]
    with Source(datasets, "training raster", (), None) as raster:
        width, height = (size // source.factor for size in (raster.grid.width, raster.grid.height))
        values, _ = raster.read(0, 0, width * source.factor, height * source.factor)
    blocks = values.reshape(len(values), height, source.factor, width, source.factor)
    yield path.name, blocks.mean(axis=(2, 4), dtype=np.float32)


def pairing(
    pair: Pair,
    pan: np.ndarray,
    pan_valid: Optional[np.ndarray],
    ms: np.ndarray,
    valid: Optional[np.ndarray],
    name: str,
    group: str,
    gains: tuple[float, ...],
    pan_gain: float,
) -> Pairing:
    """Arrays of a pair; what is invalid gets the mean, and is kept out of patches."""
    pan, ms = pan.astype(np.float32), ms.astype(np.float32)
    joint = np.ones(ms.shape[1:], bool) if valid is None else valid.all(axis=0)
    joint &= (ms != 0).any(axis=0)  # files that do not declare it mark missing pixels so
    rows = pair.y.to_output(0.0) + np.arange(ms.shape[1]) * pair.y.ratio
    columns = pair.x.to_output(0.0) + np.arange(ms.shape[2]) * pair.x.ratio
    joint &= ((rows >= 0) & (rows < pan.shape[0]))[:, None] & ((columns >= 0) & (columns < pan.shape[1]))
    if pan_valid is not None:
        inside = np.clip(np.rint(rows), 0, pan.shape[0] - 1).astype(int)
        across = np.clip(np.rint(columns), 0, pan.shape[1] - 1).astype(int)
        joint &= pan_valid[inside][:, across]
        pan = np.where(pan_valid, pan, pan[pan_valid].mean())
    if joint.any():
        ms = np.where(joint, ms, ms[:, joint].mean(axis=1)[:, None, None])
    return Pairing(name, group, pan, ms, pair.x, pair.y, joint, gains, pan_gain)
