"""What the widgets of our own parameters have in common."""

from __future__ import annotations

from qgis.gui import QgsAbstractProcessingParameterWidgetWrapper, QgsGui, QgsProcessingGui
from qgis.PyQt.QtWidgets import QWidget

# QGIS takes over the widgets that wrappers make, but not their Python halves. Were these collected as garbage before
# the widget goes, QGIS would crash when it next asks the widget, or one inside it, for its class.
_alive: set[QWidget] = set()


class ParameterWidgetWrapper(QgsAbstractProcessingParameterWidgetWrapper):
    """Shows a parameter in the dialog of its algorithm and in a batch.

    The model designer gets QGIS's own widget, which can also take the value from a model input.

    QGIS takes the widget over: ``wrappedWidget`` gives a plain one of Qt's or QGIS's. A widget of a class of our own
    has to lie inside such a plain one.
    """

    def __new__(cls, parameter, dialog, row=0, col=0):
        if hasattr(dialog, "model") and hasattr(dialog, "childId"):
            return QgsGui.processingGuiRegistry().createModelerParameterWidget(
                dialog.model, dialog.childId, parameter, dialog.context
            )
        return super().__new__(cls, parameter)

    def __init__(self, parameter, dialog, row=0, col=0):
        batch = type(dialog).__name__ == "BatchAlgorithmDialog"
        kind = QgsProcessingGui.WidgetType.Batch if batch else QgsProcessingGui.WidgetType.Standard
        super().__init__(parameter, kind)
        self.setDialog(dialog)

    def make_widget(self) -> QWidget:
        raise NotImplementedError

    def createWidget(self):
        widget = self.make_widget()
        _alive.add(widget)
        widget.destroyed.connect(lambda: _alive.discard(widget))
        return widget
