"""Reads what a network is trained on into memory."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from PIL import Image

from clippan.catalogue.sensors import SENSORS, recognise_sensor
from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.fusion import filters
from clippan.fusion.registration import estimate
from clippan.learn.fusion.patches import ReferenceScene, ScenePair
from clippan.learn.fusion.recipe import PairSource, PictureSource
from clippan.raster.grid import Axis
from clippan.raster.pair import Pair, open_pair
from clippan.raster.source import Source, open_dataset
from clippan.raster.tiles import Window

_GAIN = 0.3  # of the MTF that the moments of pictures are taken with
_GAMMA = (0.8, 1.2)  # of PAN made of a picture's bands: real ones are no exact sum of them
_SEED = 0
_ENDINGS = (".jpg", ".jpeg", ".tif")
_SMALLEST = 64  # samples, edge of a window that patches are cut from
_CANDIDATES = 9  # places looked at along each axis of a large scene
_FAR = 4.0  # windows' edges


def read_pairs(root: Path, source: PairSource, without: Sequence[str], context: Context) -> Iterator[ScenePair]:
    """The pairs of a folder; ready-made reduced ones (with a ``gt.tif``) are left out, as they are often out of phase.

    Raises:
        ClippanError: there are none.
    """
    folder = root / source.folder
    found = [path for path in sorted(folder.glob("*__*")) if not (path / "gt.tif").exists()]
    if not found:
        raise ClippanError(
            "There are no pairs in {folder}; each is a folder SENSOR__SCENE with pan.tif and ms.tif.", folder=folder
        )
    for path in found:
        group = path.name.split("__")[0]
        if group in without or path.name in source.without:
            continue
        context.log(path.name)
        sensor = recognise_sensor([group]) or SENSORS["generic"]
        with open_pair(str(path / "pan.tif"), [str(path / "ms.tif")]) as pair:
            gains = sensor.gains(range(pair.ms.count), pair.ms.total)
            registered = estimate(pair, gains, 1, context, own=False).apply(pair)
            yield read_pair(registered, path.name, group, gains, sensor.pan)


def read_pair(pair: Pair, name: str, group: str, gains: Sequence[float], pan_gain: float) -> ScenePair:
    """All of a pair as it lies."""
    grid = pair.grid
    pan, pan_valid = pair.read_pan(Window(0, 0, grid.width, grid.height))
    ms, valid = pair.read_ms(Window(0, 0, pair.ms.grid.width, pair.ms.grid.height))
    return scene_pair(pair.x, pair.y, pan, pan_valid, ms, valid, name, group, tuple(gains), pan_gain)


def read_window(pair: Pair, window: Window, name: str, gains: Sequence[float], pan_gain: float) -> ScenePair:
    """What a pair holds of a window of MS, with PAN on the same scene as far as the output's grid reaches.

    Bands that lie beside the others are interpolated to the samples of these, as a ``ScenePair`` has one axis for all.

    Raises:
        ClippanError: no pixel of PAN lies there.
    """
    left, right = _pixels(pair.x, window.x, window.width, pair.grid.width)
    top, bottom = _pixels(pair.y, window.y, window.height, pair.grid.height)
    if right <= left or bottom <= top:
        raise ClippanError("MS does not lie on PAN once it is registered; choose rasters of one place.")
    pan, pan_valid = pair.read_pan(Window(left, top, right - left, bottom - top))
    ms, valid = _read_together(pair, window)
    x = Axis(pair.x.ratio, pair.x.offset + window.x * pair.x.ratio - left)
    y = Axis(pair.y.ratio, pair.y.offset + window.y * pair.y.ratio - top)
    return scene_pair(x, y, pan, pan_valid, ms, valid, name, name, tuple(gains), pan_gain)


def _pixels(axis: Axis, first: int, count: int, limit: int) -> tuple[int, int]:
    """First and end pixel of those that samples cover."""
    start, end = (axis.offset + index * axis.ratio for index in (first, first + count))
    return max(math.floor(start + 0.5), 0), min(math.floor(end + 0.5), limit)


def _read_together(pair: Pair, window: Window) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """MS and its validity, all bands at the samples of the axes."""
    if not pair.offsets:
        return pair.read_ms(window)
    own_x = [along / pair.x.ratio for along, _ in pair.offsets]
    own_y = [along / pair.y.ratio for _, along in pair.offsets]
    grid = Axis(1.0, 0.0)  # MS on its own: one sample a pixel
    left, width = filters.ms_support(grid, window.x, window.width, filters.largest_shift(own_x))
    top, height = filters.ms_support(grid, window.y, window.height, filters.largest_shift(own_y))
    values, valid = pair.read_ms(Window(left, top, width, height))
    ms = torch.from_numpy(values.astype(np.float32))
    rows = filters.upsampling_matrices(grid, window.y, window.height, own_y)
    columns = filters.upsampling_matrices(grid, window.x, window.width, own_x)
    if valid is None:
        return filters.apply_separable(rows, ms, columns).numpy(), None
    mask = torch.from_numpy(valid).expand_as(ms)
    mean = torch.where(mask, ms, 0.0).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
    moved = filters.apply_separable(rows, filters.fill_invalid(ms, mask, mean), columns)
    down = torch.from_numpy(filters.nearest_samples(grid, window.y, window.height, own_y))
    across = torch.from_numpy(filters.nearest_samples(grid, window.x, window.width, own_x))
    return moved.numpy(), filters.gather(mask, down, across).numpy()


def informative_windows(pair: Pair, most: int, edge: int, whole: int) -> tuple[list[Window], bool]:
    """Windows of MS that tell most about a scene, in the order of what they add, and whether they are all of it.

    Of candidates that are spread evenly, those are taken that are valid, have contrast, and lie far from each other.

    Args:
        pair: the scene; MS alone is looked at, so that a large scene costs a few reads.
        most: number of windows.
        edge: of a window, in PAN pixels.
        whole: PAN pixels times bands up to which all of a scene is one window.
    """
    if pair.grid.width * pair.grid.height * pair.ms.count <= whole:
        return [pair.ms_window()], True
    everything = pair.ms_extent()
    size = max(math.ceil(edge / math.sqrt(pair.x.ratio * pair.y.ratio)), _SMALLEST)
    starts = [
        sorted({first + round((length - min(size, length)) * step / (_CANDIDATES - 1)) for step in range(_CANDIDATES)})
        for first, length in ((everything.x, everything.width), (everything.y, everything.height))
    ]
    candidates = [
        Window(x, y, min(size, everything.width), min(size, everything.height)) for y in starts[1] for x in starts[0]
    ]
    told = np.array([_told(pair, window) for window in candidates])
    centres = np.array([(window.x, window.y) for window in candidates], float)
    chosen: list[int] = []
    far = np.full(len(candidates), np.inf)
    while len(chosen) < most:
        # Windows must not overlap, and beyond a few of their edges distance is worth no more.
        worth = told * np.where(far < 1, 0.0, np.minimum(far, _FAR))
        best = int(worth.argmax())
        if worth[best] <= 0:
            break
        chosen.append(best)
        apart = np.abs(centres - centres[best]) / (candidates[best].width, candidates[best].height)
        far = np.minimum(far, apart.max(axis=1))
    return [candidates[index] for index in chosen], False


def _told(pair: Pair, window: Window) -> float:
    """The part of a window that is valid, times the bands' contrast between neighbours as a part of their mean."""
    values, valid = pair.read_ms(window)
    joint = (values != 0).any(axis=0)
    if valid is not None:
        joint &= valid.all(axis=0)
    both = joint[:, 1:] & joint[:, :-1]
    if not both.any():
        return 0.0
    values = values.astype(np.float32)
    steps = np.abs(np.diff(values, axis=2))[:, both].mean(axis=1)
    level = np.abs(values[:, joint]).mean(axis=1)
    # Bright clouds with sharp borders must not outweigh land: contrast counts by its root.
    return float(joint.mean() ** 2 * np.sqrt(np.mean(steps / np.maximum(level, 1e-9))))


def read_pictures(root: Path, source: PictureSource) -> Iterator[ReferenceScene]:
    """Pictures with PAN made of their bands.

    Raises:
        ClippanError: they are not there, or cannot be read.
    """
    path = root / source.path
    rng = np.random.default_rng(_SEED)
    if not path.exists():
        raise ClippanError("The pictures {path} are not there; correct the recipe or the data folder.", path=path)
    for name, bands in _bands(path, source) if source.bands else _archive(path, source, rng):
        count = len(bands)
        weights = rng.dirichlet(np.ones(count)).astype(np.float32)
        pan = np.tensordot(weights, bands ** np.float32(rng.uniform(*_GAMMA)), 1)
        yield ReferenceScene(name, path.stem, pan, bands, np.all(bands > 0, axis=0), (_GAIN,) * count)


def _archive(path: Path, source: PictureSource, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    if path.is_dir():
        raise ClippanError(
            "The pictures {path} are a folder; name its rasters as bands in the recipe, or give a zip.", path=path
        )
    try:
        with zipfile.ZipFile(path) as files:
            names = sorted(name for name in files.namelist() if name.lower().endswith(_ENDINGS))
            for name in sorted(rng.permutation(names)[: source.limit]):
                picture = Image.open(io.BytesIO(files.read(str(name)))).convert("RGB").reduce(source.factor)
                yield str(name), np.asarray(picture, np.float32).transpose(2, 0, 1) + 1  # black is no missing pixel
    except Exception as error:
        raise ClippanError(
            "The pictures {path} cannot be read ({reason}); give a zip that is whole.",
            path=path,
            reason=one_line(error),
        ) from error
    if not names:
        raise ClippanError(
            "There are no pictures in {path}; give a zip of files that end in {_ENDINGS}.",
            path=path,
            _ENDINGS=", ".join(_ENDINGS),
        )


def _bands(path: Path, source: PictureSource) -> Iterator[tuple[str, np.ndarray]]:
    datasets = [open_dataset(str(path / name), "training raster") for name in source.bands]
    with Source(datasets, "training raster", (), None) as raster:
        width, height = (size // source.factor for size in (raster.grid.width, raster.grid.height))
        values, _ = raster.read(0, 0, width * source.factor, height * source.factor)
    blocks = values.reshape(len(values), height, source.factor, width, source.factor)
    yield path.name, blocks.mean(axis=(2, 4), dtype=np.float32)


def scene_pair(
    x: Axis,
    y: Axis,
    pan: np.ndarray,
    pan_valid: Optional[np.ndarray],
    ms: np.ndarray,
    valid: Optional[np.ndarray],
    name: str,
    group: str,
    gains: tuple[float, ...],
    pan_gain: float,
) -> ScenePair:
    """Arrays of a pair and the axes of MS on PAN's grid; what is invalid gets the mean, and is kept out of patches."""
    pan, ms = pan.astype(np.float32), ms.astype(np.float32)
    joint = np.ones(ms.shape[1:], bool) if valid is None else valid.all(axis=0)
    joint &= (ms != 0).any(axis=0)  # files that do not declare it mark missing pixels so
    rows = y.to_output(0.0) + np.arange(ms.shape[1]) * y.ratio
    columns = x.to_output(0.0) + np.arange(ms.shape[2]) * x.ratio
    joint &= ((rows >= 0) & (rows < pan.shape[0]))[:, None] & ((columns >= 0) & (columns < pan.shape[1]))
    if pan_valid is not None:
        inside = np.clip(np.rint(rows), 0, pan.shape[0] - 1).astype(int)
        across = np.clip(np.rint(columns), 0, pan.shape[1] - 1).astype(int)
        joint &= pan_valid[inside][:, across]
        pan = np.where(pan_valid, pan, pan[pan_valid].mean() if pan_valid.any() else 0)
    if joint.any():
        ms = np.where(joint, ms, ms[:, joint].mean(axis=1)[:, None, None])
    return ScenePair(name, group, pan, ms, x, y, joint, gains, pan_gain)
