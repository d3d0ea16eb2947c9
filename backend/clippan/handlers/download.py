"""Downloads a model."""

from __future__ import annotations

import time

from clippan.catalogue.models import find_model
from clippan.clip import cache, hub
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.jobs.models import DownloadModelRequest, DownloadModelResult


def run(request: DownloadModelRequest, context: Context) -> DownloadModelResult:
    """Downloads a model into the cache and verifies it."""
    started = time.monotonic()
    model = find_model(request.model)
    path = hub.fetch(model, context, request.accept_licence)
    found = cache.locate(model)
    if found is None:  # removed by another process in the meantime
        raise ClippanError("{path} has just been removed by another process; download it again.", path=path)
    sha256 = found.sha256 or cache.checksum(path, context)
    return DownloadModelResult(str(path), found.revision, sha256, time.monotonic() - started)
