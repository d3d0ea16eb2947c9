"""Removes a model from the cache."""

from __future__ import annotations

from clippan.catalogue.models import find_model
from clippan.clip import cache
from clippan.core.context import Context
from clippan.jobs.models import RemoveModelRequest, RemoveModelResult


def run(request: RemoveModelRequest, context: Context) -> RemoveModelResult:
    """Removes a model from the cache."""
    return RemoveModelResult(cache.remove(find_model(request.model)))
