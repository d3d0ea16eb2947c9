"""The losses of FarSLIP (Li et al. 2025, arXiv 2511.14901), written from the paper's description.

Stage 1 compares what a picture shows in a place with a crop of that place (``distillation``), stage 2 crops of objects
with their categories. The contrast of whole pictures with their texts goes with both, and is the same function as that
of objects with categories: ``contrast``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

_NEVER = -1e4  # a logit that no cosine comes near: of it softmax leaves nothing


def distillation(cells: Tensor, boxes: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    """How unlike a picture's features in a box are to those of a crop of that box: mean of 1 − cos.

    The vector of a box is the mean of RoIAlign's cells in it (He et al. 2017, with the half-pixel shift), and so is
    about the mean of the picture's cells there.

    Args:
        cells: dense features of whole pictures, (n, width, rows, columns).
        boxes: k crops of each picture as left, top, right, bottom, in parts of the picture's width and height,
            (n, k, 4).
        target: vectors of the crops, (n, k, width), of any length: the mean of a crop's own cells (patch to patch), or
            its pooled vector (patch to CLS).
        grid: rows and columns of a crop's own cells, which RoIAlign takes.

    Returns:
        A number from 0 to 2.
    """
    count, _, rows, columns = cells.shape
    scale = boxes.new_tensor([columns, rows, columns, rows])
    places = [part.to(cells.dtype) for part in (boxes * scale).unbind()]
    seen = roi_align(cells, places, grid, aligned=True).mean((2, 3)).view(count, boxes.shape[1], -1)
    return (1 - functional.cosine_similarity(seen, target, dim=-1)).mean()


def contrast(
    pictures: Tensor, texts: Tensor, scale: Tensor, groups: Sequence[Hashable], neither: Optional[Tensor] = None
) -> Tensor:
    """Symmetric cross-entropy between pictures (or objects) and texts, with soft targets over all of one group.

    With S = scale · cos(picture_i, text_j) and T_ij = [group_i = group_j] / |group_i|, it is the mean of
    −Σ_j T_ij log softmax_j(S_ij) over pictures and of the same over texts, halved. Where all groups differ, T is the
    unit matrix, and this the contrast of CLIP (Radford et al. 2021).

    Args:
        pictures: vectors, (n, width), of any length.
        texts: vectors of their texts, (n, width), of any length.
        scale: what cosines are multiplied by, one number.
        groups: for each pair what it belongs to, its text or its category.
        neither: what is no example of another, nor a counterexample, and so left out of the sums, bool (n, n),
            symmetric; nothing of one group.
    """
    logits = scale * functional.normalize(pictures, dim=-1) @ functional.normalize(texts, dim=-1).T
    if neither is not None:
        logits = logits.masked_fill(neither, _NEVER)
    known = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    numbers = torch.tensor([known[group] for group in groups], device=logits.device)
    same = (numbers[:, None] == numbers).to(logits.dtype)
    targets = same / same.sum(1, keepdim=True)  # symmetric: a group is as large seen from either side
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def gather_vectors(vectors: Tensor, sizes: Sequence[int]) -> Tensor:
    """The vectors of all processes, in their order, for a loss over all pairs; this process's own when it is alone.

    Every process computes the same loss and has the gradient of its own vectors, times the number of processes, as
    data parallel takes the mean of gradients afterwards: their sum is meant.

    Args:
        vectors: of this process, (n, width).
        sizes: n of each process.

    Returns:
        (sum of the sizes, width)
    """
    if len(sizes) == 1:
        return vectors
    parts = [vectors.new_empty(max(sizes), vectors.shape[1]) for _ in sizes]
    own = vectors.new_zeros(parts[0].shape)
    own[: len(vectors)] = vectors.detach()
    torch.distributed.all_gather(parts, own)
    found = [part[:size] for part, size in zip(parts, sizes)]
    # The value stays as it is.
    found[torch.distributed.get_rank()] = vectors + (len(sizes) - 1) * (vectors - vectors.detach())
    return torch.cat(found)
