"""clippan:listmodels"""

from __future__ import annotations

from clippan.jobs import ListModelsRequest

from . import base
from .parameters import JobParameters


class ListModels(base.JobAlgorithm):
    PARAMETERS = JobParameters(ListModelsRequest)
    RESULT_VALUES = (
        base.ResultValue(
            "INSTALLED",
            "Models on this machine",
            lambda result: ",".join(row.id for row in result.models if row.place),
            number=False,
        ),
        base.ResultValue("FOLDER", "Folder of downloaded models", lambda result: result.folder, number=False),
        base.ResultValue("SIZE", "Size of the folder (bytes)", lambda result: result.size),
    )

    NAME = "listmodels"
    GROUP = "Models"
    TAGS = ("clip", "weights", "hub", "cache", "licence", "farslip", "remoteclip")
    HELP = (
        "Lists the vision-language models that CLIPPan supports: what each is suited for, its licence, its size, and "
        "whether it is on this machine (in the cache folder or in the offline folder). Network access is not "
        "needed.\n\n"
        "“Download model” downloads a model. To remove one, open Settings ▸ Options ▸ CLIPPan."
    )
