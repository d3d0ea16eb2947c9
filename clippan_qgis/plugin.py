"""Wiring: what the plugin adds to QGIS, and takes away again."""

from __future__ import annotations

from qgis.core import QgsApplication

from .engine import worker
from .provider import Provider


class Plugin:
    """The plugin as QGIS sees it."""

    def __init__(self, iface):
        self._iface = iface
        self._provider = None
        self._options = None

    def initProcessing(self):
        """Registers the algorithms; qgis_process calls only this."""
        if self._provider is None:
            self._provider = Provider()
            QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self):
        """Adds everything to a QGIS with a window."""
        from .gui.options import OptionsFactory

        self.initProcessing()
        self._options = OptionsFactory()
        self._iface.registerOptionsWidgetFactory(self._options)

    def unload(self):
        """Takes everything away and ends the engine's process."""
        if self._options is not None:
            self._iface.unregisterOptionsWidgetFactory(self._options)
            self._options = None
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
        worker.shared.stop()
