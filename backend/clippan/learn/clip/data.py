"""Pictures with captions, classes and boxes, in folders, tables and WebDataset shards.

A shard is a plain .tar in which the files of a sample share their name up to its first dot: a picture, and ``.txt``
(a caption) or ``.json`` (as an entry of a table). Shards are read in place, at any position.
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

from PIL import Image

from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line

PHRASE = "a satellite image of {}"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes of eight bits and less
_BOX = ("xmin", "ymin", "xmax", "ymax")  # columns of a table


@dataclass(frozen=True)
class LabelledBox:
    """A box (left, top, right, bottom in the picture's pixels; empty for all of it) and what is in it."""

    box: tuple[float, ...]
    category: str


@dataclass(frozen=True)
class TrainingImage:
    """A picture and what is known of it.

    Attributes:
        name: how sentences call it.
        path: file that it is in.
        captions: what it shows, in sentences.
        category: what it shows as a whole; empty if unknown.
        regions: what it shows where.
        offset, size: its place in a shard, in bytes; no size for a file of its own.
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
        """The captions; without any, one sentence of the category, or of those of the boxes."""
        if self.captions:
            return self.captions
        names = [self.category] if self.category else list(dict.fromkeys(region.category for region in self.regions))
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
        return (PHRASE.format(listed),) if names else ()

    def objects(self, least: float) -> tuple[LabelledBox, ...]:
        """The boxes whose edges have ``least`` pixels or more; of a picture without boxes all, if it has a category."""
        if not self.regions and self.category:
            return (LabelledBox((), self.category),)
        return tuple(
            region
            for region in self.regions
            if min(region.box[2] - region.box[0], region.box[3] - region.box[1]) >= least
        )

    def open(self) -> Image.Image:
        """The picture, not yet decoded; to be closed.

        Raises:
            ClippanError: it cannot be read, or is of other values than bytes.
        """
        try:
            picture = Image.open(self.path if self.size is None else io.BytesIO(self._bytes(self.size)))
        except (OSError, Image.DecompressionBombError) as error:
            raise self._unreadable(error) from error
        if picture.mode not in _EIGHT_BIT_MODES:
            picture.close()
            raise ClippanError(
                "The picture {name} has values of more than eight bits; make pictures of it by clippan regions.",
                name=self.name,
            )
        return picture

    def picture(self) -> Image.Image:
        """The picture in red, green and blue; see ``open``."""
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


def read_images(sources: Sequence[str], caption: str, context: Context) -> list[TrainingImage]:
    """All samples of some sources.

    Args:
        sources: folders, tables (.csv, .json) and shards (.tar). A folder holds shards, or a table beside its
            pictures, or a folder of pictures for each class.
        caption: the column or key that holds captions.
        context: may cancel.

    Raises:
        ClippanError: there are no pictures, or of some nothing is known, or boxes are wrong.
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
                "There are no pictures in {source}; choose a folder, a table or shards that hold some.", source=source
            )
    return samples


def _images_of(path: Path, caption: str) -> Iterator[TrainingImage]:
    if not path.exists():
        raise ClippanError("The data {path} do not exist; check the path.", path=path)
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        tables = sorted(item for item in path.iterdir() if item.suffix.lower() in (".csv", ".json"))
        if shards:
            for shard in shards:
                yield from _shard_images(shard, caption)
        elif len(tables) > 1:
            raise ClippanError(
                "The folder {path} holds several tables; name one of them, such as {table}.", path=path, table=tables[0]
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
            "{path} is no data to train on; name a folder, a table (.csv, .json) or a shard (.tar).", path=path
        )


def _class_folders(folder: Path) -> Iterator[TrainingImage]:
    """A folder of pictures for each class, named for it: ``HerbaceousVegetation``, ``dense_residential``."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file():
            if path.parent == folder:
                raise ClippanError(
                    "Nothing says what {path} shows; put it in a folder with the name of its class, or add a table.",
                    path=path,
                )
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\-\s]+", " ", path.parent.name)
            yield TrainingImage(str(path), str(path), category=words.lower())


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise ClippanError("{name} is no JSON ({reason}); correct it.", name=name, reason=one_line(error)) from error


def _csv_entries(path: Path, caption: str) -> list[dict[str, Any]]:
    """A CSV as entries. A row is a caption, a category or a box; those of one picture go together."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClippanError(
            "The table {path} cannot be read ({reason}); save it as CSV in UTF-8.", path=path, reason=one_line(error)
        ) from error
    if "file" not in columns:
        raise ClippanError("The table {path} has no column file, which names pictures; add it.", path=path)
    if not {caption, "category"} & set(columns):
        raise ClippanError(
            "The table {path} has neither a column {caption} nor a column category; add one, or name the column of "
            "the captions (--caption).",
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
    """The pictures of a table; their paths start from its folder."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "file" in entry for entry in entries):
        raise ClippanError(
            "The table {table} is no list of entries with a file each; write it as docs/training_clip.md tells.",
            table=table,
        )
    for entry in entries:
        path = table.parent / str(entry["file"])
        if not path.is_file():
            raise ClippanError(
                "The picture {path} does not exist, which {name} names; correct the table.", path=path, name=table.name
            )
        yield _with_entry(TrainingImage(str(path), str(path)), entry, caption)


def _with_entry(sample: TrainingImage, entry: Mapping[str, Any], caption: str) -> TrainingImage:
    """A sample with what an entry says: captions (one or a list), a category, boxes with a category each."""
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
            "The entry of {name} is not understood; captions are texts, and each of its boxes has a box of four "
            "numbers and a category.",
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
                place = PurePosixPath(member.name)
                stem, _, ending = place.name.partition(".")
                key, suffix = str(place.parent / stem), f".{ending.lower()}"
                if suffix in _IMAGE_SUFFIXES and key not in groups:
                    name = f"{member.name} of {path}"
                    groups[key] = TrainingImage(name, str(path), offset=member.offset_data, size=member.size)
                elif suffix in (".txt", ".json"):
                    file = archive.extractfile(member)
                    assert file is not None  # it is a file
                    notes.setdefault(key, []).append((suffix, file.read()))
    except (OSError, tarfile.TarError) as error:
        raise ClippanError(
            "The shard {path} is no plain .tar ({reason}); unpack it if it is compressed, or copy it again.",
            path=path,
            reason=one_line(error),
        ) from error
    for key, sample in groups.items():
        for suffix, data in sorted(notes.get(key, ())):
            if suffix == ".json":
                sample = _with_entry(sample, _json(data, f"{key}.json of {path}"), caption)
            else:  # the same text again is no other
                texts = [*sample.captions, " ".join(data.decode("utf-8", "replace").split())]
                sample = replace(sample, captions=tuple(dict.fromkeys(filter(None, texts))))
        yield sample


def _check(sample: TrainingImage) -> None:
    """Of a picture something is known, and its boxes lie in it."""
    if not sample.texts:
        raise ClippanError(
            "Of the picture {name} neither a caption nor a category is known; add one, or leave it out.",
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
                "A box of the picture {name} is {shown}; write it as left, top, right, bottom in pixels.",
                name=sample.name,
                shown=_box_text(box),
            )
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
            raise ClippanError(
                "The box {shown} lies outside the picture {name}, {width} × {height} pixels; correct it.",
                shown=_box_text(box),
                name=sample.name,
                width=width,
                height=height,
            )


def _box_text(box: Iterable[float]) -> str:
    return ", ".join(f"{edge:g}" for edge in box)
