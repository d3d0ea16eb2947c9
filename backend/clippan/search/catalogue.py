"""Opens an index by its name: a GeoPackage, or a catalogue in PostgreSQL."""

from __future__ import annotations

from typing import Any

from clippan.core.messages import Message
from clippan.jobs.kinds import is_database
from clippan.search import postgis, store
from clippan.search.store import About


def builder(name: str, about: About) -> Any:
    """The index, to be written; see ``store.Builder``."""
    if is_database(name):
        return postgis.Builder(name, about)
    return store.Builder(name, about)


def reader(name: str) -> Any:
    """The index, to be read; see ``store.Index``."""
    if is_database(name):
        return postgis.reader(name)
    return store.reader(name)


def changed(index: str, label: str) -> str:
    """The sentence for a model that is not the one that made the index."""
    return Message(
        "The model {label} has changed since {index} was made, and its vectors do not compare any more; make the "
        "index anew, or put the old weights back.",
        label=label,
        index=index,
    )
