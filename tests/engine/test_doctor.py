"""The doctor and the choice of a device, on machines that these tests make up."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import clippan
from clippan.core import device as device_module
from clippan.core.device import choose_device, cuda_problem, require_torch
from clippan.core.errors import ClippanError
from clippan.handlers import doctor, run
from clippan.jobs import Context, Device, DoctorRequest, ListModelsRequest, Status


@pytest.fixture
def light(monkeypatch):
    """The doctor without the other process that imports the heavy libraries."""
    monkeypatch.setattr(doctor, "_libraries", lambda: iter([]))


def find(result, name):
    return next(check for check in result.checks if check.name == name)


def without(monkeypatch, *names, error=None):
    """Makes the import of modules fail."""
    real = importlib.import_module

    def fake(name, *arguments):
        if name in names:
            raise error or ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", fake)


@pytest.mark.slow
def test_this_engine_works():
    result = run(DoctorRequest(device=Device.CPU))
    assert result.ok
    assert (result.device, result.reason) == ("cpu", "The CPU was asked for.")
    names = [check.name for check in result.checks]
    for name in ("Engine", "NumPy", "GDAL", "PyTorch", "torchvision", "open_clip", "Machine", "GPU", "Device"):
        assert name in names
    assert find(result, "PyTorch").found.startswith(torch.__version__)
    assert clippan.__version__ in result.text
    assert result.text.endswith("The engine works.")
    assert "\x1b" not in result.text


def test_home_is_not_told(light, monkeypatch):
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path(sys.executable).parents[1]))
    result = doctor.run(DoctorRequest(), Context())
    assert f"(~{Path('/') / Path(sys.executable).parent.name / Path(sys.executable).name})" in result.text
    assert str(Path(sys.executable).parents[1]) not in result.text
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("/")))
    assert doctor.redact("/tmp/x") == "/tmp/x"


def test_no_torch(light, monkeypatch):
    without(monkeypatch, "torch")
    result = doctor.run(DoctorRequest(), Context())
    assert not result.ok
    assert result.device == ""
    sentence = f"The engine's Python ({sys.executable}) has no PyTorch; run Set up engine, or install torch there."
    assert find(result, "PyTorch").status is Status.FAILED
    assert find(result, "PyTorch").found == doctor.redact(sentence)
    assert result.text.endswith("see what FAILED.")
    with pytest.raises(ClippanError) as caught:
        choose_device(Device.CPU)
    assert str(caught.value) == sentence


def test_broken_torch(monkeypatch):
    without(monkeypatch, "torch", error=OSError("libcudart.so.13: cannot open\nshared object file."))
    with pytest.raises(ClippanError, match=r"does not start \(libcudart.* object file\); run Set up engine again.$"):
        require_torch()
    # torch is there, and something that it needs is not.
    without(monkeypatch, "torch", error=ModuleNotFoundError("No module named 'typing_extensions'", name="typing_ext"))
    with pytest.raises(ClippanError, match="does not start"):
        require_torch()


def test_a_library_that_a_job_needs_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "clippan.handlers.models", None)
    with pytest.raises(ClippanError, match=r"does not load \(import of .*\); run Check engine, which names the remedy"):
        run(ListModelsRequest())


def test_a_package_that_a_job_lacks_is_named(monkeypatch):
    without(monkeypatch, "clippan.handlers.models", error=ModuleNotFoundError("No module", name="sklearn.svm"))
    with pytest.raises(ClippanError, match=r"has no scikit-learn, which this job needs; run Set up engine, or install"):
        run(ListModelsRequest())
    check = doctor._library("sklearn", False, "")
    assert check.remedy.startswith("Run Set up engine, or install scikit-learn in this Python")


def test_the_text_is_in_the_language_of_the_user(light, monkeypatch):
    monkeypatch.setattr(doctor, "current_language", lambda: "de")
    result = doctor.run(DoctorRequest(device=Device.CPU), Context())
    assert "The engine works." not in result.text
    assert find(result, "Machine").name == "Machine"


def test_no_gdal(light, monkeypatch):
    without(monkeypatch, "osgeo.gdal")
    check = find(doctor.run(DoctorRequest(), Context()), "GDAL")
    assert check.status is Status.FAILED
    assert "No module named 'osgeo.gdal'" in check.found
    assert "QGIS's own GDAL" in check.remedy


def test_gdal_for_another_numpy(light, monkeypatch):
    without(monkeypatch, "osgeo.gdal_array", error=ImportError("numpy.core.multiarray failed to import"))
    check = find(doctor.run(DoctorRequest(), Context()), "GDAL")
    assert check.status is Status.FAILED
    assert "NumPy interface does not start" in check.found


def test_gdal_without_drivers_or_zstd(light, monkeypatch):
    from osgeo import gdal

    real = gdal.GetDriverByName
    monkeypatch.setattr(gdal, "GetDriverByName", lambda name: None if name == "COG" else real(name))
    assert find(doctor.run(DoctorRequest(), Context()), "GDAL").status is Status.FAILED
    plain = SimpleNamespace(GetMetadataItem=lambda item: "<Value>DEFLATE</Value>")
    monkeypatch.setattr(gdal, "GetDriverByName", lambda name: plain)
    check = find(doctor.run(DoctorRequest(), Context()), "GDAL")
    assert (check.status, check.remedy) == (Status.WARNING, "Choose DEFLATE for outputs.")


@pytest.mark.parametrize(
    ("text", "found", "remedy"),
    [
        ("", "not installed", "install torchvision in this Python"),
        ("RuntimeError: operator torchvision::nms does not exist", "nms does not exist", "both .* from one index"),
    ],
)
def test_torchvision_missing_or_broken(text, found, remedy):
    check = doctor._library("torchvision", False, text)
    assert check.status is Status.WARNING
    assert found in check.found
    assert re.search(remedy, check.remedy)


def test_open_clip_over_a_broken_torchvision():
    check = doctor._library("open_clip", False, "RuntimeError: operator torchvision::nms does not exist")
    assert "from one index" in check.remedy
    assert "again" in doctor._library("open_clip", False, "ImportError: x").remedy


def libraries(monkeypatch, tmp_path, **modules):
    """What the doctor says of libraries whose code is given."""
    for name, code in modules.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_LIBRARIES", tuple(modules))
    return {check.name: check for check in doctor._libraries()}


def test_libraries_are_imported_in_another_process(monkeypatch, tmp_path):
    checks = libraries(
        monkeypatch,
        tmp_path,
        fine="__version__ = '1.2'; print('noise')",
        fails="raise RuntimeError('operator torchvision::nms does not exist')",
        lacks="import nothing_of_this_name",
        kills="import os; os._exit(3)",
        after="",
    )
    assert (checks["fine"].status, checks["fine"].found) == (Status.OK, "1.2")
    assert "torchvision::nms" in checks["fails"].found
    assert "nothing_of_this_name" in checks["lacks"].found
    for name in ("kills", "after"):
        assert "ended this Python (exit code 3)" in checks[name].found


def test_an_import_that_never_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_IMPORT_SECONDS", 1)
    checks = libraries(monkeypatch, tmp_path, fine="", hangs="import time; time.sleep(60)")
    assert checks["fine"].status is Status.OK
    assert "took more than 1 s" in checks["hangs"].found


def test_folders(light, monkeypatch, tmp_path):
    cache = tmp_path / "not" / "yet"
    monkeypatch.setenv("CLIPPAN_CACHE", str(cache))
    check = find(doctor.run(DoctorRequest(), Context()), "Cache folder")
    assert check.status is Status.OK
    assert str(cache) in check.found
    assert not cache.exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CLIPPAN_CACHE", str(blocked))
    check = find(doctor.run(DoctorRequest(), Context()), "Cache folder")
    assert check.status is Status.WARNING
    assert "CLIPPAN_CACHE" in check.remedy


# GPUs


def cuda(monkeypatch, built="13.2", available=True, works=True):
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *arguments: "Fine GPU")
    properties = SimpleNamespace(name="Fine GPU", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    real = torch.ones

    def ones(*arguments, device=None, **options):
        if device == "cuda" and not works:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "ones", ones)


def driver(monkeypatch, answer="Fine GPU, 580.1\n", code=0):
    monkeypatch.setattr(device_module.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    real = subprocess.run

    def fake(command, **options):
        if command[0] == "/usr/bin/nvidia-smi":
            return SimpleNamespace(stdout=answer, stderr="", returncode=code)
        return real(command, **options)

    monkeypatch.setattr(device_module.subprocess, "run", fake)


def test_a_gpu_that_works(light, monkeypatch):
    cuda(monkeypatch)
    driver(monkeypatch)
    result = doctor.run(DoctorRequest(), Context())
    assert find(result, "GPU").found == "Fine GPU, 8.0 GiB, driver 580.1"
    assert (result.device, result.reason) == ("cuda", "CUDA works on Fine GPU.")
    assert choose_device(Device.CUDA).device == torch.device("cuda")
    assert choose_device(Device.CPU).device == torch.device("cpu")


def test_a_gpu_and_a_torch_for_the_cpu(light, monkeypatch):
    cuda(monkeypatch, built=None, available=False)
    driver(monkeypatch)
    result = doctor.run(DoctorRequest(), Context())
    check = find(result, "GPU")
    assert check.status is Status.WARNING
    assert "Fine GPU (driver 580.1), but this PyTorch is for the CPU only" in check.found
    assert "Set up engine" in check.remedy
    assert result.ok
    assert "is built without CUDA" in result.reason


def test_a_driver_that_is_too_old(light, monkeypatch):
    cuda(monkeypatch, available=False)
    driver(monkeypatch)
    check = find(doctor.run(DoctorRequest(), Context()), "GPU")
    assert check.status is Status.WARNING
    assert "Update the NVIDIA driver" in check.remedy


def test_a_gpu_that_this_torch_has_no_code_for(monkeypatch):
    cuda(monkeypatch, works=False)
    assert cuda_problem().endswith("is available for execution on the device)")
    choice = choose_device(Device.AUTO)
    assert choice.device == torch.device("cpu")
    assert choice.reason.startswith("CUDA cannot be used: the GPU does not compute (")
    with pytest.raises(ClippanError, match="CUDA was asked for, but the GPU does not compute"):
        choose_device(Device.CUDA)


def test_no_gpu(light, monkeypatch):
    cuda(monkeypatch, built=None, available=False)
    monkeypatch.setattr(device_module.shutil, "which", lambda name: None)
    result = doctor.run(DoctorRequest(device=Device.CUDA), Context())
    assert find(result, "GPU").found == "no NVIDIA GPU found"
    assert not result.ok
    assert "choose auto or cpu, or run Check engine." in find(result, "Device").found


def logged(wanted):
    """What a job's log says about its device."""
    lines = []
    choose_device(wanted).log(Context(log=lines.append))
    return lines


def test_a_job_says_nothing_of_a_card_that_is_not_there(monkeypatch):
    monkeypatch.setattr(device_module.shutil, "which", lambda name: None)
    for built in (None, "13.2"):
        cuda(monkeypatch, built=built, available=False)
        assert logged(Device.AUTO) == []
        assert logged(Device.CPU) == ["Device: cpu. The CPU was asked for."]
    driver(monkeypatch, "No devices were found\n", 6)
    assert logged(Device.AUTO) == []


def test_a_job_says_that_a_card_is_not_used(monkeypatch):
    cuda(monkeypatch)
    assert logged(Device.AUTO) == ["Device: cuda. CUDA works on Fine GPU."]
    cuda(monkeypatch, works=False)
    assert logged(Device.AUTO)[0].startswith("Device: cpu. CUDA cannot be used: the GPU does not compute (")
    driver(monkeypatch)
    cuda(monkeypatch, built=None, available=False)
    (line,) = logged(Device.AUTO)
    assert line.startswith("Device: cpu. CUDA cannot be used: this PyTorch (")
    driver(monkeypatch, "NVIDIA-SMI has failed because it couldn't communicate with the driver.\n", 9)
    assert logged(Device.AUTO) == [line]


def test_a_driver_that_does_not_answer(light, monkeypatch):
    cuda(monkeypatch, available=False)
    driver(monkeypatch, "NVIDIA-SMI has failed because it couldn't\ncommunicate with the driver.\n", 9)
    check = find(doctor.run(DoctorRequest(), Context()), "GPU")
    assert check.status is Status.WARNING
    assert "(NVIDIA-SMI has failed because it couldn't communicate with the driver); reinstall it" in check.found


def test_mps_only_on_a_mac_and_only_when_asked_for(monkeypatch):
    cuda(monkeypatch, built=None, available=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ClippanError, match="MPS was asked for, but this is no Mac"):
        choose_device(Device.MPS)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(Device.MPS).device.type == "mps"
    assert choose_device(Device.MPS, needs_float64=True).device.type == "cpu"
    assert choose_device(Device.AUTO).device.type == "cpu"


def test_memory_is_known():
    assert (doctor._memory() or 0) > 2**28


def test_device_module_needs_no_torch():
    code = "import sys, clippan.core.device, clippan.handlers.doctor; print('torch' in sys.modules)"
    backend = str(Path(device_module.__file__).parents[1])
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": backend}
    )
    assert answer.stdout == "False\n"
