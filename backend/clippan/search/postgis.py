"""The index in a database: PostgreSQL with PostGIS and pgvector, for a team that shares one catalogue.

It is named ``postgresql://user:password@host:port/database?schema=NAME``, as libpq reads it, but for ``schema``,
which is ours. That schema holds ``tiles`` (outline, raster, window, scale, date, vector), ``rasters``, and ``about``:
one row with whose vectors they are, and with a counter of changes, by which readers notice what others have written.
Whatever a job commits is one transaction; an advisory lock lets one job at a time write, and readers go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional
from urllib.parse import unquote

import numpy as np

from clippan import __version__
from clippan.core.errors import ClippanError
from clippan.raster.rendering import spatial_reference
from clippan.raster.tiles import Window
from clippan.search.geopackage import IndexedRaster, IndexedTile, IndexInfo, TileFilter, refuse_other_model

FORMAT = "1"
SCHEMA = "clippan"  # where the address names none
EXTENSIONS = {"postgis": "PostGIS", "vector": "pgvector"}

# Up to here every vector is compared: on two cores that takes 80 ms for 100,000 of 384 numbers, 230 ms for 250,000,
# and misses nothing. pgvector's index (HNSW) takes about 55 ms for either, since thousands of candidates are wanted,
# but minutes to be made, and every tile that is added costs more.
MAX_EXACT = 200_000
# What pgvector visits at most (hnsw.max_scan_tuples); where more would have to be, comparing all is quicker.
_MAX_VISITS = 20_000
_ITERATIVE_VERSION = (0, 8)  # the pgvector that goes on in its index until it has enough; before, 1000 were the most
_EF_SEARCH = 1000  # the largest: a search wants thousands of candidates
_BUILD_MEMORY_KB = 2**20  # kB of memory that making the index may take
_GRAPH_BYTES = 512  # bytes a vector in it, beside the vector itself

_MARK = "Tile index of CLIPPan"
# A server that is gone is noticed within a minute, from both sides; what the address says goes first.
_CONNECTION = {
    "application_name": "CLIPPan",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_SETTINGS = {"jit": "off", "tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
_ADDRESS = re.compile(r"(postgres(?:ql)?://)(?:([^@/:]*)(?::[^@/]*)?@)?([^@/?]*)(/[^@/?]*)?(?:\?(.*))?", re.DOTALL)
_POLYGON = 0x20000003  # with an SRID, in extended WKB

# In binary form a vector is its width, two bytes, and its numbers.
_HEADER = struct.Struct(">HH")
_TYPES = {"halfvec": ">f2", "vector": ">f4"}

_TABLES = (
    "CREATE TABLE {about} (format text NOT NULL, engine text NOT NULL, changes bigint NOT NULL DEFAULT 0, "
    "srid integer NOT NULL, kind text NOT NULL, model text NOT NULL, label text NOT NULL, sha256 text NOT NULL, "
    "width integer NOT NULL, pixels integer NOT NULL, crs text NOT NULL)",
    "COMMENT ON TABLE {about} IS {mark}",
    "CREATE TABLE {rasters} (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, path text NOT NULL, "
    "look text NOT NULL, fingerprint text NOT NULL, stretch text NOT NULL, date text NOT NULL, "
    "done bigint NOT NULL, planned bigint NOT NULL, tiles bigint NOT NULL DEFAULT 0)",
    "CREATE TABLE {tiles} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
    "raster_id integer NOT NULL REFERENCES {rasters}, x integer NOT NULL, y integer NOT NULL, "
    "width integer NOT NULL, height integer NOT NULL, scale double precision NOT NULL, date date, "
    "geom geometry(Polygon, {srid}), vector {kind}({width}) NOT NULL)",
    # Beside the rest of its row, not in another table, which would be read by rows.
    "ALTER TABLE {tiles} ALTER COLUMN vector SET STORAGE PLAIN",
    "CREATE INDEX tiles_geom ON {tiles} USING gist (geom)",
    "CREATE INDEX tiles_raster_id ON {tiles} (raster_id)",
)
_ADD_RASTER = (
    "INSERT INTO {rasters} (path, look, fingerprint, stretch, date, done, planned) VALUES (%(path)s, %(look)s, "
    "%(fingerprint)s, %(stretch)s, %(date)s, %(done)s, %(planned)s) RETURNING id"
)
_CHANGE_RASTER = (
    "UPDATE {rasters} SET path = %(path)s, look = %(look)s, fingerprint = %(fingerprint)s, stretch = %(stretch)s, "
    "date = %(date)s, done = %(done)s, planned = %(planned)s WHERE id = %(id)s RETURNING id"
)
_ADD_TILES = "COPY {tiles} (raster_id, x, y, width, height, scale, date, geom, vector) FROM STDIN (FORMAT BINARY)"


@dataclass(frozen=True)
class _CatalogueState:
    """The table ``about``: IndexInfo, SRID of the outlines, vector type (halfvec or vector), and a version of the
    contents."""

    about: IndexInfo
    srid: int
    kind: str
    state: tuple[int, int]


class _Database:
    """A schema of a database with one connection, safe in several threads. Raises ClippanError for a bad address, or
    without driver."""

    def __init__(self, name: str) -> None:
        self._psycopg = _psycopg()
        self._parameters, self.schema, self.path = self._understood(name)
        self.user = str(self._parameters.get("user") or "this user")
        self._lock = threading.RLock()
        self._connection: Any = None
        self._held = False  # the lock of a writer, which goes with the connection
        self.extensions: dict[str, str] = {}

    @property
    def place(self) -> str:
        """The database, for a message."""
        login = self._parameters
        host = login.get("host") or login.get("service") or "this machine"
        return f"the database {login.get('dbname') or self.user} on {host}"

    @property
    def title(self) -> str:
        """The catalogue, for a message."""
        return f"catalogue {self.schema} in {self.place}"

    def quoted(self, name: str) -> str:
        """A name as it is written in SQL."""
        return str(self._psycopg.sql.Identifier(name).as_string(None))

    def _understood(self, name: str) -> tuple[dict[str, Any], str, str]:
        """libpq's parameters, the schema, and the address without secrets.

        A bad address is never repeated: a password with an @ or a / in it may be anywhere.
        """
        wrong = ClippanError(
            "The catalogue's address is not understood; write it as postgresql://user:password@host:port/database"
            "?schema=NAME, with %40 for an @ in the password, %3A for a :, %2F for a / and %25 for a %."
        )
        match = _ADDRESS.fullmatch(name)
        if match is None:
            raise wrong
        scheme, user, host, database, query = match.groups(default="")
        address = name[: match.start(5) - 1] if match[5] is not None else name
        options = [item for item in query.split("&") if item]
        chosen = [unquote(item[len("schema=") :]) for item in options if item.startswith("schema=")]
        schema = chosen[-1] if chosen and chosen[-1] else SCHEMA
        others = "&".join(item for item in options if not item.startswith("schema="))
        try:
            parameters = self._psycopg.conninfo.conninfo_to_dict(f"{address}?{others}" if others else address)
        except self._psycopg.Error:
            raise wrong from None
        if "\0" in schema or not re.fullmatch(r"[\d,]*", str(parameters.get("port") or "")):
            raise wrong
        return parameters, schema, f"{scheme}{user}{'@' * bool(user)}{host}{database}?schema={schema}"

    def connect(self) -> Any:
        """The connection, renewed if lost, but not a writer's; raises ClippanError if the server refuses."""
        with self._lock:
            if self._connection is None or (self._connection.closed and not self._held):
                try:
                    # Not prepared: a plan for any vector and any limit would do without the index.
                    connection = self._psycopg.connect(
                        **{**_CONNECTION, **self._parameters}, autocommit=True, prepare_threshold=None
                    )
                except self._psycopg.Error as error:
                    raise self._refused(error) from error
                self.user = connection.info.user
                with self.sentences():
                    self._prepare(connection)
                self._connection = connection
            return self._connection

    def _refused(self, error: Any) -> ClippanError:
        reason = _error_text(error)
        # Only who has asked for a password, or says FATAL, is a server.
        if "FATAL" in reason or (error.pgconn is not None and error.pgconn.needs_password):
            return ClippanError(
                "The server does not let {user} into {place} ({reason}); check the user name, the password and the "
                "database's name.",
                user=self.user,
                place=self.place,
                reason=reason,
            )
        return ClippanError(
            "The server of {place} does not answer ({reason}); check the host, the port and the network, and that "
            "PostgreSQL runs there.",
            place=self.place,
            reason=reason,
        )

    def _prepare(self, connection: Any) -> None:
        """Types and operators are found by the path; tables are always named with their schema."""
        found = connection.execute(
            "SELECT extname, extversion, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
            "WHERE extname = ANY(%s)",
            [list(EXTENSIONS)],
        ).fetchall()
        self.extensions = {name: version for name, version, _ in found}
        for name, value in {**_SETTINGS, **self._scan()}.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        if found:
            sql = self._psycopg.sql
            places = sql.SQL(", ").join(sql.Identifier(item) for item in sorted({schema for *_, schema in found}))
            connection.execute(sql.SQL("SET search_path TO {}").format(places))

    def _scan(self) -> dict[str, str]:
        if not self.iterative:
            return {}
        return {"hnsw.ef_search": str(_EF_SEARCH), "hnsw.iterative_scan": "relaxed_order"}

    @property
    def iterative(self) -> bool:
        """Whether this pgvector finds in its index as many as are wanted."""
        return (
            tuple(int(part) for part in re.findall(r"\d+", self.extensions.get("vector", ""))[:2]) >= _ITERATIVE_VERSION
        )

    def hold(self) -> None:
        """Takes the writer's lock until the connection ends; raises ClippanError if another process has it."""
        key = f"{_MARK} in {self.schema}"
        ((free,),) = self.ask("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [key])
        if not free:
            raise ClippanError(
                "Another process is indexing into the {title}; wait until it has finished, or cancel it there.",
                title=self.title,
            )
        self._held = True

    def close(self) -> None:
        """Ends the connection, and with it the lock."""
        if self._connection is not None:
            self._connection.close()

    def composed(self, text: str, **parts: Any) -> Any:
        """SQL with the names of our tables in it, and other parts."""
        sql = self._psycopg.sql
        names = {name: sql.Identifier(self.schema, name) for name in ("tiles", "rasters", "about")}
        return sql.SQL(text).format(schema=sql.Identifier(self.schema), **names, **parts)

    def ask(self, text: str, parameters: Sequence[Any] = (), **parts: Any) -> list[tuple[Any, ...]]:
        """Rows of a query, with numbers and bytes unconverted; repeated once if the connection was lost."""
        with self._lock, self.sentences():
            try:
                return self._ask(text, parameters, parts)
            except self._psycopg.OperationalError:
                if not self._connection.closed:
                    raise
                return self._ask(text, parameters, parts)

    def _ask(self, text: str, parameters: Sequence[Any], parts: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        with self.connect().cursor(binary=True) as cursor:
            return cursor.execute(self.composed(text, **parts), parameters).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """A cursor in a transaction."""
        with self._lock, self.sentences(writing=True), self._connection.transaction(), self._connection.cursor() as it:
            yield it

    @contextlib.contextmanager
    def sentences(self, writing: bool = False) -> Iterator[None]:
        """Turns database errors into ClippanError."""
        try:
            yield
        except self._psycopg.Error as error:
            raise self._sentence(error, writing) from error

    def _sentence(self, error: Any, writing: bool) -> ClippanError:
        errors, reason = self._psycopg.errors, _error_text(error)
        if isinstance(error, errors.InsufficientPrivilege):
            schema, user = self.quoted(self.schema), self.quoted(self.user)
            rights = "SELECT, INSERT, UPDATE, DELETE" if writing else "SELECT"
            return ClippanError(
                "{user} may not write the {title} ({reason}); ask its owner to run {grant}."
                if writing
                else "{user} may not read the {title} ({reason}); ask its owner to run {grant}.",
                user=self.user,
                title=self.title,
                reason=reason,
                grant=f"GRANT USAGE ON SCHEMA {schema} TO {user} and "
                f"GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO {user}",
            )
        if self._connection is not None and self._connection.closed:
            return ClippanError(
                "The connection to {place} was lost ({reason}); index again: what was indexed so far is kept."
                if writing
                else "The connection to {place} was lost ({reason}); try again.",
                place=self.place,
                reason=reason,
            )
        return ClippanError(
            "The {title} could not be written ({reason}); check the server and index again: what was indexed so far is "
            "kept."
            if writing
            else "The {title} could not be read ({reason}); check the server and try again.",
            title=self.title,
            reason=reason,
        )

    def about(self) -> Optional[_CatalogueState]:
        """What the schema holds, None if empty; raises ClippanError for other contents or versions."""
        relations = dict(
            self.ask(
                "SELECT relname::text, obj_description(c.oid, 'pg_class') FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s",
                [self.schema],
            )
        )
        if not relations:
            return None
        if relations.get("about") != _MARK:
            raise ClippanError(
                "The schema {schema} of {place} holds other data than a catalogue; choose another schema with "
                "?schema=NAME at the end of the address.",
                schema=self.schema,
                place=self.place,
            )
        ((form, engine),) = self.ask("SELECT format, engine FROM {about}")
        if form != FORMAT:
            raise ClippanError(
                "The {title} was made by version {version} of CLIPPan, in a format that this version cannot read; "
                "update CLIPPan, or index into another schema.",
                title=self.title,
                version=engine,
            )
        ((table, changes, srid, kind, *values),) = self.ask(
            "SELECT tableoid, changes, srid, kind, model, label, sha256, width, pixels, crs FROM {about}"
        )
        return _CatalogueState(IndexInfo(*values), srid, kind, (table, changes))

    def extend(self, cursor: Any) -> None:
        """Creates missing extensions; raises ClippanError if an administrator has to."""
        errors = self._psycopg.errors
        for name, product in EXTENSIONS.items():
            command = f"CREATE EXTENSION {name}"
            try:
                text = self._psycopg.sql.SQL("CREATE EXTENSION IF NOT EXISTS {}")
                cursor.execute(text.format(self._psycopg.sql.Identifier(name)))
            except errors.InsufficientPrivilege as error:
                raise ClippanError(
                    "PostgreSQL's extension {product} is missing in {place}; ask the database's administrator to run "
                    "{command} there.",
                    place=self.place,
                    product=product,
                    command=command,
                ) from error
            except (errors.FeatureNotSupported, errors.UndefinedFile) as error:
                raise ClippanError(
                    "The server of {place} has no {product}; ask the database's administrator to install it there, and "
                    "to run {command}.",
                    place=self.place,
                    product=product,
                    command=command,
                ) from error
        self._prepare(self._connection)


def _psycopg() -> Any:
    """The module psycopg."""
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError as error:  # also where it finds no libpq
        raise ClippanError(
            "The engine lacks psycopg, which reads catalogues in PostgreSQL; run Set up engine again, or install it "
            "into the engine's Python: python -m pip install 'psycopg[binary]'."
        ) from error
    return psycopg


def _error_text(error: Any) -> str:
    """What went wrong, in one line."""
    text = error.diag.message_primary or str(error)
    return " ".join(text.split()).rstrip(".")


class PostgisReader:
    """A catalogue open for reading, as it was when opened: rasters added later are left out. Safe in several threads
    while others write. Raises ClippanError if it is missing or cannot be read."""

    def __init__(self, name: str, database: Optional[_Database] = None) -> None:
        self.database = database or _Database(name)
        self.path = self.database.path
        found = self.database.about()
        if found is None:
            raise ClippanError(
                "There is no {title}; make it with Build tile index (clippan index), or check the schema's name.",
                title=self.database.title,
            )
        self.about, self.state = found.about, found.state
        self._srid, self._kind = found.srid, found.kind
        rows = self.database.ask(
            "SELECT tiles, id, path, look, fingerprint, stretch, date, done, planned FROM {rasters} ORDER BY id"
        )
        self.rasters = {row[1]: _raster_from_row(row[1:]) for row in rows}
        self._counts = {row[1]: row[0] for row in rows}
        self._samples: dict[int, np.ndarray] = {}

    @property
    def current(self) -> bool:
        """Always True: other processes' changes are left out of every answer."""
        return True

    @property
    def count(self) -> int:
        return sum(self._counts.values())

    def _where(self, tile_filter: TileFilter) -> tuple[Any, list[Any]]:
        """The condition of a filter, and its parameters."""
        texts = ["TRUE"]
        parameters: list[Any] = []
        if tile_filter.rasters is not None:
            texts.append("raster_id = ANY(%s)")
            parameters.append(sorted(tile_filter.rasters))
        if tile_filter.boxes:
            # Boxes are quick but rounded: what is not well inside is looked at closely.
            one = (
                "geom && ST_MakeEnvelope(%s, %s, %s, %s, %s) AND (geom @ ST_MakeEnvelope(%s, %s, %s, %s, %s) OR "
                "ST_XMax(geom) > %s AND ST_XMin(geom) < %s AND ST_YMax(geom) > %s AND ST_YMin(geom) < %s)"
            )
            texts.append(f"({' OR '.join([one] * len(tile_filter.boxes))})")
            for left, bottom, right, top in tile_filter.boxes:
                box = [left, bottom, right, top, self._srid]
                parameters += [*box, *box, left, right, bottom, top]
        return self.database.composed(" AND ".join(texts)), parameters

    def tile_ids(self, tile_filter: TileFilter) -> np.ndarray:
        where, parameters = self._where(tile_filter)
        return _ids(self.database.ask("SELECT id FROM {tiles} WHERE {where} ORDER BY id", parameters, where=where))

    def candidates(self, directions: np.ndarray, tile_filter: TileFilter, count: int) -> tuple[np.ndarray, int]:
        size = self._size(tile_filter)
        if size <= count:
            return self.tile_ids(tile_filter), size
        found = [self._nearest(direction, tile_filter, count, size) for direction in directions]
        return np.unique(np.concatenate(found)), size

    def _size(self, tile_filter: TileFilter) -> int:
        if not tile_filter.boxes:
            rasters = self._counts if tile_filter.rasters is None else tile_filter.rasters & self._counts.keys()
            return sum(self._counts[number] for number in rasters)
        where, parameters = self._where(tile_filter)
        ((size,),) = self.database.ask("SELECT count(*) FROM {tiles} WHERE {where}", parameters, where=where)
        return int(size)

    def _nearest(self, direction: np.ndarray, tile_filter: TileFilter, count: int, size: int) -> np.ndarray:
        where, parameters = self._where(tile_filter)
        parameters += ["[" + ",".join(str(float(value)) for value in direction.astype(np.float32)) + "]", count]
        product = self.database.composed("vector <#> %s::{kind}", kind=self.database.composed(self._kind))
        orders = [self.database.composed("({product}) + 0", product=product)]  # no index knows a sum: all are compared
        if size > MAX_EXACT and count * self.count <= _MAX_VISITS * size:
            orders.insert(0, product)
        found = np.empty(0, np.int64)
        for order in orders:
            question = "SELECT id FROM {tiles} WHERE {where} ORDER BY {order} LIMIT %s"
            found = _ids(self.database.ask(question, parameters, where=where, order=order))
            if len(found) == count:
                break
        return found

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """Vectors of tiles, float32 (n, width); zeros for tiles removed meanwhile, which ``tiles`` leaves out."""
        rows = self.database.ask(
            "SELECT id, vector FROM {tiles} WHERE id = ANY(%s) ORDER BY id", [np.asarray(ids).tolist()]
        )
        result = np.zeros((len(ids), self.about.width), np.float32)
        if rows:
            known = _ids(rows)
            places = np.searchsorted(known, ids).clip(0, len(known) - 1)
            there = known[places] == ids
            result[there] = self._matrix(rows)[places[there]]
        return result

    def _matrix(self, rows: Sequence[tuple[Any, ...]]) -> np.ndarray:
        """The vectors in the last column, float32."""
        data = b"".join(row[-1][_HEADER.size :] for row in rows)
        return np.frombuffer(data, _TYPES[self._kind]).reshape(-1, self.about.width).astype(np.float32)

    def sample(self, count: int) -> np.ndarray:
        """Vectors of about so many tiles from all over the index, float32 (n, width)."""
        if count not in self._samples:  # asked for by every search for the like, and megabytes
            step = max(self.count // count, 1)
            self._samples[count] = self._matrix(
                self.database.ask("SELECT vector FROM {tiles} WHERE id %% %s = 0 ORDER BY id", [step])
            )
        return self._samples[count]

    def tiles(self, ids: Sequence[int]) -> list[IndexedTile]:
        wanted = [int(number) for number in ids]
        rows = self.database.ask(
            "SELECT id, raster_id, x, y, width, height, scale, ST_AsBinary(geom, 'NDR') FROM {tiles} "
            "WHERE id = ANY(%s) AND raster_id = ANY(%s)",
            [wanted, list(self.rasters)],
        )
        found = {row[0]: IndexedTile(row[0], row[1], Window(*row[2:6]), row[6], _corners(row[7])) for row in rows}
        return [found[number] for number in wanted if number in found]

    def tile_at(self, x: float, y: float) -> Optional[IndexedTile]:
        rows = self.database.ask(
            "SELECT id FROM {tiles}, ST_SetSRID(ST_MakePoint(%s, %s), %s) AS place WHERE geom && place "
            "AND ST_XMin(geom) <= %s AND ST_XMax(geom) >= %s AND ST_YMin(geom) <= %s AND ST_YMax(geom) >= %s "
            "AND raster_id = ANY(%s) ORDER BY scale, ST_Distance(ST_Centroid(geom), place), id LIMIT 1",
            [x, y, self._srid, x, x, y, y, list(self.rasters)],
        )
        return next(iter(self.tiles([row[0] for row in rows])), None)

    @property
    def extent(self) -> tuple[float, ...]:
        ((*box,),) = self.database.ask(
            "SELECT ST_XMin(box), ST_YMin(box), ST_XMax(box), ST_YMax(box) "
            "FROM (SELECT ST_3DExtent(geom) AS box FROM {tiles}) AS whole"
        )
        return tuple(box) if box[0] is not None else ()

    @property
    def complete(self) -> bool:
        return all(raster.done >= raster.planned for raster in self.rasters.values())


_open: dict[str, PostgisReader] = {}


def open_reader(name: str) -> PostgisReader:
    """The catalogue as it is now, over the connection that is there already."""
    known = _open.get(name)
    found = known.database.about() if known is not None else None
    if known is None or found is None or found.state != known.state:
        known = _open[name] = PostgisReader(name, None if known is None else known.database)
    return known


class PostgisWriter:
    """A catalogue open for writing, a context manager that one process at a time holds; raises as GeoPackageWriter
    does. ``create`` makes the schema, so a job that fails before leaves nothing."""

    def __init__(self, name: str, about: IndexInfo) -> None:
        self._database = _Database(name)
        self.path = self._database.path
        self.about = about
        self.rasters: dict[int, IndexedRaster] = {}
        self._srid, self._kind = 0, ""  # of the outlines, of the vectors; none without tables
        self._made = False  # the schema, by this job
        self._changed = False

    def __enter__(self) -> PostgisWriter:
        try:
            self._database.hold()
            self._resume()
        except BaseException:
            self._database.close()
            raise
        return self

    def __exit__(self, failure: Any, *_: Any) -> None:
        try:
            if failure is None and self._changed:
                self._settle()
        finally:
            self._database.close()

    def _resume(self) -> None:
        there = self._database.about()
        if there is None:
            return
        found = there.about
        refuse_other_model(self._database.title, found, self.about)
        self.about, self._srid, self._kind = found, there.srid, there.kind
        rows = self._database.ask(
            "SELECT id, path, look, fingerprint, stretch, date, done, planned FROM {rasters} ORDER BY id"
        )
        self.rasters = {row[0]: _raster_from_row(row) for row in rows}

    @property
    def exists(self) -> bool:
        return bool(self._kind)

    def create(self, crs: str) -> None:
        if self.exists:
            return
        self.about = dataclasses.replace(self.about, crs=crs)
        database = self._database
        with database.writing() as cursor:
            database.extend(cursor)
            cursor.execute("SELECT to_regtype('halfvec') IS NULL")
            kind = "vector" if cursor.fetchone()[0] else "halfvec"
            srid = _known_srid(cursor, crs)
            try:
                self._create(cursor, srid, kind)
            except _psycopg().errors.InsufficientPrivilege as error:
                schema, user = database.quoted(database.schema), database.quoted(database.user)
                raise ClippanError(
                    "{user} may not make the schema {schema} or its tables in {place}; ask the database's "
                    "administrator to run {command}.",
                    user=database.user,
                    schema=database.schema,
                    place=database.place,
                    command=f"CREATE SCHEMA {schema} AUTHORIZATION {user}",
                ) from error
        self._srid, self._kind = srid, kind

    def _create(self, cursor: Any, srid: int, kind: str) -> None:
        database = self._database
        cursor.execute("SELECT count(*) FROM pg_namespace WHERE nspname = %s", [database.schema])
        self._made = cursor.fetchone()[0] == 0
        if self._made:  # whoever may not make schemas may have been given one
            cursor.execute(database.composed("CREATE SCHEMA {schema}"))
        sql = _psycopg().sql
        for text in _TABLES:
            cursor.execute(
                database.composed(
                    text, kind=sql.SQL(kind), width=sql.Literal(self.about.width), srid=sql.Literal(srid), mark=_MARK
                )
            )
        values = {"format": FORMAT, "engine": __version__, "srid": srid, "kind": kind}
        values.update(dataclasses.asdict(self.about))
        columns = sql.SQL(", ").join(sql.Identifier(name) for name in values)
        marks = sql.SQL(", ").join(sql.Placeholder() for _ in values)
        cursor.execute(
            database.composed("INSERT INTO {about} ({columns}) VALUES ({marks})", columns=columns, marks=marks),
            list(values.values()),
        )

    def discard(self) -> None:
        """Removes the tables of an empty catalogue, and the schema if this job made it."""
        with contextlib.suppress(ClippanError), self._database.writing() as cursor:  # a lost server keeps them
            cursor.execute(self._database.composed("DROP TABLE IF EXISTS {tiles}, {rasters}, {about}"))
            if self._made:
                cursor.execute(self._database.composed("DROP SCHEMA {schema}"))
        self._kind = ""
        self._changed = False

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """A cursor whose work counts as one change."""
        with self._database.writing() as cursor:
            yield cursor
            cursor.execute(self._database.composed("UPDATE {about} SET changes = changes + 1"))
        self._changed = True

    def put_rasters(self, rasters: Sequence[IndexedRaster]) -> list[IndexedRaster]:
        if not rasters:
            return []
        written = []
        with self._transaction() as cursor:
            for raster in rasters:
                values = dataclasses.asdict(raster)
                values["stretch"] = json.dumps(raster.stretch)
                cursor.execute(self._database.composed(_CHANGE_RASTER if raster.id else _ADD_RASTER), values)
                written.append(dataclasses.replace(raster, id=cursor.fetchone()[0]))
        self.rasters.update({raster.id: raster for raster in written})
        return written

    def commit_tiles(self, tiles: Sequence[IndexedTile], vectors: np.ndarray, done: Mapping[int, int]) -> None:
        data = np.ascontiguousarray(vectors, _TYPES[self._kind])
        header = _HEADER.pack(self.about.width, 0)
        with self._transaction() as cursor:
            with cursor.copy(self._database.composed(_ADD_TILES)) as copy:
                # In binary form, outlines and vectors are bytes as we pack them.
                copy.set_types(["int4"] * 5 + ["float8", "date", "bytea", "bytea"])
                for tile, vector in zip(tiles, data):
                    window = tile.window
                    copy.write_row(
                        (
                            tile.raster,
                            window.x,
                            window.y,
                            window.width,
                            window.height,
                            tile.scale,
                            _date(self.rasters[tile.raster].date),
                            _polygon(tile.outline, self._srid),
                            header + vector.tobytes(),
                        )
                    )
            added = Counter(tile.raster for tile in tiles)
            for raster, count in done.items():
                cursor.execute(
                    self._database.composed("UPDATE {rasters} SET done = %s, tiles = tiles + %s WHERE id = %s"),
                    [count, added[raster], raster],
                )
        self.rasters.update({raster: dataclasses.replace(self.rasters[raster], done=done[raster]) for raster in done})

    def drop_raster(self, raster: int) -> int:
        with self._transaction() as cursor:
            cursor.execute(self._database.composed("DELETE FROM {tiles} WHERE raster_id = %s"), [raster])
            count = cursor.rowcount
            cursor.execute(self._database.composed("DELETE FROM {rasters} WHERE id = %s"), [raster])
        del self.rasters[raster]
        return int(count)

    def count_tiles(self, raster: int) -> int:
        ((count,),) = self._database.ask("SELECT tiles FROM {rasters} WHERE id = %s", [raster])
        return int(count)

    def _settle(self) -> None:
        """Updates the database's statistics, and makes the vector index of a large catalogue."""
        with self._database.writing() as cursor:
            cursor.execute(self._database.composed("ANALYZE {tiles}"))
            cursor.execute(self._database.composed("SELECT coalesce(sum(tiles), 0)::bigint FROM {rasters}"))
            (count,) = cursor.fetchone()
        if count > MAX_EXACT and self._database.iterative:
            # Who does not own the tables may not, and a server may lack memory: then all vectors are compared, until
            # a later job makes it.
            with contextlib.suppress(ClippanError), self._database.writing() as cursor:
                self._make_index(cursor, min(count * (2 * self.about.width + _GRAPH_BYTES) // 1024, _BUILD_MEMORY_KB))

    def _make_index(self, cursor: Any, memory: int) -> None:
        """Makes the graph of neighbours, which is quick while it fits into memory (kB). Readers go on meanwhile."""
        cursor.execute(
            "SELECT set_config('maintenance_work_mem', "
            "greatest(%s, pg_size_bytes(current_setting('maintenance_work_mem')) / 1024) || 'kB', true)",
            [memory],
        )
        operators = _psycopg().sql.Identifier(f"{self._kind}_ip_ops")
        cursor.execute(
            self._database.composed(
                "CREATE INDEX IF NOT EXISTS tiles_vector ON {tiles} USING hnsw (vector {operators})",
                operators=operators,
            )
        )


def _known_srid(cursor: Any, crs: str) -> int:
    """The number under which this database knows a CRS; 0 if it does not, or there is none."""
    if not crs:
        return 0
    reference = spatial_reference(crs)
    if reference.GetAuthorityName(None) != "EPSG":
        return 0
    cursor.execute(
        "SELECT srid FROM spatial_ref_sys WHERE auth_name = 'EPSG' AND auth_srid = %s",
        [int(reference.GetAuthorityCode(None))],
    )
    return (cursor.fetchone() or (0,))[0]


def _raster_from_row(row: Sequence[Any]) -> IndexedRaster:
    number, path, look, fingerprint, stretch, date, done, planned = row
    pairs = tuple((low, high) for low, high in json.loads(stretch))
    return IndexedRaster(number, path, look, fingerprint, pairs, date, done, planned)


def _ids(rows: Sequence[tuple[Any, ...]]) -> np.ndarray:
    """The first column, int64."""
    return np.array([row[0] for row in rows], np.int64)


def _date(text: str) -> Optional[datetime.date]:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:  # not known, or not to the day
        return None


def _polygon(outline: Sequence[float], srid: int) -> Optional[bytes]:
    """Corners x, y, … as extended WKB."""
    if not outline:
        return None
    ring = (*outline, *outline[:2])
    return struct.pack(f"<BIIII{len(ring)}d", 1, _POLYGON, srid, 1, len(ring) // 2, *ring)


def _corners(blob: Optional[bytes]) -> tuple[float, ...]:
    """The corners of a polygon in WKB: a byte and three numbers say what it is and how long."""
    return tuple(float(corner) for corner in np.frombuffer(blob, "<f8", offset=13)[:-2]) if blob else ()
