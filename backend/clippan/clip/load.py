"""Loads weights into open_clip models, and refuses weights that do not fit.

Checkpoints may be nested in ``state_dict`` or ``model``, have ``module.`` before each name, be in float16, or have the
long text tower of LongCLIP, whose two positional embeddings are summed into the single one of open_clip.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

import numpy as np
import torch
from safetensors.torch import load_file

from clippan.catalogue import models
from clippan.catalogue.models import Model
from clippan.core.errors import ClippanError, one_line
from clippan.core.texts import join_names

_CONTAINER_KEYS = ("state_dict", "model_state_dict", "model")
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives
_LONGCLIP_POSITIONS = "positional_embedding_res"
_LONGCLIP_KEPT = 20  # positions that LongCLIP keeps from CLIP; the second embedding is used for the others
_NAMES_SHOWN = 3  # names that a sentence lists


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation of the input: (bands from 0 to 1 - ``mean``) / ``std``, in pictures of edge ``image_size``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int


class LoadedModel(NamedTuple):
    """A model ready for use.

    Attributes:
        network: an open_clip model, float32, in eval mode, on the device; ``encode_image`` and ``encode_text`` return
            features of shape (n, width).
        tokenizer: maps texts to tokens, int64 (n, context length); accepts another ``context_length`` as well.
        preprocessing: of the pictures.
    """

    network: Any
    tokenizer: Callable[..., torch.Tensor]
    preprocessing: Preprocessing

    def normalised(self, pictures: Union[np.ndarray, torch.Tensor]) -> torch.Tensor:
        """Pictures (n, bands, edge, edge), uint8 or 0 to 1, normalised for the image tower and on its device."""
        values = torch.as_tensor(pictures).to(next(self.network.parameters()).device)
        values = values.float().div_(255) if values.dtype == torch.uint8 else values.clone()
        mean, std = (
            values.new_tensor(bands)[:, None, None] for bands in (self.preprocessing.mean, self.preprocessing.std)
        )
        # Convolutions are twice as fast with the channels last.
        return values.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def load_model(path: Path, model: Model, device: Optional[torch.device] = None) -> LoadedModel:
    """Loads the weights of a model, by default on the CPU.

    Raises:
        ClippanError: the weights cannot be read safely, or belong to another architecture.
    """
    weights = _read_weights(path)
    description = read_architecture(path, model)
    text = description["text_cfg"]
    prefix = next((name[: -len(_LONGCLIP_POSITIONS)] for name in weights if name.endswith(_LONGCLIP_POSITIONS)), None)
    if prefix is not None:
        _merge_longclip_positions(weights, prefix, path)
    positions = weights.get(f"{prefix or ''}positional_embedding")
    if positions is not None and (prefix is not None or model.architecture):
        # open_clip's name of an architecture does not determine the context length.
        text["context_length"] = len(positions)
    architecture = model.architecture or f"that of {path.parent / models.CONFIG}"
    network = _build(description, architecture)
    if model.channels:
        replace_input_convolution(network.visual, len(model.channels.names))
    _load_weights(network, weights, path, architecture)
    disable_batch_first(network)
    network.eval().to(device or torch.device("cpu"))
    return LoadedModel(network, _tokenizer(text, path), Preprocessing(model.mean, model.std, model.pixels))


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a file. Only tensors are read, since other pickled objects could run code."""
    try:
        if path.suffix == ".safetensors":
            values: Any = load_file(str(path), device="cpu")
        else:
            with warnings.catch_warnings():  # about an archive that is refused below
                warnings.simplefilter("ignore")
                values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ClippanError(
            "The weights {path} cannot be read ({reason}); check the file, or download it again.",
            path=path,
            reason=error.strerror or error,
        ) from error
    except pickle.UnpicklingError as error:
        raise ClippanError(
            "{path} is not a file of weights, or contains other objects, which could run code and are not opened; "
            "download it again, or save its state_dict as safetensors.",
            path=path,
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise ClippanError(
                "{path} is a TorchScript archive, which could run code and is not opened; save its state_dict as "
                "safetensors.",
                path=path,
            ) from error
        raise ClippanError(
            "The weights {path} are damaged or incomplete ({error}); download them again.",
            path=path,
            error=type(error).__name__,
        ) from error
    while isinstance(values, Mapping):
        nest = next((name for name in _CONTAINER_KEYS if isinstance(values.get(name), Mapping)), None)
        if nest is None:
            break
        values = values[nest]
    weights = dict(values) if isinstance(values, Mapping) else {}
    for name in _NOT_WEIGHTS:
        weights.pop(name, None)
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ClippanError(
            "{path} contains no weights (a state_dict of tensors); choose the file of a trained model.", path=path
        )
    while all(name.startswith("module.") for name in weights):
        weights = {name[len("module.") :]: value for name, value in weights.items()}
    return weights


def _merge_longclip_positions(weights: dict[str, torch.Tensor], prefix: str, path: Path) -> None:
    """Sums LongCLIP's two positional embeddings (positions, width), each weighted by its mask (positions, 1).

    Without saved masks the first positions come from the first embedding, all others from the second.
    """
    first = weights.get(f"{prefix}positional_embedding")
    second = weights.pop(f"{prefix}{_LONGCLIP_POSITIONS}")
    masks = [weights.pop(f"{prefix}mask{number}", None) for number in (1, 2)]
    if first is None or first.shape != second.shape:
        raise ClippanError("The long text tower in {path} is incomplete; download the weights again.", path=path)
    kept = (torch.arange(len(first)) < _LONGCLIP_KEPT).to(torch.float32)[:, None]
    one, other = (default if mask is None else mask.float() for mask, default in zip(masks, (kept, 1 - kept)))
    weights[f"{prefix}positional_embedding"] = first.float() * one + second.float() * other


def read_architecture(path: Path, model: Model) -> dict[str, Any]:
    """open_clip's configuration of a model: embed_dim, vision_cfg, text_cfg, quick_gelu and more.

    Raises:
        ClippanError: there is none, or this version of open_clip does not know the architecture.
    """
    import open_clip

    if not model.architecture:
        return copy.deepcopy(models.read_config(path)["model_cfg"])
    description = copy.deepcopy(open_clip.get_model_config(model.architecture))
    if description is None:
        raise ClippanError(
            "open_clip {version} does not know the architecture {architecture} of {label}; run Set up engine to "
            "install a newer open_clip.",
            version=open_clip.__version__,
            architecture=model.architecture,
            label=model.label,
        )
    # The activation used in training decides, even if the name of the architecture lacks its "-quickgelu".
    description["quick_gelu"] = model.activation == "quickgelu"
    return description


def _build(description: dict[str, Any], architecture: str) -> Any:
    import open_clip

    values = copy.deepcopy(description)
    vision, text = values["vision_cfg"], values["text_cfg"]
    custom = values.pop("custom_text", False) or "hf_model_name" in text
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False  # the weights are loaded below, nothing is to be downloaded
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    try:
        return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**values)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise ClippanError(
            "open_clip {version} cannot build the architecture {architecture} ({reason}); choose another model, or run "
            "Set up engine to install a newer open_clip.",
            version=open_clip.__version__,
            architecture=architecture,
            reason=reason,
        ) from error


def replace_input_convolution(visual: Any, bands: int) -> tuple[Any, Any]:
    """Makes an image tower take ``bands`` bands: its first convolution is replaced by one with uninitialised weights.

    Returns:
        The previous convolution and the new one.

    Raises:
        ClippanError: the image tower does not begin with a convolution of three bands.
    """
    convolutions = [item for item in visual.named_modules() if isinstance(item[1], torch.nn.Conv2d)]
    name, before = convolutions[0] if convolutions else ("", None)
    if before is None or before.in_channels != 3:
        raise ClippanError(
            "The image tower {tower} does not begin with a convolution of three bands and cannot be given other bands; "
            "choose another model.",
            tower=type(visual).__name__,
        )
    after = copy.deepcopy(before)
    after.in_channels = bands
    after.weight = torch.nn.Parameter(before.weight.new_empty(before.out_channels, bands, *before.kernel_size))
    parent, _, attribute = name.rpartition(".")
    setattr(visual.get_submodule(parent), attribute, after)
    return before, after


def _load_weights(network: Any, weights: dict[str, torch.Tensor], path: Path, architecture: str) -> None:
    expected = network.state_dict()
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    other = [
        f"{name} is {_shape(weights[name])} instead of {_shape(expected[name])}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    problems = [
        f"{what}: {join_names(names, _NAMES_SHOWN)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another size", other))
        if names
    ]
    if problems:
        raise ClippanError(
            "The weights {path} do not fit the architecture {architecture} ({problems}); choose the model they belong "
            "to.",
            path=path,
            architecture=architecture,
            problems="; ".join(problems),
        )
    network.load_state_dict(weights, strict=True)


def disable_batch_first(network: Any) -> None:
    """Makes transformers compute on (length, n, width).

    On (n, length, width), torch's attention passes transposed matrices to oneDNN, whose products then take twice as
    long in float32 and thirty times as long in bfloat16 (torch 2.15 on a CPU with AVX-512 BF16).
    """
    from open_clip.transformer import Transformer

    for transformer in network.modules():
        if isinstance(transformer, Transformer) and getattr(transformer, "batch_first", False):
            attentions: list[Any] = [getattr(block, "attn", None) for block in transformer.resblocks]
            if all(isinstance(attention, torch.nn.MultiheadAttention) for attention in attentions):
                for part in (transformer, *attentions):
                    part.batch_first = False


def _shape(value: torch.Tensor) -> str:
    return "×".join(str(size) for size in value.shape) or "a number"


def _tokenizer(text: Mapping[str, Any], path: Path) -> Callable[..., torch.Tensor]:
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    length, options = text.get("context_length", 77), dict(text.get("tokenizer_kwargs") or {})
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(context_length=length, **options)
    try:
        # By the folder of the weights; a name would be looked up on the Hub.
        return HFTokenizer(str(path.parent), context_length=length, **options)
    except Exception as error:
        reason = one_line(error)
        raise ClippanError(
            "The tokenizer of {path} cannot be read ({reason}); put its files (tokenizer.json) beside the weights.",
            path=path,
            reason=reason,
        ) from error
