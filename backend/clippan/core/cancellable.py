"""Work that hears of nothing, and yet can be cancelled."""

from __future__ import annotations

import threading
from concurrent import futures
from typing import Callable, TypeVar

from clippan.core.context import Context

T = TypeVar("T")


def run_cancellable(work: Callable[[], T], context: Context) -> T:
    """Does work that may block, on the network or in a library, and notices within a tenth of a second that the user
    cancels. The work's thread is then left to itself: it ends when it is done or times out, and nobody sees what.

    Args:
        work: in a thread of its own.
        context: may cancel.

    Raises:
        Cancelled: the user wants no more of it; and what the work raises.
    """
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
