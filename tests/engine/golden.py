"""What every job computes, written down, to see whether a change of the code changed it.

    python tests/engine/golden.py write FOLDER             before the change
    python tests/engine/golden.py compare FOLDER           after it, on the same machine: bit for bit
    python tests/engine/golden.py pin                      anew for ``test_golden.py``, which any machine runs

What is compared are facts (numbers, names, tags, rows) and arrays (pixels, weights). Sentences for people are kept
apart; ``compare --words`` shows where they differ. What differs in each run (seconds, dates) is left out, by name.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import html
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "backend"))
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[_name] = "1"  # sums in several threads differ in their last bits

import numpy as np  # noqa: E402
import torch  # noqa: E402
from golden_jobs import CASES, Bench  # noqa: E402
from osgeo import gdal  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402

import clippan  # noqa: E402

PINNED = ROOT / "tests" / "golden"

# Names of values that differ in each run, or with each version.
VOLATILE = {
    "seconds",
    "rate",
    "version",
    "engine",
    "CLIPPAN_VERSION",
    "clippan",
    "made",
    "date_made",
    "trained",
    "fingerprint",
}
# Names of values that are sentences for people.
SENTENCES = {
    "hints",
    "notes",
    "label",
    "reason",
    "text",
    "remedy",
    "found",
    "warning",
    "failed",
    "why",
    "split",
    "title",
    "about",
}


# Times, dates, speeds and versions in texts.
_PASSING = (
    r"\b\d[\d.,]* (?:s|ms|seconds?|minutes?|MPix/s|megapixels a second|tiles a second)\b|\b\d+/s\b"
    r"|\b\d{4}-\d\d-\d\d \d\d:\d\d|\b(?:clippan|PyTorch|GDAL|NumPy|scikit-learn|open_clip) \d[\w.+]*"
)


@dataclass
class Description:
    """What a case gave: single values and arrays by their place, and sentences."""

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


def describe(bench: Bench, name: str) -> Description:
    """Runs a case and describes its answers and all files it left."""
    bench.do(name)
    found = _Describer(bench.root)
    for number, answer in enumerate(bench.answers):
        found.value(f"answer {number}", answer)
    for path in sorted(item for item in bench.out.rglob("*") if item.is_file()):
        found.file(path.relative_to(bench.out).as_posix(), path)
    found.words += [found.masked(line) for line in bench.words]
    return Description(found.facts, found.arrays, found.words)


class _Describer(Description):
    def __init__(self, root: Path) -> None:
        super().__init__()
        self._paths = ((str(root), "WORK"), (str(ROOT), "REPO"))

    def masked(self, text: str) -> str:
        for path, name in self._paths:
            text = text.replace(path, name)
        return re.sub(_PASSING, "…", text)

    def value(self, place: str, value: Any, key: str = "") -> None:
        """Takes apart a JSON value; ``key`` is the last name on the way to it."""
        if key in VOLATILE and not isinstance(value, (dict, list)):
            self.facts[place] = "…"
        elif isinstance(value, dict):
            for name, item in value.items():
                self.value(f"{place}/{self.masked(str(name))}", item, str(name))
        elif isinstance(value, (list, tuple)):
            if len(value) > 30 and all(isinstance(item, (int, float)) for item in value):
                self.arrays[place] = np.array(value)
                return
            self.facts[f"{place}/#"] = len(value)
            for number, item in enumerate(value):
                self.value(f"{place}/{number}", item, key)
        elif isinstance(value, str) and value[:1] in "{[" and value[:1]:
            try:
                parsed = json.loads(value)
            except ValueError:
                self.facts[place] = self.masked(value)
            else:
                self.value(place, parsed, key)
        elif isinstance(value, str) and _is_sentence(key, value):
            self.words.append(f"{place}: {self.masked(value)}")
        else:
            self.facts[place] = self.masked(value) if isinstance(value, str) else value

    def file(self, place: str, path: Path) -> None:
        """Describes a file by what is in it."""
        self.facts[place] = "is there"
        kind = _KINDS.get(path.suffix.lower())
        if kind:
            kind(self, place, path)
        elif path.name.endswith(".vectors"):
            self.arrays[place] = np.fromfile(path, np.float16)
        else:
            self.facts[f"{place}/text"] = self.masked(path.read_text(encoding="utf-8"))

    def raster(self, place: str, path: Path) -> None:
        dataset = gdal.Open(str(path))
        self.facts[f"{place}/crs"] = _crs(dataset.GetSpatialRef())
        self.value(f"{place}/geotransform", dataset.GetGeoTransform())
        self._metadata(place, dataset)
        for number in range(1, dataset.RasterCount + 1):
            band, here = dataset.GetRasterBand(number), f"{place}/band {number}"
            self.arrays[here] = band.ReadAsArray()
            about = {
                "type": gdal.GetDataTypeName(band.DataType),
                "nodata": None if band.GetNoDataValue() is None else repr(band.GetNoDataValue()),
                "name": band.GetDescription(),
                "shown": gdal.GetColorInterpretationName(band.GetColorInterpretation()),
                "mask": band.GetMaskFlags(),
                "blocks": band.GetBlockSize(),
                "scale": [band.GetScale(), band.GetOffset()],
                "categories": [name for name in band.GetCategoryNames() or () if name],
            }
            self.value(here, about)
            self._metadata(here, band)
            colours, table = band.GetColorTable(), band.GetDefaultRAT()
            if colours:
                entries = [colours.GetColorEntry(item) for item in range(colours.GetCount())]
                self.arrays[f"{here}/colours"] = np.array(entries)
            if table:
                for row in range(table.GetRowCount()):
                    cells = [table.GetValueAsString(row, column) for column in range(table.GetColumnCount())]
                    self.value(f"{here}/attributes {row}", cells)
            for level in range(band.GetOverviewCount()):
                self.arrays[f"{here}/overview {level}"] = band.GetOverview(level).ReadAsArray()

    def _metadata(self, place: str, item: Any) -> None:
        for domain in item.GetMetadataDomainList() or ():
            if domain not in ("DERIVED_SUBDATASETS", "xml:XMP"):
                for name, value in (item.GetMetadata_Dict(domain) or {}).items():
                    self.value(f"{place}/{domain or 'tags'}/{name}", value, name)

    def vector(self, place: str, path: Path) -> None:
        dataset = gdal.OpenEx(str(path), gdal.OF_VECTOR)
        self._metadata(place, dataset)
        for number in range(dataset.GetLayerCount()):
            layer = dataset.GetLayer(number)
            here = f"{place}/{layer.GetName()}"
            about = {"crs": _crs(layer.GetSpatialRef()), "geometry": layer.GetGeomType(), "rows": len(layer)}
            self.value(here, about)
            self._metadata(here, layer)
            outlines = []
            for row, feature in enumerate(layer):
                values = {"fid": feature.GetFID(), **feature.items()}
                self.value(f"{here}/row {row}", values)
                geometry = feature.GetGeometryRef()
                outlines.append(_numbers(geometry.ExportToWkt()) if geometry else np.zeros(0))
            self.arrays[f"{here}/outlines"] = np.concatenate(outlines) if outlines else np.zeros(0)

    def table(self, place: str, path: Path) -> None:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row, values in enumerate(csv.DictReader(file)):
                self.value(f"{place}/row {row}", {name: _number(value) for name, value in values.items()})

    def json(self, place: str, path: Path) -> None:
        self.value(place, json.loads(path.read_text(encoding="utf-8")))

    def safetensors(self, place: str, path: Path) -> None:
        with safe_open(path, "np") as file:
            self.value(f"{place}/header", file.metadata() or {})
            for name in file.keys():  # noqa: SIM118
                self.arrays[f"{place}/{name}"] = file.get_tensor(name)

    def checkpoint(self, place: str, path: Path) -> None:
        self._state(place, torch.load(path, map_location="cpu", weights_only=True))

    def _state(self, place: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self.arrays[place] = value.detach().cpu().numpy()
        elif isinstance(value, dict):
            for name, item in value.items():
                self._state(f"{place}/{name}", item)
        elif isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                self._state(f"{place}/{number}", item)
        else:
            self.value(place, value, place.rsplit("/", 1)[-1])

    def picture(self, place: str, path: Path) -> None:
        self.arrays[place] = np.asarray(Image.open(path))

    def page(self, place: str, path: Path) -> None:
        source = path.read_text(encoding="utf-8")
        for number, content in enumerate(re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", source)):
            self.arrays[f"{place}/picture {number}"] = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        self.arrays[f"{place}/drawing"] = np.sort(
            np.concatenate(
                [np.zeros(0), *map(_numbers, re.findall(r'\b(?:points|d|cx|cy|x|y|x1|y1)="([^"]+)"', source))]
            )
        )
        pieces = re.split(r"(?s)<(?:style|script|title).*?</(?:style|script|title)>|<[^>]+>", source)
        pieces = [self.masked(" ".join(html.unescape(piece).split())) for piece in pieces]
        short = [re.sub(r"(?<=\d),(?=\d{3})", "", piece) for piece in pieces if len(re.findall(r"[^\W\d]+", piece)) < 5]
        self.arrays[f"{place}/numbers"] = np.sort(_numbers(" ".join(short)))
        text = " ".join(filter(None, pieces))
        self.words.append(f"{place}: {text}")


_KINDS = {
    ".tif": _Describer.raster,
    ".gpkg": _Describer.vector,
    ".geojson": _Describer.vector,
    ".csv": _Describer.table,
    ".json": _Describer.json,
    ".safetensors": _Describer.safetensors,
    ".pt": _Describer.checkpoint,
    ".png": _Describer.picture,
    ".jpg": _Describer.picture,
    ".jpeg": _Describer.picture,
    ".html": _Describer.page,
}


def _is_sentence(key: str, value: str) -> bool:
    return key in SENTENCES or (key == "prompt" and value.startswith("like "))


def _crs(reference: Any) -> str:
    if reference is None:
        return ""
    code = reference.GetAuthorityCode(None)
    return f"{reference.GetAuthorityName(None)}:{code}" if code else reference.ExportToProj4()


def _numbers(text: str) -> np.ndarray:
    return np.array(
        [float(item) for item in re.findall(r"(?<![\w.])[-−+]?\d+(?:\.\d+)?(?:e-?\d+)?", text.replace("−", "-"))]
    )


def _number(text: Optional[str]) -> Any:
    try:
        return float(text or "")
    except ValueError:
        return text


# Bit for bit, on one machine


def _file(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "-")


def write(folder: Path, jobs: list[str]) -> None:
    """Writes what all cases give: ``NAME.json`` and ``NAME.npz`` for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in _all(jobs):
        hashes = {place: _sha256(array) for place, array in found.arrays.items()}
        about = {"facts": found.facts, "sha256": hashes, "words": found.words}
        text = json.dumps(about, indent=1, ensure_ascii=False)
        _file(folder, name).with_suffix(".json").write_text(text, encoding="utf-8")
        np.savez_compressed(_file(folder, name).with_suffix(".npz"), **_keyed(found.arrays))


def compare(folder: Path, jobs: list[str], words: bool) -> int:
    """Prints what differs from what ``write`` wrote; gives the number of differences."""
    count = 0
    for name, found in _all(jobs):
        about = json.loads(_file(folder, name).with_suffix(".json").read_text(encoding="utf-8"))
        differences = list(_facts(about["facts"], json.loads(json.dumps(found.facts))))
        with np.load(_file(folder, name).with_suffix(".npz")) as kept:
            for number, (place, sha256) in enumerate(about["sha256"].items()):
                array = found.arrays.get(place)
                if array is None:
                    differences.append(f"{place}: is missing")
                elif _sha256(array) != sha256:
                    differences.append(f"{place}: {_difference(kept[str(number)], array)}")
        differences += [f"{place}: is new" for place in found.arrays if place not in about["sha256"]]
        if words:
            before, after = about["words"], found.words
            differences += [f"word gone: {line}" for line in before if line not in after]
            differences += [f"word new: {line}" for line in after if line not in before]
        for line in differences:
            print(f"{name}: {line}")
        count += len(differences)
    print(f"{count} differences")
    return count


def _all(jobs: list[str]) -> Iterator[tuple[str, Description]]:
    unknown = set(jobs) - {job for job, _ in CASES.values()}
    if unknown:
        sys.exit(f"no such job: {', '.join(sorted(unknown))}")
    print(f"the engine of {Path(clippan.__file__).parent}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="golden-") as root:
        bench = Bench(Path(root).resolve())
        for name, (job, _) in CASES.items():
            if not jobs or job in jobs:
                started = time.monotonic()
                found = describe(bench, name)
                print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
                yield name, found


def _facts(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for place, value in before.items():
        if place not in after:
            yield f"{place}: is missing; was {value!r}"
        elif after[place] != value:
            yield f"{place}: {value!r} became {after[place]!r}"
    for place in after.keys() - before.keys():
        yield f"{place}: is new, {after[place]!r}"


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _keyed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {str(number): array for number, array in enumerate(arrays.values())}


def _difference(before: np.ndarray, after: np.ndarray) -> str:
    if (before.dtype, before.shape) != (after.dtype, after.shape):
        return f"{before.dtype} {before.shape} became {after.dtype} {after.shape}"
    gap = np.abs(before.astype(float) - after.astype(float))
    return f"{np.count_nonzero(gap):,} of {gap.size:,} values differ, by {np.nanmax(gap):.3g} at most"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "compare", "pin"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--jobs", default="", help="only these, as pansharpen,segment")
    parser.add_argument("--words", action="store_true", help="sentences for people, too")
    options = parser.parse_args()
    jobs = [job for job in options.jobs.split(",") if job]
    if options.action == "pin":
        import test_golden

        test_golden.pin(_all(jobs))
        return 0
    if options.folder is None:
        parser.error("name the folder")
    if options.action == "write":
        write(options.folder, jobs)
        return 0
    return 1 if compare(options.folder, jobs, options.words) else 0


if __name__ == "__main__":
    sys.exit(main())
