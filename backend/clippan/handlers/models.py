"""Lists the models."""

from __future__ import annotations

from clippan.catalogue.models import MODELS
from clippan.clip import cache
from clippan.core.context import Context
from clippan.jobs.models import ListModelsRequest, ListModelsResult, ModelRow


def run(request: ListModelsRequest, context: Context) -> ListModelsResult:
    """Lists the models and what of them is in the cache."""
    rows = []
    for model in MODELS.values():
        found = cache.locate(model)
        rows.append(
            ModelRow(
                model.id,
                model.label,
                model.notes,
                model.licence,
                model.licence_url,
                found.path.stat().st_size if found else model.size,
                found.origin if found else "",
                str(found.path) if found else None,
                found.revision if found else model.revision,
                found.sha256 if found else model.sha256,
            )
        )
    return ListModelsResult(tuple(rows), str(cache.models_folder()), cache.cached_bytes())
