"""Opens an index by its name: a GeoPackage, or a catalogue in PostgreSQL."""

from __future__ import annotations

from typing import Any

from clippan.core.messages import Message
from clippan.jobs.kinds import is_database
from clippan.search import geopackage, postgis
from clippan.search.tile_index import IndexInfo, IndexReader


def open_writer(name: str, info: IndexInfo) -> Any:
    """The index, to be written; see ``IndexWriter``."""
    if is_database(name):
        return postgis.PostgisWriter(name, info)
    return geopackage.GeoPackageWriter(name, info)


def open_reader(name: str) -> Any:
    """The index, to be read; see ``IndexReader``."""
    if is_database(name):
        return postgis.open_reader(name)
    return geopackage.open_reader(name)


def model_changed(index: IndexReader) -> Message:
    """The sentence for a model that is not the one that made the index."""
    return Message(
        "The model {model} has changed since {index} was made, so their vectors cannot be compared; build the index "
        "again, or restore the old weights.",
        model=index.info.label,
        index=index.path,
    )
