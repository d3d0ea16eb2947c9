"""The engine's process, as the plugin sees it: started at the first job, kept warm, shared by all algorithms."""

from __future__ import annotations

import atexit
import collections
import contextlib
import itertools
import json
import queue
import subprocess  # nosec B404
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from qgis.core import Qgis, QgsApplication, QgsMessageLog

from clippan.core.errors import Cancelled, ClippanError
from clippan.core.json import from_json, to_json
from clippan.core.messages import Message
from clippan.core.outputs import remove_leftovers
from clippan.core.protocol import CANCELLED, FAILED, PROTOCOL
from clippan.jobs import Request

from .. import paths
from ..i18n import tr
from ..settings import OPTIONS, Settings
from . import python, variables

HANDSHAKE_SECONDS = 60  # the first start on a machine with a virus scanner is slow
CANCEL_SECONDS = 0.7  # then the process is ended, so that a cancel is answered within a second
POLL_SECONDS = 0.05
EXIT_WAIT_SECONDS = 1.0
LOG_TAG = "CLIPPan"


@dataclass(frozen=True)
class Launch:
    """How to start the worker; another launch than the running worker's means a new worker."""

    interpreter: python.Interpreter
    environment: Mapping[str, str] = field(repr=False)  # may hold a token


def launch_for(settings: Settings) -> Launch:
    """How to start the worker under these settings. Call it in the main thread: it may ask for a password.

    Raises:
        ClippanError: the engine has no Python.
    """
    interpreter = python.find_interpreter(settings)
    return Launch(interpreter, variables.for_worker(settings, variables.has_own_gdal(interpreter.path)))


class Worker:
    """Runs jobs in the engine's process, one at a time; callers in other threads wait for their turn."""

    def __init__(self) -> None:
        self._run_lock = threading.Lock()
        self._process: Optional[_Process] = None
        self._message_ids = itertools.count(1)

    def run(self, start: Launch, request: Request, feedback: Any) -> Any:
        """Does a job and returns its result, of the class that the request names.

        ``start`` says how to start the worker, if it is not running; ``feedback`` is a QgsProcessingFeedback, or what
        looks like one, and gets the details of a failure in its debug log.

        Raises:
            Cancelled: the user has cancelled.
            ClippanError: the job has failed.
        """
        while not self._run_lock.acquire(timeout=POLL_SECONDS):
            if feedback.isCanceled():
                raise Cancelled
        try:
            process = self._running_process(start, feedback)
            return self._run(process, request, feedback)
        finally:
            if self._process is not None and not self._process.is_alive():
                self._kill_process()
            self._run_lock.release()

    def stop(self) -> None:
        """Ends the process; the next job starts a new one."""
        process = self._process
        if process is not None:
            process.end()
            self._process = None

    def _kill_process(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _kill_and_clean(self, request: Request) -> None:
        """Ends the process in mid-run, with what is half written."""
        self._kill_process()
        for path in filter(None, request.outputs):
            remove_leftovers(path)

    def _running_process(self, start: Launch, feedback: Any) -> _Process:
        if self._process is not None and self._process.is_alive() and self._process.launch == start:
            return self._process
        self.stop()
        feedback.pushDebugInfo(tr("Starting the engine. {python}", python=start.interpreter))
        process = self._process = _Process(start)
        try:
            engine = self._handshake(process, feedback)
        except BaseException:
            _show_errors(process, feedback)
            self._kill_process()
            raise
        values = {"version": engine.get("version"), "number": engine.get("pid")}
        feedback.pushDebugInfo(tr("Engine {version} is running as process {number}", **values))
        return process

    def _handshake(self, process: _Process, feedback: Any) -> dict[str, Any]:
        path = process.launch.interpreter.path
        number = next(self._message_ids)
        params = {"protocol": PROTOCOL, "language": QgsApplication.locale()}
        process.send({"id": number, "method": "handshake", "params": params})
        limit = time.monotonic() + HANDSHAKE_SECONDS
        message: Optional[dict[str, Any]] = {}
        while message.get("id") != number:
            if feedback.isCanceled():
                raise Cancelled
            if time.monotonic() > limit:
                raise ClippanError(
                    "The engine Python {path} did not answer within {seconds:g} seconds; choose another under "
                    "{options}.",
                    path=path,
                    seconds=HANDSHAKE_SECONDS,
                    options=OPTIONS,
                )
            with contextlib.suppress(queue.Empty):
                message = process.messages.get(timeout=POLL_SECONDS)
            if message is None:
                raise ClippanError(
                    "The engine Python {path} ended before it answered ({reason}); choose another under {options}.",
                    path=path,
                    reason=process.last_error() or process.exit_reason(),
                    options=OPTIONS,
                )
        if "error" in message:
            raise _to_error(message["error"])
        engine = message.get("result")
        engine_protocol = engine.get("protocol") if isinstance(engine, dict) else None
        if engine_protocol != PROTOCOL:
            raise ClippanError(
                "The engine speaks protocol {engine} and the plugin {plugin}; update both to one version.",
                engine=engine_protocol,
                plugin=PROTOCOL,
            )
        return engine

    def _run(self, process: _Process, request: Request, feedback: Any) -> Any:
        number = next(self._message_ids)
        process.send({"id": number, "method": "run", "params": {"job": request.name, "request": to_json(request)}})
        limit, text = None, ""
        while True:
            if limit is None and feedback.isCanceled():
                process.send({"method": "cancel", "params": {"id": number}})
                limit = time.monotonic() + CANCEL_SECONDS
            if limit is not None and time.monotonic() > limit:
                feedback.pushDebugInfo(
                    tr("The engine did not respond to the cancellation in time; its process is terminated.")
                )
                self._kill_and_clean(request)
                raise Cancelled
            try:
                message = process.messages.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if message is None:
                self._kill_and_clean(request)
                if limit is not None:
                    raise Cancelled
                _show_errors(process, feedback)
                raise ClippanError(
                    "The engine's process ended during the run ({ending}); run the job again, and if this is "
                    "repeated, free some memory or choose a smaller tile size.",
                    ending=process.exit_reason(),
                )
            params = message.get("params") or {}
            if message.get("method") == "progress" and params.get("id") == number:
                feedback.setProgress(float(params.get("percent") or 0))
                if params.get("message", text) != text:
                    text = params["message"]
                    feedback.setProgressText(tr(Message.from_json(text)))
            elif message.get("method") == "log" and params.get("id") == number:
                feedback.pushInfo(tr(Message.from_json(params.get("line", ""))))
            elif message.get("id") == number and "error" in message:
                _log_traceback(message["error"], feedback)
                raise _to_error(message["error"])
            elif message.get("id") == number:
                return from_json(request.result, message.get("result") or {})


def _to_error(error: Mapping[str, Any]) -> ClippanError:
    if error.get("code") == CANCELLED:
        return Cancelled()
    return ClippanError(Message.from_json((error.get("data") or {}).get("sentence", error.get("message"))))


def _log_traceback(error: Mapping[str, Any], feedback: Any) -> None:
    """Keeps the traceback; a failure that was foreseen is told in its sentence alone."""
    details = (error.get("data") or {}).get("traceback", "")
    if details and error.get("code") not in (CANCELLED, FAILED):
        feedback.pushDebugInfo(details)
        QgsMessageLog.logMessage(details, LOG_TAG, Qgis.MessageLevel.Warning)


def _show_errors(process: _Process, feedback: Any) -> None:
    lines = list(process.errors)
    if lines:
        feedback.pushDebugInfo("\n".join([tr("Last output of the engine:"), *lines[-40:]]))


class _Process:
    """One process, with its answers in a queue (None at their end) and its last words in a ring buffer."""

    def __init__(self, start: Launch) -> None:
        self.launch = start
        self.messages: queue.Queue[Optional[dict[str, Any]]] = queue.Queue()
        self.errors: collections.deque[str] = collections.deque(maxlen=200)
        self._is_ending = False
        path = start.interpreter.path
        try:
            # No shell: a Python that the user chose, arguments of our own.
            self._popen = subprocess.Popen(  # nosec B603
                [path, "-m", "clippan.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(start.environment),
                cwd=str(paths.BACKEND),
                encoding="utf-8",
                errors="replace",
                bufsize=1,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise ClippanError(
                "The engine Python {path} cannot be started ({reason}); choose another under {options}.",
                path=path,
                reason=error.strerror or error,
                options=OPTIONS,
            ) from error
        self._readers = [
            threading.Thread(target=target, name=f"clippan-{target.__name__}", daemon=True)
            for target in (self._read_errors, self._read_answers)  # the second waits for the first
        ]
        for reader in self._readers:
            reader.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Writes a message; if nobody reads any more, the end of the answers says so."""
        with contextlib.suppress(OSError, ValueError):
            self._popen.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            self._popen.stdin.flush()

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._popen.kill()
        with contextlib.suppress(OSError, ValueError):
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(5)
        for reader in self._readers:
            reader.join(0.5)

    def end(self) -> None:
        self._is_ending = True
        with contextlib.suppress(OSError, ValueError):
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(EXIT_WAIT_SECONDS)
        self.kill()

    def exit_reason(self) -> str:
        """How the process ended, in words."""
        code = self._popen.poll()
        if code is None:
            return Message("it closed its output")
        return Message("signal {number}", number=-code) if code < 0 else Message("exit code {number}", number=code)

    def last_error(self) -> str:
        return next((line.strip()[:200] for line in reversed(list(self.errors)) if line.strip()), "")

    def _read_answers(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._popen.stdout as stream:
            for line in stream:
                try:
                    message = json.loads(line)
                except ValueError:
                    message = None
                if isinstance(message, dict):
                    self.messages.put(message)
                elif line.strip():
                    self.errors.append(line.rstrip())
        # Whoever waits should see the last words and the exit code.
        self._readers[0].join(0.3)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(0.3)
        self.messages.put(None)

    def _read_errors(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._popen.stderr as stream:
            for line in stream:
                self.errors.append(line.rstrip())
                if not self._is_ending:  # QGIS, too, may be ending, and its log be gone
                    QgsMessageLog.logMessage(line.rstrip(), LOG_TAG, Qgis.MessageLevel.Info, False)


shared_worker = Worker()
atexit.register(shared_worker.stop)
