"""Doctor: what the engine found, which device it will use, and what to do where something is wrong."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from clippan.core.device import Device
from clippan.jobs.base import Request


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
class DoctorResult:
    """All checks; ``ok`` if none failed; the device that "auto" means here and the reason; all as text."""

    ok: bool
    checks: tuple[Check, ...]
    device: str
    reason: str
    text: str


@dataclass(frozen=True)
class DoctorRequest(Request):
    """Asks what the engine found; ``device`` is the one the user wants."""

    name: ClassVar[str] = "doctor"
    result: ClassVar[type] = DoctorResult

    device: Device = Device.AUTO
