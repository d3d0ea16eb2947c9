"""Environment variables for the engine's processes.

QGIS bends its own: PYTHONHOME, a CA bundle, PROJ's database. A child that inherits them starts with the wrong
standard library, distrusts the company's proxy, or reads another PROJ's database.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Optional
from urllib.parse import quote, urlsplit

from qgis.core import Qgis, QgsApplication, QgsAuthMethodConfig, QgsMessageLog, QgsSettings
from qgis.PyQt.QtNetwork import QNetworkProxy

from .. import paths
from ..i18n import tr
from ..settings import Settings
from . import pip_settings

_PYTHON = ("PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_DATA = ("GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA")


def has_own_gdal(python: str) -> bool:
    """Whether a Python has a GDAL of its own: it is not QGIS's, nor an environment that looks into QGIS's."""
    try:
        lines = (Path(python).parent.parent / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except OSError:
        return not _is_qgis(python)
    values = dict(tuple(part.strip() for part in line.split("=", 1)) for line in lines if "=" in line)
    shares = values.get("include-system-site-packages", "").lower() == "true"
    return not (shares and _is_qgis(values.get("home", "")))


def clean_variables(own_gdal: bool = False, variables: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """This process's variables without those that would mislead another Python.

    Args:
        own_gdal: the child brings its own GDAL and PROJ, so that QGIS's data folders must not reach it.
        variables: instead of this process's.
    """
    variables = dict(os.environ if variables is None else variables)
    foreign = _CERTIFICATES + (_DATA if own_gdal else ())
    for name in list(variables):
        if name in _PYTHON or name.startswith("PIP_") or (name in foreign and _is_qgis(variables[name])):
            del variables[name]
    variables.update(PYTHONSAFEPATH="1", PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    # OSGeo4W's GDAL bindings look for their DLLs in PATH only if told so.
    variables.setdefault("USE_PATH_FOR_GDAL_PYTHON", "YES")
    return variables


def for_worker(settings: Settings, own_gdal: bool) -> dict[str, str]:
    """The variables of the worker: clean ones, our engine to import, and the settings that it obeys."""
    variables = {**clean_variables(own_gdal), **network_variables(settings.cache_folder)}
    variables["PYTHONPATH"] = str(paths.BACKEND)
    if settings.cache or "CLIPPAN_CACHE" not in variables:
        variables["CLIPPAN_CACHE"] = str(settings.cache_folder)
    if settings.cache or "HF_HOME" not in variables:
        variables["HF_HOME"] = str(settings.cache_folder / "huggingface")
    token = _token(settings.authcfg) if settings.authcfg else ""
    chosen = {"CLIPPAN_OFFLINE": settings.offline, "HF_ENDPOINT": settings.endpoint, "HF_TOKEN": token}
    variables.update({name: value for name, value in chosen.items() if value})
    return variables


def for_pip(settings: Settings) -> dict[str, str]:
    """The variables of pip: clean ones, with the user's package sources and constraints, proxy and certificates."""
    own = {name: value for name, value in os.environ.items() if name in (*pip_settings.VARIABLES, "PIP_CONFIG_FILE")}
    variables = {**clean_variables(), **own, **network_variables(settings.cache_folder)}
    if "PIP_CERT" not in variables and "REQUESTS_CA_BUNDLE" in variables:
        variables["PIP_CERT"] = variables["REQUESTS_CA_BUNDLE"]
    variables.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_PROGRESS_BAR="off")
    return variables


def network_variables(cache: Path) -> dict[str, str]:
    """QGIS's proxy and certificate authorities, as other programs understand them."""
    return {**_proxy(), **_certificate_authorities(cache)}


def _proxy() -> dict[str, str]:
    store = QgsSettings()
    host = str(store.value("proxy/proxyHost", "") or "")
    kind = str(store.value("proxy/proxyType", "") or "")
    if not store.value("proxy/proxyEnabled", False, type=bool) or not host or kind == "NoProxy":
        return {}
    proxy = QNetworkProxy()
    proxy.setUser(str(store.value("proxy/proxyUser", "") or ""))
    proxy.setPassword(str(store.value("proxy/proxyPassword", "") or ""))
    authcfg = str(store.value("proxy/authcfg", "") or "")
    if authcfg:
        _, proxy = QgsApplication.authManager().updateNetworkProxy(proxy, authcfg)
    port = str(store.value("proxy/proxyPort", "") or "")
    scheme = "socks5h" if kind == "Socks5Proxy" else "http"
    password = f":{quote(proxy.password(), safe='')}" * bool(proxy.password())
    login = f"{quote(proxy.user(), safe='')}{password}@" * bool(proxy.user())
    address = f"{scheme}://{login}{host}" + f":{port}" * bool(port)
    skipped = store.value("proxy/noProxyUrls", []) or []
    variables = {"HTTP_PROXY": address, "HTTPS_PROXY": address, "http_proxy": address, "https_proxy": address}
    if skipped:
        hosts = skipped if isinstance(skipped, list) else [skipped]
        variables["NO_PROXY"] = variables["no_proxy"] = ",".join(_host(item) for item in hosts)
    return variables


def _host(address: str) -> str:
    return urlsplit(address).hostname or address if "//" in address else address.split("/")[0]


def _certificate_authorities(cache: Path) -> dict[str, str]:
    """Certificate authorities that the user added to QGIS, together with all others that it trusts."""
    manager = QgsApplication.authManager()
    if manager.isDisabled() or not (manager.extraFileCAs() or manager.databaseCAs()):
        return {}
    file = cache / "authorities.pem"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(manager.trustedCaCertsPemText()))
    except OSError as error:
        QgsMessageLog.logMessage(
            tr("QGIS's certificates could not be passed to the engine ({reason}).", reason=error), "CLIPPan"
        )
        return {}
    return {name: str(file) for name in (*_CERTIFICATES, "PIP_CERT")}


def _token(authcfg: str) -> str:
    """The Hub token: the password of a basic configuration, or the bearer token of a header one."""
    # Some versions of PyQt fill the configuration, others return it.
    config = QgsAuthMethodConfig()
    loaded = QgsApplication.authManager().loadAuthenticationConfig(authcfg, config, True)
    ok, config = loaded if isinstance(loaded, tuple) else (loaded, config)
    entries = config.configMap() if ok else {}
    headers = (value[len("bearer ") :].strip() for value in entries.values() if value.lower().startswith("bearer "))
    token = entries.get("password") or entries.get("token") or next(headers, "")
    if token:
        return token
    QgsMessageLog.logMessage(
        tr("The Hub token could not be read from the authentication configuration; CLIPPan continues without it."),
        "CLIPPan",
        Qgis.MessageLevel.Warning,
    )
    return ""


def _is_qgis(path: str) -> bool:
    """Whether a path lies in QGIS's own installation (a bundle; never /usr, which all programs share)."""
    prefix = Path(QgsApplication.prefixPath()).resolve()
    roots = [Path(os.environ["OSGEO4W_ROOT"])] if os.environ.get("OSGEO4W_ROOT") else []
    bundle = next((parent for parent in (prefix, *prefix.parents) if parent.suffix == ".app"), None)
    if bundle:
        roots.append(bundle)
    elif prefix not in (Path("/usr"), Path("/usr/local")):
        roots.append(prefix)
    target = Path(path.split(os.pathsep)[0]).resolve()
    return any(root.resolve() in (target, *target.parents) for root in roots)
