"""The Processing algorithms, one a file."""

from __future__ import annotations

from .adaptfusionmodel import AdaptFusionModel
from .assesspansharpening import AssessPansharpening
from .buildtileindex import BuildTileIndex
from .calibrateprompts import CalibratePrompts
from .checkengine import CheckEngine
from .downloadmodel import DownloadModel
from .listmodels import ListModels
from .pansharpen import Pansharpen
from .search import SearchByExample, SearchByText
from .segmentbytext import SegmentByText
from .setupengine import SetUpEngine
from .trainregionalignedclip import TrainRegionAlignedClip

ALGORITHMS = (
    Pansharpen,
    AssessPansharpening,
    AdaptFusionModel,
    BuildTileIndex,
    SearchByText,
    SearchByExample,
    SegmentByText,
    CalibratePrompts,
    ListModels,
    DownloadModel,
    TrainRegionAlignedClip,
    CheckEngine,
    SetUpEngine,
)
