"""The doctor: what this engine is made of, whether it works, and what to do where it does not.

It looks, and changes nothing; it does not use the network. Its text can be pasted in an issue: the home folder is
shortened to ``~``, and no token or address is named.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from clippan import __version__
from clippan.clip.cache import cache_folder
from clippan.core.context import Context
from clippan.core.device import choose_device, nvidia_gpus, require_torch
from clippan.core.errors import ClippanError
from clippan.jobs.doctor import Check, DoctorRequest, DoctorResult, Status

_SETUP = "Run Set up engine"
_LIBRARIES = ("torchvision", "open_clip", "huggingface_hub", "safetensors", "sklearn")
_IMPORT_SECONDS = 120  # the first import after an installation compiles, on slow disks for a minute
_SIGN = {Status.OK: "ok     ", Status.WARNING: "warning", Status.FAILED: "FAILED "}
_GIB = 2**30


def run(request: DoctorRequest, context: Context) -> DoctorResult:
    """Examines this Python and this machine."""
    checks = [_engine(), _numpy(), _gdal(), _torch(), *_libraries(), _machine(), *_gpus(), _cache(), _temporary()]
    chosen, reason = "", ""
    try:
        choice = choose_device(request.device)
        chosen, reason = choice.device.type, choice.reason
        checks.append(Check("Device", Status.OK, f"{request.device.value} means {chosen}. {reason}"))
    except ClippanError as error:
        reason = str(error)
        checks.append(Check("Device", Status.FAILED, reason))
    checks = [Check(c.name, c.status, redact(c.found), redact(c.remedy)) for c in checks]
    ok = all(check.status is not Status.FAILED for check in checks)
    return DoctorResult(ok, tuple(checks), chosen, redact(reason), _text(checks, ok))


def redact(text: str) -> str:
    """The text with the user's home folder as ``~``, so that it does not tell who the user is."""
    home = str(Path.home())
    # In a container the home may be the root folder, which is in every path.
    return text.replace(home, "~") if len(home) > 1 else text


def _text(checks: list[Check], ok: bool) -> str:
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{_SIGN[check.status]}  {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':{width + 11}}-> {check.remedy}")
    lines.append("The engine works." if ok else "The engine does not work yet; see what FAILED.")
    return "\n".join(lines)


def _engine() -> Check:
    found = f"clippan {__version__}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}"
    return Check("Engine", Status.OK, found)


def _numpy() -> Check:
    try:
        numpy = importlib.import_module("numpy")
    except Exception as error:
        return Check("NumPy", Status.FAILED, _reason(error), f"{_SETUP}, or install numpy in this Python.")
    return Check("NumPy", Status.OK, numpy.__version__)


def _gdal() -> Check:
    try:
        gdal = importlib.import_module("osgeo.gdal")
    except Exception as error:
        return Check(
            "GDAL",
            Status.FAILED,
            _reason(error),
            "Choose an engine Python that sees QGIS's own GDAL (osgeo), or install GDAL's Python bindings in it.",
        )
    try:
        importlib.import_module("osgeo.gdal_array")
    except Exception as error:
        return Check(
            "GDAL",
            Status.FAILED,
            f"{gdal.__version__}, but its NumPy interface does not start: {_reason(error)}",
            f"{_SETUP}, which keeps NumPy at the version that GDAL was built for.",
        )
    missing = [name for name in ("GTiff", "COG", "VRT", "PNG", "MEM") if gdal.GetDriverByName(name) is None]
    if missing:
        return Check(
            "GDAL",
            Status.FAILED,
            f"{gdal.__version__} without {', '.join(missing)}",
            "Choose an engine Python with QGIS's own GDAL.",
        )
    if "ZSTD" not in gdal.GetDriverByName("GTiff").GetMetadataItem("DMD_CREATIONOPTIONLIST"):
        found = f"{gdal.__version__}; this build has no ZSTD compression"
        return Check("GDAL", Status.WARNING, found, "Choose DEFLATE for outputs.")
    return Check("GDAL", Status.OK, f"{gdal.__version__} with GTiff, COG and ZSTD")


def _torch() -> Check:
    try:
        torch = require_torch()
    except ClippanError as error:
        return Check("PyTorch", Status.FAILED, str(error))
    try:
        torch.zeros(1).numpy()
    except Exception as error:
        return Check(
            "PyTorch",
            Status.FAILED,
            f"{torch.__version__}, but it does not work with this NumPy: {_reason(error)}",
            f"{_SETUP}, which installs versions that fit each other.",
        )
    return Check("PyTorch", Status.OK, f"{torch.__version__} ({_build(torch)})")


def _build(torch) -> str:  # type: ignore[no-untyped-def]
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    if torch.version.hip:
        return f"built for ROCm {torch.version.hip}"
    return "CPU only" if sys.platform != "darwin" else "for macOS"


# Imported in another process: a library of the wrong build can end the process that tries it.
_IMPORT = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        answer = [name, True, str(getattr(importlib.import_module(name), "__version__", "present"))]
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        answer = [name, False, "" if missing else f"{type(error).__name__}: {error}"]
    print("\\x1e" + json.dumps(answer), flush=True)
"""


def _libraries() -> Iterator[Check]:
    """The libraries beside torch; the classical methods work without them, so nothing here is a failure."""
    command = [sys.executable, "-c", _IMPORT, *_LIBRARIES]
    try:
        run = subprocess.run(
            command, capture_output=True, timeout=_IMPORT_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
        output, problem = run.stdout, f"the import ended this Python (exit code {run.returncode})"
    except subprocess.TimeoutExpired as error:
        output, problem = error.stdout or b"", f"the import took more than {_IMPORT_SECONDS} s"
    except OSError as error:
        output, problem = b"", f"this Python could not be started again ({error})"
    answers = {}
    for line in output.decode("utf-8", "replace").split("\n"):
        if line.startswith("\x1e"):
            name, works, text = json.loads(line[1:])
            answers[name] = (works, text)
    for name in _LIBRARIES:
        yield _library(name, *answers.get(name, (False, problem)))


def _library(name: str, works: bool, text: str) -> Check:
    if works:
        return Check(name, Status.OK, text)
    if not text:
        return Check(name, Status.WARNING, "not installed", f"{_SETUP}, if you want more than the classical methods.")
    text = " ".join(text.split())
    if "torchvision::" in text or name == "torchvision":
        # The sign of a torchvision that was built for another torch.
        remedy = f"{_SETUP}, or install both torch and torchvision from one index, in releases that belong together."
    else:
        remedy = f"{_SETUP} again."
    return Check(name, Status.WARNING, f"does not start ({text})", remedy)


def _machine() -> Check:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _memory()
    size = f"{memory / _GIB:.1f} GiB memory" if memory else "memory unknown"
    processor = platform.processor() or platform.machine()
    return Check("Machine", Status.OK, f"CPU threads: {threads}, {size} ({processor})")


def _memory() -> Optional[int]:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _windows_memory()


def _windows_memory() -> Optional[int]:
    try:
        import ctypes

        class Status(ctypes.Structure):
            _fields_ = (
                ("length", ctypes.c_ulong),
                ("load", ctypes.c_ulong),
                *((name, ctypes.c_ulonglong) for name in ("total", "free", "page", "pages", "own", "owns", "more")),
            )

        status = Status(length=ctypes.sizeof(Status))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
        return int(status.total)
    except Exception:
        return None


def _gpus() -> Iterator[Check]:
    try:
        torch = require_torch()
    except ClippanError:
        torch = None
    try:
        driver = nvidia_gpus()
    except ClippanError as error:
        yield Check("GPU", Status.WARNING, str(error))
        return
    if torch is not None and torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            version = f", driver {driver[0][1]}" if driver else ""
            yield Check("GPU", Status.OK, f"{properties.name}, {properties.total_memory / _GIB:.1f} GiB{version}")
    elif driver and torch is not None:
        names = ", ".join(f"{name} (driver {version})" for name, version in driver)
        if torch.version.cuda is None:
            remedy = f"{_SETUP}, which installs the PyTorch for this GPU, or go on with the CPU."
            yield Check("GPU", Status.WARNING, f"{names}, but this PyTorch is for the CPU only", remedy)
        else:
            remedy = "Update the NVIDIA driver, or run Set up engine for a PyTorch that fits it."
            found = f"{names}, but PyTorch for CUDA {torch.version.cuda} cannot use it"
            yield Check("GPU", Status.WARNING, found, remedy)
    elif driver:
        yield Check("GPU", Status.OK, ", ".join(f"{name} (driver {version})" for name, version in driver))
    else:
        yield Check("GPU", Status.OK, "no NVIDIA GPU found")
    if torch is not None and sys.platform == "darwin":
        there = torch.backends.mps.is_available()
        yield Check("MPS", Status.OK, "available" if there else "not available")


def _cache() -> Check:
    folder = cache_folder()
    # It is made when first needed; until then the nearest folder above decides.
    existing = next((item for item in (folder, *folder.parents) if item.exists()), folder)
    return _folder("Cache folder", folder, existing, "Choose another cache folder in the options (CLIPPAN_CACHE).")


def _temporary() -> Check:
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        return Check(
            "Temporary folder", Status.FAILED, _reason(error), "Set TMPDIR to a folder that can be written to."
        )
    return _folder("Temporary folder", folder, folder, "Set TMPDIR to a folder that can be written to.")


def _folder(name: str, folder: Path, existing: Path, remedy: str) -> Check:
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check(name, Status.WARNING, f"{folder} cannot be written to", remedy)
    free = shutil.disk_usage(existing).free / _GIB
    return Check(name, Status.OK, f"{folder}, {free:.1f} GiB free")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
