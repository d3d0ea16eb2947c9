"""Doctor: what the engine found, and what to do where something is wrong."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from clippan.core.messages import Line
from clippan.jobs.base import Request, Result, job
from clippan.jobs.options import DeviceOptions


class Status(enum.Enum):
    """Outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """One thing the doctor looked at: what it is, how it stands, what was found, what to do (or nothing)."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class DoctorResult(Result):
    """All checks; ``ok`` if none failed; the device that "auto" means here and the reason; all as text."""

    ok: bool
    checks: tuple[Check, ...]
    device: str
    reason: str
    text: str

    def describe(self) -> list[Line]:
        return [self.text]


@job(
    "doctor",
    title="Check engine",
    summary="Says what the engine found, and what to do where something is wrong.",
    result=DoctorResult,
)
class DoctorRequest(DeviceOptions, Request):
    """Asks what the engine found."""
