"""Fetches weights from the Hugging Face Hub: at a recorded commit, resumed, verified, with progress and cancel.

The protocol is huggingface_hub's business, and so are proxies, certificates, tokens and retries. What is done here
instead of by its ``hf_hub_download``: that one forgets a download that was cut, cannot be cancelled, and does not
compare the bytes with their sha256.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Callable

from clippan import __version__
from clippan.clip import cache
from clippan.clip.cache import Record
from clippan.clip.models import MODELS, Model
from clippan.errors import Cancelled, ClippanError, told
from clippan.jobs.base import Context
from clippan.watch import watched

HUB = "https://huggingface.co"
_PERMISSIVE = re.compile(r"(MIT|Apache-2\.0|BSD(-\d-Clause)?|CC-BY-\d\.\d|CC0-1\.0)", re.IGNORECASE)
_CHUNK = 2**20  # bytes; what a cut can lose, and how often progress is told
_METADATA_SECONDS = 10
_SPARE = 2**24  # bytes of disk that a download leaves free
_NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub"}


def fetch(model: Model, context: Context, accept_licence: bool = False) -> Path:
    """The model's weights on this machine: from the offline folder, the cache, or else the Hub.

    Args:
        model: which.
        context: told the progress and, before a download, the licence.
        accept_licence: the user agrees to a licence that asks for more than naming the authors.

    Raises:
        ClippanError: it cannot be had, in one sentence with the remedy.
        Cancelled: the user cancelled; what was downloaded is gone.
    """
    found = cache.locate(model, context)
    if found is not None:
        return found.path
    if model.path is not None:
        raise ClippanError(f"The weights {model.path} are missing; install CLIPPan again, or choose another model.")
    _show_licence(model, context, accept_licence)
    with cache.held(model.id, context):
        found = cache.locate(model, context)  # another process may have fetched it meanwhile
        return found.path if found is not None else _download(model, context)


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or the usual one. (huggingface_hub reads the variable only when imported.)"""
    return (os.environ.get("HF_ENDPOINT", "").strip() or HUB).rstrip("/")


def _shown() -> str:
    """The Hub's address for people: a mirror's may hold a password."""
    return re.sub(r"://[^/\s@]*@", "://", endpoint())


def _show_licence(model: Model, context: Context, accepted: bool) -> None:
    context.log(f"{model.label} is published under the licence {model.licence}: {model.licence_url}")
    if not (accepted or _PERMISSIVE.fullmatch(model.licence)):
        raise ClippanError(
            f"{model.label} has the licence {model.licence} ({model.licence_url}), which you have to accept before "
            f"the download; read it, then download with the licence accepted (clippan download {model.id} "
            "--accept-licence)."
        )


def _download(model: Model, context: Context) -> Path:
    hub = _Hub(model)
    target = cache.place_of(model)
    record = cache.recorded(model)
    wanted = model.revision or (record.revision if record else None)
    context.progress(0, f"Looking up {model.label}")
    with hub.sentences():
        metadata = watched(lambda: hub.metadata(wanted or "main"), context)
    revision, size, etag = metadata.commit_hash, metadata.size, metadata.etag
    if not revision or not etag or not size:
        raise ClippanError(
            f"{_shown()} does not answer as the Hugging Face Hub does; check HF_ENDPOINT, and whether a proxy or a "
            "log-in page of the network is in between."
        )
    promised = etag if re.fullmatch("[0-9a-f]{64}", etag) else None  # weights are kept under their sha256
    expected = model.sha256 or (record.sha256 if record else None) or promised
    if promised and promised != expected:
        raise _wrong(model, "are another version than")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache.unwritable(error) from error
    if not (
        expected and target.is_file() and target.stat().st_size == size and cache.checksum(target, context) == expected
    ):
        version = re.sub(r"\W", "", etag)[:16]
        part = target.with_name(f"{target.name}.{version}.part")
        for other in cache.parts(target):
            if other != part or other.stat().st_size > size:
                with contextlib.suppress(OSError):  # of another version, and in the way of nothing
                    other.unlink()
        _transfer(hub, part, revision, size, context)
        with _removed_unless_done(part):
            actual = cache.checksum(part, context, start=95)
            if actual != (expected or actual):
                raise _wrong(model, "arrived damaged, or are not")
            try:
                part.replace(target)
            except OSError as error:
                raise cache.unwritable(error) from error
    sha256 = expected or cache.checksum(target)
    cache.write_record(model, Record(model.repository, model.file, revision, sha256, size))
    context.log(f"{model.label}, commit {revision}, is in {target}")
    return target


def _wrong(model: Model, what: str) -> ClippanError:
    return ClippanError(
        f"The weights that {_shown()} sent for {model.label} {what} the expected ones (sha256) and were not kept; "
        "try again, and if that does not help check HF_ENDPOINT, or forget the recorded version (clippan remove "
        f"{model.id})."
    )


@contextlib.contextmanager
def _removed_unless_done(part: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # renamed, if all went well
            part.unlink()


def _transfer(hub: _Hub, part: Path, revision: str, size: int, context: Context) -> None:
    """Brings the part to its full size; leaves it if the connection is cut, and removes it if the user cancels."""
    begun = part.stat().st_size if part.is_file() else 0
    if shutil.disk_usage(part.parent).free < size - begun + _SPARE:
        raise _full(hub.model, part, size)
    context.log(f"Downloading {size / 1e6:.0f} MB from {_shown()}/{hub.model.repository}, commit {revision}")
    if begun:
        context.log(f"{begun / 1e6:.0f} MB are here already; going on from there")
    try:
        sink = _Sink(part)
    except OSError as error:
        raise cache.unwritable(error) from error

    def report() -> None:
        done = sink.position
        context.progress(95 * done / size, f"{hub.model.label}: {done / 1e6:.0f} of {size / 1e6:.0f} MB")

    keep = False
    try:
        with hub.sentences(lambda: sink.position, size):
            watched(lambda: hub.get(revision, sink, size), context, report)
        keep = True
    except _Disk as error:
        if error.error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise _full(hub.model, part, size) from error
        raise cache.unwritable(error.error) from error
    except Cancelled:
        raise
    except ClippanError:  # the network's; what came is good for the next try
        keep = sink.position > 0
        raise
    finally:
        sink.close()
        if not keep:
            with contextlib.suppress(OSError):
                part.unlink()


def _full(model: Model, part: Path, size: int) -> ClippanError:
    return ClippanError(
        f"{model.label} takes {size / 1e6:.0f} MB, for which the disk of {part.parent} has no space; make room, or "
        "choose another cache folder in the options (CLIPPAN_CACHE)."
    )


class _Disk(Exception):
    """Writing the weights failed."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Stopped(Exception):
    """The download goes on in a thread that nobody waits for any more."""


class _Sink:
    """A file that is written to by the thread that downloads, and can be closed under it by the one that waits."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        self.position = self._file.seek(0, os.SEEK_END)
        self.name = str(path)
        self._lock = threading.Lock()
        self._open = True

    def write(self, data: bytes) -> int:
        """Writes; raises _Disk if that fails, and _Stopped if nobody waits any more."""
        with self._guarded() as file:
            count = file.write(data)
            self.position += count
            return count

    def tell(self) -> int:
        """The position."""
        with self._guarded() as file:
            return file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves; huggingface_hub does so before it begins anew."""
        with self._guarded() as file:
            self.position = file.seek(offset, whence)
            return self.position

    def truncate(self) -> int:
        """Cuts off what comes after the position."""
        with self._guarded() as file:
            return file.truncate()

    def close(self) -> None:
        """Closes; what a thread writes from now on is refused."""
        with self._lock:
            self._open = False
            with contextlib.suppress(OSError):  # a full disk fails again when the last bytes are flushed
                self._file.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[BinaryIO]:
        with self._lock:
            if not self._open:
                raise _Stopped
            try:
                yield self._file
            except OSError as error:
                raise _Disk(error) from error


class _Hub:
    """One model's repository on the Hub."""

    def __init__(self, model: Model) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import constants, file_download, utils
        except ImportError as error:
            reason = told(error)
            raise ClippanError(
                f"The engine's Python cannot download models ({reason}); run Set up engine again."
            ) from error
        self.model = model
        self._hub, self._file_download, self._utils = huggingface_hub, file_download, utils
        # It counts in steps of 10 MB, which a slow line takes a minute for and a cut line loses.
        constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
        # It would ask for a list of programs by which to name this one, and write that list to HF_HOME.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        with contextlib.suppress(Exception):  # its own bars and warnings would come between ours
            utils.disable_progress_bars()
            utils.logging.set_verbosity_error()

    def metadata(self, revision: str) -> Any:
        """Commit, size and ETag of the file at a branch or commit."""
        return self._hub.get_hf_file_metadata(
            self._url(revision), timeout=_METADATA_SECONDS, library_name="clippan", library_version=__version__
        )

    def get(self, revision: str, sink: _Sink, size: int) -> None:
        """Writes the rest of the file, and goes on after a cut as long as each try brings something."""
        # Redirects lead to storage elsewhere, to which the token is not sent.
        headers = self._utils.build_hf_headers(library_name="clippan", library_version=__version__)
        headers["Accept-Encoding"] = "identity"  # compressed bytes have no ranges to go on from
        while True:
            begun = sink.position
            try:
                return self._file_download.http_get(
                    self._url(revision),
                    sink,  # type: ignore[arg-type]
                    headers=headers,
                    resume_size=begun,
                    expected_size=size,
                )
            except Exception as error:
                # It tries again itself, but not after every kind of cut.
                cut = getattr(error, "response", None) is None and _is_network(error)
                if not cut or not begun < sink.position < size:
                    raise

    def _url(self, revision: str) -> str:
        return self._hub.hf_hub_url(self.model.repository, self.model.file, revision=revision, endpoint=endpoint())

    @contextlib.contextmanager
    def sentences(self, position: Callable[[], int] = lambda: 0, size: int = 0) -> Iterator[None]:
        """Turns what the network can do into a sentence; with a size, while that many bytes are on their way."""
        try:
            yield
        except (ClippanError, _Disk):
            raise
        except Exception as error:
            response = getattr(error, "response", None)
            if response is not None:
                raise self._answered(response) from error
            if not _is_network(error):
                raise
            reason = _reason(error)
            if size:
                done = f"{position() / 1e6:.0f} of {size / 1e6:.0f} MB"
                raise ClippanError(
                    f"The download of {self.model.label} was cut after {done} ({reason}); start it again, and it "
                    "goes on from there."
                ) from error
            raise ClippanError(
                f"The Hugging Face Hub ({_shown()}) cannot be reached ({reason}); check the network, the proxy and "
                f"HF_ENDPOINT, or put {Path(self.model.file).name} into {self._offline()}."
            ) from error

    def _offline(self) -> str:
        folder = cache.offline_folder()
        place = f"the offline folder {folder}" if folder else "an offline folder (CLIPPAN_OFFLINE)"
        shared = sum(Path(model.file).name == Path(self.model.file).name for model in MODELS.values()) > 1
        return f"{self.model.repository.replace('/', '--')} in {place}" if shared else place

    def _answered(self, response: Any) -> ClippanError:
        """The sentence for an answer that is no success; codes as the Hub documents them."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        model, address = self.model, f"{_shown()}/{self.model.repository}"
        if "Invalid credentials" in response.headers.get("X-Error-Message", ""):
            code = ""
        if code == "GatedRepo" or (status == 403 and not code):
            return ClippanError(
                f"{model.label} is given only to those who accepted its licence: accept it at {address}, then name "
                "your token in the options (HF token; HF_TOKEN on the command line)."
            )
        if code == "RevisionNotFound":
            return ClippanError(
                f"The recorded version of {model.label} is no longer at {address}; update CLIPPan, or forget the "
                f"version (clippan remove {model.id}) and download again."
            )
        if code == "EntryNotFound":
            return ClippanError(
                f"{address} has no file {model.file}; update CLIPPan, or choose another model, and tell us."
            )
        if code == "RepoNotFound" or status == 404:
            return ClippanError(
                f"There is no public repository {address}; update CLIPPan, check HF_ENDPOINT, or if it is private "
                "name your token in the options (HF token; HF_TOKEN on the command line)."
            )
        if status == 401:
            return ClippanError(
                f"{_shown()} does not accept your token; make a new one there and name it in the options (HF token; "
                "HF_TOKEN on the command line)."
            )
        if status == 407:
            return ClippanError(
                "The proxy wants a user name and a password; enter them in the network settings of QGIS (HTTPS_PROXY "
                "on the command line)."
            )
        if status == 429:
            return ClippanError(
                f"{_shown()} had too many requests from here; wait some minutes, or name a token in the options "
                "(HF token; HF_TOKEN on the command line)."
            )
        return ClippanError(f"{_shown()} answered with error {status}; try again later, or check HF_ENDPOINT.")


def _is_network(error: BaseException) -> bool:
    """Whether an error comes from the network, or from settings for it such as a proxy's address."""
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, (OSError, ValueError, ImportError)) or bool(modules & _NETWORK)


def _reason(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Consistency check failed"):
        return "it ended early"
    return re.sub(r"://[^/\s@]*@", "://", lines[0])[:200].rstrip(".")  # a proxy's password stays private
