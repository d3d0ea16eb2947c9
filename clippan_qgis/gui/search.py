"""The search panel: type what you look for, fly to it."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

from qgis.core import QgsProcessingUtils, QgsProject, QgsRasterLayer, QgsReferencedPointXY
from qgis.gui import QgsMapToolEmitPoint
from qgis.PyQt import sip
from qgis.PyQt.QtCore import Qt, QTimer
from qgis.PyQt.QtWidgets import QFileDialog

from clippan.core.errors import ClippanError
from clippan.jobs import (
    AboutIndexRequest,
    AboutIndexResult,
    Hit,
    IndexRequest,
    IndexResult,
    Request,
    SearchRequest,
    SearchResult,
    ThumbnailsRequest,
    ThumbnailsResult,
)

from .. import connections, hits, sources
from ..i18n import tr
from ..query import Query, bounds, parse_query, split_texts
from ..settings import Recent, Settings
from .highlighter import HitHighlighter
from .index import IndexDialog
from .job_runner import LatestJobRunner, OnResult
from .panel import LAYERS, VIEW, SearchDockWidgets
from .widgets import add_choice, theme_icon

THUMBNAIL_BATCH = 4  # pictures are asked for by so many, so that a search never waits long for its turn
PAUSE_MS = 400  # after the last turn of a wheel
PICTURE_FILES = "*.png *.jpg *.jpeg *.tif *.tiff *.jp2 *.webp *.bmp *.vrt"


class SearchDock(SearchDockWidgets):
    """Searches an index, shows the results, and lets the user say which of them are good."""

    def __init__(self, iface, highlighter: HitHighlighter):
        super().__init__()
        self._iface = iface
        self._canvas = iface.mapCanvas()
        self._highlighter = highlighter
        self._query = self._result_query = Query()  # what was asked for last, and what the results are of
        self._result: Optional[SearchResult] = None
        self._index_read = False
        self._folder = tempfile.mkdtemp(prefix="clippan-pictures-")
        self._thumbnail_folder = ""  # in it, for the index's pictures
        self._tool = QgsMapToolEmitPoint(self._canvas)
        self._former_tool = None
        self._jobs, self._index_jobs, self._thumbnail_jobs = (
            LatestJobRunner(self),
            LatestJobRunner(self, True),
            LatestJobRunner(self, True),
        )
        self._show_message = self.message.setText
        self._search_timer = QTimer(self)
        self._search_timer.setSingleShot(True)
        self._connect()
        self._fill_indexes()
        self._update_widgets()

    def _connect(self) -> None:
        self._search_timer.timeout.connect(self.search)
        for entered in (self.prompt.returnPressed, self.prompt.completer().activated, self.without.returnPressed):
            entered.connect(lambda *_: self._search_timer.start(0))
        self.button.clicked.connect(self._search_or_cancel)
        self.cancel.clicked.connect(self._jobs.cancel)
        self.scope.currentIndexChanged.connect(self._search_soon)
        for number in (self.max_results, self.min_confidence):
            number.valueChanged.connect(self._search_soon)
        self.index.activated.connect(lambda _: self.choose_index(self.index.currentData()))
        self.open_index.triggered.connect(self._open_index)
        self.new_index.triggered.connect(self._new_index)
        self.first.clicked.connect(self._new_index)
        self.remove_index.triggered.connect(self._remove_index)
        self.point.clicked.connect(self._toggle_point_tool)
        self._tool.canvasClicked.connect(lambda point, _: self.search_at(point))
        self._tool.deactivated.connect(lambda: self.point.setChecked(False))
        self.picture.clicked.connect(self._choose_picture)
        self.reset.clicked.connect(self._reset)
        self.results.chosen.connect(self._fly_to)
        self.results.marked.connect(self.mark_relevant)
        self.results.currentItemChanged.connect(lambda *_: self._update_widgets())
        self.good.clicked.connect(lambda: self.mark_relevant(True))
        self.bad.clicked.connect(lambda: self.mark_relevant(False))
        self.save.clicked.connect(self._save_layer)
        self.heat_map.clicked.connect(self._draw_heat_map)
        self._jobs.changed.connect(self._update_widgets)
        self._jobs.progressed.connect(lambda percent: self.bar.setValue(int(percent)))
        self._jobs.text_changed.connect(self._show_message)

    def _update_widgets(self) -> None:
        busy, found = self._jobs.is_busy, self._result is not None
        self.progress.setVisible(busy)
        self.button.setText(tr("Cancel") if busy else tr("Search"))
        for widget in (self.good, self.bad):
            widget.setEnabled(self.results.hit() is not None)
        self.save.setEnabled(found and bool(self._result.hits))
        self.heat_map.setEnabled(found and not busy)
        index = Recent.read().index
        self.welcome_page.setHidden(bool(index))
        self.results.setVisible(bool(index))
        self.remove_index.setEnabled(bool(index) and not connections.is_catalogue(index))
        self.examples.setText(self._query.examples)
        self.examples_row.setVisible(bool(self._query.examples))

    def showEvent(self, event):
        """The prompt takes the keys; the index is looked at once it is seen."""
        super().showEvent(event)
        QTimer.singleShot(0, self.prompt.setFocus)
        self._fill_indexes()  # a connection may be new
        if not self._index_read:
            self._read_index_info()

    def keyPressEvent(self, event):
        """From the texts an arrow leads down to the results."""
        if event.key() == Qt.Key.Key_Down and self.results.count():
            self.results.setCurrentRow(max(self.results.currentRow(), 0))
            self.results.setFocus()
        else:
            super().keyPressEvent(event)

    # Where to search.

    def _fill_indexes(self) -> None:
        recent = Recent.read()
        self.index.clear()
        for file in recent.indexes:
            add_choice(self.index, Path(file).stem, file, file)
            self.index.setItemIcon(self.index.count() - 1, theme_icon("mIconGeopackage.svg"))
        for key, label in connections.catalogues().items():
            self.index.addItem(theme_icon("mIconPostgis.svg"), tr("Catalogue: {name}", name=label), key)
        if not self.index.count():
            self.index.addItem(tr("None yet"), "")
        self.index.setCurrentIndex(self.index.findData(recent.index))

    def choose_index(self, index: str, note: str = "") -> None:
        """Searches this index from now on: a file, or a catalogue as ``connections`` names it."""
        if not index:
            return
        if index != Recent.read().index:
            self._clear_results()
        Recent.read().with_index(index, not connections.is_catalogue(index)).write()
        self._fill_indexes()
        self._update_widgets()
        self._read_index_info(note)

    def _read_index_info(self, note: str = "") -> None:
        """Asks what the index holds, to say it with the note."""
        self._index_read, self._thumbnail_folder = True, ""
        index = Recent.read().index
        if not index:
            return
        self._submit(
            self._index_jobs,
            tr("Reading the index"),
            lambda: AboutIndexRequest(index=connections.index_address(index)),
            lambda result: self._describe_index(result, note),
        )

    def _describe_index(self, index: AboutIndexResult, note: str) -> None:
        values = {"tiles": index.tiles, "rasters": index.rasters, "model": index.label}
        if index.rasters == 1:
            text = tr("{tiles:,} places of 1 raster · {model}.", **values)
        else:
            text = tr("{tiles:,} places of {rasters:,} rasters · {model}.", **values)
        incomplete = "" if index.complete else tr("It is incomplete; build it again to resume.")
        self._show_message(" ".join(filter(None, (text, note, incomplete, tr(index.warning)))))

    def _open_index(self) -> None:
        folder = str(Path(Recent.read().index).parent) if Recent.read().indexes else ""
        file, _ = QFileDialog.getOpenFileName(self, tr("Open index"), folder, f"{tr('GeoPackages')} (*.gpkg)")
        self.choose_index(file)

    def _remove_index(self) -> None:
        Recent.read().without_index(Recent.read().index).write()
        self._fill_indexes()
        self._clear_results()
        self._read_index_info()

    def _new_index(self) -> None:
        dialog = IndexDialog(self._canvas, self)
        if dialog.exec():
            self.build_index(dialog.request(), dialog.index())
        dialog.deleteLater()

    def build_index(self, request: IndexRequest, index: str) -> None:
        self._show_message(tr("Building the index…"))
        self._jobs.submit(tr("Building an index"), request, partial(self._built, index), self._show_message)

    def _built(self, index: str, result: IndexResult) -> None:
        self._clear_results()
        self.choose_index(index, " ".join(map(tr, (*result.failed, *result.hints))))

    # What to search for.

    def search(self) -> None:
        text, without = parse_query(self.prompt.text())
        query = self._query.with_text(text, without + split_texts(self.without.text()))
        if query.is_empty:
            self._show_message(tr("Enter a text, or choose a place on the map or a picture."))
        else:
            self._search(query)

    def search_at(self, point) -> None:
        """Searches for places like the one here, a point in the CRS of the map."""
        crs = self._canvas.mapSettings().destinationCrs()
        self._toggle_point_tool(False)
        self._search_by_example(Query(at=QgsReferencedPointXY(point, crs)))

    def search_like(self, picture: str) -> None:
        self._search_by_example(Query(images=(picture,)))

    def mark_relevant(self, good: bool) -> None:
        """Calls the selected result good or bad, and searches again."""
        hit = self.results.hit()
        if hit is not None:
            self._search(self._query.marked(hit.tile, good))

    def _search_by_example(self, query: Query) -> None:
        # Who points at a place means that place, not what was typed before; text that is typed now is mixed with it.
        self.prompt.clear()
        self.without.clear()
        self._search(query)

    def _reset(self) -> None:
        query = Query(self._query.text, self._query.without)
        if query.is_empty:
            self._clear_results()
        else:
            self._search(query)

    def _search_soon(self) -> None:
        if self._result is not None:
            self._search_timer.start(PAUSE_MS)

    def _search_or_cancel(self) -> None:
        if self._jobs.is_busy:
            self._jobs.cancel()
        else:
            self.search()

    def _search(self, query: Query) -> None:
        if self._submit(self._jobs, tr("Searching"), partial(self._request, query), partial(self._show_result, query)):
            self._query = query
            self._update_widgets()

    def _submit(self, jobs: LatestJobRunner, title: str, make: Callable[[], Request], on_result: OnResult) -> bool:
        """Makes a request and has the engine do it; says why if it cannot be made."""
        try:
            jobs.submit(title, make(), on_result, self._show_message)
        except ClippanError as error:
            self._show_message(tr(error.message))
            return False
        return True

    def _request(self, query: Query, heatmap: str = "") -> SearchRequest:
        index = Recent.read().index
        if not index:
            raise ClippanError("Build or open an index first, with the button next to “Index”.")
        crs = self._canvas.mapSettings().destinationCrs()
        options: dict[str, Any] = {"top": self.max_results.value(), "heatmap": heatmap}
        options["least"] = self.min_confidence.value() / 100
        scope = self.scope.currentData()
        if scope == VIEW:
            options["extent"] = bounds(self._canvas.extent())
        elif scope == LAYERS:
            options["rasters"] = self._selected_rasters()
        return query.request(connections.index_address(index), crs, device=Settings.read().preferred_device, **options)

    def _selected_rasters(self) -> tuple[str, ...]:
        layers = self._iface.layerTreeView().selectedLayersRecursive()
        rasters = [layer for layer in layers if isinstance(layer, QgsRasterLayer)]
        if not rasters:
            raise ClippanError("No raster is selected in the Layers panel; select one, or search everything.")
        return tuple(sources.data_source_or_service(layer) for layer in rasters)

    def _show_result(self, query: Query, result: SearchResult) -> None:
        self._result, self._result_query = result, query
        self.prompt.remember()
        self.results.show_hits(result.hits, query.like, query.unlike)
        self._highlighter.show(result)
        seconds = f"{result.seconds:.1f} s" if result.seconds >= 1 else f"{1000 * result.seconds:.0f} ms"
        values = {"count": len(result.hits), "tiles": result.tiles, "time": seconds}
        if len(result.hits) > 1:
            text = tr("{count} places found; {tiles:,} searched in {time}.", **values)
        elif result.hits:
            text = tr("1 place found; {tiles:,} searched in {time}.", **values)
        else:
            text = tr("Nothing was found.")
        self._show_message(" ".join([text, *map(tr, result.hints)]))
        self._update_widgets()
        self._load_thumbnails()

    def _clear_results(self) -> None:
        self._query, self._result = Query(), None
        self.results.clear()
        self._highlighter.clear()
        self._show_message("")
        self._update_widgets()

    # What was found.

    def _fly_to(self, hit: Hit) -> None:
        problem = self._highlighter.fly_to(hit, hits.crs(self._result))
        if problem:
            self._show_message(problem)

    def _load_thumbnails(self, done: int = 0) -> None:
        """Asks for the pictures of the results from this one on."""
        result = self._result
        tiles = tuple(hit.tile for hit in result.hits[done : done + THUMBNAIL_BATCH]) if result else ()
        if not tiles:
            return
        self._thumbnail_folder = self._thumbnail_folder or tempfile.mkdtemp(dir=self._folder)

        def show(pictures: ThumbnailsResult) -> None:
            if result is self._result:
                self.results.show_pictures(pictures.files)
                self._load_thumbnails(done + THUMBNAIL_BATCH)

        request = ThumbnailsRequest(
            index=connections.index_address(Recent.read().index), tiles=tiles, folder=self._thumbnail_folder
        )
        self._thumbnail_jobs.submit(tr("Pictures of the results"), request, show, lambda _: None)

    def _save_layer(self) -> None:
        layer = hits.layer(self._result, tr("Search: {query}", query=self._result_query.name))
        QgsProject.instance().addMapLayer(layer)
        self._highlighter.clear()  # the layer marks the places now
        self._show_message(
            tr("Added the layer “{layer}”. It is a temporary layer; export it to keep it.", layer=layer.name())
        )

    def _draw_heat_map(self) -> None:
        name = tr("Heat map: {query}", query=self._result_query.name)
        file = QgsProcessingUtils.generateTempFilename("heat_map.tif")
        make = partial(self._request, self._result_query, file)
        self._submit(self._jobs, tr("Drawing a heat map"), make, partial(self._add_heat_map, name))

    def _add_heat_map(self, name: str, result: SearchResult) -> None:
        layer = QgsRasterLayer(result.heatmap, name, "gdal")
        hits.style_heat(layer)
        QgsProject.instance().addMapLayer(layer)
        self._show_message(
            tr("Added the layer “{layer}”. It is in a temporary folder; export it to keep it.", layer=name)
        )

    # Examples.

    def _toggle_point_tool(self, on: bool) -> None:
        """Takes the next click on the map, or gives the map back to the tool before."""
        if on:
            self._former_tool = self._canvas.mapTool()
            self._canvas.setMapTool(self._tool)
            self._show_message(tr("Click a place on the map."))
        elif self._canvas.mapTool() is self._tool:
            self._canvas.unsetMapTool(self._tool)
            if self._former_tool is not None and not sip.isdeleted(self._former_tool):
                self._canvas.setMapTool(self._former_tool)

    def _choose_picture(self) -> None:
        file, _ = QFileDialog.getOpenFileName(
            self, tr("Example picture"), "", f"{tr('Pictures and rasters')} ({PICTURE_FILES});;{tr('All files')} (*)"
        )
        if file:
            self.search_like(file)

    def dragEnterEvent(self, event):
        if _dropped_file(event):
            event.acceptProposedAction()

    def dropEvent(self, event):
        event.acceptProposedAction()
        self.search_like(_dropped_file(event))

    # The end.

    def stop(self) -> None:
        """Cancels what runs and takes all away that is not the panel itself."""
        self._search_timer.stop()
        for jobs in (self._jobs, self._index_jobs, self._thumbnail_jobs):
            jobs.stop()
        self._toggle_point_tool(False)
        self._tool.deleteLater()
        shutil.rmtree(self._folder, ignore_errors=True)


def _dropped_file(event) -> str:
    """The one local file that is dragged; empty if there is none."""
    urls = event.mimeData().urls()
    return urls[0].toLocalFile() if len(urls) == 1 else ""
