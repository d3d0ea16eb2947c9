"""Tiles and the ordered pool."""

from __future__ import annotations

import threading
import time

import pytest

from clippan.core.threads import in_order
from clippan.raster.tiles import Window, tiles


def test_tiles_cover_everything_once():
    found = tiles(700, 300, 256)
    assert found[0] == Window(0, 0, 256, 256)
    assert found[-1] == Window(512, 256, 188, 44)
    assert sum(tile.width * tile.height for tile in found) == 700 * 300


def test_results_come_in_order_and_few_at_a_time():
    running, most, lock = 0, 0, threading.Lock()

    def work(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (item % 3))
        with lock:
            running -= 1
        return item * item

    assert [result for _, result in in_order(work, range(40), 3)] == [n * n for n in range(40)]
    assert most <= 3


def test_a_failure_reaches_the_consumer_and_stops_the_rest():
    started = []

    def work(item):
        started.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(in_order(work, range(1000), 2))
    assert len(started) < 20
