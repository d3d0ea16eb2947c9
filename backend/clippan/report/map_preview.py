"""A map made small, for the pictures of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clippan.labels.samples import Samples
from clippan.report.pictures import NODATA_COLOUR, confidence_png, png

_LONGEST_EDGE = 640  # pixels along the longer edge of a picture
_DOT_RADIUS = 0.008  # radius of a sample in the picture, as a part of its longer edge


@dataclass
class MapPreview:
    """A map made small: every ``step``-th of its pixels.

    Attributes:
        step: in pixels.
        classes: values, uint8 (h, w); 0 is nodata.
        confidence: 0 to 1, float32 (h, w); NaN where there is none.
        picture: of a raster, uint8 (h, w, 3).
    """

    step: int
    classes: np.ndarray
    confidence: np.ndarray
    picture: np.ndarray

    @classmethod
    def of(cls, width: int, height: int) -> MapPreview:
        """Of a map of this size, with nothing in it yet."""
        step = -(-max(width, height) // _LONGEST_EDGE)
        shape = (-(-height // step), -(-width // step))
        return cls(step, np.zeros(shape, np.uint8), np.full(shape, np.nan, np.float32), np.zeros((*shape, 3), np.uint8))

    def add(self, x: int, y: int, classes: np.ndarray, confidence: np.ndarray) -> None:
        """Adds a window of the map (h, w), with its first pixel at column x and row y."""
        some = (slice(-y % self.step, None, self.step), slice(-x % self.step, None, self.step))
        for small, values in ((self.classes, classes[some]), (self.confidence, confidence[some])):
            top, left = -(-y // self.step), -(-x // self.step)
            small[top : top + values.shape[0], left : left + values.shape[1]] = values

    def pictures(self, samples: Samples, colours: Sequence[tuple[int, int, int]]) -> dict[str, bytes]:
        """Samples (as dots) on the raster, the map in ``colours`` of the values 0, 1, …, and its confidence, as PNG
        files."""
        legend = np.array([NODATA_COLOUR, *colours[1:]], np.uint8)
        return {
            "samples": png(self._dotted(samples, legend).transpose(2, 0, 1)),
            "map": png(legend[self.classes].transpose(2, 0, 1)),
            "confidence": confidence_png(self.confidence),
        }

    def _dotted(self, samples: Samples, legend: np.ndarray) -> np.ndarray:
        picture = self.picture.copy()
        height, width = picture.shape[:2]
        radius = max(1, round(_DOT_RADIUS * max(height, width)))
        for border, size in ((True, radius + 1), (False, radius)):
            down, across = np.mgrid[-size : size + 1, -size : size + 1]
            disc = down**2 + across**2 <= (size + 0.3) ** 2
            for y, x in zip(down[disc], across[disc]):
                rows = np.clip(samples.rows // self.step + y, 0, height - 1)
                columns = np.clip(samples.columns // self.step + x, 0, width - 1)
                picture[rows, columns] = 255 if border else legend[samples.labels + 1]
        return picture
