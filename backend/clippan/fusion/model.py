"""Files of trained fusion networks: safetensors with a description in the header."""

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
from clippan.jobs.options import SHIPPED_FUSION_MODEL

# Version 1, of CLIPPan 0.1, has other forms of some networks.
_KIND, _KIND_0_1 = "CLIPPan fusion network, version 2", "CLIPPan fusion network, version 1"


@dataclass(frozen=True)
class FusionModel:
    """A trained network.

    Attributes:
        network: in eval mode.
        architecture: a key of ``networks.NETWORKS`` or ``networks.VERSION_0_1``; ``options`` are those of the
            architecture.
        bands: the number of bands it is for, 0 for any.
        provenance: its title, and how it was trained, when, for which sensor or scene.
        sha256, path: of the file; empty for a model that was not saved.
    """

    network: nn.Module
    architecture: str
    options: Mapping[str, int] = field(default_factory=dict)
    bands: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    path: str = ""

    @property
    def title(self) -> str:
        """Title and origin of the model, for logs and tags; for a network of version 0.1 also its form."""
        where = "shipped with CLIPPan" if Path(self.path) == shipped() else self.path
        title = self.provenance.get("title") or self.architecture
        old = networks.VERSION_0_1.get(self.architecture)
        return f"{title}{f', {old.label}' if old else ''} ({where})"

    def save(self, path: Path) -> None:
        """Writes the weights as float16.

        Raises:
            ClippanError: the file cannot be written.
        """
        header = {
            "kind": _KIND,
            "network": self.architecture,
            "options": json.dumps(dict(self.options)),
            "bands": str(self.bands),
            "about": json.dumps(dict(self.provenance), ensure_ascii=False),
        }
        weights = {name: value.detach().cpu().half().contiguous() for name, value in self.network.state_dict().items()}
        write(path, weights, header)

    def check_band_count(self, bands: int) -> None:
        """Raises ClippanError if the model is for another number of bands."""
        if self.bands not in (0, bands):
            raise ClippanError(
                "MS has {bands} bands but the model {path} was made for {model_bands}; choose those bands, or the "
                "model that comes with CLIPPan.",
                bands=bands,
                path=self.path,
                model_bands=self.bands,
            )


def shipped() -> Path:
    """Path of the model that comes with CLIPPan."""
    return resources() / SHIPPED_FUSION_MODEL


def load(path: str, device: torch.device) -> FusionModel:
    """Loads a model, by default the one that comes with CLIPPan; float32, in eval mode.

    Raises:
        ClippanError: the file cannot be read, or is not a fusion model.
    """
    file = Path(path) if path else shipped()
    try:
        content = file.read_bytes()  # once, so that checksum and weights are of the same file
        header = metadata(content)
        weights = {name: value.float() for name, value in parse(content).items()}
    except Exception as error:
        raise ClippanError(
            "The fusion model {file} cannot be read ({reason}); choose a file written by Adapt fusion model or clippan "
            "train fusion.",
            file=file,
            reason=one_line(error),
        ) from error
    kind = header.get("kind", "")
    if kind not in (_KIND, _KIND_0_1):
        if kind.startswith(_KIND.rstrip("0123456789")):
            raise ClippanError(
                "The fusion model {file} was written by a newer version of CLIPPan; update CLIPPan, or choose another "
                "model.",
                file=file,
            )
        raise ClippanError(
            "{file} is not a fusion model; choose a file written by Adapt fusion model or clippan train fusion.",
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
        if kind == _KIND_0_1 and f"{name}-0.1" in networks.VERSION_0_1:
            name += "-0.1"
        check_sizes([bands, *(value for value in options.values() if isinstance(value, int))], weights)
        old = networks.VERSION_0_1.get(name)
        network = old.build(bands or 1, **options) if old else networks.build(name, bands or 1, **options)
        network.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise ClippanError(
            "The weights in {file} are not those of the network {name}; train it again.", file=file, name=name
        ) from error
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ClippanError("The weights in {file} are not finite; adapt or train the model again.", file=file)
    sha256 = hashlib.sha256(content).hexdigest()
    network.eval().requires_grad_(False).to(device)
    return FusionModel(network, name, options, bands, about, sha256, str(file))
