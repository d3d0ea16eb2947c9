"""Outputs: whole, together, or not at all, whatever becomes of the run and whoever else writes the same."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from osgeo import gdal

from clippan.core.errors import ClippanError
from clippan.core.outputs import (
    Outputs,
    _Lock,
    affected_files,
    exclusive_lock,
    remove_leftovers,
    write_error,
    write_output,
)
from clippan.jobs.kinds import check_writable

HALF = """
import sys, time
from clippan.core.outputs import Outputs
with Outputs() as outputs:
    for path in sys.argv[1:]:
        open(outputs.temporary_path(path), "w").write("half")
    print("begun", flush=True)
    time.sleep(60)
"""


def make(outputs: Outputs, path: Path, text: str) -> None:
    Path(outputs.temporary_path(str(path))).write_text(text)


def fail(path: str) -> None:
    """A run that has made a file, and then fails."""

    def go() -> None:
        with Outputs() as outputs:
            file = gdal.VSIFOpenL(outputs.temporary_path(path), "wb")
            gdal.VSIFCloseL(file)
            raise KeyError

    with pytest.raises(KeyError):
        go()


def begun(*paths: Path) -> subprocess.Popen[str]:
    """Another process that is in the middle of making these."""
    process = subprocess.Popen([sys.executable, "-c", HALF, *map(str, paths)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_all_are_put_in_place_together(tmp_path):
    with Outputs() as outputs:
        make(outputs, tmp_path / "a.tif", "map")
        Path(f"{outputs.temporary_path(str(tmp_path / 'a.tif'))}.aux.xml").write_text("names")
        Path(f"{outputs.temporary_path(str(tmp_path / 'a.tif'))}.note").write_text("nobody's")
        (outputs.temporary_folder(str(tmp_path / "a.tif")) / "cells").write_text("scratch")
        make(outputs, tmp_path / "a.gpkg", "polygons")
        assert not (tmp_path / "a.tif").exists()
    assert sorted(os.listdir(tmp_path)) == ["a.gpkg", "a.tif", "a.tif.aux.xml"]
    assert (tmp_path / "a.tif").read_text() == "map"


def test_what_a_library_leaves_beside_is_not_put_in_place(tmp_path):
    with Outputs() as outputs:
        make(outputs, tmp_path / "a.gpkg", "layer")
        Path(f"{outputs.temporary_path(str(tmp_path / 'a.gpkg'))}.aux.xml").write_text("statistics")
    assert os.listdir(tmp_path) == ["a.gpkg"]


def test_what_stood_beside_an_older_file_goes(tmp_path):
    for name in ("a.shp", "a.dbf", "a.qix", "a.tif", "b.tif", "b.tif.ovr", "b.tif.aux.xml"):
        (tmp_path / name).write_text("old")
    with Outputs() as outputs:
        for name in ("a.shp", "b.tif"):
            make(outputs, tmp_path / name, "new")
        (outputs.temporary_folder(str(tmp_path / "a.shp")) / "part.dbf").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.shp": "new",
        "a.dbf": "new",
        "a.tif": "old",
        "b.tif": "new",
    }


def test_a_failure_leaves_the_old_files(tmp_path):
    (tmp_path / "a.tif").write_text("old")
    fail(str(tmp_path / "a.tif"))
    assert os.listdir(tmp_path) == ["a.tif"]
    assert (tmp_path / "a.tif").read_text() == "old"


def test_if_one_cannot_be_put_in_place_none_is(tmp_path, monkeypatch):
    for name in ("a.tif", "a.tif.ovr", "c.csv"):
        (tmp_path / name).write_text("old")
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith("c.csv") and "old" not in str(source):
            raise OSError(errno.EACCES, "open in another program")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    sentence = r"The output .*c.csv could not be put in place \(open in another program\); close it in other programs\."
    outputs = Outputs()
    for name in ("a.tif", "b.html", "c.csv"):
        make(outputs, tmp_path / name, "new")
    with pytest.raises(ClippanError, match=sentence), outputs:
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.tif", "a.tif.ovr", "c.csv"), "old"
    )


def test_the_next_run_removes_what_a_killed_one_has_left(tmp_path):
    killed(begun(tmp_path / "a.tif", tmp_path / "b.csv"))
    assert len(os.listdir(tmp_path)) == 2
    with write_output(str(tmp_path / "a.tif")) as part:
        part.write_text("whole")
    assert len(os.listdir(tmp_path)) == 2  # those of b.csv are that one's
    remove_leftovers(str(tmp_path / "b.csv"))
    assert os.listdir(tmp_path) == ["a.tif"]


def test_a_run_that_lives_is_left_alone(tmp_path):
    other = begun(tmp_path / "a.tif")
    with write_output(str(tmp_path / "a.tif")) as part:
        part.write_text("whole")
    remove_leftovers(str(tmp_path / "a.tif"))
    assert list(tmp_path.glob(".clippan-*/part.tif"))
    killed(other)
    remove_leftovers(str(tmp_path / "a.tif"))
    assert os.listdir(tmp_path) == ["a.tif"]


def test_many_runs_at_once_on_the_same_outputs(tmp_path):
    """Each set of files is of one run; nobody clears away another's folder, and nobody fails."""
    failures: list[BaseException] = []
    paths = [tmp_path / name for name in ("a.tif", "b.gpkg", "c.csv")]

    def go(number: int) -> None:
        try:
            for turn in range(10):
                with Outputs() as outputs:
                    for path in paths if number % 2 else reversed(paths):
                        make(outputs, path, f"{number} {turn}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len({path.read_text() for path in paths}) == 1
    assert len(os.listdir(tmp_path)) == 3


def test_the_longest_names_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ä" * 125 + "x.tif", "x" * 255):
        check_writable(name, ())
        with write_output(name) as part:
            part.write_text("whole")
        assert Path(name).read_text() == "whole"
        with pytest.raises(ClippanError, match=r"\.aux\.xml is too long \(bytes too many: 8\); choose a shorter one"):
            check_writable(name, (), ".aux.xml")


def test_in_gdal_s_own_file_systems():
    with Outputs() as outputs:
        path = outputs.temporary_path("/vsimem/outputs/a.tif")
        for name in (path, f"{path}.aux.xml"):
            gdal.FileFromMemBuffer(name, b"x")
        gdal.FileFromMemBuffer("/vsimem/outputs/a.tif.ovr", b"old")
    assert sorted(gdal.ReadDir("/vsimem/outputs")) == ["a.tif", "a.tif.aux.xml"]
    fail("/vsimem/outputs/b.tif")
    assert sorted(gdal.ReadDir("/vsimem/outputs")) == ["a.tif", "a.tif.aux.xml"]
    for name in affected_files("/vsimem/outputs/a.tif")[:2]:
        gdal.Unlink(name)


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    taken = (tmp_path / "lock", "Taken.")
    with exclusive_lock(*taken):
        with pytest.raises(ClippanError, match=r"Taken\."), exclusive_lock(*taken):
            pass
        assert os.listdir(tmp_path) == ["lock"]
    with exclusive_lock(*taken):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fault", ["inode", "flock"])
def test_where_every_lock_seems_held_outputs_are_made_without(tmp_path, monkeypatch, fault):
    def refused(file: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    if fault == "inode":
        monkeypatch.setattr(_Lock, "_is_there", lambda lock: False)
    else:
        monkeypatch.setattr("clippan.core.outputs._lock", refused)
    with Outputs() as outputs:
        make(outputs, tmp_path / "a.csv", "new")
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["a.csv"]
    fail(str(tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_text() == "new"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_lock_file_that_windows_is_removing_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("clippan.core.outputs.sys", SimpleNamespace(platform="win32"))
    truly, left = os.open, [3]

    def opened(path: Path, *arguments: int) -> int:
        if str(path).endswith(".lock") and left[0]:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "Permission denied")
        return truly(path, *arguments)

    monkeypatch.setattr("os.open", opened)
    with Outputs() as outputs:
        make(outputs, tmp_path / "a.csv", "new")
    assert left == [0]
    assert os.listdir(tmp_path) == ["a.csv"]
    left[0] = 1
    with pytest.raises(ClippanError, match=r"could not be written \(Permission denied\)"):
        exclusive_lock(tmp_path / "b.lock", "Taken.").__enter__()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"^The disk of .* is full; free some space or choose"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"^The disk of .* is full"),
        (RuntimeError("sqlite3_exec(COMMIT) failed: database or disk is full"), r"^The disk of .* is full"),
        (OSError(errno.EFBIG, "File too large"), r"allows no file so large; choose another folder"),
        (
            OSError(errno.EIO, "Input/output error"),
            r"could not be written \(Input/output error\); choose another",
        ),
        (
            RuntimeError(""),
            r"could not be written; check the free space and your quota there, or choose another folder",
        ),
    ],
)
def test_why_a_file_could_not_be_written(tmp_path, error, says):
    with pytest.raises(ClippanError, match=says) as caught, write_output(str(tmp_path / "a.csv")):
        raise error
    assert str(caught.value).count(". ") == 0
    assert os.listdir(tmp_path) == []


def test_a_library_that_does_not_say_that_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 4096}))
    assert "is full; free some space" in str(write_error(tmp_path / "a.gpkg", RuntimeError("")))
