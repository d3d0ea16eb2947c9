"""The plugin's settings, in one place."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from qgis.core import QgsSettings
from qgis.PyQt.QtCore import QStandardPaths

from clippan.core.messages import Message
from clippan.jobs import Device

OPTIONS = Message("Settings ▸ Options ▸ CLIPPan")  # where the options page is
GROUP = "clippan"
_RECENT_KEY = f"{GROUP}/recent"
MAX_INDEXES, MAX_PROMPTS = 12, 50  # that are remembered


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
        store = QgsSettings()
        values = {item.name: store.value(f"{GROUP}/{item.name}", item.default) for item in fields(cls)}
        return cls(**{name: str(value or "").strip() for name, value in values.items()})

    def write(self) -> None:
        store = QgsSettings()
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                store.remove(f"{GROUP}/{item.name}")
            else:
                store.setValue(f"{GROUP}/{item.name}", value)

    @property
    def preferred_device(self) -> Device:
        """What "auto" means."""
        return Device(self.device) if self.device in {item.value for item in Device} else Device.AUTO

    @property
    def cache_folder(self) -> Path:
        """The cache folder, the default one if none was chosen. It need not exist."""
        return Path(self.cache).expanduser() if self.cache else default_cache()


def default_cache() -> Path:
    """The cache folder of a user who has chosen none; never inside the plugin, which updates replace."""
    location = QStandardPaths.StandardLocation.GenericDataLocation
    return Path(QStandardPaths.writableLocation(location)) / "clippan"


@dataclass(frozen=True)
class Recent:
    """What the search panel remembers, the newest first.

    ``index`` is the one that is searched: a file, or a catalogue as ``connections`` names it.
    """

    index: str = ""
    indexes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    @classmethod
    def read(cls) -> Recent:
        try:
            values = json.loads(QgsSettings().value(_RECENT_KEY, "") or "{}")
            return cls(str(values["index"]), tuple(map(str, values["indexes"])), tuple(map(str, values["prompts"])))
        except (KeyError, TypeError, ValueError):
            return cls()

    def write(self) -> None:
        QgsSettings().setValue(_RECENT_KEY, json.dumps(asdict(self)))

    def with_index(self, index: str, is_file: bool) -> Recent:
        """The same with another index to search."""
        return replace(
            self, index=index, indexes=_moved_to_front(index, self.indexes, MAX_INDEXES) if is_file else self.indexes
        )

    def without_index(self, index: str) -> Recent:
        indexes = tuple(item for item in self.indexes if item != index)
        return replace(self, index="" if self.index == index else self.index, indexes=indexes)

    def with_prompt(self, prompt: str) -> Recent:
        """The same with what was looked for now."""
        return replace(self, prompts=_moved_to_front(prompt, self.prompts, MAX_PROMPTS))


def _moved_to_front(item: str, items: tuple[str, ...], limit: int) -> tuple[str, ...]:
    return (item, *(other for other in items if other != item))[:limit]
