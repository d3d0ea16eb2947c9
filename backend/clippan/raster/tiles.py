"""Tiles: what is read, computed and written at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: first column and row, width and height."""

    x: int
    y: int
    width: int
    height: int

    def padded(self, margin: int) -> Window:
        """The window with ``margin`` more pixels on each side."""
        return Window(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin)

    def tiles(self, size: int) -> list[Window]:
        """Covers the window with ``tiles`` of this size."""
        return [Window(self.x + t.x, self.y + t.y, t.width, t.height) for t in tiles(self.width, self.height, size)]

    def union(self, other: Window) -> Window:
        """The least window that holds both."""
        left, top = min(self.x, other.x), min(self.y, other.y)
        right = max(self.x + self.width, other.x + other.width)
        bottom = max(self.y + self.height, other.y + other.height)
        return Window(left, top, right - left, bottom - top)

    def intersection(self, other: Window) -> Window:
        """What both share; where that is nothing, a pixel of the border of this one."""
        left, top = (
            min(max(own, theirs), own + length - 1)
            for own, theirs, length in ((self.x, other.x, self.width), (self.y, other.y, self.height))
        )
        right = max(min(self.x + self.width, other.x + other.width), left + 1)
        bottom = max(min(self.y + self.height, other.y + other.height), top + 1)
        return Window(left, top, right - left, bottom - top)


def tiles(width: int, height: int, size: int) -> list[Window]:
    """Covers width × height pixels, row by row, with squares of ``size`` that are cut at the far edges."""
    return [
        Window(x, y, min(size, width - x), min(size, height - y))
        for y in range(0, height, size)
        for x in range(0, width, size)
    ]
