"""Fusion networks behind one factory.

Every network is called as ``network(up, pan, pan_lowpass, classical)`` with standardised float tensors on PAN's grid
(see ``clippan.learn.fusion.batch.PatchBatch``): the interpolated MS (n, c, H, W), PAN (n, 1, H, W), PAN filtered with
each band's MTF (n, c, H, W) and the classical result (n, c, H, W); it returns the fused bands (n, c, H, W). The
published backbones look at the first two only.

The table names classes by text, so that listing the networks imports none of them, nor torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Optional

from clippan.core.errors import ClippanError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Network:
    """What is known of a network before it is built.

    Attributes:
        label: its name in tables.
        entry_point: where its class is, ``module:class``, the module in this package.
        any_bands: whether one network takes any number of bands; others are built for one number.
        tile_alignment: a pixel's result is the same in every tile that holds its surroundings, if the tiles' corners
            lie a multiple of this number of pixels apart (by default options); None if it depends on all of the tile.
        source: the publication.
    """

    label: str
    entry_point: str
    any_bands: bool
    tile_alignment: Optional[int]
    source: str

    def load(self) -> type[torch.nn.Module]:
        """The network's class, imported now."""
        module, name = self.entry_point.split(":")
        loaded: type[torch.nn.Module] = getattr(import_module(f"{__name__}.{module}"), name)
        return loaded


NETWORKS: Mapping[str, Network] = {
    "detail": Network("Detail", "gain_correction:GainCorrectionNet", True, 4, "this project"),
    "pnn": Network("PNN", "pnn:PNN", False, 1, "Masi et al. 2016, doi:10.3390/rs8070594"),
    "lambda-pnn": Network("λ-PNN", "pnn:LambdaPNN", False, None, "Ciotola et al. 2023, doi:10.1109/TGRS.2023.3299356"),
    "arbrpn": Network("ArbRPN", "arbrpn:ArbRPN", True, 1, "Chen et al. 2022, doi:10.1109/TGRS.2021.3131228"),
    "lformer": Network("LFormer", "lformer:LFormer", False, 8, "Hou et al. 2024, arXiv:2404.12804"),
    "panmamba": Network("Pan-Mamba", "panmamba:PanMamba", False, None, "He et al. 2025, arXiv:2402.12192"),
}


def build(name: str, bands: int, **options: Any) -> torch.nn.Module:
    """A network with fresh weights.

    Args:
        name: a key of ``NETWORKS``.
        bands: number of MS bands; networks that take any number do not look at it.
        **options: the network's own, such as ``width`` and ``depth``; as published by default.

    Raises:
        ClippanError: there is no such network or option, or a value does not fit.
    """
    if name not in NETWORKS:
        raise ClippanError(
            "There is no fusion network {name!r}; choose one of {NETWORKS}.", name=name, NETWORKS=", ".join(NETWORKS)
        )
    if not _is_positive_int(bands):
        raise ClippanError(
            "A fusion network cannot be built for {bands!r} bands; give a whole number from 1.", bands=bands
        )
    network = NETWORKS[name]
    loaded = network.load()
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(loaded).parameters.items()
        if parameter.default is not parameter.empty
    }
    for key, value in options.items():
        if key not in known:
            raise ClippanError(
                "The network {label} has no option {key!r}; choose among {known}.",
                label=network.label,
                key=key,
                known=", ".join(known) or "none",
            )
        if _is_positive_int(known[key]) and not _is_positive_int(value):
            raise ClippanError(
                "The network {label} cannot have {key} {value!r}; give a whole number from 1.",
                label=network.label,
                key=key,
                value=value,
            )
    return loaded(**options) if network.any_bands else loaded(bands, **options)


def parameter_count(network: torch.nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def table() -> str:
    """The networks with their sizes, as docs/backbones.md shows them."""
    lines = [
        "| name | network | source | parameters at 4 bands | at 8 bands | any number of bands | step |",
        "|---|---|---|---:|---:|---|---:|",
    ]
    for name, network in NETWORKS.items():
        four, eight = (parameter_count(build(name, bands)) for bands in (4, 8))
        any_bands, step = "yes" if network.any_bands else "no", network.tile_alignment or "–"
        lines.append(f"| `{name}` | {network.label} | {network.source} | {four:,} | {eight:,} | {any_bands} | {step} |")
    return "\n".join(lines)


def _is_positive_int(value: object) -> bool:
    """Whether a value is a whole number from 1; True is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
