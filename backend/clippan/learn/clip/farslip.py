"""Training of any CLIP of open_clip as FarSLIP does it, on pictures with captions, classes and boxes.

Stage 1: the contrast of pictures with their texts, and the distillation between a picture's cells and its crops.
Stage 2: the contrast of pictures with their texts, and that of objects with their categories.

``torchrun`` starts one process a device; contrasts are over the pictures of all of them. The folder of a run
(``clippan.learn.loop``) is a model's folder in the end: ``open_clip_config.json`` and weights.

The model stays as it is when it is used: its batch normalisations keep the statistics that they came with, as those of
a small batch of crops are others, and nothing is dropped at random.
"""

from __future__ import annotations

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

from clippan.catalogue.models import CONFIG, Model
from clippan.clip import dense
from clippan.clip.load import LoadedModel, load_model, read_architecture
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.json import to_json
from clippan.core.outputs import Outputs, write_output
from clippan.core.threads import count_threads
from clippan.jobs.trainclip import Precision, Target, Teacher, TrainClipRequest
from clippan.learn.clip import losses
from clippan.learn.clip.batch import BatchLoader, ImageBatch
from clippan.learn.clip.data import PHRASE, TrainingImage
from clippan.learn.loop import TrainingLoop
from clippan.learn.optimisation import optimiser_step, running_average, warmup_cosine

WEIGHTS = "open_clip_model.safetensors"
MIN_STEPS = 40  # steps, where a few pictures would be seen in fewer: these change next to nothing
_LOG_EVERY = 20  # steps that a row of the curves is the mean of
_CHECKPOINT_EVERY = 200  # steps between checkpoints
_TEACHER_DECAY = 0.99  # share of the past in the teacher that is a running average
_MAX_WARMUP = 1000  # steps at most, where none are asked for
_BETAS, _EPSILON = (0.9, 0.98), 1e-6  # of AdamW, as CLIP was trained
_MAX_LOGIT_SCALE = math.log(100)  # of the logarithm of the logit scale, as CLIP was trained
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def save_model(folder: Path, loaded: LoadedModel, base: Model, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a model that ``models.find`` opens, in float32.

    Args:
        folder: where to.
        loaded: what was trained.
        base: what it was before, and ``path`` its weights.
        about: what the description is to tell of it besides; ``channels`` where it takes other bands.

    Raises:
        ClippanError: it cannot be written.
    """
    description = read_architecture(path, base)
    text = description["text_cfg"]
    length = getattr(loaded.model, "context_length", None)
    if isinstance(length, int):  # open_clip's names of architectures say nothing of it
        text["context_length"] = length
    preparation = {
        "mean": list(loaded.preprocessing.mean),
        "std": list(loaded.preprocessing.std),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    own = {"channels": to_json(base.channels)} if base.channels else {}
    config = {"model_cfg": description, "preprocess_cfg": preparation, "clippan": {**own, **about}}
    weights = {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
        for name, value in loaded.model.state_dict().items()
    }
    names = [name for name in _TOKENIZER_FILES if text.get("hf_tokenizer_name") and (path.parent / name).is_file()]
    with Outputs() as outputs:
        for name in names:
            with write_output(str(folder / name), "tokenizer", outputs) as part:
                shutil.copyfile(path.parent / name, part)
        with write_output(str(folder / CONFIG), "description", outputs) as part:
            part.write_text(json.dumps(config, indent=2), encoding="utf-8")
        with write_output(str(folder / WEIGHTS), "model", outputs) as part:
            part.write_bytes(as_bytes({name: value.contiguous() for name, value in weights.items()}))


class FarslipLoss(nn.Module):
    """One step's loss as a module, so that torch's data parallel sees a single forward pass.

    Args:
        loaded: the model that learns.
        request: what is asked for.
        count: number of processes.

    Attributes:
        teacher: whose ``visual`` encodes crops in stage 1; None for the model itself.
    """

    def __init__(self, loaded: LoadedModel, request: TrainClipRequest, count: int) -> None:
        super().__init__()
        self.model = loaded.model
        self.teacher: Optional[SimpleNamespace] = None  # no part of what learns
        self._tokenizer, self._request, self._count = loaded.tokenizer, request, count
        self._mean, self._std = loaded.preprocessing.mean, loaded.preprocessing.std

    def forward(self, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms, and each of them by name."""
        request, stage_two = self._request, bool(batch.categories)
        half = self._autocast(batch.pictures.device)
        teaches = request.weight > 0 and not stage_two
        with half:
            pictures = self._preprocessed(batch.pictures)
            if teaches:
                cells, pooled = dense.dense_features(self.model, pictures)
            else:
                pooled = self.model.encode_image(pictures)
        terms = {"contrast": self._contrast(pooled, batch.texts, batch.texts)}
        total = terms["contrast"]
        if stage_two:
            with half:
                objects = self.model.encode_image(self._preprocessed(batch.crops))
            sentences = [PHRASE.format(category) for category in batch.categories]
            terms["regions"] = self._contrast(objects, sentences, batch.categories)
            total = total + terms["regions"]
        elif teaches:
            frozen = torch.no_grad() if self.teacher else nullcontext()
            with half, frozen:
                own, own_pooled = dense.dense_features(self.teacher or self.model, self._preprocessed(batch.crops))
            target = own.float().mean((2, 3)) if request.target is Target.PATCH else own_pooled.float()
            target = target.view(len(pictures), -1, target.shape[1])
            grid = (own.shape[2], own.shape[3])
            terms["distillation"] = losses.distillation(cells.float(), batch.boxes, target, grid)
            total = total + request.weight * terms["distillation"]
        return total, {name: value.detach() for name, value in terms.items()}

    def _preprocessed(self, pictures: Tensor) -> Tensor:
        values = pictures.float().div_(255)
        mean, std = (values.new_tensor(bands)[:, None, None] for bands in (self._mean, self._std))
        # Convolutions are twice as fast with the colours last.
        return values.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    def _contrast(self, vectors: Tensor, texts: Sequence[str], groups: Sequence[str]) -> Tensor:
        """Over the pairs of all processes."""
        parts = [list(groups)]
        if self._count > 1:
            parts = [[] for _ in range(self._count)]
            torch.distributed.all_gather_object(parts, list(groups))
        sizes = [len(part) for part in parts]
        scale = self.model.logit_scale.exp().reshape(())
        seen, said = losses.gather_vectors(vectors.float(), sizes), losses.gather_vectors(self._vectors(texts), sizes)
        return losses.contrast(seen, said, scale, [group for part in parts for group in part])

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        """Vectors (n, width) of texts, each encoded once."""
        names = list(dict.fromkeys(texts))
        tokens = self._tokenizer(names).to(self.model.logit_scale.device)
        with self._autocast(tokens.device), nullcontext() if self._request.train_text else torch.no_grad():
            found = self.model.encode_text(tokens)
        return found.float()[[names.index(text) for text in texts]]

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._request.precision is Precision.BFLOAT16)


class FarslipTraining(TrainingLoop):
    """A training under way.

    Args:
        request: what is asked for.
        base: the model to start from.
        path: its weights.
        samples: what to train on.
        device: where to compute.
        rank, count: this process's number, and how many there are.
        context: hears of progress, and may cancel.

    Attributes:
        loaded: the model that learns.
        steps: of each stage.
        objects: that stage 2 is trained on.
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
        count: int,
        context: Context,
    ) -> None:
        self._request, self._device = request, device
        drawn = {stage: _images_of_stage(samples, stage, request.least) for stage in request.stages}
        self.objects = sum(len(sample.objects(request.least)) for sample in drawn.get(2, ()))
        whole = request.batch * count
        self.steps = tuple(request.steps or math.ceil(len(found) * request.epochs / whole) for found in drawn.values())
        super().__init__(Path(request.output), sum(self.steps), rank, context, _LOG_EVERY, _CHECKPOINT_EVERY)
        self.stage_ends = tuple(sum(self.steps[: number + 1]) for number in range(len(self.steps)))
        context.log(f"{len(samples)} pictures, {self.objects} objects for stage 2, {self._steps} steps.")
        self.loaded = load_model(path, base, device)
        pixels = request.pixels or self.loaded.preprocessing.pixels
        check_image_size(self.loaded, pixels)
        distils = 1 in request.stages and request.weight > 0
        if distils:
            dense.stride(self.loaded.model)  # tells where a tower has no dense features
        self._loaders = [
            BatchLoader(
                found,
                stage,
                request.crops if request.weight or stage == 2 else 0,
                request.least,
                pixels,
                request.batch,
                request.seed,
                rank,
                count,
                count_threads(request.threads),
            )
            for stage, found in drawn.items()
        ]
        if not request.train_text:
            for name, value in self.loaded.model.named_parameters():
                value.requires_grad_(name.startswith("visual."))
        self._loss = FarslipLoss(self.loaded, request, count)
        self._loss.to(memory_format=torch.channels_last)
        if distils and request.teacher is not Teacher.ACTIVE:
            # Without a moving average it stays as it begins.
            self._average = running_average(self.loaded.model.visual, _TEACHER_DECAY)
            self._loss.teacher = SimpleNamespace(visual=self._average.module)
        self._start_stage(0)
        self._parallel: nn.Module = self._loss
        if count > 1:
            # Towers may hold layers that nothing goes through; batch normalisations do not change.
            self._parallel = nn.parallel.DistributedDataParallel(
                self._loss, broadcast_buffers=False, find_unused_parameters=True
            )
        self.resume(device)

    def _stage_and_step(self, step: int) -> tuple[int, int]:
        """Which of the stages a step belongs to, and its number there."""
        number = next(number for number, end in enumerate(self.stage_ends) if step < end)
        return number, step - sum(self.steps[:number])

    def _start_stage(self, number: int) -> None:
        """Each stage has its own warm-up, and remembers nothing of the other."""
        request, steps = self._request, self.steps[number]
        warmup = min(steps // 10, _MAX_WARMUP) if request.warmup is None else request.warmup
        self._optimiser = adamw(self.loaded.model, request.rate, request.weight_decay)
        self._scheduler = warmup_cosine(self._optimiser, steps, warmup)

    def sample_batch(self, step: int) -> ImageBatch:
        number, place = self._stage_and_step(step)
        return self._loaders[number](place)

    def train_step(self, step: int, batch: ImageBatch) -> dict[str, Tensor]:
        request = self._request
        number, place = self._stage_and_step(step)
        if not place:
            self._start_stage(number)
        model = self.loaded.model
        try:
            total, terms = self._parallel(batch.to(self._device))
            optimiser_step(model, self._optimiser, self._scheduler, total)
        except torch.cuda.OutOfMemoryError as error:
            raise ClippanError(
                "The GPU's memory is too small for {batch} pictures a step; choose a smaller batch, or --precision "
                "bfloat16.",
                batch=request.batch,
            ) from error
        if request.train_text:
            with torch.no_grad():
                model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        if request.teacher is Teacher.EMA and self._loss.teacher:
            self._average.update_parameters(model.visual)
        return terms

    def state(self) -> dict[str, Any]:
        teacher = self._loss.teacher
        return {
            "model": self.loaded.model.state_dict(),
            "teacher": teacher.visual.state_dict() if teacher else {},
            "optimiser": self._optimiser.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.loaded.model.load_state_dict(state["model"])
        if self._loss.teacher:
            self._loss.teacher.visual.load_state_dict(state["teacher"])
        self._start_stage(self._stage_and_step(max(self._done - 1, 0))[0])  # the stage of the last step
        self._optimiser.load_state_dict(state["optimiser"])
        self._scheduler.load_state_dict(state["scheduler"])


def _images_of_stage(samples: Sequence[TrainingImage], stage: int, least: float) -> list[TrainingImage]:
    """What a stage is trained on."""
    found = [sample for sample in samples if stage == 1 or sample.objects(least)]
    if not found:
        raise ClippanError(
            "No picture has a category, or a box of {least} pixels or more, for stage 2; add some, lower the bound "
            "(--least), or train stage 1 alone (--stages 1).",
            least=least,
        )
    return found


def adamw(network: nn.Module, greatest: float, decay: float) -> torch.optim.Optimizer:
    """AdamW for what of a network learns; biases and gains do not decay, as they are few.

    Args:
        network: some of whose weights learn.
        greatest: learning rate.
        decay: of matrices and kernels.
    """
    learned = [value for value in network.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in learned if value.ndim > 1], "weight_decay": decay},
        {"params": [value for value in learned if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=greatest, betas=_BETAS, eps=_EPSILON)


def check_image_size(loaded: LoadedModel, pixels: int) -> None:
    """Towers of tokens take one size, others multiples of their cells.

    Raises:
        ClippanError: the model does not take pictures of this size.
    """
    own = loaded.preprocessing.pixels
    if pixels == own:
        return
    if not dense.any_size(loaded.model):
        raise ClippanError("This model takes pictures of {own} pixels only; leave out --pixels.", own=own)
    stride = dense.stride(loaded.model)
    if pixels % stride:
        raise ClippanError(
            "Pictures of {pixels} pixels do not fit the model; choose a multiple of {stride}.",
            pixels=pixels,
            stride=stride,
        )
