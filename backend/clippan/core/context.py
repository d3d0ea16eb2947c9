"""Where a running job reports to, and learns that it was cancelled."""

from __future__ import annotations

from typing import Callable, Optional

from clippan.core.errors import Cancelled


class Context:
    """Callables of the one who waits for the job: ``progress`` takes a percentage (0 to 100) and a short message,
    ``log`` a line of text, ``cancelled`` returns True once the user wants the job to stop."""

    def __init__(
        self,
        progress: Optional[Callable[[float, str], None]] = None,
        log: Optional[Callable[[str], None]] = None,
        cancelled: Optional[Callable[[], bool]] = None,
    ) -> None:
        self._progress = progress
        self._log = log
        self._cancelled = cancelled

    def progress(self, percent: float, message: str = "") -> None:
        """Reports progress in percent; raises Cancelled if the user has cancelled."""
        self.raise_if_cancelled()
        if self._progress:
            self._progress(percent, message)

    def log(self, line: str) -> None:
        if self._log:
            self._log(line)

    def is_cancelled(self) -> bool:
        return bool(self._cancelled and self._cancelled())

    def raise_if_cancelled(self) -> None:
        if self.is_cancelled():
            raise Cancelled

    @property
    def cancellation_only(self) -> Context:
        """A context that only cancels, for work in several threads."""
        return Context(cancelled=self.is_cancelled)

    def subrange(self, start: float, end: float) -> Context:
        """A context whose 0 to 100 percent are this one's ``start`` to ``end``."""
        return Context(
            lambda percent, message: self.progress(start + (end - start) * percent / 100, message),
            self.log,
            self.is_cancelled,
        )
