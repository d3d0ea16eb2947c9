"""The Processing algorithms."""

from __future__ import annotations

from .adaptfusionmodel import AdaptFusionModel
from .alignsensor import AlignSensor
from .assesspansharpening import AssessPansharpening
from .buildtileindex import BuildTileIndex
from .calibrateprompts import CalibratePrompts
from .checkengine import CheckEngine
from .classifyfewsamples import ClassifyFewSamples
from .finetuneclip import FinetuneClip
from .models import DownloadModel, ListModels
from .pansharpen import Pansharpen
from .pretrainscene import PretrainScene
from .search import SearchByExample, SearchByText
from .segmentbytext import SegmentByText
from .setupengine import SetUpEngine
from .sharpenbands import SharpenBands
from .trainregionalignedclip import TrainRegionAlignedClip

ALGORITHMS = (
    Pansharpen,
    SharpenBands,
    AssessPansharpening,
    AdaptFusionModel,
    BuildTileIndex,
    SearchByText,
    SearchByExample,
    SegmentByText,
    CalibratePrompts,
    ClassifyFewSamples,
    PretrainScene,
    ListModels,
    DownloadModel,
    TrainRegionAlignedClip,
    FinetuneClip,
    AlignSensor,
    CheckEngine,
    SetUpEngine,
)
