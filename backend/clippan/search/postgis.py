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
import re
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional
from urllib.parse import unquote

import numpy as np

from clippan import __version__
from clippan.core.errors import ClippanError
from clippan.core.messages import Message
from clippan.raster.rendering import spatial_reference
from clippan.search.tile_index import (
    FORMAT,
    IndexedRaster,
    IndexedTile,
    IndexInfo,
    IndexReader,
    IndexWriter,
    TileFilter,
    polygon_wkb,
)

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

_COMMENT = "Tile index of CLIPPan"
# A server that is gone is noticed within a minute, from both sides; what the address says goes first.
_CONNECTION_DEFAULTS = {
    "application_name": "CLIPPan",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_SETTINGS = {
    "jit": "off",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_ADDRESS = re.compile(r"(postgres(?:ql)?://)(?:([^@/:]*)(?::[^@/]*)?@)?([^@/?]*)(/[^@/?]*)?(?:\?(.*))?", re.DOTALL)

# In binary form a vector is its width, two bytes, and its numbers.
_HEADER = struct.Struct(">HH")
_DTYPES = {"halfvec": ">f2", "vector": ">f4"}

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
_ADD_TILES = "COPY {tiles} (raster_id, x, y, width, height, scale, date, geom, vector) FROM STDIN (FORMAT BINARY)"


@dataclass(frozen=True)
class _IndexState:
    """The table ``about``: whose vectors, SRID of the outlines, type of the vectors (halfvec or vector), and a version
    of the contents."""

    info: IndexInfo
    srid: int
    vector_type: str
    version: tuple[int, int]


class _Database:
    """A schema of a database with one connection, safe in several threads. Raises ClippanError for a bad address, or
    without driver."""

    def __init__(self, name: str) -> None:
        self._psycopg = _psycopg()
        self._parameters, self.schema, self.path = self._parse_address(name)
        self.user = str(self._parameters.get("user") or "this user")
        self._lock = threading.RLock()
        self._connection: Any = None
        self._locked = False  # the lock of a writer, which goes with the connection
        self.extensions: dict[str, str] = {}

    @property
    def place(self) -> Message:
        """The database, for a message."""
        login = self._parameters
        host = login.get("host") or login.get("service") or Message("this machine")
        return Message("the database {database} on {host}", database=login.get("dbname") or self.user, host=host)

    @property
    def title(self) -> Message:
        """The catalogue, for a message."""
        return Message("catalogue {schema} in {place}", schema=self.schema, place=self.place)

    def quoted(self, name: str) -> str:
        """A name as it is written in SQL."""
        return str(self._psycopg.sql.Identifier(name).as_string(None))

    def _parse_address(self, name: str) -> tuple[dict[str, Any], str, str]:
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
            if self._connection is None or (self._connection.closed and not self._locked):
                try:
                    # Not prepared: a plan for any vector and any limit would do without the index.
                    connection = self._psycopg.connect(
                        **{**_CONNECTION_DEFAULTS, **self._parameters}, autocommit=True, prepare_threshold=None
                    )
                except self._psycopg.Error as error:
                    raise self._connection_error(error) from error
                self.user = connection.info.user
                with self.translate_errors():
                    self._set_up_session(connection)
                self._connection = connection
            return self._connection

    def _connection_error(self, error: Any) -> ClippanError:
        reason = _error_text(error)
        # Only who has asked for a password, or says FATAL, is a server.
        answers = "FATAL" in reason or (error.pgconn is not None and error.pgconn.needs_password)
        return ClippanError(
            "The server does not let {user} into {place} ({reason}); check the user name, the password and the "
            "database's name."
            if answers
            else "The server of {place} does not answer ({reason}); check the host, the port and the network, and that "
            "PostgreSQL runs there.",
            user=self.user,
            place=self.place,
            reason=reason,
        )

    def _set_up_session(self, connection: Any) -> None:
        """Types and operators are found by the path; tables are always named with their schema."""
        found = connection.execute(
            "SELECT extname, extversion, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
            "WHERE extname = ANY(%s)",
            [list(EXTENSIONS)],
        ).fetchall()
        self.extensions = {name: version for name, version, _ in found}
        scan = {"hnsw.ef_search": str(_EF_SEARCH), "hnsw.iterative_scan": "relaxed_order"} if self.can_scan_on else {}
        for name, value in {**_SETTINGS, **scan}.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        if found:
            sql = self._psycopg.sql
            places = sql.SQL(", ").join(sql.Identifier(item) for item in sorted({schema for *_, schema in found}))
            connection.execute(sql.SQL("SET search_path TO {}").format(places))

    @property
    def can_scan_on(self) -> bool:
        """Whether this pgvector finds in its index as many as are wanted."""
        numbers = re.findall(r"\d+", self.extensions.get("vector", ""))
        return tuple(map(int, numbers[:2])) >= _ITERATIVE_VERSION

    def lock_for_writing(self) -> None:
        """Takes the writer's lock until the connection ends; raises ClippanError if another process has it."""
        key = f"{_COMMENT} in {self.schema}"
        ((free,),) = self.ask("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [key])
        if not free:
            raise ClippanError(
                "Another process is indexing into the {title}; wait until it has finished, or cancel it there.",
                title=self.title,
            )
        self._locked = True

    def close(self) -> None:
        """Ends the connection, and with it the lock."""
        if self._connection is not None:
            self._connection.close()

    def composed(self, text: str, **parts: Any) -> Any:
        """SQL with the names of our tables in it, and other parts."""
        sql = self._psycopg.sql
        names = {name: sql.Identifier(self.schema, name) for name in ("tiles", "rasters", "about")}
        return sql.SQL(text).format(schema=sql.Identifier(self.schema), **names, **parts)

    def columns(self, names: Iterable[str]) -> dict[str, Any]:
        """The columns of these names, and placeholders for their values, as parts of a statement."""
        sql = self._psycopg.sql
        kinds = {"columns": sql.Identifier, "values": sql.Placeholder}
        return {part: sql.SQL(", ").join(map(kind, names)) for part, kind in kinds.items()}

    def ask(self, text: str, parameters: Any = None, **parts: Any) -> list[tuple[Any, ...]]:
        """Rows of a query, which is repeated once if the connection was lost."""
        with self._lock, self.translate_errors():
            try:
                return list(self.execute(text, parameters, **parts))
            except self._psycopg.OperationalError:
                if not self._connection.closed:
                    raise
                return list(self.execute(text, parameters, **parts))

    def execute(self, text: str, parameters: Any = None, **parts: Any) -> Any:
        """A cursor with the answer to a statement, with numbers and bytes unconverted."""
        return self.connect().execute(self.composed(text, **parts), parameters, binary=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """What is executed is one transaction."""
        with self._lock, self.translate_errors(writing=True), self._connection.transaction():
            yield

    @contextlib.contextmanager
    def translate_errors(self, writing: bool = False) -> Iterator[None]:
        """Turns database errors into ClippanError."""
        try:
            yield
        except self._psycopg.Error as error:
            raise self._to_clippan_error(error, writing) from error

    def _to_clippan_error(self, error: Any, writing: bool) -> ClippanError:
        errors, reason = self._psycopg.errors, _error_text(error)
        schema, user = self.quoted(self.schema), self.quoted(self.user)
        if isinstance(error, errors.InsufficientPrivilege):
            sentence = (
                Message("{user} may not write the {title} ({reason}); ask its owner to run {grant}.")
                if writing
                else Message("{user} may not read the {title} ({reason}); ask its owner to run {grant}.")
            )
        elif self._connection is not None and self._connection.closed:
            sentence = (
                Message("The connection to {place} was lost ({reason}); index again: what was indexed so far is kept.")
                if writing
                else Message("The connection to {place} was lost ({reason}); try again.")
            )
        elif writing:
            sentence = Message(
                "The {title} could not be written ({reason}); check the server and index again: what was indexed so "
                "far is kept."
            )
        else:
            sentence = Message("The {title} could not be read ({reason}); check the server and try again.")
        rights = "SELECT, INSERT, UPDATE, DELETE" if writing else "SELECT"
        return ClippanError(
            sentence,
            user=self.user,
            title=self.title,
            place=self.place,
            reason=reason,
            grant=f"GRANT USAGE ON SCHEMA {schema} TO {user} and "
            f"GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO {user}",
        )

    def state(self) -> Optional[_IndexState]:
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
        if relations.get("about") != _COMMENT:
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
        return _IndexState(IndexInfo(*values), srid, kind, (table, changes))

    def create_extensions(self) -> None:
        """Creates missing extensions; raises ClippanError if an administrator has to."""
        errors = self._psycopg.errors
        for name, product in EXTENSIONS.items():
            try:
                self.execute("CREATE EXTENSION IF NOT EXISTS {name}", name=self._psycopg.sql.Identifier(name))
            except (errors.InsufficientPrivilege, errors.FeatureNotSupported, errors.UndefinedFile) as error:
                raise ClippanError(
                    "PostgreSQL's extension {product} is missing in {place}; ask the database's administrator to run "
                    "{command} there."
                    if isinstance(error, errors.InsufficientPrivilege)
                    else "The server of {place} has no {product}; ask the database's administrator to install it "
                    "there, and to run {command}.",
                    place=self.place,
                    product=product,
                    command=f"CREATE EXTENSION {name}",
                ) from error
        self._set_up_session(self._connection)


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


class PostgisReader(IndexReader):
    """A catalogue open for reading, as it was when opened: rasters added later are left out."""

    def __init__(self, database: _Database, state: _IndexState) -> None:
        self.database, self.state = database, state
        self.path, self.info = database.path, state.info
        rows = database.ask(
            "SELECT tiles, id, path, look, fingerprint, stretch, date, done, planned FROM {rasters} ORDER BY id"
        )
        self.rasters = {row[1]: IndexedRaster.from_row(row[1:]) for row in rows}
        self.tile_counts = {row[1]: row[0] for row in rows}
        self._samples: dict[int, np.ndarray] = {}

    @property
    def current(self) -> bool:
        """Always True: other processes' changes are left out of every answer."""
        return True

    def _condition(self, tile_filter: TileFilter) -> tuple[Any, list[Any]]:
        """The condition of a filter, and its parameters."""
        texts = ["TRUE"]
        parameters: list[Any] = []
        if tile_filter.raster_ids is not None:
            texts.append("raster_id = ANY(%s)")
            parameters.append(sorted(tile_filter.raster_ids))
        if tile_filter.boxes:
            # Boxes are quick but rounded: what is not well inside is looked at closely.
            one = (
                "geom && ST_MakeEnvelope(%s, %s, %s, %s, %s) AND (geom @ ST_MakeEnvelope(%s, %s, %s, %s, %s) OR "
                "ST_XMax(geom) > %s AND ST_XMin(geom) < %s AND ST_YMax(geom) > %s AND ST_YMin(geom) < %s)"
            )
            texts.append(f"({' OR '.join([one] * len(tile_filter.boxes))})")
            for left, bottom, right, top in tile_filter.boxes:
                box = [left, bottom, right, top, self.state.srid]
                parameters += [*box, *box, left, right, bottom, top]
        return self.database.composed(" AND ".join(texts)), parameters

    def tile_ids(self, tile_filter: TileFilter) -> np.ndarray:
        where, parameters = self._condition(tile_filter)
        return _ids(self.database.ask("SELECT id FROM {tiles} WHERE {where} ORDER BY id", parameters, where=where))

    def candidates(self, directions: np.ndarray, tile_filter: TileFilter, count: int) -> tuple[np.ndarray, int]:
        size = self._count_tiles(tile_filter)
        if size <= count:
            return self.tile_ids(tile_filter), size
        found = [self._nearest(direction, tile_filter, count, size) for direction in directions]
        return np.unique(np.concatenate(found)), size

    def _count_tiles(self, tile_filter: TileFilter) -> int:
        if not tile_filter.boxes:
            chosen = tile_filter.raster_ids
            return sum(count for number, count in self.tile_counts.items() if chosen is None or number in chosen)
        where, parameters = self._condition(tile_filter)
        ((size,),) = self.database.ask("SELECT count(*) FROM {tiles} WHERE {where}", parameters, where=where)
        return int(size)

    def _nearest(self, direction: np.ndarray, tile_filter: TileFilter, count: int, size: int) -> np.ndarray:
        where, parameters = self._condition(tile_filter)
        parameters += ["[" + ",".join(str(float(value)) for value in direction.astype(np.float32)) + "]", count]
        product = self.database.composed("vector <#> %s::{kind}", kind=self.database.composed(self.state.vector_type))
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
        result = np.zeros((len(ids), self.info.embedding_dim), np.float32)
        if rows:
            known = _ids(rows)
            places = np.searchsorted(known, ids).clip(0, len(known) - 1)
            there = known[places] == ids
            result[there] = self._matrix(rows)[places[there]]
        return result

    def _matrix(self, rows: Sequence[tuple[Any, ...]]) -> np.ndarray:
        """The vectors in the last column, float32."""
        data = np.frombuffer(b"".join(row[-1][_HEADER.size :] for row in rows), _DTYPES[self.state.vector_type])
        return data.reshape(-1, self.info.embedding_dim).astype(np.float32)

    def sample(self, count: int) -> np.ndarray:
        """Vectors of about so many tiles from all over the index, float32 (n, width)."""
        if count not in self._samples:  # asked for by every search for the like, and megabytes
            step = max(self.count // count, 1)
            self._samples[count] = self._matrix(
                self.database.ask("SELECT vector FROM {tiles} WHERE id %% %s = 0 ORDER BY id", [step])
            )
        return self._samples[count]

    def _read_tiles(self, ids: list[int]) -> list[IndexedTile]:
        rows = self.database.ask(
            "SELECT id, raster_id, x, y, width, height, scale, ST_AsBinary(geom, 'NDR') FROM {tiles} "
            "WHERE id = ANY(%s) AND raster_id = ANY(%s)",
            [ids, list(self.rasters)],
        )
        return [IndexedTile.from_row(row, row[7]) for row in rows]

    def tile_at(self, x: float, y: float) -> Optional[IndexedTile]:
        rows = self.database.ask(
            "SELECT id FROM {tiles}, ST_SetSRID(ST_MakePoint(%s, %s), %s) AS place WHERE geom && place "
            "AND ST_XMin(geom) <= %s AND ST_XMax(geom) >= %s AND ST_YMin(geom) <= %s AND ST_YMax(geom) >= %s "
            "AND raster_id = ANY(%s) ORDER BY scale, ST_Distance(ST_Centroid(geom), place), id LIMIT 1",
            [x, y, self.state.srid, x, x, y, y, list(self.rasters)],
        )
        return next(iter(self.tiles([row[0] for row in rows])), None)

    @property
    def extent(self) -> tuple[float, ...]:
        ((*box,),) = self.database.ask(
            "SELECT ST_XMin(box), ST_YMin(box), ST_XMax(box), ST_YMax(box) "
            "FROM (SELECT ST_3DExtent(geom) AS box FROM {tiles}) AS whole"
        )
        return tuple(box) if box[0] is not None else ()


_open: dict[str, PostgisReader] = {}


def open_reader(name: str) -> PostgisReader:
    """The catalogue as it is now, over the connection that is there already."""
    known = _open.get(name)
    database = known.database if known is not None else _Database(name)
    state = database.state()
    if state is None:
        raise ClippanError(
            "There is no {title}; make it with Build tile index (clippan index), or check the schema's name.",
            title=database.title,
        )
    if known is None or state != known.state:
        known = _open[name] = PostgisReader(database, state)
    return known


class PostgisWriter(IndexWriter):
    """A catalogue open for writing."""

    def __init__(self, name: str, info: IndexInfo) -> None:
        self._database = _Database(name)
        super().__init__(self._database.path, info)
        self._state: Any = None  # of the tables
        self._made_schema = False
        self._changed = False

    def __enter__(self) -> PostgisWriter:
        try:
            self._database.lock_for_writing()
            state = self._database.state()
            if state is not None:
                self._resume(PostgisReader(self._database, state), self._database.title)
                self._state = state
        except BaseException:
            self._database.close()
            raise
        return self

    def __exit__(self, failure: Any, *_: Any) -> None:
        try:
            if failure is None and self._changed:
                self._analyze_and_index()
        finally:
            self._database.close()

    @property
    def exists(self) -> bool:
        return self._state is not None

    def _create(self) -> None:
        database = self._database
        with database.writing():
            database.create_extensions()
            try:
                self._create_tables()
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
            self._state = database.state()

    def _known_srid(self) -> int:
        """The number under which this database knows the CRS; 0 if it does not, or there is none."""
        reference = spatial_reference(self.info.crs) if self.info.crs else None
        if reference is None or reference.GetAuthorityName(None) != "EPSG":
            return 0
        found = self._database.execute(
            "SELECT srid FROM spatial_ref_sys WHERE auth_name = 'EPSG' AND auth_srid = %s",
            [int(reference.GetAuthorityCode(None))],
        )
        return (found.fetchone() or (0,))[0]

    def _create_tables(self) -> None:
        database, srid = self._database, self._known_srid()
        ((vector_type,),) = database.execute("SELECT coalesce(to_regtype('halfvec'), 'vector')::text")
        found = database.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [database.schema])
        self._made_schema = found.fetchone() is None
        if self._made_schema:  # whoever may not make schemas may have been given one
            database.execute("CREATE SCHEMA {schema}")
        for text in _TABLES:
            database.execute(
                text, kind=database.composed(vector_type), width=self.info.embedding_dim, srid=srid, mark=_COMMENT
            )
        values = {"format": FORMAT, "engine": __version__, "srid": srid, "kind": vector_type, **self.info.row()}
        database.execute("INSERT INTO {about} ({columns}) VALUES ({values})", values, **database.columns(values))

    def discard(self) -> None:
        """Removes the tables of an empty catalogue, and the schema if this job made it."""
        with contextlib.suppress(ClippanError), self._database.writing():  # a lost server keeps them
            self._database.execute("DROP TABLE IF EXISTS {tiles}, {rasters}, {about}")
            if self._made_schema:
                self._database.execute("DROP SCHEMA {schema}")
        self._state = None
        self._changed = False

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._database.writing():
            yield
            self._database.execute("UPDATE {about} SET changes = changes + 1")
        self._changed = True

    def _write_raster(self, raster: IndexedRaster) -> IndexedRaster:
        values = raster.row()
        statement = (
            "UPDATE {rasters} SET ({columns}) = ROW({values}) WHERE id = %(id)s RETURNING id"
            if raster.id
            else "INSERT INTO {rasters} ({columns}) VALUES ({values}) RETURNING id"
        )
        columns = self._database.columns(values)
        ((number,),) = self._database.execute(statement, {**values, "id": raster.id}, **columns)
        return dataclasses.replace(raster, id=number)

    def _write_tiles(self, tiles: Sequence[IndexedTile], vectors: np.ndarray) -> None:
        data = np.ascontiguousarray(vectors, _DTYPES[self._state.vector_type])
        header = _HEADER.pack(self.info.embedding_dim, 0)
        copying = self._database.composed(_ADD_TILES)
        with self._database.connect().cursor() as cursor, cursor.copy(copying) as copy:
            # In binary form, outlines and vectors are bytes as we pack them.
            copy.set_types(["int4"] * 5 + ["float8", "date", "bytea", "bytea"])
            for tile, vector in zip(tiles, data):
                outline = polygon_wkb(tile.outline, self._state.srid) if tile.outline else None
                date = _date(self.rasters[tile.raster_id].date)
                window = vars(tile.window).values()
                copy.write_row((tile.raster_id, *window, tile.edge_length, date, outline, header + vector.tobytes()))
        for number, count in Counter(tile.raster_id for tile in tiles).items():
            self._database.execute("UPDATE {rasters} SET tiles = tiles + %s WHERE id = %s", [count, number])

    def _delete_raster(self, number: int) -> None:
        with self._transaction():
            self._database.execute("DELETE FROM {tiles} WHERE raster_id = %s", [number])
            self._database.execute("DELETE FROM {rasters} WHERE id = %s", [number])

    def _analyze_and_index(self) -> None:
        """Updates the database's statistics, and makes the vector index of a large catalogue."""
        database, count = self._database, sum(self.tile_counts.values())
        with database.writing():
            database.execute("ANALYZE {tiles}")
        if count > MAX_EXACT and database.can_scan_on:
            # Who does not own the tables may not, and a server may lack memory: then all vectors are compared, until
            # a later job makes it.
            with contextlib.suppress(ClippanError), database.writing():
                # The graph of neighbours is made quickly while it fits into memory (kB). Readers go on meanwhile.
                memory = min(count * (2 * self.info.embedding_dim + _GRAPH_BYTES) // 1024, _BUILD_MEMORY_KB)
                database.execute(
                    "SELECT set_config('maintenance_work_mem', "
                    "greatest(%s, pg_size_bytes(current_setting('maintenance_work_mem')) / 1024) || 'kB', true)",
                    [memory],
                )
                database.execute(
                    "CREATE INDEX IF NOT EXISTS tiles_vector ON {tiles} USING hnsw (vector {operators})",
                    operators=_psycopg().sql.Identifier(f"{self._state.vector_type}_ip_ops"),
                )


def _ids(rows: Sequence[tuple[Any, ...]]) -> np.ndarray:
    """The first column, int64."""
    return np.array([row[0] for row in rows], np.int64)


def _date(text: str) -> Optional[datetime.date]:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:  # not known, or not to the day
        return None
