"""The worker as a real process: messages in, messages out, and nothing else on its output."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

import clippan
from clippan import worker
from clippan.jobs import DoctorRequest, PansharpenRequest, to_json

# Jobs of the worker under test: they need no raster, and do what jobs should not.
EXTRA = """
import os, sys, time
from dataclasses import dataclass
from types import SimpleNamespace
from clippan.jobs import Request
from clippan.jobs.base import job
from clippan.jobs.param import param
from clippan.core.errors import ClippanError
from clippan import worker

@dataclass(frozen=True)
class Result:
    value: float

@job("count", title="Count", summary="Counts.", result=Result)
class Count(Request):
    steps: int = param(3, title="Steps", help="How far.")
    pause: float = param(0.0, title="Pause", help="After each.")
    def run(self, context):
        for step in range(self.steps):
            context.progress(100 * step / self.steps, "step %d" % step)
            time.sleep(self.pause)
        context.log("counted – done")
        return Result(float(self.steps))

@job("bad", title="Bad", summary="Fails.", result=Result)
class Bad(Request):
    how: str = param("", title="How", help="In which way.")
    def run(self, context):
        if self.how == "sentence":
            raise ClippanError("The pän is wrong; choose another.")
        if self.how == "bug":
            raise ZeroDivisionError("division\\nby zero")
        print("a stray print")
        os.write(1, b"a stray write\\n")
        os.system("echo a stray child")
        sys.stdout.flush()
        return Result(1.0)

for bad in (Count, Bad):
    sys.modules[f"clippan.handlers.{bad.name}"] = SimpleNamespace(run=bad.run)
worker.main()
"""


class Client:
    """Talks to a worker; each line it gets must be a JSON-RPC message."""

    def __init__(self) -> None:
        backend = str(Path(clippan.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-c", EXTRA],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": backend},
            text=True,
            encoding="utf-8",
        )
        self._messages: queue.Queue = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._messages.put(line)
        self._messages.put(None)

    def write(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def send(self, method: str, number: Any = None, **params: Any) -> None:
        message: dict = {"jsonrpc": "2.0", "method": method, "params": params}
        if number is not None:
            message["id"] = number
        self.write(json.dumps(message))

    def start(self, number: Any, job: str, **request: Any) -> None:
        self.send("run", number, job=job, request=request)

    def receive(self) -> dict:
        message = json.loads(self._messages.get(timeout=30))
        assert message["jsonrpc"] == "2.0"
        return message

    def answer(self, number: Any) -> tuple[dict, list[dict]]:
        """The answer to a message, and the notifications before it."""
        notes = []
        while True:
            message = self.receive()
            if message.get("id", "none") == number and "method" not in message:
                return message, notes
            notes.append(message)

    def close(self) -> Optional[int]:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(timeout=10)


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.process.kill()
    client.process.wait()
    for stream in (client.process.stdin, client.process.stdout, client.process.stderr):
        assert stream
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def test_handshake(client):
    client.send("handshake", 1, protocol=worker.PROTOCOL)
    answer, _ = client.answer(1)
    assert answer["result"] == {
        "protocol": worker.PROTOCOL,
        "version": clippan.__version__,
        "python": sys.executable,
        "pid": client.process.pid,
    }


def test_wrong_protocol(client):
    client.send("handshake", 1, protocol=99)
    answer, _ = client.answer(1)
    assert answer["error"]["code"] == worker.WRONG_PROTOCOL
    sentence = f"The engine speaks protocol {worker.PROTOCOL} and the plugin 99; update both to one version."
    assert answer["error"]["message"] == sentence


def test_unknown_method_and_job(client):
    client.send("dance", 1)
    answer, _ = client.answer(1)
    assert answer["error"]["code"] == worker.UNKNOWN_METHOD
    client.start(2, "dance")
    answer, _ = client.answer(2)
    assert answer["error"]["code"] == worker.FAILED
    assert "The engine has no job 'dance'; it knows pansharpen, sharpen, assess, " in answer["error"]["message"]


@pytest.mark.parametrize(
    "junk",
    [
        "{not json",
        "42",
        "[]",
        '"text"',
        "null",
        "{}",
        '{"method": "run", "id": 1, "params": null}',
        '{"method": "run", "id": 1, "params": [1]}',
        '{"method": "run", "id": [1], "params": {}}',
        '{"method": "cancel", "params": {"id": {}}}',
    ],
)
def test_junk_is_answered_and_survived(client, junk):
    client.write(junk)
    answer, _ = client.answer(None)
    assert answer["error"]["code"] == worker.PARSE_ERROR
    client.write("")  # an empty line is nothing
    client.start(2, "count")
    assert "result" in client.answer(2)[0]


def test_run_reports_progress_log_and_result(client):
    client.start("a", "count", steps=4)
    answer, notes = client.answer("a")
    assert answer["result"] == {"value": 4.0}
    progress = [note["params"] for note in notes if note["method"] == "progress"]
    assert progress == [{"id": "a", "percent": 25.0 * n, "message": f"step {n}"} for n in range(4)]
    assert [note["params"] for note in notes if note["method"] == "log"] == [{"id": "a", "line": "counted – done"}]


def test_failures_are_sentences_with_a_traceback_beside(client):
    client.start(1, "bad", how="sentence")
    error = client.answer(1)[0]["error"]
    assert (error["code"], error["message"]) == (worker.FAILED, "The pän is wrong; choose another.")
    client.start(2, "bad", how="bug")
    error = client.answer(2)[0]["error"]
    assert error["code"] == worker.INTERNAL
    assert error["message"] == (
        "The engine failed unexpectedly (ZeroDivisionError: division by zero); the log has the details."
    )
    assert "Traceback" in error["data"]["traceback"]
    client.start(3, "count", steps="many")
    error = client.answer(3)[0]["error"]
    assert (error["code"], error["message"]) == (worker.FAILED, "Parameter steps should be int, not 'many'.")


def test_requests_are_validated(client):
    client.start(1, "pansharpen", **to_json(PansharpenRequest(pan="p", ms=("m",), output="/no/such/folder/o.tif")))
    assert "The output folder /no/such/folder does not exist" in client.answer(1)[0]["error"]["message"]


def test_cancel_within_a_second(client, quiet_seconds):
    client.start(1, "count", steps=1000, pause=0.05)
    while client.receive()["method"] != "progress":
        pass
    started = time.monotonic()
    client.send("cancel", id=1)
    answer, _ = client.answer(1)
    assert quiet_seconds(started) < 1
    assert answer["error"]["code"] == worker.CANCELLED
    assert answer["error"]["message"] == "Cancelled; nothing was written."
    client.start(2, "count")
    assert client.answer(2)[0]["result"] == {"value": 3.0}


def test_a_waiting_job_can_be_cancelled(client):
    client.start(1, "count", steps=20, pause=0.05)
    client.start(2, "count", steps=1000, pause=1)
    client.send("cancel", id=2)
    assert "result" in client.answer(1)[0]
    assert client.answer(2)[0]["error"]["code"] == worker.CANCELLED


def test_stray_output_does_not_reach_the_stream(client):
    client.start(1, "bad")
    answer, notes = client.answer(1)
    assert answer["result"] == {"value": 1.0}
    assert not notes
    assert client.close() == 0
    errors = client.process.stderr.read()
    for stray in ("a stray print", "a stray write", "a stray child"):
        assert stray in errors


def test_ends_at_end_of_input(client):
    client.send("handshake", 1, protocol=worker.PROTOCOL)
    client.answer(1)
    started = time.monotonic()
    assert client.close() == 0
    assert time.monotonic() - started < 2


def test_end_of_input_cancels_the_running_job(client):
    client.start(1, "count", steps=1000, pause=0.1)
    client.receive()
    started = time.monotonic()
    assert client.close() == 0
    assert time.monotonic() - started < 2


@pytest.mark.slow
def test_as_a_module():
    backend = str(Path(clippan.__file__).parents[1])
    message = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "run", "params": {"job": "doctor", "request": to_json(DoctorRequest())}}
    )
    # The input stays open until the answer is there: its end would cancel the job.
    with subprocess.Popen(
        [sys.executable, "-m", "clippan.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": backend},
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(message + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        process.stdin.close()
        assert process.wait(timeout=10) == 0
    assert answer["result"]["text"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking")
def test_asked_to_end_it_cleans_up(scene, tmp_path):
    pair = scene(size=2048)
    request = PansharpenRequest(pan=pair.pan, ms=(pair.ms,), output=str(tmp_path / "out.tif"), tile_size=256, threads=1)
    message = {"jsonrpc": "2.0", "id": 1, "method": "run", "params": {"job": "pansharpen", "request": to_json(request)}}
    with subprocess.Popen(
        [sys.executable, "-m", "clippan.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(clippan.__file__).parents[1])},
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if list(tmp_path.glob(".clippan-*/part.tif")):
                break
            assert "result" not in json.loads(line), "it was done before it could be stopped"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["ms.tif", "pan.tif", "truth.tif"]
