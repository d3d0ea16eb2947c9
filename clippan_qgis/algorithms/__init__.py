"""The Processing algorithms, one a file."""

from __future__ import annotations

from .adaptfusionmodel import AdaptFusionModel
from .assesspansharpening import AssessPansharpening
from .buildtileindex import BuildTileIndex
from .checkengine import CheckEngine
from .downloadmodel import DownloadModel
from .listmodels import ListModels
from .pansharpen import Pansharpen
from .search import SearchByExample, SearchByText
from .setupengine import SetUpEngine

ALGORITHMS = (
    Pansharpen,
    AssessPansharpening,
    AdaptFusionModel,
    BuildTileIndex,
    SearchByText,
    SearchByExample,
    ListModels,
    DownloadModel,
    CheckEngine,
    SetUpEngine,
)
