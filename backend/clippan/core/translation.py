"""The languages that CLIPPan speaks besides English: catalogues of GNU gettext, below the resources."""

from __future__ import annotations

import gettext
from typing import Callable

from clippan import resources

DOMAIN = "clippan"


def translator(language: str) -> Callable[[str], str]:
    """What maps English texts to a language, or to themselves where nobody has translated them.

    Args:
        language: as ``de`` or ``de_AT``; a country falls back to its language, an unknown language to English.
    """
    folder = resources() / "i18n"
    return gettext.translation(DOMAIN, folder, [language] if language else [], fallback=True).gettext
