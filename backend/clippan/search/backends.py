"""Opens an index by its name: a GeoPackage, or a catalogue in PostgreSQL."""

from __future__ import annotations

from typing import Any

from clippan.core.messages import Message
from clippan.jobs.kinds import is_database
from clippan.search import geopackage, postgis
from clippan.search.geopackage import IndexInfo


def open_writer(name: str, about: IndexInfo) -> Any:
    """The index, to be written; see ``geopackage.GeoPackageWriter``."""
    if is_database(name):
        return postgis.PostgisWriter(name, about)
    return geopackage.GeoPackageWriter(name, about)


def open_reader(name: str) -> Any:
    """The index, to be read; see ``geopackage.GeoPackageReader``."""
    if is_database(name):
        return postgis.open_reader(name)
    return geopackage.open_reader(name)


def model_changed(index: str, label: str) -> str:
    """The sentence for a model that is not the one that made the index."""
    return Message(
        "The model {model} has changed since {index} was made, so their vectors cannot be compared; build the index "
        "again, or restore the old weights.",
        model=label,
        index=index,
    )
