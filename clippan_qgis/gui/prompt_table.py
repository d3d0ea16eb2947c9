"""The prompt table: which classes a map is to have, with their words and colours."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Optional

from qgis.gui import QgsColorButton, QgsFilterLineEdit, QgsProcessingGui
from qgis.PyQt.QtCore import QSignalBlocker, Qt, pyqtSignal
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QDialogButtonBox,
    QDoubleSpinBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QMenu,
    QMessageBox,
    QPlainTextEdit,
    QStackedWidget,
    QStyledItemDelegate,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from clippan.catalogue.prompts import ClassPrompt, PromptTable, parse_prompts, preset_tables, save_prompts
from clippan.core import texts
from clippan.core.errors import ClippanError
from clippan.core.messages import Message

from ..i18n import tr
from .widgets import side_by_side, tool_button, wrapped_label
from .wrapper import ParameterWidgetWrapper

DEFAULT_PRESET = "landcover"  # the preset that a dialog starts with
EXAMPLE = "water; forest, trees; building, roof"

_COLOUR, _NAME, _SYNONYMS, _DESCRIPTIONS, _THRESHOLD = range(5)
_COLUMNS = (
    ("", Message("Colour on the map")),
    (Message("Class"), Message("Name in the legend, and the first text that the model looks for, in English")),
    (
        Message("Other words"),
        Message("Synonyms, separated by commas. A place belongs to the class if it matches any of them."),
    ),
    (
        Message("Looks like"),
        Message("Descriptions of its appearance, separated by semicolons, such as “dense green canopy”"),
    ),
    (Message("At least"), Message("Minimum confidence, from 0 to 1. Pixels below it stay unclassified.")),
)
_CLASS_ROLE = Qt.ItemDataRole.UserRole  # of a name: the colour that somebody chose, and the class as it was given
_VISIBLE_ROWS = 7  # that are seen without scrolling


class PromptTableEditor(QWidget):
    """Edits a prompt table as rows or as text. Its value is a text for ``parse_prompts``, if what is typed is right.

    What is wrong is said beneath; what was typed stays.
    """

    changed = pyqtSignal()

    def __init__(self, parent: Optional[QWidget] = None):
        super().__init__(parent)
        self._table_settings = PromptTable(())  # what a table has besides its classes
        self._initial_value = ""  # the value before anybody changed it
        self.rows = _ClassRows()
        self.text = QPlainTextEdit()
        self.text.setPlaceholderText(EXAMPLE)
        self.pages = QStackedWidget()
        self.pages.addWidget(self.rows)
        self.pages.addWidget(self.text)
        self.note = wrapped_label()
        self.add = tool_button("symbologyAdd.svg", tr("Add a class"))
        self.remove = tool_button("symbologyRemove.svg", tr("Remove the selected classes"))
        self.up = tool_button("mActionArrowUp.svg", tr("Move up"))
        self.down = tool_button("mActionArrowDown.svg", tr("Move down"))
        self.open = tool_button("mActionFileOpen.svg", tr("Open a prompt table…"))
        self.save = tool_button("mActionFileSave.svg", tr("Save the prompt table…"))
        self.presets = QToolButton()
        self.presets.setText(tr("Presets"))
        self.presets.setToolTip(tr("Tables that come with CLIPPan"))
        self.presets.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self.presets)
        for label, table in preset_tables().values():
            menu.addAction(tr(label)).triggered.connect(lambda _=False, table=table: self._replace(table))
        self.presets.setMenu(menu)
        self.as_text = QToolButton()
        self.as_text.setText(tr("As text"))
        self.as_text.setToolTip(tr("Shows the table in the text form that scripts, models and the command line use"))
        self.as_text.setCheckable(True)
        buttons = side_by_side(
            *(self.add, self.remove, self.up, self.down, QWidget()),
            *(self.presets, self.open, self.save, self.as_text),
        )
        buttons.layout().setSpacing(2)
        buttons.layout().setStretch(4, 1)
        for button in buttons.findChildren(QToolButton):
            button.setAutoRaise(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self.pages)
        layout.addWidget(buttons)
        layout.addWidget(self.note)
        self.add.clicked.connect(self.rows.add)
        self.remove.clicked.connect(self.rows.remove)
        self.up.clicked.connect(lambda: self.rows.move(-1))
        self.down.clicked.connect(lambda: self.rows.move(1))
        self.open.clicked.connect(self._open)
        self.save.clicked.connect(self._save)
        self.rows.changed.connect(self._changed)
        self.text.textChanged.connect(self._changed)
        self.as_text.toggled.connect(self._toggle_text)
        self._fill(PromptTable(()))

    def value(self) -> str:
        """The table as text: plain if that holds all of it, else JSON; in the state of text, what is typed."""
        return self.text.toPlainText().strip() if self.as_text.isChecked() else self._written()

    def set_value(self, value: str) -> None:
        """Shows a table; what cannot be one, and what lies in a file, stays text."""
        try:
            table = None if texts.named_file(value) else parse_prompts(value)
        except ClippanError:
            table = None
        if table is None and value.strip():
            self._show_text(value)
        else:
            self._fill(table or PromptTable(()))
        self._initial_value = self.value()

    def _written(self) -> str:
        classes = self.rows.classes()
        return replace(self._table_settings, classes=classes).text() if classes else ""

    def _fill(self, table: PromptTable) -> None:
        self._table_settings = replace(table, classes=())
        self.rows.fill(table)
        self._show(False)

    def _show_text(self, text: str) -> None:
        with QSignalBlocker(self.text):
            self.text.setPlainText(text)
        self._show(True)

    def _show(self, as_text: bool) -> None:
        with QSignalBlocker(self.as_text):
            self.as_text.setChecked(as_text)
        self.pages.setCurrentIndex(int(as_text))
        for button in (self.add, self.remove, self.up, self.down):
            button.setEnabled(not as_text)
        self._changed()

    def _toggle_text(self, as_text: bool) -> None:
        if as_text:
            self._show_text(self._written())
            return
        text = self.text.toPlainText().strip()
        try:
            self._fill(parse_prompts(text) if text else PromptTable(()))
        except ClippanError:  # which the note says already
            self._show(True)

    def _changed(self) -> None:
        self.note.setText(self._explain())
        self.changed.emit()

    def _explain(self) -> str:
        value = self.value()
        if not value:
            if self.as_text.isChecked():
                return tr("Write classes like {example}.", example=EXAMPLE)
            return tr("Type a class, or choose a preset.")
        try:
            table = parse_prompts(value)
        except ClippanError as error:
            return tr(error.message)
        if table.model:
            return tr(
                "Calibrated for {model}. Calibrate again if you change the words or the model.",
                model=Path(table.model).name,
            )
        if len(table.classes) == 1:
            return tr("With a single class, places that match common words for other things better stay unclassified.")
        return tr("{count} classes.", count=len(table.classes))

    def _replace(self, table: PromptTable) -> None:
        if self.value() not in ("", self._initial_value):
            question = tr("Replace the classes that you have entered?")
            if QMessageBox.question(self, tr("Prompt table"), question) != QMessageBox.StandardButton.Yes:
                return
        self._fill(table)
        self._initial_value = self.value()

    def _open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(
            self, tr("Open a prompt table"), "", f"{tr('Prompt tables')} (*.json *.txt *.csv)"
        )
        try:
            if path:
                self._replace(parse_prompts(path))
        except ClippanError as error:
            self.note.setText(tr(error.message))

    def _save(self) -> None:
        title, files = tr("Save the prompt table"), f"{tr('Prompt tables')} (*.json)"
        try:
            table = parse_prompts(self.value())
            path, _ = QFileDialog.getSaveFileName(self, title, "", files)
            if path:
                save_prompts(table.with_colours(), path if path.lower().endswith(".json") else f"{path}.json")
        except ClippanError as error:
            self.note.setText(tr(error.message))


class _ClassRows(QTableWidget):
    """A row a class. A colour that nobody chose follows the name."""

    changed = pyqtSignal()

    def __init__(self):
        super().__init__(0, len(_COLUMNS))
        for column, (label, tip) in enumerate(_COLUMNS):
            item = QTableWidgetItem(tr(label))
            item.setToolTip(tr(tip))
            self.setHorizontalHeaderItem(column, item)
        header = self.horizontalHeader()
        header.setMinimumSectionSize(24)
        header.setHighlightSections(False)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        for column, width in ((_COLOUR, 30), (_NAME, 120), (_DESCRIPTIONS, 100), (_THRESHOLD, 60)):
            header.resizeSection(column, max(width, header.sectionSizeHint(column)))
        header.setSectionResizeMode(_SYNONYMS, QHeaderView.ResizeMode.Stretch)
        self.setWordWrap(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setItemDelegateForColumn(_THRESHOLD, _ThresholdDelegate(self))
        height = self.fontMetrics().height() + 8
        self.verticalHeader().setMinimumSectionSize(height)
        self.verticalHeader().setDefaultSectionSize(height)
        self.setMinimumHeight(header.sizeHint().height() + _VISIBLE_ROWS * height + 2 * self.frameWidth())
        self.setMinimumWidth(360)
        self.itemChanged.connect(lambda _: self._edited())

    def classes(self) -> tuple[ClassPrompt, ...]:
        return tuple(prompt for prompt in self._prompts() if prompt.name or prompt.synonyms or prompt.descriptions)

    def fill(self, table: PromptTable) -> None:
        """Shows the classes of a table. Colours that they would have anyway are nobody's choice."""
        usual = replace(table, classes=tuple(replace(prompt, colour="") for prompt in table.classes)).with_colours()
        self._show(
            [
                replace(prompt, colour="") if prompt.colour.lower() == other.colour else prompt
                for prompt, other in zip(table.classes, usual.classes)
            ]
        )

    def add(self) -> None:
        prompts = self._prompts()
        row = self.currentRow() + 1 or len(prompts)
        self._show([*prompts[:row], ClassPrompt(""), *prompts[row:]], row)
        self.editItem(self.item(row, _NAME))

    def remove(self) -> None:
        rows = {index.row() for index in self.selectedIndexes()}
        if rows:
            self._show([prompt for row, prompt in enumerate(self._prompts()) if row not in rows], min(rows))

    def move(self, step: int) -> None:
        prompts, row = self._prompts(), self.currentRow()
        if row >= 0 and 0 <= row + step < len(prompts):
            prompts.insert(row + step, prompts.pop(row))
            self._show(prompts, row + step)

    def _prompts(self) -> list[ClassPrompt]:
        return list(map(self._prompt, range(self.rowCount())))

    def _prompt(self, row: int) -> ClassPrompt:
        name, synonyms, descriptions = (self.item(row, column).text() for column in (_NAME, _SYNONYMS, _DESCRIPTIONS))
        colour, before = self.item(row, _NAME).data(_CLASS_ROLE)
        threshold = float(self.item(row, _THRESHOLD).data(Qt.ItemDataRole.EditRole))
        prompt = ClassPrompt(
            " ".join(name.split()), _split_unique(synonyms, ","), _split_unique(descriptions, ";"), colour, threshold
        )
        kept = replace(prompt, offset=before.offset)
        # What calibration made of the words is not of other words.
        same = (prompt.words, prompt.descriptions) == (before.words, before.descriptions)
        return replace(kept, vector=before.vector) if same else kept

    def _show(self, prompts: list[ClassPrompt], current: int = -1) -> None:
        with QSignalBlocker(self):
            self.setRowCount(0)
            self.setRowCount(len(prompts))
            for row, prompt in enumerate(prompts):
                name = QTableWidgetItem(prompt.name)
                name.setData(_CLASS_ROLE, (prompt.colour, prompt))
                threshold = QTableWidgetItem()
                threshold.setData(Qt.ItemDataRole.EditRole, prompt.threshold)
                self.setItem(row, _NAME, name)
                self.setItem(row, _SYNONYMS, QTableWidgetItem(", ".join(prompt.synonyms)))
                self.setItem(row, _DESCRIPTIONS, QTableWidgetItem("; ".join(prompt.descriptions)))
                self.setItem(row, _THRESHOLD, threshold)
                self.setCellWidget(row, _COLOUR, self._swatch(name))
        if prompts and current >= 0:
            self.setCurrentCell(min(current, len(prompts) - 1), _NAME)
        self._edited()

    def _swatch(self, name: QTableWidgetItem) -> QgsColorButton:
        swatch = QgsColorButton(self, tr("Colour of the class"))
        swatch.setShowMenu(False)
        swatch.setAutoRaise(True)
        swatch.colorChanged.connect(
            lambda colour: name.setData(_CLASS_ROLE, (colour.name(), name.data(_CLASS_ROLE)[1]))
        )
        return swatch

    def _edited(self) -> None:
        prompts = self._prompts()
        for row, prompt in enumerate(PromptTable(tuple(prompts)).with_colours().classes):
            swatch = self.cellWidget(row, _COLOUR)
            with QSignalBlocker(swatch):
                swatch.setColor(QColor(prompt.colour))
        self.changed.emit()


class _ThresholdDelegate(QStyledItemDelegate):
    """A number from 0 to 1; 0, which leaves nothing unclassified, is not shown."""

    def createEditor(self, parent, option, index):
        box = QDoubleSpinBox(parent)
        box.setRange(0, 0.99)
        box.setSingleStep(0.05)
        box.setFrame(False)
        return box

    def displayText(self, value, locale):
        return f"{value:g}" if value else ""


class PromptLine(QWidget):
    """A line of text with a button that opens the table; for a cell of the batch."""

    changed = pyqtSignal()

    def __init__(self, parent: Optional[QWidget] = None):
        super().__init__(parent)
        self.line = QgsFilterLineEdit()
        self.line.setPlaceholderText(EXAMPLE)
        self.line.setMaxLength(2**31 - 1)  # Qt's own bound would cut a calibrated table
        self.line.setMinimumWidth(240)
        self.button = QToolButton()
        self.button.setText("…")
        self.button.setToolTip(tr("Edit the table of classes"))
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.line)
        layout.addWidget(self.button)
        self.line.textChanged.connect(lambda _: self.changed.emit())
        self.button.clicked.connect(self._edit)

    def value(self) -> str:
        return self.line.text().strip()

    def set_value(self, value: str) -> None:
        """Shows a text in one line."""
        value = value.strip()
        self.line.setText(re.sub(r";?\s*\n\s*", " " if value.startswith("{") else "; ", value))
        self.line.setCursorPosition(0)

    def _edit(self) -> None:
        dialog = PromptDialog(self.value(), self)
        if dialog.exec():
            self.set_value(dialog.table.value())


class PromptDialog(QDialog):
    def __init__(self, value: str, parent: Optional[QWidget] = None):
        super().__init__(parent)
        self.setWindowTitle(tr("Classes"))
        self.table = PromptTableEditor()
        self.table.set_value(value)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.addWidget(self.table)
        layout.addWidget(buttons)
        self.resize(560, 380)


class PromptsWidget(ParameterWidgetWrapper):
    """Shows a prompt table: a table in a dialog, a line in a batch."""

    def make_widget(self):
        if self.type() == QgsProcessingGui.WidgetType.Batch:
            self._editor = PromptLine()
        else:
            self._editor = PromptTableEditor()
            self._editor.set_value(preset_tables()[DEFAULT_PRESET][1].text())
        self._editor.changed.connect(lambda: self.widgetValueHasChanged.emit(self))
        return side_by_side(self._editor)

    def setWidgetValue(self, value, context):
        if value:  # a new dialog, in which nothing was chosen, keeps the first preset
            self._editor.set_value(str(value))

    def widgetValue(self):
        return self._editor.value()


def _split_unique(text: str, mark: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in (" ".join(item.split()) for item in text.split(mark)) if part))
