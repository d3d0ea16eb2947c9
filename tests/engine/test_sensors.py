"""Sensors and their names."""

from __future__ import annotations

import pytest

from clippan.catalogue.sensors import SENSORS, find_sensor, recognise_sensor


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("LC08_L1TP_021039_20150101_B4.TIF", "landsat"),
        ("l8_B4.tif", "landsat"),
        ("clip_l8_band.tif", None),
        ("LANDSAT_9", "landsat"),
        ("landsat8", "landsat"),
        ("WV03", "worldview3"),
        ("WorldView-2", "worldview2"),
        ("DIM_PHR1A_MS_201301", "pleiades"),
        ("photograph1.tif", None),
        ("PHR1B_MS_201301", "pleiades"),
        ("Pléiades 1A", "pleiades"),
        ("SPOT 7", "spot"),
        ("QB02", "quickbird"),
        ("GE01", "geoeye1"),
        ("IK01", "ikonos"),
        ("GF2_PMS1", "gaofen2"),
        ("spotted_owls.tif", None),
        ("pan.tif", None),
    ],
)
def test_names_as_metadata_and_files_hold_them(text, name):
    found = recognise_sensor([text])
    assert (found.name if found else None) == name


def test_find_takes_ids_and_usual_names():
    assert find_sensor("worldview3") is SENSORS["worldview3"]
    assert find_sensor("WorldView-3") is SENSORS["worldview3"]
    assert find_sensor("sputnik") is None


def test_gains_follow_the_bands():
    quickbird = SENSORS["quickbird"]
    assert quickbird.mtf_gains([3, 0], 4) == (0.22, 0.34)
    # With another number of bands nobody knows which is which.
    assert quickbird.mtf_gains([0, 1, 2], 3) == pytest.approx([0.295] * 3)
