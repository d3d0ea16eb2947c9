"""Pictures with captions, classes and boxes, in folders, tables and WebDataset shards.

A shard is a plain .tar file in which the files of a picture share their name up to the first dot: the picture, and
``.txt`` (a caption) or ``.json`` (like an entry of a table). Shards are read in place, at any position.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Optional

import numpy as np
from PIL import Image

from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line

PHRASE = "a satellite image of {}"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes with at most eight bits
_BOX = ("xmin", "ymin", "xmax", "ymax")  # columns of a table


@dataclass(frozen=True)
class LabelledBox:
    """A box (left, top, right, bottom in pixels; empty for the whole picture) and the category of its object."""

    box: tuple[float, ...]
    category: str


@dataclass(frozen=True)
class TrainingImage:
    """A picture with its captions, category and boxes.

    Attributes:
        name: of the picture in messages.
        path: the picture's file, or the shard.
        captions: sentences on the content.
        category: of the whole picture; empty if unknown.
        regions: labelled boxes.
        offset, size: position in a shard in bytes; no size for a separate file.
    """

    name: str
    path: str
    captions: tuple[str, ...] = ()
    category: str = ""
    regions: tuple[LabelledBox, ...] = ()
    offset: int = 0
    size: Optional[int] = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions; without any, one sentence with the category or those of the boxes."""
        if self.captions:
            return self.captions
        names = [self.category] if self.category else list(dict.fromkeys(region.category for region in self.regions))
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
        return (PHRASE.format(listed),) if names else ()

    def objects(self, min_size: float) -> tuple[LabelledBox, ...]:
        """The boxes with edges of at least ``min_size`` pixels; the whole picture if it has a category and no boxes."""
        if not self.regions and self.category:
            return (LabelledBox((), self.category),)
        return tuple(
            region
            for region in self.regions
            if min(region.box[2] - region.box[0], region.box[3] - region.box[1]) >= min_size
        )

    def open(self) -> Image.Image:
        """Opens the picture without decoding it; the caller closes it.

        Raises:
            ClippanError: the picture cannot be read, or has more than eight bits.
        """
        try:
            picture = Image.open(self.path if self.size is None else io.BytesIO(self._bytes(self.size)))
        except (OSError, Image.DecompressionBombError) as error:
            raise self._unreadable(error) from error
        if picture.mode not in _EIGHT_BIT_MODES:
            picture.close()
            raise ClippanError(
                "The picture {name} has more than eight bits; convert it with clippan regions.", name=self.name
            )
        return picture

    def picture(self) -> Image.Image:
        """The picture in red, green and blue; raises as ``open`` does."""
        with self.open() as picture:
            try:
                return picture.convert("RGB")
            except (OSError, SyntaxError) as error:
                raise self._unreadable(error) from error

    def _bytes(self, size: int) -> bytes:
        with Path(self.path).open("rb") as file:
            file.seek(self.offset)
            return file.read(size)

    def _unreadable(self, error: Exception) -> ClippanError:
        return ClippanError(
            "The picture {name} cannot be read ({reason}); repair or remove it.", name=self.name, reason=one_line(error)
        )


def resized(picture: Image.Image, edge: int, box: Optional[tuple[float, float, float, float]] = None) -> np.ndarray:
    """A picture, or a box (left, top, right, bottom) of it, as a square, uint8 (3, edge, edge)."""
    square = picture.resize((edge, edge), Image.Resampling.BICUBIC, box)
    return np.asarray(square).transpose(2, 0, 1)


def read_images(sources: Sequence[str], caption: str, context: Context) -> list[TrainingImage]:
    """Reads the list of all pictures.

    Args:
        sources: folders, tables (.csv, .json) and shards (.tar). A folder holds shards, a table with pictures, or a
            folder of pictures for each class.
        caption: column or key with the captions.
        context: may cancel.

    Raises:
        ClippanError: there are no pictures, a picture has neither caption nor category, or a box is wrong.
    """
    samples: list[TrainingImage] = []
    for source in sources:
        found = 0
        for sample in _images_of(Path(source), caption):
            context.raise_if_cancelled()
            _check(sample)
            samples.append(sample)
            found += 1
        if not found:
            raise ClippanError(
                "{source} holds no pictures; choose a folder, table or shards with pictures.", source=source
            )
    return samples


def _images_of(path: Path, caption: str) -> Iterator[TrainingImage]:
    if not path.exists():
        raise ClippanError("The training data {path} do not exist; check the path.", path=path)
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        tables = sorted(item for item in path.iterdir() if item.suffix.lower() in (".csv", ".json"))
        if shards:
            for shard in shards:
                yield from _shard_images(shard, caption)
        elif len(tables) > 1:
            raise ClippanError(
                "The folder {path} holds several tables; give one, such as {table}.", path=path, table=tables[0]
            )
        elif tables:
            yield from _images_of(tables[0], caption)
        else:
            yield from _class_folders(path)
    elif path.suffix.lower() == ".tar":
        yield from _shard_images(path, caption)
    elif path.suffix.lower() == ".csv":
        yield from _table_images(_csv_entries(path, caption), path, caption)
    elif path.suffix.lower() == ".json":
        yield from _table_images(_json(path.read_bytes(), str(path)), path, caption)
    else:
        raise ClippanError(
            "{path} is not a format of training data; give a folder, a table (.csv, .json) or a shard (.tar).",
            path=path,
        )


def _class_folders(folder: Path) -> Iterator[TrainingImage]:
    """A folder of pictures for each class, named for it: ``HerbaceousVegetation``, ``dense_residential``."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file():
            if path.parent == folder:
                raise ClippanError(
                    "The picture {path} has no class; put it in a folder with the name of its class, or add a table.",
                    path=path,
                )
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\-\s]+", " ", path.parent.name)
            yield TrainingImage(str(path), str(path), category=words.lower())


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise ClippanError(
            "{name} is not valid JSON ({reason}); correct it.", name=name, reason=one_line(error)
        ) from error


def _csv_entries(path: Path, caption: str) -> list[dict[str, Any]]:
    """Entries of a CSV table. A row has a caption, a category or a box; rows of one picture are merged."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClippanError(
            "The table {path} cannot be read ({reason}); save it as CSV in UTF-8.", path=path, reason=one_line(error)
        ) from error
    if "file" not in columns:
        raise ClippanError("The table {path} has no column file; add it with the paths of the pictures.", path=path)
    if not {caption, "category"} & set(columns):
        raise ClippanError(
            "The table {path} has neither a column {caption} nor a column category; add one, or give the column of the "
            "captions (--caption).",
            path=path,
            caption=caption,
        )
    entries: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = entries.setdefault(row["file"], {"file": row["file"], caption: [], "boxes": []})
        if row.get(caption):
            entry[caption].append(row[caption])
        if any(row.get(name) for name in _BOX):
            entry["boxes"].append({"box": [row.get(name) for name in _BOX], "category": row.get("category")})
        elif row.get("category"):
            entry["category"] = row["category"]
    return list(entries.values())


def _table_images(entries: Any, table: Path, caption: str) -> Iterator[TrainingImage]:
    """The pictures of a table; their paths are relative to its folder."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "file" in entry for entry in entries):
        raise ClippanError(
            "The table {table} is not a list of entries with a file each; see docs/training_clip.md for its format.",
            table=table,
        )
    for entry in entries:
        path = table.parent / str(entry["file"])
        if not path.is_file():
            raise ClippanError(
                "The picture {path}, which {table} lists, does not exist; correct the table.",
                path=path,
                table=table.name,
            )
        yield _with_entry(TrainingImage(str(path), str(path)), entry, caption)


def _with_entry(sample: TrainingImage, entry: Mapping[str, Any], caption: str) -> TrainingImage:
    """The picture with the captions (one or a list), the category and the boxes of an entry."""
    try:
        captions, boxes, category = entry.get(caption) or (), entry.get("boxes") or (), entry.get("category")
        texts = (" ".join(text.split()) for text in ((captions,) if isinstance(captions, str) else captions))
        return replace(
            sample,
            captions=tuple(filter(None, texts)),
            category=_nonempty(category) if category else "",
            regions=tuple(
                LabelledBox(tuple(float(edge) for edge in box["box"]), _nonempty(box["category"])) for box in boxes
            ),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ClippanError(
            "The entry of {name} is invalid; captions must be texts, and each box needs four numbers and a category.",
            name=sample.name,
        ) from None


def _nonempty(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError
    return " ".join(text.split())


def _shard_images(path: Path, caption: str) -> Iterator[TrainingImage]:
    groups: dict[str, TrainingImage] = {}
    notes: dict[str, list[tuple[str, bytes]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                path_inside = PurePosixPath(member.name)
                stem, _, ending = path_inside.name.partition(".")
                key, suffix = str(path_inside.parent / stem), f".{ending.lower()}"
                if suffix in _IMAGE_SUFFIXES and key not in groups:
                    name = f"{member.name} of {path}"
                    groups[key] = TrainingImage(name, str(path), offset=member.offset_data, size=member.size)
                elif suffix in (".txt", ".json"):
                    file = archive.extractfile(member)
                    assert file is not None  # as the member is a file
                    notes.setdefault(key, []).append((suffix, file.read()))
    except (OSError, tarfile.TarError) as error:
        raise ClippanError(
            "The shard {path} is not a plain .tar file ({reason}); decompress it, or copy it again.",
            path=path,
            reason=one_line(error),
        ) from error
    for key, sample in groups.items():
        for suffix, data in sorted(notes.get(key, ())):
            if suffix == ".json":
                sample = _with_entry(sample, _json(data, f"{key}.json of {path}"), caption)
            else:  # repeated texts count once
                texts = [*sample.captions, " ".join(data.decode("utf-8", "replace").split())]
                sample = replace(sample, captions=tuple(dict.fromkeys(filter(None, texts))))
        yield sample


def _check(sample: TrainingImage) -> None:
    if not sample.texts:
        raise ClippanError(
            "The picture {name} has neither a caption nor a category; add one, or leave the picture out.",
            name=sample.name,
        )
    if not sample.regions:
        return
    with sample.open() as picture:
        width, height = picture.size
    for region in sample.regions:
        box = region.box
        if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
            raise ClippanError(
                "A box of the picture {name} is {box}; write it as left, top, right, bottom in pixels.",
                name=sample.name,
                box=_box_text(box),
            )
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
            raise ClippanError(
                "The box {box} lies outside the picture {name} of {width} × {height} pixels; correct it.",
                box=_box_text(box),
                name=sample.name,
                width=width,
                height=height,
            )


def _box_text(box: Iterable[float]) -> str:
    return ", ".join(f"{edge:g}" for edge in box)
