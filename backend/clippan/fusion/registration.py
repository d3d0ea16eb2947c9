"""How far MS lies off PAN, and each band off the others, told from the images themselves.

Georeferences of PAN and MS often differ by a pixel of PAN or more, and so do the bands of sensors that see a place one
band after the other. PAN is filtered with the MTF and sampled on a lattice finer than MS's, so that for every shift of
some multispectral pixels each way it can be correlated with the bands. That is done in windows from all over the
scene, each with a relation of its own between PAN and band (of either sign), and without what changes slowly: so
neither brightness nor the land cover's colours decide, but edges. The windows' evidence is added up, and its parts,
from the darkest windows to the brightest, have to agree before anything is moved: clouds, being high, lie elsewhere
for each band that looks from elsewhere. Where they disagree with the ground, the darker half decides.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from clippan.core.context import Context
from clippan.core.device import use_one_thread
from clippan.core.messages import Message
from clippan.core.threads import in_order
from clippan.fusion import filters
from clippan.jobs.options import Registration
from clippan.raster.grid import Axis
from clippan.raster.pair import Pair
from clippan.raster.tiles import Window

_WINDOW = 64  # multispectral samples
_SMALLEST = 16  # edge of the windows of a small scene
_WINDOWS = 64
_PARTS = 4  # of the windows, by brightness, which have to agree
_STEPS = 3  # shifts tried for each multispectral pixel; the maximum is found between them
_REACH = 10  # such steps, to each side
_BLUR = 1.5  # standard deviation, in multispectral samples, of what is subtracted as slow change
_AROUND = 4  # samples, its reach
_MOST = 1 - 1e-4  # squared correlation; more would weigh beyond measure
_COVERED = 0.9  # least weight of valid pixels of PAN under the filter
_SAMPLES = 64  # in a window; fewer tell nothing
_FLAT = 1e-6  # of the mean: contrast that is but the rounding of float32

_LEAST = 0.1  # PAN pixels: less is not worth moving MS for
_LEAST_BAND = 0.25  # PAN pixels beside the other bands
_RISE = 0.002  # of the correlation, that it has to bring
_ERRORS = 3.0  # standard errors that a shift has to exceed
_SPREAD = (0.1, 0.75)  # multispectral pixels that a part may be off: at least, at most, and between them half the shift
_DIGITS = 2  # of a shift; what is beyond is noise
_LIKE_PAN = 0.5  # correlation with PAN that a band needs to be given a place of its own


@dataclass(frozen=True)
class Shifts:
    """How far MS has to be moved to the right and down to lie on PAN, in PAN pixels.

    Attributes:
        x, y: of MS as a whole.
        bands: (x, y) of each band, where some differ from the whole; else empty.
        before, after: correlation with PAN, the mean over windows and bands; NaN if unknown.
        reason: what was found and why it is so, the end of a sentence.
    """

    x: float = 0.0
    y: float = 0.0
    bands: tuple[tuple[float, float], ...] = ()
    before: float = math.nan
    after: float = math.nan
    reason: str = ""

    def apply(self, pair: Pair) -> Pair:
        """The pair with MS, and its bands, where they belong."""
        offsets = [(round(x - self.x, _DIGITS), round(y - self.y, _DIGITS)) for x, y in self.bands]
        return pair.shifted(self.x, self.y, offsets)

    def to_tag(self) -> str:
        """As a file's tag holds it; see ``from_tag``."""
        values: dict[str, object] = {"x": self.x, "y": self.y}
        if self.bands:
            values["bands"] = self.bands
        return json.dumps(values)

    @classmethod
    def from_tag(cls, text: str, bands: int) -> Optional[Shifts]:
        """What a tag says of a raster with this number of bands; None if it says nothing that can be used."""
        try:
            values = json.loads(text)
            own = tuple((float(x), float(y)) for x, y in values.get("bands", ()))
            x, y = float(values["x"]), float(values["y"])
            found = cls(
                x, y, own, reason=Message("MS shifted by {words}, as the raster's tags say.", words=words((x, y), own))
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        numbers = [found.x, found.y, *(number for pair in own for number in pair)]
        return found if len(own) in (0, bands) and all(map(math.isfinite, numbers)) else None


def register(
    pair: Pair, choice: Registration, gains: Sequence[float], threads: int, context: Context
) -> tuple[Pair, Shifts]:
    """Measures a pair, moves its MS if that helps, and says so in the log.

    Args:
        pair: by its coordinates.
        choice: what is asked for.
        gains: MTF gain of each band.
        threads: CPU threads.
        context: hears of progress and of the outcome.
    """
    if choice is Registration.OFF:
        return pair, Shifts()
    shifts = estimate(pair, gains, threads, context, choice is Registration.AUTO)
    context.log(f"Registration: {shifts.reason}")
    return shifts.apply(pair), shifts


def estimate(pair: Pair, gains: Sequence[float], threads: int, context: Context, per_band: bool = True) -> Shifts:
    """Measures how far MS lies off PAN.

    Args:
        pair: by its coordinates.
        gains: MTF gain of each band.
        threads: CPU threads.
        context: hears of progress.
        per_band: whether bands may have a shift of their own.

    Returns:
        The shifts; zero, with the reason, where none stands out or parts of the scene contradict each other.
    """
    evidence = _collect(_Sampler(pair, sum(gains) / len(gains)), threads, context)
    if evidence is None or len(evidence.counts) < _PARTS:
        return Shifts(reason="none, as too little of both rasters is valid to compare them.")
    everything = range(pair.ms.count)
    whole = _locate(evidence, everything, pair, (0.0, 0.0))
    if whole is None:
        evidence = evidence.darker()
        whole = _locate(evidence, everything, pair, (0.0, 0.0))
    before = evidence.correlation(everything, (0.0, 0.0))
    if whole is None:
        reason = "none, as no shift fits all of the scene better than others."
        return Shifts(before=before, after=before, reason=reason)
    common = whole.shift if whole.counts(_LEAST) else (0.0, 0.0)
    bands = [common] * len(everything)
    for band in everything if per_band else ():
        found = _locate(evidence, [band], pair, common)
        if found is not None and found.counts(_LEAST_BAND) and found.after >= _LIKE_PAN:
            bands[band] = found.shift
    told = [evidence.information([band], _in_ms(shift, pair)) for band, shift in enumerate(bands)]
    after = _correlation(sum(told) / len(told))
    apart = tuple(bands) if any(shift != common for shift in bands) else ()
    return Shifts(*common, apart, before, after, _sentence(common, apart, before, after))


def _sentence(common: tuple[float, float], bands: Sequence[tuple[float, float]], before: float, after: float) -> str:
    if common == (0, 0) and not bands:
        return f"none needed, MS lies on PAN (correlation {before:.3f})."
    return Message(
        "MS shifted by {words}; correlation {before:.3f} → {after:.3f}.",
        words=words(common, bands),
        before=before,
        after=after,
    )


def words(common: Sequence[float], bands: Sequence[Sequence[float]]) -> str:
    """Shifts for readers: "(−1.20, 0.60) PAN pixels (x, y), band 4 by (−1.50, 0.70)"."""
    own = [f"band {number} by {_numbers(*band)}" for number, band in enumerate(bands, 1) if band != common]
    return ", ".join([f"{_numbers(*common)} PAN pixels (x, y)", *own])


def _numbers(x: float, y: float) -> str:
    return f"({x:.2f}, {y:.2f})".replace("-", "−")


@dataclass(frozen=True)
class _Evidence:
    """Correlation of each band with PAN for every shift.

    Attributes:
        counts: (windows,), samples compared; the darkest window comes first.
        correlations: (windows, bands, shifts down, shifts to the right).
    """

    counts: np.ndarray
    correlations: np.ndarray

    def parts(self, count: int = _PARTS) -> list[_Evidence]:
        """The windows in parts, from dark to bright, that weigh about the same: water and haze tell little."""
        told = _information(self.correlations).mean(axis=1).max(axis=(1, 2)) * self.counts
        # Where the middle of each window's weight lies, so that none is in two parts.
        places = (np.cumsum(told) - told / 2) / max(told.sum(), 1e-30)
        number = np.minimum(places * count, count - 1).astype(int)
        return [
            _Evidence(self.counts[number == part], self.correlations[number == part])
            for part in range(count)
            if (number == part).any()
        ]

    def darker(self) -> _Evidence:
        """The darker half of the windows."""
        return self.parts(2)[0]

    def surface(self, bands: Sequence[int], tables: Optional[np.ndarray] = None) -> np.ndarray:
        """What PAN tells of the bands for each shift: −log(1 − r²), the mean over samples and bands.

        That is twice the mutual information of Gaussian variables, and, but for a constant, the likelihood of the
        shift where each window has a regression and a noise of its own. ``tables`` instead of the correlations.
        """
        tables = self.correlations if tables is None else tables
        total: np.ndarray = np.zeros(())
        for band in bands:
            total = total + np.tensordot(self.counts, _information(tables[:, band]), 1)
        return total / (len(bands) * self.counts.sum())

    def information(self, bands: Sequence[int], shift: tuple[float, float]) -> float:
        """The same for one shift (x, y) in multispectral pixels."""
        (columns, column), (rows, row) = (_interpolation(value * _STEPS) for value in shift)
        near = self.correlations[:, :, row : row + len(rows.T), column : column + len(columns.T)]
        return float(self.surface(bands, rows @ near @ columns.T)[0, 0])

    def correlation(self, bands: Sequence[int], shift: tuple[float, float]) -> float:
        """The same as a correlation."""
        return _correlation(self.information(bands, shift))

    def peak(self, bands: Sequence[int]) -> Optional[tuple[float, float]]:
        """The shift (x, y), in multispectral pixels, that tells most; None if it may lie beyond those tried."""
        told = self.surface(bands)
        row, column = (int(index) for index in np.unravel_index(told.argmax(), told.shape))
        if not all(_NODES <= index <= 2 * _REACH - _NODES for index in (row, column)):
            return None
        near = self.correlations[:, :, row - _NODES : row + _NODES + 1, column - _NODES : column + _NODES + 1]
        fine = self.surface(bands, _FINE @ near @ _FINE.T)
        down, right = (int(index) for index in np.unravel_index(fine.argmax(), fine.shape))
        x = column - _REACH + _vertex(fine[down], right)
        y = row - _REACH + _vertex(fine[:, right], down)
        return x / _STEPS, y / _STEPS


def _information(correlation: np.ndarray) -> np.ndarray:
    return -np.log1p(-np.minimum(correlation**2, _MOST))


def _correlation(information: float) -> float:
    return math.sqrt(max(0.0, 1 - math.exp(-information)))


_NODES = 2  # tables are interpolated by polynomials through so many values to each side
_BETWEEN = 20  # parts of a step


def _lagrange(positions: np.ndarray) -> np.ndarray:
    """Matrix (positions, 5) that interpolates between values at −2 … 2."""
    nodes = np.arange(-_NODES, _NODES + 1)
    columns = []
    for node in nodes:
        others = nodes[nodes != node]
        columns.append(np.prod((positions[:, None] - others) / (node - others), axis=1))
    return np.stack(columns, axis=1)


_FINE = _lagrange(np.arange(-_BETWEEN, _BETWEEN + 1) / _BETWEEN)


def _interpolation(steps: float) -> tuple[np.ndarray, int]:
    """What interpolates a table at a shift: weights (1, 5), and the first value they are for."""
    centre = min(max(round(steps) + _REACH, _NODES), 2 * _REACH - _NODES)
    return _lagrange(np.array([steps + _REACH - centre])), centre - _NODES


def _vertex(values: np.ndarray, index: int) -> float:
    """The maximum of the parabola through a value and its neighbours, in steps from the middle."""
    if 0 < index < len(values) - 1:
        left, top, right = values[index - 1 : index + 2]
        bend = left - 2 * top + right
        if bend < 0:
            return float((index + 0.5 * (left - right) / bend) / _BETWEEN - 1)
    return index / _BETWEEN - 1


@dataclass(frozen=True)
class _Found:
    """Where bands lie.

    Attributes:
        shift: (x, y), PAN pixels.
        distance: from where they were thought to be.
        error: standard error of the distance.
        before, after: correlation with PAN there and here.
    """

    shift: tuple[float, float]
    distance: float
    error: float
    before: float
    after: float

    def counts(self, least: float) -> bool:
        """Whether it is so far off, for sure, and to good effect."""
        return self.distance >= max(least, _ERRORS * self.error) and self.after >= self.before + _RISE


def _locate(evidence: _Evidence, bands: Sequence[int], pair: Pair, origin: tuple[float, float]) -> Optional[_Found]:
    """Where bands lie that were thought to lie at ``origin``; None if parts of the scene do not agree on it."""
    peak = evidence.peak(bands)
    places = np.array([place for place in (part.peak(bands) for part in evidence.parts()) if place is not None])
    if peak is None or len(places) < _PARTS:
        return None
    apart = np.hypot(*np.subtract(peak, _in_ms(origin, pair)))
    if np.abs(places - peak).max() > np.clip(apart / 2, *_SPREAD):
        return None
    ratios = np.array([pair.x.ratio, pair.y.ratio])
    x, y = (float(value) + 0.0 for value in np.round(peak * ratios, _DIGITS))
    step = np.array([x, y]) - origin
    distance = float(np.linalg.norm(step))
    errors = places.std(axis=0, ddof=1) * ratios / math.sqrt(_PARTS)
    along = float(np.linalg.norm(errors * step)) / max(distance, 1e-9)
    before = evidence.correlation(bands, _in_ms(origin, pair))
    return _Found((x, y), distance, along, before, evidence.correlation(bands, _in_ms((x, y), pair)))


def _in_ms(shift: tuple[float, float], pair: Pair) -> tuple[float, float]:
    """A shift in PAN pixels in multispectral ones."""
    return shift[0] / pair.x.ratio, shift[1] / pair.y.ratio


def _collect(sampler: _Sampler, threads: int, context: Context) -> Optional[_Evidence]:
    """Compares windows, evenly drawn, until enough of them tell something."""
    windows = sampler.windows()
    order = np.random.default_rng(0).permutation(len(windows))
    found = []
    with contextlib.closing(in_order(sampler.compare, [windows[i] for i in order], threads, use_one_thread)) as batches:
        for number, (_, window) in enumerate(batches, 1):
            if window is not None:
                found.append(window)
            if len(found) >= _WINDOWS:
                break
            context.progress(100 * max(len(found) / _WINDOWS, number / len(windows)), "Registering MS to PAN")
    if not found:
        return None
    found.sort(key=lambda window: window[0])
    return _Evidence(np.array([count for _, count, _ in found], float), np.stack([table for *_, table in found]))


@dataclass(frozen=True)
class _Sampler:
    """Compares windows of a pair; ``gain`` is the MTF's, for all bands."""

    pair: Pair
    gain: float

    def windows(self) -> list[Window]:
        """Windows of MS over the scene, many even on a small one."""
        size = math.isqrt(self.pair.ms.grid.width * self.pair.ms.grid.height // 16)
        return self.pair.ms_windows(min(max(size, _SMALLEST), _WINDOW))

    def compare(self, window: Window) -> Optional[tuple[float, int, np.ndarray]]:
        """How bright PAN is, how many samples were compared, and each band's correlation with PAN for every shift,
        (bands, shifts, shifts); None if the window tells nothing."""
        spectral = self._ms(window)
        if spectral is None:
            return None
        bands, usable = spectral
        panchromatic = self._pan(window)
        if panchromatic is None:
            return None
        mean, pan, covered = panchromatic
        usable &= covered
        count = int(usable.sum())
        if count < _SAMPLES:
            return None
        shifts = _shifted(pan, window)
        width = len(shifts)
        ours, theirs = bands.flatten(1), shifts.reshape(width * width, -1)
        if count < usable.numel():
            chosen = usable.flatten().nonzero()[:, 0]
            ours, theirs = ours.index_select(1, chosen), theirs.index_select(1, chosen)
        ours = ours - ours.mean(dim=1, keepdim=True)
        norm = ours.norm(dim=1).double()
        # About their mean, which without slow changes is next to nothing: no need to subtract it from each.
        other = (theirs.norm(dim=1).double() ** 2 - count * theirs.mean(dim=1).double() ** 2).clamp(min=0).sqrt()
        if not bool((other > 0).all()):
            return None
        tables = (ours @ theirs.T).double() / norm.clamp(min=1e-30)[:, None] / other
        return mean, count, tables.clamp(-1, 1).view(-1, width, width).numpy()

    def _ms(self, window: Window) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """The bands (bands, height, width) without slow changes, and where all are valid; None if nowhere."""
        wide = _grown(window, _AROUND)
        values, valid = self.pair.read_ms(wide)
        bands = torch.from_numpy(values.astype(np.float32))
        inside = _inside(wide, self.pair.ms.grid.width, self.pair.ms.grid.height)
        # Black borders that nobody declared have edges too, but tell nothing of the ground.
        mask = torch.from_numpy(values.any(axis=0)).expand(bands.shape)
        if valid is not None:
            mask = mask & torch.from_numpy(valid)
        if not bool(mask.all()):
            inside = inside & mask.all(dim=0)
            if not bool(inside.any()):
                return None
            bands = torch.where(mask, bands, 0.0)
            bands = filters.fill_invalid(bands, mask, bands.sum(dim=(1, 2)) / mask.sum(dim=(1, 2)))
        mean = bands.mean(dim=(1, 2), keepdim=True)
        edges = _edges(bands - mean, 1)
        # What is but rounding must not pass for detail.
        edges[edges.std(dim=(1, 2), correction=0) <= _FLAT * mean.abs().flatten()] = 0
        return edges, inside[_AROUND:-_AROUND, _AROUND:-_AROUND]

    def _pan(self, window: Window) -> Optional[tuple[float, torch.Tensor, torch.Tensor]]:
        """PAN's mean, PAN on the lattice of shifts without slow changes, and for which samples of MS it is valid under
        all shifts; None if it tells nothing."""
        margin = _REACH / _STEPS + _AROUND
        rows_start, rows = self._matrix(self.pair.y, window.y - margin, window.height, margin)
        columns_start, columns = self._matrix(self.pair.x, window.x - margin, window.width, margin)
        place = Window(columns_start, rows_start, columns.shape[1], rows.shape[1])
        values, valid = self.pair.read_pan(place)
        pan = torch.from_numpy(values.astype(np.float32))
        alignment = self.pair.alignment
        on_raster = Window(place.x + alignment.column, place.y + alignment.row, place.width, place.height)
        inside = _inside(on_raster, self.pair.pan.grid.width, self.pair.pan.grid.height)
        mask = torch.from_numpy(values != 0)
        if valid is not None:
            mask = mask & torch.from_numpy(valid)
        if not bool((mask & inside).any()):
            return None
        mean = float(pan[mask].mean())
        low = filters.apply_separable(rows, torch.where(mask, pan - mean, 0.0), columns)
        if not bool(mask.all()):
            low = low / filters.apply_separable(rows, mask.float(), columns).clamp(min=1e-6)
        edges = _edges(low, _STEPS)
        if float(edges.std(correction=0)) <= _FLAT * abs(mean):
            return None
        inside = inside & mask
        if bool(inside.all()):
            return mean, edges, torch.ones(window.height, window.width, dtype=torch.bool)
        weight = filters.apply_separable(rows, inside.float(), columns)
        cut = _AROUND * _STEPS
        return mean, edges, (_shifted(weight[cut:-cut, cut:-cut], window) > _COVERED).flatten(0, 1).all(dim=0)

    def _matrix(self, axis: Axis, first: float, samples: int, margin: float) -> tuple[int, torch.Tensor]:
        return filters.oversampled_matrix(
            axis, first, round((samples - 1 + 2 * margin) * _STEPS) + 1, _STEPS, self.gain
        )


def _grown(window: Window, margin: int) -> Window:
    return Window(window.x - margin, window.y - margin, window.width + 2 * margin, window.height + 2 * margin)


def _inside(window: Window, width: int, height: int) -> torch.Tensor:
    """Which pixels of a window lie on a raster."""
    rows = torch.arange(window.y, window.y + window.height)
    columns = torch.arange(window.x, window.x + window.width)
    return ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)


def _edges(image: torch.Tensor, step: int) -> torch.Tensor:
    """An image (..., height, width) less its Gaussian mean over samples ``step`` pixels apart; the margin is lost."""
    kernel = torch.exp(-0.5 * (torch.arange(-_AROUND, _AROUND + 1) / _BLUR) ** 2)
    kernel = kernel / kernel.sum()
    planes = image.reshape(-1, 1, *image.shape[-2:])
    slow = torch.nn.functional.conv2d(planes, kernel.view(1, 1, -1, 1), dilation=(step, 1))
    slow = torch.nn.functional.conv2d(slow, kernel.view(1, 1, 1, -1), dilation=(1, step))
    margin = _AROUND * step
    return image[..., margin:-margin, margin:-margin] - slow.view(*image.shape[:-2], *slow.shape[-2:])


def _shifted(image: torch.Tensor, window: Window) -> torch.Tensor:
    """A view of an image on the lattice as MS's samples under every shift: (down, right, height, width)."""
    down, right = image.contiguous().stride()
    shifts = 2 * _REACH + 1
    size = (shifts, shifts, window.height, window.width)
    return image.contiguous().as_strided(size, (down, right, _STEPS * down, _STEPS * right))
