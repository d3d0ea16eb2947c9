"""Prompt tables as vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clippan.catalogue.prompts import PromptTable
from clippan.clip.encoder import Encoder, background_phrases
from clippan.core.errors import ClippanError

_SAME_MEANING = 0.7  # cosine from which a common word means about the same as one of the table


@dataclass(frozen=True)
class ClassVectors:
    """What places are compared with.

    Attributes:
        vectors: of all words, float32 (n, width), of length 1 but for calibrated ones.
        class_of: the class of each, (n,), ascending from 0; the last is the background if there is one.
        classes: how many, without the background.
    """

    vectors: np.ndarray
    class_of: np.ndarray
    classes: int


def prompt_texts(table: PromptTable) -> list[str]:
    """What a model reads of a table: all words and descriptions, but of classes that a calibration gave vectors."""
    return [text for prompt in table.classes if not prompt.vector for text in (*prompt.words, *prompt.descriptions)]


def class_vectors(model: Encoder, table: PromptTable, with_background: bool) -> ClassVectors:
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
        own = model.encode_texts(prompt.words)
        if prompt.descriptions:
            own = own + model.encode_texts(prompt.descriptions).mean(axis=0)
            own /= np.linalg.norm(own, axis=1, keepdims=True)
        vectors.append(own)
        owners += [number] * len(own)
    if with_background:
        common = model.encode_texts(background_phrases())
        other = (common @ np.concatenate(vectors).T).max(axis=1) < _SAME_MEANING
        vectors.append(common[other])
        owners += [len(table.classes)] * int(other.sum())
    return ClassVectors(np.concatenate(vectors).astype(np.float32), np.array(owners), len(table.classes))
