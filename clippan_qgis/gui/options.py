"""The options page: Settings ▸ Options ▸ CLIPPan."""

from __future__ import annotations

from typing import Optional

from qgis.gui import QgsAuthConfigSelect, QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtGui import QFontDatabase, QGuiApplication, QIcon
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QFormLayout,
    QGroupBox,
    QLineEdit,
    QPlainTextEdit,
    QVBoxLayout,
    QWidget,
)

from clippan.core.errors import ClippanError
from clippan.jobs import Device, DoctorRequest

from .. import paths
from ..engine import python
from ..i18n import tr
from ..settings import Settings, default_cache
from .job_runner import LatestJobRunner
from .models import ModelList
from .widgets import push_button, side_by_side, wrapped_label


class OptionsFactory(QgsOptionsWidgetFactory):
    def __init__(self):
        super().__init__()
        self.setTitle("CLIPPan")

    def icon(self):
        return QIcon(str(paths.RESOURCES / "icon.svg"))

    def createWidget(self, parent):
        return OptionsPage(parent)


class OptionsPage(QgsOptionsPageWidget):
    """Edits the settings. What is typed is checked before it is saved, by “Check engine”."""

    def __init__(self, parent=None, settings: Optional[Settings] = None):
        super().__init__(parent)
        self._looked = False
        self.python = _file(tr("The environment created by “Set up engine”"), QgsFileWidget.StorageMode.GetFile)
        self.python.setDialogTitle(tr("The Python that runs the engine"))
        self.device = QComboBox()
        for item in Device:
            self.device.addItem(tr(item.label), item.value)
        self.cache = _file(str(default_cache()), QgsFileWidget.StorageMode.GetDirectory)
        self.offline = _file(tr("None: models are downloaded"), QgsFileWidget.StorageMode.GetDirectory)
        self.endpoint = QLineEdit()
        self.endpoint.setPlaceholderText("https://huggingface.co")
        self.authcfg = QgsAuthConfigSelect()
        self.check = push_button(tr("Check engine"))
        tip = tr(
            "Creates an environment with PyTorch, based on QGIS's own Python. You are asked for confirmation first."
        )
        self.setup = push_button(tr("Set up engine…"), tip)
        tip = tr("Copies the report, for pasting into an issue. It contains no confidential information.")
        self.copy = push_button(tr("Copy report"), tip)
        self.copy.setEnabled(False)
        self.report = QPlainTextEdit()
        self.report.setReadOnly(True)
        self.report.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))  # it has columns
        self.report.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.report.setPlaceholderText(
            tr("“Check engine” shows its report here, with remedies for the problems found.")
        )
        self.models = ModelList(self.settings, self.apply)
        self._jobs = LatestJobRunner(self, settings=self.settings)
        self._arrange()
        self.check.clicked.connect(self._check)
        self.setup.clicked.connect(self._set_up)
        self.copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.report.toPlainText()))
        self.show_settings(settings or Settings.read())

    def show_settings(self, settings: Settings) -> None:
        self.python.setFilePath(settings.python)
        self.device.setCurrentIndex(max(self.device.findData(settings.device), 0))
        self.cache.setFilePath(settings.cache)
        self.offline.setFilePath(settings.offline)
        self.endpoint.setText(settings.endpoint)
        self.authcfg.setConfigId(settings.authcfg)

    def settings(self) -> Settings:
        return Settings(
            python=self.python.filePath().strip(),
            device=self.device.currentData(),
            cache=self.cache.filePath().strip(),
            offline=self.offline.filePath().strip(),
            endpoint=self.endpoint.text().strip(),
            authcfg=self.authcfg.configId(),
        )

    def apply(self):
        """Saves; the next job starts a new engine process if its Python or surroundings have changed."""
        self.settings().write()

    def showEvent(self, event):
        """Looks what models are here once the page is seen: other pages' users need no engine."""
        super().showEvent(event)
        if not self._looked:
            self._looked = True
            self.models.refresh()

    def _arrange(self) -> None:
        engine = _Form(tr("Engine"))
        engine.add(
            tr("Engine Python"),
            self.python,
            tr(
                "A Python with PyTorch and GDAL that runs the engine, or the folder of its environment. Leave it "
                "empty to use the environment created by “Set up engine”."
            ),
        )
        engine.add(tr("Device"), self.device, tr("The device that “auto” uses in the algorithms."))
        tip = tr("The folder for the engine's environment and for downloaded models. It can take several gigabytes.")
        engine.add(tr("Cache folder"), self.cache, tip)
        buttons = side_by_side(self.check, self.setup, QWidget(), self.copy)
        buttons.layout().setStretch(2, 1)
        engine.rows.addRow(buttons)
        engine.rows.addRow(self.report)
        models = _Form(tr("Models"))
        tip = tr("A folder with model files, for machines without network access.")
        models.add(tr("Offline folder"), self.offline, tip)
        models.add(tr("Hub address"), self.endpoint, tr("The address of a mirror of the Hugging Face Hub."))
        models.add(
            tr("Hub token"),
            self.authcfg,
            tr(
                "The access token for the Hub: a “Basic” authentication configuration with the token as its "
                "password. Public models need no token."
            ),
        )
        models.rows.addRow(self.models)
        note = tr(
            "The engine runs in a separate process with its own Python, so that it does not affect QGIS or "
            "other plugins."
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(wrapped_label(note))
        layout.addWidget(engine, 1)
        layout.addWidget(models)

    def _check(self) -> None:
        settings = self.settings()
        self.check.setEnabled(False)
        self.report.setPlainText(tr("Checking…"))
        try:
            interpreter = python.find_interpreter(settings)
        except ClippanError as error:
            self._show(tr(error.message))
            return
        self._jobs.submit(
            tr("Checking the CLIPPan engine"),
            DoctorRequest(device=settings.preferred_device),
            lambda result: self._show(f"{interpreter}\n{result.text}"),
            self._show,
        )

    def _show(self, text: str) -> None:
        self.report.setPlainText(text)
        self.check.setEnabled(True)
        self.copy.setEnabled(True)

    def _set_up(self) -> None:
        import processing

        self.settings().write()  # the algorithm obeys the cache folder that is shown here
        dialog = processing.createAlgorithmDialog("clippan:setupengine")
        if dialog is not None:
            dialog.show()


def _file(placeholder: str, mode) -> QgsFileWidget:
    widget = QgsFileWidget()
    widget.setStorageMode(mode)
    widget.lineEdit().setPlaceholderText(placeholder)
    return widget


class _Form(QGroupBox):
    def __init__(self, title: str):
        super().__init__(title)
        self.rows = QFormLayout(self)
        self.rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)

    def add(self, label: str, widget: QWidget, tip: str) -> None:
        widget.setToolTip(tip)
        self.rows.addRow(label, widget)
