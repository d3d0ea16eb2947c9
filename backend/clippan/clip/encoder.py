"""Encoding of pictures and texts as vectors that can be compared."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clippan import resources
from clippan.catalogue.models import Model, find_model
from clippan.clip import cache, dense, hub, load
from clippan.core.channels import Channels
from clippan.core.context import Context
from clippan.core.device import Device, choose_device, gpu_memory_error, supports_bfloat16
from clippan.core.messages import Message
from clippan.core.texts import join_names, non_latin

# Their vectors are averaged as by FarSLIP's authors; the bare text suits prompts that are sentences already.
TEMPLATES = ("a satellite photo of {}.", "a satellite image of {}.", "{}")
_MAX_CACHED_TEXTS = 2000
_LONG_CONTEXT = 1024  # tokens, more than any text tower reads
_SHOWN_LETTERS = 40

_lock = threading.Lock()
_loaded: dict[tuple[Any, ...], ClipEncoder] = {}


@dataclass
class ClipEncoder:
    """A loaded CLIP model.

    Attributes:
        spec: its entry in the registry.
        sha256: of its weights.
        device: where it runs.
        image_size: edge of the input pictures.
        embedding_dim: length of a vector.
        logit_scale: as trained; it turns cosines into logits.
        batch: pictures per batch; halved when GPU memory runs out.
        channels: the input bands if they are not red, green and blue; pictures are then float32 (n, bands, edge, edge),
            0 to 1, instead of uint8.
    """

    spec: Model
    sha256: str
    device: torch.device
    image_size: int
    embedding_dim: int
    logit_scale: float
    batch: int
    _loaded: load.LoadedModel
    _texts: dict[str, np.ndarray]
    channels: Optional[Channels] = None

    def encode_images(self, pictures: np.ndarray) -> np.ndarray:
        """Vectors of length 1, float32 (n, embedding_dim), of pictures: uint8 (n, 3, image_size, image_size) in red,
        green and blue, or float32 for a model with channels."""
        if not len(pictures):
            return np.empty((0, self.embedding_dim), np.float32)

        def encode(values: Tensor) -> tuple[Tensor]:
            return (functional.normalize(self._loaded.network.encode_image(values).float(), dim=-1),)

        return self._batched(pictures, encode)[0]

    def cell_cosines(self, pictures: np.ndarray, text_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarity of texts with the cells of pictures, and with the whole pictures.

        Args:
            pictures: as for ``encode_images``; the edge may be any multiple of ``output_stride`` if
                ``accepts_any_size``.
            text_features: vectors of the texts, float32 (k, embedding_dim).

        Returns:
            float32 (n, k, edge / output_stride, edge / output_stride) for the cells, and (n, k) for the whole pictures.

        Raises:
            ClippanError: the image tower has no dense features.
        """
        directions = torch.from_numpy(text_features).to(self.device)

        def compare(values: Tensor) -> tuple[Tensor, Tensor]:
            cells, pooled = dense.dense_features(self._loaded.network, values)
            cosines = torch.einsum("nchw,kc->nkhw", functional.normalize(cells.float(), dim=1), directions)
            return cosines, functional.normalize(pooled.float(), dim=-1) @ directions.T

        # Rounding changes a cosine by less than 0.005, and few cells are that close to two classes.
        cosines, whole = self._batched(pictures, compare, torch.bfloat16 if supports_bfloat16() else None)
        return cosines, whole

    @property
    def output_stride(self) -> int:
        """Edge of a cell in pixels of the input picture."""
        return dense.output_stride(self._loaded.network)

    @property
    def accepts_any_size(self) -> bool:
        """Whether ``cell_cosines`` takes pictures with another edge than ``image_size``."""
        return dense.accepts_any_size(self._loaded.network)

    def _batched(
        self,
        pictures: np.ndarray,
        compute: Callable[[Tensor], tuple[Tensor, ...]],
        cpu_dtype: Optional[torch.dtype] = None,
    ) -> list[np.ndarray]:
        """Applies ``compute`` to normalised pictures in batches that fit into memory; on a CPU in ``cpu_dtype``."""
        parts: list[list[np.ndarray]] = []
        start = 0
        precision = torch.float16 if self.device.type == "cuda" else cpu_dtype
        while start < len(pictures):
            part = pictures[start : start + self.batch]
            try:
                with torch.inference_mode(), torch.autocast(self.device.type, precision, precision is not None):
                    parts.append([values.float().cpu().numpy() for values in compute(self._loaded.normalised(part))])
            except torch.cuda.OutOfMemoryError:
                if self.batch == 1:
                    raise gpu_memory_error() from None
                torch.cuda.empty_cache()
                self.batch //= 2
                continue
            start += len(part)
        return [np.concatenate(values) for values in zip(*parts)]

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1 of texts, float32 (n, embedding_dim), averaged over ``TEMPLATES``."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if len(self._texts) + len(new) > _MAX_CACHED_TEXTS:
            self._texts.clear()
            new = list(dict.fromkeys(texts))
        if new:
            self._texts.update(zip(new, zero_shot_weights(self._loaded, new).cpu().numpy()))
        return np.stack([self._texts[text] for text in texts])

    def text_warnings(self, phrases: Sequence[str]) -> list[str]:
        """Hints for the user about texts that the model cannot read as they are meant."""
        return text_warnings(self.spec, self._loaded, phrases)


@torch.no_grad()
def zero_shot_weights(loaded: load.LoadedModel, texts: Sequence[str]) -> Tensor:
    """Unit vectors (n, embedding_dim) of texts, averaged over ``TEMPLATES``: of class names, a zero-shot classifier."""
    sentences = [template.format(text) for text in texts for template in TEMPLATES]
    device = next(loaded.network.parameters()).device
    found = functional.normalize(loaded.network.encode_text(loaded.tokenizer(sentences).to(device)).float(), dim=-1)
    return functional.normalize(found.view(len(texts), len(TEMPLATES), -1).mean(1), dim=-1)


def text_warnings(model: Model, loaded: load.LoadedModel, phrases: Sequence[str]) -> list[str]:
    """Hints for the user about texts that a model cannot read as they are meant: in another script, or too long."""
    hints: list[str] = []
    unread = non_latin(phrases) if model.languages == ("en",) else []
    if unread:
        hints.append(
            Message(
                "The model {label} was trained on English texts and is unlikely to understand {texts}; use English "
                "words instead.",
                label=model.label,
                texts=_quoted(unread),
            )
        )
    cut = _truncated(loaded, list(dict.fromkeys(phrases)))
    if cut:
        hints.append(
            Message(
                "The model {label} reads at most {count} tokens (parts of words) and ignores the end of {texts}; "
                "shorten the text.",
                label=model.label,
                count=loaded.tokenizer([""]).shape[1],
                texts=_quoted(cut),
            )
        )
    return hints


def _truncated(loaded: load.LoadedModel, phrases: Sequence[str]) -> list[str]:
    """The texts whose end does not fit into the model's context within the longest template, less its full stop."""
    template = max(TEMPLATES, key=len).rstrip(".")
    tokens = loaded.tokenizer(["", *(template.format(phrase) for phrase in phrases)], context_length=_LONG_CONTEXT)
    length = loaded.tokenizer([""]).shape[1]
    padding = tokens[0, -1]
    beyond = (tokens[1:, length:] != padding).any(dim=1).tolist()
    return [phrase for phrase, long in zip(phrases, beyond) if long]


def _quoted(phrases: Sequence[str]) -> str:
    return join_names([f"“{text if len(text) <= _SHOWN_LETTERS else f'{text[:_SHOWN_LETTERS]}…'}”" for text in phrases])


def load_encoder(name: str, device: Device, context: Context) -> ClipEncoder:
    """The model with this id or path, downloaded if necessary and loaded once per process.

    Raises:
        ClippanError: the model cannot be found, downloaded or loaded, or the device is not available.
    """
    model = find_model(name)
    path = hub.fetch(model, context)
    choice = choose_device(device)
    key = (str(path), path.stat().st_mtime_ns, str(choice.device))
    with _lock:
        if key not in _loaded:
            choice.log(context)
            context.progress(0, Message("Loading {label}", label=model.label))
            _loaded.clear()  # models are large: only one is kept
            _loaded[key] = _load_encoder(model, path, choice.device, context)
        return _loaded[key]


def _load_encoder(model: Model, path: Path, device: torch.device, context: Context) -> ClipEncoder:
    loaded = load.load_model(path, model, device)
    image_size = loaded.preprocessing.image_size
    bands = len(loaded.preprocessing.mean)
    _fuse_batch_norms(loaded.network.visual, torch.rand(1, bands, image_size, image_size, device=device))
    loaded.network.visual.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        embedding_dim = loaded.network.encode_text(loaded.tokenizer(["a"]).to(device)).shape[-1]
    logit_scale = loaded.network.logit_scale.detach().exp().item()
    sha256 = weights_sha256(model, path, context)
    batch = 256 if device.type == "cuda" else 32
    return ClipEncoder(model, sha256, device, image_size, embedding_dim, logit_scale, batch, loaded, {}, model.channels)


def _fuse_batch_norms(network: torch.nn.Module, picture: Tensor) -> None:
    """Merges batch normalisations into the convolutions before them, which makes convolutional towers a quarter faster.

    Their order is taken from the order of the modules; comparing the output for a picture verifies it.
    """
    changed = []
    with torch.no_grad():
        expected = network(picture)
        for parent in list(network.modules()):
            children = list(parent.named_children())
            for (name, first), (other, second) in zip(children, children[1:]):
                if isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d):
                    changed += [(parent, name, first), (parent, other, second)]
                    setattr(parent, name, fuse_conv_bn_eval(first, second))
                    # timm's normalisations include the activation
                    setattr(parent, other, getattr(second, "act", None) or torch.nn.Identity())
        if changed and not torch.allclose(network(picture), expected, rtol=1e-2, atol=1e-3):
            for parent, name, module in changed:
                setattr(parent, name, module)


def weights_sha256(model: Model, path: Path, context: Context) -> str:
    """The sha256 of a model's weights, as recorded or computed."""
    found = cache.locate(model)
    return (found.sha256 if found else None) or cache.checksum(path, context)


def background_phrases() -> list[str]:
    """Short phrases for what images show in general, with which a text's similarity is compared."""
    prompts = json.loads((resources() / "prompts.json").read_text(encoding="utf-8"))
    return list(prompts["background"])
