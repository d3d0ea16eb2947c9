"""Reads training scenes and pictures into memory."""

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
from clippan.fusion.mtf_estimation import choose_mtf
from clippan.fusion.registration import estimate
from clippan.jobs.options import MtfSource
from clippan.learn.fusion.patches import ReferenceScene, ScenePair
from clippan.learn.fusion.recipe import PairSource, PictureSource
from clippan.raster.grid import AxisTransform
from clippan.raster.pair import Pair, open_pair
from clippan.raster.source import Source, open_dataset
from clippan.raster.tiles import Window

_PICTURE_MTF_GAIN = 0.3  # MTF gain assumed for the bands of pictures
_GAMMA_RANGE = (0.8, 1.2)  # of a simulated PAN: a real one is no exact sum of the bands
_EXTENSIONS = (".jpg", ".jpeg", ".tif")
_MIN_WINDOW_SIZE = 64  # MS samples, least edge of a window that patches are cut from
_CANDIDATES_PER_AXIS = 9  # candidate windows along each axis of a large scene
_MAX_DISTANCE = 4.0  # window edges; a greater distance between windows counts no more


def read_pairs(root: Path, source: PairSource, without: Sequence[str], context: Context) -> Iterator[ScenePair]:
    """The pairs of a folder, without ready-made reduced ones (with a ``gt.tif``), which are often out of phase.

    Raises:
        ClippanError: the folder has no pairs.
    """
    folder = root / source.folder
    paths = [path for path in sorted(folder.glob("*__*")) if not (path / "gt.tif").exists()]
    if not paths:
        raise ClippanError(
            "The folder {folder} has no pairs; a pair is a folder SENSOR__SCENE with pan.tif and ms.tif.", folder=folder
        )
    for path in paths:
        name = path.name.split("__")[0]
        if name in without or path.name in source.without:
            continue
        context.log(path.name)
        sensor = recognise_sensor([name]) or SENSORS["generic"]
        with open_pair(str(path / "pan.tif"), [str(path / "ms.tif")]) as pair:
            gains = sensor.mtf_gains(range(pair.ms.count), pair.ms.available_bands)
            registered = estimate(pair, gains, 1, context, per_band=False).apply(pair)
            gains = choose_mtf(registered, MtfSource.AUTO, gains, 1, context).gains
            yield read_pair(registered, gains, sensor.mtf_pan, name)


def read_pair(pair: Pair, gains: Sequence[float], pan_gain: float, sensor: str = "") -> ScenePair:
    """A whole pair."""
    pan, ms = (Window(0, 0, grid.width, grid.height) for grid in (pair.grid, pair.ms.grid))
    return _read(pair, pan, ms, gains, pan_gain, sensor)


def read_window(pair: Pair, window: Window, gains: Sequence[float], pan_gain: float) -> ScenePair:
    """A window of MS and the PAN pixels that it covers within the output's grid.

    Bands with a shift of their own are resampled to the common axes.

    Raises:
        ClippanError: PAN does not cover the window.
    """
    left, right = _pixel_range(pair.x_axis, window.x, window.width, pair.grid.width)
    top, bottom = _pixel_range(pair.y_axis, window.y, window.height, pair.grid.height)
    if right <= left or bottom <= top:
        raise ClippanError(
            "The multispectral raster does not overlap the panchromatic one after registration; choose rasters of the "
            "same area."
        )
    return _read(pair, Window(left, top, right - left, bottom - top), window, gains, pan_gain)


def _pixel_range(axis: AxisTransform, first: int, count: int, limit: int) -> tuple[int, int]:
    """First and end pixel that ``count`` samples cover, from 0 to ``limit``."""
    start, end = (axis.origin + index * axis.ratio for index in (first, first + count))
    return max(math.floor(start + 0.5), 0), min(math.floor(end + 0.5), limit)


def _read_coregistered(pair: Pair, window: Window) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """MS and its validity, with all bands at the samples of the common axes."""
    if not pair.band_shifts:
        return pair.read_ms(window)
    grid = AxisTransform(1.0, 0.0)  # of MS itself: one sample per pixel
    columns = filters.Upsampling.of(grid, window.x, window.width, [x / pair.x_axis.ratio for x, _ in pair.band_shifts])
    rows = filters.Upsampling.of(grid, window.y, window.height, [y / pair.y_axis.ratio for _, y in pair.band_shifts])
    values, valid = pair.read_ms(Window(columns.ms_first, rows.ms_first, columns.ms_count, rows.ms_count))
    ms = torch.from_numpy(values.astype(np.float32))
    if valid is None:
        return filters.apply_separable(rows.matrix, ms, columns.matrix).numpy(), None
    mask = torch.from_numpy(valid).expand_as(ms)
    mean = torch.where(mask, ms, 0.0).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
    resampled = filters.apply_separable(rows.matrix, filters.fill_invalid(ms, mask, mean), columns.matrix)
    return resampled.numpy(), filters.gather(mask, rows.nearest, columns.nearest).numpy()


def informative_windows(pair: Pair, max_windows: int, edge: int, max_size: int) -> tuple[list[Window], bool]:
    """Windows of MS with much detail, the most informative first, and whether a single window holds the whole scene.

    Chosen from an even lattice of candidates: valid, with contrast, and far from each other. Only MS is read.

    Args:
        edge: edge of a window in PAN pixels.
        max_size: number of PAN pixels times bands up to which the whole scene is one window.
    """
    if pair.grid.width * pair.grid.height * pair.ms.count <= max_size:
        return [pair.ms_overlap()], True
    extent = pair.ms_data_overlap()
    size = max(math.ceil(edge / math.sqrt(pair.x_axis.ratio * pair.y_axis.ratio)), _MIN_WINDOW_SIZE)
    starts = [
        sorted(
            {
                first + round((length - min(size, length)) * step / (_CANDIDATES_PER_AXIS - 1))
                for step in range(_CANDIDATES_PER_AXIS)
            }
        )
        for first, length in ((extent.x, extent.width), (extent.y, extent.height))
    ]
    candidates = [Window(x, y, min(size, extent.width), min(size, extent.height)) for y in starts[1] for x in starts[0]]
    information = np.array([_information_score(pair, window) for window in candidates])
    centres = np.array([(window.x, window.y) for window in candidates], float)
    chosen: list[int] = []
    distance = np.full(len(candidates), np.inf)
    while len(chosen) < max_windows:
        # Windows must not overlap.
        score = information * np.where(distance < 1, 0.0, np.minimum(distance, _MAX_DISTANCE))
        best = int(score.argmax())
        if score[best] <= 0:
            break
        chosen.append(best)
        separation = np.abs(centres - centres[best]) / (candidates[best].width, candidates[best].height)
        distance = np.minimum(distance, separation.max(axis=1))
    return [candidates[index] for index in chosen], False


def _information_score(pair: Pair, window: Window) -> float:
    """Valid share of a window, squared, times the root of the contrast between neighbours relative to the mean."""
    values, valid = pair.read_ms(window)
    joint = (values != 0).any(axis=0)
    if valid is not None:
        joint &= valid.all(axis=0)
    neighbours = joint[:, 1:] & joint[:, :-1]
    if not neighbours.any():
        return 0.0
    values = values.astype(np.float32)
    steps = np.abs(np.diff(values, axis=2))[:, neighbours].mean(axis=1)
    level = np.abs(values[:, joint]).mean(axis=1)
    # The root keeps bright clouds with sharp borders from outweighing land.
    return float(joint.mean() ** 2 * np.sqrt(np.mean(steps / np.maximum(level, 1e-9))))


def read_pictures(root: Path, source: PictureSource) -> Iterator[ReferenceScene]:
    """Pictures with a PAN simulated from their bands.

    Raises:
        ClippanError: the pictures do not exist or cannot be read.
    """
    path = root / source.path
    rng = np.random.default_rng(0)
    if not path.exists():
        raise ClippanError(
            "The pictures {path} do not exist; correct the recipe or choose another data folder.", path=path
        )
    for bands in _read_band_files(path, source) if source.bands else _read_zip(path, source, rng):
        count = len(bands)
        weights = rng.dirichlet(np.ones(count)).astype(np.float32)
        pan = np.tensordot(weights, bands ** np.float32(rng.uniform(*_GAMMA_RANGE)), 1)
        yield ReferenceScene(pan, bands, np.all(bands > 0, axis=0), (_PICTURE_MTF_GAIN,) * count)


def _read_zip(path: Path, source: PictureSource, rng: np.random.Generator) -> Iterator[np.ndarray]:
    if path.is_dir():
        raise ClippanError(
            "The pictures {path} are a folder; list its rasters as bands in the recipe, or give a ZIP file.", path=path
        )
    try:
        with zipfile.ZipFile(path) as files:
            names = sorted(name for name in files.namelist() if name.lower().endswith(_EXTENSIONS))
            for name in sorted(rng.permutation(names)[: source.limit]):
                picture = Image.open(io.BytesIO(files.read(str(name)))).convert("RGB").reduce(source.factor)
                yield np.asarray(picture, np.float32).transpose(2, 0, 1) + 1  # black is not missing
    except Exception as error:
        raise ClippanError(
            "The pictures {path} cannot be read ({reason}); give an intact ZIP file.",
            path=path,
            reason=one_line(error),
        ) from error
    if not names:
        raise ClippanError(
            "The ZIP file {path} has no pictures; it needs files that end in {extensions}.",
            path=path,
            extensions=", ".join(_EXTENSIONS),
        )


def _read_band_files(path: Path, source: PictureSource) -> Iterator[np.ndarray]:
    datasets = [open_dataset(str(path / name), "training raster") for name in source.bands]
    with Source(datasets, "training raster", (), None) as raster:
        width, height = (size // source.factor for size in (raster.grid.width, raster.grid.height))
        values, _ = raster.read(0, 0, width * source.factor, height * source.factor)
    blocks = values.reshape(len(values), height, source.factor, width, source.factor)
    yield blocks.mean(axis=(2, 4), dtype=np.float32)


def _read(
    pair: Pair, pan_window: Window, ms_window: Window, gains: Sequence[float], pan_gain: float, sensor: str = ""
) -> ScenePair:
    """Invalid pixels are set to the mean, and no patch holds any."""
    pan, pan_valid = pair.read_pan(pan_window)
    ms, valid = _read_coregistered(pair, ms_window)
    x = AxisTransform(pair.x_axis.ratio, pair.x_axis.origin + ms_window.x * pair.x_axis.ratio - pan_window.x)
    y = AxisTransform(pair.y_axis.ratio, pair.y_axis.origin + ms_window.y * pair.y_axis.ratio - pan_window.y)
    pan, ms = pan.astype(np.float32), ms.astype(np.float32)
    joint = np.ones(ms.shape[1:], bool) if valid is None else valid.all(axis=0)
    joint &= (ms != 0).any(axis=0)  # missing pixels of files that declare no nodata value
    rows = y.ms_to_pan(0.0) + np.arange(ms.shape[1]) * y.ratio
    columns = x.ms_to_pan(0.0) + np.arange(ms.shape[2]) * x.ratio
    joint &= ((rows >= 0) & (rows < pan.shape[0]))[:, None] & ((columns >= 0) & (columns < pan.shape[1]))
    if pan_valid is not None:
        nearest_rows = np.clip(np.rint(rows), 0, pan.shape[0] - 1).astype(int)
        nearest_columns = np.clip(np.rint(columns), 0, pan.shape[1] - 1).astype(int)
        joint &= pan_valid[nearest_rows][:, nearest_columns]
        pan = np.where(pan_valid, pan, pan[pan_valid].mean() if pan_valid.any() else 0)
    if joint.any():
        ms = np.where(joint, ms, ms[:, joint].mean(axis=1)[:, None, None])
    return ScenePair(pan, ms, x, y, joint, tuple(gains), pan_gain, sensor)
