"""Spatially disjoint folds for cross-validation."""

from __future__ import annotations

import numpy as np

FOLDS = 5
BUFFER = 14  # pixels, the largest receptive radius of the classifiers without CLIP
_CHUNK = 256  # samples whose distances are computed at a time
NEVER_HELD_OUT = -1  # the fold of samples that are in every training set


def spatial_folds(labels: np.ndarray, groups: np.ndarray, seed: int, count: int = FOLDS) -> np.ndarray:
    """The fold in which each sample is left out.

    The groups of the rarest classes are dealt out first, so that every class is in as many folds as can be. A class
    whose groups would all be left out at once keeps its smallest one; a class with one group is never left out.
    (scikit-learn's StratifiedGroupKFold deals by size, whatever the seed: repeats of it would hardly differ.)

    Args:
        labels, groups: of the samples, (n,).
        seed: of the order in which groups are dealt out.
        count: of folds, at most.

    Returns:
        (n,), 0 to ``count`` - 1, or ``NEVER_HELD_OUT``. No group is in two folds, and each class is left when a fold
        is.
    """
    rng = np.random.default_rng(seed)
    _, groups = np.unique(groups, return_inverse=True)
    of = np.full(int(groups.max()) + 1, NEVER_HELD_OUT)
    members = {int(label): np.unique(groups[labels == label]) for label in np.unique(labels)}
    rarest = sorted(members, key=lambda label: len(members[label]))
    dealt = np.zeros(len(of), bool)
    for label in rarest:
        held = np.bincount(of[members[label]][dealt[members[label]]], minlength=count)
        for group in rng.permutation(members[label][~dealt[members[label]]]):
            best = int(rng.choice(np.flatnonzero(held == held.min())))
            of[group], dealt[group] = best, True
            held[best] += 1
    sizes = np.bincount(groups)
    for label in rarest:
        own = members[label]
        if len(np.unique(of[own])) == 1 and of[own[0]] != NEVER_HELD_OUT:
            of[own[np.argmin(sizes[own])]] = NEVER_HELD_OUT
    return of[groups]


def training_mask(
    labels: np.ndarray, rows: np.ndarray, columns: np.ndarray, out: np.ndarray, buffer: int = BUFFER
) -> np.ndarray:
    """The training samples of a fold: those farther than a buffer from all samples that are left out. Of a class that
    would have none, all that are not left out.

    Args:
        labels, rows, columns: of the samples, (n,).
        out: which are left out, bool (n,).
        buffer: in pixels.

    Returns:
        bool (n,).
    """
    near = np.zeros(len(labels), bool)
    for chunk in np.array_split(np.flatnonzero(out), max(int(out.sum()) // _CHUNK, 1)):
        down, across = (np.abs(axis[:, None] - axis[chunk]) for axis in (rows, columns))
        near |= (np.maximum(down, across) <= buffer).any(axis=1)
    kept = ~out & ~near
    lost = np.setdiff1d(labels[~out], labels[kept])
    return kept | (~out & np.isin(labels, lost))
