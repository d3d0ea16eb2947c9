"""Work that hears of nothing, and yet can be cancelled."""

from __future__ import annotations

import threading
from concurrent import futures
from typing import Callable, TypeVar

from clippan.core.context import Context

T = TypeVar("T")


def run_cancellable(work: Callable[[], T], context: Context) -> T:
    """Runs blocking work in a thread of its own and notices cancelling within 0.1 s; the thread then ends by itself and
    its result is dropped. Raises Cancelled, or what the work raises."""
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="watched", daemon=True).start()
    while not futures.wait([future], timeout=0.1).done:
        context.raise_if_cancelled()
    return future.result()
