"""The search panel, on an engine that answers at once."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import wait_for
from fake_index import asked, write_index
from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsDataSourceUri,
    QgsGeometry,
    QgsLocator,
    QgsPointXY,
    QgsProject,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsDockWidget, QgsMapToolPan, QgsRubberBand
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QEvent, QMimeData, QObject, QPointF, Qt, QUrl
from qgis.PyQt.QtGui import QDropEvent, QPalette
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QAction, QDialog, QToolBar

import clippan_qgis
from clippan.core.errors import ClippanError
from clippan_qgis import connections, paths
from clippan_qgis.engine import worker
from clippan_qgis.gui import index as index_module
from clippan_qgis.gui.highlighter import HitHighlighter
from clippan_qgis.gui.index import IndexDialog
from clippan_qgis.gui.results import BAD
from clippan_qgis.gui.search import SearchDock
from clippan_qgis.plugin import Plugin
from clippan_qgis.query import Query, parse_query
from clippan_qgis.settings import Recent, Settings

WEIGHTS = paths.RESOURCES / "starter-clip" / "open_clip_model.safetensors"
UTM = QgsCoordinateReferenceSystem("EPSG:32631")


@pytest.fixture
def project(qgis_new_project, qgis_canvas):
    project = QgsProject.instance()
    project.setCrs(UTM)
    qgis_canvas.setDestinationCrs(UTM)
    qgis_canvas.setExtent(QgsRectangle(0, 0, 1000, 1000))
    return project


@pytest.fixture
def log(tmp_path):
    return tmp_path / "jobs"


@pytest.fixture
def index(fake, scene, tmp_path, log):
    """An index, and an engine that searches it; neither is opened yet."""
    fake("good", JOBS=log)
    return write_index(tmp_path / "coast.gpkg", scene[1])


@pytest.fixture
def dock(project, qgis_iface, qgis_canvas, settings, qgis_app):
    highlighter = HitHighlighter(qgis_canvas)
    dock = SearchDock(qgis_iface, highlighter)
    yield dock
    dock.stop()
    highlighter.remove()
    sip.delete(dock)  # now, not after QGIS has ended


@pytest.fixture
def found(dock, index):
    """The panel with results."""
    dock.choose_index(index)
    search(dock, "beach")
    return dock


def idle(dock):
    wait_for(lambda: not any(jobs.is_busy for jobs in (dock._jobs, dock._index_jobs, dock._thumbnail_jobs)), seconds=60)


def search(dock, text):
    dock.prompt.setText(text)
    QTest.keyClick(dock.prompt, Qt.Key.Key_Return)
    wait_for(lambda: dock._jobs.is_busy)
    idle(dock)


def tiles(dock):
    return [dock.results.item(row).data(Qt.ItemDataRole.UserRole).tile for row in range(dock.results.count())]


def select(dock, row):
    dock.results.setCurrentRow(row)
    return dock.results.hit()


# Typing and results.


def test_text_is_taken_apart():
    assert parse_query("beach") == (("beach",), ())
    assert parse_query("harbour; marina without ships; cranes") == (("harbour", "marina"), ("ships", "cranes"))
    assert parse_query("high-rise  buildings -cars - trees") == (("high-rise buildings",), ("cars", "trees"))
    assert parse_query("Without ships") == ((), ("ships",))
    assert parse_query(" ; ") == ((), ())


def test_type_and_the_results_come_with_their_pictures(found, log):
    assert found.results.count() == 16
    first = found.results.item(0)
    assert first.text().startswith("1 beach, 95 %, pan.tif, 2021-06-30")
    assert "16 places" in found.message.text()
    assert not first.data(Qt.ItemDataRole.DecorationRole).isNull()
    assert [len(request["tiles"]) for request in asked(log, "thumbnails")] == [4, 4, 4, 4]
    request = asked(log, "search")[-1]
    assert request["text"] == ["beach"]
    assert (request["top"], request["least"], request["extent"], request["rasters"]) == (20, 0.0, [], [])


def test_choices_reach_the_engine(found, log):
    found.max_results.setValue(3)
    found.min_confidence.setValue(40)
    found.without.setText("ships; cranes")
    search(found, "harbour; marina -boats")
    request = asked(log, "search")[-1]
    assert (request["text"], request["without"]) == (["harbour", "marina"], ["boats", "ships", "cranes"])
    assert (request["top"], request["least"]) == (3, 0.4)
    assert found.results.count() == 3


def test_a_turned_wheel_searches_again_once(found, log):
    before = len(asked(log, "search"))
    for number in (5, 4, 3):
        found.max_results.setValue(number)
    wait_for(lambda: found.results.count() == 3)
    assert len(asked(log, "search")) == before + 1


def test_nothing_to_search_for_and_nothing_found(dock, index):
    dock.choose_index(index)
    idle(dock)
    dock.search()
    assert dock.message.text().startswith("Enter a text")
    search(dock, "nothing")
    assert dock.message.text() == "Nothing was found."
    assert not dock.save.isEnabled()


def test_the_scope_is_the_view_or_the_selected_layers(found, log, scene, qgis_canvas, qgis_iface):
    qgis_canvas.setExtent(QgsRectangle(500000, 4999900, 500100, 5000000))
    view = qgis_canvas.extent()
    found.scope.setCurrentIndex(1)
    search(found, "sea")
    request = asked(log, "search")[-1]
    assert request["extent"] == [view.xMinimum(), view.yMinimum(), view.xMaximum(), view.yMaximum()]
    assert request["crs"] == "EPSG:32631"
    found.scope.setCurrentIndex(2)
    found.search()
    assert "select one" in found.message.text()
    qgis_iface.layerTreeView().setCurrentLayer(QgsProject.instance().addMapLayer(QgsRasterLayer(scene[1], "pan")))
    search(found, "sand")
    request = asked(log, "search")[-1]
    assert (request["rasters"], request["extent"], request["crs"]) == ([scene[1]], [], "")


def test_history_and_suggestions_complete_what_is_typed(found):
    search(found, "a word of my own")
    assert Recent.read().prompts[:2] == ("a word of my own", "beach")
    completer = found.prompt.completer()
    completer.setCompletionPrefix("forest; my ow")
    assert completer.currentCompletion().endswith("a word of my own")
    completer.setCompletionPrefix("sandb")
    words = {completer.completionModel().index(row, 0).data() for row in range(completer.completionCount())}
    assert {"sandbank", "river mouth with sandbanks"} <= words
    found.prompt.setText("forest; sandb")
    assert completer.pathFromIndex(completer.currentIndex()).startswith("forest; ")


def test_cancel_ends_the_search_and_the_next_one_works(dock, index, log):
    dock.choose_index(index)
    idle(dock)
    dock.prompt.setText("slow")
    dock.button.click()
    wait_for(lambda: asked(log, "search"))
    assert dock.button.text() == "Cancel"
    assert not dock.progress.isHidden()
    dock.button.click()
    wait_for(lambda: not dock._jobs.is_busy, seconds=3)
    assert dock.message.text().startswith("Cancelled")
    assert dock.progress.isHidden()
    assert dock.button.text() == "Search"
    search(dock, "beach")
    assert dock.results.count() == 16


def test_only_the_newest_of_hasty_searches_is_shown(found, log):
    shown = []
    found.results.show_hits = lambda hits, *_: shown.append(hits[0].prompt)
    for text in ("sea", "sand", "port"):
        found.prompt.setText(text)
        found.search()
    idle(found)
    assert shown == ["port"]
    assert [request["text"] for request in asked(log, "search")] == [["beach"], ["sea"], ["port"]]


# Flying.


def test_a_click_flies_there_and_loads_the_raster_once(found, project, scene, qgis_canvas):
    project.addMapLayer(QgsVectorLayer("Point?crs=EPSG:32631", "points", "memory"))
    item = found.results.item(5)
    position = found.results.visualItemRect(item).center()
    QTest.mouseClick(found.results.viewport(), Qt.MouseButton.LeftButton, pos=position)
    hit = item.data(Qt.ItemDataRole.UserRole)
    bounds = QgsRectangle(*hit.bounds)
    assert qgis_canvas.extent().contains(bounds)
    assert qgis_canvas.extent().width() < 10 * bounds.width()
    assert found._highlighter._chosen_hit.asGeometry().isGeosEqual(QgsGeometry.fromRect(bounds))
    assert [layer.name() for layer in project.layerTreeRoot().layerOrder()] == ["points", "pan"]
    loaded = project.mapLayersByName("pan")[0]
    assert Path(loaded.source()) == Path(scene[1])
    project.removeMapLayer(loaded.id())
    found.results.chosen.emit(hit)
    assert not project.mapLayersByName("pan"), "the user has removed it"


def test_arrow_keys_and_enter_fly_too_in_another_crs(found, project, qgis_canvas):
    qgis_canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
    select(found, 0)
    QTest.keyClick(found.results, Qt.Key.Key_Down)
    before = qgis_canvas.extent()
    assert found.results.currentRow() == 1
    QTest.keyClick(found.results, Qt.Key.Key_Return)
    extent = qgis_canvas.extent()
    assert extent != before
    transform = QgsCoordinateTransform(UTM, QgsCoordinateReferenceSystem("EPSG:3857"), project)
    bounds = transform.transformBoundingBox(QgsRectangle(*found.results.hit().bounds))
    assert extent.contains(bounds)
    assert extent.width() < 10 * bounds.width()


def test_a_picture_without_coordinates_is_shown_in_pixels(dock, fake, tmp_path, qgis_canvas, project, log):
    fake("good", JOBS=log)
    picture = str(tmp_path / "photo.png")
    memory = gdal.GetDriverByName("MEM").Create("", 80, 40, 3)
    gdal.GetDriverByName("PNG").CreateCopy(picture, memory)
    dock.choose_index(write_index(tmp_path / "photos.gpkg", picture))
    search(dock, "beach")
    hit = select(dock, 6)
    assert hit.window == (40, 20, 20, 20)
    QTest.keyClick(dock.results, Qt.Key.Key_Return)
    layer = project.mapLayersByName("photo")[0]
    assert layer.extent() == QgsRectangle(0, -40, 80, 0)
    assert qgis_canvas.extent().contains(QgsRectangle(40, -40, 60, -20))
    assert qgis_canvas.extent().width() < 200
    dock._highlighter.fly_to(replace(hit, outline=(), bounds=()), UTM)  # among rasters with coordinates
    assert qgis_canvas.extent().contains(QgsRectangle(40, -40, 60, -20))


def test_a_raster_that_has_gone_is_said(found, scene):
    Path(scene[1]).unlink()
    found.results.chosen.emit(found.results.item(0).data(Qt.ItemDataRole.UserRole))
    assert "pan.tif is no longer at the path where it was indexed" in found.message.text()


# Good and bad answers, and examples.


def test_feedback_sorts_again(found, log):
    assert tiles(found) == list(range(1, 17))
    select(found, 6)
    QTest.keyClick(found.results, Qt.Key.Key_Plus)
    idle(found)
    request = asked(log, "search")[-1]
    assert (request["text"], request["like"], request["unlike"]) == (["beach"], [7], [])
    assert tiles(found)[:3] == [7, 1, 2]
    assert found.results.hit().tile == 7, "what was selected stays selected"
    select(found, 1)
    found.bad.click()
    idle(found)
    assert (asked(log, "search")[-1]["like"], asked(log, "search")[-1]["unlike"]) == ([7], [1])
    assert tiles(found)[0] == 7
    assert tiles(found)[-1] == 1
    assert found.examples.text() == "Like 1 result, unlike 1 result"
    assert found.results.item(15).data(Qt.ItemDataRole.UserRole + 1) == BAD
    found.reset.click()
    idle(found)
    assert (asked(log, "search")[-1]["like"], asked(log, "search")[-1]["unlike"]) == ([], [])
    assert tiles(found) == list(range(1, 17))
    assert found.examples_row.isHidden()
    select(found, 6)
    found.mark_relevant(True)
    search(found, "sea")
    assert asked(log, "search")[-1]["like"] == [], "a new text starts anew"


def test_hasty_feedback_is_not_lost(found, log):
    for row in (3, 5):
        select(found, row)
        found.mark_relevant(True)
    idle(found)
    assert asked(log, "search")[-1]["like"] == [4, 6]


def test_feedback_is_taken_back_and_forgotten_with_the_text():
    query = Query(("beach",)).marked(1, True).marked(2, False)
    assert (query.like, query.unlike) == ((1,), (2,))
    assert query.marked(1, True).like == ()
    assert query.marked(1, False) == Query(("beach",), unlike=(2, 1))
    assert query.with_text(("beach",), ()) == query
    assert query.with_text(("sea",), ()) == Query(("sea",))


def test_a_place_on_the_map_is_an_example(found, log, qgis_canvas):
    pan = QgsMapToolPan(qgis_canvas)
    qgis_canvas.setMapTool(pan)
    found.point.click()
    assert qgis_canvas.mapTool() is not pan
    found._tool.canvasClicked.emit(QgsPointXY(500010, 4999990), Qt.MouseButton.LeftButton)
    idle(found)
    request = asked(log, "search")[-1]
    assert (request["at"], request["crs"], request["text"]) == ([500010, 4999990], "EPSG:32631", [])
    assert qgis_canvas.mapTool() is pan
    assert not found.point.isChecked()
    assert found.examples.text() == "Like a place on the map"
    search(found, "sand")  # mixed, and in the map's CRS of now
    qgis_canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
    search(found, "sandbank")
    request = asked(log, "search")[-1]
    assert (request["text"], request["crs"]) == (["sandbank"], "EPSG:4326")
    assert request["at"] == pytest.approx([3.000126, 45.155], abs=0.01)


def test_another_map_tool_ends_the_pointing(found, qgis_canvas):
    found.point.click()
    pan = QgsMapToolPan(qgis_canvas)
    qgis_canvas.setMapTool(pan)
    assert not found.point.isChecked()
    assert qgis_canvas.mapTool() is pan


def test_a_dropped_picture_is_an_example(found, log, tmp_path):
    picture = tmp_path / "pier.png"
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(picture))])
    event = QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton,
                       Qt.KeyboardModifier.NoModifier)  # fmt: skip
    found.dropEvent(event)
    idle(found)
    assert asked(log, "search")[-1]["image"] == [str(picture)]
    assert found.examples.text() == "Like pier.png"
    assert found.prompt.text() == ""


# Layers.


def test_results_are_saved_as_a_styled_layer(found, project):
    found.save.click()
    (layer,) = project.mapLayersByName("Search: beach")
    assert layer.featureCount() == 16
    assert {"rank", "prompt", "score", "confidence", "raster"} <= set(layer.fields().names())
    assert layer.renderer().type() == "graduatedSymbol"
    assert layer.labelsEnabled()


def test_a_heat_map_is_added(found, project, log):
    found.heat_map.click()
    idle(found)
    (layer,) = project.mapLayersByName("Heat map: beach")
    assert layer.isValid()
    assert layer.renderer().type() == "singlebandpseudocolor"
    assert asked(log, "search")[-1]["text"] == ["beach"]
    assert asked(log, "search")[-1]["heatmap"] == layer.source()
    assert found.results.count() == 16


# Indexes.


def test_the_index_is_remembered_and_another_one_starts_anew(found, index, tmp_path, scene, qgis_iface, qgis_canvas):
    other = write_index(tmp_path / "mountains.gpkg", scene[0])
    found.choose_index(other)
    assert found.results.count() == 0
    assert Recent.read().indexes == (other, index)
    again = SearchDock(qgis_iface, found._highlighter)
    assert (again.index.currentText(), again.index.currentData()) == ("mountains", other)
    again.stop()
    sip.delete(again)
    found._remove_index()
    assert Recent.read() == replace(Recent.read(), index="", indexes=(index,))


def test_what_an_index_holds_is_said_once_it_is_seen(dock, index):
    dock.choose_index(index)
    idle(dock)
    assert dock.message.text() == "16 places of 1 raster · Starter CLIP."


def test_an_index_is_made_of_layers(dock, project, fake, log, scene, tmp_path, qgis_canvas):
    fake("good", JOBS=log)
    layer = QgsRasterLayer(scene[1], "pan")
    project.addMapLayer(layer)
    project.addMapLayer(QgsRasterLayer("type=xyz&url=http://127.0.0.1:9/{x}/{y}/{z}.png&crs=EPSG:3857", "web", "wms"))
    dialog = IndexDialog(qgis_canvas, dock)
    assert [item.name() for item in dialog.checked_layers()] == ["pan"], "a web map only if it is wanted"
    dialog.tile_size.setValue(640)
    dialog.output.setFilePath(str(tmp_path / "new"))
    dialog.accept()
    assert dialog.result() == QDialog.DialogCode.Accepted
    dock.build_index(dialog.request(), dialog.index())
    idle(dock)
    request = asked(log, "index")[-1]
    assert (request["rasters"], request["tile_metres"], request["extent"]) == ([layer.source()], [640.0], [])
    assert request["output"] == str(tmp_path / "new.gpkg")
    assert dock.index.currentText() == "new"
    search(dock, "beach")
    assert dock.results.count() == 16


def test_a_web_map_is_indexed_where_the_map_shows_it(project, settings, qgis_canvas):
    project.addMapLayer(QgsRasterLayer("type=xyz&url=http://127.0.0.1:9/{x}/{y}/{z}.png&crs=EPSG:3857", "web", "wms"))
    qgis_canvas.setExtent(QgsRectangle(500000, 4999900, 500100, 5000000))
    dialog = IndexDialog(qgis_canvas)
    assert dialog.checked_layers() == []
    dialog.layers.item(0).setCheckState(Qt.CheckState.Checked)
    assert "within the current map extent" in dialog.note.text()
    request, view = dialog.request(), qgis_canvas.extent()
    assert request.extent == (view.xMinimum(), view.yMinimum(), view.xMaximum(), view.yMaximum())
    assert request.crs == "EPSG:32631"
    assert "127.0.0.1" in Path(request.rasters[0]).read_text()


def test_making_an_index_can_be_cancelled(dock, project, fake, scene, log, tmp_path, qgis_canvas):
    fake("polite", JOBS=log)
    project.addMapLayer(QgsRasterLayer(scene[1], "pan"))
    dialog = IndexDialog(qgis_canvas, dock)
    dialog.output.setFilePath(str(tmp_path / "new.gpkg"))
    dock.build_index(dialog.request(), dialog.index())
    wait_for(lambda: dock.bar.value() == 10)
    assert dock.message.text() == "Working"
    dock.cancel.click()
    wait_for(lambda: not dock._jobs.is_busy, seconds=3)
    assert dock.message.text().startswith("Cancelled")
    assert Recent.read().index == ""


def test_the_dialog_says_what_is_missing(project, qgis_canvas, settings, tmp_path):
    dialog = IndexDialog(qgis_canvas)
    assert "no raster layers" in dialog.note.text()
    dialog.accept()
    assert dialog.note.text() == "No layer is checked; check at least one."
    assert dialog.result() != QDialog.DialogCode.Accepted


def test_indexes_lie_beside_the_project(project, settings, tmp_path):
    assert index_module.suggested_path() == settings.cache_folder / "indexes" / "index.gpkg"
    project.write(str(tmp_path / "bay.qgz"))
    assert index_module.suggested_path() == tmp_path / "bay index.gpkg"
    (tmp_path / "bay index.gpkg").touch()
    assert index_module.suggested_path() == tmp_path / "bay index 2.gpkg"


def test_catalogues_are_the_stored_connections(settings, qgis_canvas, dock):
    metadata = QgsProviderRegistry.instance().providerMetadata("postgres")
    uri = QgsDataSourceUri()
    uri.setConnection("db.example", "5433", "gis", "me", "p@ss w'ord", QgsDataSourceUri.SslMode.SslRequire)
    options = {"saveUsername": True, "savePassword": True}
    metadata.saveConnection(metadata.createConnection(uri.uri(), options), "Team")
    try:
        assert connections.catalogues()["catalogue:Team"] == "Team"
        address = connections.index_address("catalogue:Team")
        assert address == "postgresql://me:p%40ss%20w%27ord@db.example:5433/gis?sslmode=require"
        dock.choose_index("catalogue:Team")
        assert dock.index.currentText() == "Catalogue: Team"
        dialog = IndexDialog(qgis_canvas)
        dialog.storage.setCurrentIndex(dialog.storage.findData("catalogue:Team"))
        assert not dialog.output.isEnabled()
        assert dialog.index() == "catalogue:Team"
        assert "ss%20w" not in json.dumps(Recent.read().__dict__), "no password in the settings"
    finally:
        metadata.deleteConnection("Team")
    with pytest.raises(ClippanError, match="Team no longer exists"):
        connections.index_address("catalogue:Team")


def test_addresses_of_all_kinds_of_connections(qgis_app):
    uri = QgsDataSourceUri()
    uri.setConnection("/var/run/postgresql", "5432", "my db", "", "")
    uri.setSchema("search")
    assert connections.postgresql_url(uri) == (
        "postgresql:///my%20db?schema=search&host=%2Fvar%2Frun%2Fpostgresql&port=5432"
    )
    uri = QgsDataSourceUri()
    uri.setConnection("team", "gis", "", "")
    assert connections.postgresql_url(uri) == "postgresql:///gis?service=team"
    assert connections.index_address("/data/a.gpkg") == "/data/a.gpkg"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists(), reason="the starter CLIP's weights are not here")
def test_the_real_engine_answers_in_the_same_words(dock, engine, scene, tmp_path, project, qgis_canvas):
    project.addMapLayer(QgsRasterLayer(scene[1], "pan"))
    dialog = IndexDialog(qgis_canvas, dock)
    dialog.tile_size.setValue(64)
    dialog.output.setFilePath(str(tmp_path / "real.gpkg"))
    dock.build_index(dialog.request(), dialog.index())
    wait_for(lambda: not dock._jobs.is_busy, seconds=120)
    idle(dock)
    assert dock.index.currentText() == "real", dock.message.text()
    search(dock, "beach")
    count = dock.results.count()
    assert count > 1, dock.message.text()
    assert all(not dock.results.item(row).data(Qt.ItemDataRole.DecorationRole).isNull() for row in range(count))
    hit = select(dock, 1)
    QTest.keyClick(dock.results, Qt.Key.Key_Return)
    assert qgis_canvas.extent().contains(QgsRectangle(*hit.bounds))
    dock.mark_relevant(False)
    idle(dock)
    assert hit.tile not in tiles(dock)[:1]
    dock.save.click()
    assert project.mapLayersByName("Search: beach")[0].featureCount() == dock.results.count()
    dock.heat_map.click()
    idle(dock)
    assert project.mapLayersByName("Heat map: beach")[0].isValid(), dock.message.text()
    dock.search_at(QgsPointXY(500064, 4999936))
    idle(dock)
    assert dock.results.count() > 0, dock.message.text()


# Without an engine, narrow, dark, by keyboard.


def test_without_an_engine_the_panel_says_how_to_get_one(dock, scene, tmp_path):
    dock.choose_index(write_index(tmp_path / "a.gpkg", scene[1]))
    assert "Set up engine" in dock.message.text()
    dock.prompt.setText("beach")
    dock.search()
    assert "Set up engine" in dock.message.text()
    assert dock.button.text() == "Search"


def test_without_an_index_it_says_how_to_make_one(dock, fake):
    fake("good")
    dock.prompt.setText("beach")
    dock.search()
    assert dock.message.text().startswith("Build or open an index first")


def test_an_engine_that_fails_is_one_sentence(dock, fake, scene, tmp_path):
    fake("fails")
    dock.choose_index(write_index(tmp_path / "a.gpkg", scene[1]))
    search(dock, "beach")
    assert dock.message.text().startswith("The engine failed unexpectedly")
    assert "Traceback" not in dock.message.text()
    assert not dock.save.isEnabled()


def test_it_fits_a_narrow_place(found):
    found.message.setText("A long sentence with many words. " * 5)
    found._query = replace(found._query, images=("a-picture-with-a-long-name.png",), like=(1, 2))
    found._update_widgets()
    assert found.widget().minimumSizeHint().width() <= 320


def test_the_prompt_has_the_keys_and_the_tab_key_goes_round(found, qgis_parent):
    found.show()
    found.activateWindow()
    wait_for(lambda: found.prompt.hasFocus())
    seen = []
    for _ in range(40):
        widget = found.focusWidget()
        if widget in seen:
            break
        seen.append(widget)
        QTest.keyClick(widget, Qt.Key.Key_Tab)
    wanted = [
        found.prompt,
        found.button,
        found.without,
        found.scope,
        found.max_results,
        found.min_confidence,
        found.point,
    ]
    wanted += [found.picture, found.results, found.save, found.heat_map, found.index, found.index_menu_button]
    assert [widget for widget in seen if widget in wanted] == wanted
    found.hide()


def test_an_arrow_leads_from_the_prompt_to_the_results(found):
    found.show()
    found.activateWindow()
    wait_for(lambda: found.prompt.hasFocus())
    QTest.keyClick(found.prompt, Qt.Key.Key_Down)
    assert found.results.hasFocus()
    assert found.results.currentRow() == 0
    found.hide()


def test_rows_are_legible_in_a_dark_theme(found):
    palette = found.results.palette()
    palette.setColor(QPalette.ColorRole.Base, Qt.GlobalColor.black)
    palette.setColor(QPalette.ColorRole.Text, Qt.GlobalColor.white)
    found.results.setPalette(palette)
    found.results.resize(300, 300)
    image = found.results.grab().toImage()
    rows = [[image.pixelColor(x, y).lightness() for x in range(75, 290)] for y in range(8, 30)]
    assert max(map(max, rows)) > 200
    assert min(map(min, rows)) < 40


# The plugin as a whole.


class Window:
    """What the plugin uses of QGIS, with a real window, toolbar, menu and locator."""

    def __init__(self, iface, window):
        self._iface, self._window = iface, window
        self.bar = QToolBar(window)
        self.locator = QgsLocator(window)

    def __getattr__(self, name):
        return getattr(self._iface, name)

    def mainWindow(self):
        return self._window

    def addDockWidget(self, area, dock):
        self._window.addDockWidget(area, dock)

    def removeDockWidget(self, dock):
        self._window.removeDockWidget(dock)

    def addToolBarIcon(self, action):
        self.bar.addAction(action)

    def removeToolBarIcon(self, action):
        self.bar.removeAction(action)

    def addPluginToMenu(self, name, action):
        self._window.menuBar().addAction(action)

    def removePluginMenu(self, name, action):
        self._window.menuBar().removeAction(action)

    def registerLocatorFilter(self, item):
        self.locator.registerFilter(item)

    def deregisterLocatorFilter(self, item):
        self.locator.deregisterFilter(item)


def left(window, canvas):
    """All that a plugin can leave behind."""
    QgsApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    QgsApplication.processEvents()
    main = window.mainWindow()
    return {
        "docks": sorted(dock.objectName() for dock in main.findChildren(QgsDockWidget)),
        "actions": sorted(action.text() for action in main.findChildren(QAction)),
        "children": len(main.findChildren(QObject)),
        "toolbar": len(window.bar.actions()),
        "menu": len(main.menuBar().actions()),
        "bands": len([item for item in canvas.scene().items() if isinstance(item, QgsRubberBand)]),
        "filters": len(window.locator.filters()),
        "tool": canvas.mapTool(),
    }


def leaves_nothing(found: dict, before: dict) -> bool:
    """Whether nothing is there that was not before; what other tests left may have gone in the meantime."""
    return found.pop("children") <= before["children"] and found == {
        name: value for name, value in before.items() if name != "children"
    }


def test_unload_leaves_nothing_behind(project, index, log, qgis_iface, qgis_canvas, qgis_parent, monkeypatch):
    monkeypatch.setattr(Plugin, "initProcessing", lambda self: None)  # of other tests: there can be but one provider
    window = Window(qgis_iface, qgis_iface.mainWindow())
    before = left(window, qgis_canvas)
    Recent().with_index(index, True).write()
    plugin = clippan_qgis.classFactory(window)
    plugin.initGui()
    dock = plugin._dock
    after = left(window, qgis_canvas)
    assert after["docks"] == [*before["docks"], "ClippanSearch"]
    assert after["toolbar"] == after["filters"] == 1
    assert after["bands"] == before["bands"] + 2
    search(dock, "beach")
    dock.results.chosen.emit(dock.results.item(0).data(Qt.ItemDataRole.UserRole))
    dock.point.click()
    pictures = Path(dock._folder)
    assert list(pictures.rglob("*.png"))
    dock.prompt.setText("slow")
    dock.search()
    wait_for(lambda: asked(log, "search")[-1]["text"] == ["slow"])
    feedback = dock._jobs._task.feedback
    plugin.unload()
    assert feedback.isCanceled()
    gc.collect()  # must not take the task that is still being cancelled
    assert leaves_nothing(left(window, qgis_canvas), before)
    assert sip.isdeleted(dock)
    assert not pictures.exists()
    assert worker.shared_worker._process is None
    wait_for(lambda: not QgsApplication.taskManager().countActiveTasks())
    plugin.initGui()  # and it can come back
    plugin.unload()
    assert leaves_nothing(left(window, qgis_canvas), before)
    sip.delete(window.locator)
    sip.delete(window.bar)


def test_settings_of_the_options_page_do_not_touch_what_is_remembered(settings):
    Recent("a.gpkg", ("a.gpkg",), ("beach",)).write()
    replace(Settings.read(), device="cpu").write()
    assert Recent.read() == Recent("a.gpkg", ("a.gpkg",), ("beach",))
    assert Recent.read().with_prompt("beach").prompts == ("beach",)
