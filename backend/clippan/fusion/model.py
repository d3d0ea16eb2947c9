"""Files of trained fusion networks: weights as safetensors, with what they are in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse
from torch import nn

from clippan import resources
from clippan.core.checkpoint import check_sizes, metadata, write
from clippan.core.errors import ClippanError, one_line
from clippan.fusion import networks
from clippan.jobs.options import SHIPPED

_KIND = "CLIPPan fusion network, version 1"


@dataclass(frozen=True)
class FusionModel:
    """A trained network.

    Attributes:
        network: in eval mode.
        name: its architecture, a key of ``networks.NETWORKS``, and ``options`` its own.
        bands: the number of bands it is bound to, 0 for any.
        about: what else is known: how it was trained, when, for which sensor or scene.
        sha256: of the file, empty for one that was not saved.
        path: of the file.
    """

    network: nn.Module
    name: str
    options: Mapping[str, int] = field(default_factory=dict)
    bands: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    path: str = ""

    @property
    def title(self) -> str:
        """The model in a few words, for logs and tags."""
        where = "shipped with CLIPPan" if Path(self.path) == shipped() else self.path
        return f"{self.about.get('title') or self.name} ({where})"

    def save(self, path: Path) -> None:
        """Writes the weights as float16.

        Raises:
            ClippanError: the file cannot be written.
        """
        header = {
            "kind": _KIND,
            "network": self.name,
            "options": json.dumps(dict(self.options)),
            "bands": str(self.bands),
            "about": json.dumps(dict(self.about), ensure_ascii=False),
        }
        weights = {name: value.detach().cpu().half().contiguous() for name, value in self.network.state_dict().items()}
        write(path, "fusion model", weights, header)

    def check_bands(self, bands: int) -> None:
        """Raises ClippanError if MS with this number of bands is not what the model is for."""
        if self.bands not in (0, bands):
            raise ClippanError(
                "MS has {bands} bands but the model {path} was made for {bands_2}; choose those bands, or the model "
                "that ships with CLIPPan.",
                bands=bands,
                path=self.path,
                bands_2=self.bands,
            )


def shipped() -> Path:
    """The model that comes with CLIPPan."""
    return resources() / SHIPPED


def load(path: str, device: torch.device) -> FusionModel:
    """The model in a file, or the one that ships with CLIPPan for an empty path; float32, in eval mode.

    Raises:
        ClippanError: it cannot be read, or is no fusion model.
    """
    file = Path(path) if path else shipped()
    try:
        content = file.read_bytes()  # once, lest another file takes its place in between
        header = metadata(content)
        weights = {name: value.float() for name, value in parse(content).items()}
    except Exception as error:
        raise ClippanError(
            "The fusion model {file} cannot be read ({reason}); choose a file that Adapt fusion model or clippan "
            "train fusion wrote.",
            file=file,
            reason=one_line(error),
        ) from error
    if header.get("kind") != _KIND:
        raise ClippanError(
            "{file} is no fusion model of this version; choose a file that Adapt fusion model or clippan train fusion "
            "wrote.",
            file=file,
        )
    try:
        name, options, bands = header["network"], dict(json.loads(header["options"])), int(header["bands"])
        about = dict(json.loads(header["about"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ClippanError(
            "The description in {file} is damaged; adapt or train the model again.", file=file
        ) from error
    try:
        check_sizes([bands, *(value for value in options.values() if isinstance(value, int))], weights)
        network = networks.build(name, bands or 1, **options)
        network.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise ClippanError(
            "The weights in {file} are not those of {name}; train it again.", file=file, name=name
        ) from error
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ClippanError("Weights in {file} are no numbers; adapt or train the model again.", file=file)
    sha256 = hashlib.sha256(content).hexdigest()
    network.eval().requires_grad_(False).to(device)
    return FusionModel(network, name, options, bands, about, sha256, str(file))
