"""The languages that CLIPPan speaks besides English: catalogues of GNU gettext, below the resources."""

from __future__ import annotations

import gettext
from typing import Callable

from clippan import resources

DOMAIN = "clippan"
_language = "en"


def set_language(language: str) -> None:
    """Sets the language of reports; messages are translated by whoever shows them."""
    global _language
    _language = language or "en"


def current_language() -> str:
    return _language


def translator(language: str) -> Callable[[str], str]:
    """The translation function of a language, such as ``de`` or ``de_AT`` (falls back to ``de``, then to English)."""
    folder = resources() / "i18n"
    return gettext.translation(DOMAIN, folder, [language] if language else [], fallback=True).gettext
