"""Tiny CLIPs with random weights, in folders as ``clippan`` opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from clippan.catalogue.models import CONFIG

_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "transformer": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "convolutions": {
        "timm_model_name": "test_efficientnet",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
}


def make(folder: Path, tower: str) -> str:
    """A folder with such a model; its path."""
    torch.manual_seed(1)
    folder.mkdir()
    description = {"embed_dim": 16, "vision_cfg": TOWERS[tower], "text_cfg": _TEXT}
    config = {"model_cfg": description, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(open_clip.CLIP(**description).state_dict(), folder / "open_clip_model.safetensors")
    return str(folder)
