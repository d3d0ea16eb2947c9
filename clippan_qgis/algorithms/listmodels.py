"""clippan:listmodels"""

from __future__ import annotations

from clippan.jobs import ListModelsRequest

from . import base


class ListModels(base.JobAlgorithm):
    """Says which models there are, and which are on this machine."""

    JOB = ListModelsRequest
    OUTPUTS = (
        base.Output(
            "INSTALLED",
            "Models on this machine",
            lambda result: ",".join(row.id for row in result.models if row.place),
            number=False,
        ),
        base.Output("FOLDER", "Folder of downloaded models", lambda result: result.folder, number=False),
        base.Output("SIZE", "Size of the folder (bytes)", lambda result: result.size),
    )

    NAME = "listmodels"
    TITLE = "List models"
    GROUP = "Models"
    TAGS = ("clip", "weights", "hub", "cache", "licence", "farslip", "remoteclip")
    HELP = (
        "Lists the vision-language models that CLIPPan knows: what each is good for, its licence and size, and whether "
        "it is on this machine (in the cache or in the offline folder). The network is not used.\n\n"
        "“Download model” fetches one; the options (Settings ▸ Options ▸ CLIPPan) remove one."
    )
