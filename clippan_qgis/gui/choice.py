"""A list of words that shows what they mean."""

from __future__ import annotations

from qgis.gui import QgsAbstractProcessingParameterWidgetWrapper, QgsGui, QgsProcessingGui
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QComboBox


class ChoiceWidget(QgsAbstractProcessingParameterWidgetWrapper):
    """Shows a parameter made by ``algorithms.base.choice`` by its labels; the value is the word behind one.

    The model designer gets QGIS's own widget, which can also take the value from a model input.
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

    def createWidget(self):
        """See QgsAbstractProcessingParameterWidgetWrapper."""
        box = QComboBox()
        for value, label in self.parameterDefinition().metadata()["clippan_labels"].items():
            box.addItem(label, value)
            box.setItemData(box.count() - 1, value, Qt.ItemDataRole.ToolTipRole)
        box.setToolTip(self.parameterDefinition().toolTip())
        box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        box.currentIndexChanged.connect(lambda _: self.widgetValueHasChanged.emit(self))
        return box

    # The widget is asked for anew each time: QGIS takes it over, and the Python object made above with it.

    def setWidgetValue(self, value, context):
        """See QgsAbstractProcessingParameterWidgetWrapper."""
        box = self.wrappedWidget()
        index = box.findData(str(value))
        if index >= 0:
            box.setCurrentIndex(index)

    def widgetValue(self):
        """See QgsAbstractProcessingParameterWidgetWrapper."""
        return self.wrappedWidget().currentData()
