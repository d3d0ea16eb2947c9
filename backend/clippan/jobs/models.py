"""Models: list them, download one, remove one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from clippan.jobs import check
from clippan.jobs.base import Request


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
class ListModelsResult:
    """The models; the folder that downloads fill, and how many bytes it holds, half downloads included."""

    models: tuple[ModelRow, ...]
    folder: str
    size: int


@dataclass(frozen=True)
class ListModelsRequest(Request):
    """Asks which models there are, and which of them are on this machine; the network is not used."""

    name: ClassVar[str] = "models"
    result: ClassVar[type] = ListModelsResult


@dataclass(frozen=True)
class DownloadModelResult:
    """Where a model's weights are, which commit on the Hub they are (None: not recorded), their sha256, wall time."""

    path: str
    revision: Optional[str]
    sha256: str
    seconds: float


@dataclass(frozen=True)
class DownloadModelRequest(Request):
    """Fetches a model's weights, unless they are on this machine already.

    Attributes:
        model: an id of ``resources/models.json``.
        accept_licence: the user agrees to a licence that asks for it; the usual open ones do not.
    """

    name: ClassVar[str] = "download"
    result: ClassVar[type] = DownloadModelResult

    model: str
    accept_licence: bool = False

    def validate(self) -> None:
        """See Request."""
        check.model(self.model)


@dataclass(frozen=True)
class RemoveModelResult:
    """How many bytes the removal freed; 0 if the model was not in the cache."""

    freed: int


@dataclass(frozen=True)
class RemoveModelRequest(Request):
    """Removes a model from the cache, and forgets which commit it was; ``model`` is an id."""

    name: ClassVar[str] = "remove"
    result: ClassVar[type] = RemoveModelResult

    model: str

    def validate(self) -> None:
        """See Request."""
        check.model(self.model)
