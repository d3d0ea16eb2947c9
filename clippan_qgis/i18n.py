"""Texts in the language of QGIS."""

from __future__ import annotations

import functools
from typing import Any, Callable

from qgis.core import QgsApplication

from clippan.core.messages import Message
from clippan.core.translation import translator


def tr(text: str, /, **values: Any) -> str:
    """A text in the language of QGIS, with values where the English text has ``{name}``.

    Texts of the engine, which are messages that hold their values, are translated as they are.
    """
    message = text if isinstance(text, Message) and not values else Message(text, **values)
    return message.translated(_translator())


@functools.cache
def _translator() -> Callable[[str], str]:
    return translator(QgsApplication.locale())
