"""The command ``clippan``: builds the same requests as everyone, runs them in this process, and prints results.

Exit codes: 0 done; 2 one sentence on stderr says why not (or, for ``doctor``, something does not work); 130 cancelled
with Ctrl-C, or by a scheduler (SIGTERM). On any but 0 nothing is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
import io
import json
import os
import re
import signal
import sys
import threading
import time
import typing
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Callable, NoReturn, Optional

from clippan import __version__
from clippan.catalogue.sensors import SENSORS
from clippan.core import utf8
from clippan.core.device import share_cores
from clippan.core.errors import Cancelled, ClippanError
from clippan.handlers import run
from clippan.jobs import (
    ADAPTED,
    FIGURES,
    JOBS,
    AboutIndexRequest,
    AboutIndexResult,
    AdaptFusionRequest,
    AdaptFusionResult,
    AlignSensorRequest,
    AlignSensorResult,
    AssessRequest,
    AssessResult,
    CalibrateRequest,
    CalibrateResult,
    ClassifyRequest,
    ClassifyResult,
    ClipMethod,
    Context,
    DoctorRequest,
    DoctorResult,
    DownloadModelRequest,
    DownloadModelResult,
    FinetuneClipRequest,
    FinetuneClipResult,
    IndexRequest,
    IndexResult,
    ListModelsRequest,
    ListModelsResult,
    PansharpenRequest,
    PansharpenResult,
    PretrainSceneRequest,
    PretrainSceneResult,
    RegionsRequest,
    RegionsResult,
    RemoveModelRequest,
    RemoveModelResult,
    Request,
    SearchRequest,
    SearchResult,
    SegmentRequest,
    SegmentResult,
    ThumbnailsRequest,
    ThumbnailsResult,
    TrainClipRequest,
    TrainClipResult,
    TrainFusionRequest,
    TrainFusionResult,
    from_json,
    parse_bands,
    to_json,
)
from clippan.jobs.picture import choices

FAILED = 2
INTERRUPTED = 130

_SENSOR_NAMES = ", ".join(SENSORS)

# What the help says of each parameter; type, default and choices come from the request.
_HELP: dict[type[Request], dict[str, str]] = {
    PansharpenRequest: {
        "pan": "panchromatic raster: a file, or any GDAL data source; of a scene's folder or archive its band",
        "ms": "multispectral raster, or several single-band ones in order",
        "output": "GeoTIFF to write",
        "method": "how to fuse",
        "model": "fusion model that clippan adapt or clippan train fusion wrote; by default the shipped one",
        "sensor": f"whose MTF to use: auto or one of {_SENSOR_NAMES}",
        "bands": "bands to sharpen, as in 1,2,3 or 2-4; all by default",
        "nodata": "nodata value, if the inputs declare none or a wrong one",
        "tile_size": "edge in PAN pixels of what is computed at a time; never changes the result",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
        "format": "file format",
        "compression": "lossless compression",
        "overviews": "do not build overviews",
        "registration": "move the multispectral raster, and with auto each band, onto the panchromatic one",
    },
    AssessRequest: {
        "fused": "pansharpened raster",
        "pan": "panchromatic raster it was made from",
        "ms": "multispectral raster it was made from, or several single-band ones in order",
        "reference": "true raster on the grid of the pansharpened one",
        "sensor": f"whose MTF to use: auto (what the raster says) or one of {_SENSOR_NAMES}",
        "bands": "which bands were sharpened, as in 1,2,3 or 2-4; by default what the raster says, or all",
        "nodata": "nodata value, if the inputs declare none or a wrong one",
        "report": "HTML report to write, with a picture",
        "device": "where to compute",
        "registration": "allow for a multispectral raster, and with auto bands, that lie beside the panchromatic one",
    },
    AdaptFusionRequest: {
        "pan": "panchromatic raster: a file, or any GDAL data source; of a scene's folder or archive its band",
        "ms": "multispectral raster, or several single-band ones in order",
        "output": "model to write, a name that ends in .safetensors",
        "model": "model to start from; by default that which ships with CLIPPan",
        "sensor": f"whose MTF to use: auto or one of {_SENSOR_NAMES}",
        "bands": "bands to sharpen, as in 1,2,3 or 2-4; all by default",
        "nodata": "nodata value, if the inputs declare none or a wrong one",
        "registration": "move the multispectral raster, and with auto each band, onto the panchromatic one",
        "clip": "which CLIP supervises: an id that 'clippan models' lists, or a folder; '' for none",
        "seconds": "time budget of the whole job",
        "steps": "steps at most",
        "seed": "of everything that is drawn",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    IndexRequest: {
        "rasters": "rasters, scenes, folders or archives of them, or any GDAL data sources",
        "output": "GeoPackage to make or to add to (its vectors lie beside it), or postgresql://…",
        "model": "which model: an id that 'clippan models' lists, or a folder",
        "tile_metres": "edges of the tiles in metres; several for several scales",
        "tile": "edges of the tiles in pixels; by default what suits the ground resolution",
        "overlap": "of neighbouring tiles, as a part of their edge",
        "bands": "bands for red, green and blue, as in 4,3,2; natural colours by default",
        "stretch": "how values become a picture",
        "nodata": "nodata value, if the rasters declare none or a wrong one",
        "extent": "only what touches this extent; in degrees, XMIN above XMAX means across 180°",
        "crs": "of the extent, as EPSG:4326; by default that of each raster",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    SearchRequest: {
        "index": "the index: a GeoPackage, or postgresql://…",
        "text": "what to look for; each hit is told which of several texts fits it best",
        "without": "what should not be there",
        "image": "example pictures",
        "at": "a place whose like is searched",
        "like": "tiles whose like is searched, by the numbers that a search has told",
        "unlike": "tiles whose like is left out",
        "top": "how many places at most",
        "least": "confidence that a place needs, from 0 to 1",
        "extent": "only what touches this extent; in degrees, XMIN above XMAX means across 180°",
        "crs": "of the extent and the place, as EPSG:4326; by default that of the index",
        "rasters": "only these rasters, by path or file name",
        "since": "only rasters from then on, as 2021-06-30, 2021-06 or 2021",
        "until": "only rasters until then",
        "overlapping": "keep places that overlap better ones",
        "output": "GeoPackage of the places to write",
        "heatmap": "GeoTIFF of the confidence everywhere to write",
        "device": "where to compute",
    },
    AboutIndexRequest: {"index": "the index: a GeoPackage, or postgresql://…"},
    ThumbnailsRequest: {
        "index": "the index: a GeoPackage, or postgresql://…",
        "tiles": "tiles by number, as a search has told them",
        "folder": "where to write the pictures",
        "pixels": "their edge",
    },
    SegmentRequest: {
        "raster": "raster: a file, the folder or archive of a scene, or any GDAL data source",
        "classes": "classes between semicolons, synonyms between commas: 'water; forest, trees'; or a file "
        "(.txt, one a line; .json)",
        "output": "GeoTIFF of the classes to write",
        "model": "which model: an id that 'clippan models' lists, or a folder",
        "confidence": "GeoTIFF of the confidence to write",
        "probabilities": "GeoTIFF of each class's probability to write",
        "polygons": "vector file to write (.gpkg, .geojson, .fgb or .shp)",
        "areas": "CSV of each class's area to write",
        "min_area": "smallest polygon, in pixels",
        "simplify": "how far outlines of polygons may move, in pixels",
        "window": "edge of what the model sees at a time, in pixels; several are averaged; found by default",
        "flips": "also look at mirrored pictures, which takes four times as long",
        "bias": "part of a window's likeness to a class that is added to its cells'; what suits the model by default",
        "logit_scale": "what cosines are multiplied by; by default what the table says, or 50",
        "background": "leave unclassified what common words for other things fit better",
        "refinement": "how edges follow the picture",
        "bands": "bands for red, green and blue, as in 4,3,2; natural colours by default",
        "stretch": "how values become a picture",
        "nodata": "nodata value, if the raster declares none or a wrong one",
        "extent": "only this part; in degrees, XMIN above XMAX means across 180°",
        "crs": "of the extent, as EPSG:4326; by default that of the raster",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    CalibrateRequest: {
        "rasters": "one or several rasters",
        "samples": "for each raster its labels: a vector file, or a raster with values 1 to N",
        "classes": "as for clippan segment",
        "output": "JSON file of the calibrated table to write",
        "field": "of the vector files, which holds the class",
        "layer": "of the vector files; by default the first with places that have a class",
        "report": "HTML report to write, with a picture",
        "model": "which model: an id that 'clippan models' lists, or a folder",
        "window": "edge of what the model sees at a time, in pixels; several are averaged; found by default",
        "flips": "also look at mirrored pictures, which takes four times as long",
        "bias": "part of a window's likeness to a class that is added to its cells'; what suits the model by default",
        "bands": "bands for red, green and blue, as in 4,3,2; natural colours by default",
        "stretch": "how values become a picture",
        "nodata": "nodata value, if the rasters declare none or a wrong one",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    ClassifyRequest: {
        "rasters": "one or several rasters of one place: files or GDAL data sources of any bands, grid and CRS",
        "samples": "vector file with points or polygons",
        "field": "of the samples, which holds the class",
        "output": "GeoTIFF to write; its values are 1 to N in the sorted order of the classes",
        "layer": "of the samples' file; by default the first with places that have a class",
        "method": "how pixels are told apart; auto takes the best where places are left out",
        "confidence": "GeoTIFF to write: probability of each pixel's class",
        "report": "HTML report to write, with pictures and accuracy",
        "areas": "CSV to write: area of each class",
        "encoder": "pre-trained scene, for diffclip",
        "save_encoder": "where to keep the scene that is pre-trained now, a name that ends in .safetensors",
        "descriptions": "what classes look like, as in 'corn: dark green rows; wheat: pale', or a file "
        "(.txt, one a line; .json)",
        "model": "CLIP for words and picture: an id that 'clippan models' lists, or a folder",
        "grid": "raster, from 1, whose pixels the map has; 0 means the finest",
        "seed": "of everything that is drawn",
        "repeats": "of cross-validation, with other splits; 0 for none",
        "steps": "of pre-training; 400 by default",
        "bands": "bands for red, green and blue, as in 4,3,2; natural colours by default",
        "nodata": "nodata value, if the rasters declare none or a wrong one",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    PretrainSceneRequest: {
        "rasters": "one or several rasters of one place, as for clippan classify",
        "output": "encoder to write, a name that ends in .safetensors",
        "grid": "raster, from 1, on whose pixels all are laid; 0 means the finest",
        "steps": "of training; 400 by default",
        "seed": "of everything that is drawn",
        "nodata": "nodata value, if the rasters declare none or a wrong one",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    ListModelsRequest: {},
    DownloadModelRequest: {
        "model": "which: an id that 'clippan models' lists",
        "accept_licence": "you read and accept the model's licence, where it asks for that",
    },
    RemoveModelRequest: {"model": "which: an id that 'clippan models' lists"},
    TrainFusionRequest: {
        "data": "folder that the recipe's paths start from",
        "output": "folder of the run; one that was stopped is gone on with",
        "recipe": "YAML file; by default that of the model which ships with CLIPPan",
        "steps": "steps, instead of the recipe's",
        "seed": "seed, instead of the recipe's",
        "without": "sensors to leave out, as the folders of pairs are named",
        "device": "where to compute",
    },
    TrainClipRequest: {
        "data": "folders, tables (.csv, .json) and WebDataset shards (.tar) of pictures",
        "output": "folder of the run and of the model; a run that was stopped is gone on with",
        "method": "how; patch has options of its own: see clippan train clip --method patch --help",
        "model": "model to start from: an id that 'clippan models' lists, or a folder",
        "stages": "1 (places in pictures), 2 (objects with categories), or 1,2 (the default)",
        "epochs": "how often each stage sees every picture",
        "steps": "steps of each stage, instead of the epochs",
        "batch": "pictures of a step in each process",
        "rate": "greatest learning rate",
        "weight_decay": "of AdamW",
        "warmup": "steps in which the rate is reached; by default a tenth of the stage's, at most 1000",
        "teacher": "who encodes the crops in stage 1: the model, its running average, or what it was before",
        "target": "what of a crop is compared with the picture's cells: its own cells, or its pooled vector",
        "weight": "of that comparison; 0 leaves it out",
        "crops": "of a picture in stage 1; at most so many of its objects in stage 2",
        "least": "pixels of a box's shorter edge, below which it is left out",
        "pixels": "edge of what the model sees, for convolutional towers; 0 means what it was trained with",
        "train_text": "also train the text tower; for many and varied captions only",
        "caption": "column or key of the captions",
        "precision": "of the towers",
        "seed": "of everything that is drawn",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    RegionsRequest: {
        "rasters": "rasters: files or GDAL data sources",
        "labels": "for each raster a mask on its pixels, or a vector file with polygons",
        "output": "folder to make",
        "legend": "categories by values, as in '1=water; 2=forest' or '#3C1098=building', or a file "
        "(.txt, one a line; .json)",
        "field": "of the vector files, which holds the category",
        "layer": "of the vector files; by default the first with polygons that have a category",
        "size": "edge of the pictures in pixels",
        "overlap": "of neighbouring pictures, as a part of their edge",
        "least": "pixels of a box's shorter edge, below which it is left out",
        "fill": "part of its box that an object has to fill",
        "bands": "bands for red, green and blue, as in 4,3,2; natural colours by default",
        "stretch": "how values become a picture",
        "nodata": "nodata value, if the rasters declare none or a wrong one",
        "format": "of the pictures",
    },
    FinetuneClipRequest: {
        "data": "folder with a folder of pictures for each class, or with --samples a raster",
        "output": "folder of the run and of the model; a run that was stopped is gone on with",
        "samples": "polygons or points over the raster",
        "field": "of the samples, which holds the class",
        "layer": "of the samples' file; by default the first with places that have a class",
        "control": "folder as --data, of other classes, to measure what was lost",
        "words": "what classes are called, as in 'SeaLake=sea; AnnualCrop=annual crop land', or a file "
        "(.txt, one a line; .json)",
        "model": "model to start from: an id that 'clippan models' lists, or a folder",
        "alpha": "how far to go to the fine-tuned weights, 0 to 1; chosen on validation by default",
        "keep": "part of the old accuracy on the control set that is kept",
        "held": "part of each class that chooses alpha, and as much again that measures",
        "measured": "pictures of each set that a point of the curve is measured on at most",
        "epochs": "how often it sees every chip; 40 steps are taken at least",
        "steps": "steps, instead of the epochs",
        "batch": "chips of a step",
        "rate": "greatest learning rate",
        "weight_decay": "of AdamW",
        "pixels": "edge of what the model sees, for convolutional towers; 0 means what it was trained with",
        "size": "edge of the chips in the raster's pixels; 0 means what suits the ground resolution",
        "bands": "bands of the raster for red, green and blue, as in 4,3,2; natural colours by default",
        "stretch": "how the raster's values become a picture",
        "nodata": "nodata value, if the raster declares none or a wrong one",
        "report": "HTML report to write, with a picture of the curve",
        "seed": "of everything that is drawn",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    AlignSensorRequest: {
        "teacher_rasters": "rasters in natural colours",
        "sensor_rasters": "for each one of the sensor that lies on the same place",
        "output": "folder of the run and of the model; a run that was stopped is gone on with",
        "model": "the teacher: an id that 'clippan models' lists, or a folder",
        "sensor_bands": "bands of the sensor, as in 1,2,3 or 2-4; all by default",
        "low": "values of the bands that become 0, one for all or one for each; found by default",
        "high": "values of the bands that become 1, one for all or one for each; found by default",
        "test": "pairs to measure with, by number; by default a strip of each",
        "held": "part of each raster that is that strip",
        "size": "edge of the chips in the teacher's pixels; 0 means what suits the ground resolution",
        "overlap": "of neighbouring chips to train on, as a part of their edge",
        "mse": "weight of the mean square difference to the teacher's vector",
        "cosine": "weight of 1 - their cosine",
        "contrast": "weight of the contrast among the chips of a step",
        "label": "weight of saying of the words what the teacher says",
        "words": "for that, and to measure it, as in 'water; forest; buildings', or a file of them",
        "epochs": "how often it sees every chip; 40 steps are taken at least",
        "steps": "steps, instead of the epochs",
        "batch": "chips of a step",
        "rate": "greatest learning rate",
        "weight_decay": "of AdamW",
        "bands": "bands of the teacher's rasters for red, green and blue; natural colours by default",
        "stretch": "how the teacher's rasters become pictures",
        "nodata": "nodata value, if the rasters declare none or a wrong one",
        "report": "HTML report to write",
        "seed": "of everything that is drawn",
        "threads": "CPU threads; 0 means all",
        "device": "where to compute",
    },
    DoctorRequest: {"device": "the device you want"},
}
_SUMMARY = {
    PansharpenRequest: "sharpen a multispectral raster with a panchromatic one",
    AssessRequest: "measure how good a pansharpened raster is",
    AdaptFusionRequest: "adapt a fusion model to a scene, without a reference",
    IndexRequest: "index rasters, so that they can be searched by text",
    SearchRequest: "search an index by text, picture or place",
    AboutIndexRequest: "say what an index holds",
    ThumbnailsRequest: "write small pictures of an index's tiles",
    SegmentRequest: "map classes that are named by text",
    CalibrateRequest: "fit a table of classes to a few labelled places",
    ClassifyRequest: "map classes from a few samples, and tell how good the map is",
    PretrainSceneRequest: "learn what rasters look like without labels, for clippan classify to start from",
    ListModelsRequest: "list the vision-language models, their licences, and which are on this machine",
    DownloadModelRequest: "download a model, unless it is on this machine already",
    RemoveModelRequest: "remove a downloaded model",
    TrainFusionRequest: "train a fusion network for Pansharpen from a recipe",
    TrainClipRequest: "train a vision-language model on pictures with captions, classes and boxes; or with --method "
    "patch fine-tune one on classes of your own",
    RegionsRequest: "make pictures with boxes to train on, from rasters and their masks or polygons",
    FinetuneClipRequest: "teach a model classes by labelled chips, and keep what it knew (train clip --method patch)",
    AlignSensorRequest: "make a model for another sensor, from rasters of it and pictures of the same places",
    DoctorRequest: "say what the engine found, and what to do where something is wrong",
}
_GROUPS = {"pretrain": "learn without labels", "train": "train a network", "finetune": "fine-tune a model"}
# ``clippan train clip --method patch`` is a job of its own, with options of its own.
_METHOD, _PATCH = ("--method", "patch"), ("finetune", "clip")
# What is written without an option's name before it.
_POSITIONAL = {
    DownloadModelRequest: "model",
    RemoveModelRequest: "model",
    IndexRequest: "rasters",
    SearchRequest: "index",
    AboutIndexRequest: "index",
    ThumbnailsRequest: "index",
    SegmentRequest: "raster",
    CalibrateRequest: "rasters",
    RegionsRequest: "rasters",
}
_COORDINATES = {"at": "X,Y", "extent": "XMIN,YMIN,XMAX,YMAX"}
# Jobs whose log is for everyone: a licence is shown before the first download.
_TOLD = (
    AdaptFusionRequest,
    AlignSensorRequest,
    CalibrateRequest,
    ClassifyRequest,
    DownloadModelRequest,
    FinetuneClipRequest,
    IndexRequest,
    SegmentRequest,
    TrainClipRequest,
    TrainFusionRequest,
)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, as all others."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        missing = re.fullmatch(r"argument (--[\w-]+): expected (one|at least one) argument", message)
        if missing:
            option = missing.group(1)
            message = f"{option} needs a value; write one that begins with a dash as {option}=-…"
        raise ClippanError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")


def parser() -> argparse.ArgumentParser:
    """The command's parser, with one subcommand a job."""
    about = "Search and maps by text, and pansharpening, for satellite and aerial rasters."
    top = _Parser(prog="clippan", description=about)
    top.add_argument("--version", action="version", version=f"clippan {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    groups: dict[str, Any] = {}
    for name, request in JOBS.items():
        summary = _SUMMARY[request]
        *group, word = name.split()  # "train fusion" is the command fusion of the group train
        for title in group:
            if title not in groups:
                member = commands.add_parser(title, help=_GROUPS[title], description=f"{_GROUPS[title].capitalize()}.")
                groups[title] = member.add_subparsers(
                    dest="member", metavar="WHAT", required=True, parser_class=_Parser
                )
        home = groups[group[0]] if group else commands
        command = home.add_parser(word, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
        command.set_defaults(job=name)
        for field in dataclasses.fields(request):
            _add(command, request, field)
        command.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
        command.add_argument("--debug", action="store_true", help="log to stderr, and show where a failure happened")
    return top


def _add(command: argparse.ArgumentParser, request: type[Request], field: dataclasses.Field[Any]) -> None:
    """Adds the option of a request's field."""
    hint = typing.get_type_hints(request)[field.name]
    if typing.get_origin(hint) is typing.Union:
        hint = next(item for item in typing.get_args(hint) if item is not type(None))
    name, text = f"--{field.name.replace('_', '-')}", _HELP[request][field.name]
    required = field.default is dataclasses.MISSING
    if field.name == _POSITIONAL.get(request):
        several = hint == tuple[str, ...]
        kind, count = (str, "+") if several else (hint, None)
        command.add_argument(field.name, type=kind, nargs=count, metavar=field.name.upper(), help=text)
    elif hint is bool and not field.default:
        command.add_argument(name, action="store_true", help=text)
    elif hint is bool:
        command.add_argument(f"--no-{field.name}", dest=field.name, action="store_false", help=text)
    elif hint == tuple[int, ...]:
        command.add_argument(name, type=_numbers, default=field.default, metavar="N,N", help=text)
    elif hint == tuple[float, ...]:
        metavar = _COORDINATES.get(field.name, "VALUE,VALUE")
        command.add_argument(name, type=_values, default=field.default, metavar=metavar, help=text)
    elif hint == tuple[str, ...]:
        default: Any = None if required else list(field.default)  # type: ignore[arg-type]
        metavar = field.name.upper()
        command.add_argument(
            name, nargs="+", action="extend", required=required, default=default, metavar=metavar, help=text
        )
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        words = [item.value for item in hint]
        text = f"{text}: {', '.join(words)} (default {field.default.value})"
        # argparse lists the choices in the message of a wrong one, and hides nothing.
        command.add_argument(
            name, type=str.lower, choices=words, default=field.default.value, metavar="NAME", help=text
        )
    else:
        if field.default not in (dataclasses.MISSING, None, ""):
            text = f"{text} (default {field.default})"
        default = None if required else field.default
        metavar = {int: "N", float: "VALUE"}.get(hint, field.name.upper())
        command.add_argument(name, type=hint, required=required, default=default, metavar=metavar, help=text)


def _values(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in text.replace(",", " ").split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers such as 10.5,20") from None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return parse_bands(text)
    except ClippanError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def _joined(arguments: Sequence[str], options: _Options) -> list[str]:
    """The arguments with ``--text -forest`` as one word, and likewise ``--nodata -3.4e38``: argparse takes what begins
    with a dash for an option."""
    joined: list[str] = []
    place = 0
    while place < len(arguments):
        option = arguments[place]
        place += 1
        joined.append(option)
        if option == "--":
            return [*joined, *arguments[place:]]
        if option not in options.valued:
            continue
        end = place
        most = len(arguments) if option in options.several else place + 1
        while end < min(most, len(arguments)) and not options.begin(arguments[end]):
            end += 1
        values, place = arguments[place:end], end
        if any(value.startswith("-") for value in values):
            joined[-1:] = [f"{option}={value}" for value in values]
        else:
            joined += values
    return joined


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options of all commands: every one, those that take a value, and those that take several."""

    known: frozenset[str]
    valued: frozenset[str]
    several: frozenset[str]

    @classmethod
    def of(cls, top: argparse.ArgumentParser) -> _Options:
        """Those of a parser and the parsers of its commands."""
        actions: list[argparse.Action] = []
        parsers = [top]
        for one in parsers:  # which grows
            for action in one._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parsers += action.choices.values()
                else:
                    actions.append(action)
        kinds: list[list[str]] = [[], [], []]
        for action in actions:
            kinds[0] += action.option_strings
            kinds[1] += action.option_strings if action.nargs != 0 else ()
            kinds[2] += action.option_strings if action.nargs == "+" else ()
        return cls(*map(frozenset, kinds))

    def begin(self, argument: str) -> bool:
        """Whether an argument begins an option, or looks as if it was meant to."""
        if argument in self.known or argument.startswith("--"):
            return True
        # -output is a slip of the pen; -3 and -forest are values
        return argument.startswith("-") and f"-{argument.split('=')[0]}" in self.known


def _routed(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``train clip --method patch`` as the command that does it."""
    plain = [
        part for argument in arguments for part in (argument.split("=", 1) if "--method=" in argument else [argument])
    ]
    if plain[:2] == ["train", "clip"]:
        for place in range(2, len(plain) - 1):
            known = [*(method.value for method in ClipMethod), _METHOD[1]]
            if plain[place] == _METHOD[0] and plain[place + 1].lower() not in known:
                raise ClippanError(f"There is no method {plain[place + 1]}; choose one of {', '.join(known)}.")
            if (plain[place], plain[place + 1].lower()) == _METHOD:
                return [*_PATCH, *plain[2:place], *plain[place + 2 :]]
    return list(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command and returns its exit code."""
    if arguments is None:
        utf8.ensure("clippan.cli")
    share_cores()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a Windows console may not know every letter of a path
            stream.reconfigure(errors="replace")
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    if not debug:  # GDAL's other threads print what the one that failed raises
        os.environ.setdefault("CPL_LOG", os.devnull)
    progress = _Progress()
    try:
        top = parser()
        given = _joined(_routed(sys.argv[1:] if arguments is None else arguments), _Options.of(top))
        options = vars(top.parse_args(given))
        job, as_json, debug = JOBS[options.pop("job")], options.pop("json"), options.pop("debug")
        for word in ("command", "member"):
            options.pop(word, None)
        request = from_json(job, options)
        with _interruptible() as interrupted:
            result = run(request, Context(progress.show, progress.log if debug or job in _TOLD else None, interrupted))
    except Cancelled as error:
        return _end(progress, str(error), INTERRUPTED)
    except KeyboardInterrupt:
        return _end(progress, str(Cancelled()), INTERRUPTED)
    except ClippanError as error:
        if debug and error.__cause__:
            raise
        return _end(progress, str(error), FAILED)
    except Exception as error:
        if debug:
            raise
        sentence = f"The engine failed unexpectedly ({type(error).__name__}: {error}); --debug shows where."
        return _end(progress, sentence, FAILED)
    progress.clear()
    # Of the processes that torchrun started, one tells.
    if not isinstance(result, (TrainFusionResult, TrainClipResult)) or os.environ.get("RANK", "0") == "0":
        print(json.dumps(to_json(result), indent=2, ensure_ascii=False) if as_json else _PRINT[type(result)](result))
    return 0 if not isinstance(result, DoctorResult) or result.ok else FAILED


def _end(progress: _Progress, sentence: str, code: int) -> int:
    progress.clear()
    print(" ".join(sentence.split()), file=sys.stderr)
    return code


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While a job runs, Ctrl-C or SIGTERM asks it to stop and clean up; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def ask(number: int, frame: Optional[FrameType]) -> None:
        asked.set()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """One line on stderr that is rewritten, where stderr is a terminal; else nothing."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._shown = False

    def show(self, percent: float, message: str) -> None:
        """Shows progress, at most ten times a second."""
        if not self._terminal or (time.monotonic() - self._last < 0.1 and percent < 100):
            return
        self._last = time.monotonic()
        self._shown = True
        print(f"\r{percent:3.0f} % {message}\033[K", end="", file=sys.stderr, flush=True)

    def log(self, line: str) -> None:
        """Prints a line of the log."""
        self.clear()
        print(line, file=sys.stderr)

    def clear(self) -> None:
        """Removes the line."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._shown = False


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def _print_pansharpen(result: PansharpenResult) -> str:
    lines = [
        f"{result.output}: {result.width} × {result.height} pixels, {_counted(result.bands, 'band')}, {result.dtype}",
        f"{result.method} on {result.device}, {result.seconds:.1f} s, sensor {result.sensor}",
        *_moved(result.shift, result.band_shifts),
        *result.hints,
    ]
    return "\n".join(lines)


def _moved(shift: Sequence[float], bands: Sequence[Sequence[float]]) -> list[str]:
    """How far MS was moved, if it was, as one line."""
    if not any(shift) and not bands:
        return []
    own = f", {len(bands)} bands each by its own shift" if bands else ""
    return [f"MS registered to PAN: moved by {shift[0]:.2f}, {shift[1]:.2f} PAN pixels (right, down){own}"]


def _print_assess(result: AssessResult) -> str:
    lines = []
    for name, value in {**result.full, **result.reference}.items():
        label, best = FIGURES[name]
        lines.append(f"{name:15}{value:10.4f}   best {best:5}{label}")
    lines.append(f"{result.pixels} valid pixels, sensor {result.sensor}, {result.seconds:.1f} s")
    lines += _moved(result.shift, result.band_shifts)
    if result.report:
        lines.append(f"Report: {result.report}")
    return "\n".join([*lines, *result.hints])


def _print_adapt(result: AdaptFusionResult) -> str:
    lines = [f"{'':15}{'before':>10}{'after':>10}"]
    for name in ADAPTED:
        label, best = FIGURES[name]
        lines.append(f"{name:15}{result.before[name]:10.4f}{result.after[name]:10.4f}   best {best:5}{label}")
    lines += [
        f"{result.output}: for {_counted(result.bands, 'band')}, {_counted(result.steps, 'step')} on "
        f"{result.megapixels:.1f} megapixels, supervised by {result.clip or 'no CLIP'}",
        f"sensor {result.sensor}, {result.device}, {result.seconds:.1f} s",
    ]
    return "\n".join(lines)


def _print_index(result: IndexResult) -> str:
    lines = [
        f"{result.output}: {result.tiles} tiles of {_counted(result.rasters, 'raster')}, {result.model}",
        f"{result.added} added, {result.kept} kept, {result.dropped} dropped, {result.empty} without data, "
        f"{result.seconds:.1f} s on {result.device}, {result.rate:.0f} tiles/s",
        *result.failed,
        *result.hints,
    ]
    return "\n".join(lines)


def _print_search(result: SearchResult) -> str:
    lines = []
    for hit in result.hits:
        place = ", ".join(f"{value:.10g}" for value in hit.bounds or hit.window)
        lines.append(f"{hit.rank:4}  {hit.confidence:4.0%}  {hit.prompt}  {hit.raster}  [{place}]  tile {hit.tile}")
    lines.append(f"{len(result.hits)} of {result.tiles} tiles, {result.model}, {result.seconds:.2f} s")
    lines += [name for name in (result.output, result.heatmap, *result.hints) if name]
    return "\n".join(lines)


def _print_about(result: AboutIndexResult) -> str:
    lines = [
        f"{result.tiles} tiles of {_counted(result.rasters, 'raster')}, vectors of {result.label} ({result.model})",
        f"CRS {result.crs or 'none'}, extent {', '.join(f'{value:.10g}' for value in result.extent) or 'none'}",
        "complete" if result.complete else "not complete: index the same rasters again to go on",
        *([result.warning] if result.warning else []),
        *result.files,
        *choices(result.pictures),
    ]
    return "\n".join(lines)


def _print_thumbnails(result: ThumbnailsResult) -> str:
    return "\n".join(result.files.values()) or "No picture could be made."


def _print_models(result: ListModelsResult) -> str:
    width = max(len(row.id) for row in result.models)
    lines = []
    for row in result.models:
        place = row.place or "-"
        lines.append(f"{row.id:{width}}  {row.size / 1e6:5.0f} MB  {place:7}  {row.licence:10}  {row.label}")
        lines.append(f"{'':{width}}  {row.notes}")
    lines.append(f"{result.size / 1e6:.0f} MB in {result.folder}")
    return "\n".join(lines)


def _print_download(result: DownloadModelResult) -> str:
    return f"{result.path}\ncommit {result.revision or 'unknown'}, sha256 {result.sha256}"


def _print_remove(result: RemoveModelResult) -> str:
    return f"{result.freed / 1e6:.0f} MB freed" if result.freed else "It was not in the cache."


def _print_train_fusion(result: TrainFusionResult) -> str:
    terms = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    return f"{result.model}: {result.parameters} parameters, {result.steps} steps, {result.seconds:.0f} s\n{terms}"


def _print_train_clip(result: TrainClipResult) -> str:
    terms = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    steps = " + ".join(map(str, result.steps))
    line = (
        f"{result.model}: from {result.base}, {_counted(result.pictures, 'picture')}, "
        f"{_counted(result.objects, 'object')}, {steps} steps, {result.seconds:.0f} s on {result.device}"
    )
    return f"{line}\n{terms}" if terms else line  # a run that was complete already took no step


def _print_finetune(result: FinetuneClipResult) -> str:
    lines = [f"{'alpha':>5}  {'task':>7}  {'control':>7}"]
    for point in result.curve:
        control = "-" if point.control is None else f"{point.control:.1%}"
        mark = "  <- taken" if point.alpha == result.alpha else ""
        lines.append(f"{point.alpha:5.2f}  {point.task:7.1%}  {control:>7}{mark}")
    lines += [
        f"{result.model}: from {result.base}, {_counted(result.chips, 'chip')}, {_counted(result.steps, 'step')}, "
        f"{result.seconds:.0f} s on {result.device}",
        *([f"Report: {result.report}"] if result.report else []),
    ]
    return "\n".join([*lines, *result.hints])


def _print_align(result: AlignSensorResult) -> str:
    lines = [f"{'recall at':22}{'1':>8}{'5':>8}{'10':>8}"]
    for name, row in (
        ("sensor to picture", result.to_picture),
        ("picture to sensor", result.from_picture),
        ("before the first step", result.before),
        ("by chance", result.chance),
    ):
        lines.append(f"{name:22}{row.at_1:8.1%}{row.at_5:8.1%}{row.at_10:8.1%}")
    if result.agreement is not None:
        lines.append(f"{result.agreement:.1%} of {result.held} chips are called what the teacher calls them")
    lines += [
        f"{result.model}: from {result.base}, {_counted(len(result.bands), 'band')}, {result.chips} chips, "
        f"{_counted(result.steps, 'step')}, {result.seconds:.0f} s on {result.device}",
        *([f"Report: {result.report}"] if result.report else []),
    ]
    return "\n".join([*lines, *result.hints])


def _print_regions(result: RegionsResult) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in result.objects.items())
    lines = [f"{result.table}: {_counted(result.pictures, 'picture')}, {result.seconds:.1f} s", counts, *result.hints]
    return "\n".join(lines)


def _print_segment(result: SegmentResult) -> str:
    width = max(len("class"), *(len(area.name) for area in result.classes))
    lines = [f"{'value':>5}  {'class':{width}}  {'share':>7}  {'hectares':>12}  {'confidence':>10}"]
    for area in result.classes:
        hectares = "-" if area.hectares is None else f"{area.hectares:,.2f}"
        confidence = "-" if area.confidence is None else f"{area.confidence:.2f}"
        share = f"{100 * area.share:.2f} %"
        lines.append(f"{area.value:5}  {area.name:{width}}  {share:>7}  {hectares:>12}  {confidence:>10}")
    windows = ", ".join(str(edge) for edge in result.window)
    files = (
        result.confidence and f"Confidence: {result.confidence}",
        result.probabilities and f"Probabilities: {result.probabilities}",
        result.polygons and f"Polygons: {result.polygons} ({result.count})",
        result.areas and f"Areas: {result.areas}",
    )
    lines += [
        f"{result.output}: {result.width} × {result.height} pixels, windows of {windows} pixels, {result.model}",
        *filter(None, files),
        f"{result.device}, {result.seconds:.1f} s, {result.rate:.3g} MPix/s",
        *result.hints,
    ]
    return "\n".join(lines)


def _print_calibrate(result: CalibrateResult) -> str:
    width = max(len("mean IoU"), *(len(name) for name in result.classes))
    lines = [f"{'class':{width}}  {'labelled':>10}  {'before':>7}  {'after':>7}  {'offset':>8}"]
    rows = zip(result.classes, result.labelled, result.before.iou, result.after.iou, result.offsets)
    for name, labelled, before, after, offset in rows:
        one, other = ("-" if iou is None else f"{iou:.3f}" for iou in (before, after))
        lines.append(f"{name:{width}}  {labelled:10,}  {one:>7}  {other:>7}  {offset:+8.3f}")
    for name, before, after in (
        ("mean IoU", result.before.mean_iou, result.after.mean_iou),
        ("right", result.before.accuracy, result.after.accuracy),
    ):
        lines.append(f"{name:{width}}  {'':10}  {before:7.3f}  {after:7.3f}")
    lines.append(f"{result.output}: logit scale {result.logit_scale:.4g}, {result.seconds:.1f} s")
    lines += [f"Report: {result.report}"] if result.report else []
    return "\n".join([*lines, *result.hints])


def _print_classify(result: ClassifyResult) -> str:
    width = max(len("class"), *(len(area.name) for area in result.classes))
    lines = [f"{'value':>5}  {'class':{width}}  {'samples':>7}  {'F1':>5}  {'share':>7}  {'hectares':>12}"]
    f1 = result.accuracy.f1 if result.accuracy else (None,) * len(result.classes)
    for area, labelled, figure in zip(result.classes, result.labelled, f1):
        hectares = "-" if area.hectares is None else f"{area.hectares:,.2f}"
        one, share = "-" if figure is None else f"{figure:.3f}", f"{100 * area.share:.2f} %"
        lines.append(f"{area.value:5}  {area.name:{width}}  {labelled:7,}  {one:>5}  {share:>7}  {hectares:>12}")
    for row in result.chosen:
        lines.append(f"{row.method.value:>8}: {100 * row.oa:.1f} ± {100 * row.std:.1f} % of the left-out samples right")
    lines.append(f"{result.output}: {result.width} × {result.height} pixels, by {result.method.value}")
    if result.accuracy:
        found = result.accuracy
        spread = f" ± {100 * found.std:.1f}" if found.repeats > 1 else ""
        lines.append(
            f"Overall accuracy {100 * found.oa:.1f}{spread} %, average {100 * found.aa:.1f} %, kappa "
            f"{found.kappa:.3f}, by leaving out each {found.split}"
        )
    files = {"Confidence": result.confidence, "Report": result.report, "Areas": result.areas, "Encoder": result.encoder}
    lines += [f"{name}: {path}" for name, path in files.items() if path]
    lines.append(f"{result.device}, {result.seconds:.1f} s")
    return "\n".join([*lines, *result.hints])


def _print_pretrain(result: PretrainSceneResult) -> str:
    bands = " + ".join(map(str, result.modalities))
    line = f"{result.output}: {bands} bands, {result.steps} steps, loss {result.loss:.4f}"
    return "\n".join([f"{line}, {result.seconds:.1f} s on {result.device}", *result.hints])


def _print_doctor(result: DoctorResult) -> str:
    return result.text


_PRINT: dict[type, Callable[[Any], str]] = {
    PansharpenResult: _print_pansharpen,
    AssessResult: _print_assess,
    AdaptFusionResult: _print_adapt,
    IndexResult: _print_index,
    SearchResult: _print_search,
    AboutIndexResult: _print_about,
    ThumbnailsResult: _print_thumbnails,
    ListModelsResult: _print_models,
    DownloadModelResult: _print_download,
    RemoveModelResult: _print_remove,
    TrainFusionResult: _print_train_fusion,
    TrainClipResult: _print_train_clip,
    RegionsResult: _print_regions,
    FinetuneClipResult: _print_finetune,
    AlignSensorResult: _print_align,
    SegmentResult: _print_segment,
    CalibrateResult: _print_calibrate,
    ClassifyResult: _print_classify,
    PretrainSceneResult: _print_pretrain,
    DoctorResult: _print_doctor,
}


if __name__ == "__main__":
    sys.exit(main())
