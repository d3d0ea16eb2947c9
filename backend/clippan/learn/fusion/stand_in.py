"""What stands for the unknown fused image in stage I of CLIPPan, beside MTF-GLP-HPM-R, which every batch has."""

from __future__ import annotations

import torch
from torch import Tensor

from clippan.fusion.methods import BDSD
from clippan.fusion.statistics import SceneStatistics
from clippan.learn.fusion.batch import PatchBatch
from clippan.learn.fusion.patches import MIN_VALID_SHARE, ScenePair
from clippan.learn.fusion.validation import mtf_filtered


def fit_bdsd(pair: ScenePair, bands: int) -> BDSD:
    """BDSD (Garzelli, Nencini and Capobianco 2008), fitted to the first bands of a scene."""
    ms = torch.from_numpy(pair.ms[:bands])
    valid = torch.from_numpy(pair.valid)
    if not bool(valid.all()):
        weight = mtf_filtered(valid.float()[None].expand(bands, -1, -1), pair, pair.mtf_gains)
        covered = valid & (weight > MIN_VALID_SHARE).all(dim=0)
        valid = covered if bool(covered.any()) else valid
    pan = torch.from_numpy(pair.degraded_pan(pair.pan_mtf_gain))
    samples = torch.cat([ms, pan[None], mtf_filtered(ms, pair, pair.mtf_gains)])[:, valid].double()
    statistics = SceneStatistics(
        band_count=bands,
        mtf_count=0,  # BDSD needs no PAN at the bands' MTF
        mean=samples.mean(dim=1),
        covariance=torch.cov(samples, correction=0),
        dark=samples[:bands].min(dim=1).values,
        sample_count=samples.shape[1],
        zero_share=0.0,
    )
    return BDSD(statistics)


def bdsd_fused(method: BDSD, batch: PatchBatch, index: int) -> Tensor:
    """The standardised result of BDSD (c, H, W) for one patch of a batch."""
    up, pan = batch.destandardise(batch.up)[index], batch.destandardise_pan(batch.pan)[index, 0]
    return (method(up, pan, None) - batch.mean[index]) / batch.std[index]
