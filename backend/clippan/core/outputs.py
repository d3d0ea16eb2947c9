"""The files that a run makes: whole, together, or not at all.

Each is made in a hidden folder beside its place, ``.clippan-…``, that the run holds locked while it lives. Once all are
whole they are put in place, by one run at a time; after a failure nothing of them stays. What a run that was killed
could not clean up is removed by the next that makes the same file: its folder is there, but nobody holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional, Union

from clippan.core.errors import ClippanError, one_line

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HIDDEN_PREFIX = ".clippan-"  # how the names of hidden files and folders begin
_LOCK = "lock"
_LOCKED_ERRNOS = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # by another process
_LOCK_ATTEMPTS = 10  # to lock a new folder, which seldom takes a second
_WAIT_SECONDS = 60.0  # seconds to wait for another run that is putting its files in place, which takes it milliseconds
_FULL_DISK_BYTES = 2**20  # bytes; with less a disk is full, whatever the library that failed says
_DISK_FULL_TEXT = re.compile("no space left|disk( is)? full|quota exceeded", re.IGNORECASE)

_RASTER_SIDECARS = ((".aux.xml",), (".ovr", ".msk", ".msk.ovr"))
# By an output's ending: the endings of what belongs to it, and of what may be left beside it of an older file, which
# would be taken for the new one's. Those of a shapefile take the place of its own. Any other name is a raster's.
_SIDECARS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    ".gpkg": ((), ("-wal", "-shm", "-journal", ".aux.xml")),
    ".shp": ((".shx", ".dbf", ".prj", ".cpg"), (".qix", ".sbn", ".sbx", ".qpj", ".shp.xml")),
    **dict.fromkeys((".geojson", ".fgb", ".csv", ".json", ".html", ".htm", ".png"), ((), ())),
    **dict.fromkeys((".safetensors", ".pt", ".vectors"), ((), ())),
    ".tif": _RASTER_SIDECARS,
}


def affected_files(path: str) -> list[str]:
    """All files that writing an output creates, replaces or removes, itself the first."""
    own, stale = _files_and_stale_sidecars(path)
    return own + stale


def _files_and_stale_sidecars(path: str) -> tuple[list[str], list[str]]:
    suffix = _known_suffix(path)
    stem = path[: -len(suffix)] if suffix == ".shp" else path
    own, stale = ([f"{stem}{ending}" for ending in endings] for endings in _SIDECARS.get(suffix, _RASTER_SIDECARS))
    return [path, *own], stale


def _known_suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return suffix if suffix in _SIDECARS else ""


class Outputs:
    """The output files of a run, a context manager: all are put in place on normal exit, or none; none stays after an
    exception. Raises ClippanError if that fails."""

    def __init__(self) -> None:
        self._folders: dict[str, _Folder] = {}
        self._temporary_paths: dict[str, str] = {}

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._place()
        finally:
            self._discard()

    def temporary_path(self, path: str) -> str:
        """Where to write the file that will be moved to ``path``; sidecars of its kind beside it move along, stale ones
        at ``path`` are removed."""
        if path not in self._temporary_paths:
            if _is_virtual(path):
                self._temporary_paths[path] = (
                    f"{path.rpartition('/')[0]}/{_HIDDEN_PREFIX}{secrets.token_hex(8)}{_known_suffix(path)}"
                )
            else:
                self._temporary_paths[path] = str(self.temporary_folder(path) / f"part{_known_suffix(path)}")
        return self._temporary_paths[path]

    def temporary_folder(self, path: str) -> Path:
        """A folder of this run beside an output, deleted at the end."""
        if path not in self._folders:
            place = Path(tempfile.gettempdir(), Path(path).name) if _is_virtual(path) else Path(path)
            try:
                self._folders[path] = _Folder(place)
            except OSError as error:
                raise write_error(path, error) from error
        return self._folders[path].path

    def _place(self) -> None:
        placement_locks = {
            Path(os.path.realpath(Path(path).parent), f"{_prefix(Path(path))}.lock"): self._folders[path].locking_works
            for path in self._temporary_paths
            if not _is_virtual(path)
        }
        with contextlib.ExitStack() as stack, contextlib.ExitStack() as undo:
            for placement_lock in sorted(placement_locks):  # in one order, lest two runs wait for each other
                stack.callback(_wait_for_lock(placement_lock, ignore_taken=not placement_locks[placement_lock]).release)
            for path, temporary in self._temporary_paths.items():
                try:
                    self._move(path, temporary, undo)
                except (OSError, RuntimeError) as error:
                    reason = getattr(error, "strerror", None) or one_line(error)
                    raise ClippanError(
                        "The output {path} could not be put in place ({reason}); close it in other programs.",
                        path=path,
                        reason=reason,
                    ) from error
            undo.pop_all()

    def _move(self, path: str, temporary: str, undo: contextlib.ExitStack) -> None:
        new = dict(zip(_files_and_stale_sidecars(path)[0], _files_and_stale_sidecars(temporary)[0]))
        for number, target in enumerate(affected_files(path)):
            source = new.get(target)
            comes = source is not None and (number == 0 or _exists(source))
            if not comes and not _exists(target):
                continue
            if not _is_virtual(target):
                self._back_up(target, self._folders[path].path / f"old{number}", undo)
            if comes and source is not None:
                _rename(source, target)
            else:
                _remove(target)

    def _back_up(self, target: str, backup: Path, undo: contextlib.ExitStack) -> None:
        """Makes sure that a failure brings the old file back, where the file system has links."""
        try:
            os.link(target, backup)
        except FileNotFoundError:
            undo.callback(_quietly, _remove, target)
        except OSError:
            pass
        else:
            undo.callback(_quietly, _rename, str(backup), target)

    def _discard(self) -> None:
        for path, temporary in self._temporary_paths.items():
            if _is_virtual(path):
                for name in affected_files(temporary):
                    _quietly(_remove, name)
        for folder in self._folders.values():
            folder.remove()


@contextlib.contextmanager
def write_output(path: str, outputs: Optional[Outputs] = None) -> Iterator[Path]:
    """Yields the temporary path of one output file, put in place with the other ``outputs`` of a run, or alone. Raises
    ClippanError if it cannot be written."""
    with contextlib.ExitStack() as stack:
        own = outputs or stack.enter_context(Outputs())
        try:
            yield Path(own.temporary_path(path))
        except (OSError, RuntimeError) as error:
            raise write_error(path, error) from error


@contextlib.contextmanager
def exclusive_lock(file: Path, sentence: str) -> Iterator[None]:
    """Holds a lock file that one process at a time can hold; it exists as long as it is held. If another process holds
    it, ``sentence`` is raised as a ClippanError."""
    try:
        lock = _Lock(file)
    except _LockTaken as error:
        if isinstance(error.__cause__, OSError):
            raise write_error(file, error.__cause__) from error
        raise ClippanError(sentence) from None
    except OSError as error:
        raise write_error(file, error) from error
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(path: str) -> None:
    """Removes what runs that were killed have left of an output."""
    place = Path(path)
    if _is_virtual(path) or not place.parent.is_dir():
        return
    with contextlib.suppress(OSError):
        for item in list(os.scandir(place.parent)):
            if item.name.startswith(f"{_prefix(place)}-"):
                with contextlib.suppress(OSError, _LockTaken):
                    lock = _Lock(Path(item.path, _LOCK))
                    if lock.is_supported:
                        _remove_folder(Path(item.path), lock)
                    else:
                        lock.close()


def write_error(path: Union[str, Path], error: Union[BaseException, str]) -> ClippanError:
    """The error for a file that could not be written: the disk is full, or another cause, which not all libraries
    give."""
    folder = Path(path).absolute().parent
    here = not _is_virtual(str(path)) and folder.is_dir()
    if is_disk_full(path, error):
        return ClippanError("The disk of {folder} is full; free some space or choose another folder.", folder=folder)
    reason = _reason(error)
    number = error.errno if isinstance(error, OSError) else None
    if here and (number == errno.EFBIG or "file too large" in reason.lower()):
        return ClippanError(
            "{path} could not be written: the file system of {folder}, or a limit of your account (ulimit -f), allows "
            "no file so large; choose another folder, or have the limit raised.",
            path=path,
            folder=folder,
        )
    if here and not os.access(folder, os.W_OK):
        return ClippanError("The output folder {folder} is not writable; choose another.", folder=folder)
    if reason:
        key = "{path} could not be written ({reason}); choose another folder."
        return ClippanError(key, path=path, reason=reason)
    if here:
        key = "{path} could not be written; check the free space and your quota there, or choose another folder."
        return ClippanError(key, path=path)
    return ClippanError("{path} could not be written; choose another folder.", path=path)


def is_disk_full(path: Union[str, Path], error: Union[BaseException, str]) -> bool:
    """Whether a file on this machine could not be written because its disk, or a quota, is full."""
    folder = Path(path).absolute().parent
    if _is_virtual(str(path)) or not folder.is_dir():
        return False
    number = error.errno if isinstance(error, OSError) else None
    full = number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)) or _DISK_FULL_TEXT.search(_reason(error))
    return bool(full) or shutil.disk_usage(folder).free < _FULL_DISK_BYTES


def _reason(error: Union[BaseException, str]) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error) if isinstance(error, BaseException) else " ".join(error.split()).rstrip(".")


class _LockTaken(Exception):
    """Another process, or another thread, holds the lock."""


class _Lock:
    """A lock on a file, which ends with the process; ``ignore_taken`` goes on if it seems taken, on file systems whose
    answer is unreliable, and ``is_supported`` is False on those without locks. Raises _LockTaken if another holds it,
    OSError if the file cannot be made."""

    def __init__(self, path: Path, ignore_taken: bool = False) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError as error:
            if sys.platform == "win32" and not ignore_taken:  # as long as a file is removed that another has open
                raise _LockTaken from error
            raise
        self.is_supported, is_held = True, False
        try:
            _lock(self._file)
        except OSError as error:
            self.is_supported, is_held = False, error.errno in _LOCKED_ERRNOS
        if not ignore_taken and (is_held or not self._is_there()):  # not there: who held it before has removed it
            self.close()
            raise _LockTaken

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))  # noqa: PTH116
        except OSError:
            return False

    def close(self) -> None:
        os.close(self._file)

    def release(self) -> None:
        """Lets go of it and removes the file."""
        if sys.platform != "win32":  # before another takes it
            _quietly(_remove, str(self._path))
        self.close()
        if sys.platform == "win32":  # where an open file cannot be removed
            _quietly(_remove, str(self._path))


class _Folder:
    """A new hidden folder beside an output, locked by this run; ``locking_works`` is False where the file system (some
    network ones) reports every lock as taken. Raises OSError."""

    def __init__(self, output: Path) -> None:
        remove_leftovers(str(output))
        self.locking_works = True
        for _ in range(_LOCK_ATTEMPTS):
            self.path = self._new(output)
            try:
                self._lock = _Lock(self.path / _LOCK)
                return
            except (_LockTaken, FileNotFoundError):  # another run may clear it away before it is locked
                _quietly(_remove, str(self.path / _LOCK))
                with contextlib.suppress(OSError):
                    self.path.rmdir()
        self.locking_works = False
        self.path = self._new(output)
        self._lock = _Lock(self.path / _LOCK, ignore_taken=True)

    @staticmethod
    def _new(output: Path) -> Path:
        path = output.parent / f"{_prefix(output)}-{secrets.token_hex(4)}"
        path.mkdir()
        return path

    def remove(self) -> None:
        _remove_folder(self.path, self._lock)


def _remove_folder(folder: Path, lock: _Lock) -> None:
    """Removes the content, then the lock: whoever finds the folder meanwhile must find it locked."""
    with contextlib.suppress(OSError):
        for item in folder.iterdir():
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item, ignore_errors=True)
            elif item.name != _LOCK:
                _quietly(_remove, str(item))  # one that cannot be removed does not keep the others
    lock.release()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _prefix(output: Path) -> str:
    # Not the name itself, which may be as long as names can be.
    return f"{_HIDDEN_PREFIX}{hashlib.sha256(os.fsencode(output.name.casefold())).hexdigest()[:12]}"


def _wait_for_lock(placement_lock: Path, ignore_taken: bool) -> _Lock:
    limit = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return _Lock(placement_lock, ignore_taken)
        except _LockTaken:
            if time.monotonic() > limit:
                raise ClippanError(
                    "Another process is writing the same output to {folder}; wait until it has finished, or end it.",
                    folder=placement_lock.parent,
                ) from None
            time.sleep(0.02)
        except OSError as error:
            raise write_error(placement_lock, error) from error


def _is_virtual(path: str) -> bool:
    """Whether it lies in one of GDAL's file systems, not on a disk."""
    return path.startswith("/vsi")


def _exists(path: str) -> bool:
    if _is_virtual(path):
        from osgeo import gdal

        return gdal.VSIStatL(path) is not None
    return os.path.lexists(path)


def _rename(path: str, target: str) -> None:
    if _is_virtual(path):
        from osgeo import gdal

        gdal.Rename(path, target)
    else:
        os.replace(path, target)  # noqa: PTH105


def _remove(path: str) -> None:
    if _is_virtual(path):
        from osgeo import gdal

        gdal.Unlink(path)
    else:
        os.unlink(path)  # noqa: PTH108


def _quietly(action: Callable[..., None], *paths: str) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        action(*paths)
