"""The line for what to look for."""

from __future__ import annotations

import json

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QCompleter, QLineEdit

from .. import paths
from ..settings import Recent


class QueryLine(QLineEdit):
    """Completes what was looked for before, and what land cover there is to look for."""

    def __init__(self):
        super().__init__()
        self.setClearButtonEnabled(True)
        self.setAcceptDrops(False)  # a picture that is dropped is an example, its name no text
        self.setCompleter(_Completer(suggestions(), self))

    def remember(self) -> None:
        text = self.text().strip()
        if text:
            Recent.read().with_prompt(text).write()
            self.completer().model().setStringList(suggestions())


class _Completer(QCompleter):
    def __init__(self, texts: list[str], parent):
        super().__init__(texts, parent)
        self.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        self.setFilterMode(Qt.MatchFlag.MatchContains)

    def splitPath(self, path):
        return [path.rpartition(";")[2].strip()]

    def pathFromIndex(self, index):
        before = self.widget().text().rpartition(";")[0]
        return f"{before}; {index.data()}" if before else index.data()


def suggestions() -> list[str]:
    """What was looked for before, then what can be looked for."""
    texts = json.loads((paths.RESOURCES / "prompts.json").read_text(encoding="utf-8"))["suggestions"]
    return list(dict.fromkeys([*Recent.read().prompts, *texts]))
