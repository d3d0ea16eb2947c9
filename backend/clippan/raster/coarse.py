"""Coarse bands, of one or several pixel sizes, and the fine bands of the same place that they are sharpened with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from osgeo import gdal

from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.raster.alpha import alpha_notes
from clippan.raster.grid import Alignment, Grid, align
from clippan.raster.pair import Pair, refuse_impossible_nodata, refuse_quality_bands, reprojected_to
from clippan.raster.products import split_by_pixel_size
from clippan.raster.regrid import coincide, resample_to_finest
from clippan.raster.source import BandInfo, Source, band_infos, image_bands, open_dataset

FINE = Message("fine raster")
COARSE = Message("coarse raster")
MIN_RATIO, MAX_RATIO = 1.2, 20.0  # of the pixel sizes


@dataclass(frozen=True)
class CoarseBands:
    """Bands of one pixel size, with the fine bands.

    Attributes:
        pair: the fine bands as its ``pan``, the coarse ones as its ``ms``. Its output grid is that of all pairs.
        positions: of the bands in the output, from 0.
        numbers: of the bands, counted through all coarse rasters from 1.
    """

    pair: Pair
    positions: tuple[int, ...]
    numbers: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """How sentences call the bands: by number and, where it has one, name."""
        numbered = zip(self.numbers, self.pair.ms.infos)
        return [", ".join(filter(None, (str(number), info.description))) for number, info in numbered]


@contextlib.contextmanager
def open_coarse_and_fine(
    coarse: Sequence[str],
    fine: Sequence[str],
    bands: Sequence[int] = (),
    fine_bands: Sequence[int] = (),
    nodata: Optional[float] = None,
) -> Iterator[list[CoarseBands]]:
    """Opens coarse and fine bands and aligns them; rasters are reprojected to the first fine one's CRS (cubic).

    Args:
        coarse: data sources; of a scene with bands of several pixel sizes, all but the finest.
        fine: data sources, used on the finest one's grid; of such a scene, the finest bands. Empty to take these from
            the scene that ``coarse`` is.
        bands: of the coarse ones, counted through from 1; empty for all.
        fine_bands: likewise.
        nodata: overrides declared values where the type can hold it.

    Raises:
        ClippanError: the two cannot be fused.
    """
    fine = fine or coarse
    fine_datasets = [_finest(path) for path in fine]
    coarse_datasets = [dataset for path in coarse for dataset in _coarser(path, path in fine)]
    fine_infos = band_infos(fine_datasets)
    fine_same_crs = reprojected_to(Grid.of(fine_datasets[0]), fine_datasets, nodata, FINE, FINE)
    on_one_grid = resample_to_finest(fine_same_crs, FINE, nodata)
    with contextlib.ExitStack() as stack:
        fine_source = stack.enter_context(Source(on_one_grid, FINE, fine_bands, nodata, fine_infos))
        refuse_quality_bands(fine_source)
        notes = (*alpha_notes([*fine_datasets, *coarse_datasets]),)
        found: list[CoarseBands] = []
        for group, infos, numbers, positions, through in _groups(coarse_datasets, bands):
            same_crs = reprojected_to(fine_source.grid, group, nodata, FINE, COARSE)
            source = stack.enter_context(
                Source(resample_to_finest(same_crs, COARSE, nodata), COARSE, numbers, nodata, infos)
            )
            refuse_quality_bands(source)
            alignment = align(fine_source.grid, source.grid, FINE, COARSE)
            _check_ratio(alignment)
            found.append(CoarseBands(Pair(fine_source, source, alignment, (), notes), positions, through))
        sources = [fine_source, *(one.pair.ms for one in found)]
        refuse_impossible_nodata(nodata, sources)
        notes += tuple(source.nodata_note for source in sources if source.nodata_note)
        yield [replace(one, pair=replace(one.pair, notes=notes)) for one in _on_common_grid(found)]


def _finest(path: str) -> gdal.Dataset:
    levels = _levels(path)
    return levels[0] if levels else open_dataset(path, FINE)


def _coarser(path: str, is_fine: bool) -> list[gdal.Dataset]:
    """The coarse datasets of a data source; ``is_fine``: whether its finest bands are the fine ones."""
    levels = _levels(path)
    if levels and len(levels) > 1:
        return levels[1:]
    if is_fine:
        raise ClippanError(
            "{path} has bands of one pixel size only; choose the coarse and the fine bands separately.", path=path
        )
    return [open_dataset(path, COARSE)]


def _levels(path: str) -> list[gdal.Dataset]:
    """The bands of a scene by pixel size, the finest first; empty for any other data source."""
    try:
        levels = split_by_pixel_size(path)
    except RuntimeError as error:
        raise ClippanError(
            "The {what} {path} is a scene whose files cannot be combined; check whether it is complete ({reason}).",
            what=COARSE,
            path=path,
            reason=one_line(error),
        ) from error
    return [levels[0], *levels[1]] if levels else []


_Group = tuple[list[gdal.Dataset], list[BandInfo], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _groups(datasets: Sequence[gdal.Dataset], bands: Sequence[int]) -> Iterator[_Group]:
    """Datasets of one grid each, with descriptions of all their bands, the numbers of the chosen ones among them, the
    positions of these in the output, and their numbers among all bands; raises ClippanError if there is no band of a
    chosen number."""
    infos = band_infos(datasets)
    groups: list[list[int]] = []
    for index, dataset in enumerate(datasets):
        grid = Grid.of(dataset)
        of_others = ((group, Grid.of(datasets[group[0]])) for group in groups)
        group = next((group for group, other in of_others if grid.shares_crs(other) and coincide(grid, other)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    counts = [len(image_bands(dataset)) for dataset in datasets]
    wrong = [band for band in bands if band > sum(counts)]
    if wrong:
        raise ClippanError(
            "Band {band} was asked for but the {what} has {total}; choose others.",
            band=wrong[0],
            what=COARSE,
            total=sum(counts),
        )
    wanted = list(bands) or list(range(1, sum(counts) + 1))
    for group in groups:
        own = [sum(counts[:index]) + number for index in group for number in range(1, counts[index] + 1)]
        chosen = [(own.index(band) + 1, position) for position, band in enumerate(wanted) if band in own]
        if chosen:
            numbers, positions = zip(*chosen)
            through = tuple(wanted[position] for position in positions)
            yield [datasets[index] for index in group], [infos[band - 1] for band in own], numbers, positions, through


def _check_ratio(alignment: Alignment) -> None:
    least = min(alignment.x_axis.ratio, alignment.y_axis.ratio)
    most = max(alignment.x_axis.ratio, alignment.y_axis.ratio)
    if least < MIN_RATIO:
        raise ClippanError(
            "The pixels of the {coarse} are only {ratio:.3g} times as large as those of the {fine}; choose bands that "
            "differ by {least:g} times or more.",
            coarse=COARSE,
            ratio=least,
            fine=FINE,
            least=MIN_RATIO,
        )
    if most > MAX_RATIO:
        raise ClippanError(
            "The pixels of the {coarse} are {ratio:.3g} times as large as those of the {fine}, and a coarse pixel of "
            "more than {most:g} says too little; resample the fine raster to larger pixels first.",
            coarse=COARSE,
            ratio=most,
            fine=FINE,
            most=MAX_RATIO,
        )


def _on_common_grid(found: Sequence[CoarseBands]) -> list[CoarseBands]:
    """Pairs cut to the pixels that all of them have."""
    alignments = [one.pair.alignment for one in found]
    left, top = max(own.column for own in alignments), max(own.row for own in alignments)
    right = min(own.column + own.grid.width for own in alignments)
    bottom = min(own.row + own.grid.height for own in alignments)
    if right <= left or bottom <= top:
        raise ClippanError("The files of the {what} do not overlap; check that all show the same place.", what=COARSE)

    def cut(own: Alignment) -> Alignment:
        x, y = left - own.column, top - own.row
        grid = own.grid.cropped(x, y, right - own.column, bottom - own.row)
        return Alignment(grid, left, top, own.x_axis.shifted(-x), own.y_axis.shifted(-y))

    return [replace(one, pair=replace(one.pair, alignment=cut(one.pair.alignment))) for one in found]
