"""Pages from the templates beside this file."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path
from typing import Any, Optional

import jinja2
import numpy as np
import torch
from osgeo import gdal

from clippan import __version__
from clippan.core.messages import Message
from clippan.core.outputs import Outputs, write_output
from clippan.core.translation import current_language, translator


def write(path: str, template: str, outputs: Optional[Outputs] = None, **values: Any) -> None:
    """Writes an HTML page from a template (name without suffix) and its values, whole or not at all; raises
    ClippanError."""
    _translate(current_language())
    text = _templates.get_template(f"{template}.html.j2").render(now=datetime.datetime.now(), **values)
    with write_output(path, outputs) as part:
        part.write_text(text, encoding="utf-8")


def _no_plural(singular: str, plural: str, count: int) -> str:
    raise NotImplementedError("templates word their sentences so that numbers do not matter")


def _translate(language: str) -> None:
    gettext = translator(language)

    _templates.install_gettext_callables(gettext, _no_plural, newstyle=True)  # type: ignore[attr-defined]
    _templates.globals.update(language=language, plain_gettext=gettext)


def file_name(path: str) -> str:
    """The last part of a path, of whichever system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _number(value: Optional[float], form: str) -> str:
    if value is None or value != value:
        return "–"
    return "∞" if value == float("inf") else format(value, form)


def _percent(share: Optional[float]) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


@jinja2.pass_environment
def _translated(environment: jinja2.Environment, text: str) -> str:
    gettext: Any = environment.globals["plain_gettext"]
    return text.translated(gettext) if isinstance(text, Message) else gettext(text)


@jinja2.pass_environment
def _shown(environment: jinja2.Environment, value: Any) -> Any:
    return _translated(environment, value) if isinstance(value, Message) else value


def _png_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_shown,
    extensions=["jinja2.ext.i18n"],
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.policies["ext.i18n.trimmed"] = True  # a sentence may go over several lines of a template
_templates.filters.update(
    file_name=file_name, number=_number, percent=_percent, png_uri=_png_uri, translated=_translated
)
_templates.globals["versions"] = (
    f"clippan {__version__}, PyTorch {torch.__version__}, GDAL {gdal.__version__}, NumPy {np.__version__}"
)
