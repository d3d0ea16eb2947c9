"""Mask diffusion: an encoder learns a scene without labels.

Noise is added to windows from anywhere in the scene as in a diffusion model (betas from 1e-4 to 0.02 in 1000 steps) and
most of their pixels are hidden; the encoder gets the rest, and each modality's decoder predicts the whole window. The
authors' code shows the encoder only windows around labelled pixels; here they come from the whole scene.
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
_MAX_NOISE = 0.7  # share of noise above which components are left out
_BATCH = 64  # windows encoded at a time
_MEAN_RADIUS, _SMOOTHING_RADIUS = 6, 4  # of the prompt heads' local means and smoothing, in pixels
_MIN_VARIANCE = 1e-6  # as a share of the largest: components with less are dropped


def mnf_projection(values: np.ndarray, valid: np.ndarray, max_components: int) -> np.ndarray:
    """Projection of a modality's bands on their components of least noise (minimum noise fraction, Green et al. 1988),
    float32 (components, bands), at least one component.

    Noise is estimated from differences between neighbouring pixels. The variance of a component is its share that is
    not noise. Redundant bands, such as those of a hyperspectral scene, become few components.

    Args:
        values: standardised bands, float32 (bands, height, width).
        valid: pixels to use, bool (height, width).
        max_components: largest number of components.
    """
    bands = values[:, valid].astype(np.float64)
    variances, vectors = np.linalg.eigh(np.atleast_2d(np.cov(bands)))
    kept = variances > _MIN_VARIANCE * max(variances[-1], _MIN_VARIANCE)
    whitening = (vectors[:, kept] / np.sqrt(variances[kept])).T
    noise = np.zeros((len(values), len(values)))
    for axis in (1, 2):
        both_valid = np.minimum(*np.array([np.delete(valid, end, axis - 1) for end in (0, -1)]))
        steps = np.diff(values, axis=axis)[:, both_valid].astype(np.float64)
        noise += steps @ steps.T / max(4 * steps.shape[1], 1)
    noise_shares, rotation = np.linalg.eigh(whitening @ noise @ whitening.T)
    count = max(1, min(max_components, int((noise_shares < _MAX_NOISE).sum())))
    noise_shares, rotation = noise_shares[:count], rotation[:, :count]
    projection = np.sqrt(np.clip(1 - noise_shares, 0.05, 1))[:, None] * (rotation.T @ whitening)
    # Eigenvectors have arbitrary signs: make the largest coefficient positive.
    projection *= np.where(np.abs(projection).max(axis=1) == projection.max(axis=1), 1, -1)[:, None]
    return projection.astype(np.float32)


@dataclass(frozen=True)
class SceneEncoder:
    """An encoder pre-trained on a scene.

    Attributes:
        network: in eval mode.
        device: the device of the network.
        steps: number of training steps.
        loss: share of the variance of hidden pixels that is not predicted, 0 to about 1, in the last tenth of them.
        means, inverse_stds: that standardised the bands of each modality in training; empty if unknown.
    """

    network: MaskDiffusion
    device: torch.device
    steps: int = 0
    loss: float = math.nan
    means: tuple[np.ndarray, ...] = ()
    inverse_stds: tuple[np.ndarray, ...] = ()

    @property
    def bands(self) -> tuple[int, ...]:
        """Number of bands of each modality."""
        return tuple(self.network.layers(number).projection.shape[1] for number in range(len(self.network.owns)))

    @property
    def margin(self) -> int:
        """Pixels around a tile on which its map depends, a multiple of the stride of the windows: the reach of the
        windows over a pixel, and of the smoothing of probabilities."""
        reach = max(2 * (self.network.size.window // 2), _MEAN_RADIUS) + _SMOOTHING_RADIUS
        return -(-reach // windows.STRIDE) * windows.STRIDE

    def check_band_count(self, given: tuple[int, ...]) -> None:
        """Raises ClippanError if the numbers of bands of the modalities differ from those of the training."""
        if given != self.bands:
            raise ClippanError(
                "The numbers of bands differ (training: {trained}, rasters given: {given}); give the rasters of the "
                "training in the same order, or train a new encoder.",
                trained=" + ".join(map(str, self.bands)),
                given=" + ".join(map(str, given)),
            )

    def save(self, path: Path, outputs: Optional[Outputs] = None) -> None:
        """Writes the encoder as safetensors, with the same bytes for the same encoder; it appears together with the
        outputs of a run. Raises ClippanError if the file cannot be written."""
        about = {
            "steps": self.steps,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "means": [values.tolist() for values in self.means],
            "scales": [values.tolist() for values in self.inverse_stds],
        }
        header = {
            "kind": _KIND,
            "bands": json.dumps(self.bands),
            "size": json.dumps(dataclasses.asdict(self.network.size)),
            "about": json.dumps(about),
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        write(path, weights, header, outputs)


def load(path: Path, device: torch.device) -> SceneEncoder:
    """Reads an encoder from a file; raises ClippanError if it cannot be read, or holds something else."""
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
        means, inverse_stds = (
            tuple(np.array(values, np.float32) for values in about[name]) for name in ("means", "scales")
        )
        loss = math.nan if about["loss"] is None else float(about["loss"])
        return SceneEncoder(network.to(device).eval(), device, int(about["steps"]), loss, means, inverse_stds)
    except Exception as error:
        raise ClippanError(
            "{path} cannot be read as a scene encoder ({reason}); choose a file that Pre-train on a scene wrote.",
            path=path,
            reason=one_line(error),
        ) from error


def project(network: MaskDiffusion, number: int, values: np.ndarray) -> Tensor:
    """Components (components, height, width) of the bands of a modality (bands, height, width), by its number."""
    projection = network.layers(number).projection
    bands = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(projection.device)
    return torch.einsum("cb,bhw->chw", projection, bands)


@torch.inference_mode()
def encoder_features(encoder: SceneEncoder, modalities: Sequence[np.ndarray], context: Context) -> Tensor:
    """Features of every pixel: the tokens and class tokens of the windows that cover it at the diffusion's time 0,
    averaged, for all modalities; float32 (modalities × 2 × width, height, width)."""
    network, size = encoder.network, encoder.network.size
    half = size.window // 2
    height, width = modalities[0].shape[1:]
    rows, columns = windows.centres(height, width, size.window)
    parts = []
    for number, values in enumerate(modalities):
        scene = windows.mirror_padded(project(network, number, values), 2 * half)
        overlap_mean = windows.OverlapMean(2 * size.width, height, width, size.window, encoder.device)
        for down, across in zip(rows.split(_BATCH), columns.split(_BATCH)):
            context.raise_if_cancelled()
            pixels = windows.extract(scene, down + half, across + half, size.window)
            tokens = network.encode(number, pixels, torch.zeros(len(down), device=encoder.device))
            class_tokens = tokens[:, :1].expand(-1, size.window**2, -1)
            overlap_mean.add(torch.cat([tokens[:, 1:], class_tokens], dim=2), down, across)
        parts.append(overlap_mean.mean())
    return torch.cat(parts)
