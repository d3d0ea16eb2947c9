"""The Processing algorithms, one a file."""

from __future__ import annotations

from .assesspansharpening import AssessPansharpening
from .checkengine import CheckEngine
from .downloadmodel import DownloadModel
from .listmodels import ListModels
from .pansharpen import Pansharpen
from .setupengine import SetUpEngine

ALGORITHMS = (Pansharpen, AssessPansharpening, ListModels, DownloadModel, CheckEngine, SetUpEngine)
