"""The command: the same requests as everyone's, one sentence for each failure, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clippan
from clippan import cli
from clippan.jobs import (
    JOBS,
    AssessRequest,
    AssessResult,
    Compression,
    Device,
    DoctorRequest,
    DoctorResult,
    Format,
    Method,
    PansharpenRequest,
    SearchRequest,
    TrainFusionResult,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(clippan.__file__).parents[1])}


@pytest.fixture
def requests(monkeypatch):
    """What would have been run."""
    seen = []

    def run(request, context):
        request.validate()
        seen.append(request)
        if isinstance(request, AssessRequest):
            figures = {"HQNR": 0.91234, "PSNR": float("inf")}
            return AssessResult(figures, {"Q2n": 0.8}, "generic", 100, request.report, 1.0)
        return DoctorResult(isinstance(request, PansharpenRequest), (), "cpu", "", "all about it")

    monkeypatch.setattr(cli, "run", run)
    return seen


def test_shortest_pansharpen(requests, tmp_path):
    output = str(tmp_path / "o.tif")
    assert cli.main(["pansharpen", "--pan", "p.tif", "--ms", "m.tif", "--output", output]) == 0
    assert requests == [PansharpenRequest(pan="p.tif", ms=("m.tif",), output=output)]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (["--text", "-forest"], {"text": ("-forest",)}),
        (["--text", "-forest", "lake", "- river"], {"text": ("-forest", "lake", "- river")}),
        (["--text", "lake", "-forest", "--text", "-x", "--top", "3"], {"text": ("lake", "-forest", "-x"), "top": 3}),
        (["--text=-forest", "--without", "-tree"], {"text": ("-forest",), "without": ("-tree",)}),
        (["--text", "a", "--at", "-5,-7"], {"text": ("a",), "at": (-5.0, -7.0)}),
        (["--text", "a", "--extent", "-5,-7,-3,2"], {"text": ("a",), "extent": (-5.0, -7.0, -3.0, 2.0)}),
        (["--text", "a", "--rasters", "-odd.tif", "b.tif"], {"text": ("a",), "rasters": ("-odd.tif", "b.tif")}),
    ],
)
def test_a_value_may_begin_with_a_dash(requests, line, values):
    assert cli.main(["search", "i.gpkg", *line]) in (0, 2)  # what is run answers as doctor does
    assert requests == [SearchRequest(index="i.gpkg", **values)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["search", "i.gpkg", "--text"], "--text needs a value; write one that begins with a dash as --text=-…"),
        (["search", "i.gpkg", "--text", "--forest"], "--text needs a value; write one"),
        (["search", "i.gpkg", "--text", "--top", "3"], "--text needs a value; write one"),
        (["segment", "r.tif", "--classes", "a", "--output", "-bands", "1"], "--output needs a value; write one"),
        (["search", "i.gpkg", "--text", "a", "-top", "5"], "-top"),
        (
            ["search", "i.gpkg", "--text", "a", "--since", "2021-05", "--until", "2020"],
            "first date 2021-05 is after the",
        ),
        (["search", "i.gpkg", "--text", "a", "--since", "2021-05-02", "--until", "2021-05-01"], "is after the last"),
        (["search", "i.gpkg", "--text", "?!"], "“?!” has no letter or digit"),
    ],
)
def test_what_has_no_value_is_said(requests, capsys, line, told):
    assert cli.main(line) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not requests


def test_dates_that_hold_each_other_are_no_wrong_order(requests):
    for since, until in (("2021", "2021-05"), ("2021-05-30", "2021"), ("2021-05", "2021-05"), ("2020", "2021")):
        cli.main(["search", "i.gpkg", "--text", "a", "--since", since, "--until", until])
    assert len(requests) == 4


@pytest.mark.parametrize(("rank", "tells"), [("", True), ("0", True), ("1", False)])
def test_of_several_processes_that_train_one_tells(rank, tells, monkeypatch, capsys):
    made = TrainFusionResult("m.safetensors", 7, 3, {"truth.supervised": 0.5}, "cpu", 1.0)
    monkeypatch.setattr(cli, "run", lambda request, context: made)
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert cli.main(["train", "fusion", "--data", "d", "--output", "o"]) == 0
    out = capsys.readouterr().out
    assert out == ("m.safetensors: parameters: 7, steps: 3; 1 s\ntruth.supervised 0.5000\n" if tells else "")


def test_every_option_of_pansharpen(requests, tmp_path):
    output = str(tmp_path / "o.tif")
    line = (
        "pansharpen --pan p.tif --ms a.tif b.tif --ms c.tif --method gsa --sensor worldview3 --bands 3,2,1 "
        "--nodata -3.4e38 --tile-size 512 --threads 3 --device cpu --format cog --compression zstd --no-overviews"
    )
    assert cli.main([*line.split(), "--output", output]) == 0
    assert requests == [
        PansharpenRequest(
            pan="p.tif",
            ms=("a.tif", "b.tif", "c.tif"),
            output=output,
            method=Method.GSA,
            sensor="worldview3",
            bands=(3, 2, 1),
            nodata=-3.4e38,
            tile_size=512,
            threads=3,
            device=Device.CPU,
            format=Format.COG,
            compression=Compression.ZSTD,
            overviews=False,
        )
    ]


def test_every_option_of_assess(requests, tmp_path, capsys):
    page = str(tmp_path / "r.html")
    line = (
        "assess --fused f.tif --pan p.tif --ms m.tif --reference r.tif --sensor landsat --bands 2 --nodata nan "
        "--device cuda --report"
    )
    assert cli.main([*line.split(), page]) == 0
    request = requests[0]
    assert request.nodata != request.nodata
    assert (request.reference, request.sensor, request.bands, request.report, request.device) == (
        "r.tif",
        "landsat",
        (2,),
        page,
        Device.CUDA,
    )
    text = capsys.readouterr().out
    assert "HQNR    0.9123" in text
    assert "Report: " in text


def test_json_is_valid_json_and_all_there_is(requests, capsys):
    assert cli.main(["assess", "--fused", "f", "--pan", "p", "--ms", "m", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert result["full"] == {"HQNR": 0.91234, "PSNR": "Infinity"}
    assert err == ""


def test_doctor_tells_by_its_exit_code(requests, capsys):
    assert cli.main(["doctor", "--device", "mps"]) == 2
    assert requests == [DoctorRequest(device=Device.MPS)]
    assert capsys.readouterr().out == "all about it\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "The following arguments are required: COMMAND; see clippan --help."),
        ("dance", "Argument COMMAND: invalid choice: 'dance'"),
        ("pansharpen --pan p", "The following arguments are required: --ms, --output; see clippan pansharpen --help."),
        (
            "pansharpen --pan p --ms m --output o --bands 1,x",
            "The band list “1,x” is not understood; write it like 1,2,3 or 2-4",
        ),
        ("pansharpen --pan p --ms m --output o --method magic", "Argument --method: invalid choice: 'magic'"),
        ("pansharpen --pan p --ms m --output o --nodata x", "Argument --nodata: invalid float value: 'x'"),
        ("pansharpen --pan p --ms m --output o --threads 1.5", "Argument --threads: invalid int value: '1.5'"),
        ("pansharpen --pan p --ms m --output o --sharp", "Unrecognized arguments: --sharp"),
        ("pansharpen --pan p --ms m --output o --sensor sputnik", "Unknown sensor 'sputnik'; choose auto or one of"),
        ("pansharpen --pan p --ms m --output o --tile-size 1", "“Tile size” is 1; it has to be 256 or more."),
        ("pansharpen --pan /no.tif --ms /no.tif --output o", "The panchromatic raster /no.tif does not exist"),
        ("assess --fused /no.tif --pan /no.tif --ms /no.tif", "does not exist; check the path."),
    ],
)
def test_failures_are_one_sentence(line, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
    assert err.endswith(".\n")
    assert not list(tmp_path.iterdir())


def test_a_bug_is_a_sentence_too(monkeypatch, capsys):
    def broken(request, context):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(cli, "run", broken)
    assert cli.main(["doctor"]) == 2
    err = capsys.readouterr().err
    assert err == "The engine failed unexpectedly (ZeroDivisionError: division by zero); --debug shows where.\n"
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor", "--debug"])


def test_progress_only_on_a_terminal(monkeypatch, capsys):
    def slow(request, context):
        for percent in range(0, 101, 50):
            context.progress(percent, "Working")
        return DoctorResult(True, (), "cpu", "", "text")

    monkeypatch.setattr(cli, "run", slow)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["doctor"]) == 0
    err = capsys.readouterr().err
    assert "\r100 % Working" in err
    assert err.endswith("\r\033[K")


def test_every_job_and_field_has_help(capsys):
    for name in JOBS:
        with pytest.raises(SystemExit, match="0"):
            cli.main([*name.split(), "--help"])
    assert "--no-overviews" in capsys.readouterr().out


def clippan_command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "clippan.cli", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
        **options,
    )


def test_help_and_version_load_no_library():
    answer = clippan_command("--version")
    assert (answer.returncode, answer.stdout) == (0, f"clippan {clippan.__version__}\n")
    code = (
        "import sys; from clippan import cli\n"
        "try: cli.main(['pansharpen', '--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'osgeo', 'numpy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_whole_way(scene, tmp_path):
    """Fuse and assess as a user does, with blanks and letters of the world in the paths."""
    folder = tmp_path / "mit Leerzeichen – ü"
    folder.mkdir()
    pair = scene(folder=folder)
    output, page = str(folder / "scharf é.tif"), str(folder / "Bericht.html")
    made = clippan_command("pansharpen", "--pan", pair.pan, "--ms", pair.ms, "--output", output, "--json")
    assert (made.returncode, made.stderr) == (0, "")
    assert json.loads(made.stdout)["output"] == output
    line = ["assess", "--fused", output, "--pan", pair.pan, "--ms", pair.ms, "--reference", pair.truth]
    assessed = clippan_command(*line, "--report", page)
    assert (assessed.returncode, assessed.stderr) == (0, "")
    assert "Q2n" in assessed.stdout
    assert Path(page).stat().st_size > 10000
    names = {path.name for path in folder.iterdir()}
    assert names == {"pan.tif", "ms.tif", "truth.tif", "scharf é.tif", "Bericht.html"}


# A job that says when it has begun, and then waits to be cancelled, with a file that must go.
WAITING = """
import sys, time
from pathlib import Path
from clippan import cli
def run(request, context):
    part = Path(sys.argv[1])
    part.write_text("half")
    try:
        print("begun", flush=True)
        for _ in range(600):
            context.raise_if_cancelled()
            time.sleep(0.05)
    finally:
        part.unlink()
cli.run = run
sys.exit(cli.main(["doctor"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_cancels_cleanly(tmp_path, number, quiet_seconds):
    part = tmp_path / "o.tif.part"
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(part)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        started = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert quiet_seconds(started) < 1.5
    assert (process.returncode, out, err) == (130, "", "Cancelled; nothing was written.\n")
    assert not part.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has Unicode names whatever the locale")
@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}, {"LANG": "C"}])
def test_names_are_utf_8_in_a_locale_that_is_not(tmp_path, locale):
    (tmp_path / "Zürich").mkdir()
    (tmp_path / "Zürich" / "größe.gpkg").touch()
    kept = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("LC_", "LANG"))}
    environment = {**kept, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **locale}
    command = [sys.executable, "-m", "clippan.cli", "about"]
    for name, says in (
        ("Zürich/größe.gpkg", "The index Zürich/größe.gpkg is damaged, cut short or not a CLIPPan index"),
        (b"gr\xf6\xdfe.gpkg", "is not written in UTF-8, which GDAL needs; rename the file"),
    ):
        done = subprocess.run([*command, name], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 2
        assert says in done.stderr.decode()
