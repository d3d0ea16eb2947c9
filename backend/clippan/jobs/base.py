"""What every job has: a frozen request that is checked, and a frozen result that people can read."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, TypeVar

from clippan.core.json import REQUIRED
from clippan.core.messages import Line, Message
from clippan.jobs import kinds
from clippan.jobs.param import Kind, dataclass_transform, params

R = TypeVar("R", bound="Request")
JOBS: dict[str, type[Request]] = {}  # by name, in the order of the work


@dataclass(frozen=True)
class Result:
    """What a job did.

    Attributes that several results have, and do not describe again:
        output, report, …: the files that were written; empty where not asked for.
        width, height: of the output, in pixels.
        model: of a training, the folder for --model; else the id of the model that was used.
        base: the model that a training started from.
        losses: the terms of the loss, each the mean of the last steps.
        hints: sentences for the user.
        provenance: the tags of the output.
        device: where it was computed.
        seconds: wall time of this process.
    """

    def describe(self) -> list[Line]:
        """The result for people: what the command line prints and the log of QGIS shows, without the hints."""
        raise NotImplementedError

    def line(self, key: str, **values: Any) -> Message:
        """A message about the result; what ``values`` leave open are its attributes of these names."""
        names = [name for _, name, _, _ in string.Formatter().parse(key) if name]
        return Message(key, **{name: values[name] if name in values else getattr(self, name) for name in names})


@dataclass(frozen=True)
class Request:
    """A job to do: plain values, checked by ``validate`` before anything is opened.

    Attributes:
        name: of the job, as the command line has it.
        title: of the job, for people.
        summary: what it does, in one sentence.
        result: the class of its result.
        shows_log: whether the command line prints its log; a licence is shown before the first download.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    result: ClassVar[type]
    shows_log: ClassVar[bool]

    def __post_init__(self) -> None:
        missing = [item.name for item in params(type(self)) if getattr(self, item.name) is REQUIRED]
        if missing:
            raise TypeError(f"{type(self).__name__} needs {', '.join(missing)}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Files and data sources that the job reads, as far as the request tells; no output may replace them."""
        named = (path for kind, value in self._given() for path in kind.inputs(value))
        return tuple(path for path in named if path)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Files and folders that the job writes, without the folder of a run that may be resumed."""
        return tuple(path for kind, value in self._given() for path in kind.outputs(value))

    def _given(self) -> Iterator[tuple[Kind, Any]]:
        """What the parameters with a value mean, and the values."""
        for item in params(type(self)):
            value = getattr(self, item.name)
            if value:
                yield item.kind, value

    def validate(self) -> None:
        """Raises ClippanError, in one sentence, if the values cannot be meant."""
        for item in params(type(self)):
            value = getattr(self, item.name)
            if value and isinstance(item.kind, kinds.Output):
                item.kind.check_place(value, self.inputs)
            item.check(value)
        kinds.check_distinct(self.outputs)
        self.check()

    def check(self) -> None:
        """Raises ClippanError, in one sentence, if values do not go together; each by itself has been checked."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def job(name: str, *, title: str, summary: str, result: type, shows_log: bool = False) -> Callable[[type[R]], type[R]]:
    """Declares a request: makes its class a frozen dataclass, and lists it in ``JOBS``.

    Its arguments are given by name. Those without a default may stand after others in the class.
    """

    def declare(request: type[R]) -> type[R]:
        request = dataclass(frozen=True)(request)
        request.name, request.title, request.summary = name, title, summary
        request.result, request.shows_log = result, shows_log
        params(request)  # a declaration that contradicts itself fails here
        JOBS[name] = request
        return request

    return declare


def file_lines(*named: tuple[str, Optional[str]]) -> list[Line]:
    """A line for each file that was written, with what it is."""
    return [Message("{what}: {path}", what=Message(what), path=path) for what, path in named if path]


def shift_lines(shift: Sequence[float], bands: Sequence[Sequence[float]]) -> list[Line]:
    """How far MS was moved onto PAN, if it was, in PAN pixels (right, down)."""
    if not any(shift) and not bands:
        return []
    moved = Message(
        "The multispectral raster was moved by {right:.2f}, {down:.2f} panchromatic pixels (right, down).",
        right=shift[0],
        down=shift[1],
    )
    return [moved, Message("Each band was moved by its own shift.")] if bands else [moved]


def mtf_lines(gains: Sequence[float], measured: Sequence[Sequence[float]]) -> list[Line]:
    """The MTF gains that were used, and what they rest on; empty without any."""
    if not gains:
        return []
    listed = ", ".join(f"{gain:.2f}" for gain in gains)
    if not measured:
        return [Message("MTF gain of each band, from the sensor table: {gains}", gains=listed)]
    found = ", ".join(f"{gain:.2f} ± {error:.2f}" for gain, error in measured)
    return [Message("MTF gain of each band: {gains}; measured in the images: {found}", gains=listed, found=found)]
