"""The models: those of ``resources/models.json``, and files or folders of the user's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from clippan import resources
from clippan.core.channels import Channels
from clippan.core.errors import ClippanError
from clippan.core.json import from_json

CONFIG = "open_clip_config.json"  # open_clip's name for the description beside the weights
_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # open_clip's own where a config names none
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Model:
    """What is known of a model before its weights are opened.

    Attributes:
        id: its name on the command line and in results; for the user's own weights their path.
        label: its name in lists.
        repository, file: where the weights are on the Hub; without a repository in ``resources/``, where they come
            with CLIPPan.
        revision: the commit that is pinned; None where the first download decides, and records it.
        sha256: of the weights; None where the first download records it.
        architecture: open_clip's name of it; empty where ``open_clip_config.json`` beside the weights describes it.
        activation: "quickgelu" or "gelu", with which it was trained. The weights do not tell, and the wrong one
            gives wrong features without any error.
        licence, licence_url: of the weights; empty for the user's own.
        size: of the weights, about, in bytes.
        mean, std: of the red, green and blue band, scaled to 0 to 1, by which pictures are normalised.
        gsd: ground resolution that it was trained at, in metres; None for a mix.
        pixels: edge of the square picture that goes in.
        notes: what it is good for, in one sentence.
        languages: that it reads, as ``en``; empty where nobody knows.
        path: of weights that come with CLIPPan or are the user's own, else None.
        channels: the bands that go in where these are not red, green and blue; ``mean`` and ``std`` are of these then.
    """

    id: str
    label: str
    repository: str
    file: str
    revision: Optional[str]
    sha256: Optional[str]
    architecture: str
    activation: str
    licence: str
    licence_url: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gsd: Optional[float]
    pixels: int
    notes: str
    languages: tuple[str, ...] = ()
    path: Optional[Path] = None
    channels: Optional[Channels] = None


def _read_models() -> dict[str, Model]:
    entries = json.loads((resources() / "models.json").read_text(encoding="utf-8"))
    models = {}
    for name, entry in entries.items():
        lists = {key: tuple(entry[key]) for key in ("mean", "std", "languages")}
        model = Model(id=name, **{**entry, **lists})
        if not model.repository:
            model = dataclasses.replace(model, path=resources() / model.file)
        models[name] = model
    return models


MODELS = _read_models()


def find_model(name: str) -> Model:
    """The model of this id, or the one in this file or folder.

    A folder, or a file's folder, holds ``open_clip_config.json`` as open_clip writes it; a file without one has to
    bear the name of a known model's file, because weights alone do not tell how they were trained.

    Raises:
        ClippanError: it is none of these.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name).expanduser().absolute()
    try:
        if name.strip() and path.is_dir():
            return _model_from_config(_weights_file(path))
        if path.is_file():
            return _model_from_config(path) if (path.parent / CONFIG).is_file() else _model_from_file_name(path)
    except (OSError, ValueError):  # a text that can be no path
        pass
    raise ClippanError(
        "Unknown model '{name}'; choose one of {MODELS}, or name a folder with {CONFIG} and weights.",
        name=name,
        MODELS=", ".join(MODELS),
        CONFIG=CONFIG,
    )


def require_rgb(model: Model) -> Model:
    """The model, which has to take red, green and blue.

    Raises:
        ClippanError: it takes other bands.
    """
    if model.channels:
        raise ClippanError(
            "The model {label} takes the bands {listed}, not red, green and blue as here; choose another model.",
            label=model.label,
            listed=model.channels.joined_names,
        )
    return model


def read_config(path: Path) -> Mapping[str, Any]:
    """The ``open_clip_config.json`` beside these weights.

    Raises:
        ClippanError: it is missing, or no such description.
    """
    file = path.parent / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values["model_cfg"]["vision_cfg"], dict) and isinstance(values["model_cfg"]["text_cfg"], dict):
            return values
    except FileNotFoundError:
        raise ClippanError(
            "The folder {parent} has no {CONFIG}, which says how its weights were trained; put it there.",
            parent=path.parent,
            CONFIG=CONFIG,
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ClippanError(
        "{file} does not describe a model as open_clip does; take the file that came with the weights.", file=file
    )


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    if len(found) != 1:
        problem = "several files with weights" if found else "no weights"
        raise ClippanError(
            "The folder {folder} holds {problem}; name one file, such as {_WEIGHTS}.",
            folder=folder,
            problem=problem,
            _WEIGHTS=_WEIGHT_FILES[0],
        )
    return found[0]


def _model_from_config(path: Path) -> Model:
    values = read_config(path)
    description, preparation = values["model_cfg"], values.get("preprocess_cfg") or {}
    size = description["vision_cfg"].get("image_size", 224)
    return Model(
        id=str(path),
        label=path.parent.name if path.name in _WEIGHT_FILES else path.stem,
        repository="",
        file=path.name,
        revision=None,
        sha256=None,
        architecture="",
        activation="quickgelu" if description.get("quick_gelu") else "gelu",
        licence="",
        licence_url="",
        size=path.stat().st_size,
        mean=tuple(preparation.get("mean") or _MEAN),
        std=tuple(preparation.get("std") or _STD),
        gsd=None,
        pixels=size[0] if isinstance(size, (list, tuple)) else size,
        notes="",
        languages=() if description["text_cfg"].get("hf_tokenizer_name") else ("en",),  # CLIP's own tokens are English
        path=path,
        channels=_channels(values, path),
    )


def _channels(values: Mapping[str, Any], path: Path) -> Optional[Channels]:
    """The bands that a description of ours names, if it does."""
    try:
        found = (values.get("clippan") or {}).get("channels")
        return found and from_json(Channels, found)
    except (ClippanError, TypeError, ValueError, AttributeError):
        raise ClippanError(
            "{parent} does not describe the bands that the model takes; take the file that came with the weights.",
            parent=path.parent / CONFIG,
        ) from None


def _model_from_file_name(path: Path) -> Model:
    """A known model's file in a place of the user's own."""
    if path.name not in _WEIGHT_FILES:  # a name that many models share
        for model in MODELS.values():
            if Path(model.file).name == path.name:
                return dataclasses.replace(model, id=str(path), size=path.stat().st_size, path=path)
    raise ClippanError(
        "Nothing says how the weights {path} were trained; put their {CONFIG} beside them, or give the file back the "
        "name under which a known model is published.",
        path=path,
        CONFIG=CONFIG,
    )
