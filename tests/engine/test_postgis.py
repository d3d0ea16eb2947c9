"""The catalogue in PostgreSQL answers as the file does, is shared, and says in one sentence what is wrong.

On a real server: one that is installed with PostGIS and pgvector, or one that is put together in build/ from
Debian's packages, without installing anything. It listens on a port of its own, and is gone after the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
from conftest import UTM, truth, write_raster
from osgeo import ogr, osr

from clippan import resources
from clippan.core.device import Device
from clippan.core.errors import ClippanError
from clippan.handlers import index as build
from clippan.handlers import run
from clippan.handlers import search as query
from clippan.jobs import AboutIndexRequest, Context, IndexRequest, SearchRequest
from clippan.raster.tiles import Window
from clippan.search import backends, geopackage, postgis
from clippan.search.tile_index import IndexedRaster, IndexedTile, IndexInfo, TileFilter

psycopg = pytest.importorskip("psycopg")

PREFIX = Path(__file__).parents[2] / "build" / "postgres"
NOBODY = 65534  # PostgreSQL does not run as root
ADMIN, ANALYST = "admin", "ana lyst"
SECRET = "s3/cr@t:%?#"
WIDTH = 32
ABOUT = IndexInfo("tiny", "Tiny", "ab" * 32, WIDTH, 64, "")


# The server


def call(*command, **options):
    """What a program prints; skips with its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no PostgreSQL with PostGIS and pgvector here, and {command[0]} does not run ({error})")
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        pytest.skip(f"no PostgreSQL with PostGIS and pgvector here: {command[0]} {command[1]} says {last}")
    return done.stdout


def programs():
    """The folder of a server's programs that has both extensions, and the folder of its libraries."""
    for folder in [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), assembled()]:
        if not (folder / "initdb").exists() or not (folder / "pg_config").exists():
            continue
        extensions = Path(call(str(folder / "pg_config"), "--sharedir").strip()) / "extension"
        if all((extensions / f"{name}.control").exists() for name in ("postgis", "vector")):
            return folder
    pytest.skip("no PostgreSQL with PostGIS and pgvector here, nor among Debian's packages")


def assembled():
    """A server unpacked from Debian's or Ubuntu's packages, as those of this system would be installed."""
    if not PREFIX.exists():
        (PREFIX.parent).mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PREFIX.parent) as folder:
            unpack(Path(folder))
            (Path(folder) / "root").rename(PREFIX)
    return next((PREFIX / "usr/lib/postgresql").glob("*/bin"))


def unpack(folder):
    """Fetches and unpacks the packages. pgvector, which Debian 12 lacks, is compiled from Debian 13's source."""
    for name in ("lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True)
    apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
    apt += ["-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20"]
    call(*apt, "update")
    known = call("apt-cache", *apt[2:], "pkgnames", "postgresql-").split()
    versions = [
        int(name.split("-")[1]) for name in known if name.endswith("-postgis-3") and name.split("-")[1].isdigit()
    ]
    if not versions:
        pytest.skip("no PostgreSQL with PostGIS among this system's packages")
    main = f"postgresql-{max(versions)}"
    names = {main, f"postgresql-client-{max(versions)}", f"{main}-postgis-3", f"{main}-postgis-3-scripts"}
    packaged = f"{main}-pgvector" in known
    names.add(f"{main}-pgvector" if packaged else f"postgresql-server-dev-{max(versions)}")
    wanted = call(*apt, "-s", "--no-install-recommends", "install", main, f"{main}-postgis-3")
    names |= {line.split()[1] for line in wanted.splitlines() if line.startswith("Inst ")}
    call(*apt, "download", *sorted(names), cwd=folder)
    for package in folder.glob("*.deb"):
        call("dpkg", "-x", str(package), str(folder / "root"))
    (share,) = (folder / "root/usr/share/postgresql").glob("*/extension")
    if not (share / "postgis.control").exists():  # the packages make this link when they are installed
        (share / "postgis.control").symlink_to("postgis-3.control")
    if not packaged:
        compile_pgvector(folder, apt, folder / "root/usr/lib/postgresql" / str(max(versions)) / "bin/pg_config")


def compile_pgvector(folder, apt, pg_config):
    mirrors = call(*apt, "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)").splitlines()
    debian = [line.split()[2] for line in mirrors if line.startswith("Debian bookworm ")]
    if not debian:
        pytest.skip("no pgvector among this system's packages")
    source = folder / "source.sources"
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    source.write_text(f"Types: deb-src\nURIs: {debian[0]}\nSuites: trixie\nComponents: main\nSigned-By: {key}\n")
    apt = [*apt, "-o", f"Dir::Etc::SourceList={source}", "-o", "Dir::Etc::SourceParts=/dev/null"]
    call(*apt, "update")
    call(*apt, "source", "--download-only", "pgvector", cwd=folder)
    (archive,) = folder.glob("pgvector_*.orig.tar.gz")
    call("tar", "xf", str(archive), cwd=folder)
    (tree,) = (path for path in folder.glob("pgvector*") if path.is_dir())
    make = ["make", "-j2", "with_llvm=no", "OPTFLAGS=", f"PG_CONFIG={pg_config}"]
    call(*make, "install", cwd=tree)


class Server:
    """A running PostgreSQL."""

    def __init__(self, folder, binaries):
        self.folder = folder
        self.root = os.name == "posix" and os.geteuid() == 0
        if self.root and PREFIX in binaries.parents:  # the checkout may be closed to others
            shutil.copytree(PREFIX / "usr", folder / "usr", symlinks=True)
            binaries = folder / "usr" / binaries.relative_to(PREFIX / "usr")
        self.binaries = binaries
        libraries = [
            str(path) for path in (folder / "usr/lib", PREFIX / "usr/lib") for path in path.glob("*-linux-gnu")
        ]
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": ":".join(libraries)}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def run(self, program, *arguments):
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if self.root else []
        # What it starts keeps the pipes of its output open.
        with (self.folder / "output").open("a+") as output:
            done = subprocess.run(
                [*user, str(self.binaries / program), "-D", str(self.folder / "data"), *arguments],
                stdout=output,
                stderr=output,
                timeout=60,
                env=self.environment,
                cwd=self.folder,
            )
        if done.returncode:
            pytest.skip(f"{program} failed: {(self.folder / 'output').read_text()[-300:]}")

    def start(self):
        secret = self.folder / "secret"
        secret.write_text(SECRET)
        if self.root:
            self.folder.chmod(0o755)
            for path in (self.folder, secret):
                os.chown(path, NOBODY, NOBODY)
        self.run("initdb", "-N", "-E", "UTF8", "-U", ADMIN, "-A", "scram-sha-256", f"--pwfile={secret}")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self.run("pg_ctl", "-w", "-o", options, "-l", str(self.folder / "log"), "start")
        self.execute("CREATE ROLE {} LOGIN PASSWORD {}", ANALYST, text=SECRET)

    def url(self, schema="", user=ADMIN, password=SECRET, database="postgres", host="127.0.0.1", port=None):
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{login}@{host}:{port or self.port}/{database}" + f"?schema={schema}" * bool(schema)

    def execute(self, statement, *names, text=None, database="postgres"):
        """Runs a statement as the administrator; returns its rows."""
        with psycopg.connect(self.url(database=database), autocommit=True) as connection:
            parts = [psycopg.sql.Identifier(name) for name in names]
            parts += [] if text is None else [psycopg.sql.Literal(text)]
            cursor = connection.execute(psycopg.sql.SQL(statement).format(*parts))
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def server():
    binaries = programs()
    folder = Path(tempfile.mkdtemp(prefix="clippan-postgres-"))
    server = Server(folder, binaries)
    try:
        server.start()
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def name(server, request):
    """The address of a catalogue that is not there yet."""
    schema = f"test {request.node.name[:40]}"
    yield server.url(quote(schema))
    for known in postgis._open.values():
        known.database.close()
    postgis._open.clear()
    server.execute("DROP SCHEMA IF EXISTS {} CASCADE", schema)


@pytest.fixture
def database(server):
    """A database without the extensions, of its own."""
    server.execute("CREATE DATABASE bare")
    yield "bare"
    for known in postgis._open.values():
        known.database.close()
    postgis._open.clear()
    server.execute("DROP DATABASE bare WITH (FORCE)")


def refused(function):
    """The sentence with which something is refused; the password is not even in the traceback."""
    with pytest.raises(ClippanError) as caught:
        function()
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    for part in (SECRET, quote(SECRET, safe=""), "cr@t", "s3/", "hidden"):
        assert part not in "".join(traceback.format_exception(None, caught.value, caught.value.__traceback__))
    return text


# What is in it


def wkt(code=UTM):
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(code)
    return reference.ExportToWkt()


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def raster(path, tiles, date=""):
    return IndexedRaster(0, path, '{"tile": [10]}', "mark", ((0.5, 100.25), (1.0, 2.0)), date, 0, tiles)


def square(number, left, top, edge, scale=None):
    outline = (left, top, left + edge, top, left + edge, top - edge, left, top - edge)
    return IndexedTile(
        0, number, Window(int(left) % 1000, 7, 10, 12), scale or edge, tuple(float(value) for value in outline)
    )


def fill(name, about=ABOUT, crs=None, count=400):
    """An index of two rasters with tiles at two scales, and one whose tiles have no place; returns its vectors."""
    vectors = unit(np.random.default_rng(3).normal(size=(count + 25 + 10, about.embedding_dim)))
    with backends.open_writer(name, about) as index:
        index.create(wkt() if crs is None else crs)
        one, two, three = index.put_rasters(
            [raster("/data/one.tif", count, "2021-06-30"), raster("/data/two.tif", 25), raster("/data/three.png", 20)]
        )
        tiles = [square(one.id, 500000 + 100 * (i % 20), 5000000 - 100 * (i // 20), 100) for i in range(count)]
        tiles += [square(two.id, 500000 + 400 * (i % 5), 5000000 - 400 * (i // 5), 400) for i in range(25)]
        tiles += [replace(square(three.id, 0, 0, 10), outline=())] * 10
        index.commit_tiles(tiles[:300], vectors[:300], {one.id: 300})
        index.commit_tiles(tiles[300:], vectors[300:], {one.id: count, two.id: 25, three.id: 10})
    return vectors


@pytest.fixture
def both(name, tmp_path):
    """The same index as a file and in the database, and its vectors."""
    path = str(tmp_path / "index.gpkg")
    fill(path)
    vectors = fill(name)
    return backends.open_reader(path), backends.open_reader(name), vectors


FILTERS = {
    "all": TileFilter(),
    "raster": TileFilter(frozenset({2})),
    "rasters": TileFilter(frozenset({1, 3, 99})),
    "none": TileFilter(frozenset()),
    # Along the borders of tiles, which do not reach into it.
    "extent": TileFilter(boxes=((500100.0, 4999700.0, 500400.0, 4999900.0),)),
    "part": TileFilter(frozenset({1}), ((500050.0, 4998000.0, 501250.0, 4999950.0),)),
    "two": TileFilter(boxes=((500100.0, 4999700.0, 500400.0, 4999900.0), (501000.0, 4998000.0, 501250.0, 4999950.0))),
    "elsewhere": TileFilter(boxes=((0.0, 0.0, 1.0, 1.0),)),
}


@pytest.mark.slow
def test_the_same_as_the_file(both):
    file, shared, vectors = both
    assert shared.info == file.info
    assert {number: replace(item, path="") for number, item in shared.rasters.items()} == {
        number: replace(item, path="") for number, item in file.rasters.items()
    }
    assert [item.path for item in shared.rasters.values()] == ["/data/one.tif", "/data/two.tif", "/data/three.png"]
    assert (shared.count, shared.extent, shared.complete) == (435, file.extent, False)
    ids = [400, 7, 401, 430, 10**9, 1]
    assert shared.tiles(ids) == file.tiles(ids)
    assert len(shared.tiles(ids)) == 5
    wanted = np.array([400, 7, 7, 1])
    np.testing.assert_array_equal(shared.vectors(wanted), file.vectors(wanted))
    np.testing.assert_allclose(shared.vectors(wanted), vectors[wanted - 1], atol=1e-3)
    assert shared.vectors(np.array([], np.int64)).shape == (0, WIDTH)
    np.testing.assert_array_equal(shared.sample(10**6), file.sample(10**6))
    assert len(shared.sample(100)) == pytest.approx(100, abs=10)
    assert shared.sample(100) is shared.sample(100)


@pytest.mark.parametrize("place", [(500150.0, 4999850.0), (500010.0, 4999990.0), (500100.0, 4999900.0), (0.0, 0.0)])
def test_a_place_is_the_same(both, place):
    file, shared, _ = both
    found = shared.tile_at(*place)
    expected = file.tile_at(*place)
    if expected is None or place == (500100.0, 4999900.0):  # four tiles are equally near
        assert (found is None) == (expected is None)
        assert found is None or found.edge_length == 100
    else:
        assert found == expected


def test_the_smallest_tile_of_several_the_one_around_a_place(name, tmp_path):
    for index_name in (name, str(tmp_path / "index.gpkg")):
        with backends.open_writer(index_name, ABOUT) as index:
            index.create(wkt())
            (one,) = index.put_rasters([raster("/data/one.tif", 4)])
            places = [(0, 0, 400), (150, -100, 100), (110, -110, 100), (190, -190, 100)]
            tiles = [square(one.id, left, top, edge) for left, top, edge in places]
            index.commit_tiles(tiles, np.ones((4, WIDTH)), {one.id: 4})
        assert backends.open_reader(index_name).tile_at(165.0, -165.0).id == 3


@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
def test_a_filter_is_the_same(both, wanted):
    file, shared, vectors = both
    np.testing.assert_array_equal(shared.tile_ids(wanted), file.tile_ids(wanted))
    directions = unit(np.random.default_rng(4).normal(size=(3, WIDTH)))
    for count in (5, 40, 1000):
        found, size = shared.candidates(directions, wanted, count)
        expected, number = file.candidates(directions, wanted, count)
        assert size == number
        assert found.dtype == np.int64
        if size <= count:
            np.testing.assert_array_equal(found, expected)
            continue
        # The file's products are rounded to halves: what is not in both is at the limit.
        allowed = file.tile_ids(wanted)
        products = vectors @ directions.T
        limit = np.sort(products[allowed - 1], axis=0)[-count]
        for number in np.setxor1d(found, expected):
            assert np.abs(products[number - 1] - limit).min() < 2e-3
        sure = [number for number in allowed if (products[number - 1] > limit + 2e-3).any()]
        assert set(sure) <= set(found.tolist())
        assert count <= len(found) <= 3 * count


def test_an_index_is_gone_on_with(name):
    fill(name)
    with backends.open_writer(name, replace(ABOUT, label="Renamed")) as index:
        assert index.exists
        assert (index.info.label, index.info.crs) == ("Tiny", wkt())
        assert {number: (item.path, item.done) for number, item in index.rasters.items()} == {
            1: ("/data/one.tif", 400),
            2: ("/data/two.tif", 25),
            3: ("/data/three.png", 10),
        }
        assert [index.tile_counts[number] for number in (1, 2, 3)] == [400, 25, 10]
        (moved,) = index.put_rasters([replace(index.rasters[2], path="/elsewhere/two.tif")])
        assert (moved.id, index.rasters[2].path) == (2, "/elsewhere/two.tif")
        assert index.drop_raster(1) == 400
        assert 1 not in index.rasters
        (new,) = index.put_rasters([raster("/data/four.tif", 2)])
        assert new.id not in (1, 2, 3)
        index.commit_tiles([square(new.id, 0, 0, 5)], np.ones((1, WIDTH)), {new.id: 1})
        index.commit_tiles([], np.empty((0, WIDTH)), {new.id: 2})
        assert index.tile_counts[new.id] == 1
        assert index.put_rasters([]) == []
    shared = backends.open_reader(name)
    assert shared.count == 36
    assert {item.path: (item.done, item.planned) for item in shared.rasters.values()} == {
        "/elsewhere/two.tif": (25, 25),
        "/data/three.png": (10, 20),
        "/data/four.tif": (2, 2),
    }


def test_a_job_that_fails_leaves_nothing(server, name):
    with contextlib.suppress(KeyError), backends.open_writer(name, ABOUT) as index:
        assert not index.exists
        raise KeyError
    assert "There is no catalogue test " in refused(lambda: backends.open_reader(name))
    with backends.open_writer(name, ABOUT) as index:
        index.create("")
        index.put_rasters([raster("/data/one.tif", 1)])
        index.discard()
        assert not index.exists
    assert server.execute("SELECT 1 FROM pg_namespace WHERE nspname LIKE 'test %'") == []


def test_a_schema_that_was_given_is_left(server, name):
    schema = postgis._Database(name).schema
    server.execute("CREATE SCHEMA {}", schema)
    with backends.open_writer(name, ABOUT) as index:
        index.create("")
        index.discard()
    assert server.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'test %'") == [(schema,)]


def test_a_commit_is_whole(name):
    fill(name)
    with backends.open_writer(name, ABOUT) as index:
        (new,) = index.put_rasters([raster("/data/four.tif", 2)])
        tiles = [square(new.id, 0, 0, 5), square(new.id, 5, 0, 5)]
        sentence = refused(lambda: index.commit_tiles(tiles, np.array([[1.0] * WIDTH, [np.nan] * WIDTH]), {new.id: 2}))
        assert "could not be written (NaN" in sentence
        assert "what was indexed so far is kept" in sentence
        assert (index.tile_counts[new.id], index.rasters[new.id].done) == (0, 0)
        index.commit_tiles(tiles, np.ones((2, WIDTH)), {new.id: 2})
    assert backends.open_reader(name).count == 437


# Several at a time

HOLDER = """
import sys, time
import numpy as np
sys.path.insert(0, {tests!r})
import test_postgis as tests
from clippan.search import backends
with backends.open_writer({name!r}, tests.ABOUT) as index:
    (new,) = index.put_rasters([tests.raster("/data/other.tif", 2)])
    index.commit_tiles([tests.square(new.id, 0, 0, 5)], np.ones((1, tests.WIDTH)), {{new.id: 1}})
    print("committed", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(name):
    """Another process, which has added a tile and goes on writing."""
    code = HOLDER.format(tests=str(Path(__file__).parent), name=name)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "committed\n"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_one_writes_and_others_read(name):
    fill(name)
    before = backends.open_reader(name)
    assert backends.open_reader(name) is before
    with holder(name) as process:
        after = backends.open_reader(name)
        assert (before.count, after.count) == (435, 436)
        assert after.rasters[4].path == "/data/other.tif"
        # Who has it open as it was is not confused by what came later.
        assert before.tiles([436, 1]) == before.tiles([1])
        sentence = refused(lambda: backends.open_writer(name, ABOUT).__enter__())
        assert "Another process is indexing into the catalogue test" in sentence
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(50):  # until the server has noticed
            with contextlib.suppress(ClippanError), backends.open_writer(name, ABOUT) as index:
                break
        # What it had committed stays.
        assert (index.rasters[4].done, index.rasters[4].planned) == (1, 2)


def test_what_another_removes_is_left_out(name):
    fill(name)
    before = backends.open_reader(name)
    with backends.open_writer(name, ABOUT) as index:
        index.drop_raster(2)
    vectors = before.vectors(np.array([401, 1, 402]))
    assert not vectors[[0, 2]].any()
    assert vectors[1].any()
    assert [tile.id for tile in before.tiles([401, 1])] == [1]
    with backends.open_writer(name, ABOUT) as index:
        index.discard()
    assert "There is no catalogue" in refused(lambda: backends.open_reader(name))


def cut(server):
    """Ends all connections to the database but the one that does it."""
    server.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'CLIPPan'")


def test_a_reader_comes_back(server, name):
    vectors = fill(name)
    shared = backends.open_reader(name)
    cut(server)
    assert shared.candidates(vectors[:1], TileFilter(), 3)[0].shape == (3,)
    cut(server)
    assert backends.open_reader(name) is shared


def test_a_writer_says_that_the_connection_was_lost(server, name):
    fill(name)

    def write():
        with backends.open_writer(name, ABOUT) as index:
            (new,) = index.put_rasters([raster("/data/four.tif", 2)])
            index.commit_tiles([square(new.id, 0, 0, 5)], np.ones((1, WIDTH)), {new.id: 1})
            cut(server)
            for _ in range(2):  # it does not connect again: that would be without the lock
                assert "was lost" in refused(lambda: index.put_rasters([raster("/data/five.tif", 1)]))
            index.commit_tiles([square(new.id, 5, 0, 5)], np.ones((1, WIDTH)), {new.id: 2})

    sentence = refused(write)
    assert "The connection to the database postgres on 127.0.0.1 was lost (" in sentence
    assert sentence.endswith("index again: what was indexed so far is kept.")
    with backends.open_writer(name, ABOUT) as index:
        assert (index.rasters[4].done, index.tile_counts[4]) == (1, 1)


# What goes wrong


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ({"port": 9}, r"The server of the database postgres on 127.0.0.1 does not answer \(.+\); check the host"),
        ({"host": "no.such.host.invalid"}, r"no.such.host.invalid does not answer \(.+\); check the host"),
        (
            {"password": "s3/wrong"},
            r"does not let admin into the database postgres on 127.0.0.1 \(.+\); check the user",
        ),
        ({"password": ""}, r"does not let admin into the database postgres on 127.0.0.1 \(.+\); check the user"),
        ({"database": "nodb"}, r"does not let admin into the database nodb on 127.0.0.1 \(.+ does not exist\)"),
        ({"schema": "missing"}, r"There is no catalogue missing in the database postgres on 127.0.0.1; make it with"),
    ],
)
def test_a_server_that_cannot_be_read(server, address, sentence):
    assert re.search(sentence, refused(lambda: backends.open_reader(server.url(**address))))


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://user:{SECRET}@host/db",
        "postgresql://user:s3/x@host/db",
        "postgresql://user:cr@t@host/db",
        "postgresql://user:s3/",
        "postgresql://user:hidden%zz@host/db",
        "postgresql://host/db?password=s3/&nonsense=s3/",
        "postgresql://host/db?port=s3/",
        "postgresql://host/db?schema=%00",
    ],
)
def test_an_address_that_is_not_understood_is_not_repeated(address):
    assert "is not understood; write it as postgresql://" in refused(lambda: backends.open_reader(address))


@pytest.mark.parametrize(
    ("address", "schema", "shown"),
    [
        ("postgresql://u:p@h:5/d", "clippan", "postgresql://u@h:5/d?schema=clippan"),
        ("postgres://h/d?schema=a%20b&sslmode=require", "a b", "postgres://h/d?schema=a b"),
        ("postgresql:///d?host=/run&schema=&password=x", "clippan", "postgresql:///d?schema=clippan"),
        ("postgresql://u:a?b@h", "clippan", "postgresql://u@h?schema=clippan"),
        ("postgresql://u:a?b@[::1]/d?connect_timeout=3", "clippan", "postgresql://u@[::1]/d?schema=clippan"),
    ],
)
def test_what_is_shown_of_an_address(address, schema, shown):
    database = postgis._Database(address)
    assert (database.schema, database.path) == (schema, shown)
    assert "schema" not in database._parameters
    assert database._parameters.get("password") in (None, "p", "x", "a?b")


def test_without_a_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    sentence = refused(lambda: backends.open_reader("postgresql://h/d"))
    assert "lacks psycopg" in sentence
    assert "python -m pip install 'psycopg[binary]'" in sentence


@pytest.mark.parametrize(
    ("about", "what"),
    [
        (replace(ABOUT, model="other", label="Other"), "Tiny, which cannot be compared with those of Other"),
        (replace(ABOUT, sha256="cd" * 32), "another version of Tiny"),
        (replace(ABOUT, image_size=32), "another version of Tiny"),
    ],
)
def test_another_model(name, about, what):
    fill(name)
    assert f"holds vectors of {what}" in refused(lambda: backends.open_writer(name, about).__enter__())


def test_a_schema_with_something_else(server, name):
    schema = postgis._Database(name).schema
    server.execute("CREATE SCHEMA {}", schema)
    server.execute("CREATE TABLE {}.about (format text)", schema)
    for function in (lambda: backends.open_reader(name), lambda: backends.open_writer(name, ABOUT).__enter__()):
        assert "holds other data than a catalogue; choose another schema with ?schema=NAME" in refused(function)


def test_a_catalogue_of_another_version(server, name):
    fill(name)
    server.execute("UPDATE {}.about SET format = '99', engine = '7.0'", postgis._Database(name).schema)
    sentence = refused(lambda: backends.open_reader(name))
    assert "was made by version 7.0 of CLIPPan, in a format that this version cannot read; update CLIPPan" in sentence


def start(name):
    with backends.open_writer(name, ABOUT) as index:
        index.create("")


def test_an_analyst_who_was_given_nothing_and_then_all(server, name):
    """The sentences name what the administrator has to do, and doing it helps."""
    with contextlib.suppress(psycopg.Error):
        server.execute("CREATE EXTENSION postgis CASCADE")
        server.execute("CREATE EXTENSION vector")
    schema = postgis._Database(name).schema
    mine = server.url(quote(schema), user=ANALYST)
    sentence = refused(lambda: start(mine))
    assert f"{ANALYST} may not make the schema {schema} or its tables in the database postgres" in sentence
    assert f'run CREATE SCHEMA "{schema}" AUTHORIZATION "{ANALYST}".' in sentence
    fill(name)
    sentence = refused(lambda: backends.open_reader(mine))
    assert f"{ANALYST} may not read the catalogue {schema} in" in sentence
    assert f'GRANT SELECT ON ALL TABLES IN SCHEMA "{schema}" TO "{ANALYST}".' in sentence
    server.execute("GRANT USAGE ON SCHEMA {} TO {}", schema, ANALYST)
    server.execute("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}", schema, ANALYST)
    assert backends.open_reader(mine).count == 435

    def write():
        with backends.open_writer(mine, ABOUT) as index:
            (new,) = index.put_rasters([raster("/data/four.tif", 1)])
            index.commit_tiles([square(new.id, 0, 0, 5)], np.ones((1, WIDTH)), {new.id: 1})

    assert f"{ANALYST} may not write the catalogue {schema} in" in refused(write)
    server.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}", schema, ANALYST)
    write()
    assert backends.open_reader(mine).count == 436
    server.execute("DROP OWNED BY {}", ANALYST)
    server.execute("DROP SCHEMA {} CASCADE", schema)
    server.execute("CREATE SCHEMA {} AUTHORIZATION {}", schema, ANALYST)
    fill(mine)
    assert backends.open_reader(mine).count == 435


def test_an_analyst_in_a_database_without_extensions(server, database):
    mine = server.url(user=ANALYST, database=database)
    server.execute("GRANT CREATE ON DATABASE bare TO {}", ANALYST)
    sentence = refused(lambda: start(mine))
    assert (
        "extension PostGIS is missing in the database bare on 127.0.0.1; ask the database's administrator to run"
        in sentence
    )
    assert "run CREATE EXTENSION postgis there." in sentence
    server.execute("CREATE EXTENSION postgis", database=database)
    server.execute("CREATE EXTENSION vector", database=database)
    start(mine)
    assert backends.open_reader(mine).count == 0
    assert backends.open_reader(mine).extent == ()
    assert backends.open_reader(mine).candidates(np.ones((1, WIDTH)), TileFilter(), 5)[1] == 0


def test_a_server_without_an_extension(server, database, monkeypatch):
    monkeypatch.setattr(postgis, "EXTENSIONS", {"postgis": "PostGIS", "vector2": "pgvector"})
    sentence = refused(lambda: start(server.url(database=database)))
    assert "The server of the database bare on 127.0.0.1 has no pgvector; ask the database's admin" in sentence
    assert "and to run CREATE EXTENSION vector2." in sentence
    # All or nothing.
    assert server.execute("SELECT 1 FROM pg_extension WHERE extname = 'postgis'", database=database) == []


# Large ones, old ones, and other programs


def clustered(count, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, WIDTH))
    return unit(centres[rng.integers(40, size=count)] + 0.5 * rng.normal(size=(count, WIDTH)))


def large(name, count=4000):
    vectors = clustered(count)
    with backends.open_writer(name, ABOUT) as index:
        index.create(wkt())
        one, two = index.put_rasters([raster("/data/one.tif", count), raster("/data/two.tif", 1)])
        tiles = [square(one.id, 100 * (i % 80), -100 * (i // 80), 100) for i in range(count - 1)]
        index.commit_tiles([*tiles, square(two.id, 0, 0, 9)], vectors, {one.id: count, two.id: 1})
    return vectors


def plans(shared, monkeypatch):
    """The plans of all questions from now on."""
    ask, seen = shared.database.ask, []

    def explained(text, parameters=(), **parts):
        seen.append("\n".join(row[0] for row in ask("EXPLAIN " + text, parameters, **parts)))
        return ask(text, parameters, **parts)

    monkeypatch.setattr(shared.database, "ask", explained)
    return seen


def test_a_large_one_is_searched_by_its_index(name, monkeypatch):
    monkeypatch.setattr(postgis, "MAX_EXACT", 1000)
    vectors = large(name)
    shared = backends.open_reader(name)
    # Few rows are read so quickly that the database would rather not use an index.
    for setting in ("enable_seqscan", "enable_sort"):
        shared.database.connect().execute(f"SET {setting} = off")
    seen = plans(shared, monkeypatch)
    directions = clustered(10, 1)
    for direction in directions:
        found, size = shared.candidates(direction[None], TileFilter(), 1200)  # more than ef_search
        assert (len(found), size) == (1200, 4000)
        exact = np.argsort(-(vectors @ direction))[:100] + 1
        assert len(np.intersect1d(found, exact)) >= 95
    assert all("tiles_vector" in plan for plan in seen)
    assert len(seen) == 10
    # What is rare among all is not looked for in the index.
    del seen[:]
    found, size = shared.candidates(directions[:1], TileFilter(boxes=((0.0, -1500.0, 8000.0, 0.0),)), 200)
    inside = shared.tile_ids(TileFilter(boxes=((0.0, -1500.0, 8000.0, 0.0),)))
    assert size == len(inside) == 1201
    exact = inside[np.argsort(-(vectors[inside - 1] @ directions[0]))[:200]]
    assert len(np.intersect1d(found, exact)) >= 190
    monkeypatch.setattr(postgis, "_MAX_VISITS", 100)
    del seen[:]
    shared.candidates(directions[:1], TileFilter(), 200)
    assert not any("tiles_vector" in plan for plan in seen)


def test_an_index_that_finds_too_few_is_not_believed(name, monkeypatch):
    monkeypatch.setattr(postgis, "MAX_EXACT", 1000)
    vectors = large(name)
    shared = backends.open_reader(name)
    for statement in ("SET enable_seqscan = off", "SET enable_sort = off", "SET hnsw.iterative_scan = off"):
        shared.database.connect().execute(statement)
    direction = clustered(1, 1)
    found, _ = shared.candidates(direction, TileFilter(), 1200)
    exact = np.sort(np.argsort(-(vectors @ direction[0]))[:1200] + 1)
    assert len(np.intersect1d(found, exact)) >= 1195


@pytest.mark.parametrize(("most", "newest", "made"), [(1000, (0, 8), 1), (5000, (0, 8), 0), (1000, (99, 0), 0)])
def test_when_an_index_is_made(server, name, monkeypatch, most, newest, made):
    monkeypatch.setattr(postgis, "MAX_EXACT", most)
    monkeypatch.setattr(postgis, "_ITERATIVE_VERSION", newest)
    large(name)
    found = server.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'tiles_vector'")
    assert len(found) == made
    assert all("hnsw" in row[0] and "halfvec_ip_ops" in row[0] for row in found)
    # The next job adds to it.
    with backends.open_writer(name, ABOUT) as index:
        index.commit_tiles([square(1, 0, 0, 5)], np.ones((1, WIDTH)), {1: 1})
    assert len(server.execute("SELECT 1 FROM pg_indexes WHERE indexname = 'tiles_vector'")) == made


def test_the_first_job_in_a_database_makes_all(server, database, monkeypatch):
    monkeypatch.setattr(postgis, "MAX_EXACT", 1000)
    large(server.url(database=database))
    assert server.execute("SELECT 1 FROM pg_indexes WHERE indexname = 'tiles_vector'", database=database)


def test_a_pgvector_without_halves(server, database, tmp_path):
    server.execute("CREATE EXTENSION postgis", database=database)
    server.execute("CREATE EXTENSION vector", database=database)
    server.execute("ALTER TYPE halfvec RENAME TO unknown_half", database=database)
    name = server.url(database=database)
    vectors = fill(name)
    shared = backends.open_reader(name)
    ids = np.arange(1, 436)
    np.testing.assert_allclose(shared.vectors(ids), vectors, atol=1e-7)
    found, _ = shared.candidates(vectors[:1], TileFilter(), 20)
    np.testing.assert_array_equal(found, np.sort(np.argsort(-(vectors @ vectors[0]))[:20] + 1))


@pytest.mark.parametrize(("crs", "srid"), [(wkt(), UTM), (wkt(4326), 4326), ("", 0)])
def test_a_crs_has_its_number(name, crs, srid):
    fill(name, crs=crs)
    shared = backends.open_reader(name)
    assert shared.info.crs == crs
    assert shared.database.ask("SELECT DISTINCT ST_SRID(geom) FROM {tiles} WHERE geom IS NOT NULL") == [(srid,)]
    assert len(shared.tile_ids(TileFilter(boxes=((500000.0, 4999900.0, 500100.0, 5000000.0),)))) == 2


def test_a_crs_without_a_number_is_kept(name):
    crs = wkt().replace('AUTHORITY["EPSG","32631"]', 'AUTHORITY["OURS","1"]')
    fill(name, crs=crs)
    shared = backends.open_reader(name)
    assert shared.info.crs == crs
    assert shared.tile_at(500050.0, 4999950.0) is not None


def test_other_programs_read_the_layer(server, name):
    if ogr.GetDriverByName("PostgreSQL") is None:
        pytest.skip("this GDAL does not read PostgreSQL")
    fill(name)
    schema = postgis._Database(name).schema
    password = SECRET.replace("\\", "\\\\").replace("'", "\\'")
    source = (
        f"PG:host=127.0.0.1 port={server.port} dbname=postgres user={ADMIN} password='{password}' schemas='{schema}'"
    )
    opened = ogr.Open(source)
    layer = opened.GetLayerByName("tiles")
    assert layer.GetFeatureCount() == 435
    assert layer.GetSpatialRef().GetAuthorityCode(None) == str(UTM)
    assert layer.GetFIDColumn() == "id"
    feature = layer.GetFeature(2)
    assert feature.GetGeometryRef().ExportToWkt().startswith("POLYGON ((500100 5000000,")
    assert feature.GetField("date") == "2021/06/30"


# From rasters to hits

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def stub(name, device, context):
    """A model that knows colours."""

    def encode_images(pictures):
        return unit(np.pad(pictures.reshape(len(pictures), 3, -1).mean(axis=2) + 1, ((0, 0), (0, WIDTH - 3))))

    def encode_texts(texts):
        return unit(np.pad([COLOURS.get(text, (128, 128, 128)) for text in texts], ((0, 0), (0, WIDTH - 3))) + 0.0)

    spec = SimpleNamespace(id="starter", label="Colours")
    return SimpleNamespace(
        spec=spec,
        sha256="",
        device="cpu",
        image_size=16,
        embedding_dim=WIDTH,
        logit_scale=50.0,
        batch=8,
        channels=None,
        text_warnings=lambda phrases: [],
        encode_images=encode_images,
        encode_texts=encode_texts,
    )


def test_from_rasters_to_hits(name, tmp_path, monkeypatch):
    for module in (build, query):
        monkeypatch.setattr(module, "load_encoder", stub)
    pixels = np.zeros((3, 64, 192), np.uint8)
    for number in range(3):
        pixels[number, :, 64 * number : 64 * number + 64] = 255
    path = write_raster(tmp_path / "stripes_20200102.tif", pixels, 10.0)
    index = IndexRequest(rasters=(path,), output=name, tile=(64,), overlap=0.0)
    made = run(index, Context())
    assert (made.tiles, made.added, made.rasters, made.failed) == (3, 3, 1, ())
    for colour, left in (("red", 500000), ("green", 500640), ("blue", 501280)):
        found = run(SearchRequest(index=name, text=(colour,), top=1), Context())
        assert found.hits[0].bounds == (left, 4999360, left + 640, 5000000)
        assert (found.hits[0].date, found.crs, found.tiles) == ("2020-01-02", f"EPSG:{UTM}", 3)
    found = run(
        SearchRequest(index=name, at=(500100.0, 4999900.0), top=1, output=str(tmp_path / "hits.gpkg")), Context()
    )
    assert found.hits[0].bounds[0] == 500000
    assert (tmp_path / "hits.gpkg").exists()
    again = run(index, Context())
    assert (again.added, again.kept) == (0, 3)
    write_raster(tmp_path / "stripes_20200102.tif", pixels[::-1], 10.0)
    changed = run(index, Context())
    assert (changed.added, changed.dropped, changed.tiles) == (3, 3, 3)
    found = run(SearchRequest(index=name, text=("red",), top=1, heatmap=str(tmp_path / "heat.tif")), Context())
    assert found.hits[0].bounds[0] == 501280
    about = run(AboutIndexRequest(index=name), Context())
    assert (about.tiles, about.extent, about.files) == (3, (500000, 4999360, 501920, 5000000), (path,))


def test_the_starter_model_finds_the_same_in_both(name, tmp_path):
    if not (resources() / "starter-clip" / "open_clip_model.safetensors").exists():
        pytest.skip("the starter model is not in resources/")
    path = write_raster(tmp_path / "land.tif", (truth(128, 3) / 8).clip(0, 255).astype(np.uint8), 10.0)
    hits = []
    for index in (name, str(tmp_path / "index.gpkg")):
        made = run(IndexRequest(rasters=(path,), output=index, tile=(64,), device=Device.CPU), Context())
        assert made.tiles == made.added > 4
        hits.append(
            run(SearchRequest(index=index, text=("farmland", "river"), top=3, device=Device.CPU), Context()).hits
        )
    assert [(hit.prompt, hit.window, hit.bounds) for hit in hits[0]] == [
        (hit.prompt, hit.window, hit.bounds) for hit in hits[1]
    ]
    assert [hit.confidence for hit in hits[0]] == pytest.approx([hit.confidence for hit in hits[1]], rel=1e-3)


def test_the_file_is_still_the_other_one(tmp_path):
    """A path is never taken for an address."""
    path = str(tmp_path / "index.gpkg")
    fill(path)
    assert isinstance(backends.open_reader(path), geopackage.GeoPackageReader)


def test_what_a_colleague_has_is_not_dropped(name, tmp_path, monkeypatch):
    """A file that is missing here is dropped only by a job that is about its folder."""
    for module in (build, query):
        monkeypatch.setattr(module, "load_encoder", stub)
    pixels = np.full((3, 64, 64), 200, np.uint8)
    folders = [tmp_path / "mine", tmp_path / "theirs"]
    for folder in folders:
        folder.mkdir()
        write_raster(folder / "a.tif", pixels, 10.0)
        write_raster(folder / "b.tif", pixels, 10.0)
        run(IndexRequest(rasters=(str(folder),), output=name, tile=(64,), overlap=0.0), Context())
    (folders[1] / "a.tif").unlink()  # as it looks on my machine
    mine = run(IndexRequest(rasters=(str(folders[0] / "a.tif"),), output=name, tile=(64,), overlap=0.0), Context())
    assert (mine.dropped, mine.rasters) == (0, 4)
    theirs = run(IndexRequest(rasters=(str(folders[1]),), output=name, tile=(64,), overlap=0.0), Context())
    assert (theirs.dropped, theirs.rasters) == (1, 3)


def test_no_result_holds_the_password(name, tmp_path, monkeypatch):
    for module in (build, query):
        monkeypatch.setattr(module, "load_encoder", stub)
    path = write_raster(tmp_path / "a.tif", np.full((3, 64, 64), 200, np.uint8), 10.0)
    made = run(IndexRequest(rasters=(path,), output=name, tile=(64,)), Context())
    found = run(SearchRequest(index=name, text=("red",)), Context())
    about = run(AboutIndexRequest(index=name), Context())
    with pytest.raises(ClippanError) as caught:
        run(SearchRequest(index=name, text=("red",), rasters=("other.tif",)), Context())
    told = f"{made} {found} {about} {caught.value}"
    assert SECRET not in told
    assert quote(SECRET, safe="") not in told
