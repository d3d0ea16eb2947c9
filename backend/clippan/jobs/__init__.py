"""The jobs: what users ask the engine to do, and what they get back.

Processing algorithms, the CLI, Python and the worker all build these requests. Nothing here imports torch, GDAL
or QGIS when it is imported, so the plugin reads it too.
"""

from clippan.core.context import Context
from clippan.core.device import Device
from clippan.core.json import from_json, to_json
from clippan.jobs.base import JOBS, Request, Result
from clippan.jobs.options import Compression, Format, Method, Radiometry, Refinement, Registration, Stretch, parse_bands

# isort: off
# The order of the work, in which the command line and the reference list the jobs.
from clippan.jobs.pansharpen import PansharpenRequest, PansharpenResult
from clippan.jobs.sharpen import SharpenRequest, SharpenResult
from clippan.jobs.assess import FIGURES, AssessRequest, AssessResult
from clippan.jobs.adapt import ADAPTATION_FIGURES, AdaptFusionRequest, AdaptFusionResult
from clippan.jobs.train_fusion import TrainFusionRequest, TrainFusionResult
from clippan.jobs.index import AboutIndexRequest, AboutIndexResult, IndexRequest, IndexResult
from clippan.jobs.search import Hit, SearchRequest, SearchResult, ThumbnailsRequest, ThumbnailsResult
from clippan.jobs.segment import ClassArea, SegmentRequest, SegmentResult
from clippan.jobs.calibrate import Accuracy, CalibrateRequest, CalibrateResult
from clippan.jobs.classify import Classifier, ClassifyRequest, ClassifyResult, MapAccuracy, Score
from clippan.jobs.pretrain_scene import PretrainSceneRequest, PretrainSceneResult
from clippan.jobs.align import AlignSensorRequest, AlignSensorResult, Recall
from clippan.jobs.finetune_clip import AlphaPoint, ClassGain, FinetuneClipRequest, FinetuneClipResult
from clippan.jobs.train_clip import (
    ClipMethod,
    ImageFormat,
    Precision,
    RegionsRequest,
    RegionsResult,
    Target,
    Teacher,
    TrainClipRequest,
    TrainClipResult,
)
from clippan.jobs.doctor import Check, DoctorRequest, DoctorResult, Status
from clippan.jobs.models import (
    DownloadModelRequest,
    DownloadModelResult,
    ListModelsRequest,
    ListModelsResult,
    ModelRow,
    RemoveModelRequest,
    RemoveModelResult,
)
