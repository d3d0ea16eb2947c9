"""Catalogues: indexes in PostgreSQL, found by the connections that are stored in QGIS.

A catalogue is remembered by its connection's name alone; the address with its password is made when it is needed.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from qgis.core import QgsDataSourceUri, QgsProviderConnectionException, QgsProviderRegistry

from clippan.core.errors import ClippanError

_PREFIX = "catalogue:"
_SSL_MODES = {
    QgsDataSourceUri.SslMode.SslDisable: "disable",
    QgsDataSourceUri.SslMode.SslAllow: "allow",
    QgsDataSourceUri.SslMode.SslRequire: "require",
    QgsDataSourceUri.SslMode.SslVerifyCa: "verify-ca",
    QgsDataSourceUri.SslMode.SslVerifyFull: "verify-full",
}
# Where an authentication configuration keeps certificates, libpq's names and ours are the same.
_CERTIFICATES = ("sslrootcert", "sslcert", "sslkey")


def catalogues() -> dict[str, str]:
    """What the panel calls each catalogue, and its connection's name."""
    metadata = QgsProviderRegistry.instance().providerMetadata("postgres")
    names = metadata.connections(False) if metadata is not None else {}
    return {f"{_PREFIX}{name}": name for name in sorted(names, key=str.casefold)}


def is_catalogue(index: str) -> bool:
    """Whether an index is a stored connection, not a file."""
    return index.startswith(_PREFIX)


def index_address(index: str) -> str:
    """What the engine opens: a file's path as it is, a catalogue as ``postgresql://…`` with its login.

    In the main thread: QGIS may ask for the master password.

    Raises:
        ClippanError: the connection is gone.
    """
    if not is_catalogue(index):
        return index
    name = index[len(_PREFIX) :]
    try:
        stored = QgsProviderRegistry.instance().providerMetadata("postgres").findConnection(name, False)
    except QgsProviderConnectionException:
        stored = None
    if stored is None:
        raise ClippanError("The connection {name} no longer exists in QGIS; choose another index.", name=name)
    return postgresql_url(QgsDataSourceUri(stored.uri()))


def postgresql_url(uri: QgsDataSourceUri) -> str:
    """A connection of QGIS as a PostgreSQL address, the way libpq reads it, and the schema if it names one."""
    schema = uri.schema()
    uri = QgsDataSourceUri(uri.connectionInfo(True))  # with the login of its authentication configuration
    login = quote(uri.username(), safe="")
    if login and uri.password():
        login += f":{quote(uri.password(), safe='')}"
    options = {"service": uri.service(), "sslmode": _SSL_MODES.get(uri.sslMode(), ""), "schema": schema}
    options.update({name: uri.param(name) for name in _CERTIFICATES})
    host, port = uri.host(), uri.port()
    if host.startswith("/"):  # a socket's folder has no place in front of a path
        options.update(host=host, port=port)
        host = port = ""
    if ":" in host:
        host = f"[{host}]"
    place = f"{login}@" * bool(login) + host + f":{port}" * bool(port)
    query = urlencode({name: value for name, value in options.items() if value}, quote_via=quote)
    return f"postgresql://{place}/{quote(uri.database(), safe='')}" + f"?{query}" * bool(query)
