"""Model weights on this machine: the offline folder, the download cache and the record of downloads.

The offline folder (CLIPPAN_OFFLINE) is filled by the user or an administrator. Downloads go to ``models/`` in the cache
folder. ``models.lock.json`` in the cache folder records the commit and the sha256 of each model's first download, so
that later downloads fetch the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from clippan.catalogue.models import MODELS, Model
from clippan.core.context import Context
from clippan.core.errors import ClippanError
from clippan.core.messages import Message

RECORD_FILE = "models.lock.json"
_BLOCK = 2**23  # bytes read at a time
_LOCK_SECONDS = 5  # how long to wait for a lock where the user cannot cancel

_checksums: dict[tuple[str, int, int], str] = {}  # by path, size and modification time


@dataclass(frozen=True)
class DownloadRecord:
    """A recorded download; ``revision`` is the commit, ``size`` is in bytes."""

    repository: str
    file: str
    revision: str
    sha256: str
    size: int


@dataclass(frozen=True)
class LocalWeights:
    """Weights on this machine.

    Attributes:
        path: the file.
        origin: "shipped" (comes with CLIPPan), "offline" (the offline folder), "cache", or "own" (given by its path).
        revision, sha256: as recorded; None if unknown.
    """

    path: Path
    origin: str
    revision: Optional[str]
    sha256: Optional[str]


def models_folder() -> Path:
    """The folder of downloaded weights, which may not exist yet."""
    return cache_folder() / "models"


def cache_path(model: Model) -> Path:
    """Path of a model's weights in the cache, whether or not they are there."""
    return models_folder() / model.repository.replace("/", "--") / model.file


def offline_folder() -> Optional[Path]:
    """The offline folder; None if none is set."""
    name = os.environ.get("CLIPPAN_OFFLINE", "").strip()
    return Path(name).expanduser() if name else None


def locate(model: Model, context: Optional[Context] = None) -> Optional[LocalWeights]:
    """Finds a model's weights on this machine; None if they are not there.

    With a context, weights in the offline folder are checked against their sha256 if it is known. Those in the cache
    were checked when they were downloaded.

    Raises:
        ClippanError: the weights in the offline folder are damaged or another version, or a folder cannot be read.
    """
    if model.path is not None:
        if not model.path.is_file():
            return None
        return LocalWeights(model.path, "shipped" if model.id in MODELS else "own", None, None)
    try:
        found = _locate_offline(model)
        if found is not None:
            if found.sha256 and context is not None and checksum(found.path, context) != found.sha256:
                raise ClippanError(
                    "{path} in the offline folder is damaged or another version (its sha256 is not {sha256}…); copy "
                    "it there again.",
                    path=found.path,
                    sha256=found.sha256[:12],
                )
            return found
        path, record = cache_path(model), recorded(model)
        if record is None or not path.is_file() or path.stat().st_size != record.size:
            return None
        return LocalWeights(path, "cache", record.revision, record.sha256)
    except OSError as error:  # for example no permission, or a disk that is not mounted
        raise ClippanError(
            "The weights of {label} cannot be read ({error}); check the cache folder and the offline folder in the "
            "options (CLIPPAN_CACHE, CLIPPAN_OFFLINE).",
            label=model.label,
            error=error,
        ) from error


def _locate_offline(model: Model) -> Optional[LocalWeights]:
    folder = offline_folder()
    path = next((path for path in offline_candidates(model, folder) if path.is_file()), None) if folder else None
    if folder is None or path is None:
        return None
    record = _matching_record(model, _read_records(folder))  # a copied cache includes its record
    if record:
        return LocalWeights(path, "offline", record.revision, record.sha256)
    return LocalWeights(path, "offline", model.revision if model.sha256 else None, model.sha256)


def offline_candidates(model: Model, folder: Path) -> list[Path]:
    """Where a model's weights may lie in an offline folder; the last is the simplest place to put them."""
    name, repository = Path(model.file).name, model.repository
    folders = (folder / repository, folder / repository.replace("/", "--"), folder)
    candidates = [parent / file for parent in folders for file in (model.file, name)]
    if sum(Path(other.file).name == name for other in MODELS.values()) > 1:
        # A file name that several models share identifies a model only inside its repository's folder.
        candidates = [path for path in candidates if path.parent != folder]
    return candidates


def recorded(model: Model) -> Optional[DownloadRecord]:
    """The recorded download of the model's current file and version; None if there is none."""
    return _matching_record(model, _read_records(cache_folder()))


def _matching_record(model: Model, records: dict[str, DownloadRecord]) -> Optional[DownloadRecord]:
    record = records.get(model.id)
    if record is None or (record.repository, record.file) != (model.repository, model.file):
        return None
    if model.revision not in (None, record.revision) or model.sha256 not in (None, record.sha256):
        return None  # the registry now pins another version
    return record


def _read_records(folder: Path) -> dict[str, DownloadRecord]:
    try:
        entries = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        return {name: DownloadRecord(**entry) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # the next download writes a new record


def write_record(model: Model, record: Optional[DownloadRecord]) -> None:
    """Records a download in the lock file; None removes the record."""
    folder = cache_folder()
    with locked(RECORD_FILE):
        records = _read_records(folder)
        if record is None:
            if records.pop(model.id, None) is None:
                return
        else:
            records[model.id] = record
        temporary = folder / f"{RECORD_FILE}.part"
        entries = {name: dataclasses.asdict(records[name]) for name in sorted(records)}
        try:
            temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
            temporary.replace(folder / RECORD_FILE)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise cache_unwritable(error) from error


@contextlib.contextmanager
def locked(name: str, context: Optional[Context] = None) -> Iterator[None]:
    """Locks ``name`` in the cache against other threads and processes.

    With a context it waits until the user cancels, without one for a few seconds.

    Raises:
        ClippanError: another process holds the lock, or the cache cannot be written to.
    """
    from filelock import FileLock, Timeout  # comes with huggingface_hub, and with torch

    file = cache_folder() / ".locks" / (name.replace("/", "--") + ".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(file))
        waited = 0.0
        while True:
            try:
                lock.acquire(timeout=0.2)
                break
            except Timeout:
                waited += 0.2
            if context is not None:
                context.progress(0, "Waiting for another download of the same model")
            elif waited > _LOCK_SECONDS:
                raise ClippanError(
                    "Another process is downloading the model; wait until it has finished, or cancel it there."
                )
    except OSError as error:
        raise cache_unwritable(error) from error
    try:
        yield
    finally:
        lock.release()


def cache_unwritable(error: OSError) -> ClippanError:
    """The error for a cache that cannot be written to."""
    return ClippanError(
        "The cache folder {folder} cannot be written to ({reason}); choose another in the options (CLIPPAN_CACHE).",
        folder=cache_folder(),
        reason=error.strerror or error,
    )


def checksum(path: Path, context: Optional[Context] = None, start: float = 0.0) -> str:
    """The sha256 of a file; an unchanged file is read once per process.

    Progress runs from ``start`` to 100 percent.
    """
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _checksums:
        digest, done = hashlib.sha256(), 0
        with path.open("rb") as file:
            for block in iter(lambda: file.read(_BLOCK), b""):
                digest.update(block)
                done += len(block)
                if context is not None:
                    share = done / max(status.st_size, 1)
                    context.progress(start + (100 - start) * share, Message("Checking {file}", file=path.name))
        _checksums[key] = digest.hexdigest()
    return _checksums[key]


def partial_downloads(path: Path) -> list[Path]:
    """Partial files that interrupted downloads of this file left, from which they can be resumed."""
    return sorted(path.parent.glob(f"{path.name}.*.part")) if path.parent.is_dir() else []


def _cached_files(model: Model) -> list[Path]:
    """A model's file in the cache and its interrupted downloads."""
    path = cache_path(model)
    return [file for file in (path, *partial_downloads(path)) if file.is_file()]


def cached_bytes() -> int:
    """Size of all downloaded models and interrupted downloads in the cache."""
    downloaded = [model for model in MODELS.values() if model.path is None]
    return sum(file.stat().st_size for model in downloaded for file in _cached_files(model))


def remove(model: Model) -> int:
    """Removes a model and its record from the cache; returns the number of bytes freed.

    Raises:
        ClippanError: the model is being downloaded, or is not a downloaded one.
    """
    if model.path is not None:
        if model.id in MODELS:
            raise ClippanError("{label} is part of CLIPPan; only downloaded models can be removed.", label=model.label)
        raise ClippanError(
            "{path} is not a downloaded model; delete the file yourself if you no longer need it.", path=model.path
        )
    if not cache_folder().is_dir():
        return 0
    with locked(model.id):
        freed = 0
        for file in _cached_files(model):
            size = file.stat().st_size
            try:
                file.unlink()
            except OSError as error:
                raise ClippanError(
                    "{file} cannot be removed ({reason}); close the programs that use it.",
                    file=file,
                    reason=error.strerror or error,
                ) from error
            freed += size
        write_record(model, None)
        for parent in cache_path(model).parents:  # folders that are now empty
            if parent == models_folder() or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()
    return freed


def cache_folder() -> Path:
    """The cache folder: CLIPPAN_CACHE, or by default ``clippan`` in the user's data folder."""
    chosen = os.environ.get("CLIPPAN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "clippan"
