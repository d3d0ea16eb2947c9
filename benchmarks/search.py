#!/usr/bin/env python3
"""How fast an index is made and asked.

Three tables, from one run: the tiles a second of indexing a raster, beside those of the bare model on the same tiles,
which lie in memory already; the first and later searches in a process such as QGIS starts; and a query over a million
random vectors of 512 numbers, as the job sees it and its parts.

    .venv/bin/python benchmarks/search.py --write docs/search_speed.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from osgeo import gdal, osr

from clippan.clip.encoder import load_encoder
from clippan.core.device import set_threads
from clippan.handlers import run
from clippan.handlers import search as query
from clippan.jobs import Context, Device, IndexRequest, SearchRequest, to_json
from clippan.raster.rendering import Renderer, RenderOptions
from clippan.raster.tiles import Window
from clippan.search import geopackage, similarity
from clippan.search.tile_index import IndexedRaster, IndexedTile, IndexInfo

WIDTH = 512
PART = 50_000


def random_index(path: str, count: int) -> None:
    """An index of random unit vectors, whose tiles are a grid of one raster."""
    rng = np.random.default_rng(0)
    columns = int(np.ceil(count**0.5))
    about = IndexInfo("random", "Random vectors", "", WIDTH, 192, "")
    with geopackage.GeoPackageWriter(path, about) as index:
        index.create("")
        (raster,) = index.put_rasters([IndexedRaster(0, "/nowhere/random.tif", "{}", "", (), "", 0, count)])
        for start in range(0, count, PART):
            numbers = range(start, min(start + PART, count))
            vectors = rng.standard_normal((len(numbers), WIDTH), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            tiles = []
            for number in numbers:
                y, x = (64 * place for place in divmod(number, columns))
                outline = (x, -y, x + 64, -y, x + 64, -y - 64, x, -y - 64)
                tiles.append(IndexedTile(0, raster.id, Window(x, y, 64, 64), 64.0, outline))
            index.commit_tiles(tiles, vectors, {raster.id: numbers[-1] + 1})


class Words:
    """Gives random vectors for texts, in the place of a model whose width the benchmark does not choose."""

    def __init__(self) -> None:
        self.spec = type("Model", (), {"id": "random", "label": "Random vectors"})
        self.sha256, self.embedding_dim, self.image_size, self.logit_scale = "", WIDTH, 192, 50.0

    def encode_texts(self, texts):  # type: ignore[no-untyped-def]
        """One vector a text, always the same."""
        vectors = [np.random.default_rng(abs(hash(text)) % 2**32).standard_normal(WIDTH) for text in texts]
        return (np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def text_warnings(self, phrases):  # type: ignore[no-untyped-def]
        """It reads anything."""
        return []


def timed(function, times: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Wall times in milliseconds."""
    found = []
    for number in range(times):
        start = time.perf_counter()
        function(number)
        found.append(1000 * (time.perf_counter() - start))
    return found


def asked(path: str) -> dict[str, float]:
    """Times in seconds and memory in bytes of searches in this process."""
    query.load_encoder = lambda *_: Words()  # type: ignore[assignment]
    begun = time.perf_counter()
    run(SearchRequest(index=path, text=("first",)))
    first = time.perf_counter() - begun
    index = geopackage.open_reader(path)
    direction = Words().encode_texts(["a place"])
    run(SearchRequest(index=path, text=("warm",)))
    products = timed(lambda _: similarity.dot_products(index._matrix, direction), 25)
    search = timed(lambda number: run(SearchRequest(index=path, text=(f"text {number}",))), 25)
    status = Path("/proc/self/status").read_text()
    own, mapped = (int(status.split(f"{name}:")[1].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return {
        "first": first,
        "products": statistics.median(products),
        "search": statistics.median(search),
        "slowest": max(search),
        "own": own,
        "mapped": mapped,
    }


def queries(folder: Path, count: int) -> list[str]:
    """The table of the query, which is asked in a process of its own."""
    path = str(folder / "million.gpkg")
    begun = time.perf_counter()
    random_index(path, count)
    built = time.perf_counter() - begun
    command = [sys.executable, __file__, "--ask", path]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    matrix = geopackage.vectors_path(path).stat().st_size
    return [
        f"## A query over {count:,} × {WIDTH}",
        "",
        "| | |",
        "|---|---|",
        f"| comparing all vectors, median of 25 | {found['products']:.0f} ms |",
        f"| the whole search (compare, choose, judge, merge, read tiles), median of 25 | {found['search']:.0f} ms |",
        f"| the slowest of them | {found['slowest']:.0f} ms |",
        f"| the first search, which opens the index | {found['first']:.2f} s |",
        f"| the matrix on disk | {matrix / 2**20:.0f} MiB |",
        f"| the GeoPackage | {Path(path).stat().st_size / 2**20:.0f} MiB |",
        f"| private memory of that process after its searches, including torch | {found['own'] / 2**20:.0f} MiB |",
        f"| memory mapped from files (matrix, libraries), which can be released | {found['mapped'] / 2**20:.0f} MiB |",
        f"| writing such an index (GeoPackage and matrix, without a model) | {built:.0f} s |",
        "",
    ]


def throughput(folder: Path, model: str, size: int) -> list[str]:
    """The table of indexing against the bare model."""
    rng = np.random.default_rng(1)
    path = str(folder / "scene.tif")
    options = ["TILED=YES", "COMPRESS=DEFLATE"]
    dataset = gdal.GetDriverByName("GTiff").Create(path, size, size, 4, gdal.GDT_UInt16, options)
    dataset.SetGeoTransform((500000, 10, 0, 5000000, 0, -10))
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32631)
    dataset.SetProjection(reference.ExportToWkt())
    coarse = rng.integers(200, 3000, (4, size // 32, size // 32)).astype(np.uint16)
    noise = rng.integers(0, 99, (4, size, size), np.uint16)
    dataset.WriteArray(np.kron(coarse, np.ones((1, 32, 32), np.uint16)) + noise)
    del dataset
    engine = load_encoder(model, Device.AUTO, Context())
    set_threads(2)
    scene = Renderer(path, RenderOptions(overlap=0.0))
    tiles = list(scene.tile_plan(engine.image_size).tiles())
    pictures = np.stack([scene.picture(window, engine.image_size)[0] for _, window, _ in tiles])
    engine.encode_images(pictures[:64])
    rates: dict[str, list[float]] = {"bare": [], "index": []}
    for number in range(3):  # in turns: the machine's speed is not the same all the time
        begun = time.perf_counter()
        engine.encode_images(pictures)
        rates["bare"].append(len(pictures) / (time.perf_counter() - begun))
        output = str(folder / f"index{number}.gpkg")
        rates["index"].append(
            run(IndexRequest(rasters=(path,), output=output, model=model, overlap=0.0, threads=2)).rate
        )
    bare, index = (statistics.median(values) for values in rates.values())
    return [
        f"## Indexing {len(tiles):,} tiles of a {size}² raster (4 bands, uint16, DEFLATE), model {model}",
        "",
        "| | tiles/s, median of 3 alternating runs |",
        "|---|---|",
        f"| the bare model, pictures in memory | {bare:.1f} |",
        f"| `clippan index`: read, stretch, embed, store | {index:.1f} |",
        f"| share of the bare model | {index / bare:.0%} |",
        "",
    ]


def warm(index: str) -> list[str]:
    """The table of an analyst's searches: in a worker that the first of them starts, as QGIS does."""
    begun = time.perf_counter()
    worker = subprocess.Popen(
        [sys.executable, "-m", "clippan.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    seconds = []
    for number, text in enumerate(("beach", *(f"a place of kind {number}" for number in range(20)))):
        if number:
            begun = time.perf_counter()
        params = {"job": "search", "request": to_json(SearchRequest(index=index, text=(text,)))}
        message = {"jsonrpc": "2.0", "id": number, "method": "run", "params": params}
        print(json.dumps(message), file=worker.stdin, flush=True)
        while json.loads(worker.stdout.readline()).get("id") != number:
            pass
        seconds.append(time.perf_counter() - begun)
    worker.stdin.close()
    worker.wait()
    later = 1000 * np.array(seconds[1:])
    return [
        "## A search in QGIS, in the engine process, with the model and the index above",
        "",
        "| | |",
        "|---|---|",
        f"| the first search, including the start of the engine | {seconds[0]:.1f} s |",
        f"| later ones, median of 20 | {np.median(later):.0f} ms |",
        f"| the slowest of them | {later.max():.0f} ms |",
        "",
    ]


def main() -> None:
    """Prints the tables, and writes them if asked to."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=1_000_000, help="vectors (default %(default)s)")
    options.add_argument("--size", type=int, default=2048, help="edge of the raster (default %(default)s)")
    options.add_argument("--model", default="starter")
    options.add_argument("--ask", help=argparse.SUPPRESS)
    options.add_argument("--write", type=Path, help="also write the tables there")
    chosen = options.parse_args()
    torch.set_num_threads(2)
    if chosen.ask:
        print(json.dumps(asked(chosen.ask)))
        return
    command = f".venv/bin/python benchmarks/search.py {' '.join(sys.argv[1:])}"
    lines = [
        "# Speed of the search",
        "",
        f"Measured on {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 2 threads, torch "
        f"{torch.__version__}, by `{command.strip()}`.",
        "",
    ]
    with tempfile.TemporaryDirectory() as name:
        lines += throughput(Path(name), chosen.model, chosen.size)
        lines += warm(str(Path(name) / "index0.gpkg"))
        lines += queries(Path(name), chosen.count)
    text = "\n".join(lines)
    print(text)
    if chosen.write:
        chosen.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
