"""A model that anybody can check: it sees a picture's mean colour, and reads the names of colours."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "warm": (1, 0.6, 0),
    "white": (1, 1, 1),
}


def unit(vectors):
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class ColourEncoder:
    """Looks like ``clip.encoder.ClipEncoder``."""

    def __init__(self, sha256="1" * 64, image_size=16, batch=8, name="colours"):
        self.spec = SimpleNamespace(id=name, label=name.title())
        self.sha256, self.image_size, self.batch = sha256, image_size, batch
        self.device, self.embedding_dim, self.logit_scale = torch.device("cpu"), 4, 20.0
        self.output_stride, self.accepts_any_size, self.channels = 4, False, None
        self.seen = 0

    def encode_images(self, pictures):
        self.seen += len(pictures)
        means = pictures.reshape(len(pictures), 3, -1).mean(axis=2) / 255
        return unit(np.concatenate([means, np.full((len(pictures), 1), 0.2)], axis=1))

    def cell_cosines(self, pictures, text_features):
        """Each cell sees its own mean colour, and nothing else."""
        self.seen += len(pictures)
        count, _, height, width = pictures.shape
        parts = pictures.reshape(
            count, 3, height // self.output_stride, self.output_stride, width // self.output_stride, self.output_stride
        )
        means = parts.mean(axis=(3, 5)) / 255
        vectors = unit(
            np.concatenate([means, np.full((count, 1, *means.shape[2:]), 0.2)], axis=1).transpose(0, 2, 3, 1)
        )
        cosines = np.einsum("nhwc,kc->nkhw", vectors, text_features).astype(np.float32)
        return cosines, self.encode_images(pictures) @ text_features.T

    def encode_texts(self, texts):
        return unit([(*COLOURS[text], 0.2) for text in texts])

    def text_warnings(self, phrases):
        return []


def use(monkeypatch, encoder=None):
    """Has the jobs use it; returns it."""
    from clippan.clip import class_vectors, similarity
    from clippan.handlers import index as build
    from clippan.handlers import search as query

    encoder = encoder or ColourEncoder()
    for module in (build, query, similarity):
        monkeypatch.setattr(module, "load_encoder", lambda *_: encoder)
    for module in (query, class_vectors):
        monkeypatch.setattr(module, "background_phrases", lambda: ["red", "green", "blue", "white"])
    return encoder
