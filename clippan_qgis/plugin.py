"""Wiring: what the plugin adds to QGIS, and takes away again."""

from __future__ import annotations

from qgis.core import QgsApplication

from . import paths
from .engine import worker
from .i18n import tr
from .provider import Provider

MENU = "CLIPPan"
SHORTCUT = "Ctrl+Alt+F"  # QGIS lets the user change it


class Plugin:
    def __init__(self, iface):
        self._iface = iface
        self._provider = None
        self._options = None
        self._highlighter = None
        self._dock = None
        self._action = None
        self._locator = None

    def initProcessing(self):
        """Registers the algorithms; qgis_process calls only this."""
        if self._provider is None:
            self._provider = Provider()
            QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self):
        from .gui.options import OptionsFactory

        self.initProcessing()
        self._options = OptionsFactory()
        self._iface.registerOptionsWidgetFactory(self._options)
        self._add_search()

    def unload(self):
        """Takes everything away and ends the engine's process."""
        if self._dock is not None:
            from .gui import locator

            self._iface.deregisterLocatorFilter(self._locator)  # which deletes it
            locator.stop()
            self._iface.removeToolBarIcon(self._action)
            self._iface.removePluginMenu(MENU, self._action)
            self._iface.unregisterMainWindowAction(self._action)
            self._dock.stop()
            self._iface.removeDockWidget(self._dock)
            self._highlighter.remove()
            self._dock.deleteLater()
            self._action.deleteLater()
            self._highlighter = self._dock = self._action = self._locator = None
        if self._options is not None:
            self._iface.unregisterOptionsWidgetFactory(self._options)
            self._options = None
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
        worker.shared_worker.stop()

    def _add_search(self):
        from qgis.PyQt.QtCore import Qt
        from qgis.PyQt.QtGui import QIcon
        from qgis.PyQt.QtWidgets import QAction

        from .gui.highlighter import HitHighlighter
        from .gui.locator import Locator
        from .gui.search import SearchDock

        self._highlighter = HitHighlighter(self._iface.mapCanvas())
        self._dock = SearchDock(self._iface, self._highlighter)
        self._action = QAction(
            QIcon(str(paths.RESOURCES / "search.svg")), tr("CLIPPan search"), self._iface.mainWindow()
        )
        self._action.setObjectName("ClippanSearchAction")
        self._action.setCheckable(True)
        self._action.setToolTip(tr("Search rasters by text"))
        self._dock.setToggleVisibilityAction(self._action)
        self._iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self._dock)
        self._iface.registerMainWindowAction(self._action, SHORTCUT)
        self._iface.addPluginToMenu(MENU, self._action)
        self._iface.addToolBarIcon(self._action)
        self._locator = Locator(self._highlighter)
        self._iface.registerLocatorFilter(self._locator)
