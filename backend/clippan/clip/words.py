"""Prompt tables as vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clippan.catalogue.prompts import Table
from clippan.clip.encoder import Encoder, background
from clippan.core.errors import ClippanError

_ALIKE = 0.7  # cosine from which a common word means about the same as one of the table


@dataclass(frozen=True)
class Words:
    """What places are compared with.

    Attributes:
        vectors: of all words, float32 (n, width), of length 1 but for calibrated ones.
        owners: the class of each, (n,), ascending from 0; the last is the background if there is one.
        classes: how many, without the background.
    """

    vectors: np.ndarray
    owners: np.ndarray
    classes: int


def phrases(table: Table) -> list[str]:
    """What a model reads of a table: all words and descriptions, but of classes that a calibration gave vectors."""
    return [text for prompt in table.classes if not prompt.vector for text in (*prompt.words, *prompt.descriptions)]


def words(model: Encoder, table: Table, with_background: bool) -> Words:
    """The words of a table, averaged over the model's templates, each with its class's descriptions; or what a
    calibration made of them.

    Args:
        model: that reads.
        table: the prompts.
        with_background: add common words for other things, but for those that mean about what the table says.

    Raises:
        ClippanError: the table was calibrated for another model.
    """
    vectors, owners = [], []
    for number, prompt in enumerate(table.classes):
        if prompt.vector:
            if table.model != model.model.id or len(prompt.vector) != model.width:
                raise ClippanError(
                    "The prompt table was calibrated for the model {model}, not for {id}; choose that model, or "
                    "calibrate the table again.",
                    model=table.model or "unknown",
                    id=model.model.id,
                )
            vectors.append(np.array([prompt.vector], np.float32))
            owners.append(number)
            continue
        own = model.texts(prompt.words)
        if prompt.descriptions:
            own = own + model.texts(prompt.descriptions).mean(axis=0)
            own /= np.linalg.norm(own, axis=1, keepdims=True)
        vectors.append(own)
        owners += [number] * len(own)
    if with_background:
        common = model.texts(background())
        other = (common @ np.concatenate(vectors).T).max(axis=1) < _ALIKE
        vectors.append(common[other])
        owners += [len(table.classes)] * int(other.sum())
    return Words(np.concatenate(vectors).astype(np.float32), np.array(owners), len(table.classes))
