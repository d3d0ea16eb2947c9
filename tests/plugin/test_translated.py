"""Nothing that the plugin shows stays English: tried with a language in which each text stands in angle quotes."""

from __future__ import annotations

import pytest
from conftest import write
from qgis.core import QgsProcessingParameterEnum, QgsProject, QgsRasterLayer
from qgis.gui import QgsAuthConfigSelect, QgsFileWidget
from qgis.PyQt.QtWidgets import (
    QAbstractButton,
    QAction,
    QComboBox,
    QDialogButtonBox,
    QGroupBox,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QTableWidget,
    QTreeWidget,
    QWidget,
)

from clippan.catalogue.models import MODELS
from clippan.catalogue.prompts import preset_tables
from clippan.catalogue.sensors import SENSORS
from clippan_qgis import i18n
from clippan_qgis.algorithms import ALGORITHMS
from clippan_qgis.gui.highlighter import HitHighlighter
from clippan_qgis.gui.index import IndexDialog
from clippan_qgis.gui.options import OptionsPage
from clippan_qgis.gui.prompt_table import PromptDialog
from clippan_qgis.gui.search import SearchDock

# Names and data, which are the same in every language.
FOREIGN = (QgsAuthConfigSelect, QgsFileWidget, QDialogButtonBox)  # widgets that QGIS and Qt translate
NAMES = {
    *(model.label for model in MODELS.values()),
    *(model.licence for model in MODELS.values()),
    *(sensor.label for sensor in SENSORS.values()),
    *("https://huggingface.co", "water; forest, trees; building, roof"),
}


@pytest.fixture(autouse=True)
def quoted(monkeypatch):
    """The language."""
    monkeypatch.setattr(i18n, "_translator", lambda: lambda text: f"«{text}»")


def english(texts):
    """Those that were not translated."""
    named = {text for text in texts if any(name and name in text for name in NAMES)}
    return {text for text in texts if any(map(str.isalpha, text)) and "«" not in text} - named


def shown(widget):
    """The texts of a widget and of all in it."""
    foreign = {child for kind in FOREIGN for item in widget.findChildren(kind) for child in item.findChildren(QWidget)}
    for item in {widget, *widget.findChildren(QWidget)} - foreign:
        yield from (item.toolTip(), item.windowTitle(), item.accessibleName())
        if isinstance(item, (QLabel, QAbstractButton)):
            yield item.text()
        if isinstance(item, QGroupBox):
            yield item.title()
        if isinstance(item, (QLineEdit, QPlainTextEdit, QComboBox)):
            yield item.placeholderText()
        if isinstance(item, QComboBox):
            yield from map(item.itemText, range(item.count()))
        if isinstance(item, QTreeWidget):
            yield from map(item.headerItem().text, range(item.columnCount()))
        if isinstance(item, QTableWidget):
            for column in range(item.columnCount()):
                yield from (item.horizontalHeaderItem(column).text(), item.horizontalHeaderItem(column).toolTip())
    yield from (action.text() for action in widget.findChildren(QAction))


@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.NAME)
def test_an_algorithm(kind, qgis_processing):
    algorithm = kind().create({})
    texts = [algorithm.displayName(), algorithm.group(), algorithm.shortHelpString()]
    for item in algorithm.parameterDefinitions():
        texts += [item.description(), item.help()]
        if isinstance(item, QgsProcessingParameterEnum):
            texts += item.metadata()["clippan_labels"].values()
    texts += [item.description() for item in algorithm.outputDefinitions()]
    assert len(texts) > 3
    assert english(texts) == set()


def test_the_widgets(qgis_iface, qgis_canvas, qgis_parent, qgis_new_project, settings, tmp_path):
    import numpy as np

    raster = QgsRasterLayer(write(tmp_path / "town.tif", np.ones((1, 8, 8)), 10.0), "«town»")
    QgsProject.instance().addMapLayer(raster)
    highlighter = HitHighlighter(qgis_canvas)
    dock = SearchDock(qgis_iface, highlighter)
    dialog = PromptDialog(next(iter(preset_tables().values()))[1].text(), qgis_parent)
    widgets = (dock, OptionsPage(qgis_parent), IndexDialog(qgis_canvas, qgis_parent), dialog)
    found = {type(widget).__name__: english(shown(widget)) for widget in widgets}
    dock.stop()
    highlighter.remove()
    for widget in widgets:
        widget.deleteLater()
    assert found == {name: set() for name in found}
