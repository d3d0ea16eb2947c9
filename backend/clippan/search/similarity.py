"""Compares all vectors of a matrix with a few others, fast and in little memory."""

from __future__ import annotations

import numpy as np


def dot_products(matrix: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Dot products float32 (n, rows) of all rows of a float16 matrix (rows, width), maybe mapped from a file, with
    directions (n, width)."""
    import torch

    result = np.empty((len(directions), len(matrix)), np.float32)
    with torch.inference_mode():
        rows = torch.from_numpy(matrix)
        for line, direction in zip(result, torch.from_numpy(directions.astype(np.float16))):
            line[:] = torch.mv(rows, direction).numpy()  # a product with several at once takes ten times as long
    return result


def top_rows(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Those of ``rows`` (int64, ascending) whose value is among the ``count`` largest of any line of ``values`` (lines,
    all rows); ascending."""
    if len(rows) <= count:
        return rows
    import torch

    chosen = []
    for line in values:
        among = line if len(rows) == len(line) else line[rows]
        chosen.append(rows[torch.topk(torch.from_numpy(among), count, sorted=False).indices.numpy()])
    return np.unique(np.concatenate(chosen))
