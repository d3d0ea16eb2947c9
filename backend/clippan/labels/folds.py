"""Spatially disjoint folds for cross-validation."""

from __future__ import annotations

import numpy as np

_FOLDS = 5
BUFFER = 14  # pixels, the largest receptive radius of the classifiers without CLIP
_CHUNK = 256  # samples whose distances are computed at a time
NEVER_HELD_OUT = -1  # the fold of samples that are in every training set


def spatial_folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The fold in which each sample is left out.

    The groups of the rarest classes are dealt out first, so that every class is in as many folds as can be. A class
    whose groups would all be left out at once keeps its smallest one; a class with one group is never left out.
    (scikit-learn's StratifiedGroupKFold deals by size, whatever the seed: repeats of it would hardly differ.)

    Args:
        labels, groups: of the samples, (n,).
        seed: of the order in which groups are dealt out.

    Returns:
        (n,), 0 to 4, or ``NEVER_HELD_OUT``. No group is in two folds, and each class remains when a fold
        is held out.
    """
    rng = np.random.default_rng(seed)
    _, groups = np.unique(groups, return_inverse=True)
    fold_of = np.full(int(groups.max()) + 1, NEVER_HELD_OUT)
    groups_of = {int(label): np.unique(groups[labels == label]) for label in np.unique(labels)}
    rarest_first = sorted(groups_of, key=lambda label: len(groups_of[label]))
    dealt = np.zeros(len(fold_of), bool)
    for label in rarest_first:
        own = groups_of[label]
        counts = np.bincount(fold_of[own][dealt[own]], minlength=_FOLDS)
        for group in rng.permutation(own[~dealt[own]]):
            fold = int(rng.choice(np.flatnonzero(counts == counts.min())))
            fold_of[group], dealt[group] = fold, True
            counts[fold] += 1
    sizes = np.bincount(groups)
    for label in rarest_first:
        own = groups_of[label]
        if len(np.unique(fold_of[own])) == 1 and fold_of[own[0]] != NEVER_HELD_OUT:
            fold_of[own[np.argmin(sizes[own])]] = NEVER_HELD_OUT
    return fold_of[groups]


def training_mask(
    labels: np.ndarray, rows: np.ndarray, columns: np.ndarray, held_out: np.ndarray, buffer: int = BUFFER
) -> np.ndarray:
    """The training samples of a fold, bool (n,): those farther than a buffer from all samples that are held out. Of a
    class that would have none, all that are not held out.

    Args:
        labels, rows, columns: of the samples, (n,).
        held_out: bool (n,).
        buffer: in pixels.
    """
    near = np.zeros(len(labels), bool)
    for chunk in np.array_split(np.flatnonzero(held_out), max(int(held_out.sum()) // _CHUNK, 1)):
        down, across = (np.abs(axis[:, None] - axis[chunk]) for axis in (rows, columns))
        near |= (np.maximum(down, across) <= buffer).any(axis=1)
    kept = ~held_out & ~near
    lost = np.setdiff1d(labels[~held_out], labels[kept])
    return kept | (~held_out & np.isin(labels, lost))
