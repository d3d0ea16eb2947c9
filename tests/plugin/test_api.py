"""Names and values by which saved models, scripts and command lines call the algorithms: none may go or change.

``tests/golden/processing.json`` holds those of version 0.1. What is added, or taken besides, needs no entry
there.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from qgis.core import (
    Qgis,
    QgsProcessingParameterEnum,
    QgsProcessingParameterField,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
)

PINNED = Path(__file__).resolve().parents[1] / "golden" / "processing.json"
FREE = 2**31 - 1  # from here on a limit of a number is none


def described(provider):
    """Parameters and outputs of all algorithms, as JSON values."""
    found = {}
    for algorithm in sorted(provider.algorithms(), key=lambda item: item.name()):
        found[algorithm.name()] = {
            "parameters": [_parameter(item) for item in algorithm.parameterDefinitions()],
            "outputs": [{"name": item.name(), "type": item.type()} for item in algorithm.outputDefinitions()],
        }
    return found


def _parameter(item):
    flags = item.flags()
    values = {
        "name": item.name(),
        "type": item.type(),
        "default": item.defaultValue(),
        "optional": bool(flags & Qgis.ProcessingParameterFlag.Optional),
        "advanced": bool(flags & Qgis.ProcessingParameterFlag.Advanced),
        "hidden": bool(flags & Qgis.ProcessingParameterFlag.Hidden),
        "destination": item.isDestination(),
    }
    if isinstance(item, QgsProcessingParameterEnum):
        values |= {"values": item.options(), "static": item.usesStaticStrings(), "multiple": item.allowMultiple()}
    if isinstance(item, QgsProcessingParameterNumber):
        low, high = (value if abs(value) < FREE else None for value in (item.minimum(), item.maximum()))
        values |= {"low": low, "high": high, "integer": item.dataType() == item.Integer}
    if isinstance(item, QgsProcessingParameterField):
        values["parent"] = item.parentLayerParameterName()
    if isinstance(item, QgsProcessingParameterMultipleLayers):
        values |= {"layers": int(item.layerType()), "least": item.minimumNumberInputs()}
    return values


def lost(before, after):
    """What is in one description and not in the other."""
    found = []
    for name, algorithm in before.items():
        if name not in after:
            found.append(f"{name} is gone")
            continue
        for kind, items in algorithm.items():
            others = {item["name"]: item for item in after[name][kind]}
            for item in items:
                other = others.get(item["name"])
                found += _lost(f"{name} {item['name']}", item, other) if other else [f"{name} {item['name']} is gone"]
    return found


def _lost(where, before, after):
    return [
        f"{where}: {key} was {value!r} and is {after.get(key)!r}"
        for key, value in before.items()
        if after.get(key) != value and not _takes_as_much(key, value, after.get(key))
    ]


def _takes_as_much(key, before, after):
    """Whether all that was taken still is, or the job has always refused it."""
    if key == "values":
        return set(before) <= set(after or ())
    if key == "optional":
        return after is True
    if key in ("low", "high"):
        return None in (before, after) or (after < before if key == "low" else after > before)
    return False


@pytest.fixture
def after(plugin, qgis_app):
    return json.loads(json.dumps(described(qgis_app.processingRegistry().providerById("clippan"))))


def test_no_name_type_or_value_of_the_algorithms_is_gone_or_changed(after):
    before = json.loads(PINNED.read_text(encoding="utf-8"))
    assert len(before) == 17
    assert lost(before, after) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop("segmentbytext"), "segmentbytext is gone"),
        (lambda found: found["pansharpen"]["parameters"].pop(0), "SPECTRAL is gone"),
        (lambda found: found["pansharpen"]["outputs"].pop(0), "OUTPUT is gone"),
        (lambda found: found["pansharpen"]["parameters"][0].update(type="raster"), "type was 'multilayer'"),
        (lambda found: _named(found, "METHOD")["values"].remove("gsa"), "values was"),
        (lambda found: _named(found, "METHOD").update(default="gsa"), "default was 'clippan'"),
        (lambda found: _named(found, "TILE_SIZE").update(low=512), "low was 256"),
        (lambda found: _named(found, "BANDS").update(optional=False), "optional was True"),
        (lambda found: _named(found, "DEVICE").update(advanced=False), "advanced was True"),
    ],
)
def test_a_change_is_seen(after, change, words):
    changed = copy.deepcopy(after)
    change(changed)
    assert len(lost(after, changed)) == 1
    assert words in lost(after, changed)[0]


def test_what_is_added_or_moved_is_none(after):
    more = copy.deepcopy(after)
    more["new"] = {"parameters": [], "outputs": []}
    more["pansharpen"]["parameters"].insert(0, {"name": "PROBE"})
    more["pansharpen"]["parameters"].reverse()
    _named(more, "METHOD")["values"].insert(0, "best")
    _named(more, "TILE_SIZE").update(low=1)
    _named(more, "METHOD").update(optional=True)
    _named(more, "NODATA").update(low=-1e9)
    assert lost(after, more) == []


def _named(found, name):
    return next(item for item in found["pansharpen"]["parameters"] if item["name"] == name)
