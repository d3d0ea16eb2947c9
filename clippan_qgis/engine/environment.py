"""The managed environment: PyTorch beside QGIS's own Python, made only when the user asks for it.

A virtual environment over QGIS's Python sees QGIS's GDAL and numpy; numpy is held to QGIS's version, because GDAL's
bindings were built for it. It lies outside the plugin, so that updates leave it alone, and one for each version of
Python. A set-up that was cut off goes on where it stopped: finished steps are marked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import queue
import re
import shutil
import signal
import subprocess  # nosec B404
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from qgis.PyQt.QtCore import QLockFile

from clippan.core.errors import Cancelled, ClippanError
from clippan.core.messages import Message

from .. import paths
from ..i18n import tr
from ..settings import OPTIONS, Settings
from . import pip_settings

STEPS = ("environment", "torch", "packages", "check")
TORCH_PACKAGES = ("torch", "torchvision")
OTHER_PACKAGES = ("open_clip_torch", "huggingface_hub", "safetensors", "scikit-learn", "psycopg", "psycopg-binary")
LOCK_FILE = "engine-lock.txt"  # in resources/: which versions are allowed
WHEELS_URL = "https://download.pytorch.org/whl"
# A driver runs the CUDA of its own version and every older one.
CUDA_VERSIONS = (((13, 0), "cu130"), ((12, 8), "cu128"), ((12, 6), "cu126"), ((11, 8), "cu118"))
CHECK_CODE = (
    "import numpy, torch, torchvision, open_clip, huggingface_hub, safetensors, sklearn\n"
    "from osgeo import gdal\n"
    "print('torch', torch.__version__, '· numpy', numpy.__version__, '· GDAL', gdal.__version__)\n"
)
_DONE_FILE = "clippan.json"
_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def environment_folder(cache: Path) -> Path:
    return cache / f"engine-{_VERSION}"


def python_in(environment: Path) -> Path:
    """The Python of a virtual environment, whether or not it is there."""
    windows = environment / "Scripts" / "python.exe"
    if os.name == "nt" or windows.exists():
        return windows
    return environment / "bin" / "python"


def is_complete(environment: Path) -> bool:
    """Whether every step of the set-up was finished."""
    return set(_read_done_steps(environment)) >= set(STEPS)


def base_candidates(platform: str, prefix: str, executable: str, version: tuple[int, int]) -> tuple[Path, ...]:
    """Where QGIS's own Python may be, the likeliest first.

    ``sys.executable`` is often QGIS itself, and would start a second one; so it comes in only by its folder, or
    where its name is Python's.
    """
    numbered = f"python{version[0]}.{version[1]}"
    home, program = Path(prefix), Path(executable) if executable else Path(prefix)
    if platform == "win32":
        folders = (home, home / "Scripts", program.parent)
        names = ("python.exe", "python3.exe")
    elif platform == "darwin":
        contents = next((item for item in program.parents if item.name == "Contents"), home)
        folders = (home / "bin", program.parent / "bin", contents / "MacOS" / "bin", contents / "MacOS")
        names = (numbered, "python3")
    else:
        folders = (home / "bin", Path("/usr/bin"))
        names = (numbered, "python3")
    found = [place / name for place in folders for name in names]
    if re.fullmatch(r"python[\d.]*(\.exe)?", program.name, re.IGNORECASE):
        found.append(program)
    return tuple(dict.fromkeys(found))


def torch_index(choice: str, platform: str, driver: Optional[tuple[int, int]]) -> Optional[str]:
    """The package index for PyTorch for a choice (auto, cpu, cuda or pypi), ``sys.platform`` and the CUDA version
    of NVIDIA's driver, None where there is none; None means PyPI."""
    if choice == "pypi" or platform == "darwin":
        return None
    if choice == "cpu" or (choice == "auto" and driver is None):
        return f"{WHEELS_URL}/cpu"
    name = next((name for minimum, name in CUDA_VERSIONS if driver is None or driver >= minimum), CUDA_VERSIONS[-1][1])
    return f"{WHEELS_URL}/{name}"


@dataclass
class SetUp:
    """One run of the set-up.

    Attributes:
        settings: say where the cache is.
        variables: the environment variables of pip, see ``variables.for_pip``.
        wheels: a folder of wheels to install from, in place of the network.
        torch: auto, cpu, cuda or pypi.
    """

    settings: Settings
    variables: Mapping[str, str]
    feedback: Any
    wheels: str = ""
    torch: str = "auto"
    reset: bool = False

    def __post_init__(self) -> None:
        self._root = self.settings.cache_folder
        self._folder = environment_folder(self._root)
        self._log = self._folder.with_name(f"{self._folder.name}.log")

    def run(self) -> Path:
        """Makes the environment, or finishes it; returns its Python.

        Raises:
            Cancelled: the user has cancelled; the next run goes on from here.
            ClippanError: one sentence; the log file has all that pip said.
        """
        if self.wheels and not Path(self.wheels).is_dir():
            raise ClippanError(
                "The folder of wheels {folder} does not exist; correct it or leave it empty.", folder=self.wheels
            )
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClippanError(
                "The cache folder {folder} cannot be created ({reason}); choose another under {options}.",
                folder=self._root,
                reason=error.strerror,
                options=OPTIONS,
            ) from None
        lock = QLockFile(str(self._root / "engine.lock"))
        lock.setStaleLockTime(0)  # a set-up may take an hour; a dead one's lock is recognised by its process
        if not lock.tryLock(0):
            raise ClippanError(
                "Another set-up is running in {folder}, or the folder is not writable; wait until the other "
                "set-up has ended.",
                folder=self._root,
            )
        try:
            self._write_log(f"\n=== {time.strftime('%Y-%m-%d %H:%M:%S')} ===")
            self.feedback.pushInfo(tr("Environment: {folder}", folder=self._folder))
            self.feedback.pushInfo(tr("Log: {file}", file=self._log))
            return self._run_steps()
        finally:
            lock.unlock()

    def _run_steps(self) -> Path:
        base = self._find_base_python()
        if self.reset and self._folder.exists():
            self._remove_environment()
        numpy = importlib.metadata.version("numpy")
        index = None if self.wheels else torch_index(self.torch, sys.platform, self._find_cuda_version())
        locked = _locked_requirements()
        others = [line for name, line in locked.items() if name not in (*TORCH_PACKAGES, *OTHER_PACKAGES)]
        # Where the user names an index, another one than the installed one's is a change; "auto" keeps what is there.
        variant = () if self.wheels or self.torch == "auto" else (index or "pypi",)
        inputs: dict[str, Sequence[str]] = {
            "environment": (str(base), _VERSION),
            "torch": (numpy, "\n".join(locked.values()), *TORCH_PACKAGES, *variant),
            "packages": (numpy, "\n".join(locked.values()), *OTHER_PACKAGES),
            "check": (CHECK_CODE,),
        }
        done = _read_done_steps(self._folder) if python_in(self._folder).exists() else {}
        constraints = self._root / f"{self._folder.name}-constraints.txt"
        changed = False
        key = ""
        for number, step in enumerate(STEPS):
            self.feedback.setProgress((0, 5, 60, 95)[number])
            place = {"number": number + 1, "count": len(STEPS), "name": step}
            key = hashlib.sha256("\n".join((key, *inputs[step])).encode()).hexdigest()
            if not changed and done.get(step) == key:
                self._tell(tr("Step {number} of {count} ({name}) is already done.", **place))
                continue
            changed = True
            self.feedback.setProgressText(tr("Step {number} of {count}: {name}", **place))
            if step == "environment":
                self._create_venv(base)
            elif step == "torch":
                constraints.write_text("\n".join([*others, f"numpy=={numpy}"]), encoding="utf-8")
                self._install_torch(index, constraints)
            elif step == "packages":
                pins = [f"{name}=={self._installed_version(name)}" for name in TORCH_PACKAGES]
                constraints.write_text("\n".join([*others, f"numpy=={numpy}", *pins]), encoding="utf-8")
                self._install(OTHER_PACKAGES, constraints)
            else:
                self._check_packages()
            done = {**{name: done[name] for name in STEPS[:number] if name in done}, step: key}
            part = self._folder / f"{_DONE_FILE}.part"
            part.write_text(json.dumps(done, indent=1), encoding="utf-8")
            part.replace(self._folder / _DONE_FILE)
        self.feedback.setProgress(100)
        return python_in(self._folder)

    def _find_base_python(self) -> Path:
        for path in base_candidates(sys.platform, sys.base_prefix, sys.executable, sys.version_info[:2]):
            if not path.is_file():
                continue
            with contextlib.suppress(ClippanError):
                code, lines = self._run_program([str(path), "-c", "import sys; print(*sys.version_info[:2], sep='.')"])
                if code == 0 and lines and lines[-1].strip() == _VERSION:
                    return path
        raise ClippanError(
            "QGIS's own Python {version} was not found; choose a Python of your own under {options}.",
            version=_VERSION,
            options=OPTIONS,
        )

    def _find_cuda_version(self) -> Optional[tuple[int, int]]:
        program = shutil.which("nvidia-smi")
        if not program:
            return None
        with contextlib.suppress(ClippanError):
            code, lines = self._run_program([program])
            match = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", "\n".join(lines))
            if code == 0 and match:
                return int(match[1]), int(match[2])
        return None

    def _remove_environment(self) -> None:
        if not (self._folder / "pyvenv.cfg").exists() and any(self._folder.iterdir()):
            raise ClippanError(
                "{folder} is not a virtual environment; remove it yourself if you do not need it.", folder=self._folder
            )
        try:
            shutil.rmtree(self._folder)
        except OSError as error:
            raise ClippanError(
                "The old environment {folder} cannot be removed ({reason}); close other QGIS windows and try again.",
                folder=self._folder,
                reason=error.strerror,
            ) from None

    def _create_venv(self, base: Path) -> None:
        self._tell(tr("Creating a virtual environment with {python}", python=base))
        command = [str(base), "-m", "venv", "--system-site-packages", str(self._folder)]
        code, lines = self._run_program(command, shown=True)
        if code:
            remedy = (
                Message("install the package python3-venv")
                if any("ensurepip" in line or "python3-venv" in line for line in lines)
                else Message("choose a Python of your own under {options}", options=OPTIONS)
            )
            raise ClippanError(
                "QGIS's Python cannot create a virtual environment ({reason}); {remedy}.",
                reason=pip_settings.error_line(lines),
                remedy=remedy,
            )

    def _install_torch(self, index: Optional[str], constraints: Path) -> None:
        if index is not None:
            self._tell(tr("Downloading PyTorch from {address}", address=index))
            try:
                self._install(TORCH_PACKAGES, constraints, index)
                return
            except Cancelled:
                raise
            except ClippanError:
                self.feedback.pushWarning(
                    tr(
                        "PyTorch could not be downloaded from {address}; downloading it from PyPI instead, which "
                        "may be larger.",
                        address=index,
                    )
                )
        self._install(TORCH_PACKAGES, constraints)

    def _install(self, names: Iterable[str], constraints: Path, index: Optional[str] = None) -> None:
        settings = [] if self.wheels else self._pip_settings()
        options: tuple[str, ...] = ()
        if self.wheels:
            options = ("--no-index", "--find-links", self.wheels)
        elif index:
            # torch and torchvision fit only if both come from here, whatever else the user's pip looks into.
            options = ("--index-url", index)
            settings = [item for item in settings if item.name not in ("extra-index-url", "find-links")]
        others = {name: value for name, value in self.variables.items() if name not in pip_settings.VARIABLES}
        # The files were read for what holds here; what else they say, as where to install, is not for us.
        variables = {**others, **{item.variable: item.value for item in settings}, "PIP_CONFIG_FILE": os.devnull}
        wanted = [_locked_requirements().get(name, name) for name in names]
        command = [str(python_in(self._folder)), "-m", "pip", "install", *wanted, "-c", str(constraints), *options]
        code, lines = self._run_program(command, shown=True, variables=variables)
        if code:
            own = constraints.read_text(encoding="utf-8").split()
            cause, remedy = pip_settings.find_faulty_setting(lines, settings, own) or (
                pip_settings.error_line(lines),
                Message("add the missing wheels to the folder") if self.wheels else Message("check network and proxy"),
            )
            if not self.wheels:
                remedy = Message("{remedy}, or give a folder of wheels, and run this again", remedy=remedy)
            raise ClippanError(
                "{packages} could not be installed ({reason}); {remedy}.",
                packages=", ".join(names),
                reason=cause,
                remedy=remedy,
            )

    def _pip_settings(self) -> list[pip_settings.Setting]:
        code, lines = self._run_program([str(python_in(self._folder)), "-m", "pip", "config", "debug"])
        if code:
            raise ClippanError(
                "pip does not start in {folder} ({reason}); correct its settings (pip.conf or pip.ini, variables "
                "PIP_…), or run this again with “Start afresh”.",
                folder=self._folder,
                reason=pip_settings.error_line(lines),
            )
        ignored = self.variables.get("PIP_CONFIG_FILE") == os.devnull  # so pip takes this name
        return pip_settings.settings_in_force([] if ignored else pip_settings.config_files(lines), self.variables)

    def _check_packages(self) -> None:
        code, lines = self._run_program([str(python_in(self._folder)), "-c", CHECK_CODE], shown=True)
        if code:
            remedy = (
                Message("install Microsoft's Visual C++ runtime and run this again")
                if any("DLL" in line for line in lines)
                else Message("run this again with “Start afresh”")
            )
            raise ClippanError(
                "The installed packages do not work ({reason}); {remedy}.",
                reason=pip_settings.error_line(lines),
                remedy=remedy,
            )
        code, lines = self._run_program([str(python_in(self._folder)), "-m", "pip", "freeze", "--local"])
        (self._folder / "installed.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _installed_version(self, name: str) -> str:
        code = f"import importlib.metadata as metadata; print(metadata.version({name!r}))"
        status, lines = self._run_program([str(python_in(self._folder)), "-c", code])
        if status or not lines:
            raise ClippanError(
                "{package} was installed but cannot be found; run this again with “Start afresh”.", package=name
            )
        return lines[-1].strip()

    def _run_program(
        self, command: Sequence[str], shown: bool = False, variables: Optional[Mapping[str, str]] = None
    ) -> tuple[int, list[str]]:
        self._write_log("$ " + " ".join(command))
        try:
            # No shell: QGIS's Python or our environment's.
            process = subprocess.Popen(  # nosec B603
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(variables or self.variables),
                cwd=str(self._root),
                encoding="utf-8",
                errors="replace",
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise ClippanError(
                "{program} cannot be started ({reason}).", program=command[0], reason=error.strerror or error
            ) from None
        arriving: queue.Queue[Optional[str]] = queue.Queue()
        threading.Thread(target=_read_lines, args=(process, arriving), daemon=True).start()
        lines: list[str] = []
        while True:
            if self.feedback.isCanceled():
                _kill_group(process)
                self._write_log("cancelled")
                raise Cancelled
            try:
                line = arriving.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                return process.wait(), lines
            lines.append(line)
            self._write_log(line)
            if shown:
                self.feedback.pushConsoleInfo(line)

    def _tell(self, text: str) -> None:
        self.feedback.pushInfo(text)
        self._write_log(text)

    def _write_log(self, text: str) -> None:
        with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as log:
            log.write(text + "\n")


def _read_lines(process: subprocess.Popen, arriving: queue.Queue) -> None:
    with contextlib.suppress(OSError, ValueError), process.stdout as stream:
        for line in stream:
            arriving.put(line.rstrip())
    arriving.put(None)


def _kill_group(process: subprocess.Popen) -> None:
    """Ends a program and what it started (pip builds in processes of its own)."""
    with contextlib.suppress(OSError):
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


def _read_done_steps(environment: Path) -> dict[str, str]:
    try:
        marks = json.loads((environment / _DONE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


def _locked_requirements() -> dict[str, str]:
    """The requirements of the lock file, by name."""
    path = paths.RESOURCES / LOCK_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0]: line for line in wanted}
