"""The warm worker: jobs in, results out, as JSON-RPC 2.0 messages, one a line, over stdin and stdout.

Methods: ``handshake`` (params ``protocol``, ``language``), ``run`` (params ``job``, ``request``) and the notification
``cancel`` (params ``id``, that of the run). While a job runs the worker sends the notifications ``progress`` (``id``,
``percent``, ``message``) and ``log`` (``id``, ``line``). Jobs run one after the other. End of input cancels what
runs and ends the worker, and so do SIGTERM and SIGINT.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any, Optional, TextIO

from clippan import __version__
from clippan.core import utf8
from clippan.core.device import sleep_idle_threads
from clippan.core.errors import Cancelled, ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.protocol import CANCELLED, FAILED, INTERNAL, PARSE_ERROR, PROTOCOL, UNKNOWN_METHOD, WRONG_PROTOCOL
from clippan.core.translation import set_language
from clippan.handlers import run
from clippan.jobs import JOBS, Context, from_json, to_json

IDLE_SECONDS = 600  # then the GPU's memory is handed back


class Worker:
    """Reads messages from ``source`` until its end and answers on ``sink``."""

    def __init__(self, source: TextIO, sink: TextIO) -> None:
        self._source = source
        self._sink = sink
        self._writing = threading.Lock()
        self._waiting: queue.Queue[Optional[tuple[Any, dict[str, Any]]]] = queue.Queue()
        self._cancelled: set[Any] = set()
        self._ended = threading.Event()

    def serve(self) -> None:
        """Returns once the input has ended, or the process was asked to end, and the running job has been cancelled."""
        runner = threading.Thread(target=self._run_jobs, name="jobs", daemon=True)
        runner.start()
        with contextlib.suppress(KeyboardInterrupt):
            for line in self._source:
                if line.strip():
                    self._receive(line)
        self._ended.set()
        self._waiting.put(None)
        runner.join(timeout=5)

    def _receive(self, line: str) -> None:
        try:
            message = json.loads(line)
            method, number = message["method"], message.get("id")
            params = message.get("params", {})
            hash((number, params.get("id")))  # both are looked up in a set later
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._fail(None, PARSE_ERROR, "The worker could not read a message.")
            return
        if method == "handshake":
            set_language(str(params.get("language", "")))
            self._handshake(number, params.get("protocol"))
        elif method == "run":
            self._waiting.put((number, params))
        elif method == "cancel":
            self._cancelled.add(params.get("id"))
        else:
            self._fail(
                number, UNKNOWN_METHOD, Message("The worker does not know the method {method!r}.", method=method)
            )

    def _handshake(self, number: Any, protocol: Any) -> None:
        if protocol != PROTOCOL:
            self._fail(
                number,
                WRONG_PROTOCOL,
                Message(
                    "The engine speaks protocol {engine} and the plugin {plugin}; update both to one version.",
                    engine=PROTOCOL,
                    plugin=" ".join(str(protocol).split())[:20],
                ),
            )
            return
        answer = {"protocol": PROTOCOL, "version": __version__, "python": sys.executable, "pid": os.getpid()}
        self._send({"id": number, "result": answer})

    def _run_jobs(self) -> None:
        while True:
            try:
                message = self._waiting.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                _free_gpu()
                continue
            if message is None:
                return
            self._run_job(*message)

    def _run_job(self, number: Any, params: dict[str, Any]) -> None:
        context = Context(
            lambda percent, text: self._notify(
                "progress", id=number, percent=round(percent, 2), message=to_json(text, messages=True)
            ),
            lambda line: self._notify("log", id=number, line=to_json(line, messages=True)),
            lambda: self._ended.is_set() or number in self._cancelled,
        )
        try:
            context.raise_if_cancelled()
            job = JOBS.get(str(params.get("job")))
            if job is None:
                raise ClippanError(
                    "The engine has no job '{job}'; it knows {known}.", job=params.get("job"), known=", ".join(JOBS)
                )
            result = run(from_json(job, params.get("request", {})), context)
            self._send({"id": number, "result": to_json(result, messages=True)})
        except Cancelled as error:
            self._fail(number, CANCELLED, error.message)
        except ClippanError as error:
            self._fail(number, FAILED, error.message, traceback.format_exc())
        except Exception as error:
            sentence = Message(
                "The engine failed unexpectedly ({error}); the log has the details.",
                error=f"{type(error).__name__}: {one_line(error)}",
            )
            self._fail(number, INTERNAL, sentence, traceback.format_exc())
        finally:
            self._cancelled.discard(number)

    def _notify(self, method: str, **params: Any) -> None:
        self._send({"method": method, "params": params})

    def _fail(self, number: Any, code: int, message: str, details: str = "") -> None:
        data = {"sentence": to_json(message, messages=True), "traceback": details}
        self._send({"id": number, "error": {"code": code, "message": message, "data": data}})

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=True)
        # Whoever listened may be gone; the end of input, which follows, ends the worker.
        with self._writing, contextlib.suppress(BrokenPipeError, ValueError):
            self._sink.write(line + "\n")
            self._sink.flush()


def _free_gpu() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Serves on this process's stdin and stdout; anything a library prints goes to stderr instead."""
    utf8.restart_in_utf8_mode("clippan.worker")
    sleep_idle_threads()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with open(os.dup(0), encoding="utf-8", errors="replace") as source:  # noqa: PTH123
        Worker(source, sink).serve()
    os._exit(0)  # a thread deep inside a library must not keep the worker alive


if __name__ == "__main__":
    main()
