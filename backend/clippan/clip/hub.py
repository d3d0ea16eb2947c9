"""Fetches weights from the Hugging Face Hub: at a recorded commit, resumed, verified, with progress and cancel.

The addresses, the metadata, the token, and the HTTP session with its proxies and certificates are huggingface_hub's.
Its ``hf_hub_download`` is not used: it deletes what a cut download has brought (huggingface_hub issue 4196), and does
not compare the bytes with their sha256.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clippan import __version__
from clippan.catalogue.models import MODELS, Model
from clippan.clip import cache
from clippan.clip.cache import DownloadRecord
from clippan.core.cancellable import run_cancellable
from clippan.core.context import Context
from clippan.core.errors import Cancelled, ClippanError, one_line
from clippan.core.messages import Message

HUB = "https://huggingface.co"
_PERMISSIVE = re.compile(r"(MIT|Apache-2\.0|BSD(-\d-Clause)?|CC-BY-\d\.\d|CC0-1\.0)", re.IGNORECASE)
_BLOCK = 2**20  # bytes; what a cut can lose, and how often progress is told
_MAX_FAILED_REQUESTS = 6  # requests in a row that bring nothing, before a download counts as cut
_PAUSE = 1.0  # seconds between them
_METADATA_SECONDS = 10
_FREE_BYTES = 2**24  # bytes of disk that a download leaves free
_NETWORK_PACKAGES = {"httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"}

# huggingface_hub, which reads this when it is imported, would else fetch a list of programs by which to name this one.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


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
        raise ClippanError(
            "The weights {path} are missing; install CLIPPan again, or choose another model.", path=model.path
        )
    _show_licence(model, context, accept_licence)
    with cache.locked(model.id, context):
        found = cache.locate(model, context)  # another process may have fetched it meanwhile
        return found.path if found is not None else _download(model, context)


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or the usual one. (huggingface_hub reads the variable only when imported.)"""
    return (os.environ.get("HF_ENDPOINT", "").strip() or HUB).rstrip("/")


def _public_endpoint() -> str:
    """The Hub's address for people: a mirror's may hold a password."""
    return re.sub(r"://[^/\s@]*@", "://", endpoint())


def _show_licence(model: Model, context: Context, accepted: bool) -> None:
    context.log(f"{model.label} is published under the licence {model.licence}: {model.licence_url}")
    if not (accepted or _PERMISSIVE.fullmatch(model.licence)):
        raise ClippanError(
            "{label} has the licence {licence} ({licence_url}), which you have to accept before the download; read "
            "it, then download with the licence accepted (clippan download {id} --accept-licence).",
            label=model.label,
            licence=model.licence,
            licence_url=model.licence_url,
            id=model.id,
        )


def _download(model: Model, context: Context) -> Path:
    hub = _Hub(model)
    target = cache.cache_path(model)
    record = cache.recorded(model)
    wanted = model.revision or (record.revision if record else None)
    context.progress(0, Message("Looking up {label}", label=model.label))
    metadata = run_cancellable(lambda: hub.metadata(wanted or "main"), context)
    revision, size, etag = metadata.commit_hash, metadata.size, metadata.etag
    if not revision or not etag or not size:
        raise ClippanError(
            "{shown} does not answer as the Hugging Face Hub does; check HF_ENDPOINT, and whether a proxy or a log-in "
            "page of the network is in between.",
            shown=_public_endpoint(),
        )
    promised = etag if re.fullmatch("[0-9a-f]{64}", etag) else None  # weights are kept under their sha256
    expected = model.sha256 or (record.sha256 if record else None) or promised
    if promised and promised != expected:
        raise _checksum_error(model, "are another version than")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache.cache_unwritable(error) from error
    if not (
        expected and target.is_file() and target.stat().st_size == size and cache.checksum(target, context) == expected
    ):
        version = re.sub(r"\W", "", etag)[:16]
        part = target.with_name(f"{target.name}.{version}.part")
        for other in cache.partial_downloads(target):
            if other != part or other.stat().st_size > size:
                with contextlib.suppress(OSError):  # of another version, and in the way of nothing
                    other.unlink()
        _transfer(hub, part, revision, size, context)
        with _removed_unless_done(part):
            actual = cache.checksum(part, context, start=95)
            if part.stat().st_size != size or actual != (expected or actual):
                raise _checksum_error(model, "arrived damaged, or are not")
            try:
                part.replace(target)
            except OSError as error:
                raise cache.cache_unwritable(error) from error
    sha256 = expected or cache.checksum(target)
    cache.write_record(model, DownloadRecord(model.repository, model.file, revision, sha256, size))
    context.log(f"{model.label}, commit {revision}, is in {target}")
    return target


def _checksum_error(model: Model, what: str) -> ClippanError:
    return ClippanError(
        "The weights that {shown} sent for {label} {what} the expected ones (sha256) and were not kept; try again, "
        "and if that does not help check HF_ENDPOINT, or forget the recorded version (clippan remove {id}).",
        shown=_public_endpoint(),
        label=model.label,
        what=what,
        id=model.id,
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
    if shutil.disk_usage(part.parent).free < size - begun + _FREE_BYTES:
        raise _disk_full(hub.model, part, size)
    context.log(
        Message(
            "Downloading {size:.0f} MB from {shown}/{repository}, commit {revision}",
            size=size / 1000000.0,
            shown=_public_endpoint(),
            repository=hub.model.repository,
            revision=revision,
        )
    )
    if begun:
        context.log(f"{begun / 1e6:.0f} MB are here already; going on from there")
    keep = False
    try:
        with part.open("r+b" if begun else "wb") as file:
            for position, block in hub.blocks(revision, begun, size, context):
                file.seek(position)
                file.write(block)
                done = position + len(block)
                context.progress(95 * done / size, f"{hub.model.label}: {done / 1e6:.0f} of {size / 1e6:.0f} MB")
        keep = True
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise _disk_full(hub.model, part, size) from error
        raise cache.cache_unwritable(error) from error
    except Cancelled:
        raise
    except ClippanError:  # the network's; what came is good for the next try
        keep = part.stat().st_size > 0
        raise
    finally:
        if not keep:
            with contextlib.suppress(OSError):
                part.unlink()


def _disk_full(model: Model, part: Path, size: int) -> ClippanError:
    return ClippanError(
        "{label} takes {size:.0f} MB, for which the disk of {parent} has no space; make room, or choose another cache "
        "folder in the options (CLIPPAN_CACHE).",
        label=model.label,
        size=size / 1000000.0,
        parent=part.parent,
    )


class _Hub:
    """One model's repository on the Hub."""

    def __init__(self, model: Model) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import constants, utils
        except ImportError as error:
            reason = one_line(error)
            raise ClippanError(
                "The engine's Python cannot download models ({reason}); run Set up engine again.", reason=reason
            ) from error
        self.model = model
        self._hub, self._constants, self._utils = huggingface_hub, constants, utils
        utils.logging.set_verbosity_error()  # its warnings would come between our lines

    def metadata(self, revision: str) -> Any:
        """Commit, size and ETag of the file at a branch or commit.

        Raises:
            ClippanError: the Hub cannot be reached, or refuses.
        """
        try:
            return self._hub.get_hf_file_metadata(
                self._url(revision), timeout=_METADATA_SECONDS, library_name="clippan", library_version=__version__
            )
        except Exception as error:
            response = getattr(error, "response", None)
            if response is not None:
                raise self._answered(response) from error
            if not _is_network(error):
                raise
            raise ClippanError(
                "The Hugging Face Hub ({shown}) cannot be reached ({reason}); check the network, the proxy and "
                "HF_ENDPOINT, or put {name} into {offline}.",
                shown=_public_endpoint(),
                reason=_reason(error),
                name=Path(self.model.file).name,
                offline=self._offline(),
            ) from error

    def blocks(self, revision: str, position: int, size: int, context: Context) -> Iterator[tuple[int, bytes]]:
        """The rest of the file in blocks, each with its position; goes on after a cut.

        Args:
            revision: a commit.
            position: what is here already, in bytes.
            size: of the whole file, in bytes.
            context: may cancel, which is noticed within a tenth of a second.

        Raises:
            ClippanError: the storage refuses, or several requests in a row brought nothing.
        """
        tries = 0
        while position < size:
            stream, cut = self._stream(revision, position), "it ended early"
            try:
                while found := run_cancellable(functools.partial(next, stream, None), context):
                    yield found
                    position, tries = found[0] + len(found[1]), 0
            except Exception as error:
                if not _is_network(error):
                    raise
                cut = _reason(error)
            tries += 1
            if position < size:
                if tries == _MAX_FAILED_REQUESTS:
                    raise ClippanError(
                        "The download of {label} was cut after {position:.0f} of {size:.0f} MB ({cut}); start it "
                        "again, and it goes on from there.",
                        label=self.model.label,
                        position=position / 1000000.0,
                        size=size / 1000000.0,
                        cut=cut,
                    )
                run_cancellable(lambda: time.sleep(_PAUSE), context)

    def _stream(self, revision: str, position: int) -> Iterator[tuple[int, bytes]]:
        """What one request brings, as ``blocks`` has it."""
        headers = self._utils.build_hf_headers(library_name="clippan", library_version=__version__)
        headers["Accept-Encoding"] = "identity"  # compressed bytes have no ranges to go on from
        if position:
            headers["Range"] = f"bytes={position}-"
        # Redirects lead to storage elsewhere, to which the session does not send the token.
        with self._hub.get_session().stream(
            "GET", self._url(revision), headers=headers, timeout=self._constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            if response.status_code not in (200, 206):
                raise self._answered(response)
            if response.status_code == 200:
                position = 0  # a storage without ranges sends all again
            for block in response.iter_bytes(_BLOCK):
                yield position, block
                position += len(block)

    def _url(self, revision: str) -> str:
        return self._hub.hf_hub_url(self.model.repository, self.model.file, revision=revision, endpoint=endpoint())

    def _offline(self) -> str:
        folder = cache.offline_folder()
        place = f"the offline folder {folder}" if folder else "an offline folder (CLIPPAN_OFFLINE)"
        shared = sum(Path(model.file).name == Path(self.model.file).name for model in MODELS.values()) > 1
        return f"{self.model.repository.replace('/', '--')} in {place}" if shared else place

    def _answered(self, response: Any) -> ClippanError:
        """The sentence for an answer that is no success; codes as the Hub documents them."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        model, address = self.model, f"{_public_endpoint()}/{self.model.repository}"
        if "Invalid credentials" in response.headers.get("X-Error-Message", ""):
            code = ""
        if code == "GatedRepo" or (status == 403 and not code):
            return ClippanError(
                "{label} is given only to those who accepted its licence: accept it at {address}, then name your "
                "token in the options (HF token; HF_TOKEN on the command line).",
                label=model.label,
                address=address,
            )
        if code == "RevisionNotFound":
            return ClippanError(
                "The recorded version of {label} is no longer at {address}; update CLIPPan, or forget the version "
                "(clippan remove {id}) and download again.",
                label=model.label,
                address=address,
                id=model.id,
            )
        if code == "EntryNotFound":
            return ClippanError(
                "{address} has no file {file}; update CLIPPan, or choose another model, and tell us.",
                address=address,
                file=model.file,
            )
        if code == "RepoNotFound" or status == 404:
            return ClippanError(
                "There is no public repository {address}; update CLIPPan, check HF_ENDPOINT, or if it is private name "
                "your token in the options (HF token; HF_TOKEN on the command line).",
                address=address,
            )
        if status == 401:
            return ClippanError(
                "{shown} does not accept your token; make a new one there and name it in the options (HF token; "
                "HF_TOKEN on the command line).",
                shown=_public_endpoint(),
            )
        if status == 407:
            return ClippanError(
                "The proxy wants a user name and a password; enter them in the network settings of QGIS (HTTPS_PROXY "
                "on the command line)."
            )
        if status == 429:
            return ClippanError(
                "{shown} had too many requests from here; wait some minutes, or name a token in the options (HF "
                "token; HF_TOKEN on the command line).",
                shown=_public_endpoint(),
            )
        return ClippanError(
            "{shown} answered with error {status}; try again later, or check HF_ENDPOINT.",
            shown=_public_endpoint(),
            status=status,
        )


def _is_network(error: BaseException) -> bool:
    """Whether an error comes from the network, or from settings for it such as a proxy's address."""
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, (OSError, ValueError, ImportError)) or bool(modules & _NETWORK_PACKAGES)


def _reason(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"://[^/\s@]*@", "://", lines[0])[:200].rstrip(".")  # a proxy's password stays private
