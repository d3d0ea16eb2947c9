"""Downloads weights from the Hugging Face Hub at a recorded commit: resumable, verified, with progress and cancel.

Addresses, metadata, token and the HTTP session with its proxies and certificates come from huggingface_hub. Its
``hf_hub_download`` is not used because it deletes the file of an interrupted download (huggingface_hub issue 4196) and
does not check the sha256.
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
from clippan.catalogue.models import Model
from clippan.clip import cache
from clippan.clip.cache import DownloadRecord
from clippan.core.cancellable import run_cancellable
from clippan.core.context import Context
from clippan.core.errors import Cancelled, ClippanError, one_line
from clippan.core.messages import Message

HUB = "https://huggingface.co"
_PERMISSIVE = re.compile(r"(MIT|Apache-2\.0|BSD(-\d-Clause)?|CC-BY-\d\.\d|CC0-1\.0)", re.IGNORECASE)
_BLOCK = 2**20  # bytes between reports of progress; an interruption loses at most one block
_MAX_FAILED_REQUESTS = 6  # requests in a row without data, after which a download fails
_PAUSE = 1.0  # seconds between failed requests
_METADATA_SECONDS = 10
_FREE_BYTES = 2**24  # that a download leaves on the disk
_NETWORK_PACKAGES = {"httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub"}

# huggingface_hub reads this at import; without it, it downloads a list of programs to identify the caller.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def fetch(model: Model, context: Context, accept_licence: bool = False) -> Path:
    """Path of a model's weights, taken from the offline folder or the cache, or downloaded from the Hub.

    Before a download the licence is logged; one that requires more than attribution has to be accepted.

    Raises:
        ClippanError: the weights cannot be found or downloaded.
        Cancelled: the user cancelled; the partial download is deleted.
    """
    found = cache.locate(model, context)
    if found is not None:
        return found.path
    if model.path is not None:
        raise ClippanError(
            "The weights {path} are missing; reinstall CLIPPan, or choose another model.", path=model.path
        )
    _show_licence(model, context, accept_licence)
    with cache.locked(model.id, context):
        found = cache.locate(model, context)  # another process may have fetched it meanwhile
        return found.path if found is not None else _download(model, context)


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, which huggingface_hub reads only when it is imported, or the default."""
    return (os.environ.get("HF_ENDPOINT", "").strip() or HUB).rstrip("/")


def _public_endpoint() -> str:
    return _without_password(endpoint())


def _without_password(text: str) -> str:
    return re.sub(r"://[^/\s@]*@", "://", text)


def _show_licence(model: Model, context: Context, accepted: bool) -> None:
    context.log(
        Message(
            "{label} is published under the licence {licence}: {url}",
            label=model.label,
            licence=model.licence,
            url=model.licence_url,
        )
    )
    if not (accepted or _PERMISSIVE.fullmatch(model.licence)):
        raise ClippanError(
            "The licence {licence} of {label} ({url}) has to be accepted before the download; read it, then download "
            "the model with the licence accepted (clippan download {id} --accept-licence).",
            label=model.label,
            licence=model.licence,
            url=model.licence_url,
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
            "{address} does not respond like the Hugging Face Hub; check HF_ENDPOINT, and whether a proxy or a login "
            "page of the network intervenes.",
            address=_public_endpoint(),
        )
    promised = etag if re.fullmatch("[0-9a-f]{64}", etag) else None  # the Hub stores weights under their sha256
    expected = model.sha256 or (record.sha256 if record else None) or promised
    if promised and promised != expected:
        raise _checksum_error(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache.cache_unwritable(error) from error
    complete = expected and target.is_file() and target.stat().st_size == size
    if not (complete and cache.checksum(target, context) == expected):
        version = re.sub(r"\W", "", etag)[:16]
        partial = target.with_name(f"{target.name}.{version}.part")
        for other in cache.partial_downloads(target):
            if other != partial or other.stat().st_size > size:
                with contextlib.suppress(OSError):  # left by another version
                    other.unlink()
        _transfer(hub, partial, revision, size, context)
        try:
            actual = cache.checksum(partial, context, start=95)
            if partial.stat().st_size != size or actual != (expected or actual):
                raise _checksum_error(model)
            partial.replace(target)
        except OSError as error:
            raise cache.cache_unwritable(error) from error
        finally:
            with contextlib.suppress(OSError):  # renamed if all went well
                partial.unlink()
    sha256 = expected or cache.checksum(target)
    cache.write_record(model, DownloadRecord(model.repository, model.file, revision, sha256, size))
    context.log(
        Message("{label}, commit {revision}, was saved as {path}.", label=model.label, revision=revision, path=target)
    )
    return target


def _checksum_error(model: Model) -> ClippanError:
    return ClippanError(
        "The weights of {label} from {address} do not have the expected sha256 and were not kept; try again, check "
        "HF_ENDPOINT, or remove the recorded version (clippan remove {id}).",
        address=_public_endpoint(),
        label=model.label,
        id=model.id,
    )


def _transfer(hub: _Hub, partial: Path, revision: str, size: int, context: Context) -> None:
    """Downloads the rest of a partial file; keeps it if the connection is lost, and deletes it if the user cancels."""
    begun = partial.stat().st_size if partial.is_file() else 0
    if shutil.disk_usage(partial.parent).free < size - begun + _FREE_BYTES:
        raise _disk_full(hub.model, partial, size)
    context.log(
        Message(
            "Downloading {size:.0f} MB from {address}/{repository}, commit {revision}",
            size=size / 1e6,
            address=_public_endpoint(),
            repository=hub.model.repository,
            revision=revision,
        )
    )
    if begun:
        context.log(Message("Resuming the download after {size:.0f} MB.", size=begun / 1e6))
    keep = False
    try:
        with partial.open("r+b" if begun else "wb") as file:
            for position, block in hub.blocks(revision, begun, size, context):
                file.seek(position)
                file.write(block)
                done = position + len(block)
                progress = Message(
                    "{label}: {done:.0f} of {size:.0f} MB", label=hub.model.label, done=done / 1e6, size=size / 1e6
                )
                context.progress(95 * done / size, progress)
        keep = True
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise _disk_full(hub.model, partial, size) from error
        raise cache.cache_unwritable(error) from error
    except Cancelled:
        raise
    except ClippanError:  # of the network: the next download resumes from the partial file
        keep = partial.stat().st_size > 0
        raise
    finally:
        if not keep:
            with contextlib.suppress(OSError):
                partial.unlink()


def _disk_full(model: Model, partial: Path, size: int) -> ClippanError:
    return ClippanError(
        "{label} needs {size:.0f} MB, more than the disk of {folder} has free; free some space, or choose another "
        "cache folder in the options (CLIPPAN_CACHE).",
        label=model.label,
        size=size / 1e6,
        folder=partial.parent,
    )


class _Hub:
    """A model's repository on the Hub."""

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
        utils.logging.set_verbosity_error()  # its warnings would break up our JSON lines

    def metadata(self, revision: str) -> Any:
        """Commit, size and ETag of the file at a branch or commit."""
        try:
            return self._hub.get_hf_file_metadata(
                self._url(revision), timeout=_METADATA_SECONDS, library_name="clippan", library_version=__version__
            )
        except Exception as error:
            response = getattr(error, "response", None)
            if response is not None:
                raise self._response_error(response) from error
            if not _is_network(error):
                raise
            raise ClippanError(
                "The Hugging Face Hub ({address}) cannot be reached ({reason}); check the network, the proxy and "
                "HF_ENDPOINT, or save the weights as {path} in the offline folder (CLIPPAN_OFFLINE).",
                address=_public_endpoint(),
                reason=_reason(error),
                path=cache.offline_candidates(self.model, cache.offline_folder() or Path())[-1],
            ) from error

    def blocks(self, revision: str, position: int, size: int, context: Context) -> Iterator[tuple[int, bytes]]:
        """Blocks of the file from a byte position to its size, each with its position; reconnects after interruptions.

        Cancelling takes effect within 0.1 s.

        Raises:
            ClippanError: the storage refuses the request, or several requests in a row returned no data.
        """
        tries = 0
        while position < size:
            stream, cut = self._stream(revision, position), "the connection ended early"
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
                        "The download of {label} was interrupted after {done:.0f} of {size:.0f} MB ({reason}); start "
                        "it again to resume it.",
                        label=self.model.label,
                        done=position / 1e6,
                        size=size / 1e6,
                        reason=cut,
                    )
                run_cancellable(lambda: time.sleep(_PAUSE), context)

    def _stream(self, revision: str, position: int) -> Iterator[tuple[int, bytes]]:
        headers = self._utils.build_hf_headers(library_name="clippan", library_version=__version__)
        headers["Accept-Encoding"] = "identity"  # compressed responses cannot be resumed
        if position:
            headers["Range"] = f"bytes={position}-"
        # Redirects lead to storage elsewhere, to which the session does not send the token.
        with self._hub.get_session().stream(
            "GET", self._url(revision), headers=headers, timeout=self._constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            if response.status_code not in (200, 206):
                raise self._response_error(response)
            if response.status_code == 200:
                position = 0  # the storage does not support ranges and sends the whole file
            for block in response.iter_bytes(_BLOCK):
                yield position, block
                position += len(block)

    def _url(self, revision: str) -> str:
        return self._hub.hf_hub_url(self.model.repository, self.model.file, revision=revision, endpoint=endpoint())

    def _response_error(self, response: Any) -> ClippanError:
        """The error for an unsuccessful response; error codes as documented by the Hub."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        address = f"{_public_endpoint()}/{self.model.repository}"
        if "Invalid credentials" in response.headers.get("X-Error-Message", ""):
            code = ""
        if code == "GatedRepo" or (status == 403 and not code):
            sentence = Message(
                "{label} is available only to users who have accepted its licence; accept it at {address}, then enter "
                "your token in the options (Hub token; HF_TOKEN on the command line)."
            )
        elif code == "RevisionNotFound":
            sentence = Message(
                "The recorded version of {label} is no longer available at {address}; update CLIPPan, or remove the "
                "recorded version (clippan remove {id}) and download the model again."
            )
        elif code == "EntryNotFound":
            sentence = Message(
                "{address} has no file {file}; update CLIPPan, or choose another model, and report the problem."
            )
        elif code == "RepoNotFound" or status == 404:
            sentence = Message(
                "There is no public repository {address}; update CLIPPan, check HF_ENDPOINT, or, if the repository is "
                "private, enter your token in the options (Hub token; HF_TOKEN on the command line)."
            )
        else:
            address = _public_endpoint()
            sentence = Message("{address} responded with error {status}; try again later, or check HF_ENDPOINT.")
            if status == 401:
                sentence = Message(
                    "{address} does not accept your token; create a new one there and enter it in the options (Hub "
                    "token; HF_TOKEN on the command line)."
                )
            elif status == 407:
                sentence = Message(
                    "The proxy requires a user name and a password; enter them in the network settings of QGIS "
                    "(HTTPS_PROXY on the command line)."
                )
            elif status == 429:
                sentence = Message(
                    "{address} received too many requests from this computer; wait a few minutes, or enter a token in "
                    "the options (Hub token; HF_TOKEN on the command line)."
                )
        model = self.model
        return ClippanError(sentence, label=model.label, address=address, id=model.id, file=model.file, status=status)


def _is_network(error: BaseException) -> bool:
    """Whether an error comes from the network or its settings, such as a proxy's address."""
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, (OSError, ValueError, ImportError)) or bool(modules & _NETWORK_PACKAGES)


def _reason(error: BaseException) -> str:
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return _without_password(lines[0])[:200].rstrip(".")
