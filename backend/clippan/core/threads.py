"""Threads: how many, and work that they share, in order."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_threads(wanted: int) -> int:
    """``wanted`` threads, or as many as this process has CPUs for 0."""
    if not wanted and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return wanted or os.cpu_count() or 1


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    initializer: Callable[[], None] = lambda: None,
) -> Generator[tuple[Item, Result], None, None]:
    """Applies a function to items in several threads and yields (item, result) in the items' order.

    At most ``threads + 2`` items are pending, which bounds memory. If the consumer closes the generator, pending items
    are dropped and running ones awaited.
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


def once_per_thread(make: Callable[[], Result]) -> Callable[[], Result]:
    """A function that returns what ``make`` makes; ``make`` is called once in each thread."""
    local = threading.local()

    def value() -> Result:
        if not hasattr(local, "value"):
            local.value = make()
        result: Result = local.value
        return result

    return value
