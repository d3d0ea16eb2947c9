"""CLIPPan for QGIS: the plugin. It asks the engine, which runs in a process of its own, and shows what comes back."""

from __future__ import annotations

from . import paths

paths.import_jobs()


def classFactory(iface):
    """Makes the plugin; QGIS calls this (``iface`` is None in qgis_process)."""
    from .plugin import Plugin

    return Plugin(iface)
