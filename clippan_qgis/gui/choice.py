"""A list of words that shows what they mean."""

from __future__ import annotations

from qgis.PyQt.QtWidgets import QComboBox

from .widgets import add_choice
from .wrapper import ParameterWidgetWrapper


class ChoiceWidget(ParameterWidgetWrapper):
    """Shows a parameter made by ``choice_parameter`` by its labels; the value is the word behind one."""

    def make_widget(self):
        box = QComboBox()
        for value, label in self.parameterDefinition().metadata()["clippan_labels"].items():
            add_choice(box, label, value, value)
        box.setToolTip(self.parameterDefinition().toolTip())
        box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        box.currentIndexChanged.connect(lambda _: self.widgetValueHasChanged.emit(self))
        return box

    def setWidgetValue(self, value, context):
        box = self.wrappedWidget()
        index = box.findData(str(value))
        if index >= 0:
            box.setCurrentIndex(index)

    def widgetValue(self):
        return self.wrappedWidget().currentData()
