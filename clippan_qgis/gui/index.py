"""The dialog that makes an index of the project's rasters."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsIconUtils, QgsProject, QgsRasterLayer
from qgis.gui import QgsFileWidget, QgsMapCanvas
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QDoubleSpinBox,
    QFormLayout,
    QListWidget,
    QListWidgetItem,
    QSizePolicy,
    QVBoxLayout,
)

from clippan.catalogue.models import MODELS
from clippan.core.errors import ClippanError
from clippan.jobs import IndexRequest

from .. import connections, sources
from ..i18n import tr
from ..query import bounds, crs_name
from ..settings import Settings
from .widgets import add_choice, wrapped_label

_LAYER = Qt.ItemDataRole.UserRole
SUFFIX = ".gpkg"
DEFAULT_MODEL = "starter"


class IndexDialog(QDialog):
    """Asks what to index and where to; ``request`` is the job then."""

    def __init__(self, canvas: QgsMapCanvas, parent=None):
        super().__init__(parent)
        self._canvas = canvas
        self.setWindowTitle(tr("New index from layers"))
        self.layers = QListWidget()
        for layer in raster_layers():
            item = QListWidgetItem(QgsIconUtils.iconForLayer(layer), layer.name())
            item.setData(_LAYER, layer.id())
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            # A background map is seldom what one wants to search.
            item.setCheckState(Qt.CheckState.Unchecked if sources.is_service(layer) else Qt.CheckState.Checked)
            self.layers.addItem(item)
        self.layers.setMinimumHeight(80)
        self.tile_size = QDoubleSpinBox()
        self.tile_size.setRange(0, 1_000_000)
        self.tile_size.setDecimals(0)
        self.tile_size.setSuffix(" m")
        self.tile_size.setSpecialValueText(tr("Automatic"))
        self.tile_size.setToolTip(
            tr(
                "Edge of the square tiles that are searched. It should be about the size of the objects you look "
                "for, with some of their surroundings. “Automatic” depends on the pixel size of the raster."
            )
        )
        self.model = QComboBox()
        self.model.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        for model in MODELS.values():
            add_choice(self.model, model.label, model.id, tr(model.notes))
        self.model.setCurrentIndex(max(self.model.findData(DEFAULT_MODEL), 0))
        self.storage = QComboBox()
        self.storage.addItem(tr("A file"), "")
        for key, label in connections.catalogues().items():
            self.storage.addItem(tr("Catalogue: {name}", name=label), key)
        self.storage.setToolTip(tr("A catalogue is stored in PostgreSQL, where a team can share it."))
        self.output = QgsFileWidget()
        self.output.setStorageMode(QgsFileWidget.StorageMode.SaveFile)
        self.output.setConfirmOverwrite(False)  # nothing is overwritten: an index is brought up to date
        self.output.setFilter(f"{tr('GeoPackages')} (*{SUFFIX})")
        self.output.setFilePath(str(suggested_path()))
        self.note = wrapped_label()
        ok, cancel = QDialogButtonBox.StandardButton.Ok, QDialogButtonBox.StandardButton.Cancel
        self.buttons = QDialogButtonBox(ok | cancel, parent=self)
        self.buttons.button(ok).setText(tr("Build index"))
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow(tr("&Layers"), self.layers)
        form.addRow(tr("&Tile size"), self.tile_size)
        form.addRow(tr("&Model"), self.model)
        form.addRow(tr("Save &in"), self.storage)
        form.addRow(tr("&File"), self.output)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.note)
        layout.addWidget(self.buttons)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        self.layers.itemChanged.connect(self._explain)
        self.output.fileChanged.connect(self._explain)
        for box in (self.storage, self.model):
            box.currentIndexChanged.connect(self._explain)
        self._explain()
        self.resize(460, 400)

    def checked_layers(self) -> list[QgsRasterLayer]:
        project = QgsProject.instance()
        items = map(self.layers.item, range(self.layers.count()))
        return [project.mapLayer(item.data(_LAYER)) for item in items if item.checkState() == Qt.CheckState.Checked]

    def index(self) -> str:
        """The index that is made: a file, or a catalogue as ``connections`` names it."""
        return self.storage.currentData() or str(self._path())

    def request(self) -> IndexRequest:
        """The job; raises ClippanError where a layer cannot be indexed."""
        layers = self.checked_layers()
        if not layers:
            raise ClippanError("No layer is checked; check at least one.")
        options = {}
        if any(sources.is_service(layer) for layer in layers):
            options["extent"] = bounds(self._canvas.extent())
            options["crs"] = crs_name(self._canvas.mapSettings().destinationCrs())
        if self.tile_size.value():
            options["tile_metres"] = (self.tile_size.value(),)
        return IndexRequest(
            rasters=tuple(sources.data_source_or_service(layer) for layer in layers),
            output=connections.index_address(self.index()),
            model=self.model.currentData(),
            device=Settings.read().preferred_device,
            **options,
        )

    def accept(self):
        """Only what the engine can do: else says why not."""
        try:
            request = self.request()
            if self._path().parent == indexes_folder():
                indexes_folder().mkdir(parents=True, exist_ok=True)
            request.validate()
            super().accept()
        except ClippanError as error:
            self.note.setText(tr(error.message))
        except OSError as error:
            self.note.setText(str(error))

    def _path(self) -> Path:
        path = Path(self.output.filePath().strip())
        return path.with_name(f"{path.name}{SUFFIX}") if path.name and path.suffix.lower() != SUFFIX else path

    def _explain(self, *_) -> None:
        notes = []
        if not self.layers.count():
            notes.append(tr("The project has no raster layers; add one first."))
        if any(sources.is_service(layer) for layer in self.checked_layers()):
            notes.append(
                tr("Web maps are indexed within the current map extent; this also applies to the other layers.")
            )
        self.output.setEnabled(not self.storage.currentData())
        if self.output.isEnabled() and self._path().is_file():
            notes.append(tr("This index exists. New and changed rasters will be added to it."))
        model = MODELS[self.model.currentData()]
        notes.append(tr(model.notes))
        if model.repository:
            notes.append(
                tr(
                    "The model is downloaded when it is first used: {size:.0f} MB, licence {licence}.",
                    size=model.size / 1e6,
                    licence=model.licence,
                )
            )
        self.note.setText("\n".join(notes))


def raster_layers() -> list[QgsRasterLayer]:
    """The project's rasters, in the order of the layer panel."""
    nodes = QgsProject.instance().layerTreeRoot().findLayers()
    layers = (node.layer() for node in nodes)
    return [layer for layer in layers if isinstance(layer, QgsRasterLayer) and layer.isValid()]


def indexes_folder() -> Path:
    """Where indexes go as long as the project has no file. It need not exist."""
    return Settings.read().cache_folder / "indexes"


def suggested_path() -> Path:
    """A new file for an index: beside the project, if that has a file."""
    project = QgsProject.instance()
    folder = Path(project.absolutePath()) if project.absolutePath() else indexes_folder()
    stem = tr("{project} index", project=project.baseName()) if project.baseName() else tr("index")
    names = (f"{stem}{f' {number}' if number > 1 else ''}{SUFFIX}" for number in range(1, 10_000))
    return next(folder / name for name in names if not (folder / name).exists())
