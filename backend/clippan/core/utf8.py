"""Names and texts are UTF-8 for GDAL, and so for us, whatever the locale says."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from clippan.core.errors import ClippanError


def check_encodable(value: Any) -> None:
    """Raises ClippanError if a text among plain JSON values is not UTF-8, as GDAL and our formats want it."""
    if isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            check_encodable(item)
    elif isinstance(value, str) and "\0" in value:
        raise ClippanError(
            "“{text}” contains a NUL character, which names cannot have; remove it.", text=value.replace("\0", "\\0")
        )
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ClippanError(
                "“{text}” is not written in UTF-8, which GDAL needs; rename the file or folder, or set the terminal to "
                "UTF-8.",
                text=value.encode("utf-8", "backslashreplace").decode(),
            ) from None


def restart_in_utf8_mode(module: str) -> None:
    """Restarts this program in Python's UTF-8 mode where the locale has another encoding, or none (cron, containers);
    ``module`` is being run, where Python does not record how it was started."""
    if sys.platform == "win32" or sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    started = getattr(sys, "orig_argv", None) or [sys.executable, "-m", module, *sys.argv[1:]]
    os.environ["PYTHONUTF8"] = "1"  # also for processes that this one starts
    command = [os.fsencode(sys.executable), b"-X", b"utf8", *map(_encoded, started[1:])]
    os.execv(sys.executable, command)  # nosec B606


def _encoded(argument: str) -> bytes:
    """An argument as it was given if that is UTF-8, else as the locale reads it."""
    given = os.fsencode(argument)
    try:
        given.decode("utf-8")
    except UnicodeDecodeError:
        try:
            return argument.encode("utf-8")
        except UnicodeEncodeError:  # not even the locale does
            pass
    return given
