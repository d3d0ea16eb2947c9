"""What fusion has to know of a whole scene before its first block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch

from clippan.core.context import Context
from clippan.fusion import filters
from clippan.fusion.filters import BandMtf
from clippan.fusion.methods import needs_low_pass, needs_mtf
from clippan.fusion.mtf_estimation import Mtf, choose_mtf
from clippan.fusion.neural import network_trust
from clippan.fusion.registration import Shifts, register
from clippan.fusion.statistics import SceneStatistics, measure_scene
from clippan.jobs.options import Method, MtfSource, Registration
from clippan.raster.pair import Pair


@dataclass(frozen=True)
class FusionScene:
    """A registered pair and its measurements.

    Attributes:
        pair: with MS registered to PAN.
        shifts: that registered it.
        mtf: of the bands; without gains for methods that need none.
        low_pass_mtfs: distinct MTFs that PAN is filtered with for the method; empty if it needs none.
        mtf_index_of_band: index of each band's MTF among the distinct ones.
        statistics: of the bands and PAN.
        trust: weight of a network's correction of each band, None for 1.
    """

    pair: Pair
    shifts: Shifts
    mtf: Mtf
    low_pass_mtfs: tuple[BandMtf, ...]
    mtf_index_of_band: tuple[int, ...]
    statistics: SceneStatistics
    trust: Optional[torch.Tensor]

    @classmethod
    def measure(
        cls,
        pair: Pair,
        whole: Pair,
        positions: Sequence[int],
        table_gains: Sequence[float],
        pan_mtf_gain: float,
        method: Method,
        registration: Registration,
        mtf_source: MtfSource,
        threads: int,
        context: Context,
    ) -> FusionScene:
        """Measures ``whole``, which has more bands than are fused, so that a band's result does not depend on the
        others that are.

        Args:
            pair: with the bands to fuse.
            whole: the same rasters with all bands that have data.
            positions: of the bands to fuse in ``whole``.
            table_gains: MTF gain of each of its bands by the sensor's table.
        """
        registered, shifts = register(whole, registration, table_gains, threads, context.subrange(0, 40))
        mtf, gains = Mtf(()), tuple(table_gains)
        if needs_mtf(method):
            mtf = choose_mtf(registered, mtf_source, table_gains, threads, context.subrange(40, 60))
            gains = mtf.gains
        mtfs, index = filters.distinct_mtfs(gains, registered.band_shifts)
        statistics = measure_scene(
            registered,
            mtfs if needs_low_pass(method) else [],
            pan_mtf_gain,
            threads,
            context.subrange(60, 100),
            gains if method is Method.BDSD else None,
        )
        trust = network_trust(statistics, index, gains) if method is Method.CLIPPAN else None
        shifts = shifts.selected(positions)
        pair = shifts.apply(pair)
        own_mtfs, own_index = filters.distinct_mtfs([gains[band] for band in positions], pair.band_shifts)
        low_pass_mtfs = own_mtfs if needs_low_pass(method) else []
        return cls(
            pair,
            shifts,
            mtf.selected(positions) if mtf.gains else mtf,
            tuple(low_pass_mtfs),
            tuple(own_index),
            statistics.selected(positions, [mtfs.index(item) for item in low_pass_mtfs]),
            None if trust is None else trust[list(positions)],
        )
