"""Search from QGIS's locator bar: “find river mouth”."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Optional

from qgis.core import QgsCoordinateReferenceSystem, QgsLocatorFilter, QgsLocatorResult
from qgis.PyQt.QtGui import QIcon

from clippan.core.errors import ClippanError
from clippan.jobs import SearchRequest, SearchResult

from .. import connections, hits, paths
from ..engine import worker
from ..i18n import tr
from ..query import Query, parse_query
from ..settings import Recent, Settings
from .highlighter import HitHighlighter
from .results import confidence_percent, raster_name

MIN_LETTERS, MAX_HITS = 3, 8
DELAY_MS = 600  # which spare the engine half-typed words
POLL_SECONDS = 0.05
CANCEL_GRACE_SECONDS = 15.0  # in which an engine is started and has its model


class Locator(QgsLocatorFilter):
    """Finds places in the index that the panel searches; choosing one flies there."""

    def __init__(self, highlighter: HitHighlighter):
        super().__init__()
        self._highlighter = highlighter
        self._launch: Optional[worker.Launch] = None
        self._request: Optional[SearchRequest] = None
        self._failure = ""
        self.setUseWithoutPrefix(False)
        self.setFetchResultsDelay(DELAY_MS)

    def clone(self):
        return Locator(self._highlighter)

    def name(self):
        return "clippan"

    def displayName(self):
        return tr("Places in rasters (CLIPPan)")

    def prefix(self):
        return "find"

    def prepare(self, string, context):
        """Makes the request, in the main thread: settings and passwords are read here."""
        self._request, self._failure = None, ""
        text, without = parse_query(string)
        # Whoever makes the filter answer without its prefix would start the engine with every word.
        if not context.usingPrefix or sum(map(len, text)) < MIN_LETTERS:
            return []
        try:
            index = Recent.read().index
            if not index:
                raise ClippanError("No index is chosen; choose one in the CLIPPan search panel.")
            query = Query(text, without)
            self._request = query.request(
                connections.index_address(index), QgsCoordinateReferenceSystem(), top=MAX_HITS
            )
            self._request.validate()
            self._launch = worker.launch_for(Settings.read())
        except ClippanError as error:
            self._request, self._failure = None, tr(error.message)
        return []

    def fetchResults(self, string, context, feedback):
        """Searches; not in the main thread."""
        if self._request is not None:
            search = _Search(self._launch, self._request)
            search.start()
            while search.is_alive() and not feedback.isCanceled():
                search.join(POLL_SECONDS)
            if feedback.isCanceled():
                search.cancel()
                return
            self._failure = search.failure
            for hit in search.result.hits if search.result else ():  # by number first: QGIS sorts them by name
                title = f"{hit.rank}  {hit.prompt}, {confidence_percent(hit)}"
                self._emit_result(title, raster_name(hit), 1 / hit.rank, (hit, search.result))
        if self._failure:
            self._emit_result("CLIPPan", self._failure, 0.0)

    def triggerResult(self, result):
        if result.userData:
            hit, found = result.userData
            self._highlighter.fly_to(hit, hits.crs(found))

    def _emit_result(self, title: str, description: str, score: float, found: Any = None) -> None:
        result = QgsLocatorResult(self, title, found)
        result.description = description
        result.score = score
        result.icon = QIcon(str(paths.RESOURCES / "search.svg"))
        with contextlib.suppress(RuntimeError):  # the locator bar was closed meanwhile
            self.resultFetched.emit(result)


_searches: set[_Search] = set()  # that run or wait for their turn


def stop() -> None:
    """Cancels all searches, also those that nobody waits for: the plugin goes."""
    for search in list(_searches):
        search.cancel(at_once=True)


class _Search(threading.Thread):
    """A search that nobody waits for once another word is typed.

    It is then cancelled only if it takes long: a cancel can end the engine while it starts, and the next word would
    find it cold again.
    """

    def __init__(self, launch: worker.Launch, request: SearchRequest):
        super().__init__(name="clippan-locator", daemon=True)
        self.result: Optional[SearchResult] = None
        self.failure = ""
        self._launch = launch
        self._request = request
        self._cancelled = False
        self._cancel_deadline = time.monotonic() + CANCEL_GRACE_SECONDS

    def run(self):
        _searches.add(self)
        try:
            self.result = worker.shared_worker.run(self._launch, self._request, self)
        except ClippanError as error:
            self.failure = tr(error.message)
        _searches.discard(self)

    def cancel(self, at_once: bool = False) -> None:
        self._cancelled = True
        if at_once:
            self._cancel_deadline = 0.0

    # What follows makes it the job's feedback.

    def isCanceled(self):
        return self._cancelled and time.monotonic() > self._cancel_deadline

    def setProgress(self, percent):
        """Nothing: the locator bar has no place for it."""

    setProgressText = pushInfo = pushDebugInfo = setProgress
