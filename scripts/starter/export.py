"""Writes both towers as one model in open_clip's layout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from starter import text
from starter.image import NAME
from starter.teacher import WIDTH

SCALE = 30.0  # of the cosines before a softmax, as in training, about
PIXELS = 224  # edge of the square picture that goes in; views in training are smaller, 128 to 192
VISION = {
    "timm_model_name": NAME,
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": PIXELS,
}
CONFIG = {
    "model_cfg": {"embed_dim": WIDTH, "vision_cfg": VISION, "text_cfg": text.SHAPE},
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


def write(folder: Path, image: Mapping[str, torch.Tensor], words: Mapping[str, torch.Tensor], scale: float) -> None:
    """Writes the description and the weights (float16), each at once or not at all.

    Args:
        folder: where to.
        image: weights of the image tower under open_clip's names.
        words: those of the text tower.
        scale: by which cosines are multiplied before a softmax.

    Raises:
        RuntimeError: the weights do not make up the model that the description tells of.
    """
    weights = {**image, **words, "logit_scale": torch.tensor(math.log(scale))}
    text.towers(WIDTH, dict(text.SHAPE), dict(VISION)).load_state_dict(weights, strict=True)
    halves = {
        name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in weights.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights_file, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    save_file(halves, str(weights_file.with_suffix(".part")), metadata={"format": "pt"})
    config.with_suffix(".part").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    weights_file.with_suffix(".part").chmod(0o644)
    weights_file.with_suffix(".part").replace(weights_file)
    config.with_suffix(".part").replace(config)
