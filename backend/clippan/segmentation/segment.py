"""A map of classes from prompts: the model looks at windows once, then tiles are mapped from what it saw."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional, Union

import numpy as np
import torch

from clippan import __version__, texts
from clippan.clip.encoder import Encoder, encoder
from clippan.device import one_thread, set_threads
from clippan.errors import ClippanError
from clippan.jobs.base import Context, to_json
from clippan.jobs.calibrate import CalibrateRequest
from clippan.jobs.options import Refinement
from clippan.jobs.picture import RasterPicture, choices, remarks
from clippan.jobs.segment import ClassArea, SegmentRequest, SegmentResult
from clippan.outputs import Outputs
from clippan.raster.scene import Look, Scene, across
from clippan.raster.source import BandInfo
from clippan.raster.tiles import Window, count_threads, in_order, tiles
from clippan.raster.writer import BLOCK, Writer
from clippan.segmentation import areas, polygons, refine
from clippan.segmentation.coarse import Coarse, Lattice, look
from clippan.segmentation.legend import palette
from clippan.segmentation.prompts import Table, parse, shapefile_hints
from clippan.segmentation.words import Words, phrases, words

LOGIT_SCALE = 50.0
_BIAS = -0.3  # for transformers; see SegmentRequest
_EDGE, _LEAST_METRES = 64, 32.0  # of a window for a tower with cells of 32 pixels; see ``edges``
_TILE_BYTES = 2**26  # of a tile's probabilities
_LARGEST_TILE = 1024
_REACH = 1.0  # radius of the refinement, in cells
_OTHER = 0.9  # of the raster's ground resolution in its middle, below which a part's own counts
_EPS = 1e-3  # variance of the picture's colours, 0 to 1, below which there is no edge


def segment(request: SegmentRequest, context: Context) -> SegmentResult:
    """See SegmentRequest.

    Raises:
        ClippanError: one sentence with the cause and the remedy; nothing is left behind.
    """
    started = time.monotonic()
    table = parse(request.classes).coloured()
    if origin := texts.origin(request.classes, "classes"):
        context.log(origin)
    model = encoder(request.model, request.device, context.part(0, 5))
    set_threads(request.threads)
    look_at = Look(
        bands=request.bands, stretch=request.stretch, nodata=request.nodata, extent=request.extent, crs=request.crs
    )
    scene = Scene(request.raster, look_at)
    part = scene.part()
    begun = time.monotonic()
    with Outputs() as outputs:
        view = View.of(
            request,
            model,
            words(model, table, _has_background(request, table)),
            scene,
            part,
            outputs.folder(request.output),
            context.part(5, 75),
        )
        picture = scene.seen(model.channels)
        context.log(choices([picture])[0])
        provenance = _provenance(request, table, model, view, picture)
        shown, count = _write(request, table, model, view, outputs, provenance, context.part(75, 100))
        edges = view.edges
        del view  # a file that is mapped into memory cannot be removed on Windows
    seconds = time.monotonic() - begun
    megapixels = part.width * part.height / 1e6
    context.log(f"Done: {megapixels:.1f} megapixels in {seconds:.1f} s ({megapixels / seconds:.2f} MPix/s).")
    return SegmentResult(
        request.output,
        part.width,
        part.height,
        shown,
        model.model.id,
        model.device.type,
        edges,
        round(time.monotonic() - started, 3),
        megapixels / seconds,
        request.confidence,
        request.probabilities,
        request.polygons,
        request.areas,
        count,
        tuple([*_hints(request, table, model, shown), *remarks([picture])]),
        provenance,
        picture,
    )


def _has_background(request: SegmentRequest, table: Table) -> bool:
    return request.background or len(table.classes) == 1


@dataclass(frozen=True)
class View:
    """What the model saw of a part of a raster.

    Attributes:
        path, look, stretch: the raster, and how it becomes a picture.
        part: of it.
        coarse: for each size of windows.
        classes: how many, without the background.
    """

    path: str
    look: Look
    stretch: tuple[tuple[float, float], ...]
    part: Window
    coarse: tuple[Coarse, ...]
    classes: int

    @classmethod
    def of(
        cls,
        request: Union[SegmentRequest, CalibrateRequest],
        model: Encoder,
        sought: Words,
        scene: Scene,
        part: Window,
        folder: Path,
        context: Context,
        wanted: Callable[[Window], bool] = lambda window: True,
    ) -> View:
        """Looks at a part of a raster.

        Args:
            request: says how.
            model: that looks.
            sought: the classes' words.
            scene: the raster.
            part: of it.
            folder: for what is too large for the memory.
            context: hears of progress.
            wanted: which windows; by default all.

        Raises:
            ClippanError: the raster cannot be read, or the model has no dense features.
        """
        stretch = scene.stretch
        threads = max(1, count_threads(request.threads) // 2)
        seen = part.intersection(scene.bounds)
        bias = request.bias if request.bias is not None else 0.0 if model.any_size else _BIAS
        lattices = [
            Lattice.of(model, scene.grid.width, scene.grid.height, edge, seen)
            for edge in request.window or edges(scene, model, part)
        ]
        total, done, found = sum(lattice.count for lattice in lattices), 0, []
        for lattice in lattices:
            share = context.part(100 * done / total, 100 * (done + lattice.count) / total)
            found.append(
                look(
                    model,
                    sought.vectors,
                    sought.owners,
                    lattice,
                    lambda: Scene(scene.path, scene.look, stretch, model.channels),
                    bias,
                    request.flips,
                    threads,
                    folder,
                    share,
                    lambda window: scene.may_hold(window) and wanted(window),
                )
            )
            done += lattice.count
        return cls(scene.path, scene.look, stretch, part, tuple(found), sought.classes)

    @property
    def edges(self) -> tuple[int, ...]:
        """Of the windows, in the raster's pixels."""
        return tuple(coarse.lattice.edge // coarse.lattice.larger for coarse in self.coarse)

    def open(self) -> Scene:
        """The raster, anew."""
        return Scene(self.path, self.look, self.stretch)

    def cosines(self, window: Window) -> np.ndarray:
        """The mean over all sizes, float32 (classes, height, width), at the pixels of a window of the raster."""
        return np.mean([coarse.at(window) for coarse in self.coarse], axis=0)

    def places(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The same at single pixels, float32 (n, classes); NaN where the model did not look."""
        return np.mean([coarse.places(rows, columns) for coarse in self.coarse], axis=0)


def edges(scene: Scene, model: Encoder, part: Window) -> tuple[int, ...]:
    """Of the windows that suit a model and the ground resolution, in the raster's pixels.

    The starter model sees best 64 pixels at a time, of Sentinel-2 as of pictures with half a metre; of sharper ones as
    much ground. Beside them twice as much costs little, and corrects them. Models with smaller cells see more, and as
    they take longer, once.
    """
    grounds = (scene.ground(), scene.ground((part.x + part.width / 2, part.y + part.height / 2)))
    whole, here = ((ground[0] * ground[1]) ** 0.5 if ground else math.inf for ground in grounds)
    # The part's extent should not matter; but the middle of a map service is on the equator.
    gsd = here if here < _OTHER * whole else whole
    edge = round(max(_EDGE, _LEAST_METRES / gsd) * 32 / model.stride)
    return (edge, 2 * edge) if model.any_size else (edge,)


@dataclass
class Mapper:
    """Maps tiles of a view. To be used in several threads.

    Attributes:
        view: what the model saw.
        scale: from cosines to logits.
        offsets, thresholds: of the classes.
        refinement: how edges follow the picture.
    """

    view: View
    scale: float
    offsets: np.ndarray
    thresholds: np.ndarray
    refinement: Refinement

    def __post_init__(self) -> None:
        self._local = threading.local()
        cell = min(coarse.lattice.cell for coarse in self.view.coarse)
        self._radius = max(2, round(_REACH * cell))
        self._coarser = 4 if self._radius >= 12 else 2 if self._radius >= 6 else 1

    def probabilities(self, tile: Window) -> tuple[np.ndarray, np.ndarray]:
        """Of the classes, and last of the background if there is one.

        Args:
            tile: in the part's pixels.

        Returns:
            float32 (classes, height, width), 0 to 1, and which pixels are valid, (height, width).

        Raises:
            ClippanError: the raster cannot be read.
        """
        if not hasattr(self._local, "scene"):
            self._local.scene = self.view.open()
        scene: Scene = self._local.scene
        refined = self.refinement is Refinement.GUIDED
        reach = refine.margin(self._radius, self._coarser) if refined else 0
        x, y = self.view.part.x + tile.x, self.view.part.y + tile.y
        # On the raster's own lattice, whatever the extent.
        left, top = (max(start - reach, 0) // self._coarser * self._coarser for start in (x, y))
        right, bottom = min(x + tile.width + reach, scene.grid.width), min(y + tile.height + reach, scene.grid.height)
        wide = Window(left, top, right - left, bottom - top)
        picture, valid = scene.pixels(wide, wide.width, wide.height)
        inside = (slice(y - top, y - top + tile.height), slice(x - left, x - left + tile.width))
        if not valid[inside].any():
            return np.zeros((len(self.offsets), tile.height, tile.width), np.float32), valid[inside]
        logits = torch.from_numpy(self.view.cosines(wide)).mul_(self.scale)
        logits += torch.from_numpy(self.offsets)[:, None, None]
        shares = torch.softmax(logits, 0)
        if refined:
            guide = torch.from_numpy(picture).float().div_(255)
            shares = refine.guided(shares, guide, torch.from_numpy(valid), self._radius, _EPS, self._coarser).clamp_(
                min=0
            )
        values = shares[:, inside[0], inside[1]]
        values = values / values.sum(0).clamp(min=1e-6)
        return values.numpy(), valid[inside]

    def classes(self, tile: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A tile's classes uint8 (height, width), their confidence float32, the probabilities, and what is valid."""
        values, valid = self.probabilities(tile)
        best = values.argmax(axis=0)
        confidence = np.take_along_axis(values, best[None], axis=0)[0]
        found = np.where(best < self.view.classes, best + 1, 0).astype(np.uint8)
        found[~valid | (confidence < self.thresholds[best])] = 0
        return found, np.where(valid, confidence, np.nan).astype(np.float32), values, valid


def mapper(view: View, table: Table, scale: Optional[float], refinement: Refinement) -> Mapper:
    """What maps a view by a table: its offsets and thresholds, and its logit scale unless there is another."""
    beyond = view.coarse[0].values.shape[0] - len(table.classes)  # the background
    offsets = np.array([prompt.offset for prompt in table.classes] + [0.0] * beyond, np.float32)
    thresholds = np.array([prompt.threshold for prompt in table.classes] + [0.0] * beyond, np.float32)
    return Mapper(view, scale or table.logit_scale or LOGIT_SCALE, offsets, thresholds, refinement)


def _write(
    request: SegmentRequest,
    table: Table,
    model: Encoder,
    view: View,
    outputs: Outputs,
    tags: dict[str, str],
    context: Context,
) -> tuple[tuple[ClassArea, ...], int]:
    """Makes all files; what each class covers, and the number of polygons."""
    part = view.part
    scene = view.open()
    whole = (part.width, part.height) == (scene.grid.width, scene.grid.height)
    # Of a picture without coordinates a part needs some, or it would lie at the picture's corner.
    grid = (scene.own_grid if whole else scene.grid).cropped(part.x, part.y, part.x + part.width, part.y + part.height)
    work = mapper(view, table, request.logit_scale, request.refinement)
    counted = areas.Areas(table, grid)
    edge = int((_TILE_BYTES / 4 / len(work.offsets)) ** 0.5) // BLOCK * BLOCK
    windows = tiles(part.width, part.height, min(max(edge, BLOCK), _LARGEST_TILE))
    # Elsewhere the files stay unwritten: nodata.
    windows = [tile for tile in windows if scene.may_hold(replace(tile, x=part.x + tile.x, y=part.y + tile.y))]
    mapping = context.part(0, 70 if request.polygons else 95)
    nan, count, seen = float("nan"), 0, 0
    with contextlib.ExitStack() as stack:

        def start(path: str, names: Sequence[str], kept: bool = True) -> Writer:
            bands, together = [BandInfo(name) for name in names], outputs if kept else None
            return stack.enter_context(
                Writer(
                    path,
                    grid,
                    np.dtype(np.float32),
                    bands,
                    nodata=nan,
                    tags=tags,
                    progress=finishing,
                    sparse=scene.sparse,
                    outputs=together,
                )
            )

        def finishing(percent: float) -> None:
            context.progress(95 + percent / 20, "Finishing the files")

        output = stack.enter_context(
            Writer(
                request.output,
                grid,
                np.dtype(np.uint8),
                [BandInfo("class")],
                nodata=0,
                tags=tags,
                palette=palette(table),
                progress=finishing,
                sparse=scene.sparse,
                outputs=outputs,
            )
        )
        wanted = request.confidence
        if request.polygons and not wanted:
            wanted = str(outputs.folder(request.output) / "confidence.tif")
        confidence = start(wanted, ["confidence"], bool(request.confidence)) if wanted else None
        probabilities = start(request.probabilities, table.names) if request.probabilities else None
        mapped = in_order(work.classes, windows, count_threads(request.threads), one_thread)
        stack.enter_context(contextlib.closing(mapped))
        for number, (tile, (found, sure, values, valid)) in enumerate(mapped, 1):
            output.write(tile.x, tile.y, found[None])
            if confidence:
                confidence.write(tile.x, tile.y, sure[None])
            if probabilities:
                probabilities.write(tile.x, tile.y, np.where(valid, values[: len(table.classes)], np.float32(nan)))
            counted.add(tile.x, tile.y, found, sure, valid)
            seen += int(valid.sum())
            mapping.progress(100 * number / len(windows), "Mapping")
        if not seen:
            raise ClippanError(f"The raster {request.raster} shows nothing but nodata here; choose another place.")
        if request.polygons and confidence:
            count = polygons.write(
                output.finish(),
                confidence.finish(),
                request.polygons,
                table,
                request.min_area,
                request.simplify,
                model.model.id,
                context.part(70, 95),
                outputs,
            )
        shown = counted.result()
        if request.areas:
            areas.write(request.areas, shown, outputs)
    return shown, count


def _provenance(
    request: SegmentRequest, table: Table, model: Encoder, view: View, picture: RasterPicture
) -> dict[str, str]:
    return {
        "CLIPPAN_ALGORITHM": request.name,
        "CLIPPAN_CLASSES": table.json(),
        "CLIPPAN_MODEL": model.model.id,
        "CLIPPAN_MODEL_SHA256": model.sha256,
        "CLIPPAN_WINDOW": ",".join(str(edge) for edge in view.edges),
        "CLIPPAN_PICTURE_BANDS": ",".join(map(str, picture.choice.bands)),
        "CLIPPAN_DEVICE": model.device.type,
        "CLIPPAN_VERSION": __version__,
        "CLIPPAN_PARAMETERS": json.dumps(to_json(request), ensure_ascii=False),
    }


def _hints(request: SegmentRequest, table: Table, model: Encoder, shown: Sequence[ClassArea]) -> list[str]:
    hints = [*across(request.extent), *model.reading(phrases(table))]
    if table.model and table.model != model.model.id:
        hints.append(
            f"The prompt table was calibrated for {table.model}, not for {model.model.id}; calibrate it again for "
            "better results."
        )
    absent = [item.name for item in shown if item.value and not item.pixels]
    if absent:
        hints.append(f"Found nowhere: {', '.join(absent)}.")
    return hints + (shapefile_hints(table) if request.polygons.lower().endswith(".shp") else [])
