"""The models on this machine: a list with buttons to download and to remove one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import (
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QMessageBox,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from clippan.catalogue.models import MODELS
from clippan.core.errors import ClippanError
from clippan.jobs import ListModelsRequest, RemoveModelRequest, Request

from ..engine import worker
from ..settings import Settings
from .task import JobTask

_PLACES = {"shipped": "with the plugin", "cache": "downloaded", "offline": "offline folder", "": ""}
_ID = Qt.ItemDataRole.UserRole


class ModelList(QWidget):
    """Shows the registry at once, and what of it is here as soon as the engine has answered.

    Args:
        settings: gives the settings as the page shows them, saved or not.
        save: saves them, for a dialog that reads them itself.
    """

    def __init__(self, settings: Callable[[], Settings], save: Callable[[], None]):
        super().__init__()
        self._settings = settings
        self._save = save
        self._task = None
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(["Model", "Size", "Licence", "On this machine"])
        self.tree.setRootIsDecorated(False)
        self.tree.setMinimumHeight(130)
        self.tree.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for model in MODELS.values():
            item = QTreeWidgetItem([model.label, f"{model.size / 1e6:.0f} MB", model.licence, ""])
            item.setData(0, _ID, model.id)
            item.setToolTip(0, model.notes)
            item.setToolTip(2, model.licence_url)
            item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            self.tree.addTopLevelItem(item)
        for column in (1, 2):
            self.tree.resizeColumnToContents(column)
        self.state = QLabel()
        self.state.setWordWrap(True)
        self.download = QPushButton("Download…")
        self.remove = QPushButton("Remove")
        self.refresh = QPushButton("Refresh")
        buttons = QHBoxLayout()
        for button in (self.download, self.remove, self.refresh):
            buttons.addWidget(button)
        buttons.addWidget(self.state, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.tree)
        layout.addLayout(buttons)
        self.tree.currentItemChanged.connect(lambda *_: self._enable())
        self.download.clicked.connect(self._download)
        self.remove.clicked.connect(self._remove)
        self.refresh.clicked.connect(self.look)
        self._enable()

    def look(self) -> None:
        """Asks the engine what is on this machine."""
        self._ask(ListModelsRequest(), self._show)

    def selected(self) -> str:
        """The id of the selected model; empty if none is."""
        item = self.tree.currentItem()
        return item.data(0, _ID) if item else ""

    def _ask(self, request: Request, then: Callable[[dict[str, Any]], None]) -> None:
        try:
            self._task = JobTask("CLIPPan models", worker.launch(self._settings()), request)
        except ClippanError as error:
            self.state.setText(str(error))
            return
        task = self._task
        self.state.setText("Looking…")
        self._enable()
        task.start(self, lambda: self._ended(task, then))

    def _ended(self, task: JobTask, then: Callable[[dict[str, Any]], None]) -> None:
        if task is self._task:  # a newer question makes the answer to an older one stale
            self._task = None
            if task.answer:
                then(task.answer)
            else:
                self.state.setText(task.failure)
            self._enable()

    def _show(self, answer: dict[str, Any]) -> None:
        rows: Sequence[dict[str, Any]] = answer["models"]
        found = {row["id"]: row for row in rows}
        for item in self._items():
            row = found.get(item.data(0, _ID), {})
            item.setText(3, _PLACES.get(row.get("place", ""), row.get("place", "")))
            if row.get("place"):
                item.setText(1, f"{row['size'] / 1e6:.0f} MB")
                item.setToolTip(3, row["path"])
        self.state.setText(f"{answer['size'] / 1e6:.0f} MB in {answer['folder']}")

    def _items(self) -> list[QTreeWidgetItem]:
        return [self.tree.topLevelItem(row) for row in range(self.tree.topLevelItemCount())]

    def _enable(self) -> None:
        item, free = self.tree.currentItem(), self._task is None
        self.download.setEnabled(free and item is not None and not item.text(3))
        self.remove.setEnabled(free and item is not None and item.text(3) == _PLACES["cache"])
        self.refresh.setEnabled(free)

    def _download(self) -> None:
        import processing

        self._save()  # the algorithm obeys the folders and the token that are shown here
        dialog = processing.createAlgorithmDialog("clippan:downloadmodel", {"MODEL": self.selected()})
        if dialog is not None:
            dialog.finished.connect(self.look)
            dialog.show()

    def _remove(self) -> None:
        name = self.selected()
        answer = QMessageBox.question(
            self,
            "Remove model",
            f"Remove {MODELS[name].label} from this machine? It can be downloaded again.",
            QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No,
        )
        if answer == QMessageBox.StandardButton.Yes:
            self._ask(RemoveModelRequest(model=name), lambda _: self.look())
