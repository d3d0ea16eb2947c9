"""Text vectors of the classes of a prompt table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clippan.catalogue.prompts import PromptTable
from clippan.clip.encoder import ClipEncoder, background_phrases
from clippan.core.errors import ClippanError

_SAME_MEANING = 0.7  # cosine above which a background phrase means about the same as a class


@dataclass(frozen=True)
class ClassVectors:
    """Text vectors with the class of each.

    Attributes:
        vectors: float32 (n, width), of length 1 except calibrated ones.
        class_of: index of each vector's class, (n,), ascending from 0; the last is the background if there is one.
        class_count: number of classes without the background.
    """

    vectors: np.ndarray
    class_of: np.ndarray
    class_count: int

    @classmethod
    def embedding_axes(cls, width: int) -> ClassVectors:
        """One class for each component, so that similarities with them are the normalised image vectors themselves."""
        return cls(np.eye(width, dtype=np.float32), np.arange(width), width)


def prompt_texts(table: PromptTable) -> list[str]:
    """The texts that a model has to encode: words and descriptions of all classes without calibrated vectors."""
    return [text for prompt in table.classes if not prompt.vector for text in (*prompt.words, *prompt.descriptions)]


def class_vectors(encoder: ClipEncoder, table: PromptTable, with_background: bool) -> ClassVectors:
    """Encodes the words of a table: each word's vector plus the mean of its class's descriptions, or the class's
    calibrated vector.

    With a background, a further class holds common phrases for other things, except those close to a class.

    Raises:
        ClippanError: the table was calibrated for another model.
    """
    vectors, class_of = [], []
    for number, prompt in enumerate(table.classes):
        if prompt.vector:
            if table.model != encoder.spec.id or len(prompt.vector) != encoder.embedding_dim:
                raise ClippanError(
                    "The prompt table was calibrated for the model {model}, not for {id}; choose that model, or "
                    "calibrate the table again.",
                    model=table.model or "unknown",
                    id=encoder.spec.id,
                )
            vectors.append(np.array([prompt.vector], np.float32))
            class_of.append(number)
            continue
        words = encoder.encode_texts(prompt.words)
        if prompt.descriptions:
            words = words + encoder.encode_texts(prompt.descriptions).mean(axis=0)
            words /= np.linalg.norm(words, axis=1, keepdims=True)
        vectors.append(words)
        class_of += [number] * len(words)
    if with_background:
        common = encoder.encode_texts(background_phrases())
        other = (common @ np.concatenate(vectors).T).max(axis=1) < _SAME_MEANING
        vectors.append(common[other])
        class_of += [len(table.classes)] * int(other.sum())
    return ClassVectors(np.concatenate(vectors).astype(np.float32), np.array(class_of), len(table.classes))
