"""CLIP as the supervisor of pansharpening: CLIPPan (Liu et al. 2025, arXiv 2511.10896).

Stage I trains small adapters on the embeddings of a frozen CLIP to tell multispectral, panchromatic and fused images
apart, and to combine the first two into the third. Stage II rewards a fusion network whose output moves, in CLIP's
image space, from MS and from PAN in the direction in which the texts move. CLIP's parameters never change, but
gradients flow through it to the band reducer and to the network.

All embeddings have length 1 before and after every step, so that adapters work alike for every CLIP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, normalize

from clippan.catalogue.models import find_model, require_rgb
from clippan.clip import hub, load
from clippan.clip.encoder import weights_sha256
from clippan.core.checkpoint import write
from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.learn.fusion.batch import PatchBatch

TEMPERATURE = 0.07
IMAGE_MIX, TEXT_MIX = 0.2, 0.5  # share of an adapter in its output; the rest is the frozen embedding
_HIDDEN_CHANNELS = 32  # channels inside the reducer
_STRETCH_STDS = 2.0  # standard deviations from the mean to black and to white
_SOFT_LENGTH = 0.05  # length of a transition below which its direction counts less
_KIND = "CLIPPan stage I, version 1"


class Prompts(NamedTuple):
    """The texts that describe the three kinds of image."""

    ms: str
    pan: str
    fused: str


WALD = Prompts(
    "a multispectral image",
    "a panchromatic image",
    "High-quality reference image adhering to Wald's protocol: spectrally consistent with original data and "
    "spatially sharp",
)
# The authors' own words for Khan's protocol are not published.
KHAN = Prompts(
    WALD.ms,
    WALD.pan,
    "Fused image whose low-pass matches the multispectral image and whose high-pass matches the panchromatic image",
)


class FrozenCLIP(nn.Module):
    """A CLIP with frozen parameters, through which gradients flow to the picture."""

    def __init__(self, loaded: load.LoadedModel, name: str, sha256: str) -> None:
        super().__init__()
        self.name, self.sha256, self._loaded = name, sha256, loaded
        self._network = loaded.network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Stays in eval mode: training mode would change batch statistics, and so the embeddings."""
        return super().train(False)

    def encode_images(self, pictures: Tensor) -> Tensor:
        """Embeddings (n, width) of pictures (n, 3, h, w) with values from 0 to 1, of any size."""
        # Half precision would lose the small difference between similar pictures.
        with torch.autocast(pictures.device.type, enabled=False):
            size = (self._loaded.preprocessing.image_size,) * 2
            pictures = interpolate(pictures.float(), size, mode="bicubic", align_corners=False, antialias=True)
            return normalize(self._network.encode_image(self._loaded.normalised(pictures)), dim=-1)

    @torch.no_grad()
    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (n, width) of texts, without gradient."""
        device = next(self.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return normalize(self._network.encode_text(self._loaded.tokenizer(prompts).to(device)), dim=-1)


def load_frozen_clip(name: str, device: torch.device, context: Context) -> FrozenCLIP:
    """The frozen model of an id or path, downloaded if necessary.

    Raises:
        ClippanError: the model cannot be downloaded or loaded.
    """
    model = require_rgb(find_model(name))
    path = hub.fetch(model, context)
    return FrozenCLIP(load.load_model(path, model, device), model.id, weights_sha256(model, path, context))


class BandReducer(nn.Module):
    """Reduces all bands to three colours: 1×1, 3×3 and 1×1 convolutions in parallel with one of 1×1.

    Initially the result is the red, green and blue bands: ``rgb_bands``, counted from 0, or their usual positions.
    """

    def __init__(self, bands: int, rgb_bands: Optional[Sequence[int]] = None) -> None:
        super().__init__()
        # From 5 bands on, a coastal blue usually comes first and a yellow before red.
        rgb_bands = rgb_bands or ((2, 1, 0) if bands <= 4 else (4, 2, 1))
        self.colours = nn.Conv2d(bands, 3, 1)
        self.detail = nn.Sequential(
            nn.Conv2d(bands, _HIDDEN_CHANNELS, 1),
            nn.ReLU(),
            nn.Conv2d(_HIDDEN_CHANNELS, _HIDDEN_CHANNELS, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(_HIDDEN_CHANNELS, 3, 1),
        )
        with torch.no_grad():
            for parameter in (*self.colours.parameters(), *self.detail[-1].parameters()):
                parameter.zero_()
            for channel, band in enumerate(rgb_bands):
                self.colours.weight[channel, min(band, bands - 1)] = 1

    def forward(self, bands: Tensor) -> Tensor:
        return self.colours(bands) + self.detail(bands)


class Adapter(nn.Module):
    """A bottleneck without biases, whose share ``mix`` is mixed with the embedding that it adapts."""

    def __init__(self, inputs: int, width: int, mix: float) -> None:
        super().__init__()
        self._mix = mix
        self.bottleneck = nn.Sequential(
            nn.Linear(inputs, inputs // 4, bias=False), nn.ReLU(), nn.Linear(inputs // 4, width, bias=False)
        )

    def forward(self, inputs: Tensor, residual: Tensor) -> Tensor:
        """Unit vectors: ``residual`` (n, width) mixed with the bottleneck's output for ``inputs`` (n, inputs)."""
        return normalize(self._mix * self.bottleneck(inputs) + (1 - self._mix) * residual, dim=-1)


class EncoderAdapters(nn.Module):
    """The adapters of one encoder, of images or of texts: for MS, for PAN, and for both combined to fused."""

    def __init__(self, width: int, mix: float) -> None:
        super().__init__()
        self._ms, self._pan = Adapter(width, width, mix), Adapter(width, width, mix)
        self._fusion = Adapter(2 * width, width, mix)

    def ms(self, embeddings: Tensor) -> Tensor:
        """Adapted embeddings of MS and of fused images, so that an output equal to MS has the embedding of MS."""
        return self._ms(embeddings, embeddings)

    def pan(self, embeddings: Tensor) -> Tensor:
        return self._pan(embeddings, embeddings)

    def fuse(self, ms: Tensor, pan: Tensor) -> Tensor:
        """Embedding of the fused image predicted from the adapted embeddings of MS and PAN."""
        return self._fusion(torch.cat([ms, pan], dim=-1), normalize(ms + pan, dim=-1))


class ClipAdapters(nn.Module):
    """The adapters of both encoders; 1.3 million parameters at a width of 512."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.text = EncoderAdapters(width, IMAGE_MIX), EncoderAdapters(width, TEXT_MIX)


def to_display_range(values: Tensor) -> Tensor:
    """Standardised values scaled from the scene's mean ± 2 standard deviations to 0 … 1.

    The resulting mean 0.5 and standard deviation 0.25 are close to those of CLIP's training photographs. Values beyond
    the range saturate, but gradients flow as if they did not, so that such pixels can be corrected.
    """
    values = values / (2 * _STRETCH_STDS) + 0.5
    return values + (values.clamp(0, 1) - values).detach()


class ClipSupervisor(nn.Module):
    """A frozen CLIP with a band reducer and adapters, which stage I trains; ``bands`` is the number of MS bands."""

    def __init__(
        self, clip: FrozenCLIP, bands: int, rgb_bands: Optional[Sequence[int]] = None, prompts: Prompts = WALD
    ) -> None:
        super().__init__()
        self.clip, self.bands, self.prompts = clip, bands, prompts
        self._texts = clip.encode_texts(list(prompts))
        self.reducer = BandReducer(bands, rgb_bands).to(self._texts.device)
        self.adapters = ClipAdapters(self._texts.shape[1]).to(self._texts.device)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [*self.reducer.parameters(), *self.adapters.parameters()]

    def text_embeddings(self) -> Tensor:
        """Embeddings (3, width) of the texts: of MS and PAN adapted, of the fused image as CLIP has it."""
        ms, pan, fused = self._texts.split(1)
        return torch.cat([self.adapters.text.ms(ms), self.adapters.text.pan(pan), fused])

    def adapter_losses(self, batch: PatchBatch, fusion_norm: str = "sum") -> dict[str, Tensor]:
        """Losses of stage I by name, to be summed: inter, intra, fusion.

        inter: cross-entropy of each image's kind among the three texts. intra: supervised contrastive loss (Khosla et
        al. 2020) between the MS, PAN and fused patches of a scene, or of a patch if all are from one scene. fusion:
        ‖F_fuse − F_wald‖₁ of texts + ‖F_fuse − F_HRMS‖₁ of images, as the ``sum`` over the elements of an embedding or
        their ``mean``. ``batch.stand_in`` stands for the fused image, or else ``batch.classical``.
        """
        with torch.autocast(batch.up.device.type, enabled=False):
            stand_in = batch.classical if batch.stand_in is None else batch.stand_in
            ms, fused, pan = self._image_embeddings([batch.up, stand_in], batch.pan)
            texts = self.text_embeddings()
            _, scenes, counts = torch.unique(batch.scenes, return_inverse=True, return_counts=True)
            if len(counts) == 1:
                scenes = torch.arange(len(ms), device=ms.device)
            predicted = self.adapters.text.fuse(texts[:1], texts[1:2]), self.adapters.image.fuse(ms, pan)
            target = texts[2:], fused.detach()
            return {
                "inter": _classification_loss(torch.cat([ms, pan, fused]), texts),
                "intra": _contrastive_loss(torch.cat([ms, pan, fused]), scenes.repeat(3)),
                "fusion": torch.stack([_l1(*pair, fusion_norm) for pair in zip(predicted, target)]).sum(),
            }

    def adapter_step(
        self, batch: PatchBatch, optimiser: torch.optim.Optimizer, fusion_norm: str = "sum"
    ) -> dict[str, Tensor]:
        """Takes a step of stage I; returns its losses without gradient."""
        terms = self.adapter_losses(batch, fusion_norm)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        return {name: value.detach() for name, value in terms.items()}

    def direction_loss(self, batch: PatchBatch, fused: Tensor) -> Tensor:
        """L_d of stage II, a scalar, 0 (best) to 2: whether images move from MS and from PAN to the output as texts do.

        1 − ½ (cos(F_out − F_MS, F_wald − F_MS) + cos(F_out − F_PAN, F_wald − F_PAN)), images first, texts second.
        """
        with torch.autocast(fused.device.type, enabled=False):
            texts = self.text_embeddings()
            goals = texts[2] - texts[:2]
            output = self.adapters.image.ms(self.clip.encode_images(self._to_rgb(fused.float())))
            starts = self._image_embeddings([batch.up], batch.pan)
            cosines = [_damped_cosine(output - start, goal) for start, goal in zip(starts, goals)]
            return 1 - torch.stack(cosines).mean()

    def _image_embeddings(self, bands: Sequence[Tensor], pan: Tensor) -> tuple[Tensor, ...]:
        """Adapted embeddings of several multi-band images, and of PAN, in one pass.

        MS comes in interpolated to PAN's grid, so that all images show the same ground and embeddings differ by detail
        and colour only.
        """
        pictures = torch.cat([*map(self._to_rgb, bands), to_display_range(pan).expand(-1, 3, -1, -1)])
        *images, last = self.clip.encode_images(pictures).split(len(pan))
        return (*map(self.adapters.image.ms, images), self.adapters.image.pan(last))

    def _to_rgb(self, bands: Tensor) -> Tensor:
        return self.reducer(to_display_range(bands))

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Writes the weights that stage I trained, with the CLIP, number of bands and prompts they belong to.

        Args:
            about: how they were trained, for the header.
        """
        metadata = {
            **about,
            "kind": _KIND,
            "clip": self.clip.name,
            "sha256": self.clip.sha256,
            "bands": str(self.bands),
            "prompts": json.dumps(self.prompts),
        }
        weights = {name: value.contiguous() for name, value in self._trained_weights().items()}
        write(path, weights, metadata)

    @classmethod
    def load(cls, path: Path, clip: FrozenCLIP, bands: int) -> ClipSupervisor:
        """Reads a file that ``save`` wrote; the result is frozen.

        Raises:
            ClippanError: the file is not valid, or is for another CLIP or number of bands.
        """
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except Exception as error:
            raise ClippanError(
                "The adapted CLIP {path} cannot be read ({reason}); choose a file written by stage I.",
                path=path,
                reason=one_line(error),
            ) from error
        if metadata.get("kind") != _KIND:
            raise ClippanError(
                "{path} is not an adapted CLIP of this version; choose a file written by stage I.", path=path
            )
        if metadata["bands"] != str(bands):
            raise ClippanError(
                "{path} was adapted for {adapted_bands} bands but MS has {bands}; choose a file for {bands} bands, or "
                "run stage I for this sensor.",
                path=path,
                adapted_bands=metadata["bands"],
                bands=bands,
            )
        if metadata["sha256"] != clip.sha256:
            raise ClippanError(
                "{path} was adapted with the CLIP {adapted_clip} but {clip} has other weights; choose {adapted_clip}, "
                "or run stage I with {clip}.",
                path=path,
                adapted_clip=metadata["clip"],
                clip=clip.name,
            )
        supervisor = cls(clip, bands, prompts=Prompts(*json.loads(metadata["prompts"])))
        trained = supervisor._trained_weights()
        if weights.keys() != trained.keys() or any(weights[name].shape != trained[name].shape for name in trained):
            raise ClippanError("The weights in {path} are not those of an adapted CLIP; run stage I again.", path=path)
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(weights[name])
        return supervisor.requires_grad_(False)

    def _trained_weights(self) -> dict[str, Tensor]:
        """The weights of the band reducer and the adapters, without those of CLIP."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("clip.")}


def _classification_loss(images: Tensor, texts: Tensor) -> Tensor:
    """Cross-entropy of images (3n, width), n of each kind in turn, against the texts of the kinds (3, width)."""
    kinds = torch.arange(len(texts), device=images.device).repeat_interleave(len(images) // len(texts))
    return cross_entropy(images @ texts.T / TEMPERATURE, kinds)


def _l1(one: Tensor, other: Tensor, norm: str) -> Tensor:
    """‖one − other‖₁ of embeddings (n, width), as the ``sum`` over elements or their ``mean``; averaged over n."""
    distance = (one - other).abs()
    return (distance.sum(dim=-1) if norm == "sum" else distance.mean(dim=-1)).mean()


def _contrastive_loss(embeddings: Tensor, groups: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020) of embeddings (n, width) with groups (n,)."""
    itself = torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    logits = (embeddings @ embeddings.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    log_probabilities = logits - logits.logsumexp(dim=1, keepdim=True)
    positive = (groups[:, None] == groups) & ~itself
    means = torch.where(positive, log_probabilities, 0.0).sum(dim=1) / positive.sum(dim=1)
    return -means.mean()


def _damped_cosine(transitions: Tensor, goal: Tensor) -> Tensor:
    """Mean cosine between transitions (n, width) and a goal (width,), damped for those shorter than ``_SOFT_LENGTH``.

    The exact cosine has an infinite gradient at length 0, where a network that starts from MS begins.
    """
    lengths = (transitions.square().sum(dim=-1) + _SOFT_LENGTH**2).sqrt()
    return (transitions @ normalize(goal, dim=-1) / lengths).mean()
