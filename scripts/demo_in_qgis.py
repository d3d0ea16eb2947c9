"""The part of the demo that runs inside QGIS (``qgis --code``); see demo.py.

Does what an analyst does: opens a scene, zooms to a place, runs Pansharpen from the toolbox, looks at the result; then
opens another scene, types classes and gets a map of them; gets another map from a few places whose class is known;
indexes the scene, types what to look for in the search panel, and flies there.
"""

import json
import os
import time
import traceback
from pathlib import Path

import processing
from qgis.core import (
    QgsContrastEnhancement,
    QgsFillSymbol,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsMultiBandColorRenderer,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
)
from qgis.PyQt.QtCore import QRectF, QSize, Qt, QTimer
from qgis.PyQt.QtGui import QColor, QFont, QImage, QPainter
from qgis.PyQt.QtWidgets import QApplication, QDockWidget, QLineEdit, QTreeView
from qgis.utils import iface

FOLDER = Path(os.environ["CLIPPAN_DEMO"])
LEAVE_OPEN = os.environ["CLIPPAN_DEMO_OPEN"] == "1"

# Free of clouds: roads, houses and bare ground in the scene's south-east.
PLACE = QgsRectangle(466770, 3390760, 469470, 3392920)
PANEL = QSize(760, 608)
CAPTION, MARGIN = 46, 12
WORDS = ("beach", "river", "sea", "farmland", "houses")
CLASSES = "sea, water; beach, sand; forest, trees; farmland, cropland; grassland, meadow; buildings, village"
DIALOG = QSize(1040, 790)
RESULTS = QSize(250, 420)  # of the panel's list, as many as fit
PATIENCE = 120  # seconds for a search, with the start of the engine


def natural_colours(layer: QgsRasterLayer) -> None:
    """Red, green and blue (bands 4, 3, 2), stretched to what lies in PLACE; a few roofs may turn white."""
    provider = layer.dataProvider()
    renderer = QgsMultiBandColorRenderer(provider, 4, 3, 2)
    setters = (
        renderer.setRedContrastEnhancement,
        renderer.setGreenContrastEnhancement,
        renderer.setBlueContrastEnhancement,
    )
    for band, setter in zip((4, 3, 2), setters):
        low, high = provider.cumulativeCut(band, 0.005, 0.97, PLACE)
        stretch = QgsContrastEnhancement(provider.dataType(band))
        stretch.setContrastEnhancementAlgorithm(
            QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum
        )
        stretch.setMinimumValue(low)
        stretch.setMaximumValue(high)
        setter(stretch)
    layer.setRenderer(renderer)


def picture(layer: QgsRasterLayer) -> QImage:
    """The layer as the canvas shows it, at PLACE."""
    settings = QgsMapSettings(iface.mapCanvas().mapSettings())
    settings.setLayers([layer])
    settings.setOutputSize(PANEL)
    settings.setExtent(PLACE)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    return job.renderedImage()


def side_by_side(panels: list) -> QImage:
    """The pictures, of one size, in a row, each under its caption."""
    size = panels[0][1].size()
    width = len(panels) * (size.width() + MARGIN) + MARGIN
    image = QImage(width, size.height() + CAPTION + MARGIN, QImage.Format.Format_RGB32)
    image.fill(QColor("white"))
    painter = QPainter(image)
    painter.setFont(QFont("DejaVu Sans", 15))
    for number, (caption, panel) in enumerate(panels):
        left = MARGIN + number * (size.width() + MARGIN)
        area = QRectF(left, 0, size.width(), CAPTION)
        painter.drawText(area, int(Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft), caption)
        painter.drawImage(left, CAPTION, panel)
    painter.end()
    return image


def show_toolbox() -> None:
    """Opens the Processing toolbox at our algorithms."""
    dock = iface.mainWindow().findChild(QDockWidget, "ProcessingToolbox")
    dock.show()
    dock.raise_()
    iface.mainWindow().resizeDocks([dock], [380], Qt.Orientation.Horizontal)
    dock.findChild(QLineEdit).clear()
    tree = dock.findChild(QTreeView)
    tree.collapseAll()
    model = tree.model()
    for row in range(model.rowCount()):
        index = model.index(row, 0)
        if index.data() == "CLIPPan":
            tree.expandRecursively(index)
            tree.scrollTo(index, QTreeView.ScrollHint.PositionAtTop)


def draw() -> None:
    """Lets QGIS draw all that is outstanding."""
    canvas = iface.mapCanvas()
    canvas.refresh()
    canvas.waitWhileRendering()
    for _ in range(20):
        QApplication.processEvents()
    canvas.waitWhileRendering()
    QApplication.processEvents()


def show() -> dict:
    """Opens, sharpens, styles, saves."""
    files = json.loads((FOLDER / "scene.json").read_text(encoding="utf-8"))
    project = QgsProject.instance()
    before = iface.addRasterLayer(files["ms"], "Landsat 8, 30 m")
    project.setCrs(before.crs())
    natural_colours(before)
    canvas = iface.mapCanvas()
    canvas.setExtent(PLACE)
    parameters = {
        "SPECTRAL": [before],
        "PANCHROMATIC": files["pan"],
        "SENSOR": "landsat",
        "OUTPUT": str(FOLDER / "pansharpened.tif"),
    }
    results = processing.runAndLoadResults("clippan:pansharpen", parameters)
    after = project.mapLayersByName(next(name for name in names() if "harpened" in name))[0]
    iface.setActiveLayer(after)
    canvas.setExtent(PLACE)
    panels = [
        ("Before: Landsat 8, 30 m", picture(before)),
        ("After: pansharpened to 15 m", picture(after)),
    ]
    side_by_side(panels).save(str(FOLDER / "demo.png"))
    if not LEAVE_OPEN:
        iface.mainWindow().resize(1680, 1050)
        iface.mainWindow().move(0, 0)
        iface.mainWindow().findChild(QDockWidget, "Browser").hide()
        iface.messageBar().clearWidgets()
    show_toolbox()
    draw()
    canvas.setExtent(PLACE)
    draw()
    iface.mainWindow().grab().save(str(FOLDER / "qgis.png"))
    dialog("pansharpen", parameters)
    project.write(str(FOLDER / "clippan.qgz"))
    return {"layer": after.name(), "results": results}


def dialog(name: str, parameters: dict) -> None:
    """The dialog of an algorithm as the toolbox opens it, filled in."""
    shown = processing.createAlgorithmDialog(f"clippan:{name}", parameters)
    shown.resize(DIALOG)
    shown.show()
    for _ in range(20):
        QApplication.processEvents()
    shown.grab().save(str(FOLDER / f"{name}_dialog.png"))
    shown.close()


def search() -> dict:
    """Indexes that scene, searches it for each of the words, and flies to the best place."""
    scene = open_shore()
    index = str(FOLDER / "shore.gpkg")
    results = processing.run("clippan:buildtileindex", {"RASTERS": [scene], "OUTPUT": index})
    panel = iface.mainWindow().findChild(QDockWidget, "ClippanSearch")
    panel.show()
    panel.raise_()
    iface.mainWindow().resizeDocks([panel], [380], Qt.Orientation.Horizontal)
    panel.choose_index(index)
    lists = [(f"“{word}”", found(panel, word)) for word in reversed(WORDS)]
    side_by_side(lists[::-1]).save(str(FOLDER / "words.png"))
    panel.results.setCurrentRow(0)
    panel.results.chosen.emit(panel.results.hit())
    iface.mapCanvas().zoomByFactor(3)
    draw()
    iface.mainWindow().grab().save(str(FOLDER / "search.png"))
    return {"tiles": results["TILES"]}


def open_shore() -> QgsRasterLayer:
    """The other scene, in a new project."""
    files = json.loads((FOLDER / "scene.json").read_text(encoding="utf-8"))
    iface.newProject()
    scene = iface.addRasterLayer(files["shore"], "Sentinel-2, 10 m")
    QgsProject.instance().setCrs(scene.crs())
    for name in ("ProcessingToolbox", "ClippanSearch"):
        iface.mainWindow().findChild(QDockWidget, name).hide()
    return scene


def segment() -> dict:
    """Maps the classes of the other scene."""
    scene = open_shore()
    parameters = {
        "INPUT": scene,
        "CLASSES": CLASSES,
        "MIN_AREA": 30,
        "OUTPUT": str(FOLDER / "map.tif"),
        "POLYGONS": str(FOLDER / "map.gpkg"),
    }
    results = processing.runAndLoadResults("clippan:segmentbytext", parameters)
    project, canvas = QgsProject.instance(), iface.mapCanvas()
    for layer in project.mapLayers().values():
        if layer.type() == layer.type().VectorLayer:
            project.layerTreeRoot().findLayer(layer).setItemVisibilityChecked(False)
    iface.mainWindow().findChild(QDockWidget, "Layers").raise_()
    canvas.setExtent(scene.extent())
    draw()
    iface.mainWindow().grab().save(str(FOLDER / "map.png"))
    dialog("segmentbytext", parameters)
    return {"map": results["OUTPUT"]}


def classify() -> dict:
    """Maps the other scene from a few labelled places."""
    scene = open_shore()
    files = json.loads((FOLDER / "scene.json").read_text(encoding="utf-8"))
    rasters = [
        iface.addRasterLayer(files[name], f"Sentinel-2, {bands}")
        for name, bands in (("coarse", "6 bands of 20 m"), ("fine", "4 bands of 10 m"))
    ]
    parameters = {
        "RASTERS": rasters[::-1],
        "SAMPLES": files["labels"],
        "FIELD": "class",
        "METHOD": "svm-mean",
        "OUTPUT": str(FOLDER / "classes.tif"),
        "REPORT": str(FOLDER / "classes.html"),
    }
    results = processing.runAndLoadResults("clippan:classifyfewsamples", parameters)
    root, canvas = QgsProject.instance().layerTreeRoot(), iface.mapCanvas()
    for raster in rasters:
        root.findLayer(raster).setItemVisibilityChecked(False)
        root.findLayer(raster).setExpanded(False)
    root.findLayer(scene).setExpanded(False)
    layers = QgsProject.instance().mapLayers().values()
    root.findLayer(next(layer for layer in layers if layer.source() == results["OUTPUT"])).setExpanded(True)
    labels = iface.addVectorLayer(files["labels"], "labelled places", "ogr")
    outline = {"color": "transparent", "outline_color": "black", "outline_width": "1"}
    labels.renderer().setSymbol(QgsFillSymbol.createSimple(outline))
    iface.layerTreeView().refreshLayerSymbology(labels.id())
    canvas.setExtent(scene.extent())
    draw()
    iface.mainWindow().grab().save(str(FOLDER / "classes.png"))
    dialog("classifyfewsamples", parameters)
    return {"classes": results["OA"]}


def found(panel, word: str) -> QImage:
    """Types a word, waits for the results and their pictures, and returns the list as it is shown."""
    panel.results.clear()
    panel.prompt.setText(word)
    panel.search()
    deadline = time.monotonic() + PATIENCE
    shown = 0
    while time.monotonic() < deadline and not shown:
        QApplication.processEvents()
        rows = [panel.results.item(row) for row in range(panel.results.count())]
        shown = bool(rows) and all(row.data(Qt.ItemDataRole.DecorationRole) is not None for row in rows)
        time.sleep(0.02)
    if not shown:
        raise RuntimeError(f"no pictures for {word}: {panel.message.text()}")
    rendered = QImage(RESULTS, QImage.Format.Format_RGB32)
    rendered.fill(QColor("white"))
    size = panel.results.size()
    panel.results.resize(RESULTS)
    panel.results.render(rendered)
    panel.results.resize(size)
    return rendered


def names() -> list:
    """The layers' names, the newest last."""
    return [layer.name() for layer in QgsProject.instance().mapLayers().values()]


def main() -> None:
    """Runs the demo and leaves word of how it went."""
    try:
        answer = {**show(), **segment(), **classify(), **search()}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    part = FOLDER / "answer.json.part"
    part.write_text(json.dumps(answer, default=str), encoding="utf-8")
    part.replace(FOLDER / "answer.json")
    if not LEAVE_OPEN:
        QgsProject.instance().clear()  # or QGIS asks about unsaved changes, and layers in temporary folders
        QTimer.singleShot(0, iface.actionExit().trigger)


# QGIS runs this file before its window is there.
QTimer.singleShot(500, main)
