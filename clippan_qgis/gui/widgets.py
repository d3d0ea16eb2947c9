"""Widgets that several windows have, and rows of them."""

from __future__ import annotations

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QComboBox, QHBoxLayout, QLabel, QPushButton, QToolButton, QWidget


def theme_icon(name: str) -> QIcon:
    return QgsApplication.getThemeIcon(name)


def side_by_side(*widgets: QWidget) -> QWidget:
    box = QWidget()
    layout = QHBoxLayout(box)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return box


def wrapped_label(text: str = "") -> QLabel:
    """A text on as many lines as it needs."""
    label = QLabel(text)
    label.setWordWrap(True)
    return label


def push_button(text: str, tip: str = "", icon: str = "") -> QPushButton:
    """A button with a text, and with an icon of QGIS's theme if one is named."""
    button = QPushButton(theme_icon(icon), text) if icon else QPushButton(text)
    button.setToolTip(tip)
    return button


def tool_button(icon: str, tip: str) -> QToolButton:
    """A button with an icon of QGIS's theme alone."""
    button = QToolButton()
    button.setIcon(theme_icon(icon))
    button.setToolTip(tip)
    button.setAccessibleName(tip)
    return button


def add_choice(box: QComboBox, label: str, value: str, tip: str = "") -> None:
    """Adds a choice whose data is the value."""
    box.addItem(label, value)
    box.setItemData(box.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)
