"""Jobs of the engine in the background of QGIS."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional

from qgis.core import QgsApplication, QgsProcessingFeedback, QgsTask
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, pyqtSignal

from clippan.core.errors import ClippanError
from clippan.jobs import Request

from ..engine import worker
from ..settings import Settings


class Feedback(QgsProcessingFeedback):
    """Tells what the job says it is doing, too."""

    told = pyqtSignal(str)

    def setProgressText(self, text):
        """See QgsProcessingFeedback."""
        self.told.emit(text)


# QGIS keeps a task until it is over, but not its Python half: without this, Python's garbage collector takes the half
# of a task whose panel has been closed, and QGIS crashes at the end of the job.
_running: set[JobTask] = set()


class JobTask(QgsTask):
    """Runs a request in the engine; it is cancelled in the panel that shows its progress, or in the status bar.

    Attributes:
        launch: the engine.
        feedback: where the job reports to.
        answer: the job's result as JSON values, once it has succeeded; else empty.
        failure: what went wrong, in one sentence, once it has failed; else empty.
    """

    def __init__(self, description: str, launch: worker.Launch, request: Request, hidden: bool = False):
        flags = QgsTask.Flag.CanCancel | QgsTask.Flag.Silent
        super().__init__(description, flags | QgsTask.Flag.Hidden if hidden else flags)
        self.launch = launch
        self.feedback = Feedback(False)
        self.answer: dict[str, Any] = {}
        self.failure = ""
        self._request = request
        self.feedback.progressChanged.connect(self.setProgress)

    def start(self, owner: QObject, then: Callable[[], None]) -> None:
        """Starts; ``then`` is called in the main thread once the task is over, unless the owner is gone by then."""
        self._owner, self._then = owner, then
        _running.add(self)
        QgsApplication.taskManager().addTask(self)

    def cancel(self):
        """See QgsTask."""
        self.feedback.cancel()
        super().cancel()

    def run(self):
        """See QgsTask."""
        try:
            self.answer = worker.shared.run(self.launch, self._request, self.feedback)
        except ClippanError as error:
            self.failure = str(error)
            return False
        return True

    def finished(self, successful):
        """See QgsTask."""
        _running.discard(self)
        if not sip.isdeleted(self._owner):
            self._then()


Then = Callable[[dict[str, Any]], None]
Otherwise = Callable[[str], None]


class _Job(NamedTuple):
    title: str
    request: Request
    then: Then
    otherwise: Otherwise


class Jobs(QObject):
    """Runs a widget's jobs one at a time. Of those asked for meanwhile only the newest follows.

    A newer job with the same title makes the older one's answer stale: it is dropped. The older one still runs to
    its end, since a cancel may cost the warm engine.
    """

    changed = pyqtSignal()  # a job has started, or the last one has ended
    progressed = pyqtSignal(float)
    told = pyqtSignal(str)

    def __init__(self, parent: QObject, hidden: bool = False):
        super().__init__(parent)
        self._hidden = hidden  # from the status bar
        self._task: Optional[JobTask] = None
        self._next: Optional[_Job] = None

    @property
    def is_busy(self) -> bool:
        """Whether a job runs or waits."""
        return self._task is not None

    def ask(self, title: str, request: Request, then: Then, otherwise: Otherwise) -> None:
        """Does a job; calls one of the two, in the main thread, with its answer or with the reason in a sentence."""
        job = _Job(title, request, then, otherwise)
        if self._task is None:
            self._start(job)
        else:
            self._next = job

    def cancel(self) -> None:
        """Ends the job that runs; the one that waits never starts."""
        self._next = None
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Cancels, and tells nobody: the widget goes."""
        self.cancel()
        self._task = None

    def _start(self, job: _Job) -> None:
        try:
            job.request.validate()
            task = JobTask(job.title, worker.launch(Settings.read()), job.request, self._hidden)
        except ClippanError as error:
            job.otherwise(str(error))
            return
        self._task = task
        task.feedback.progressChanged.connect(self.progressed)
        task.feedback.told.connect(self.told)
        task.start(self, lambda: self._ended(task, job))
        self.changed.emit()

    def _ended(self, task: JobTask, job: _Job) -> None:
        if task is not self._task:
            return
        following, self._task, self._next = self._next, None, None
        if following is None or following.title != job.title:
            if task.answer:
                job.then(task.answer)
            else:
                job.otherwise("Cancelled." if task.feedback.isCanceled() else task.failure)
        if following is not None:
            self.ask(*following)
        if self._task is None:
            self.changed.emit()
