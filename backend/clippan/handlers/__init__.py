"""Handlers: one module a job, found by the job's name ("train clip" in ``train_clip.py``), each with
``run(request, context)``. This one starts them; it is the engine's call for Python, the command line and the worker."""

from __future__ import annotations

import importlib
from typing import Any, Optional

from clippan.core import utf8
from clippan.core.context import Context
from clippan.core.device import require_torch
from clippan.core.errors import ClippanError, one_line
from clippan.core.json import to_json
from clippan.jobs.base import Request


def run(request: Request, context: Optional[Context] = None) -> Any:
    """Checks a request, does the job in this process, and returns its result.

    Raises:
        ClippanError: one sentence with the cause and the remedy.
    """
    utf8.check(to_json(request))
    request.validate()
    if any(request.outputs) and request.inputs:
        from clippan.raster.files import refuse_overwriting  # needs GDAL, which not every job does

        refuse_overwriting(request.outputs, request.inputs)
    try:
        handler = importlib.import_module(f"{__name__}.{request.name.replace(' ', '_')}")
    except Exception as error:
        require_torch()  # says in one sentence what is wrong with it, if it is that
        if isinstance(error, ImportError):
            raise ClippanError(
                "A library that this job needs does not load ({reason}); run Check engine, which names the remedy.",
                reason=one_line(error),
            ) from error
        raise
    return handler.run(request, context or Context())
