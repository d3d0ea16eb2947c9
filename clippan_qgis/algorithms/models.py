from __future__ import annotations

from clippan.catalogue.models import MODELS
from clippan.jobs import DownloadModelRequest, ListModelsRequest

from . import base
from .parameters import ChoiceAdapter, JobParameters

_ON_HUB = [model for model in MODELS.values() if model.repository]


class _DownloadAdapter(ChoiceAdapter):
    """The models that the Hub holds, with size and licence."""

    @property
    def labels(self):
        return {model.id: f"{model.label} ({model.size / 1e6:.0f} MB, {model.licence})" for model in _ON_HUB}


class DownloadModel(base.JobAlgorithm):
    PARAMETERS = JobParameters(
        DownloadModelRequest, adapters={"model": _DownloadAdapter}, defaults={"model": _ON_HUB[0].id}
    )
    RESULT_VALUES = (
        base.ResultValue("FILE", "Weights", lambda result: result.path, number=False),
        base.ResultValue("REVISION", "Version (commit)", lambda result: result.revision or "", number=False),
        base.ResultValue("SHA256", "Checksum (sha256)", lambda result: result.sha256, number=False),
    )

    NAME = "downloadmodel"
    GROUP = "Models"
    TAGS = ("clip", "weights", "hub", "hugging face", "farslip", "remoteclip", "offline")
    HELP = (
        "Downloads the weights of a vision-language model from the Hugging Face Hub to the cache folder, unless they "
        "are there already. An interrupted download is resumed. The file is verified by its checksum (SHA-256), and "
        "its version is recorded, so that later downloads get the same version.\n\n"
        "The list shows the licence and the size of each model. On a machine without network access, put the file into "
        "the offline folder. The address of the Hub, the access token, the cache folder and the offline folder are set "
        "under Settings ▸ Options ▸ CLIPPan."
    )


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
