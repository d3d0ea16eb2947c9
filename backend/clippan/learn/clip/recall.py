"""Recall of a retrieval between chips of a sensor and their pictures."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from clippan.jobs.align import Recall

_FIRST = (1, 5, 10)


def recall(queries: Tensor, answers: Tensor) -> Recall:
    """How often the answer in a query's own row is among the first by cosine; ties count half.

    Args:
        queries, answers: vectors (n, width), of any length; rows belong together.
    """
    cosines = functional.normalize(queries, dim=-1) @ functional.normalize(answers, dim=-1).T
    own = cosines.diag()[:, None]
    # Ties get the mean of their ranks.
    ranks = (cosines > own).sum(1) + ((cosines == own).sum(1) - 1) / 2
    return Recall(*(float((ranks < first).float().mean()) for first in _FIRST))


def chance(count: int) -> Recall:
    """Recall of random guesses among ``count`` answers."""
    return Recall(*(min(first / count, 1.0) for first in _FIRST))
