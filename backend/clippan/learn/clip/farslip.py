"""FarSLIP training of any open_clip model on pictures with captions, classes and boxes.

Stage 1: contrast of pictures with their texts, and distillation between the cells of a picture and its crops.
Stage 2: contrast of pictures with their texts, and of objects with their categories.

``torchrun`` starts one process for each device; contrasts are computed over the pictures of all processes. The folder
of a run (``clippan.learn.loop``) becomes the folder of the model: ``open_clip_config.json`` and weights.

The model trains in eval mode: batch normalisation keeps its statistics, as those of a small batch of crops differ, and
there is no dropout.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from clippan import __version__
from clippan.catalogue.models import CONFIG, Model
from clippan.clip import dense
from clippan.clip.load import LoadedModel, load_model, read_architecture
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.outputs import Outputs, write_output
from clippan.jobs.train_clip import Precision, Target, Teacher, TrainClipRequest
from clippan.learn.clip import losses
from clippan.learn.clip.batch import BatchLoader, ImageBatch
from clippan.learn.clip.data import PHRASE, TrainingImage
from clippan.learn.clip.image_tower import adamw, freeze_text_tower
from clippan.learn.loop import TrainingLoop
from clippan.learn.optimisation import optimiser_step, running_average, warmup_cosine

WEIGHTS = "open_clip_model.safetensors"
_LOG_EVERY = 20  # steps averaged in a row of the curves
_CHECKPOINT_EVERY = 200  # steps between checkpoints
_TEACHER_DECAY = 0.99  # of the teacher that is a running average
_MAX_WARMUP = 1000  # steps, if the request has no warm-up
_MAX_LOG_SCALE = math.log(100)  # of the logit scale, as CLIP was trained
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def save_model(
    folder: Path, loaded: LoadedModel, base: Model, path: Path, sha256: str, about: Mapping[str, Any]
) -> None:
    """Writes a trained model, in float32; raises ClippanError if a file cannot be written.

    Args:
        folder: of the model.
        loaded: the trained model.
        base: the model that the training started from.
        path, sha256: weights of ``base``.
        about: further entries of the description; ``channels`` if the model takes other bands.
    """
    description = read_architecture(path, base)
    text = description["text_cfg"]
    length = getattr(loaded.network, "context_length", None)
    if isinstance(length, int):  # not part of open_clip's architecture names
        text["context_length"] = length
    mean, std = list(loaded.preprocessing.mean), list(loaded.preprocessing.std)
    preprocessing = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "squash"}
    history = {
        **({"channels": to_json(base.channels)} if base.channels else {}),
        "base": base.id,
        "base_sha256": sha256,
        "base_licence": base.licence,
        **about,
        "trained": datetime.date.today().isoformat(),
        "version": __version__,
    }
    config = {"model_cfg": description, "preprocess_cfg": preprocessing, "clippan": history}
    weights = {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in loaded.network.state_dict().items()
    }
    names = [name for name in _TOKENIZER_FILES if text.get("hf_tokenizer_name") and (path.parent / name).is_file()]
    with Outputs() as outputs:
        for name in names:
            with write_output(str(folder / name), outputs) as temporary:
                shutil.copyfile(path.parent / name, temporary)
        with write_output(str(folder / CONFIG), outputs) as temporary:
            temporary.write_text(json.dumps(config, indent=2), encoding="utf-8")
        with write_output(str(folder / WEIGHTS), outputs) as temporary:
            temporary.write_bytes(as_bytes(weights))


class FarslipLoss(nn.Module):
    """The loss of a batch as a module, so that data parallelism sees a single forward pass; for ``world_size``
    processes.

    Attributes:
        teacher: its ``visual`` encodes crops in stage 1; None for the model itself.
    """

    def __init__(self, loaded: LoadedModel, request: TrainClipRequest, world_size: int) -> None:
        super().__init__()
        self.model = loaded.network
        self.teacher: Optional[SimpleNamespace] = None  # not a module, so that it is not trained
        self._loaded, self._request, self._world_size = loaded, request, world_size

    def forward(self, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the loss terms, and the terms by name."""
        request, stage_two = self._request, bool(batch.categories)
        autocast = self._autocast(batch.pictures.device)
        distils = request.weight > 0 and not stage_two
        with autocast:
            pictures = self._loaded.normalised(batch.pictures)
            if distils:
                cells, pooled = dense.dense_features(self.model, pictures)
            else:
                pooled = self.model.encode_image(pictures)
        terms = {"contrast": self._contrast(pooled, batch.texts, batch.texts)}
        total = terms["contrast"]
        if stage_two:
            with autocast:
                objects = self.model.encode_image(self._loaded.normalised(batch.crops))
            sentences = [PHRASE.format(category) for category in batch.categories]
            terms["regions"] = self._contrast(objects, sentences, batch.categories)
            total = total + terms["regions"]
        elif distils:
            frozen = torch.no_grad() if self.teacher else nullcontext()
            with autocast, frozen:
                crops = self._loaded.normalised(batch.crops)
                crop_cells, crop_pooled = dense.dense_features(self.teacher or self.model, crops)
            target = crop_cells.float().mean((2, 3)) if request.target is Target.PATCH else crop_pooled.float()
            target = target.view(len(pictures), -1, target.shape[1])
            output_size = (crop_cells.shape[2], crop_cells.shape[3])
            terms["distillation"] = losses.distillation(cells.float(), batch.boxes, target, output_size)
            total = total + request.weight * terms["distillation"]
        return total, {name: value.detach() for name, value in terms.items()}

    def _contrast(self, vectors: Tensor, texts: Sequence[str], groups: Sequence[str]) -> Tensor:
        parts = [list(groups)]
        if self._world_size > 1:
            parts = [[] for _ in range(self._world_size)]
            torch.distributed.all_gather_object(parts, list(groups))
        sizes = [len(part) for part in parts]
        scale = self.model.logit_scale.exp().reshape(())
        own = (vectors.float(), self._vectors(texts))
        pictures, sentences = (losses.gather_vectors(each, sizes) for each in own)
        return losses.contrast(pictures, sentences, scale, [group for part in parts for group in part])

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        """Vectors (n, width) of texts; repeated texts are encoded once."""
        names = list(dict.fromkeys(texts))
        tokens = self._loaded.tokenizer(names).to(self.model.logit_scale.device)
        with self._autocast(tokens.device), nullcontext() if self._request.train_text else torch.no_grad():
            encoded = self.model.encode_text(tokens)
        return encoded.float()[[names.index(text) for text in texts]]

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._request.precision is Precision.BFLOAT16)


class FarslipTraining(TrainingLoop):
    """Trains the model ``base`` with the weights ``path`` in one or two stages; ``rank`` is of this of ``world_size``
    processes.

    Attributes:
        loaded: the model to train.
        steps: number of steps of each stage.
        objects: number of objects in stage 2.
    """

    terms = ("contrast", "distillation", "regions")

    def __init__(
        self,
        request: TrainClipRequest,
        base: Model,
        path: Path,
        samples: Sequence[TrainingImage],
        device: torch.device,
        rank: int,
        world_size: int,
        context: Context,
    ) -> None:
        self._request, self._device = request, device
        stages = {stage: _images_of_stage(samples, stage, request.least) for stage in request.stages}
        self.objects = sum(len(sample.objects(request.least)) for sample in stages.get(2, ()))
        batch = request.batch * world_size
        self.steps = tuple(
            request.steps or math.ceil(len(images) * request.epochs / batch) for images in stages.values()
        )
        super().__init__(Path(request.output), sum(self.steps), rank, context, _LOG_EVERY, _CHECKPOINT_EVERY)
        self.stage_ends = tuple(itertools.accumulate(self.steps))
        context.log(
            Message(
                "Training pictures: {count}, objects for stage 2: {objects}, steps: {steps}.",
                count=len(samples),
                objects=self.objects,
                steps=self._steps,
            )
        )
        self.loaded = load_model(path, base, device)
        pixels = request.pixels or self.loaded.preprocessing.image_size
        check_image_size(self.loaded, pixels)
        distils = 1 in request.stages and request.weight > 0
        if distils:
            dense.output_stride(self.loaded.network)  # raises if the tower has no dense features
        self._loaders = [
            BatchLoader(images, stage, request, pixels, rank, world_size) for stage, images in stages.items()
        ]
        if not request.train_text:
            freeze_text_tower(self.loaded.network)
        self._loss = FarslipLoss(self.loaded, request, world_size)
        self.loaded.network.visual.to(memory_format=torch.channels_last)
        if distils and request.teacher is not Teacher.ACTIVE:
            # A frozen teacher stays at the initial weights of the average.
            self._average = running_average(self.loaded.network.visual, _TEACHER_DECAY)
            self._loss.teacher = SimpleNamespace(visual=self._average.module)
        self._start_stage(0)
        self._parallel: nn.Module = self._loss
        if world_size > 1:
            # Towers may have unused layers; batch normalisation has no buffers to synchronise.
            self._parallel = nn.parallel.DistributedDataParallel(
                self._loss, broadcast_buffers=False, find_unused_parameters=True
            )
        self.resume(device)

    def _stage_and_step(self, step: int) -> tuple[int, int]:
        number = next(number for number, end in enumerate(self.stage_ends) if step < end)
        return number, step - sum(self.steps[:number])

    def _start_stage(self, number: int) -> None:
        request, steps = self._request, self.steps[number]
        warmup = min(steps // 10, _MAX_WARMUP) if request.warmup is None else request.warmup
        self._optimiser = adamw(self.loaded.network, request.rate, request.weight_decay)
        self._scheduler = warmup_cosine(self._optimiser, steps, warmup)

    def sample_batch(self, step: int) -> ImageBatch:
        number, stage_step = self._stage_and_step(step)
        return self._loaders[number](stage_step)

    def train_step(self, step: int, batch: ImageBatch) -> dict[str, Tensor]:
        request = self._request
        number, stage_step = self._stage_and_step(step)
        if not stage_step:
            self._start_stage(number)
        model = self.loaded.network
        try:
            total, terms = self._parallel(batch.to(self._device))
            optimiser_step(model, self._optimiser, self._scheduler, total)
        except torch.cuda.OutOfMemoryError as error:
            raise ClippanError(
                "The GPU has too little memory for the batch size {batch}; choose a smaller one, or --precision "
                "bfloat16.",
                batch=request.batch,
            ) from error
        if request.train_text:
            with torch.no_grad():
                model.logit_scale.clamp_(0, _MAX_LOG_SCALE)
        if request.teacher is Teacher.EMA and self._loss.teacher:
            self._average.update_parameters(model.visual)
        return terms

    def checkpointed(self) -> Mapping[str, Any]:
        return {
            "model": self.loaded.network,
            "teacher": self._loss.teacher.visual if self._loss.teacher else nn.Identity(),
            "optimiser": self._optimiser,
            "scheduler": self._scheduler,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._start_stage(self._stage_and_step(max(self._done - 1, 0))[0])  # the stage of the last step
        super().restore(state)


def _images_of_stage(samples: Sequence[TrainingImage], stage: int, min_size: float) -> list[TrainingImage]:
    usable = [sample for sample in samples if stage == 1 or sample.objects(min_size)]
    if not usable:
        raise ClippanError(
            "No picture has a category or a box of at least {least} pixels for stage 2; add some, lower the limit "
            "(--least), or train only stage 1 (--stages 1).",
            least=min_size,
        )
    return usable


def check_image_size(loaded: LoadedModel, pixels: int) -> None:
    """Raises ClippanError if a model cannot take pictures of this size: Transformers take one size, other towers
    multiples of their stride."""
    size = loaded.preprocessing.image_size
    if pixels == size:
        return
    if not dense.accepts_any_size(loaded.network):
        raise ClippanError("This model only takes pictures of {pixels} pixels; leave out --pixels.", pixels=size)
    stride = dense.output_stride(loaded.network)
    if pixels % stride:
        raise ClippanError(
            "Pictures of {pixels} pixels do not fit the model; choose a multiple of {stride}.",
            pixels=pixels,
            stride=stride,
        )
