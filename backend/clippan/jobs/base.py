"""What every job has: a frozen request, a frozen result, JSON both ways, and a context to report to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Request:
    """A job to do: plain values, checked by ``validate`` before anything is opened."""

    name: ClassVar[str]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Files and data sources that the job reads, as far as the request tells; no output may replace them."""
        return ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Files that the job writes; empty names are none."""
        return ()

    def validate(self) -> None:
        """Raises ClippanError, in one sentence, if the values cannot be meant."""
