"""What the search panel looks like."""

from __future__ import annotations

from qgis.gui import QgsDockWidget
from qgis.PyQt.QtCore import QSize, Qt
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QGridLayout,
    QLabel,
    QLineEdit,
    QMenu,
    QProgressBar,
    QSizePolicy,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from ..i18n import tr
from .query_line import QueryLine
from .results import ResultList
from .widgets import push_button, side_by_side, tool_button, wrapped_label

EVERYTHING, VIEW, LAYERS = "everything", "view", "layers"


class SearchDockWidgets(QgsDockWidget):
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
        self.open_index = self.menu.addAction(tr("&Open index…"))
        self.new_index = self.menu.addAction(tr("&New index from layers…"))
        self.menu.addSeparator()
        self.remove_index = self.menu.addAction(tr("&Remove from this list"))
        self.index_menu_button = tool_button("mActionAdd.svg", tr("Open or build an index"))
        self.index_menu_button.setIconSize(QSize(16, 16))
        self.index_menu_button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.index_menu_button.setMenu(self.menu)
        self.index_menu_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.prompt = QueryLine()
        self.prompt.setPlaceholderText(tr("river mouth with sandbanks"))
        self.prompt.setToolTip(
            tr(
                "The text to search for. Separate several texts by semicolons: “beach; harbour”. Exclude with a "
                "minus sign: “harbour -ships”."
            )
        )
        self.button = push_button(tr("Search"))
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
        self.max_results = QSpinBox()
        self.max_results.setRange(1, 1000)
        self.max_results.setValue(20)
        self.max_results.setSuffix(tr(" results"))
        self.max_results.setToolTip(tr("Maximum number of places"))
        self.min_confidence = QSpinBox()
        self.min_confidence.setRange(0, 99)
        self.min_confidence.setSingleStep(5)
        self.min_confidence.setSuffix(" %")
        self.min_confidence.setPrefix("≥ ")
        self.min_confidence.setToolTip(tr("Minimum confidence of the places"))
        tip = tr("Click a place on the map to find others like it")
        self.point = push_button(tr("A poi&nt"), tip, "mActionIdentify.svg")
        self.point.setCheckable(True)
        tip = tr("Find places like the one in a picture file, which can also be dropped on this panel")
        self.picture = push_button(tr("A pict&ure…"), tip, "mActionAddImage.svg")
        self.welcome = wrapped_label(
            tr(
                "Index your rasters once. Then type what you look for, such as “beach”, and fly to the places that "
                "show it."
            )
        )
        self.welcome.setMargin(12)
        self.first = push_button(tr("New inde&x from layers…"))
        self.examples = wrapped_label()
        self.reset = push_button(tr("Reset"), tr("Search without these examples"))
        self.results = ResultList()
        tip = tr("The selected result is what you are looking for: search again with it as a good example (key +)")
        self.good = push_button(tr("More li&ke this"), tip)
        tip = tr("The selected result is not what you are looking for: search again with it as a bad example (key −)")
        self.bad = push_button(tr("Less like this"), tip)
        tip = tr("Adds the results to the project as polygons")
        self.save = push_button(tr("Save as la&yer"), tip, "mActionAddOgrLayer.svg")
        tip = tr("Adds a raster layer that shows the confidence everywhere")
        self.heat_map = push_button(tr("He&at map"), tip, "mActionAddRasterLayer.svg")
        self.bar = QProgressBar()
        self.bar.setMaximumHeight(18)
        self.cancel = push_button(tr("Cancel"))
        self.message = wrapped_label()
        self.message.setTextFormat(Qt.TextFormat.PlainText)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def _arrange(self) -> None:
        grid = QGridLayout()
        grid.setColumnStretch(1, 1)
        rows = (
            (tr("&Index"), self.index, side_by_side(self.index, self.index_menu_button)),
            (tr("&Find"), self.prompt, side_by_side(self.prompt, self.button)),
            (tr("Wi&thout"), self.without, self.without),
            (tr("Where"), self.scope, self.scope),
            (tr("Show"), self.max_results, side_by_side(self.max_results, self.min_confidence)),
            (tr("Or like"), self.point, side_by_side(self.point, self.picture)),
        )
        for number, (text, field, content) in enumerate(rows):
            label = QLabel(text)
            label.setBuddy(field)
            grid.addWidget(label, number, 0)
            grid.addWidget(content, number, 1)
        self.examples_row = side_by_side(self.examples, self.reset)
        self.examples_row.layout().setStretch(0, 1)
        self.progress = side_by_side(self.bar, self.cancel)
        self.welcome_page = QWidget()
        start = QVBoxLayout(self.welcome_page)
        start.addStretch()
        start.addWidget(self.welcome)
        start.addWidget(self.first)
        start.addStretch()
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.setSpacing(6)
        layout.addLayout(grid)
        layout.addWidget(self.examples_row)
        layout.addWidget(self.welcome_page, 1)
        layout.addWidget(self.results, 1)
        layout.addWidget(side_by_side(self.good, self.bad))
        layout.addWidget(side_by_side(self.save, self.heat_map))
        layout.addWidget(self.progress)
        layout.addWidget(self.message)
        self.setWidget(content)
        order = [self.prompt, self.button, self.without, self.scope, self.max_results, self.min_confidence, self.point]
        order += [self.picture, self.first, self.reset, self.results, self.good, self.bad, self.save, self.heat_map]
        order += [self.cancel, self.index, self.index_menu_button]
        for one, next_one in zip(order, order[1:]):
            QWidget.setTabOrder(one, next_one)
