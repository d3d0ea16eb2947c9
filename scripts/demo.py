#!/usr/bin/env python3
"""The demo: pansharpens a real Landsat 8 scene inside QGIS, searches and maps a Sentinel-2 scene by text and from a
few labelled places, and measures.

Builds the plugin's zip, installs it in a fresh QGIS profile under ``.demo/``, and starts the real QGIS on it: on the
display, where it stays open, or under Xvfb. Then prints the quality figures of all methods beside GDAL's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import sample
from qgis_profile import Profile

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (
    *("demo.png", "qgis.png", "pansharpen_dialog.png", "search.png", "words.png"),
    *("map.png", "segmentbytext_dialog.png"),
    *("classes.png", "classifyfewsamples_dialog.png"),
)
PATIENCE = 420  # seconds for QGIS to start and finish

# Without these a first start asks questions, which nobody is there to answer. The tips are each version's own.
QUIET = """[app]
projections\\unknownCrsBehavior=NoAction

[migration]
fileVersion=2
firstRunVersionFlag=999999

[qgis]
checkVersion=false
showTips{version}=false
newsFeed\\http-feedqgisorg\\disabled=true

[UI]
UITheme=default
"""


def say(text: str) -> None:
    """One line of progress, at once."""
    print(text, flush=True)


def has_display() -> bool:
    """Whether there is a screen to show QGIS on."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def make_profile(folder: Path) -> Profile:
    """A fresh profile with the built plugin."""
    from qgis.core import Qgis

    shutil.rmtree(folder / "profiles", ignore_errors=True)
    profile = Profile(folder, Path(sys.executable))
    settings = profile.home / "QGIS" / f"QGIS{Qgis.QGIS_VERSION_INT // 10000}.ini"
    settings.parent.mkdir(parents=True)
    settings.write_text(QUIET.format(version=Qgis.QGIS_VERSION_INT // 100), encoding="utf-8")
    say(f"Installing {profile.install().name} in a fresh QGIS profile")
    return profile


def make_scene(folder: Path) -> tuple[Path, Path]:
    """PAN of the Landsat scene, and its multispectral bands as one raster, as other satellites come; notes for QGIS
    where those and the Sentinel-2 scene are."""
    from osgeo import gdal

    gdal.UseExceptions()
    scene = sample.landsat()
    ms = folder / "landsat8_ms.tif"
    stack = gdal.BuildVRT("", [str(path) for path in scene.ms], separate=True)
    names = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
    for number, name in enumerate(names, 1):
        stack.GetRasterBand(number).SetDescription(name)
    gdal.Translate(str(ms), stack, creationOptions=["PHOTOMETRIC=MINISBLACK"])
    shore = folder / "sentinel2_rgb.vrt"
    gdal.BuildVRT(str(shore), [str(path) for path in sample.sentinel()], separate=True).FlushCache()
    files = {"pan": str(scene.pan), "ms": str(ms), "shore": str(shore), "labels": str(sample.LABELS)}
    for name, bands in zip(("fine", "coarse"), sample.sentinel_bands()):
        files[name] = str(folder / f"sentinel2_{name}.vrt")
        gdal.BuildVRT(files[name], [str(path) for path in bands], separate=True).FlushCache()
    (folder / "scene.json").write_text(json.dumps(files), encoding="utf-8")
    return scene.pan, ms


def show_in_qgis(profile: Profile, stay: bool) -> None:
    """Starts QGIS, waits until it has shown the scene, and, without a display, until it has ended."""
    folder = profile.folder
    made = ("pansharpened.tif", "pansharpened.qml", "shore.gpkg", "shore.gpkg.vectors", "clippan.qgz")
    made += ("map.tif", "map.tif.aux.xml", "map.qml", "map.gpkg")
    made += ("classes.tif", "classes.tif.aux.xml", "classes.qml", "classes.html")
    for name in ("answer.json", *made, *PICTURES):
        (folder / name).unlink(missing_ok=True)
    command = ["qgis", "--nologo", "--noversioncheck", "--profiles-path", str(folder), "--profile", "default"]
    command += ["--code", str(ROOT / "scripts" / "demo_in_qgis.py")]
    if not stay:
        command = ["xvfb-run", "-a", "-s", "-screen 0 1680x1050x24", *command]
    environment = {**profile.environment, "CLIPPAN_DEMO": str(folder), "CLIPPAN_DEMO_OPEN": str(int(stay))}
    environment.pop("QT_QPA_PLATFORM", None)  # tests draw off screen; this is about what a screen shows
    if not stay:
        environment["QT_QPA_PLATFORM"] = "xcb"
    answer = folder / "answer.json"
    with (folder / "qgis.log").open("w", encoding="utf-8") as log:
        qgis = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + PATIENCE
    while not answer.exists() and qgis.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    if not answer.exists():
        end(qgis)
        raise SystemExit(f"QGIS did not get as far as the result; {folder / 'qgis.log'} has its last words.")
    told = json.loads(answer.read_text(encoding="utf-8"))
    if not stay:
        try:
            qgis.wait(30)
        except subprocess.TimeoutExpired:
            say("QGIS did not close by itself; it is stopped.")
            end(qgis)
    if "error" in told:
        raise SystemExit(f"The demo failed inside QGIS: {told['error']}\n{told['traceback']}")


def end(process: subprocess.Popen) -> None:
    """Ends a process with all that it started; xvfb-run leaves QGIS behind when it alone is ended."""
    with contextlib.suppress(ProcessLookupError):  # it may have died on its own
        os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def measure(folder: Path, pan: Path, ms: Path) -> None:
    """Prints the figures without a reference of every method, and of GDAL's."""
    from osgeo_utils import gdal_pansharpen

    from clippan.handlers import run
    from clippan.jobs import AssessRequest, Method, PansharpenRequest

    columns = ("HQNR", "D_lambda_K", "D_s", "QNR", "HP_correlation")
    say("\nQuality on this scene, without a reference (HQNR, QNR and HP_correlation: best 1; D: best 0)\n")
    say("method".ljust(18) + "".join(name.rjust(16) for name in columns) + "seconds".rjust(10))
    folder = folder / "methods"
    folder.mkdir(exist_ok=True)
    for name in [*(method.value for method in Method), "gdal_pansharpen"]:
        output = folder / f"{name}.tif"
        output.unlink(missing_ok=True)
        start = time.perf_counter()
        if name == "gdal_pansharpen":
            gdal_pansharpen.gdal_pansharpen(
                pan_name=str(pan),
                spectral_names=[str(ms)],
                dst_filename=str(output),
                driver_name="GTiff",
                progress_callback=lambda *_: 1,
            )
        else:
            run(
                PansharpenRequest(
                    pan=str(pan), ms=(str(ms),), output=str(output), method=Method(name), sensor="landsat"
                )
            )
        seconds = time.perf_counter() - start
        figures = run(AssessRequest(fused=str(output), pan=str(pan), ms=(str(ms),), sensor="landsat")).full
        say(name.ljust(18) + "".join(f"{figures[key]:16.4f}" for key in columns) + f"{seconds:10.1f}")
    say("\ncubic adds no detail at all: it keeps the colours, so HQNR flatters it, and HP_correlation tells.")


def main() -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(
        description="Pansharpen a Landsat 8 scene, and search and map a Sentinel-2 scene by text and from a few "
        "labelled places, inside QGIS."
    )
    parser.add_argument("--close", action="store_true", help="use Xvfb even where there is a display")
    parser.add_argument("--docs", action="store_true", help="copy the pictures to docs/images")
    parser.add_argument("--no-figures", action="store_true", help="leave out the table of quality figures")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo", help="where everything is written")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(exist_ok=True)
    stay = has_display() and not options.close
    profile = make_profile(folder)
    pan, ms = make_scene(folder)
    say("Pansharpening, mapping, classifying, indexing and searching inside QGIS")
    show_in_qgis(profile, stay)
    say(f"Before and after: {folder / 'demo.png'}\nThe toolbox:      {folder / 'qgis.png'}")
    say(f"The search panel: {folder / 'search.png'}\nFive searches:    {folder / 'words.png'}")
    say(f"A map by words:   {folder / 'map.png'}")
    say(f"A map by samples: {folder / 'classes.png'}\nIts report:       {folder / 'classes.html'}")
    if options.docs:
        images = ROOT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)
        for name in PICTURES:
            shutil.copy(folder / name, images / name)
    if not options.no_figures:
        measure(folder, pan, ms)
    say(f"\nThe project: {folder / 'clippan.qgz'}" + ("; QGIS stays open on it." if stay else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
