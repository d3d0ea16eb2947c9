"""The languages that CLIPPan speaks besides English: catalogues of GNU gettext, below the resources."""

from __future__ import annotations

import gettext
from typing import Callable

from clippan import resources

DOMAIN = "clippan"
_language = "en"


def set_language(language: str) -> None:
    """Sets the language of what the engine writes for people, which is reports; messages are translated by who shows
    them."""
    global _language
    _language = language or "en"


def current_language() -> str:
    """The language that was set, English before."""
    return _language


def translator(language: str) -> Callable[[str], str]:
    """What maps English texts to a language, or to themselves where nobody has translated them.

    Args:
        language: as ``de`` or ``de_AT``; a country falls back to its language, an unknown language to English.
    """
    folder = resources() / "i18n"
    return gettext.translation(DOMAIN, folder, [language] if language else [], fallback=True).gettext
