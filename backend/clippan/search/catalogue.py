"""Opens an index by its name: a GeoPackage, or a catalogue in PostgreSQL."""

from __future__ import annotations

from typing import Any

from clippan.jobs import check
from clippan.search import store
from clippan.search.store import About


def builder(name: str, about: About) -> Any:
    """The index, to be written; see ``store.Builder``."""
    if check.is_database(name):
        from clippan.search import postgis

        return postgis.Builder(name, about)
    return store.Builder(name, about)


def reader(name: str) -> Any:
    """The index, to be read; see ``store.Index``."""
    if check.is_database(name):
        from clippan.search import postgis

        return postgis.reader(name)
    return store.reader(name)
