"""Fusion networks behind one factory.

Every network is called as ``network(up, pan, pan_lowpass, classical, conditions)`` with standardised float tensors on
PAN's grid (see ``clippan.learn.fusion.batch.PatchBatch``): the interpolated MS (n, c, H, W), PAN (n, 1, H, W), PAN
filtered with each band's MTF (n, c, H, W), the classical result (n, c, H, W), and the assumed blur and ratio of each
band (n, c, 2); it returns the fused bands (n, c, H, W). The published backbones look at the first two only.

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
        departures: where it differs from the publication on purpose, and the option that undoes it.
    """

    label: str
    entry_point: str
    any_bands: bool
    tile_alignment: Optional[int]
    source: str
    departures: str = ""

    def build(self, bands: int, **options: Any) -> torch.nn.Module:
        """The network with fresh weights; see ``networks.build``."""
        if not _is_positive_int(bands):
            raise ClippanError(
                "A fusion network cannot be built for {bands!r} bands; give a whole number from 1.", bands=bands
            )
        module, name = self.entry_point.split(":")
        loaded = getattr(import_module(f"{__name__}.{module}"), name)
        known = {
            key: parameter.default
            for key, parameter in inspect.signature(loaded).parameters.items()
            if parameter.default is not parameter.empty
        }
        for key, value in options.items():
            if key not in known:
                raise ClippanError(
                    "The network {label} has no option {key!r}; choose among {known}.",
                    label=self.label,
                    key=key,
                    known=", ".join(known) or "none",
                )
            self._check_option(key, value, known[key])
        network: torch.nn.Module = loaded(**options) if self.any_bands else loaded(bands, **options)
        return network

    def _check_option(self, key: str, value: object, default: object) -> None:
        """Raises ClippanError if a value is not of the kind of the option's default, where None stands for a number."""
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ClippanError(
                    "The network {label} cannot have {key} {value!r}; give true or false.",
                    label=self.label,
                    key=key,
                    value=value,
                )
        elif (default is None or _is_positive_int(default)) and not (_is_positive_int(value) or value == default):
            raise ClippanError(
                "The network {label} cannot have {key} {value!r}; give a whole number from 1.",
                label=self.label,
                key=key,
                value=value,
            )


NETWORKS: Mapping[str, Network] = {
    "detail": Network("Detail", "gain_correction:GainCorrectionNet", True, 4, "this project"),
    "modulation": Network("Detail modulation", "detail_modulation:DetailModulationNet", True, 4, "this project"),
    "pnn": Network(
        "PNN",
        "pnn:PNN",
        False,
        1,
        "Masi et al. 2016, doi:10.3390/rs8070594",
        "zeros around the picture (`repeated_border: true`: as published); no radiometric indices; adds to the "
        "interpolated MS, as A-PNN",
    ),
    "lambda-pnn": Network(
        "λ-PNN",
        "pnn:LambdaPNN",
        False,
        None,
        "Ciotola et al. 2023, doi:10.1109/TGRS.2023.3299356",
        "the publication's parts, in a layout of ours",
    ),
    "arbrpn": Network("ArbRPN", "arbrpn:ArbRPN", True, 1, "Chen et al. 2022, doi:10.1109/TGRS.2021.3131228"),
    "lformer": Network(
        "LFormer",
        "lformer:LFormer",
        False,
        8,
        "Hou et al. 2024, arXiv:2404.12804",
        "attention depends on PAN (`norm_pan: true`: as released)",
    ),
    "panmamba": Network(
        "Pan-Mamba",
        "panmamba:PanMamba",
        False,
        None,
        "He et al. 2025, arXiv:2402.12192",
        "without 6,400 parameters that the released class never uses; MS comes interpolated, not as repeated pixels",
    ),
}

# Networks that models of version 0.1 have. They cannot be chosen for training.
VERSION_0_1: Mapping[str, Network] = {
    f"{name}-0.1": Network(
        f"{NETWORKS[name].label} (form of version 0.1, not as published)",
        f"version_0_1:{cls}",
        NETWORKS[name].any_bands,
        NETWORKS[name].tile_alignment,
        "version 0.1 of CLIPPan",
    )
    for name, cls in (("arbrpn", "ArbRPN"), ("lformer", "LFormer"), ("panmamba", "PanMamba"))
}


def build(name: str, bands: int, **options: Any) -> torch.nn.Module:
    """A network with fresh weights.

    Args:
        name: a key of ``NETWORKS``.
        bands: number of MS bands; networks that take any number do not look at it.
        **options: the network's own, such as ``width`` and ``depth``; as published by default, but for what
            ``Network.departures`` says.

    Raises:
        ClippanError: there is no such network or option, or a value does not fit.
    """
    if name not in NETWORKS:
        raise ClippanError(
            "There is no fusion network {name!r}; choose one of {NETWORKS}.", name=name, NETWORKS=", ".join(NETWORKS)
        )
    return NETWORKS[name].build(bands, **options)


def parameter_count(network: torch.nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def table() -> str:
    """The networks with their sizes, as docs/backbones.md shows them."""
    lines = [
        "| name | network | parameters at 4 bands | at 8 bands | any bands | step | source | differs on purpose |",
        "|---|---|---:|---:|---|---:|---|---|",
    ]
    for name, network in NETWORKS.items():
        four, eight = (f"{parameter_count(build(name, bands)):,}" for bands in (4, 8))
        any_bands, step = "yes" if network.any_bands else "no", network.tile_alignment or "–"
        lines.append(
            f"| `{name}` | {network.label} | {four} | {eight} | {any_bands} | {step} | {network.source} | "
            f"{network.departures or '–'} |"
        )
    return "\n".join(lines)


def _is_positive_int(value: object) -> bool:
    """Whether a value is a whole number from 1; True is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
