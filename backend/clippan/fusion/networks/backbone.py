"""What the published networks share."""

from __future__ import annotations

from typing import Callable, ClassVar, Optional

from torch import Tensor, nn

from clippan.core.errors import ClippanError

# How much of its usual size the last layer starts with. Every network adds detail to the interpolated MS: it starts
# close to that, but not on it, as no gradient passes through a layer of zeros.
_START = 0.05


class Backbone(nn.Module):
    """A network that makes the detail to add to the interpolated MS from that and PAN.

    Attributes:
        label: its name in sentences.
        bands: the number that it was built for, 0 for any.
    """

    label: ClassVar[str]
    bands: int = 0

    def detail(self, up: Tensor, pan: Tensor) -> Tensor:
        """The detail (n, c, H, W)."""
        raise NotImplementedError

    def forward(
        self,
        up: Tensor,
        pan: Tensor,
        pan_lowpass: Optional[Tensor] = None,
        classical: Optional[Tensor] = None,
        conditions: Optional[Tensor] = None,
    ) -> Tensor:
        """See the package. Raises ClippanError for another number of bands than the network was built for."""
        if self.bands not in (0, up.shape[1]):
            raise ClippanError(
                "MS has {shape} bands but this {label} network was built for {bands}; choose those bands, or a network "
                "for any number of bands.",
                shape=up.shape[1],
                label=self.label,
                bands=self.bands,
            )
        return up + self.detail(up, pan)


class ResidualBlock(nn.Module):
    """Two convolutions with an activation between, added to what came in."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._activation = activation
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        new: Tensor = self.second(self._activation(self.first(x)))
        return x + new


def last_convolution(channels: int, bands: int, size: int) -> nn.Conv2d:
    """A network's last layer, which starts with little detail and without a shift of the bands."""
    layer = nn.Conv2d(channels, bands, size, padding=size // 2)
    layer.weight.data.mul_(_START)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
