"""The prompt table as the dialogs show it."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest
from conftest import wait_for, write
from osgeo import gdal
from qgis.core import QgsProcessingContext, QgsProcessingModelAlgorithm
from qgis.gui import QgsMapCanvas
from qgis.PyQt import sip
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QComboBox, QFileDialog, QMessageBox, QVBoxLayout, QWidget

from clippan.catalogue.prompts import ClassPrompt, PromptTable, parse_prompts, preset_tables
from clippan_qgis.gui import prompt_table
from clippan_qgis.gui import wrapper as wrappers
from clippan_qgis.gui.choice import ChoiceWidget

CALIBRATED = PromptTable(
    (ClassPrompt("water", ("river",), ("smooth and dark", "blue, calm"), "#ff0000", 0.4, 1.5), ClassPrompt("forest")),
    logit_scale=33.0,
    model="starter",
    about="from Tuesday",
)


@pytest.fixture
def widget(qgis_app):
    table = prompt_table.PromptTableEditor()
    yield table
    table.deleteLater()


def cell(widget, row, column):
    return widget.rows.item(row, column)


def colours(widget):
    swatches = (widget.rows.cellWidget(row, 0) for row in range(widget.rows.rowCount()))
    return [swatch.color().name() for swatch in swatches]


@pytest.mark.parametrize(
    "text",
    [
        "water; forest, trees; building, roof",
        "solar panels",
        CALIBRATED.text(),
        '{"classes": [{"name": "water", "colour": "#123456"}]}',
    ],
)
def test_a_table_comes_back_as_it_came(widget, text):
    widget.set_value(text)
    assert not widget.as_text.isChecked()
    assert parse_prompts(widget.value()) == parse_prompts(text)
    widget.as_text.click()
    widget.as_text.click()
    assert parse_prompts(widget.value()) == parse_prompts(text)


def test_plain_text_stays_plain(widget):
    widget.set_value("water;forest ,trees")
    assert widget.value() == "water; forest, trees"


@pytest.mark.parametrize("name", list(preset_tables()))
def test_presets_are_plain_text_with_their_colours(widget, name):
    _, table = preset_tables()[name]
    action = [action for action in widget.presets.menu().actions() if action.text() == preset_tables()[name][0]]
    action[0].trigger()
    assert not widget.value().startswith("{")
    assert parse_prompts(widget.value()).with_colours() == table
    assert colours(widget) == [prompt.colour for prompt in table.classes]


def test_what_is_typed_is_in_the_value(widget):
    widget.set_value("water; forest")
    said = []
    widget.changed.connect(lambda: said.append(widget.value()))
    cell(widget, 1, 1).setText(" broad-leaved  forest ")
    cell(widget, 1, 2).setText("trees, , woods,trees")
    cell(widget, 1, 3).setText("dense, green; with shadows")
    cell(widget, 1, 4).setData(Qt.ItemDataRole.EditRole, 0.25)
    assert parse_prompts(widget.value()).classes[1] == ClassPrompt(
        "broad-leaved forest", ("trees", "woods"), ("dense, green", "with shadows"), threshold=0.25
    )
    assert said[-1] == widget.value()
    assert widget.note.text() == "2 classes."


def test_a_colour_follows_the_name_until_somebody_chooses_one(widget):
    widget.set_value("thing; other")
    known = {prompt.name: prompt.colour for prompt in preset_tables()["landcover"][1].classes}
    cell(widget, 0, 1).setText("water")
    assert colours(widget)[0] == known["water"]
    widget.rows.cellWidget(0, 0).setColor(QColor("#102030"))
    assert parse_prompts(widget.value()).classes[0].colour == "#102030"
    cell(widget, 0, 1).setText("forest")
    assert colours(widget)[0] == "#102030"
    assert parse_prompts(widget.value()).classes[1].colour == ""


def test_rows_come_go_and_move(widget):
    widget.set_value("a; b; c")
    widget.rows.setCurrentCell(0, 1)
    widget.add.click()
    assert widget.rows.currentRow() == 1
    assert widget.value() == "a; b; c"  # an empty row is no class yet
    cell(widget, 1, 1).setText("new")
    widget.down.click()
    assert (widget.value(), widget.rows.currentRow()) == ("a; b; new; c", 2)
    widget.up.click()
    widget.up.click()
    widget.up.click()  # at the top already
    assert widget.value() == "new; a; b; c"
    widget.remove.click()
    assert (widget.value(), widget.rows.currentRow()) == ("a; b; c", 0)
    widget.rows.selectAll()
    widget.remove.click()
    assert widget.value() == ""
    assert widget.note.text() == "Type a class, or choose a preset."


def test_what_a_calibration_found_stays_with_its_class(widget):
    widget.set_value(CALIBRATED.text())
    widget.rows.setCurrentCell(0, 1)
    widget.down.click()
    table = parse_prompts(widget.value())
    assert [(prompt.name, prompt.offset) for prompt in table.classes] == [("forest", 0.0), ("water", 1.5)]
    assert (table.logit_scale, table.model, table.about) == (33.0, "starter", "from Tuesday")
    assert widget.note.text().startswith("Calibrated for starter.")


def test_what_is_wrong_is_said_and_what_was_typed_stays(widget):
    widget.set_value("water; forest")
    cell(widget, 1, 1).setText("water")
    assert widget.note.text().startswith("Classes 1 and 2 are both named water;")
    assert [prompt["name"] for prompt in json.loads(widget.value())["classes"]] == ["water", "water"]
    cell(widget, 1, 1).setText("")
    cell(widget, 1, 2).setText("trees")
    assert widget.note.text() == "Class 2 has no name; give it one."
    widget.as_text.click()
    typed = widget.text.toPlainText()
    widget.text.setPlainText(typed.replace('""', '"forest'))
    sentence = widget.note.text()
    assert "is not valid JSON" in sentence
    widget.as_text.click()  # a table cannot show it
    assert widget.as_text.isChecked()
    assert widget.text.toPlainText() == typed.replace('""', '"forest')
    assert widget.note.text() == sentence


@pytest.mark.parametrize("text", ["water; water", "{", "classes of mine.json"])
def test_what_no_table_can_show_stays_text(widget, text):
    widget.set_value(text)
    assert widget.as_text.isChecked()
    assert widget.value() == text
    assert not widget.add.isEnabled()


def test_one_class_is_explained(widget):
    widget.set_value("solar panels")
    assert widget.note.text().startswith("With a single class,")


def test_a_preset_asks_before_it_replaces_what_was_typed(widget, monkeypatch):
    questions = []
    answer = QMessageBox.StandardButton.No
    monkeypatch.setattr(QMessageBox, "question", lambda *args: questions.append(args[2]) or answer)
    widget.set_value("water; forest")
    first, second = widget.presets.menu().actions()[:2]
    first.trigger()
    second.trigger()  # a preset that nobody has changed may go
    assert questions == []
    cell(widget, 0, 1).setText("huts")
    first.trigger()
    assert len(questions) == 1
    assert widget.value().startswith("huts, ")
    answer = QMessageBox.StandardButton.Yes
    first.trigger()
    assert parse_prompts(widget.value()).names == preset_tables()["landcover"][1].names


def test_tables_are_saved_and_opened(widget, monkeypatch, tmp_path):
    path = tmp_path / "my classes"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (f"{path}.json", ""))
    widget.set_value("water; forest, trees")
    widget.save.click()
    assert parse_prompts(f"{path}.json") == parse_prompts("water; forest, trees").with_colours()
    widget.set_value("")
    widget.open.click()
    assert widget.value() == "water; forest, trees"
    path.with_name("my classes.json").write_text("no table")
    widget.open.click()
    assert "is not valid JSON" in widget.note.text()
    assert widget.value() == "water; forest, trees"


def test_what_is_wrong_is_not_saved(widget, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: pytest.fail("asked where to save it"))
    widget.set_value("water; forest")
    cell(widget, 1, 1).setText("water")
    widget.save.click()
    assert "both named water" in widget.note.text()


def test_the_line_of_a_batch_opens_the_table(qgis_app, monkeypatch):
    line = prompt_table.PromptLine()
    line.set_value(CALIBRATED.text())
    assert parse_prompts(line.value()) == CALIBRATED
    line.set_value("water;\nforest")
    assert line.value() == "water; forest"

    def accept(dialog):
        dialog.table.rows.item(0, 1).setText("lake")
        return True

    monkeypatch.setattr(prompt_table.PromptDialog, "exec", accept)
    said = []
    line.changed.connect(lambda: said.append(line.value()))
    line.button.click()
    assert said[-1] == "lake; forest"
    line.deleteLater()


@pytest.fixture
def algorithm(plugin, qgis_app):
    return qgis_app.processingRegistry().providerById("clippan").algorithm("segmentbytext").create({})


@pytest.fixture
def dialog(plugin, fake, qgis_iface, qgis_new_project, monkeypatch):
    import processing
    from qgis.gui import QgsBrowserGuiModel

    fake("good")
    model = QgsBrowserGuiModel()
    monkeypatch.setattr(qgis_iface, "browserModel", lambda: model)
    dialog = processing.createAlgorithmDialog("clippan:segmentbytext")
    yield dialog
    dialog.close()
    dialog.deleteLater()


def test_the_dialog_starts_with_a_preset_and_takes_values(dialog):
    wrapper = dialog.mainWidget().wrappers["CLASSES"]
    assert parse_prompts(wrapper.parameterValue()).names == preset_tables()[prompt_table.DEFAULT_PRESET][1].names
    changes = []
    wrapper.widgetValueHasChanged.connect(changes.append)
    wrapper.setParameterValue("water; forest, trees", QgsProcessingContext())
    assert changes
    assert wrapper.parameterValue() == "water; forest, trees"
    dialog.setParameters({"CLASSES": CALIBRATED.text()})
    assert parse_prompts(wrapper.parameterValue()) == CALIBRATED


def test_a_batch_of_three_rasters(algorithm, dialog, tmp_path):
    from processing.gui.BatchAlgorithmDialog import BatchAlgorithmDialog

    batch = BatchAlgorithmDialog(algorithm, None)
    panel = batch.mainWidget()
    places = {name: column for column, name in panel.column_to_parameter_definition.items()}
    classes = ("water; forest", CALIBRATED.text(), "sea; beach; dunes")
    outputs = [tmp_path / f"map{number}.tif" for number in range(3)]
    for row, (text, output) in enumerate(zip(classes, outputs)):
        panel.addRow() if row else None
        wrapper = panel.wrappers[row][places["CLASSES"]]
        assert wrapper.parameterValue() in ("", classes[0])  # a new row may repeat the one above
        raster = write(tmp_path / f"scene{row}.tif", np.ones((3, 24, 24)), 10.0)
        panel.wrappers[row][places["INPUT"]].setParameterValue(raster, QgsProcessingContext())
        wrapper.setParameterValue(text, QgsProcessingContext())
        assert parse_prompts(wrapper.parameterValue()) == parse_prompts(text)
        panel.tblParameters.cellWidget(row + 1, places["OUTPUT"]).setValue(str(output))
    batch.runAlgorithm()
    wait_for(lambda: all(path.with_suffix(".qml").exists() for path in outputs))
    assert [gdal.Open(str(path)).ReadAsArray().max() for path in outputs] == [2, 2, 3]
    batch.close()


def test_the_model_designer_gets_the_widget_that_takes_model_inputs(algorithm, dialog):
    from processing.modeler.ModelerParametersDialog import ModelerParametersDialog
    from qgis.core import QgsProcessingModelChildParameterSource
    from qgis.gui import QgsProcessingModelerParameterWidget

    designer = ModelerParametersDialog(algorithm, QgsProcessingModelAlgorithm("m", "g"))
    widget = designer.widget.widget.wrappers["CLASSES"]
    assert isinstance(widget, QgsProcessingModelerParameterWidget)
    source = QgsProcessingModelChildParameterSource.fromStaticValue("water; forest")
    widget.setWidgetValue(source)
    assert widget.value().staticValue() == "water; forest"
    designer.close()


def test_what_python_forgets_stays_whole(algorithm, qgis_app):
    # QGIS keeps a closed dialog as a child of its window, and asks every child for its class when a project is opened.
    window = QWidget()
    layout = QVBoxLayout(window)
    wrapper = prompt_table.PromptsWidget(algorithm.parameterDefinition("CLASSES"), None)
    widget = wrapper.createWrappedWidget(QgsProcessingContext())
    layout.addWidget(widget)
    wrapper.setParameterValue("water; forest", QgsProcessingContext())
    other = ChoiceWidget(algorithm.parameterDefinition("MODEL"), None)
    layout.addWidget(other.createWrappedWidget(QgsProcessingContext()))
    del wrapper, widget, layout, other
    gc.collect()
    assert window.findChildren(QgsMapCanvas) == []
    assert {type(kept) for kept in wrappers._alive} == {QWidget, QComboBox}
    (table,) = window.findChildren(prompt_table.PromptTableEditor)
    assert parse_prompts(table.value()).names == ("water", "forest")
    sip.delete(window)
    assert not wrappers._alive
