"""The losses of FarSLIP (Li et al. 2025, arXiv 2511.14901), written from the paper's description.

Stage 1 compares the features of a picture inside a box with those of a crop of that box (``distillation``), stage 2
compares crops of objects with their categories. ``contrast`` compares whole pictures with their texts in both stages,
and objects with categories in stage 2.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

_EXCLUDED = -1e4  # a logit whose softmax is 0


def distillation(cells: Tensor, boxes: Tensor, target: Tensor, output_size: tuple[int, int]) -> Tensor:
    """The mean of 1 − cos between the features of a picture inside a box and those of a crop of that box.

    The vector of a box is the mean of the cells of RoIAlign in it (He et al. 2017, with the half-pixel shift).

    Args:
        cells: dense features of whole pictures, (n, width, rows, columns).
        boxes: left, top, right and bottom of k crops of each picture, as shares of its width and height, (n, k, 4).
        target: vectors of the crops, (n, k, width), of any length: the mean of the crop's own cells (patch to patch),
            or its pooled vector (patch to CLS).
        output_size: rows and columns of the crop's own cells, which are also those of RoIAlign.

    Returns:
        A number from 0 to 2.
    """
    count, _, rows, columns = cells.shape
    scale = boxes.new_tensor([columns, rows, columns, rows])
    scaled = [part.to(cells.dtype) for part in (boxes * scale).unbind()]
    vectors = roi_align(cells, scaled, output_size, aligned=True).mean((2, 3)).view(count, boxes.shape[1], -1)
    return (1 - functional.cosine_similarity(vectors, target, dim=-1)).mean()


def contrast(
    pictures: Tensor, texts: Tensor, scale: Tensor, groups: Sequence[Hashable], excluded: Optional[Tensor] = None
) -> Tensor:
    """Symmetric cross-entropy between pictures (or objects) and texts, with soft targets over each group.

    With S = scale · cos(picture_i, text_j) and T_ij = [group_i = group_j] / |group_i|, it is the mean of
    −Σ_j T_ij log softmax_j(S_ij) over pictures and of the same over texts, halved. If all groups differ, T is the
    identity matrix and this is the loss of CLIP (Radford et al. 2021).

    Args:
        pictures: vectors, (n, width), of any length.
        texts: vectors of their texts, (n, width), of any length.
        scale: factor of the cosines, a scalar.
        groups: the group of each pair, such as its text or category.
        excluded: pairs that are neither positives nor negatives of each other, bool (n, n), symmetric; none of one
            group.
    """
    logits = scale * functional.normalize(pictures, dim=-1) @ functional.normalize(texts, dim=-1).T
    if excluded is not None:
        logits = logits.masked_fill(excluded, _EXCLUDED)
    known = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    numbers = torch.tensor([known[group] for group in groups], device=logits.device)
    same = (numbers[:, None] == numbers).to(logits.dtype)
    targets = same / same.sum(1, keepdim=True)  # symmetric
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def gather_vectors(vectors: Tensor, sizes: Sequence[int]) -> Tensor:
    """The vectors of all processes in order, for a loss over all pairs, (sum of sizes, width).

    Every process computes the same loss. The gradient of its own vectors is multiplied by the number of processes, as
    data parallelism averages gradients afterwards and their sum is needed.

    Args:
        vectors: of this process, (n, width).
        sizes: n of each process.
    """
    if len(sizes) == 1:
        return vectors
    parts = [vectors.new_empty(max(sizes), vectors.shape[1]) for _ in sizes]
    own = vectors.new_zeros(parts[0].shape)
    own[: len(vectors)] = vectors.detach()
    torch.distributed.all_gather(parts, own)
    gathered = [part[:size] for part, size in zip(parts, sizes)]
    # This changes the gradient, not the value.
    gathered[torch.distributed.get_rank()] = vectors + (len(sizes) - 1) * (vectors - vectors.detach())
    return torch.cat(gathered)
