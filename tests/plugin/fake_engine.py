"""Stands in for ``python -m clippan.worker`` in the tests of the plugin, and behaves as its first argument says.

Uses nothing but the standard library, and GDAL where it has to write a raster.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

TEXT = "the doctor's text"

begun = []  # outputs of a job that comes to no end


def send(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def figures():
    full = {"D_lambda_K": 0.01, "D_s": 0.02, "HQNR": 0.97, "D_lambda": 0.03, "QNR": 0.95, "HP_correlation": 0.9}
    return {
        "full": full,
        "reference": {},
        "sensor": "generic",
        "pixels": 10,
        "report": None,
        "seconds": 0.1,
        "hints": ["The pansharpened raster's values are about 1/10,000 of the multispectral raster's."],
    }


def adapt(request):
    Path(request["output"]).write_text("a model")
    before = {"HQNR": 0.9, "D_lambda_K": 0.05, "D_s": 0.06, "HP_correlation": 0.9, "Q2n": 0.8, "SAM": 3, "ERGAS": 2}
    return {
        "output": request["output"], "improved": True, "before": before, "after": {**before, "HQNR": 0.95, "SAM": 2.5},
        "steps": 60, "losses": {"khan": 0.1}, "clip": request["clip"], "sensor": "generic", "device": "cpu",
        "bands": 4, "megapixels": 1.5, "seconds": 9.8,
    }  # fmt: skip


def write_raster(request):
    from osgeo import gdal

    gdal.UseExceptions()
    pan = gdal.Open(request["pan"])
    names = [(path, band + 1) for path in request["ms"] for band in range(gdal.Open(path).RasterCount)]
    chosen = [names[number - 1] for number in request["bands"] or range(1, len(names) + 1)]
    size = (pan.RasterXSize, pan.RasterYSize)
    target = gdal.GetDriverByName("GTiff").Create(request["output"], *size, len(chosen), gdal.GDT_UInt16)
    target.SetGeoTransform(pan.GetGeoTransform())
    target.SetProjection(pan.GetProjection())
    for number, (path, band) in enumerate(chosen, 1):
        source = gdal.Open(path)  # a band does not keep its dataset
        values = source.GetRasterBand(band).ReadAsArray(buf_xsize=size[0], buf_ysize=size[1])
        target.GetRasterBand(number).WriteArray(values)
    return {
        "output": request["output"], "width": size[0], "height": size[1], "bands": len(chosen), "dtype": "uint16",
        "nodata": None, "method": request["method"], "sensor": "generic", "device": "cpu", "ratio": [4.0, 4.0],
        "seconds": 0.1, "provenance": {"CLIPPAN_METHOD": request["method"]}, "shift": [-1.2, 0.5],
    }  # fmt: skip


def index(request):
    """Writes what stands for an index here: JSON that says how a raster is cut into tiles."""
    from osgeo import gdal, osr

    gdal.UseExceptions()
    raster = gdal.Open(request["rasters"][0])
    reference = osr.SpatialReference(raster.GetProjection()) if raster.GetProjection() else None
    about = {
        "raster": request["rasters"][0], "crs": f"EPSG:{reference.GetAuthorityCode(None)}" if reference else "",
        "geotransform": raster.GetGeoTransform(), "across": 4, "edge": raster.RasterXSize // 4,
    }  # fmt: skip
    Path(request["output"]).write_text(json.dumps(about))
    return {
        "output": request["output"], "model": request["model"], "tiles": 16, "rasters": 1, "added": 16, "kept": 0,
        "dropped": 0, "empty": 0, "failed": [], "device": "cpu", "seconds": 0.1, "rate": 160.0,
        "hints": [], "pictures": [],
    }  # fmt: skip


def about(request):
    values = json.loads(Path(request["index"]).read_text())
    return {
        "index": request["index"], "model": "starter", "label": "Starter CLIP", "tiles": values["across"] ** 2,
        "rasters": 1, "crs": values["crs"], "extent": [], "files": [values["raster"]], "complete": True, "warning": "",
    }  # fmt: skip


def search(request):
    """The tiles in their order, but the liked first and the unliked last."""
    values = json.loads(Path(request["index"]).read_text())
    across, edge, crs = values["across"], values["edge"], values["crs"]
    left, width, _, top, _, height = values["geotransform"] if crs else (0, 1, 0, 0, 0, -1)
    order = sorted(
        range(1, across**2 + 1), key=lambda tile: (tile in request["unlike"], tile not in request["like"], tile)
    )
    hits = []
    for rank, tile in enumerate(order[: request["top"]] if "nothing" not in request["text"] else [], 1):
        column, row = (tile - 1) % across * edge, (tile - 1) // across * edge
        x, y = left + column * width, top + row * height
        right, bottom = x + edge * width, y + edge * height
        hits.append({
            "tile": tile, "rank": rank, "prompt": (request["text"] or ["example"])[0], "score": 0.3 - rank / 100,
            "confidence": 1 - rank / 20, "raster": values["raster"], "window": [column, row, edge, edge],
            "bounds": [x, bottom, right, y], "outline": [x, y, right, y, right, bottom, x, bottom],
            "scale": float(edge), "date": "2021-06-30",
        })  # fmt: skip
    if request["heatmap"]:
        from osgeo import gdal

        target = gdal.GetDriverByName("GTiff").Create(request["heatmap"], across, across, 1, gdal.GDT_Float32)
        target.SetGeoTransform((left, edge * width, 0, top, 0, edge * height))
        target.GetRasterBand(1).Fill(0.5)
    return {
        "hits": hits, "index": request["index"], "model": "starter", "crs": crs, "tiles": across**2,
        "output": request["output"], "heatmap": request["heatmap"], "hints": [], "seconds": 0.1,
    }  # fmt: skip


def thumbnails(request):
    from osgeo import gdal

    files = {}
    for tile in request["tiles"]:
        files[str(tile)] = str(Path(request["folder"]) / f"{tile}.png")
        picture = gdal.GetDriverByName("MEM").Create("", request["pixels"], request["pixels"], 3)
        picture.GetRasterBand(1).Fill(tile * 10)
        gdal.GetDriverByName("PNG").CreateCopy(files[str(tile)], picture)
    return {"files": files}


def segment(request):
    """A map whose columns are of the classes in turn; the last column of each is unclassified."""
    from osgeo import gdal, ogr, osr

    gdal.UseExceptions()
    text = request["classes"]
    text = Path(text).read_text() if text.endswith(".json") else text
    names = [row.split(",")[0].strip() for row in text.split(";")]
    if text.startswith("{"):
        names = [item["name"] for item in json.loads(text)["classes"]]
    raster = gdal.Open(request["raster"])
    size = (raster.RasterXSize, raster.RasterYSize)
    edge = size[0] // len(names)
    for path, kind, bands in (
        (request["output"], gdal.GDT_Byte, 1),
        (request["confidence"], gdal.GDT_Float32, 1),
        (request["probabilities"], gdal.GDT_Float32, len(names)),
    ):
        if not path:
            continue
        target = gdal.GetDriverByName("GTiff").Create(path, *size, bands, kind)
        target.SetGeoTransform(raster.GetGeoTransform())
        target.SetProjection(raster.GetProjection())
        for number in range(len(names)):
            column = bytes([number + 1]) * edge if kind == gdal.GDT_Byte else bytes(edge)
            target.GetRasterBand(1).WriteRaster(number * edge, 0, edge, 1, column, buf_type=gdal.GDT_Byte)
    if request["polygons"]:
        west, step, _, north, _, height = raster.GetGeoTransform()
        file = ogr.GetDriverByName("GPKG").CreateDataSource(request["polygons"])
        reference = osr.SpatialReference(raster.GetProjection())
        layer = file.CreateLayer("polygons", reference, ogr.wkbPolygon)
        kinds = {
            "value": ogr.OFTInteger,
            "confidence": ogr.OFTReal,
            "area_px": ogr.OFTInteger64,
            "hectares": ogr.OFTReal,
        }
        for field in ("value", "class", "confidence", "prompt", "model", "area_px", "hectares"):
            layer.CreateField(ogr.FieldDefn(field, kinds.get(field, ogr.OFTString)))
        for number, name in enumerate(names):
            left, right, south = west + number * edge * step, west + (number + 1) * edge * step, north + 9 * height
            feature = ogr.Feature(layer.GetLayerDefn())
            corners = f"{left} {north}, {right} {north}, {right} {south}, {left} {south}, {left} {north}"
            feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POLYGON (({corners}))"))
            values = {"value": number + 1, "class": name, "confidence": 0.7, "prompt": name, "model": "starter"}
            for field, value in {**values, "area_px": 9 * edge}.items():
                feature.SetField(field, value)
            layer.CreateFeature(feature)
    if request["areas"]:
        Path(request["areas"]).write_text("value,class\n")
    colours = ("#4a90d9", "#2f7d32", "#d1495b", "#e6c35c")
    classes = [
        {
            "value": number, "name": name, "colour": colours[number % 4], "pixels": 10 * (number % 2),
            "share": 0.25, "hectares": 1.5 if number % 2 else None, "confidence": 0.7 if number % 2 else None,
        }
        for number, name in [*enumerate(names, 1), (0, "unclassified")]
    ]  # fmt: skip
    return {
        "output": request["output"], "width": size[0], "height": size[1], "classes": classes,
        "model": request["model"], "device": "cpu", "window": [64, 128], "seconds": 2.0, "rate": 1.5,
        "confidence": request["confidence"], "probabilities": request["probabilities"],
        "polygons": request["polygons"], "areas": request["areas"], "count": len(names) if request["polygons"] else 0,
        "hints": ["A hint."], "provenance": {"CLIPPAN_ALGORITHM": "segment"},
        "picture": {"raster": request["raster"], "choice": {"bands": [3, 2, 1], "reason": "by name"}, "stretch": []},
    }  # fmt: skip


def classify(request):
    """A map of the classes that the samples hold, as ``segment`` makes it."""
    from osgeo import ogr

    samples = ogr.Open(request["samples"])
    labels = [str(feature[request["field"]]) for feature in samples.GetLayer()]
    names = sorted(set(labels))
    made = segment(
        {**request, "raster": request["rasters"][0], "classes": "; ".join(names), "probabilities": "", "polygons": ""}
    )
    for path in (request["report"], request["save_encoder"]):
        if path:
            Path(path).write_text("<html/>")
    choice = request["method"] == "auto"
    score = {"oa": 0.9, "std": 0.02, "aa": 0.85, "kappa": 0.8, "seconds": 3.0}
    kinds = {name: made[name] for name in ("output", "width", "height", "confidence", "areas", "hints", "provenance")}
    return {
        **kinds, "report": request["report"], "encoder": request["save_encoder"], "device": "cpu", "seconds": 2.0,
        "method": "svm-mean" if choice else request["method"], "model": request["model"],
        "chosen": [{"method": "svm-mean", **score}, {"method": "rf", **score, "oa": 0.7}] if choice else [],
        "accuracy": {
            "oa": 0.9, "std": 0.02, "aa": 0.85, "kappa": 0.8, "f1": [None] + [0.95] * (len(names) - 1),
            "confusion": [], "split": "polygon", "repeats": request["repeats"],
        } if request["repeats"] else None,
        "classes": made["classes"][:-1], "labelled": [50] * len(names),
        "places": [labels.count(name) for name in names],
    }  # fmt: skip


def pretrain(request):
    Path(request["output"]).write_text("a scene")
    return {
        "output": request["output"], "modalities": [3, 1], "steps": 7, "loss": 0.25, "hints": ["A hint."],
        "device": "cpu", "seconds": 2.0,
    }  # fmt: skip


def trained(request):
    """The folder and the report of a training."""
    Path(request["output"]).mkdir(exist_ok=True)
    if request["report"]:
        Path(request["report"]).write_text("<html/>")
    return {
        "model": request["output"], "report": request["report"], "base": request["model"], "hints": ["A hint."],
        "device": "cpu", "seconds": 2.0, "chips": 12, "steps": 5,
    }  # fmt: skip


def finetune(request):
    known = request["control"]
    curve = [
        {
            "alpha": alpha, "task": 0.4 + alpha / 2, "control": 0.8 - alpha / 4 if known else None,
            "task_validation": 0.5, "control_validation": 0.8 if known else None,
        }
        for alpha in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    sea = {"name": "sea", "control": False, "pictures": 9, "before": 0.4, "after": 0.65}
    old = {"name": "old", "control": True, "pictures": 0, "before": None, "after": None}
    return {
        **trained(request), "alpha": 0.5, "before": curve[0], "after": curve[1], "curve": curve, "loss": 0.1,
        "classes": [sea, old] if known else [sea],
    }  # fmt: skip


def align(request):
    recalls = {
        name: {f"at_{rank}": value * rank / 10 for rank in (1, 5, 10)}
        for name, value in (("to_picture", 0.8), ("from_picture", 0.7), ("before", 0.2), ("chance", 0.1))
    }
    return {
        **trained(request), **recalls, "bands": ["VV", "VH"], "low": [-25, -25], "high": [0, 0], "held": 4,
        "cosine": 0.75, "agreement": 0.6 if request["words"] else None, "losses": {"mse": 0.1},
    }  # fmt: skip


def calibrate(request):
    """Says what the samples hold in place of class names."""
    from osgeo import ogr

    samples = ogr.Open(request["samples"][0])
    labels = [feature[request["field"]] for feature in samples.GetLayer()]
    names = [str(label) for label in dict.fromkeys(labels)]
    Path(request["output"]).write_text("{}")
    if request["report"]:
        Path(request["report"]).write_text("<html/>")
    before = {"accuracy": 0.6, "mean_iou": 0.4, "iou": [0.4] * len(names), "confusion": []}
    return {
        "output": request["output"], "report": request["report"], "classes": names,
        "labelled": [labels.count(name) for name in dict.fromkeys(labels)], "before": before,
        "after": {**before, "accuracy": 0.8, "mean_iou": 0.65, "iou": [0.65] * (len(names) - 1) + [None]},
        "logit_scale": 33.0, "offsets": [0.0] * len(names), "hints": [], "seconds": 1.0, "pictures": [],
    }  # fmt: skip


def regions(request):
    Path(request["output"]).mkdir()
    return {
        "output": request["output"], "table": "regions.json", "pictures": 4, "objects": {"water": 2, "forest": 1},
        "hints": ["A hint."], "seconds": 0.1, "seen": [],
    }  # fmt: skip


def train(request):
    assert Path(request["data"][0]).is_dir()
    Path(request["output"]).mkdir(exist_ok=True)
    return {
        "model": request["output"], "base": request["model"], "pictures": 4, "objects": 3, "steps": [5, 5],
        "losses": {"contrast": 1.5}, "device": "cpu", "seconds": 2.0,
    }  # fmt: skip


def work(mode, number, job, request):
    """Does a job, or whatever the mode says instead."""
    if mode == "record":
        Path(os.environ["RECORD"]).write_text(json.dumps({"request": request, "environment": dict(os.environ)}))
    if "JOBS" in os.environ:
        with Path(os.environ["JOBS"]).open("a") as file:
            file.write(json.dumps({"job": job, **request}) + "\n")
    output = request.get("output") or request.get("report")
    if mode in ("dies", "dies-once", "hangs") and output:
        from clippan.core.outputs import Outputs

        begun.append(Outputs())
        Path(begun[0].temporary_path(output)).write_text("half")
    send(method="progress", params={"id": number, "percent": 10, "message": "Working"})
    send(method="log", params={"id": number, "line": "a line of the log"})
    marker = Path(os.environ.get("MARKER", "/nonexistent/marker"))
    if mode == "dies" or (mode == "dies-once" and not marker.exists()):
        if mode == "dies-once":
            marker.write_text("died")
        print("out of memory, said the kernel", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "hangs":
        time.sleep(60)
    if mode == "polite" or "slow" in request.get("text", ()) or request.get("model") == "slow":
        message = json.loads(sys.stdin.readline())
        assert message["method"] == "cancel", message
        assert message["params"]["id"] == number
        send(id=number, error={"code": -32001, "message": "Cancelled; nothing was written."})
        return
    if "long" in request.get("text", ()):
        time.sleep(1.5)  # as if a model was read: deaf to a cancel
    if mode == "without-torch":
        text = "PyTorch is missing in the engine's Python; run “Set up engine”."
        send(id=number, error={"code": -32000, "message": text, "data": {"traceback": "Traceback: no torch"}})
        return
    if mode == "fails":
        text = "The engine failed unexpectedly (KeyError: 'x'); the log has the details."
        send(id=number, error={"code": -32603, "message": text, "data": {"traceback": "Traceback: x"}})
        return
    results = {
        "pansharpen": lambda: write_raster(request),
        "assess": figures,
        "adapt": lambda: adapt(request),
        "index": lambda: index(request),
        "about": lambda: about(request),
        "search": lambda: search(request),
        "segment": lambda: segment(request),
        "regions": lambda: regions(request),
        "train clip": lambda: train(request),
        "calibrate": lambda: calibrate(request),
        "classify": lambda: classify(request),
        "pretrain scene": lambda: pretrain(request),
        "finetune clip": lambda: finetune(request),
        "align": lambda: align(request),
        "thumbnails": lambda: thumbnails(request),
        "doctor": lambda: {"ok": True, "checks": [], "device": "cpu", "reason": "no GPU", "text": TEXT},
    }
    send(id=number, result=results[job]())


def main():
    mode, arguments = sys.argv[1], sys.argv[2:]
    assert arguments == ["-m", "clippan.worker"], arguments
    if mode == "junk":
        print("I am no engine")
        return
    if mode == "silent-end":
        return
    if mode == "fails-early":
        print("Traceback (most recent call last):\nModuleNotFoundError: No module named 'json'", file=sys.stderr)
        sys.exit(1)
    for line in iter(sys.stdin.readline, ""):
        message = json.loads(line)
        number, params = message.get("id"), message.get("params", {})
        if message["method"] == "handshake":
            assert params["protocol"] == 2, params
            if mode == "silent":
                time.sleep(60)
            elif mode == "refuses":
                text = "The engine speaks protocol 3 and the plugin 2; update both to one version."
                send(id=number, error={"code": -32002, "message": text})
            else:
                protocol = 99 if mode == "other-protocol" else 2
                print("a library greets", flush=True)  # not JSON: has to be ignored
                send(id=number, result={"protocol": protocol, "version": "0", "pid": os.getpid()})
        elif message["method"] == "run":
            work(mode, number, params["job"], params["request"])


main()
