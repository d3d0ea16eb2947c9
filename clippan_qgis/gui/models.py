"""The models on this machine: a list with buttons to download and to remove one."""

from __future__ import annotations

from typing import Callable

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QHeaderView, QMessageBox, QTreeWidget, QTreeWidgetItem, QVBoxLayout, QWidget

from clippan.catalogue.models import MODELS
from clippan.core.messages import Message
from clippan.jobs import ListModelsRequest, ListModelsResult, RemoveModelRequest, Request

from ..i18n import tr
from ..settings import Settings
from .job_runner import LatestJobRunner, OnResult
from .widgets import push_button, side_by_side, wrapped_label

_PLACES = {
    "shipped": Message("with the plugin"),
    "cache": Message("downloaded"),
    "offline": Message("offline folder"),
}
_ID_ROLE, _PLACE_ROLE = Qt.ItemDataRole.UserRole, Qt.ItemDataRole.UserRole + 1


class ModelList(QWidget):
    """Shows the registry at once, and what of it is here as soon as the engine has answered.

    Args:
        settings: gives the settings as the page shows them, saved or not.
        save: saves them, for a dialog that reads them itself.
    """

    def __init__(self, settings: Callable[[], Settings], save: Callable[[], None]):
        super().__init__()
        self._save = save
        self._jobs = LatestJobRunner(self, settings=settings)
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels([tr("Model"), tr("Size"), tr("Licence"), tr("On this machine")])
        self.tree.setRootIsDecorated(False)
        self.tree.setMinimumHeight(130)
        self.tree.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        for model in MODELS.values():
            item = QTreeWidgetItem([model.label, f"{model.size / 1e6:.0f} MB", model.licence, ""])
            item.setData(0, _ID_ROLE, model.id)
            item.setToolTip(0, tr(model.notes))
            item.setToolTip(2, model.licence_url)
            item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            self.tree.addTopLevelItem(item)
        for column in (1, 2):
            self.tree.resizeColumnToContents(column)
        self.state = wrapped_label()
        self.download = push_button(tr("Download…"))
        self.remove = push_button(tr("Remove"))
        self.reload = push_button(tr("Refresh"))
        buttons = side_by_side(self.download, self.remove, self.reload, self.state)
        buttons.layout().setStretch(3, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.tree)
        layout.addWidget(buttons)
        self.tree.currentItemChanged.connect(lambda *_: self._enable())
        self.download.clicked.connect(self._download)
        self.remove.clicked.connect(self._remove)
        self.reload.clicked.connect(self.refresh)
        self._jobs.changed.connect(self._enable)
        self._enable()

    def refresh(self) -> None:
        self._submit(ListModelsRequest(), self._show)

    def selected(self) -> str:
        item = self.tree.currentItem()
        return item.data(0, _ID_ROLE) if item else ""

    def _submit(self, request: Request, on_result: OnResult) -> None:
        self.state.setText(tr("Looking…"))
        self._jobs.submit(tr("CLIPPan models"), request, on_result, self.state.setText)

    def _show(self, result: ListModelsResult) -> None:
        found = {model.id: model for model in result.models}
        for number in range(self.tree.topLevelItemCount()):
            item = self.tree.topLevelItem(number)
            model = found.get(item.data(0, _ID_ROLE))
            place = model.place if model else ""
            item.setData(0, _PLACE_ROLE, place)
            item.setText(3, tr(_PLACES.get(place, place)))
            if place:
                item.setText(1, f"{model.size / 1e6:.0f} MB")
                item.setToolTip(3, model.path)
        self.state.setText(tr("{size:.0f} MB in {folder}", size=result.size / 1e6, folder=result.folder))
        self._enable()

    def _enable(self) -> None:
        item, free = self.tree.currentItem(), not self._jobs.is_busy
        place = item.data(0, _PLACE_ROLE) if item else None
        self.download.setEnabled(free and item is not None and not place)
        self.remove.setEnabled(free and place == "cache")
        self.reload.setEnabled(free)

    def _download(self) -> None:
        import processing

        self._save()  # the algorithm obeys the folders and the token that are shown here
        dialog = processing.createAlgorithmDialog("clippan:downloadmodel", {"MODEL": self.selected()})
        if dialog is not None:
            dialog.finished.connect(self.refresh)
            dialog.show()

    def _remove(self) -> None:
        name = self.selected()
        question = tr("Remove {model} from this machine? It can be downloaded again.", model=MODELS[name].label)
        if QMessageBox.question(self, tr("Remove model"), question) == QMessageBox.StandardButton.Yes:
            self._submit(RemoveModelRequest(model=name), lambda _: self.refresh())
