"""What the search panel looks like."""

from __future__ import annotations

from qgis.core import QgsApplication
from qgis.gui import QgsDockWidget
from qgis.PyQt.QtCore import QSize, Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMenu,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from ..i18n import tr
from .prompt import Prompt
from .results import ResultList

EVERYTHING, VIEW, LAYERS = "everything", "view", "layers"


class Panel(QgsDockWidget):
    """The widgets, in their places; what they do is told them by ``SearchDock``."""

    def __init__(self):
        super().__init__(tr("CLIPPan search"))
        self.setObjectName("ClippanSearch")
        self.setAcceptDrops(True)
        self._build()
        self._arrange()

    def _build(self) -> None:
        self.index = QComboBox()
        self.index.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.index.setMinimumWidth(80)
        self.index.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.index.setPlaceholderText(tr("Choose an index"))
        self.index.setToolTip(tr("The index of rasters to search"))
        self.menu = QMenu(self)
        self.open = self.menu.addAction(tr("&Open index…"))
        self.make = self.menu.addAction(tr("&New index from layers…"))
        self.menu.addSeparator()
        self.forget = self.menu.addAction(tr("&Remove from this list"))
        self.more = _tool("mActionAdd.svg", tr("Open or build an index"))
        self.more.setMenu(self.menu)
        self.more.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.prompt = Prompt()
        self.prompt.setPlaceholderText(tr("river mouth with sandbanks"))
        self.prompt.setToolTip(
            tr(
                "The text to search for. Separate several texts by semicolons: “beach; harbour”. Exclude with a "
                "minus sign: “harbour -ships”."
            )
        )
        self.button = QPushButton(tr("Search"))
        self.without = QLineEdit()
        self.without.setPlaceholderText(tr("nothing"))
        self.without.setClearButtonEnabled(True)
        self.without.setAcceptDrops(False)
        self.without.setToolTip(tr("What the places should not show, such as “ships; cranes”"))
        self.scope = QComboBox()
        self.scope.addItem(tr("Everything"), EVERYTHING)
        self.scope.addItem(tr("This view"), VIEW)
        self.scope.addItem(tr("Selected layers"), LAYERS)
        self.scope.setToolTip(
            tr("Search the whole index, the current map view, or the layers selected in the Layers panel")
        )
        self.top = QSpinBox()
        self.top.setRange(1, 1000)
        self.top.setValue(20)
        self.top.setSuffix(tr(" results"))
        self.top.setToolTip(tr("Maximum number of places"))
        self.least = QSpinBox()
        self.least.setRange(0, 99)
        self.least.setSingleStep(5)
        self.least.setSuffix(" %")
        self.least.setPrefix("≥ ")
        self.least.setToolTip(tr("Minimum confidence of the places"))
        self.point = QPushButton(icon("mActionIdentify.svg"), tr("A poi&nt"))
        self.point.setCheckable(True)
        self.point.setToolTip(tr("Click a place on the map to find others like it"))
        self.picture = QPushButton(icon("mActionAddImage.svg"), tr("A pict&ure…"))
        self.picture.setToolTip(
            tr("Find places like the one in a picture file, which can also be dropped on this panel")
        )
        self.welcome = QLabel(
            tr(
                "Index your rasters once. Then type what you look for, such as “beach”, and fly to the places that "
                "show it."
            )
        )
        self.welcome.setWordWrap(True)
        self.welcome.setMargin(12)
        self.first = QPushButton(tr("New inde&x from layers…"))
        self.examples = QLabel()
        self.examples.setWordWrap(True)
        self.reset = QPushButton(tr("Reset"))
        self.reset.setToolTip(tr("Search without these examples"))
        self.results = ResultList()
        self.good = QPushButton(tr("More li&ke this"))
        self.good.setToolTip(
            tr("The selected result is what you are looking for: search again with it as a good example (key +)")
        )
        self.bad = QPushButton(tr("Less like this"))
        self.bad.setToolTip(
            tr("The selected result is not what you are looking for: search again with it as a bad example (key −)")
        )
        self.save = QPushButton(icon("mActionAddOgrLayer.svg"), tr("Save as la&yer"))
        self.save.setToolTip(tr("Adds the results to the project as polygons"))
        self.heat = QPushButton(icon("mActionAddRasterLayer.svg"), tr("He&at map"))
        self.heat.setToolTip(tr("Adds a raster layer that shows the confidence everywhere"))
        self.bar = QProgressBar()
        self.bar.setMaximumHeight(18)
        self.cancel = QPushButton(tr("Cancel"))
        self.message = QLabel()
        self.message.setTextFormat(Qt.TextFormat.PlainText)
        self.message.setWordWrap(True)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def _arrange(self) -> None:
        grid = QGridLayout()
        grid.setColumnStretch(1, 1)
        rows = (
            (tr("&Index"), self.index, _row(self.index, self.more)),
            (tr("&Find"), self.prompt, _row(self.prompt, self.button)),
            (tr("Wi&thout"), self.without, self.without),
            (tr("Where"), self.scope, self.scope),
            (tr("Show"), self.top, _row(self.top, self.least)),
            (tr("Or like"), self.point, _row(self.point, self.picture)),
        )
        for number, (text, field, row) in enumerate(rows):
            label = QLabel(text)
            label.setBuddy(field)
            grid.addWidget(label, number, 0)
            grid.addWidget(row, number, 1)
        self.force = _row(self.examples, self.reset)
        self.force.layout().setStretch(0, 1)
        self.progress = _row(self.bar, self.cancel)
        self.start = QWidget()
        start = QVBoxLayout(self.start)
        start.addStretch()
        start.addWidget(self.welcome)
        start.addWidget(self.first)
        start.addStretch()
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.setSpacing(6)
        layout.addLayout(grid)
        layout.addWidget(self.force)
        layout.addWidget(self.start, 1)
        layout.addWidget(self.results, 1)
        layout.addWidget(_row(self.good, self.bad))
        layout.addWidget(_row(self.save, self.heat))
        layout.addWidget(self.progress)
        layout.addWidget(self.message)
        self.setWidget(content)
        order = [self.prompt, self.button, self.without, self.scope, self.top, self.least, self.point, self.picture]
        order += [self.first, self.reset, self.results, self.good, self.bad, self.save, self.heat, self.cancel]
        order += [self.index, self.more]
        for one, next_one in zip(order, order[1:]):
            QWidget.setTabOrder(one, next_one)


def _row(*widgets: QWidget) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return row


def icon(name: str) -> QIcon:
    """An icon of QGIS's theme."""
    return QgsApplication.getThemeIcon(name)


def _tool(name: str, tip: str) -> QToolButton:
    button = QToolButton()
    button.setIcon(icon(name))
    button.setIconSize(QSize(16, 16))
    button.setToolTip(tip)
    button.setAccessibleName(tip)
    button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    return button
