"""Tiles: what is read, computed and written at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: first column and row, width and height."""

    x: int
    y: int
    width: int
    height: int

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


def count_threads(wanted: int) -> int:
    """``wanted`` threads, or as many as this process has CPUs for 0."""
    if wanted:
        return wanted
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    initializer: Callable[[], None] = lambda: None,
) -> Generator[tuple[Item, Result], None, None]:
    """Applies a function to items on several threads, and yields the results in the items' order.

    At most two more items than threads are under way or waiting to be taken, so memory stays bounded. When the
    consumer closes the generator, what has not started is dropped and what has is waited for.
    """
    pool = ThreadPoolExecutor(threads, initializer=initializer)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) >= threads + 2:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        for _, future in pending:
            future.cancel()
        pool.shutdown(wait=True)
