"""What every job promises, tried on all of them: a new job comes under these checks by being declared."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden_jobs import CASES, Bench

from clippan.cli import parser
from clippan.core.context import Context
from clippan.core.errors import Cancelled, ClippanError
from clippan.core.json import from_json, to_json
from clippan.handlers import run
from clippan.jobs import JOBS, Request, kinds
from clippan.jobs.param import Param, params

PARAMS = [pytest.param(job, item, id=f"{name} {item.name}") for name, job in JOBS.items() for item in params(job)]
FIRST_CASE = {job: name for name, (job, _) in reversed(CASES.items())}
UNSTOPPABLE = {"models", "remove", "doctor", "about", "download"}  # they write nothing, and take no time


class _Asked(Exception):
    """The request of a case."""

    def __init__(self, request: Request) -> None:
        self.request = request


class _Recorder(Bench):
    """Makes the inputs of cases, and gives the first request of a case's job instead of running it."""

    def ask(self, job: str, **values: Any) -> Any:
        if job == self.job:
            raise _Asked(from_json(JOBS[job], values))
        return super().ask(job, **values)

    @functools.cache  # noqa: B019  # inputs are made once
    def request(self, job: str) -> Request:
        with pytest.raises(_Asked) as asked:
            self.do(FIRST_CASE[job])
        return asked.value.request


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Recorder]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CLIPPAN_CACHE", "CLIPPAN_OFFLINE"):
            patch.setenv(name, "")  # put back afterwards: the recorder sets them
        yield _Recorder(tmp_path_factory.mktemp("common"))


def _breaking(item: Param) -> list[Any]:
    """Values that are just outside of what a number may be."""
    found: list[float] = []
    if item.low is not None:
        found.append(item.low - 1)
    if item.high is not None:
        found.append(item.high + 1)
    if item.above is not None:
        found.append(item.above)
    if item.type is float and found:
        found.append(math.nan)
    values = [item.type(value) if item.type is int else float(value) for value in found]
    return [(value,) for value in values] if item.many else values


@pytest.mark.parametrize(("job", "item"), PARAMS)
def test_values_out_of_range_are_refused_in_one_shape_of_sentence(job: type[Request], item: Param) -> None:
    for value in _breaking(item):
        with pytest.raises(ClippanError) as refused:
            item.check(value)
        sentence = str(refused.value)
        assert sentence.startswith(f"“{item.title}” is ")
        assert sentence.endswith(f"; it has to be {item.constraint}.")
        for bound in (item.low, item.high, item.above):
            assert bound is None or f"{bound:g}" in sentence


@pytest.mark.parametrize(("job", "item"), PARAMS)
def test_defaults_are_accepted(job: type[Request], item: Param) -> None:
    if not item.required:
        item.check(item.default)


@pytest.mark.parametrize(("job", "item"), PARAMS)
def test_what_has_to_be_given_is_asked_for(job: type[Request], item: Param) -> None:
    if item.required:
        with pytest.raises(ClippanError, match=f"“{item.title.replace('(', '.').replace(')', '.')}” is missing; "):
            item.check(() if item.many else " ")


def test_the_checks_see_every_constraint() -> None:
    bounded = [item for _, item in (entry.values for entry in PARAMS) if item.constraint]
    assert len(bounded) > 50
    assert all(_breaking(item) for item in bounded)


@pytest.mark.parametrize(("job", "item"), PARAMS)
def test_every_parameter_is_an_option_of_the_command(job: type[Request], item: Param) -> None:
    command: Any = parser()
    for word in job.name.split():
        (action,) = (action for action in command._actions if hasattr(action, "choices") and action.dest in _MENUS)
        command = action.choices[word]
    options = {option: action for action in command._actions for option in (*action.option_strings, action.dest)}
    assert item.help.replace("%", "%%")[:40] in options[item.name if item.positional else item.option].help or (
        item.default is True  # which says that it turns something off
    )


_MENUS = ("command", "member")


@pytest.mark.parametrize("name", JOBS)
def test_requests_survive_json(recorder: _Recorder, name: str) -> None:
    request = recorder.request(name)
    assert from_json(JOBS[name], to_json(request)) == request


@pytest.mark.parametrize("name", JOBS)
def test_no_output_replaces_an_input(recorder: _Recorder, name: str) -> None:
    request = recorder.request(name)
    outputs = [item for item in params(JOBS[name]) if isinstance(item.kind, kinds.RasterOutput)]
    inputs = [path for path in request.inputs if Path(path).is_file()]
    for item in outputs:
        for path in inputs:
            before = Path(path).read_bytes()
            with pytest.raises(ClippanError, match=r"one of the inputs|does not fit|would be a GeoTIFF"):
                run(dataclasses.replace(request, **{item.name: path}))
            assert Path(path).read_bytes() == before


@pytest.mark.parametrize("checks", [0, 3], ids=["at once", "on its way"])
@pytest.mark.parametrize("name", [name for name in JOBS if name not in UNSTOPPABLE])
def test_a_cancelled_job_leaves_nothing(recorder: _Recorder, name: str, checks: int) -> None:
    if checks and name == "thumbnails":
        pytest.skip("it asks once for each picture")
    request = recorder.request(name)
    before = _files(recorder)
    asked = iter(range(checks))
    with pytest.raises(Cancelled):
        run(request, Context(cancelled=lambda: next(asked, None) is None))
    left = _files(recorder) - before
    # Trainings and indexes are resumed by the same request: they keep how far they came.
    resumable = (kinds.FolderOutput, kinds.DatabaseOutput)
    kept = tuple(getattr(request, item.name) for item in params(JOBS[name]) if isinstance(item.kind, resumable))
    assert not [path for path in left if not str(path).startswith(kept or "nothing")]


def _files(recorder: _Recorder) -> set[Path]:
    return {path for path in recorder.root.rglob("*") if path.is_file()}
