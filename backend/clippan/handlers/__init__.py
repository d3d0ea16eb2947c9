"""Handlers: one module a job, found by the job's name ("train clip" in ``train_clip.py``), each with
``run(request, context)``. This one starts them; it is the engine's call for Python, the command line and the worker."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Optional

from clippan.core import utf8
from clippan.core.context import Context
from clippan.core.device import require_torch
from clippan.core.errors import ClippanError, one_line
from clippan.core.json import to_json
from clippan.jobs.base import Request

_PIP_NAMES = dict(sklearn="scikit-learn", yaml="pyyaml", PIL="pillow", open_clip="open_clip_torch", osgeo="gdal")


def run(request: Request, context: Optional[Context] = None) -> Any:
    """Checks a request, does the job in this process, and returns its result.

    Raises:
        ClippanError: one sentence with the cause and the remedy.
    """
    utf8.check_encodable(to_json(request))
    request.validate()
    if any(request.outputs) and request.inputs:
        files = _import_module("clippan.raster.files")  # needs GDAL, which not every job does
        files.refuse_overwriting(request.outputs, request.inputs)
    handler = _import_module(f"{__name__}.{request.name.replace(' ', '_')}")
    try:
        return handler.run(request, context or Context())
    except ModuleNotFoundError as error:  # a library that is imported only where it is used
        raise _library_error(error) from error


def pip_name(module: str) -> str:
    """What pip calls the package that holds a module."""
    return _PIP_NAMES.get(module, module)


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        require_torch()  # says in one sentence what is wrong with it, if it is that
        if isinstance(error, ImportError):
            raise _library_error(error) from error
        raise


def _library_error(error: ImportError) -> ClippanError:
    missing = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and missing not in ("", "clippan"):
        return ClippanError(
            "The engine's Python ({executable}) has no {package}, which this job needs; run Set up engine, or install "
            "{package} there.",
            executable=sys.executable,
            package=pip_name(missing),
        )
    return ClippanError(
        "A library that this job needs does not load ({reason}); run Check engine, which names the remedy.",
        reason=one_line(error),
    )
