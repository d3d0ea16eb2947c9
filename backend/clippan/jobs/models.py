"""Models: list them, download one, remove one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from clippan.core.messages import Line, Message, Table
from clippan.jobs.base import Request, Result, job
from clippan.jobs.kinds import ModelName
from clippan.jobs.param import param


@dataclass(frozen=True)
class ModelRow:
    """One model of the list.

    Attributes:
        id: its name in requests.
        label: its name for people.
        notes: what it is good for, in one sentence.
        licence, licence_url: of its weights.
        size: of its weights, in bytes; about, until they are here.
        place: where its weights are: "shipped" (with CLIPPan), "cache", "offline" (the offline folder), or empty: not
            on this machine.
        path: of the weights; None where they are not here.
        revision: the commit on the Hub, once it is known.
        sha256: of the weights, once it is known.
    """

    id: str
    label: str
    notes: str
    licence: str
    licence_url: str
    size: int
    place: str
    path: Optional[str]
    revision: Optional[str]
    sha256: Optional[str]


@dataclass(frozen=True)
class ListModelsResult(Result):
    """The models; the folder that downloads fill, and how many bytes it holds, half downloads included."""

    models: tuple[ModelRow, ...]
    folder: str
    size: int

    def describe(self) -> list[Line]:
        rows = [
            (row.label, row.id, f"{row.size / 1e6:.0f}", row.licence, row.place or Message("no")) for row in self.models
        ]
        return [
            Table(("Model", "Id", "MB", "Licence", "Here"), rows),
            *(Message("{label}: {notes}", label=row.label, notes=Message(row.notes)) for row in self.models),
            self.line("{size:.0f} MB in {folder}", size=self.size / 1000000.0),
        ]


@job(
    "models",
    title="List models",
    summary="Lists the vision-language models, their licences, and which of them are on this machine.",
    result=ListModelsResult,
)
class ListModelsRequest(Request):
    """Asks which models there are, and which of them are on this machine; the network is not used."""


@dataclass(frozen=True)
class DownloadModelResult(Result):
    """Where a model's weights are, which commit on the Hub they are (None: not recorded), their sha256, wall time."""

    path: str
    revision: Optional[str]
    sha256: str
    seconds: float

    def describe(self) -> list[Line]:
        return [
            self.line("The model is in {path}."),
            self.line("Commit {revision}, sha256 {sha256}", revision=self.revision or Message("unknown")),
        ]


@job(
    "download",
    title="Download model",
    summary="Downloads a model, unless it is on this machine already.",
    result=DownloadModelResult,
    shows_log=True,
)
class DownloadModelRequest(Request):
    """Fetches a model's weights, unless they are on this machine already."""

    model: ModelName = param(title="Model", help="The model to download: an id of the list.", positional=True)
    accept_licence: bool = param(
        False,
        title="I accept the model's licence",
        help="Needed only for licences that ask for more than naming the authors; the log names licence and address.",
    )


@dataclass(frozen=True)
class RemoveModelResult(Result):
    """How many bytes the removal freed; 0 if the model was not in the cache."""

    freed: int

    def describe(self) -> list[Line]:
        if not self.freed:
            return [Message("The model was not in the cache.")]
        return [Message("{size:.0f} MB freed", size=self.freed / 1e6)]


@job("remove", title="Remove model", summary="Removes a downloaded model.", result=RemoveModelResult)
class RemoveModelRequest(Request):
    """Removes a model from the cache, and forgets which commit it was."""

    model: ModelName = param(title="Model", help="The model to remove: an id of the list.", positional=True)
