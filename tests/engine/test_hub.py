"""Weights come from the Hub whole or not at all, at a recorded commit, and what goes wrong is one sentence."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import TOKEN, Repository, serving

from clippan import cli
from clippan.catalogue.models import MODELS
from clippan.clip import cache, hub
from clippan.core.errors import Cancelled, ClippanError
from clippan.handlers import run
from clippan.jobs import Context, DownloadModelRequest, ListModelsRequest, RemoveModelRequest

OLD, NEW = "a" * 40, "b" * 40
WEIGHTS, NEWER = random.Random(1).randbytes(300_000), random.Random(2).randbytes(300_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
REPOSITORY, FILE = "someone/TinyCLIP", "ckpt/Tiny.pt"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub with one repository, and this process set to use it."""
    for name in list(os.environ):
        if name.startswith(("HF_", "CLIPPAN_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    from huggingface_hub import constants

    monkeypatch.setenv("CLIPPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # another test may have imported it before
    monkeypatch.setattr(hub, "_BLOCK", 2**14)
    monkeypatch.setattr(hub, "_PAUSE", 0)
    with serving() as server:
        server.repositories[REPOSITORY] = Repository({OLD: {FILE: WEIGHTS}})
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture
def model(monkeypatch):
    tiny = dataclasses.replace(
        MODELS["remoteclip-b32"], id="tiny", label="Tiny", repository=REPOSITORY, file=FILE, revision=None, size=300_000
    )
    monkeypatch.setitem(MODELS, "tiny", tiny)
    return tiny


class Listening(Context):
    """A context that keeps what it is told."""

    def __init__(self, cancelled=None):
        self.lines, self.percents, self.messages = [], [], []
        super().__init__(self._tell, self.lines.append, cancelled)

    def _tell(self, percent, message):
        self.percents.append(percent)
        self.messages.append(message)


def files(tmp_path):
    """What the cache holds, but for locks."""
    found = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    return sorted(str(path.relative_to(tmp_path / "cache")) for path in found if path.suffix != ".lock")


WHOLE = ["models.lock.json", "models/someone--TinyCLIP/ckpt/Tiny.pt"]


def test_first_download(server, model, tmp_path):
    context = Listening()
    path = hub.fetch(model, context)
    assert path.read_bytes() == WEIGHTS
    assert files(tmp_path) == WHOLE
    assert "licence Apache-2.0: https://" in context.lines[0]
    assert context.percents == sorted(context.percents)
    assert (context.percents[0], context.percents[-1]) == (0, 100)
    lock = json.loads((tmp_path / "cache" / "models.lock.json").read_text())
    assert lock == {
        "tiny": {"repository": REPOSITORY, "file": FILE, "revision": OLD, "sha256": SHA256, "size": len(WEIGHTS)}
    }
    asked = len(server.seen)
    again = Listening()
    assert hub.fetch(model, again) == path
    assert (len(server.seen), again.lines) == (asked, [])


def test_a_recorded_commit_is_fetched_again_whatever_main_is(server, model):
    path = hub.fetch(model, Context())
    server.repositories[REPOSITORY].commits[NEW] = {FILE: NEWER}
    path.unlink()
    assert hub.fetch(model, Context()).read_bytes() == WEIGHTS
    assert f"/{REPOSITORY}/resolve/{OLD}/{FILE}" in {path for _, path, _ in server.seen[-3:]}
    # Once it is forgotten, main counts.
    cache.remove(model)
    assert hub.fetch(model, Context()).read_bytes() == NEWER
    assert cache.recorded(model).revision == NEW


def test_a_pinned_commit_is_the_one(server, model):
    server.repositories[REPOSITORY].commits[NEW] = {FILE: NEWER}
    pinned = dataclasses.replace(model, revision=OLD, sha256=SHA256)
    assert hub.fetch(pinned, Context()).read_bytes() == WEIGHTS
    # A release that pins another does not take the old file for it.
    pinned = dataclasses.replace(model, revision=NEW, sha256=None)
    assert cache.locate(pinned) is None
    assert hub.fetch(pinned, Context()).read_bytes() == NEWER


def test_weights_without_a_record_are_checked_not_fetched(server, model, tmp_path):
    hub.fetch(model, Context())
    (tmp_path / "cache" / "models.lock.json").write_text("{broken")
    del server.seen[:]
    assert hub.fetch(model, Context()).read_bytes() == WEIGHTS
    assert [method for method, _, _ in server.seen] == ["HEAD"]
    assert cache.recorded(model).sha256 == SHA256


def test_token_goes_to_the_hub_alone(server, model, monkeypatch):
    server.repositories[REPOSITORY].gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fetch(model, Context())
    sent = {(path.startswith("/blob/"), headers.get("authorization")) for _, path, headers in server.seen}
    assert sent == {(False, f"Bearer {TOKEN}"), (True, None)}


def test_a_renamed_repository_is_followed(server, model):
    server.repositories["else/New"] = server.repositories.pop(REPOSITORY)
    server.renamed[REPOSITORY] = "else/New"
    assert hub.fetch(model, Context()).read_bytes() == WEIGHTS


def test_a_proxy_from_the_environment_is_used(server, model, monkeypatch):
    import huggingface_hub

    huggingface_hub.close_session()  # its connections keep the proxy that they were made with
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    monkeypatch.setenv("HTTP_PROXY", server.address)
    monkeypatch.setenv("http_proxy", server.address)
    try:
        assert hub.fetch(model, Context()).read_bytes() == WEIGHTS
    finally:
        huggingface_hub.close_session()
    assert server.seen[0][2]["host"] == "hub.example"


def test_a_cut_is_mended_at_once(server, model, tmp_path):
    server.cut = [100_000, 50_000]
    assert hub.fetch(model, Context()).read_bytes() == WEIGHTS
    asked = server.ranges_asked()
    # Whole blocks of what came count.
    assert asked[0] is None
    assert [int(item.strip("bytes=-")) > 0 for item in asked[1:]] == [True] * (len(asked) - 1)
    assert files(tmp_path) == WHOLE


def test_a_lasting_cut_is_mended_at_the_next_try(server, model, tmp_path):
    server.cut = [100_000] + [0] * 20
    with pytest.raises(ClippanError, match=r"download of Tiny was interrupted after 0 of 0 MB \(.*\); start it again"):
        hub.fetch(model, Context())
    (part,) = (tmp_path / "cache").rglob("*.part")
    begun = part.stat().st_size
    assert 0 < begun <= 100_000
    assert part.read_bytes() == WEIGHTS[:begun]
    assert cache.cached_bytes() == begun
    server.cut = []
    del server.seen[:]
    assert hub.fetch(model, Context()).read_bytes() == WEIGHTS
    assert server.ranges_asked() == [f"bytes={begun}-"]
    assert files(tmp_path) == WHOLE


def test_a_storage_that_fails_on_the_way_costs_nothing(server, model, tmp_path):
    server.cut, server.refusals = [100_000], [0, 503]
    with pytest.raises(ClippanError, match="responded with error 503"):
        hub.fetch(model, Context())
    (part,) = (tmp_path / "cache").rglob("*.part")
    begun = part.stat().st_size
    assert hub.fetch(model, Context()).read_bytes() == WEIGHTS
    assert server.ranges_asked()[-1] == f"bytes={begun}-"


def test_a_part_of_another_version_is_dropped(server, model, tmp_path):
    server.cut = [100_000] + [0] * 20
    with pytest.raises(ClippanError, match="was interrupted"):
        hub.fetch(model, Context())
    server.cut = []
    server.repositories[REPOSITORY].commits[NEW] = {FILE: NEWER}
    assert hub.fetch(model, Context()).read_bytes() == NEWER
    assert files(tmp_path) == WHOLE


def test_a_storage_without_ranges_sends_all_again(server, model, tmp_path):
    server.cut, server.ranges = [100_000] + [0] * 20, False
    with pytest.raises(ClippanError, match="was interrupted"):
        hub.fetch(model, Context())
    server.cut = []
    assert hub.fetch(model, Context()).read_bytes() == WEIGHTS
    assert files(tmp_path) == WHOLE


def test_wrong_bytes_are_not_kept(server, model, tmp_path):
    server.damaged = True
    with pytest.raises(ClippanError, match=r"weights of Tiny from \S+ do not have the expected sha256"):
        hub.fetch(model, Context())
    assert files(tmp_path) == []


def test_other_weights_than_pinned_are_not_even_fetched(server, model, tmp_path):
    pinned = dataclasses.replace(model, sha256="0" * 64)
    with pytest.raises(ClippanError, match="do not have the expected sha256"):
        hub.fetch(pinned, Context())
    assert server.ranges_asked() == []
    assert files(tmp_path) == []


def gated(server, monkeypatch):
    server.repositories[REPOSITORY].gated = True


def gated_for_others(server, monkeypatch):
    gated(server, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "other")


def bad_token(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "nonsense")


def no_repository(server, monkeypatch):
    server.repositories.clear()


def no_file(server, monkeypatch):
    server.repositories[REPOSITORY].commits[NEW] = {}


def portal(server, monkeypatch):
    server.status = 200


def failing(server, monkeypatch):
    server.status = 503


def crowded(server, monkeypatch):
    server.status = 429


def proxy_login(server, monkeypatch):
    server.status = 407


def closed(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def nowhere(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://user:hidden@no.such.host.invalid")


def not_a_proxy(server, monkeypatch):
    import huggingface_hub

    huggingface_hub.close_session()
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "nonsense://user:hidden@127.0.0.1:9")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (gated, r"accept it at http://\S+/someone/TinyCLIP, then enter your token in the options \(Hub token"),
        (gated_for_others, r"available only to users who have accepted its licence"),
        (bad_token, r"does not accept your token; create a new one there"),
        (no_repository, r"There is no public repository http://\S+/someone/TinyCLIP; update CLIPPan"),
        (no_file, r"/someone/TinyCLIP has no file ckpt/Tiny.pt; update CLIPPan"),
        (portal, r"does not respond like the Hugging Face Hub; check HF_ENDPOINT, and whether a proxy"),
        (failing, r"responded with error 503; try again later"),
        (crowded, r"received too many requests from this computer; wait a few minutes"),
        (proxy_login, r"The proxy requires a user name and a password"),
        (closed, r"The Hugging Face Hub \(http://127.0.0.1:9\) cannot be reached \(.+\); check the network"),
        (
            nowhere,
            r"cannot be reached \(.+\); .*or save the weights as Tiny.pt in the offline folder \(CLIPPAN_OFFLINE\)",
        ),
        (not_a_proxy, r"cannot be reached \(.+\); check the network, the proxy"),
    ],
)
def test_what_goes_wrong_is_one_sentence(server, model, tmp_path, monkeypatch, fault, sentence):
    fault(server, monkeypatch)
    try:
        with pytest.raises(ClippanError, match=sentence) as caught:
            hub.fetch(model, Context())
    finally:
        monkeypatch.undo()
        import huggingface_hub

        huggingface_hub.close_session()
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert "hidden" not in text
    assert files(tmp_path) == []


def test_a_recorded_commit_that_is_gone(server, model):
    path = hub.fetch(model, Context())
    path.unlink()
    server.repositories[REPOSITORY].commits = {NEW: {FILE: NEWER}}
    with pytest.raises(
        ClippanError, match=r"no longer available at .*remove the recorded version \(clippan remove tiny\)"
    ):
        hub.fetch(model, Context())
    cache.remove(model)
    assert hub.fetch(model, Context()).read_bytes() == NEWER


def test_a_full_disk_is_seen_before(server, model, tmp_path, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ClippanError, match=r"Tiny needs 0 MB, more than the disk of .* has free; free some space"):
        hub.fetch(model, Context())
    assert server.ranges_asked() == []
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "sentence"), [(errno.ENOSPC, "has free; free some space"), (errno.EIO, "written to")]
)
def test_a_disk_that_fails_on_the_way_gets_its_space_back(server, model, tmp_path, monkeypatch, number, sentence):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 50_000:
                raise OSError(number, os.strerror(number))
            return super().write(data)

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *mode, **more: (Full if path.suffix == ".part" else opened)(path, *mode, **more)
    )
    with pytest.raises(ClippanError, match=sentence):
        hub.fetch(model, Context())
    assert files(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_cache_that_cannot_be_written(server, model, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(ClippanError, match="cannot be written to"):
        hub.fetch(model, Context())


def test_a_cache_that_is_a_file(server, model, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ClippanError, match=r"The cache folder .* cannot be written to \(.+\); choose another"):
        hub.fetch(model, Context())


def test_cancel_takes_effect_while_nothing_comes(server, model, tmp_path, quiet_seconds):
    server.stall = threading.Event()
    started = []

    def cancelled():
        if server.ranges_asked() and not started:
            started.append(time.monotonic())
        return bool(started) and time.monotonic() - started[0] > 0.3

    with pytest.raises(Cancelled):
        hub.fetch(model, Listening(cancelled))
    assert quiet_seconds(started[0]) < 1.3
    assert files(tmp_path) == []
    # The thread that was left alone writes into nothing that others use.
    server.stall.set()
    server.stall = None
    assert hub.fetch(model, Context()).read_bytes() == WEIGHTS


def test_two_at_once_download_once(server, model):
    server.stall = threading.Event()
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(hub.fetch(model, Context()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not server.ranges_asked():
        time.sleep(0.02)
    stall, server.stall = server.stall, None
    stall.set()  # the storage cuts, and sends the rest when asked again
    for thread in threads:
        thread.join(20)
    assert len(set(paths)) == 1
    assert len(paths) == 2
    assert paths[0].read_bytes() == WEIGHTS
    assert server.ranges_asked()[0] is None
    assert None not in server.ranges_asked()[1:]


def test_one_who_waits_for_another_can_cancel(server, model):
    with cache.locked("tiny"):
        answers = []

        def wait():
            with pytest.raises(Cancelled):
                hub.fetch(model, Context(cancelled=lambda: time.monotonic() > until))
            answers.append(True)

        until = time.monotonic() + 0.5
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(5)
    assert answers == [True]


def test_removing_what_another_downloads_is_refused(server, model, monkeypatch):
    with cache.locked("tiny"):
        monkeypatch.setattr(cache, "_LOCK_SECONDS", 0.3)
        error = []

        def remove():
            with pytest.raises(ClippanError, match="Another process is downloading the model") as caught:
                cache.remove(model)
            error.append(caught.value)

        thread = threading.Thread(target=remove)
        thread.start()
        thread.join(5)
    assert len(error) == 1


def test_a_licence_that_asks_for_it_has_to_be_accepted(server, model, monkeypatch):
    strict = dataclasses.replace(model, licence="llama3")
    context = Listening()
    with pytest.raises(ClippanError, match=r"licence llama3 of Tiny \(https://.*--accept-licence"):
        hub.fetch(strict, context)
    assert server.seen == []
    assert "llama3" in context.lines[0]
    assert hub.fetch(strict, Context(), accept_licence=True).read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["someone/TinyCLIP/ckpt/Tiny.pt", "someone--TinyCLIP/Tiny.pt", "Tiny.pt"])
def test_the_offline_folder_comes_first(server, model, tmp_path, monkeypatch, name):
    monkeypatch.setenv("CLIPPAN_OFFLINE", str(tmp_path / "offline"))
    path = tmp_path / "offline" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS)
    assert hub.fetch(model, Context()) == path
    assert server.seen == []
    assert hub.fetch(dataclasses.replace(model, sha256=SHA256), Context()) == path
    with pytest.raises(ClippanError, match="in the offline folder is damaged or another version"):
        hub.fetch(dataclasses.replace(model, sha256="0" * 64), Context())


def test_an_offline_folder_that_cannot_be_read(server, model, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPPAN_OFFLINE", str(tmp_path))
    (tmp_path / "Tiny.pt").write_bytes(WEIGHTS)

    def broken(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(cache, "checksum", broken)
    with pytest.raises(ClippanError, match=r"weights of Tiny cannot be read \(.*Permission denied"):
        hub.fetch(dataclasses.replace(model, sha256=SHA256), Context())


def test_a_copied_cache_is_an_offline_folder(server, model, tmp_path, monkeypatch):
    hub.fetch(model, Context())
    shutil.copytree(tmp_path / "cache" / "models", tmp_path / "offline")
    shutil.copy(tmp_path / "cache" / "models.lock.json", tmp_path / "offline")
    monkeypatch.setenv("CLIPPAN_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("CLIPPAN_OFFLINE", str(tmp_path / "offline"))
    del server.seen[:]
    result = run(DownloadModelRequest(model="tiny"))
    assert (result.revision, result.sha256) == (OLD, SHA256)
    assert server.seen == []
    Path(result.path).write_bytes(NEWER)
    with pytest.raises(ClippanError, match="damaged or another version"):
        hub.fetch(model, Context())


def test_a_name_of_many_models_needs_its_folder_offline(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPPAN_OFFLINE", str(tmp_path))
    model = MODELS["openai-b32"]
    (tmp_path / model.file).write_bytes(WEIGHTS)
    assert cache.locate(model) is None
    with pytest.raises(ClippanError, match="There is no public repository"):
        hub.fetch(model, Context())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ClippanError, match=r"timm--vit_base_patch32_clip_224.openai/\S+ in the offline folder "):
        hub.fetch(model, Context())
    (tmp_path / "timm--vit_base_patch32_clip_224.openai").mkdir()
    (tmp_path / model.file).rename(tmp_path / "timm--vit_base_patch32_clip_224.openai" / model.file)
    assert cache.locate(model).origin == "offline"


def test_list_download_and_remove(server, model, tmp_path):
    def row():
        return next(row for row in run(ListModelsRequest()).models if row.id == "tiny")

    assert (row().place, row().path, row().revision, row().size) == ("", None, None, 300_000)
    result = run(DownloadModelRequest(model="tiny"))
    assert (result.revision, result.sha256) == (OLD, SHA256)
    assert (row().place, row().path, row().revision, row().sha256) == ("cache", result.path, OLD, SHA256)
    assert run(ListModelsRequest()).size == len(WEIGHTS)
    # A file that was cut short afterwards does not count.
    Path(result.path).write_bytes(WEIGHTS[:1000])
    assert row().place == ""
    assert cache.cached_bytes() == 1000
    assert run(DownloadModelRequest(model="tiny")).sha256 == SHA256
    assert run(RemoveModelRequest(model="tiny")).freed == len(WEIGHTS)
    assert run(RemoveModelRequest(model="tiny")).freed == 0
    assert (row().place, row().revision) == ("", None)
    assert files(tmp_path) == ["models.lock.json"]
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_own_weights_are_not_removed(tmp_path, monkeypatch):
    path = tmp_path / "RemoteCLIP-ViT-B-32.pt"
    path.write_bytes(WEIGHTS)
    assert run(DownloadModelRequest(model=str(path))).path == str(path)
    with pytest.raises(ClippanError, match="is not a downloaded model"):
        run(RemoveModelRequest(model=str(path)))


def test_the_command(server, model, capsys):
    assert cli.main(["models"]) == 0
    out, err = capsys.readouterr()
    assert "tiny" in out
    assert err == ""
    assert cli.main(["download", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f"Tiny.pt.\nCommit {OLD}, sha256 {SHA256}\n")
    assert err.startswith("Tiny is published under the licence Apache-2.0: https://")
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert {row["id"]: row["place"] for row in rows}["tiny"] == "cache"
    assert cli.main(["remove", "tiny"]) == 0
    assert capsys.readouterr().out == "0 MB freed\n"
    assert cli.main(["remove", "tiny"]) == 0
    assert capsys.readouterr().out == "The model was not in the cache.\n"
    server.damaged = True
    assert cli.main(["download", "tiny"]) == 2
    assert "expected sha256" in capsys.readouterr().err
    assert cli.main(["download", "sputnik"]) == 2
    assert "Unknown model 'sputnik'; choose one of starter, farslip2-b16, " in capsys.readouterr().err


def test_a_process_of_its_own_asks_for_nothing_else(server, tmp_path):
    model = MODELS["lrsclip-b16"]
    server.repositories[model.repository] = Repository({OLD: {model.file: WEIGHTS}})
    command = [sys.executable, "-m", "clippan.cli", "download", model.id]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (made.returncode, made.stdout.splitlines()[-1]) == (0, f"Commit {OLD}, sha256 {SHA256}")
    assert [line.split()[0] for line in made.stderr.splitlines()] == ["LRSCLIP,", "Downloading", "LRSCLIP,"]
    assert [(method, path.rsplit("/", 1)[0]) for method, path, _ in server.seen] == [
        ("HEAD", f"/{model.repository}/resolve/main"),
        ("GET", f"/{model.repository}/resolve/{OLD}"),
        ("GET", "/blob"),
    ]
    assert not (tmp_path / "home").exists()
