"""The models in ``resources/models.json``, and the user's own model files and folders."""

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

CONFIG = "open_clip_config.json"  # open_clip's name of the configuration beside the weights
_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # open_clip's own where a config names none
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Model:
    """Description of a model.

    Attributes:
        id: its name on the command line and in results; for the user's own weights their path.
        label: its name in lists.
        repository, file: of the weights on the Hub; without a repository, of a file in ``resources/``.
        revision: the pinned commit; None if the first download determines and records it.
        sha256: of the weights; None if the first download records it.
        architecture: open_clip's name; empty if ``open_clip_config.json`` beside the weights describes it.
        activation: "quickgelu" or "gelu", as in training. The weights do not tell, and the wrong one gives wrong
            features without any error.
        licence, licence_url: of the weights; empty for the user's own.
        size: approximate size of the weights in bytes.
        mean, std: of the red, green and blue bands (0 to 1), for normalisation.
        gsd: ground resolution of the training images in metres; None if mixed.
        pixels: edge of the square input picture.
        notes: what it is suited for, in one sentence.
        languages: codes of the languages it was trained on, such as ``en``; empty if unknown.
        path: of weights that come with CLIPPan or are the user's own, else None.
        channels: the input bands if not red, green and blue; ``mean`` and ``std`` are theirs then.
    """

    id: str
    label: str
    file: str
    activation: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: int
    repository: str = ""
    revision: Optional[str] = None
    sha256: Optional[str] = None
    architecture: str = ""
    licence: str = ""
    licence_url: str = ""
    gsd: Optional[float] = None
    notes: str = ""
    languages: tuple[str, ...] = ()
    path: Optional[Path] = None
    channels: Optional[Channels] = None


def _read_models() -> dict[str, Model]:
    entries = json.loads((resources() / "models.json").read_text(encoding="utf-8"))
    models = {}
    for name, entry in entries.items():
        entry.update({key: tuple(entry[key]) for key in ("mean", "std", "languages")})
        models[name] = Model(id=name, path=None if entry["repository"] else resources() / entry["file"], **entry)
    return models


MODELS = _read_models()


def find_model(name: str) -> Model:
    """The model with this id, or in this file or folder.

    A folder, or the folder of a file, has to contain ``open_clip_config.json`` as written by open_clip; a file without
    one has to be named like the file of a known model, because weights do not tell how they were trained. Raises
    ClippanError if there is no such model.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name).expanduser().absolute()
    try:
        if name.strip() and path.is_dir():
            return _model_from_config(_weights_file(path))
        if path.is_file():
            return _model_from_config(path) if (path.parent / CONFIG).is_file() else _model_from_file_name(path)
    except (OSError, ValueError):  # the text cannot be a path
        pass
    raise ClippanError(
        "Unknown model '{name}'; choose one of {models}, or a folder with {config} and weights.",
        name=name,
        models=", ".join(MODELS),
        config=CONFIG,
    )


def require_rgb(model: Model) -> Model:
    """Returns the model; raises ClippanError if it takes other bands than red, green and blue."""
    if model.channels:
        raise ClippanError(
            "The model {label} takes the bands {bands}, but red, green and blue are needed here; choose another model.",
            label=model.label,
            bands=model.channels.joined_names,
        )
    return model


def read_config(path: Path) -> Mapping[str, Any]:
    """The ``open_clip_config.json`` beside weights; raises ClippanError if it is missing or invalid."""
    file = path.parent / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values["model_cfg"]["vision_cfg"], dict) and isinstance(values["model_cfg"]["text_cfg"], dict):
            return values
    except FileNotFoundError:
        raise ClippanError(
            "The folder {folder} has no {config}, which describes the model; copy it there.",
            folder=path.parent,
            config=CONFIG,
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ClippanError(
        "{file} is not a model configuration of open_clip; use the file that came with the weights.", file=file
    )


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    if len(found) != 1:
        raise ClippanError(
            "The folder {folder} contains several files with weights; choose one file, such as {file}."
            if found
            else "The folder {folder} contains no weights; choose a file or a folder with weights, such as {file}.",
            folder=folder,
            file=_WEIGHT_FILES[0],
        )
    return found[0]


def _model_from_config(path: Path) -> Model:
    values = read_config(path)
    description, preparation = values["model_cfg"], values.get("preprocess_cfg") or {}
    size = description["vision_cfg"].get("image_size", 224)
    return Model(
        id=str(path),
        label=path.parent.name if path.name in _WEIGHT_FILES else path.stem,
        file=path.name,
        activation="quickgelu" if description.get("quick_gelu") else "gelu",
        size=path.stat().st_size,
        mean=tuple(preparation.get("mean") or _MEAN),
        std=tuple(preparation.get("std") or _STD),
        pixels=size[0] if isinstance(size, (list, tuple)) else size,
        languages=() if description["text_cfg"].get("hf_tokenizer_name") else ("en",),  # CLIP's own tokens are English
        path=path,
        channels=_channels(values, path),
    )


def _channels(values: Mapping[str, Any], path: Path) -> Optional[Channels]:
    """The input bands in a configuration written by CLIPPan, if any."""
    try:
        found = (values.get("clippan") or {}).get("channels")
        return found and from_json(Channels, found)
    except (ClippanError, TypeError, ValueError, AttributeError):
        raise ClippanError(
            "{file} does not describe the bands of the model; use the file that came with the weights.",
            file=path.parent / CONFIG,
        ) from None


def _model_from_file_name(path: Path) -> Model:
    """A known model's file in another folder."""
    if path.name not in _WEIGHT_FILES:  # a name that many models share
        for model in MODELS.values():
            if Path(model.file).name == path.name:
                return dataclasses.replace(model, id=str(path), size=path.stat().st_size, path=path)
    raise ClippanError(
        "The model of the weights {path} is unknown; copy their {config} beside them, or give the file the name under "
        "which the model is published.",
        path=path,
        config=CONFIG,
    )
