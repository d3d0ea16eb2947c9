"""The text tower: a small transformer that learns from MiniLM where texts lie in the space.

Its corpus is WordNet (names and definitions of things) and the phrases of ``words.py`` in many wordings. Only tokens
that occur in it have a row in training; all other rows stay zero in the file, which compresses well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import nn
from torch.nn import functional

from starter import words
from starter.teacher import Encoder, Space

CONTEXT = 32
SHAPE = {"context_length": CONTEXT, "vocab_size": 49408, "width": 144, "heads": 4, "layers": 4}
# Kinds of WordNet's nouns whose definitions are all taken: acts, artifacts, groups, places, natural objects,
# phenomena, plants, shapes, substances. Of the other kinds every third.
_KINDS = {"04", "06", "14", "15", "17", "19", "20", "25", "27"}
_WORDNET = 0.45  # share of a batch from WordNet; the rest is our own phrases
_AGAIN = 6  # times that definitions with a word kept for the benchmark are taken
_PAIRS = 0.25  # share of our own that are phrases of two things


def wordnet(folder: Path) -> list[str]:
    """Lemmas of nouns and adjectives, and definitions of nouns.

    No lemma with a word kept for the benchmark; definitions with one, of all parts of speech, whole and several times.
    """
    lemmas: set[str] = set()
    glosses, kept = [], []
    for part in ("noun", "adj", "verb", "adv"):
        for number, line in enumerate((folder / f"data.{part}").read_text(encoding="utf-8").splitlines()):
            if line.startswith("  "):
                continue  # the licence
            data, _, gloss = line.partition(" | ")
            fields = data.split(" ")
            if part in ("noun", "adj"):
                for position in range(int(fields[3], 16)):
                    lemma = re.sub(r"\(\w+\)$", "", fields[4 + 2 * position]).replace("_", " ")
                    if not words.aside(lemma):
                        lemmas.add(lemma)
            if part == "noun" and (fields[1] in _KINDS or number % 3 == 0):
                glosses.append(gloss.split(";")[0].strip()[:120])
            if words.aside(gloss):
                kept.append(gloss.strip()[:160])
    return [*sorted(lemmas), *glosses, *kept * _AGAIN]


class Corpus:
    """Texts with their places in the space."""

    def __init__(self, texts: Sequence[str], raw: torch.Tensor, space: Space, encode: Encoder) -> None:
        """``raw`` is MiniLM's embedding of ``texts``, of shape (texts, 384)."""
        tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
        self._encode, self._ends = tokenizer.encode, (tokenizer.sot_token_id, tokenizer.eot_token_id)
        self.space, self.texts, self.places = space, texts, space.place(raw).half()
        self.concepts = list(words.CONCEPTS.values())
        phrases = words.phrases()
        self.phrases = dict(zip(phrases, space.place(encode(phrases))))
        self.tokens = [self._encode(text) for text in texts]
        self._known: dict[str, list[int]] = {}

    def own(self, chance: np.random.Generator) -> tuple[str, torch.Tensor]:
        """A phrase of our own with its place."""
        concept = self.concepts[chance.integers(len(self.concepts))]
        text = words.phrase(concept, chance)
        if chance.random() >= _PAIRS:
            return words.worded(text, chance), self.phrases[text]
        other = words.phrase(self.concepts[chance.integers(len(self.concepts))], chance)
        place = functional.normalize(0.6 * self.phrases[text] + 0.4 * self.phrases[other], dim=0)
        return words.pair(text, other, chance), place

    def batch(self, size: int, chance: np.random.Generator) -> tuple[list[list[int]], torch.Tensor]:
        """Token numbers without padding, and places of shape (size, 384)."""
        tokens, places = [], []
        for _ in range(size):
            if chance.random() < _WORDNET:
                number = int(chance.integers(len(self.texts)))
                place = self.places[number].float()
                if chance.random() < 0.15:
                    row = self._tokens(words.worded(self.texts[number], chance))
                else:
                    row = self.tokens[number]
            else:
                text, place = self.own(chance)
                row = self._tokens(text)
            tokens.append([self._ends[0], *row[: CONTEXT - 2], self._ends[1]])
            places.append(place)
        return tokens, torch.stack(places)

    def _tokens(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._encode(text)
        return self._known[text]

    def vocabulary(self) -> torch.Tensor:
        """Numbers of all tokens that can occur, sorted, int64."""
        found = {number for row in self.tokens for number in row} | set(self._ends)
        for text in (*self.phrases, *words.TEMPLATES, *words.SENTENCES, *words.PAIRS, "a", "an", "a.", "a,"):
            found |= set(self._encode(text.replace("{}", " a ")))
        return torch.tensor(sorted(found))


def towers(embed: int, shape: dict[str, Any], vision: dict[str, Any]) -> open_clip.CLIP:
    """open_clip's model with these shapes, without weights."""
    return open_clip.CLIP(embed, vision, shape)


class Student(nn.Module):
    """The text tower of a model with a vocabulary cut to what occurs; padding costs nothing in training."""

    def __init__(self, model: open_clip.CLIP, vocabulary: torch.Tensor) -> None:
        """``vocabulary`` holds the numbers of the tokens to keep, sorted, int64."""
        super().__init__()
        self.transformer, self.ln_final = model.transformer, model.ln_final
        self.positional_embedding, self.text_projection = model.positional_embedding, model.text_projection
        self.token_embedding = nn.Embedding(len(vocabulary), SHAPE["width"])
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.register_buffer("vocabulary", vocabulary)
        self.register_buffer("mask", model.attn_mask, persistent=False)

    def begin(self, space: Space, encode: Encoder) -> None:
        """Starts whole words at where they lie in the space, along its main directions, which saves most of training.

        Words kept for the benchmark start at random like all parts of words.
        """
        names = open_clip.SimpleTokenizer().decoder
        known = [
            (row, names[number][:-4]) for row, number in enumerate(self.vocabulary.tolist()) if "</w>" in names[number]
        ]
        known = [(row, name) for row, name in known if name.isalpha() and len(name) > 2 and not words.aside(name)]
        places = space.place(encode([name for _, name in known]))
        _, _, directions = torch.linalg.svd(places[:: len(places) // 4000 or 1], full_matrices=False)
        directions = directions[: SHAPE["width"]]
        start = places @ directions.T
        with torch.no_grad():
            self.token_embedding.weight[[row for row, _ in known]] = start * (0.08 / start.std())
            self.text_projection.copy_(directions)

    def forward(self, tokens: list[list[int]]) -> torch.Tensor:
        """Unit vectors of shape (texts, 384)."""
        length = max(map(len, tokens))
        last = torch.tensor([len(row) - 1 for row in tokens])
        numbers = torch.tensor([row + [row[-1]] * (length - len(row)) for row in tokens])
        rows = torch.searchsorted(self.vocabulary, numbers).clamp(max=len(self.vocabulary) - 1)
        hidden = self.token_embedding(rows) + self.positional_embedding[:length]
        hidden = self.transformer(hidden, attn_mask=self.mask[:length, :length])
        pooled = self.ln_final(hidden[torch.arange(len(tokens)), last])
        return functional.normalize(pooled @ self.text_projection, dim=-1)

    def weights(self) -> dict[str, torch.Tensor]:
        """Under open_clip's names, with the full vocabulary."""
        out = {
            name: value
            for name, value in self.state_dict().items()
            if name not in ("vocabulary", "token_embedding.weight")
        }
        full = torch.zeros(SHAPE["vocab_size"], SHAPE["width"])
        full[self.vocabulary] = self.token_embedding.weight.detach()
        return {**out, "token_embedding.weight": full}


def train(student: Student, corpus: Corpus, checkpoint: Path, steps: int, batch: int = 256, rate: float = 2e-3) -> None:
    """Distils for this many steps, resuming from and writing the checkpoint.

    The loss is 1 - cosine to the text's place, and the cross-entropy of finding a text's own place among the batch's.
    """
    optimizer = torch.optim.AdamW(student.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began, mean = time.time(), 0.0
    for step in range(start, steps):
        chance = np.random.default_rng(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 300) * (0.02 + 0.98 * (1 - step / steps))
        tokens, places = corpus.batch(batch, chance)
        order = sorted(range(batch), key=lambda number: len(tokens[number]))
        # Short and long texts go separately, which saves padding.
        parts = np.split(np.array(order), [batch // 2, batch * 13 // 16])
        out = torch.cat([student([tokens[number] for number in part]) for part in parts])
        places = places[order]
        cosine = (out * places).sum(1)
        with torch.no_grad():
            target = torch.softmax(20 * places @ places.T, 1)
        contrast = -(target * torch.log_softmax(20 * out @ places.T, 1)).sum(1)
        loss = (1 - cosine).mean() * 4 + 0.25 * contrast.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        mean += cosine.mean().item()
        if step % 200 == 199 or step == steps - 1:
            print(f"text {step + 1}/{steps} cosine {mean / 200:.4f} {(time.time() - began):.0f} s", flush=True)
            mean = 0.0
        if step % 500 == 499 or step == steps - 1:
            state = {"student": student.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
