"""Which device computes: what the user wants, what is there, and why."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clippan.core.choice import Choice
from clippan.core.context import Context
from clippan.core.errors import ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.threads import count_threads

if TYPE_CHECKING:
    import torch


class Device(Choice):
    """Where the engine computes."""

    AUTO = "auto", "Automatic"
    CPU = "cpu", "Processor (CPU)"
    CUDA = "cuda", "NVIDIA graphics card (CUDA)"
    MPS = "mps", "Apple graphics (MPS)"


def sleep_idle_threads() -> None:
    """Makes idle OpenMP threads sleep instead of spin; call it before torch is loaded. Beside other programs, such as
    QGIS's window, spinning threads made pre-training five times as slow."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def require_torch() -> ModuleType:
    """The torch module; raises ClippanError if this Python has none that works."""
    try:
        return importlib.import_module("torch")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            raise ClippanError(
                "The engine's Python ({executable}) has no PyTorch; run Set up engine, or install torch there.",
                executable=sys.executable,
            ) from None
        raise ClippanError(  # a DLL is missing, or another library does not fit
            "PyTorch in the engine's Python ({executable}) does not start ({reason}); run Set up engine again.",
            executable=sys.executable,
            reason=one_line(error),
        ) from error


def cuda_problem() -> str:
    """Why CUDA cannot be used, as part of a sentence; empty if it can."""
    torch = require_torch()
    if torch.version.cuda is None and torch.version.hip is None:
        return Message("this PyTorch ({version}) is built without CUDA", version=str(torch.__version__))
    if not torch.cuda.is_available():
        return Message("PyTorch finds no CUDA device or no driver that fits it")
    try:
        # A GPU that is too old or too new for this build is "available", and fails only when used.
        (torch.ones(1, device="cuda") + 1).item()
    except Exception as error:
        return Message("the GPU does not compute ({reason})", reason=str(error).splitlines()[0].strip().rstrip("."))
    return ""


def gpu_memory_error() -> ClippanError:
    """The error for a graphics card whose memory is too small even for the smallest batch."""
    return ClippanError(
        "The graphics card's memory is too small; close other programs that use it, or choose the device cpu."
    )


@contextlib.contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Turns CUDA's out-of-memory error inside the block into a ClippanError."""
    torch = require_torch()
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise gpu_memory_error() from None


@dataclass(frozen=True)
class DeviceChoice:
    """A device to compute on, why it was chosen, and whether CUDA was preferred but failed (``cuda_unavailable``)."""

    device: torch.device
    reason: str
    cuda_unavailable: bool = False

    def log(self, context: Context) -> None:
        """Logs the device, unless the CPU is used because the machine has no graphics card."""
        if not self.cuda_unavailable or has_gpu():
            context.log(Message("Device: {type}. {reason}", type=self.device.type, reason=self.reason))


def choose_device(wanted: Device, needs_float64: bool = False) -> DeviceChoice:
    """The device to compute on: for Auto CUDA where it works, else the CPU; MPS, which is untested, only on request,
    and replaced by the CPU where sums need float64, which it lacks. Raises ClippanError if the device, or PyTorch
    itself, is not available."""
    torch = require_torch()
    if wanted is Device.CPU:
        return DeviceChoice(torch.device("cpu"), Message("The CPU was asked for."))
    if wanted is Device.MPS:
        if not torch.backends.mps.is_available():
            raise ClippanError("MPS was asked for, but this is no Mac with a GPU that PyTorch can use; choose auto.")
        if needs_float64:
            return DeviceChoice(torch.device("cpu"), Message("MPS has no float64, in which figures are summed."))
        return DeviceChoice(torch.device("mps"), Message("MPS was asked for."))
    problem = cuda_problem()
    if not problem:
        gpu = torch.cuda.get_device_name()
        return DeviceChoice(
            torch.device("cuda"),
            Message("CUDA was asked for.") if wanted is Device.CUDA else Message("CUDA works on {gpu}.", gpu=gpu),
        )
    if wanted is Device.CUDA:
        raise ClippanError(
            "CUDA was asked for, but {problem}; choose auto or cpu, or run Check engine.", problem=problem
        )
    return DeviceChoice(
        torch.device("cpu"), Message("CUDA cannot be used: {problem}.", problem=problem), cuda_unavailable=True
    )


def has_gpu() -> bool:
    """Whether torch or the driver knows a CUDA graphics card, even if it does not compute."""
    torch = require_torch()
    try:
        return torch.cuda.is_available() or bool(nvidia_gpus())
    except ClippanError:
        return True


def nvidia_gpus() -> list[tuple[str, str]]:
    """Names and driver versions of NVIDIA GPUs according to nvidia-smi; raises ClippanError if the driver does not
    answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=15, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise _driver_error(one_line(error)) from None
    if run.returncode and "No devices were found" not in run.stdout:
        raise _driver_error(one_line(run.stdout or run.stderr))
    lines = [line.rsplit(",", 1) for line in run.stdout.splitlines() if "," in line]
    return [(name.strip(), version.strip()) for name, version in lines]


def _driver_error(reason: str) -> ClippanError:
    return ClippanError(
        "The NVIDIA driver does not answer ({reason}); reinstall it, or restart the machine.", reason=reason
    )


def supports_bfloat16() -> bool:
    """Whether torch can use the CPU's bfloat16 instructions (AMD Zen 4, Intel Cooper Lake and later), which halve the
    time of a network; without them bfloat16 is slower than float32."""
    torch = require_torch()
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch we take
    return bool(capabilities.get("avx512_bf16"))


def set_threads(wanted: int) -> None:
    """Gives torch ``wanted`` CPU threads in the calling thread, 0 for as many as this process has CPUs."""
    require_torch().set_num_threads(count_threads(wanted))


def use_one_thread() -> None:
    """Keeps torch to one CPU thread in the calling thread, where tiles have a thread each already."""
    require_torch().set_num_threads(1)
