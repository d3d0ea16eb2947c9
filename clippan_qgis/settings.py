"""The plugin's settings, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from qgis.core import QgsSettings
from qgis.PyQt.QtCore import QStandardPaths

GROUP = "clippan"


@dataclass(frozen=True)
class Settings:
    """What the options page holds; an empty text means the default.

    Attributes:
        python: the engine's Python (or the folder of its environment).
        device: what "auto" means: auto, cpu, cuda or mps.
        cache: the folder for the managed environment and downloaded models.
        offline: a folder with model files, used in place of the network.
        endpoint: the address of a Hugging Face Hub mirror.
        authcfg: the authentication configuration that holds the Hub token.
    """

    python: str = ""
    device: str = "auto"
    cache: str = ""
    offline: str = ""
    endpoint: str = ""
    authcfg: str = ""

    @classmethod
    def read(cls) -> Settings:
        """The settings of this QGIS profile."""
        store = QgsSettings()
        values = {item.name: store.value(f"{GROUP}/{item.name}", item.default) for item in fields(cls)}
        return cls(**{name: str(value or "").strip() for name, value in values.items()})

    def write(self) -> None:
        """Saves them in this QGIS profile; what is at its default is not stored."""
        store = QgsSettings()
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                store.remove(f"{GROUP}/{item.name}")
            else:
                store.setValue(f"{GROUP}/{item.name}", value)

    @property
    def cache_folder(self) -> Path:
        """The cache folder, the default one if none was chosen. It need not exist."""
        return Path(self.cache).expanduser() if self.cache else default_cache()


def default_cache() -> Path:
    """The cache folder of a user who has chosen none; never inside the plugin, which updates replace."""
    location = QStandardPaths.StandardLocation.GenericDataLocation
    return Path(QStandardPaths.writableLocation(location)) / "clippan"
