"""A map of classes from a few samples: classifiers are compared where places are left out, and one maps tiles."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from clippan import __version__
from clippan.catalogue.prompts import ClassPrompt, PromptTable
from clippan.clip.class_vectors import class_vectors, prompt_texts
from clippan.clip.encoder import Encoder, load_encoder
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.device import choose_device, gpu_memory_errors, set_threads, use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.outputs import Outputs
from clippan.core.texts import join_names
from clippan.core.threads import count_threads, in_order
from clippan.fewshot import scene_encoder
from clippan.fewshot.stack import Stack, open_stack
from clippan.fewshot.stack_classifiers import (
    BaselineClassifier,
    ClipFeatureExtractor,
    DiffClipClassifier,
    FittedStackClassifier,
    StackClassifier,
    StackFeatures,
    overview_picture,
    spectral_features,
)
from clippan.jobs.classify import Classifier, ClassifyRequest, ClassifyResult, MapAccuracy, Score, parse_descriptions
from clippan.jobs.picture import RasterPicture, choices, remarks
from clippan.jobs.segment import ClassArea
from clippan.labels import accuracy, areas, samples
from clippan.labels.folds import BUFFER, NEVER_HELD_OUT, spatial_folds, training_mask
from clippan.labels.legend import colours, palette
from clippan.labels.samples import Samples
from clippan.learn.fewshot import pretrain_on
from clippan.raster.scene import Scene, SceneOptions
from clippan.raster.source import BandInfo
from clippan.raster.tiles import Window
from clippan.raster.writer import BLOCK, Palette, Writer
from clippan.report import page
from clippan.report.map_preview import MapPreview

_FEW = 5  # places of a class, below which figures are uncertain
_UNCOMPARED = Classifier.SVM_MEAN  # what auto takes where nothing can be left out
_LONG = 8  # times as long as another method takes DiffCLIP
_MEMORY, _COPIES = 2**31, 8  # bytes for the tiles that are worked on, and how many arrays of its size each takes


def run(request: ClassifyRequest, context: Context) -> ClassifyResult:
    """See ClassifyRequest.

    Raises:
        ClippanError: one sentence with the cause and the remedy; nothing is left behind.
    """
    started = time.monotonic()
    set_threads(request.threads)
    device = choose_device(request.device).device  # CLIP tells the log, where it is used
    stack = open_stack(request.rasters, request.grid, request.nodata, context.subrange(0, 3))
    known = samples.read_samples(
        request.samples, request.layer, request.field, stack.georeferenced_grid, request.seed, context.subrange(3, 6)
    )
    known, lost = _valid(known, stack, context)
    table = _table(known.names, request.descriptions)
    if origin := texts.origin_note(request.descriptions, "descriptions"):
        context.log(origin)
    with gpu_memory_errors(), Outputs() as outputs:
        workshop = _Workshop(request, stack, known, table, device, outputs.temporary_folder(request.output))
        several = request.method is Classifier.AUTO
        methods: list[Classifier] = (
            [item for item in Classifier if item is not Classifier.AUTO] if several else [request.method]
        )
        trials = _compare(workshop, methods, context.subrange(6, 60))
        best = trials[0] if trials else None
        method = best.score.method if best else _UNCOMPARED if several else request.method
        if several:
            context.log(Message("The map is made by {method}.", method=method.value))
        learned = workshop.learner(method, True, context.subrange(60, 70)).fit(
            np.arange(len(known.labels)), request.seed
        )
        tags = _provenance(request, table, workshop, method, best)
        power, together = best.sharpness if best else 1.0, method is Classifier.DIFFCLIP
        shown, overview = _write(workshop, table, learned, power, together, tags, outputs, context.subrange(70, 98))
        if request.report:
            scene = Scene(workshop.pictured, workshop.options)
            overview.picture = overview_picture(stack, scene, overview.step)
            workshop.picture = workshop.picture or scene.raster_picture
        context.progress(98, "Writing the files")  # from here on nothing is cancelled, and all files are put in place
        if request.areas:
            areas.write_csv(request.areas, shown, outputs)
        saved = workshop.save(outputs)
        shown_as = [workshop.picture] if workshop.picture else []
        for sentence in choices(shown_as):
            context.log(sentence)
        result = ClassifyResult(
            request.output,
            stack.grid.width,
            stack.grid.height,
            request.confidence,
            request.report,
            request.areas,
            saved,
            method,
            tuple(trial.score for trial in trials) if several else (),
            best.accuracy if best else None,
            shown,
            known.pixels_per_class,
            known.groups_per_class,
            (
                *stack.hints(),
                *known.hints,
                *lost,
                *workshop.hints,
                *workshop.text_warnings(method),
                *_hints(request, known, method, best, shown, saved),
                *remarks(shown_as),
            ),
            workshop.model_id(method),
            device.type,
            round(time.monotonic() - started, 3),
            tags,
            workshop.picture,
        )
        if request.report:
            legend = colours(table)
            page.write(
                request.report,
                "classification",
                outputs,
                request=request,
                result=result,
                samples=known,
                distance=BUFFER,
                colours=legend,
                pictures=overview.pictures(known, legend),
            )
        del workshop, learned  # a file that is mapped into memory cannot be removed on Windows
    return result


def _valid(known: Samples, stack: Stack, context: Context) -> tuple[Samples, list[str]]:
    """The samples that are not on nodata, and a sentence about the others."""
    kept = np.zeros(len(known.labels), bool)
    for window, numbers in stack.windows_at(known.rows, known.columns):
        context.raise_if_cancelled()
        _, valid = stack.read(window)
        kept[numbers] = valid[known.rows[numbers] - window.y, known.columns[numbers] - window.x]
    left = known.subset(kept)
    empty = [name for name, count in zip(known.names, left.pixels_per_class) if not count]
    if empty:
        raise ClippanError(
            "All samples of {empty} lie on nodata; label other places, or leave out the raster that does not reach "
            "there.",
            empty=join_names(empty),
        )
    lost = int((~kept).sum())
    return left, [f"{lost} labelled pixels lie on nodata, and were left aside."] if lost else []


def _table(names: tuple[str, ...], descriptions: str) -> PromptTable:
    """The classes as a prompt table, with colours.

    Raises:
        ClippanError: a description is of another class.
    """
    about = parse_descriptions(descriptions)
    unknown = sorted(set(about) - set(names))
    if unknown:
        raise ClippanError(
            "There is a description of {unknown}, but no sample of it on the rasters; the classes are {names}.",
            unknown=unknown[0],
            names=join_names(names),
        )
    return PromptTable(tuple(ClassPrompt(name, (), about.get(name, ())) for name in names)).with_colours()


class _Workshop:
    """Where learners are made, each thing that they need once and when it is needed first."""

    def __init__(
        self,
        request: ClassifyRequest,
        stack: Stack,
        known: Samples,
        table: PromptTable,
        device: torch.device,
        folder: Path,
    ) -> None:
        self.request, self.stack, self.known, self.device = request, stack, known, device
        self.table, self._folder = table, folder
        self.options = SceneOptions(bands=request.bands, nodata=request.nodata)
        self._model: Optional[Encoder] = None
        self._diffclip: Optional[DiffClipClassifier] = None
        self._eye: Optional[ClipFeatureExtractor] = None
        self._looked: Optional[bool] = None
        self.picture: Optional[RasterPicture] = None  # of the raster that is looked at
        self.hints: list[str] = []

    @property
    def pictured(self) -> str:
        """The raster that CLIP and the report's readers see: the first with colours, or with the bands asked for."""
        least = max((3, *self.request.bands)) if len(self.request.bands) != 1 else self.request.bands[0]
        counts = self.stack.bands
        return self.stack.paths[next((n for n, count in enumerate(counts) if count >= least), 0)]

    def _sensed(self, model: Encoder) -> str:
        """The first raster whose bands a model of another sensor takes."""
        for path in self.stack.paths:
            with contextlib.suppress(ClippanError):
                Scene(path, self.options, channels=model.channels)
                return path
        return self.stack.paths[0]  # of which the user is told that it does not go

    def learner(self, method: Classifier, whole: bool, context: Context) -> StackClassifier:
        """What makes classifiers.

        Args:
            method: any but auto.
            whole: tiles will be asked for, not only samples.
            context: hears of progress.
        """
        if method is Classifier.DIFFCLIP:
            return self._made(context)
        if method.sees_words:
            return BaselineClassifier(
                method, self._seen(whole, context), self.known, context.without_progress, self._texts(context)
            )
        features = spectral_features(self.stack, self.known, method is not Classifier.SVM, context)
        return BaselineClassifier(method, features, self.known, context.without_progress)

    def model_id(self, method: Classifier) -> str:
        """Of CLIP, where the method needs it."""
        return self._model.model.id if self._model and (method.sees_words or method is Classifier.DIFFCLIP) else ""

    def text_warnings(self, method: Classifier) -> list[str]:
        """What the method's CLIP does not read as it is meant, in sentences."""
        return self._model.text_warnings(prompt_texts(self.table)) if self._model and self.model_id(method) else []

    def save(self, outputs: Outputs) -> str:
        """Keeps the encoder, if that is wanted and there is one; its path."""
        path = self.request.save_encoder if self._diffclip else ""
        if path and self._diffclip:
            self._diffclip.encoder.save(Path(path), outputs)
        return path

    def _clip(self, context: Context) -> Encoder:
        if self._model is None:
            self._model = load_encoder(self.request.model, self.request.device, context)
        return self._model

    def _texts(self, context: Context) -> np.ndarray:
        """A vector for each class, of its name and descriptions, (classes, width)."""
        return class_vectors(self._clip(context), self.table, False).vectors

    def _prompts(self, context: Context) -> np.ndarray:
        """A vector for the name and one for each description of a class, (classes, prompts, width); where a class has
        fewer of them than another, they are repeated."""
        texts = [(prompt.name, *prompt.descriptions) for prompt in self.table.classes]
        model, most = self._clip(context), max(map(len, texts))
        return np.stack([model.encode_texts([own[place % len(own)] for place in range(most)]) for own in texts])

    def _seen(self, whole: bool, context: Context) -> StackFeatures:
        model = self._clip(context.subrange(0, 5))
        if self._eye is None:
            path = self._sensed(model) if model.channels else self.pictured
            self._eye = ClipFeatureExtractor(self.stack, self.options, path, model, self.request.threads, self._folder)
            self.picture = Scene(path, self.options, channels=model.channels).raster_picture
        if self._looked is None or whole > self._looked:
            self._eye.look(None if whole else self.known, context.subrange(5, 100))
            self._looked = whole
        return self._eye.features(self.known)

    def _made(self, context: Context) -> DiffClipClassifier:
        if self._diffclip is None:
            texts, stack, request = self._prompts(context.subrange(0, 5)), self.stack, self.request
            if request.encoder:
                found = scene_encoder.load(Path(request.encoder), self.device)
                found.check_modalities([np.empty((count, 0, 0)) for count in stack.bands])
                stack = stack.with_statistics(found.means, found.scales)
                if stack.statistics_differ(self.stack):
                    self.hints.append(
                        Message(
                            "The values of the rasters are not those that {file_name} was made of; if it is another "
                            "scene's, pre-train on these.",
                            file_name=page.file_name(request.encoder),
                        )
                    )
            else:
                found = pretrain_on(stack, request.steps, request.seed, self.device, context.subrange(5, 95))
            self._diffclip = DiffClipClassifier(stack, self.known, found, texts, context.subrange(95, 100))
        return self._diffclip


@dataclass(frozen=True)
class _Trial:
    """What cross-validation said of a method, and the power that makes its confidence true."""

    score: Score
    accuracy: MapAccuracy
    sharpness: float


def _compare(workshop: _Workshop, methods: list[Classifier], context: Context) -> list[_Trial]:
    """Cross-validation of methods, the best first; empty where nothing can be left out."""
    request, known = workshop.request, workshop.known
    splits = [spatial_folds(known.labels, known.groups, request.seed + repeat) for repeat in range(request.repeats)]
    if not splits or all((split == NEVER_HELD_OUT).all() for split in splits):
        return []
    weights = np.cumsum([0, *(_LONG if method is Classifier.DIFFCLIP else 1 for method in methods)])
    trials = []
    for number, method in enumerate(methods):
        begun = time.monotonic()
        share = context.subrange(*(100 * weights[number : number + 2] / weights[-1]))
        learner = workshop.learner(method, False, share.subrange(0, 50))
        repeats = []
        for repeat, split in enumerate(splits):
            truths, guesses = [], []
            for fold in np.unique(split[split != NEVER_HELD_OUT]):
                done = repeat + fold / (split.max() + 1)
                share.progress(50 + 50 * done / len(splits), f"Trying {method.value}")
                out = np.flatnonzero(split == fold)
                learned = np.flatnonzero(training_mask(known.labels, known.rows, known.columns, split == fold))
                truths.append(known.labels[out])
                guesses.append(learner.fit(learned, request.seed + repeat).at(out))
            repeats.append((np.concatenate(truths), np.concatenate(guesses)))
        truth, shares = (np.concatenate(parts) for parts in zip(*repeats))
        sharpness = accuracy.fit_sharpening(shares, truth)
        pairs = [(truth, shares.argmax(axis=1)) for truth, shares in repeats]
        found = accuracy.map_accuracy(pairs, len(known.names), known.split)
        trials.append(_Trial(accuracy.classifier_score(method, pairs, time.monotonic() - begun), found, sharpness))
        context.log(f"{method.value}: {100 * found.oa:.1f} % of the left-out samples are right.")
    return sorted(trials, key=lambda trial: -trial.score.oa)


def _write(
    workshop: _Workshop,
    table: PromptTable,
    learned: FittedStackClassifier,
    power: float,
    together: bool,
    tags: dict[str, str],
    outputs: Outputs,
    context: Context,
) -> tuple[tuple[ClassArea, ...], MapPreview]:
    """Makes the map and its confidence; what each class covers, and the map made small for the report."""
    request, grid = workshop.request, workshop.stack.grid
    counted = areas.ClassAreaCounter(table, grid)
    windows = workshop.stack.tiles(BLOCK)  # elsewhere the map stays unwritten: nodata
    overview = MapPreview.of(grid.width, grid.height)
    # A network has the processor's threads to itself; the others have one for each tile.
    few = max(_MEMORY // (_COPIES * 4 * sum(workshop.stack.bands) * BLOCK**2), 1)
    threads, prepare = (
        (1, lambda: set_threads(request.threads))
        if together
        else (min(count_threads(request.threads), few), use_one_thread)
    )

    def work(window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, valid = learned.tile(window)
        flat = accuracy.sharpen(values.reshape(len(values), -1).T, power)
        found = np.where(valid, flat.argmax(axis=1).reshape(valid.shape) + 1, 0).astype(np.uint8)
        sure = np.where(valid, flat.max(axis=1).reshape(valid.shape), np.nan).astype(np.float32)
        return found, sure, valid

    def start(path: str, name: str, dtype: type, nodata: float, colours: Optional[Palette] = None) -> Writer:
        return Writer(
            path,
            grid,
            np.dtype(dtype),
            [BandInfo(name)],
            nodata,
            tags,
            palette=colours,
            sparse=workshop.stack.sparse,
            outputs=outputs,
        )

    with contextlib.ExitStack() as files:
        output = files.enter_context(start(request.output, "class", np.uint8, 0, palette(table)))
        sure = None
        if request.confidence:
            sure = files.enter_context(start(request.confidence, "confidence", np.float32, float("nan")))
        mapped = files.enter_context(contextlib.closing(in_order(work, windows, threads, prepare)))
        for number, (window, (found, confidence, valid)) in enumerate(mapped, 1):
            output.write(window.x, window.y, found[None])
            if sure:
                sure.write(window.x, window.y, confidence[None])
            counted.add(window.x, window.y, found, confidence, valid)
            overview.add(window.x, window.y, found, confidence)
            context.progress(100 * number / len(windows), "Mapping")
    return counted.result()[:-1], overview


def _provenance(
    request: ClassifyRequest, table: PromptTable, workshop: _Workshop, method: Classifier, best: Optional[_Trial]
) -> dict[str, str]:
    return {
        "CLIPPAN_ALGORITHM": request.name,
        "CLIPPAN_CLASSES": table.json(),
        "CLIPPAN_METHOD": method.value,
        "CLIPPAN_MODEL": workshop.model_id(method),
        "CLIPPAN_ACCURACY": f"{best.accuracy.oa:.4f}" if best else "",
        "CLIPPAN_PICTURE_BANDS": ",".join(map(str, workshop.picture.choice.bands)) if workshop.picture else "",
        "CLIPPAN_DEVICE": workshop.device.type,
        "CLIPPAN_VERSION": __version__,
        "CLIPPAN_PARAMETERS": json.dumps(to_json(request), ensure_ascii=False),
    }


def _hints(
    request: ClassifyRequest,
    known: Samples,
    method: Classifier,
    best: Optional[_Trial],
    shown: tuple[ClassArea, ...],
    saved: str,
) -> list[str]:
    hints: list[str] = []
    single = [name for name, places in zip(known.names, known.groups_per_class) if places == 1]
    few = [name for name, places in zip(known.names, known.groups_per_class) if 1 < places < _FEW]
    if single:
        hints.append(
            Message(
                "Samples of {single} lie in one place only, so nothing tells how well it is found.",
                single=join_names(single),
            )
        )
    if few:
        blocks = known.split.replace("block", "blocks")
        which = "polygons; label more" if known.split == "polygon" else f"{blocks}; label others farther apart"
        hints.append(
            Message(
                "Samples of {few} lie in fewer than {_FEW} {which}, lest figures mislead.",
                few=join_names(few),
                _FEW=_FEW,
                which=which,
            )
        )
    if request.save_encoder and not saved:
        hints.append("No pre-trained scene was saved, as nothing was learned of the scene: choose the method diffclip.")
    if request.method is Classifier.AUTO and best:
        hints.append(
            f"{method.value} made the map: it did best where places were left out ({100 * best.score.oa:.1f} %)."
        )
    elif request.method is Classifier.AUTO:
        hints.append(
            Message("Too few places are labelled to compare methods; {method} made the map.", method=method.value)
        )
    elif request.repeats and not best:
        hints.append("Too few places are labelled to tell how good the map is; label two or more of each class.")
    if (method.sees_words or method is Classifier.DIFFCLIP) and all(
        name.removeprefix("-").isdecimal() for name in known.names
    ):
        hints.append("The classes are called by numbers, which tell CLIP nothing; name them, or give descriptions.")
    absent = [area.name for area in shown if not area.pixels]
    if absent:
        hints.append(Message("Found nowhere: {absent}.", absent=join_names(absent)))
    return hints
