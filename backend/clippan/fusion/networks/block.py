"""The residual block of several networks."""

from __future__ import annotations

from typing import Callable

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions with an activation between, added to what came in."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._activation = activation
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        new: Tensor = self.second(self._activation(self.first(x)))
        return x + new
