"""Classify from few samples: classifiers are compared by spatial cross-validation, and the best makes the map."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from clippan import __version__
from clippan.catalogue.prompts import ClassPrompt, PromptTable
from clippan.clip.class_vectors import class_vectors, prompt_texts
from clippan.clip.encoder import ClipEncoder, load_encoder
from clippan.core import texts
from clippan.core.context import Context
from clippan.core.device import choose_device, set_threads, translate_out_of_memory, use_one_thread
from clippan.core.errors import ClippanError
from clippan.core.json import to_json
from clippan.core.messages import Message
from clippan.core.outputs import Outputs
from clippan.core.texts import join_names
from clippan.core.threads import count_threads, in_order
from clippan.fewshot import scene_encoder
from clippan.fewshot.stack import READ_SIZE, Stack, open_stack
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
from clippan.jobs.rendering import Rendering, band_choice_sentences, rendering_hints
from clippan.jobs.segment import ClassArea
from clippan.labels import accuracy, areas, samples
from clippan.labels.folds import BUFFER, NEVER_HELD_OUT, spatial_folds, training_mask
from clippan.labels.legend import colours, palette
from clippan.labels.samples import Samples
from clippan.learn.scene_pretraining import pretrain_on_stack
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.raster.source import BandInfo
from clippan.raster.tiles import Window
from clippan.raster.writer import BLOCK, Writer
from clippan.report import page
from clippan.report.map_preview import MapPreview

_FEW_GROUPS = 5  # labelled polygons or blocks of a class, below which its accuracy is uncertain
_DEFAULT = Classifier.SVM_MEAN  # of auto where there are too few places for cross-validation
_DIFFCLIP_TIME = 8  # as a multiple of the time of another method
_TILE_MEMORY, _TILE_COPIES = 2**31, 8  # bytes for all tiles in work, and arrays of the size of a tile in each


def run(request: ClassifyRequest, context: Context) -> ClassifyResult:
    started = time.monotonic()
    set_threads(request.threads)
    device = choose_device(request.device).device  # loading CLIP logs it
    stack = open_stack(request.rasters, request.grid, request.nodata, context.subrange(0, 3))
    labelled = samples.read_samples(
        request.samples, request.layer, request.field, stack.georeferenced_grid, request.seed, context.subrange(3, 6)
    )
    labelled, lost = _on_valid_pixels(labelled, stack, context)
    table = _prompt_table(labelled.names, request.descriptions)
    if origin := texts.origin_note(request.descriptions):
        context.log(origin)
    with translate_out_of_memory(), Outputs() as outputs:
        factory = _ClassifierFactory(request, stack, labelled, table, device, outputs.temporary_folder(request.output))
        auto = request.method is Classifier.AUTO
        methods = [each for each in Classifier if each is not Classifier.AUTO] if auto else [request.method]
        results = _cross_validate(factory, methods, context.subrange(6, 60))
        best = results[0] if results else None
        method = best.score.method if best else _DEFAULT if auto else request.method
        if auto:
            context.log(Message("{method} makes the map.", method=method.value))
        classifier = factory.classifier(method, True, context.subrange(60, 70))
        fitted = classifier.fit(np.arange(len(labelled.labels)), request.seed)
        tags = factory.provenance(method, best)
        class_areas, preview = _write_map(factory, fitted, best, method, tags, outputs, context.subrange(70, 98))
        if request.report:
            scene = Renderer(factory.colour_raster, factory.options)
            preview.picture = overview_picture(stack, scene, preview.step)
            factory.rendering = factory.rendering or scene.rendering
        context.progress(98, "Writing the files")  # not cancellable from here on, so that all files appear together
        if request.areas:
            areas.write_csv(request.areas, class_areas, outputs)
        saved = factory.save_encoder(outputs)
        renderings = [factory.rendering] if factory.rendering else []
        for sentence in band_choice_sentences(renderings):
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
            tuple(each.score for each in results) if auto else (),
            best.accuracy if best else None,
            class_areas,
            labelled.pixels_per_class,
            labelled.groups_per_class,
            (
                *stack.hints(),
                *labelled.hints,
                *lost,
                *factory.hints,
                *factory.text_warnings(method),
                *_hints(request, labelled, method, best, class_areas, saved),
                *rendering_hints(renderings),
            ),
            factory.model_id(method),
            device.type,
            round(time.monotonic() - started, 3),
            tags,
            factory.rendering,
        )
        if request.report:
            legend = colours(table)
            shown = {"colours": legend, "pictures": preview.pictures(labelled, legend)}
            report = {"request": request, "result": result, "samples": labelled, "distance": BUFFER, **shown}
            page.write(request.report, "classification", outputs, **report)
        del factory, classifier, fitted  # Windows removes no file that is mapped into memory
    return result


def _on_valid_pixels(labelled: Samples, stack: Stack, context: Context) -> tuple[Samples, list[str]]:
    """The samples on valid pixels, and a hint on the others."""
    kept = labelled.valid_mask(stack.grid, READ_SIZE, lambda window: stack.read(window)[1], context)
    remaining = labelled.subset(kept)
    empty = [name for name, count in zip(labelled.names, remaining.pixels_per_class) if not count]
    if empty:
        raise ClippanError(
            "All samples of {classes} lie on nodata; label other places, or leave out the raster that does not cover "
            "them.",
            classes=join_names(empty),
        )
    lost = int((~kept).sum())
    hint = Message("Labelled pixels on nodata, which are not used: {count}.", count=lost)
    return remaining, [hint] if lost else []


def _prompt_table(names: tuple[str, ...], descriptions: str) -> PromptTable:
    """The classes as a prompt table with colours."""
    given = parse_descriptions(descriptions)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ClippanError(
            "There is a description of {class_name} but no sample of it on the rasters; the classes are {classes}.",
            class_name=unknown[0],
            classes=join_names(names),
        )
    return PromptTable(tuple(ClassPrompt(name, (), given.get(name, ())) for name in names)).with_colours()


@dataclass
class _ClassifierFactory:
    """Makes classifiers; models and features are made once, when they are first needed."""

    request: ClassifyRequest
    stack: Stack
    labelled: Samples
    table: PromptTable
    device: torch.device
    folder: Path
    rendering: Optional[Rendering] = None  # of the raster that CLIP gets
    hints: list[str] = field(default_factory=list)
    _model: Optional[ClipEncoder] = None
    _diffclip: Optional[DiffClipClassifier] = None
    _extractor: Optional[ClipFeatureExtractor] = None

    @property
    def options(self) -> RenderOptions:
        """How rasters are shown to CLIP and in the report."""
        return RenderOptions(bands=self.request.bands, nodata=self.request.nodata)

    @property
    def colour_raster(self) -> str:
        """The raster shown to CLIP and in the report: the first with three bands, or with the requested bands."""
        needed = max((3, *self.request.bands)) if len(self.request.bands) != 1 else self.request.bands[0]
        paths = zip(self.stack.paths, self.stack.bands)
        return next((path for path, count in paths if count >= needed), self.stack.paths[0])

    def _raster_for(self, model: ClipEncoder) -> str:
        """The raster for CLIP; for a model of another sensor, the first with its bands."""
        if not model.channels:
            return self.colour_raster
        for path in self.stack.paths:
            with contextlib.suppress(ClippanError):
                Renderer(path, self.options, channels=model.channels)
                return path
        return self.stack.paths[0]  # opening it raises the error that the user gets

    def classifier(self, method: Classifier, for_tiles: bool, context: Context) -> StackClassifier:
        """A classifier that can be fitted, by any method but auto; ``for_tiles``, not only to samples."""
        if method is Classifier.DIFFCLIP:
            return self._diffclip_classifier(context)
        if method.uses_clip_image_features:
            features = self._clip_features(for_tiles, context)
            text_features = class_vectors(self._clip(context), self.table, False).vectors
            return BaselineClassifier(method, features, self.labelled, context.cancellation_only, text_features)
        features = spectral_features(self.stack, self.labelled, method is not Classifier.SVM, context)
        return BaselineClassifier(method, features, self.labelled, context.cancellation_only)

    def model_id(self, method: Classifier) -> str:
        """Id of the CLIP model; empty if the method needs none."""
        return self._model.spec.id if self._model and _uses_clip(method) else ""

    def text_warnings(self, method: Classifier) -> list[str]:
        """Hints on texts that the CLIP model of the method does not read as meant."""
        return self._model.text_warnings(prompt_texts(self.table)) if self._model and self.model_id(method) else []

    def provenance(self, method: Classifier, best: Optional[_CrossValidation]) -> dict[str, str]:
        """The tags of a map made by a method, whose accuracy was cross-validated or not."""
        return {
            "CLIPPAN_ALGORITHM": self.request.name,
            "CLIPPAN_CLASSES": self.table.json(),
            "CLIPPAN_METHOD": method.value,
            "CLIPPAN_MODEL": self.model_id(method),
            "CLIPPAN_ACCURACY": f"{best.accuracy.oa:.4f}" if best else "",
            "CLIPPAN_PICTURE_BANDS": ",".join(map(str, self.rendering.choice.bands)) if self.rendering else "",
            "CLIPPAN_DEVICE": self.device.type,
            "CLIPPAN_VERSION": __version__,
            "CLIPPAN_PARAMETERS": json.dumps(to_json(self.request), ensure_ascii=False),
        }

    def save_encoder(self, outputs: Outputs) -> str:
        """Saves the scene encoder if requested and trained; returns its path or an empty string."""
        if not (self.request.save_encoder and self._diffclip):
            return ""
        self._diffclip.encoder.save(Path(self.request.save_encoder), outputs)
        return self.request.save_encoder

    def _clip(self, context: Context) -> ClipEncoder:
        if self._model is None:
            self._model = load_encoder(self.request.model, self.request.device, context)
        return self._model

    def _prompts(self, context: Context) -> np.ndarray:
        """Vectors of the name and each description of the classes, (classes, prompts, width); those of a class with
        fewer prompts are repeated."""
        prompts = [(prompt.name, *prompt.descriptions) for prompt in self.table.classes]
        model, count = self._clip(context), max(map(len, prompts))
        return np.stack([model.encode_texts([each[n % len(each)] for n in range(count)]) for each in prompts])

    def _clip_features(self, for_tiles: bool, context: Context) -> StackFeatures:
        model = self._clip(context.subrange(0, 5))
        if self._extractor is None:
            path, threads = self._raster_for(model), self.request.threads
            self._extractor = ClipFeatureExtractor(self.stack, self.options, path, model, threads, self.folder)
            self.rendering = Renderer(path, self.options, channels=model.channels).rendering
        return self._extractor.features(self.labelled, for_tiles, context.subrange(5, 100))

    def _diffclip_classifier(self, context: Context) -> DiffClipClassifier:
        if self._diffclip is None:
            prompts, stack, request = self._prompts(context.subrange(0, 5)), self.stack, self.request
            if request.encoder:
                trained = scene_encoder.load(Path(request.encoder), self.device)
                trained.check_band_count(stack.bands)
                stack = replace(stack, means=trained.means, inverse_stds=trained.inverse_stds)
                if stack.statistics_differ(self.stack):
                    self.hints.append(
                        Message(
                            "The values of the rasters differ from those that {file_name} was trained on; if it is "
                            "from another scene, pre-train on these rasters.",
                            file_name=page.file_name(request.encoder),
                        )
                    )
            else:
                trained = pretrain_on_stack(stack, request.steps, request.seed, self.device, context.subrange(5, 95))
            self._diffclip = DiffClipClassifier(stack, self.labelled, trained, prompts, context.subrange(95, 100))
        return self._diffclip


def _uses_clip(method: Classifier) -> bool:
    return method.uses_clip_image_features or method is Classifier.DIFFCLIP


@dataclass(frozen=True)
class _CrossValidation:
    """The result of the cross-validation of a method, and the inverse temperature that calibrates its probabilities."""

    score: Score
    accuracy: MapAccuracy
    inverse_temperature: float


def _cross_validate(
    factory: _ClassifierFactory, methods: Sequence[Classifier], context: Context
) -> list[_CrossValidation]:
    """Results of the methods, the best first; empty if there are too few places to leave any out."""
    request, labelled = factory.request, factory.labelled
    seeds = range(request.seed, request.seed + request.repeats)
    repeated_folds = [spatial_folds(labelled.labels, labelled.groups, seed) for seed in seeds]
    if all((folds == NEVER_HELD_OUT).all() for folds in repeated_folds):
        return []
    times = np.cumsum([0, *(_DIFFCLIP_TIME if method is Classifier.DIFFCLIP else 1 for method in methods)])
    results = []
    for number, method in enumerate(methods):
        started = time.monotonic()
        method_context = context.subrange(*(100 * times[number : number + 2] / times[-1]))
        classifier = factory.classifier(method, False, method_context.subrange(0, 50))
        repeats = []
        for repeat, folds in enumerate(repeated_folds):
            tested, predicted = [], []
            for fold in np.unique(folds[folds != NEVER_HELD_OUT]):
                done = (repeat + fold / (folds.max() + 1)) / len(seeds)
                method_context.progress(50 + 50 * done, Message("Cross-validating {method}", method=method.value))
                test = np.flatnonzero(folds == fold)
                train = np.flatnonzero(training_mask(labelled.labels, labelled.rows, labelled.columns, folds == fold))
                tested.append(test)
                predicted.append(classifier.fit(train, seeds[repeat]).predict_samples(test))
            repeats.append((labelled.labels[np.concatenate(tested)], np.concatenate(predicted)))
        true, probabilities = (np.concatenate(parts) for parts in zip(*repeats))
        inverse_temperature = accuracy.fit_inverse_temperature(probabilities, true)
        pairs = [(labels, each.argmax(axis=1)) for labels, each in repeats]
        measured = accuracy.map_accuracy(pairs, len(labelled.names), labelled.group_unit)
        score = accuracy.classifier_score(method, pairs, time.monotonic() - started)
        results.append(_CrossValidation(score, measured, inverse_temperature))
        context.log(
            Message(
                "{method}: {oa:.1f} % of the held-out samples are correct.", method=method.value, oa=100 * measured.oa
            )
        )
    return sorted(results, key=lambda result: -result.score.oa)


def _write_map(
    factory: _ClassifierFactory,
    fitted: FittedStackClassifier,
    best: Optional[_CrossValidation],
    method: Classifier,
    tags: dict[str, str],
    outputs: Outputs,
    context: Context,
) -> tuple[tuple[ClassArea, ...], MapPreview]:
    """Writes the map and its confidence; returns the areas of the classes and a preview of the map."""
    request, stack, table, grid = factory.request, factory.stack, factory.table, factory.stack.grid
    inverse_temperature = best.inverse_temperature if best else 1.0
    class_areas = areas.ClassAreaCounter(table, grid)
    windows = stack.tiles(BLOCK)  # the rest of the map stays unwritten, which is nodata
    preview = MapPreview.of(grid.width, grid.height)
    # A network uses all threads for one tile; the other methods use one thread for each tile.
    tiles = max(_TILE_MEMORY // (_TILE_COPIES * 4 * sum(stack.bands) * BLOCK**2), 1)
    threads, prepare = min(count_threads(request.threads), tiles), use_one_thread
    if method is Classifier.DIFFCLIP:
        threads, prepare = 1, functools.partial(set_threads, request.threads)

    def classify(window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, valid = fitted.predict_tile(window)
        probabilities = accuracy.apply_temperature(values.reshape(len(values), -1).T, inverse_temperature)
        classes = np.where(valid, probabilities.argmax(axis=1).reshape(valid.shape) + 1, 0).astype(np.uint8)
        confidence = np.where(valid, probabilities.max(axis=1).reshape(valid.shape), np.nan).astype(np.float32)
        return classes, confidence, valid

    writer = functools.partial(Writer, grid=grid, tags=tags, sparse=stack.has_unwritten_blocks, outputs=outputs)
    with contextlib.ExitStack() as files:
        class_writer = files.enter_context(
            writer(request.output, dtype=np.dtype("u1"), bands=[BandInfo("class")], nodata=0, palette=palette(table))
        )
        confidence_writer = None
        if request.confidence:
            bands = [BandInfo("confidence")]
            confidence_writer = files.enter_context(
                writer(request.confidence, dtype=np.dtype("f4"), bands=bands, nodata=math.nan)
            )
        mapped = files.enter_context(contextlib.closing(in_order(classify, windows, threads, prepare)))
        for number, (window, (classes, confidence, valid)) in enumerate(mapped, 1):
            class_writer.write(window.x, window.y, classes[None])
            if confidence_writer:
                confidence_writer.write(window.x, window.y, confidence[None])
            class_areas.add(window.x, window.y, classes, confidence, valid)
            preview.add(window.x, window.y, classes, confidence)
            context.progress(100 * number / len(windows), "Mapping")
    return class_areas.result()[:-1], preview


def _hints(
    request: ClassifyRequest,
    labelled: Samples,
    method: Classifier,
    best: Optional[_CrossValidation],
    class_areas: tuple[ClassArea, ...],
    saved: str,
) -> list[str]:
    hints: list[str] = []
    groups = list(zip(labelled.names, labelled.groups_per_class))
    single = [name for name, count in groups if count == 1]
    few = [name for name, count in groups if 1 < count < _FEW_GROUPS]
    if single:
        hints.append(
            Message(
                "The accuracy of {classes} cannot be measured, as all samples lie in one place; label other places.",
                classes=join_names(single),
            )
        )
    if few:
        hints.append(
            Message(
                "The accuracy of {classes} is uncertain, as its samples lie in fewer than {count} separate places "
                "({split}); label more places, farther apart.",
                classes=join_names(few),
                count=_FEW_GROUPS,
                split=labelled.group_unit,
            )
        )
    if request.save_encoder and not saved:
        hints.append("No pre-trained scene was saved, as only the method diffclip pre-trains on the scene; choose it.")
    if request.method is Classifier.AUTO and best:
        hints.append(
            Message(
                "{method} made the map, as it had the highest overall accuracy in cross-validation ({oa:.1f} %).",
                method=method.value,
                oa=100 * best.score.oa,
            )
        )
    elif request.method is Classifier.AUTO:
        hints.append(
            Message("Too few places are labelled to compare methods; {method} made the map.", method=method.value)
        )
    elif request.repeats and not best:
        hints.append("Too few places are labelled to measure the accuracy of the map; label two or more of each class.")
    if _uses_clip(method) and all(name.removeprefix("-").isdecimal() for name in labelled.names):
        hints.append("The class names are numbers, which mean nothing to CLIP; give the classes names or descriptions.")
    absent = [area.name for area in class_areas if not area.pixels]
    if absent:
        hints.append(Message("Classes found nowhere: {classes}.", classes=join_names(absent)))
    return hints
