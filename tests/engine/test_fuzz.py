"""Damaged input of every kind: each gives a valid answer or one sentence, soon, and never another exception.

``CLIPPAN_FUZZ=200000 pytest tests/engine/test_fuzz.py`` tries more than the 10,000 of every day, with the same seed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import queue
import random
import sqlite3
import sys
import time
import traceback
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, ClassVar

import numpy as np
import pytest
import torch
from colours import use
from conftest import write_raster

from clippan import worker
from clippan.core.errors import ClippanError
from clippan.core.json import REQUIRED
from clippan.fewshot import scene_encoder
from clippan.fewshot.network import MaskDiffusion, NetworkSize
from clippan.fusion import model as fusion
from clippan.fusion import networks
from clippan.handlers import run
from clippan.jobs import (
    JOBS,
    AboutIndexRequest,
    IndexRequest,
    Request,
    SearchRequest,
    ThumbnailsRequest,
    to_json,
)

MUTATIONS = int(os.environ.get("CLIPPAN_FUZZ", "10000"))
SEED = 17
SECONDS = 10.0  # for one input; nearly all take some thousandths

NASTY = (
    *(None, True, False, 0, -1, 1, 2, 255, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320, float("nan")),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "",
        " ",
        "\0",
        "\n",
        "x" * 5000,
        "ä森😀",
        "\ud800",
        "../..",
        "/",
        "/vsimem/x",
        "1",
        "1e9",
    ),
    *("[]", "{}", "null", "auto", "POINT (1 2)", "postgresql://", "file:///x"),
    *([], {}, [[]], [None], {"a": None}, [1, "a"], [0] * 300, {"": {"": []}}),
    *({"message": "{a}", "values": {}}, {"message": "{a.b}", "values": {"a": 1}}, {"message": "x", "values": [1]}),
)


class Trial:
    """Runs inputs and notes what came of them other than an answer or a sentence."""

    def __init__(self) -> None:
        self.outcomes: Counter = Counter()
        self.failures: dict[str, str] = {}

    def __call__(self, told: str, call: Callable[[], Any]) -> None:
        """Runs one input; ``told`` says what was done to it."""
        start = time.monotonic()
        try:
            call()
            self.outcomes["answer"] += 1
        except ClippanError as error:
            self.outcomes["sentence"] += 1
            if not is_sentence(str(error)):
                self.note("no sentence", told, str(error))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            self.note(
                f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}", told, traceback.format_exc()
            )
        if time.monotonic() - start > SECONDS:
            self.note("slow", told, f"{time.monotonic() - start:.1f} s")

    def note(self, kind: str, told: str, details: str) -> None:
        self.outcomes["failure"] += 1
        self.failures.setdefault(kind, f"{told[:300]}\n{details[-1500:]}")

    def close(self, inputs: int) -> None:
        """Fails if there was a failure, or if the mutations were all alike."""
        listed = "\n\n".join(f"== {kind}\n{text}" for kind, text in self.failures.items())
        assert not self.failures, f"{dict(self.outcomes)}\n{listed}"
        assert sum(self.outcomes.values()) == inputs
        assert min(self.outcomes["answer"], self.outcomes["sentence"]) > inputs / 100, dict(self.outcomes)


def is_sentence(text: str) -> bool:
    return text.endswith((".", ")")) and "\n" not in text and "Traceback" not in text and len(text) > 10


def test_the_trial_sees_what_it_should():
    trial = Trial()

    def fail(error):
        raise error

    trial("fine", lambda: None)
    trial("refused", lambda: fail(ClippanError("The file is damaged; make it anew.")))
    assert not trial.failures
    trial("untold", lambda: fail(ClippanError("oops")))
    trial("another", lambda: fail(KeyError("a")))
    assert trial.outcomes == {"answer": 1, "sentence": 2, "failure": 2}
    with pytest.raises(AssertionError, match="KeyError at test_fuzz"):
        trial.close(4)


# Mutations


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes of which some were changed, lost, doubled or put elsewhere."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        at = chance.randrange(len(data) + 1)
        length = chance.choice([1, 1, 2, 8, 64, 512])
        how = chance.randrange(6)
        if how == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            del data[at : at + length]
        elif how == 2:
            data[at:at] = bytes(chance.randrange(256) for _ in range(length))
        elif how == 3:
            data[at : at + length] = bytes([chance.choice([0, 32, 48, 57, 127, 255])]) * length
        elif how == 4:
            data[at:at] = data[max(at - length, 0) : at]
        else:
            del data[at:]
    return bytes(data)


def altered(value: Any, chance: random.Random) -> Any:
    """A JSON value in which one thing was replaced, removed, renamed or put in another one's place."""
    value = json.loads(json.dumps(value))
    places = []

    def walk(item: Any) -> None:
        for key in list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ():
            places.append((item, key))
            walk(item[key])

    walk(value)
    if not places:
        return chance.choice(NASTY)
    home, key = chance.choice(places)
    how = chance.randrange(8)
    if how == 0:
        del home[key]
    elif how == 1 and isinstance(home, dict):
        home[chance.choice(["", "x", key.upper(), f"{key} "])] = home.pop(key)
    elif how == 2:
        other, there = chance.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            home[key] = json.loads(json.dumps(other[there]))
    elif how == 3:
        home[key] = [home[key]]
    else:
        home[key] = chance.choice(NASTY)
    return value


# The worker's lines


def request_of(kind: type[Request], folder: Path) -> dict[str, Any]:
    """A request with a value for what has no default, one that is accepted if some is; as JSON values."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.default in (MISSING, REQUIRED)]
    words = (
        "starter",
        str(folder),
        str(folder / "a.gpkg"),
        str(folder / "b.tif"),
        str(folder / "c.safetensors"),
        "text",
    )
    simple: dict[Any, Sequence[Any]] = {str: words, int: (1,), float: (1.0,)}
    choices = []
    for name in names:
        several = typing.get_origin(hints[name]) is tuple
        values = simple[typing.get_args(hints[name])[0] if several else hints[name]]
        choices.append([(value,) if several else value for value in values])
    for values in itertools.product(*choices):
        request = kind(**dict(zip(names, values)), **({"text": ("red",)} if kind is SearchRequest else {}))
        with contextlib.suppress(ClippanError):
            request.validate()
            break
    return to_json(request)


@dataclass(frozen=True)
class Mark(Request):
    """A job that tells that those before it are done."""

    name: ClassVar[str] = "mark"
    result: ClassVar[type] = Request


class Sink(io.TextIOBase):
    """Takes the worker's lines."""

    def __init__(self) -> None:
        self.lines: queue.Queue = queue.Queue()

    def write(self, line: str) -> int:
        self.lines.put(line)
        return len(line)


CODES = {worker.FAILED, worker.WRONG_PROTOCOL, worker.UNKNOWN_METHOD, worker.PARSE_ERROR, worker.CANCELLED}


@pytest.mark.slow
def test_lines_of_the_worker(monkeypatch, tmp_path):
    chance = random.Random(SEED)
    idle = SimpleNamespace(run=lambda request, context: request)  # the files that jobs read are damaged below
    for name in (*JOBS, "mark"):
        monkeypatch.setitem(sys.modules, f"clippan.handlers.{name.replace(' ', '_')}", idle)
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "run", "params": {"job": name, "request": request_of(kind, tmp_path)}}
        for name, kind in JOBS.items()
    ]
    messages += [
        {"jsonrpc": "2.0", "id": 1, "method": "handshake", "params": {"protocol": worker.PROTOCOL}},
        {"jsonrpc": "2.0", "method": "cancel", "params": {"id": 5}},
    ]
    monkeypatch.setitem(JOBS, "mark", Mark)
    sink, trial = Sink(), Trial()
    count = MUTATIONS * 83 // 100

    def judge(answers: list[dict]) -> None:
        for answer in answers:
            assert answer["jsonrpc"] == "2.0"
            error = answer.get("error")
            if error is None:
                assert "result" in answer or answer["method"] in ("progress", "log")
            else:
                assert error["code"] in CODES, error
                raise ClippanError(error["message"])

    def lines() -> Iterator[str]:
        for number in range(count):
            message = chance.choice(messages)
            if chance.random() < 0.6:
                line = json.dumps(altered(message, chance))
            else:
                line = damaged(json.dumps(message).encode(), chance).decode("utf-8", "replace").replace("\n", " ")
            yield line + "\n"
            mark = f"mark {number}"
            yield json.dumps({"method": "run", "id": mark, "params": {"job": "mark"}}) + "\n"
            answers = []
            while True:
                answer = json.loads(sink.lines.get(timeout=SECONDS))
                if answer.get("id") == mark:
                    break
                answers.append(answer)
            trial(line, functools.partial(judge, answers))

    worker.Worker(typing.cast(typing.TextIO, lines()), typing.cast(typing.TextIO, sink)).serve()
    trial.close(count)


# Files of weights


def with_header(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file of which the header was altered, as JSON, also within its own texts, or its length."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.get("__metadata__") or {}
    how = chance.randrange(4)
    if how == 0 and metadata:
        name = chance.choice(list(metadata))
        try:
            metadata[name] = json.dumps(altered(json.loads(metadata[name]), chance))
        except ValueError:
            metadata[name] = chance.choice(["", "x", "0", metadata[name][:-1]])
    elif how == 1 and metadata:
        metadata.update(altered({chance.choice(list(metadata)): "1"}, chance))
    else:
        header = altered(header, chance)
    text = json.dumps(header).encode()
    length = len(text) if chance.random() < 0.9 else chance.choice([0, 1, 2**62, 2**64 - 1, len(text) + 8])
    return length.to_bytes(8, "little") + text + content[end:]


@pytest.mark.slow
def test_files_of_weights(tmp_path):
    torch.manual_seed(0)
    chance, trial = random.Random(SEED), Trial()
    device = torch.device("cpu")
    tiny = networks.build("detail", 1, width=4, depth=1)
    fusion.FusionModel(tiny, "detail", {"width": 4, "depth": 1}, 0, {"title": "tiny"}).save(tmp_path / "f.safetensors")
    size = NetworkSize(window=3, width=8, depth=1, heads=2, components=2)
    projections = [torch.eye(2, 3), torch.eye(1, 2)]
    statistics = [(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (3, 2)]
    encoder = scene_encoder.SceneEncoder(
        MaskDiffusion(size, projections).eval(), device, 3, 0.5, *map(tuple, zip(*statistics))
    )
    encoder.save(tmp_path / "e.safetensors")
    readers = {
        (tmp_path / "f.safetensors").read_bytes(): lambda path: fusion.load(str(path), device),
        (tmp_path / "e.safetensors").read_bytes(): lambda path: scene_encoder.load(path, device),
    }
    count = MUTATIONS * 12 // 100
    for number in range(count):
        content, read = chance.choice(list(readers.items()))
        path = tmp_path / f"{number}.safetensors"
        changed = (with_header if chance.random() < 0.7 else damaged)(content, chance)
        path.write_bytes(changed)
        trial(repr(changed[:1500]), functools.partial(read, path))
        path.unlink()
    trial.close(count)


# Indexes


@pytest.fixture
def index(monkeypatch, tmp_path):
    """An index of one raster, with tiles of three colours, and that raster."""
    use(monkeypatch)
    values = np.zeros((3, 32, 32), np.uint8)
    values[0, :16], values[1, 16:], values[2, :, 16:] = 200, 100, 150
    raster = write_raster(tmp_path / "a_20200101.tif", values, pixel=10.0)
    path = tmp_path / "index.gpkg"
    run(IndexRequest(rasters=(raster,), output=str(path), tile=(16,), overlap=0.0))
    with contextlib.closing(sqlite3.connect(path)) as connection:  # triggers call what only GDAL has
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{trigger}"')
    return path, raster


def with_table(path: Path, chance: random.Random) -> str:
    """Changes a table of a GeoPackage; returns how."""
    table = chance.choice(["rasters", "rasters", "tiles", "tiles", "gpkg_metadata", "gpkg_metadata", "other"])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        connection.execute("PRAGMA synchronous = OFF")
        table = chance.choice(names) if table == "other" else table
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')] or ["rowid"]
        column, value = chance.choice(columns), chance.choice(NASTY)
        value = (
            value
            if isinstance(value, (str, float, bytes)) or value is None
            else int(value)
            if isinstance(value, int)
            else json.dumps(value)
        )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = float(value) if value < 10**300 else b"\0\1"
        if isinstance(value, str) and not value.isprintable():
            value = value.encode("utf-8", "replace")
        old = connection.execute(f'SELECT "{column}" FROM "{table}" LIMIT 1').fetchone()
        if old and isinstance(old[0], (str, bytes)) and chance.random() < 0.5:
            content = old[0].encode() if isinstance(old[0], str) else old[0]
            changed = damaged(content, chance)
            value = changed.decode("utf-8", "replace") if isinstance(old[0], str) else changed
        statement = chance.choice(
            [f'UPDATE "{table}" SET "{column}" = ?'] * 6
            + [
                f'DELETE FROM "{table}"',
                f'DROP TABLE "{table}"',
                f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO other',
            ]
        )
        with contextlib.suppress(sqlite3.Error), connection:
            connection.execute(statement, (value,) if "?" in statement else ())
    return f"{statement} {value!r:.200}"


@pytest.mark.slow
def test_indexes(index, tmp_path):
    path, raster = index
    chance, trial = random.Random(SEED), Trial()
    content, vectors = path.read_bytes(), Path(f"{path}.vectors").read_bytes()
    (tmp_path / "pictures").mkdir()
    count = MUTATIONS * 5 // 100
    for number in range(count):
        target = tmp_path / f"{number}.gpkg"
        target.write_bytes(content)
        beside = Path(f"{target}.vectors")
        beside.write_bytes(vectors)
        how = chance.random()
        if how < 0.7:
            told = with_table(target, chance)
        elif how < 0.85:
            beside.write_bytes(damaged(vectors, chance))
            told = f"vectors of {beside.stat().st_size} bytes"
        else:
            target.write_bytes(damaged(content, chance))
            told = "bytes"
        name = str(target)
        request = chance.choice(
            [
                AboutIndexRequest(index=name),
                SearchRequest(index=name, text=("red",), top=3),
                SearchRequest(
                    index=name,
                    text=("warm",),
                    without=("blue",),
                    like=(1,),
                    unlike=(2,),
                    since="2019",
                    overlapping=True,
                ),
                SearchRequest(index=name, at=(500100.0, 4999900.0), extent=(500000.0, 4999700.0, 500100.0, 5000000.0)),
                ThumbnailsRequest(index=name, tiles=(1, 2, 3), folder=str(tmp_path / "pictures"), pixels=16),
                IndexRequest(rasters=(raster,), output=name, tile=(16,), overlap=0.0),
            ]
        )
        trial(f"{type(request).__name__}: {told}", functools.partial(run, request))
        for file in (*tmp_path.glob(f"*{number}.gpkg*"), *(tmp_path / "pictures").iterdir()):
            file.unlink()
    trial.close(count)
