"""What the tests of the engine and of the plugin share."""

from __future__ import annotations

import os
import time

import pytest


@pytest.fixture
def quiet_seconds():
    """Gives the seconds since a moment as a machine with nothing else to do would have counted them.

    A loaded one lets a busy thread have only a share of a core: how large that share is now, a busy thread measures;
    how large it was during the last minute, the system's load tells. The time counts by the smaller of the two.
    """

    def measure(since):
        wall = time.monotonic() - since
        begun, worked = time.monotonic(), time.thread_time()
        while time.thread_time() - worked < 0.1:
            pass
        wait = (time.monotonic() - begun) / 0.1
        return wall / max(1.0, wait, os.getloadavg()[0] / os.cpu_count())

    return measure
