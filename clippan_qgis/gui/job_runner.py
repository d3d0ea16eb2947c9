"""Jobs of the engine in the background of QGIS."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional

from qgis.core import QgsApplication, QgsProcessingFeedback, QgsTask
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QObject, pyqtSignal

from clippan.core.errors import ClippanError
from clippan.jobs import Request

from ..engine import worker
from ..i18n import tr
from ..settings import Settings

# Both are called in the main thread: with the typed result of the job, or with the reason in a sentence.
OnResult = Callable[[Any], None]
OnFailure = Callable[[str], None]


class _Feedback(QgsProcessingFeedback):
    """Passes on what the job says that it is doing, too."""

    text_changed = pyqtSignal(str)

    def setProgressText(self, text):
        self.text_changed.emit(text)


class _Job(NamedTuple):
    title: str
    request: Request
    on_result: OnResult
    on_failure: OnFailure


# QGIS keeps a task until it is over, but not its Python half: without this, Python's garbage collector takes the half
# of a task whose panel has been closed, and QGIS crashes at the end of the job.
_unfinished: set[_Task] = set()


class _Task(QgsTask):
    """Runs a request in the engine; it is cancelled in the panel that shows its progress, or in the status bar."""

    def __init__(self, job: _Job, launch: worker.Launch, runner: LatestJobRunner):
        flags = QgsTask.Flag.CanCancel | QgsTask.Flag.Silent
        super().__init__(job.title, flags | QgsTask.Flag.Hidden if runner.hidden else flags)
        self.job = job
        self.feedback = _Feedback(False)
        self.result: Optional[Any] = None
        self.failure = ""
        self._launch = launch
        self._runner = runner
        self.feedback.progressChanged.connect(self.setProgress)

    def cancel(self):
        self.feedback.cancel()
        super().cancel()

    def run(self):
        try:
            self.result = worker.shared_worker.run(self._launch, self.job.request, self.feedback)
        except ClippanError as error:
            self.failure = tr(error.message)
            return False
        return True

    def finished(self, successful):
        _unfinished.discard(self)
        if not sip.isdeleted(self._runner):
            self._runner.end(self)


class LatestJobRunner(QObject):
    """Runs a widget's jobs one at a time. Of those asked for meanwhile only the newest follows.

    A newer job with the same title makes the result of the older one stale: it is dropped. The older one still runs to
    its end, since a cancel may cost the warm engine.

    Args:
        hidden: whether the jobs are kept out of the status bar.
        settings: gives the settings under which the engine is started.
    """

    changed = pyqtSignal()  # a job has started, or the last one has ended
    progressed = pyqtSignal(float)
    text_changed = pyqtSignal(str)

    def __init__(self, parent: QObject, hidden: bool = False, settings: Callable[[], Settings] = Settings.read):
        super().__init__(parent)
        self.hidden = hidden
        self._settings = settings
        self._task: Optional[_Task] = None
        self._next: Optional[_Job] = None

    @property
    def is_busy(self) -> bool:
        return self._task is not None

    def submit(self, title: str, request: Request, on_result: OnResult, on_failure: OnFailure) -> None:
        """Does a job, now or after the one that runs; calls one of the two at its end."""
        job = _Job(title, request, on_result, on_failure)
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
            task = _Task(job, worker.launch_for(self._settings()), self)
        except ClippanError as error:
            job.on_failure(tr(error.message))
            return
        self._task = task
        self.progressed.emit(0)
        task.feedback.progressChanged.connect(self.progressed)
        task.feedback.text_changed.connect(self.text_changed)
        _unfinished.add(task)
        QgsApplication.taskManager().addTask(task)
        self.changed.emit()

    def end(self, task: _Task) -> None:
        """Takes the result of a task that is over, in the main thread, and starts the job that waits."""
        if task is not self._task:
            return
        job = task.job
        following, self._task, self._next = self._next, None, None
        if following is None or following.title != job.title:
            if task.result is not None:
                job.on_result(task.result)
            else:
                job.on_failure(tr("Cancelled.") if task.feedback.isCanceled() else task.failure)
        if following is not None:
            self.submit(*following)
        if self._task is None:
            self.changed.emit()
