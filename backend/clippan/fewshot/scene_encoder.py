"""Mask diffusion: an encoder learns a scene without labels.

Windows from anywhere in the scene are noised as by a diffusion (betas from 1e-4 to 0.02 in 1000 steps) and most of
their pixels are hidden; the encoder sees the rest, and each modality's decoder tells what the whole window was. Where
the authors' code shows the encoder the labelled pixels' windows only, this one takes the whole scene's.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from clippan.core.checkpoint import check_sizes, write
from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.core.json import from_json
from clippan.core.outputs import Outputs
from clippan.fewshot import windows
from clippan.fewshot.network import MaskDiffusion, NetworkSize

_KIND = "CLIPPan scene encoder, version 2"
_NOISE = 0.7  # components with more noise than this are left out
_MEANS, _AROUND = 6, 4  # pixels that the few-shot step's means reach, and that it looks further than windows and means
_TINY = 1e-6  # of the largest variance: less is none


def mnf_projection(values: np.ndarray, valid: np.ndarray, most: int) -> np.ndarray:
    """The components of least noise of a modality's bands, each of variance 1 times its part that is no noise.

    Noise is what neighbours differ by (minimum noise fraction, Green et al. 1988). Bands that say the same many times,
    as those of a hyperspectral scene do, become few components that each say something of their own.

    Args:
        values: standardised, float32 (bands, height, width).
        valid: which pixels count, bool (height, width).
        most: how many at most.

    Returns:
        float32 (components, bands), to be multiplied with bands; at least one component.
    """
    bands = values[:, valid].astype(np.float64)
    size, vectors = np.linalg.eigh(np.atleast_2d(np.cov(bands)))
    kept = size > _TINY * max(size[-1], _TINY)
    whiten = (vectors[:, kept] / np.sqrt(size[kept])).T
    noise = np.zeros((len(values), len(values)))
    for axis in (1, 2):
        both = np.minimum(*np.array([np.delete(valid, end, axis - 1) for end in (0, -1)]))
        steps = np.diff(values, axis=axis)[:, both].astype(np.float64)
        noise += steps @ steps.T / max(4 * steps.shape[1], 1)
    share, turns = np.linalg.eigh(whiten @ noise @ whiten.T)
    some = max(1, min(most, int((share < _NOISE).sum())))
    share, turns = share[:some], turns[:, :some]
    found = np.sqrt(np.clip(1 - share, 0.05, 1))[:, None] * (turns.T @ whiten)
    found *= np.where(np.abs(found).max(axis=1) == found.max(axis=1), 1, -1)[:, None]  # signs are arbitrary
    return found.astype(np.float32)


@dataclass
class SceneEncoder:
    """A network that knows a scene.

    Attributes:
        network: in eval mode.
        device: where it computes.
        steps: of the training.
        loss: at its end, mean of the last tenth: the part of the variance of hidden pixels that it does not fill in, 0
            to about 1.
        means, scales: with which the bands of each modality were standardised; empty where nobody said.
    """

    network: MaskDiffusion
    device: torch.device
    steps: int = 0
    loss: float = math.nan
    means: tuple[np.ndarray, ...] = ()
    scales: tuple[np.ndarray, ...] = ()

    @property
    def bands(self) -> tuple[int, ...]:
        """Of each modality."""
        return tuple(self.network.layers(number).projection.shape[1] for number in range(len(self.network.owns)))

    @property
    def margin(self) -> int:
        """Pixels about a tile that a map of it depends on, a multiple of the windows' stride: what the windows over a
        pixel cover, and what the few-shot step smooths afterwards."""
        reach = max(2 * (self.network.size.window // 2), _MEANS) + _AROUND
        return -(-reach // windows.STRIDE) * windows.STRIDE

    def check_modalities(self, modalities: Sequence[np.ndarray]) -> None:
        """Raises ClippanError if these are not the modalities it was trained on."""
        given = tuple(len(modality) for modality in modalities)
        if given != self.bands:
            raise ClippanError(
                "The encoder knows rasters of {listed} bands, but those given have {listed_2}; give the rasters it "
                "was trained on in the same order, or train it anew.",
                listed=_listed(self.bands),
                listed_2=_listed(given),
            )

    def save(self, path: Path, outputs: Optional[Outputs] = None) -> None:
        """Writes it as safetensors, the same bytes for the same encoder; with a run's other outputs if it has some.

        Raises:
            ClippanError: the file cannot be written.
        """
        about = {
            "steps": self.steps,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "means": [values.tolist() for values in self.means],
            "scales": [values.tolist() for values in self.scales],
        }
        header = {
            "kind": _KIND,
            "bands": json.dumps(self.bands),
            "size": json.dumps(dataclasses.asdict(self.network.size)),
            "about": json.dumps(about),
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        write(path, "encoder", weights, header, outputs)


def load(path: Path, device: torch.device) -> SceneEncoder:
    """The encoder in a file.

    Raises:
        ClippanError: it cannot be read, or holds something else.
    """
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("kind") != _KIND:
            raise ValueError("it holds something else")
        size, about = from_json(NetworkSize, json.loads(header["size"])), json.loads(header["about"])
        check_sizes(dataclasses.astuple(size), weights)
        projections = [weights[f"owns.{number}.projection"] for number in range(len(json.loads(header["bands"])))]
        network = MaskDiffusion(size, projections)
        network.load_state_dict(weights)
        means, scales = (tuple(np.array(values, np.float32) for values in about[name]) for name in ("means", "scales"))
        loss = math.nan if about["loss"] is None else float(about["loss"])
        return SceneEncoder(network.to(device).eval(), device, int(about["steps"]), loss, means, scales)
    except Exception as error:
        raise ClippanError(
            "{path} cannot be read as an encoder of a scene ({reason}); choose a file that Pre-train on a scene wrote.",
            path=path,
            reason=one_line(error),
        ) from error


def untrained_encoder(
    modalities: Sequence[np.ndarray], valid: np.ndarray, size: NetworkSize, seed: int, device: torch.device
) -> SceneEncoder:
    """An encoder that has learned nothing but the scene's components."""
    torch.manual_seed(seed)
    found = [torch.from_numpy(mnf_projection(values, valid, size.components)) for values in modalities]
    return SceneEncoder(MaskDiffusion(size, found).to(device).eval(), device)


def project(network: MaskDiffusion, number: int, values: np.ndarray) -> Tensor:
    """A modality's components, (components, height, width)."""
    projection = network.layers(number).projection
    ready = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(projection.device)
    return torch.einsum("cb,bhw->chw", projection, ready)


@torch.inference_mode()
def encoder_features(encoder: SceneEncoder, modalities: Sequence[np.ndarray], context: Context) -> Tensor:
    """What the encoder says of every pixel at the diffusion's time 0: tokens and class tokens of the windows that cover
    it, averaged, of all modalities; float32 (modalities × 2 × width, height, width)."""
    network, size = encoder.network, encoder.network.size
    half = size.window // 2
    height, width = modalities[0].shape[1:]
    rows, columns = windows.centres(height, width, size.window)
    parts = []
    for number, values in enumerate(modalities):
        scene = windows.mirror_padded(project(network, number, values), 2 * half)
        canvas = windows.OverlapMean(2 * size.width, height, width, size.window, encoder.device)
        for down, across in windows.batches(rows, columns, 64):
            context.check()
            inside = windows.extract(scene, down + half, across + half, size.window)
            tokens = network.encode(number, inside, torch.zeros(len(down), device=encoder.device))
            spread = tokens[:, :1].expand(-1, size.window**2, -1)
            canvas.add(torch.cat([tokens[:, 1:], spread], dim=2), down, across)
        parts.append(canvas.mean())
    return torch.cat(parts)


def _listed(values: Sequence[int]) -> str:
    return " and ".join(map(str, values))
