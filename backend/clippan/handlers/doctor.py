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
from clippan.core.messages import Line, Message, Table, render
from clippan.core.translation import current_language, translator
from clippan.handlers import pip_name
from clippan.jobs.doctor import Check, DoctorRequest, DoctorResult, Status

_LIBRARIES = ("torchvision", "open_clip", "huggingface_hub", "safetensors", "sklearn", "scipy", "jinja2", "yaml", "PIL")
_IMPORT_SECONDS = 120  # the first import after an installation compiles, on slow disks for a minute
_SIGN = {Status.OK: Message("ok"), Status.WARNING: Message("warning"), Status.FAILED: Message("FAILED")}
_GIB = 2**30


def run(request: DoctorRequest, context: Context) -> DoctorResult:
    """Examines this Python and this machine."""
    checks = [_engine(), _numpy(), _gdal(), _torch(), *_libraries(), _machine(), *_gpus(), _cache(), _temporary()]
    chosen, reason = "", ""
    try:
        choice = choose_device(request.device)
        chosen, reason = choice.device.type, choice.reason
        found = Message("{wanted} means {device}. {reason}", wanted=request.device.value, device=chosen, reason=reason)
        checks.append(Check(Message("Device"), Status.OK, found))
    except ClippanError as error:
        reason = error.message
        checks.append(Check(Message("Device"), Status.FAILED, reason))
    checks = [Check(check.name, check.status, redact(check.found), redact(check.remedy)) for check in checks]
    ok = all(check.status is not Status.FAILED for check in checks)
    text = "\n".join(render(_lines(checks, ok), translator(current_language())))
    return DoctorResult(ok, tuple(checks), chosen, redact(reason), text)


def redact(text: str) -> str:
    """The text with the user's home folder as ``~``, so that it does not tell who the user is."""
    if isinstance(text, Message):
        values = {name: redact(value) if isinstance(value, str) else value for name, value in text.values.items()}
        return Message(text.key, **values)
    home = str(Path.home())
    # In a container the home may be the root folder, which is in every path.
    return text.replace(home, "~") if len(home) > 1 else text


def _lines(checks: list[Check], ok: bool) -> list[Line]:
    rows: list[tuple[str, ...]] = []
    for check in checks:
        rows.append((_SIGN[check.status], check.name, check.found))
        if check.remedy:
            rows.append(("", "", Message("→ {remedy}", remedy=check.remedy)))
    verdict = "The engine works." if ok else "The engine does not work yet; see what FAILED."
    return [Table(("Status", "Part", "Found"), rows), Message(verdict)]


def _engine() -> Check:
    found = f"clippan {__version__}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}"
    return Check(Message("Engine"), Status.OK, found)


def _numpy() -> Check:
    try:
        numpy = importlib.import_module("numpy")
    except Exception as error:
        remedy = Message("Run Set up engine, or install {package} in this Python.", package="numpy")
        return Check("NumPy", Status.FAILED, _reason(error), remedy)
    return Check("NumPy", Status.OK, numpy.__version__)


def _gdal() -> Check:
    try:
        gdal = importlib.import_module("osgeo.gdal")
    except Exception as error:
        remedy = Message(
            "Choose an engine Python that sees QGIS's own GDAL (osgeo), or install GDAL's Python bindings in it."
        )
        return Check("GDAL", Status.FAILED, _reason(error), remedy)
    version = gdal.__version__
    try:
        importlib.import_module("osgeo.gdal_array")
    except Exception as error:
        found = Message(
            "{version}, but its NumPy interface does not start: {reason}", version=version, reason=_reason(error)
        )
        remedy = Message("Run Set up engine, which keeps NumPy at the version that GDAL was built for.")
        return Check("GDAL", Status.FAILED, found, remedy)
    missing = [name for name in ("GTiff", "COG", "VRT", "PNG", "MEM") if gdal.GetDriverByName(name) is None]
    if missing:
        found = Message("{version} without the drivers {names}", version=version, names=", ".join(missing))
        return Check("GDAL", Status.FAILED, found, Message("Choose an engine Python with QGIS's own GDAL."))
    if "ZSTD" not in gdal.GetDriverByName("GTiff").GetMetadataItem("DMD_CREATIONOPTIONLIST"):
        found = Message("{version}; this build has no ZSTD compression", version=version)
        return Check("GDAL", Status.WARNING, found, Message("Choose DEFLATE for outputs."))
    return Check("GDAL", Status.OK, Message("{version} with GTiff, COG and ZSTD", version=version))


def _torch() -> Check:
    try:
        torch = require_torch()
    except ClippanError as error:
        return Check("PyTorch", Status.FAILED, error.message)
    try:
        torch.zeros(1).numpy()
    except Exception as error:
        found = Message(
            "{version}, but it does not work with this NumPy: {reason}",
            version=torch.__version__,
            reason=_reason(error),
        )
        remedy = Message("Run Set up engine, which installs versions that fit each other.")
        return Check("PyTorch", Status.FAILED, found, remedy)
    builds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "macOS": platform.mac_ver()[0]}
    build = next((f"{name} {version}" for name, version in builds.items() if version), "CPU")
    return Check(
        "PyTorch", Status.OK, Message("{version}, built for {build}", version=str(torch.__version__), build=build)
    )


# Imported in another process: a library of the wrong build can end the process that tries it.
_IMPORT = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        answer = [name, True, str(getattr(importlib.import_module(name), "__version__", ""))]
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        answer = [name, False, "" if missing else f"{type(error).__name__}: {error}"]
    print("\\x1e" + json.dumps(answer), flush=True)
"""


def _libraries() -> Iterator[Check]:
    """The libraries beside torch; no job needs all of them, so nothing here is a failure."""
    command = [sys.executable, "-c", _IMPORT, *_LIBRARIES]
    try:
        run = subprocess.run(
            command, capture_output=True, timeout=_IMPORT_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
        output = run.stdout
        problem = Message("the import ended this Python (exit code {code})", code=run.returncode)
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        problem = Message("the import took more than {seconds} s", seconds=_IMPORT_SECONDS)
    except OSError as error:
        output, problem = b"", Message("this Python could not be started again ({reason})", reason=_reason(error))
    answers = {}
    for line in output.decode("utf-8", "replace").split("\n"):
        if line.startswith("\x1e"):
            name, works, text = json.loads(line[1:])
            answers[name] = (works, text)
    for name in _LIBRARIES:
        yield _library(name, *answers.get(name, (False, problem)))


def _library(name: str, works: bool, text: str) -> Check:
    if works:
        return Check(name, Status.OK, text or Message("present"))
    if not text:
        remedy = Message(
            "Run Set up engine, or install {package} in this Python, for the jobs that need it.", package=pip_name(name)
        )
        return Check(name, Status.WARNING, Message("not installed"), remedy)
    # The sign of a torchvision that was built for another torch.
    if "torchvision::" in text or name == "torchvision":
        remedy = Message(
            "Run Set up engine, or install both torch and torchvision from one index, in releases that belong together."
        )
    else:
        remedy = Message("Run Set up engine again.")
    return Check(name, Status.WARNING, Message("does not start ({reason})", reason=text), remedy)


def _machine() -> Check:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _memory()
    found = Message(
        "CPU threads: {threads}, memory: {memory} ({processor})",
        threads=threads,
        memory=f"{memory / _GIB:.1f} GiB" if memory else "?",
        processor=platform.processor() or platform.machine(),
    )
    return Check(Message("Machine"), Status.OK, found)


def _memory() -> Optional[int]:
    """Bytes of memory; None if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        pass
    try:
        import ctypes

        kilobytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))  # type: ignore[attr-defined,unused-ignore]
        return kilobytes.value * 1024
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
        yield Check("GPU", Status.WARNING, error.message)
        return
    names = ", ".join(name for name, _ in driver)
    driver_version = driver[0][1] if driver else ""
    if torch is not None and torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            found = f"{properties.name}, {properties.total_memory / _GIB:.1f} GiB"
            if driver:
                found = Message("{gpu}, driver {version}", gpu=found, version=driver_version)
            yield Check("GPU", Status.OK, found)
    elif driver and torch is not None and torch.version.cuda is None:
        found = Message(
            "{gpus} (driver {driver}), but this PyTorch is for the CPU only", gpus=names, driver=driver_version
        )
        remedy = Message("Run Set up engine, which installs the PyTorch for this GPU, or go on with the CPU.")
        yield Check("GPU", Status.WARNING, found, remedy)
    elif driver and torch is not None:
        found = Message(
            "{gpus} (driver {driver}), but PyTorch for CUDA {version} cannot use it",
            gpus=names,
            driver=driver_version,
            version=torch.version.cuda,
        )
        remedy = Message("Update the NVIDIA driver, or run Set up engine for a PyTorch that fits it.")
        yield Check("GPU", Status.WARNING, found, remedy)
    elif driver:
        yield Check("GPU", Status.OK, Message("{gpu}, driver {version}", gpu=names, version=driver_version))
    else:
        yield Check("GPU", Status.OK, Message("no NVIDIA GPU found"))
    if torch is not None and sys.platform == "darwin":
        works = torch.backends.mps.is_available()
        yield Check("MPS", Status.OK, Message("available") if works else Message("not available"))


def _cache() -> Check:
    folder = cache_folder()
    # It is made when first needed; until then the nearest folder above decides.
    existing = next((item for item in (folder, *folder.parents) if item.exists()), folder)
    remedy = Message("Choose another cache folder in the options (CLIPPAN_CACHE).")
    return _folder(Message("Cache folder"), folder, existing, remedy)


def _temporary() -> Check:
    name, remedy = Message("Temporary folder"), Message("Set TMPDIR to a folder that can be written to.")
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        return Check(name, Status.FAILED, _reason(error), remedy)
    return _folder(name, folder, folder, remedy)


def _folder(name: str, folder: Path, existing: Path, remedy: str) -> Check:
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check(name, Status.WARNING, Message("{folder} cannot be written to", folder=str(folder)), remedy)
    free = shutil.disk_usage(existing).free / _GIB
    return Check(name, Status.OK, Message("{folder}, {free:.1f} GiB free", folder=str(folder), free=free))


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
