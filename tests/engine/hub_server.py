"""A Hugging Face Hub on the loopback interface: the part of its HTTP protocol that downloads use.

As on the real one, ``/{repository}/resolve/{revision}/{file}`` answers with the file's commit, sha256 and size and
redirects to signed addresses on another host (here another port), which knows ranges and wants no token. What can go
wrong is switched on by attributes.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Optional
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "right"


@dataclass
class Repository:
    """Commits, the last of which is main, each with its files."""

    commits: dict[str, dict[str, bytes]]
    gated: bool = False


@dataclass
class Hub:
    """The state of the server, and what it was asked.

    Attributes:
        repositories: by name.
        renamed: old names of repositories, and their new ones.
        seen: requests as (method, path, headers), those to the storage with paths that begin with "/blob/".
        cut: after how many bytes the storage cuts each of the next connections.
        damaged: the storage sends other bytes.
        ranges: the storage knows ranges.
        stall: the storage sends half of the bytes and then waits for this event.
        refusals: statuses with which the storage answers next, 0 for none.
        status: every question is answered with this instead.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    damaged: bool = False
    ranges: bool = True
    stall: Optional[threading.Event] = None
    refusals: list[int] = field(default_factory=list)
    status: int = 0
    address: str = ""
    storage: str = ""

    def ranges_asked(self) -> list[Optional[str]]:
        """The Range headers of the requests to the storage, in order."""
        return [headers.get("range") for _, path, headers in self.seen if path.startswith("/blob/")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # who cancels hangs up
            super().handle()

    def do_HEAD(self) -> None:
        self._question()

    def do_GET(self) -> None:
        self._question()

    def _question(self) -> None:
        path = unquote(urlsplit(self.path).path)  # a proxy is asked for whole addresses
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.seen.append((self.command, path, headers))
        if path.startswith("/blob/"):
            self._bytes(path.rsplit("/", 1)[-1], headers)
        elif self.hub.status:
            self._answer(self.hub.status, b"<html>Log in</html>")
        else:
            self._resolve(path, headers.get("authorization"))

    def _resolve(self, path: str, authorization: Optional[str]) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        assert match, path
        name, revision, file = match.groups()
        if name in self.hub.renamed:
            self._answer(307, Location=path.replace(name, self.hub.renamed[name]))
            return
        repository = self.hub.repositories.get(name)
        if authorization not in (None, f"Bearer {TOKEN}", "Bearer other"):
            self._answer(401, **{"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None:
            self._answer(401 if authorization is None else 404, **{"X-Error-Code": "RepoNotFound"})
        elif repository.gated and authorization != f"Bearer {TOKEN}":
            self._answer(401 if authorization is None else 403, **{"X-Error-Code": "GatedRepo"})
        else:
            commit = list(repository.commits)[-1] if revision == "main" else revision
            content = repository.commits.get(commit, {}).get(file)
            if commit not in repository.commits:
                self._answer(404, **{"X-Error-Code": "RevisionNotFound"})
            elif content is None:
                self._answer(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            else:
                sha256 = hashlib.sha256(content).hexdigest()
                self._answer(
                    302,
                    Location=f"{self.hub.storage}/blob/{sha256}?Signature=secret",
                    ETag=f'"{sha256[:32]}"',
                    **{
                        "X-Repo-Commit": commit,
                        "X-Linked-Etag": f'"{sha256}"',
                        "X-Linked-Size": str(len(content)),
                        # Most repositories offer Xet beside plain storage; we take the plain one.
                        "X-Xet-Hash": sha256,
                        "Link": f'<{self.hub.address}/api/models/{name}/xet-read-token/{commit}>; rel="xet-auth"',
                    },
                )

    def _bytes(self, sha256: str, headers: dict[str, str]) -> None:
        refusal = self.hub.refusals.pop(0) if self.hub.refusals else 0
        if refusal:
            self._answer(refusal)
            return
        contents = [
            content
            for repository in self.hub.repositories.values()
            for files in repository.commits.values()
            for content in files.values()
        ]
        content = next(item for item in contents if hashlib.sha256(item).hexdigest() == sha256)
        total, begin = len(content), 0
        if self.hub.damaged:
            content = bytes(total)
        match = re.fullmatch(r"bytes=(\d+)-", headers.get("range", "")) if self.hub.ranges else None
        if match:
            begin = int(match.group(1))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - begin))
        self.end_headers()
        content = content[begin:]
        if self.hub.cut:
            self.wfile.write(content[: self.hub.cut.pop(0)])
            self.close_connection = True
        elif self.hub.stall:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.hub.stall.wait(20)
            self.close_connection = True
        else:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A Hub at ``address``, and its storage at another port."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.address, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        if hub.stall:
            hub.stall.set()
        for server in servers:
            server.shutdown()
            server.server_close()
