"""A job of the engine in the background of QGIS."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsProcessingFeedback, QgsTask

from clippan.errors import ClippanError
from clippan.jobs import Request

from ..engine import worker


class JobTask(QgsTask):
    """Runs a request in the engine.

    Attributes:
        launch: the engine.
        answer: the job's result as JSON values, once the task has completed.
        failure: what went wrong, in one sentence, once it has terminated.
    """

    def __init__(self, description: str, launch: worker.Launch, request: Request):
        super().__init__(description)
        self.launch = launch
        self.answer: dict[str, Any] = {}
        self.failure = ""
        self._request = request
        self._feedback = QgsProcessingFeedback()

    def cancel(self):
        """See QgsTask."""
        self._feedback.cancel()
        super().cancel()

    def run(self):
        """See QgsTask."""
        try:
            self.answer = worker.shared.run(self.launch, self._request, self._feedback)
        except ClippanError as error:
            self.failure = str(error)
            return False
        return True
