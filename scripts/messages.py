"""The texts to translate, and the catalogues of their translations below resources/i18n/.

``python scripts/messages.py update`` brings the catalogues and what programs read of them up to date with the code, and
says what is left to translate. ``check`` fails where that would change a file, or a text is not translated or has other
placeholders than the English one.
"""

from __future__ import annotations

import ast
import io
import json
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from jinja2.ext import babel_extract

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "backend"))

from clippan.core.choice import Choice  # noqa: E402
from clippan.jobs import JOBS  # noqa: E402
from clippan.jobs.param import params  # noqa: E402

CATALOGUES = ROOT / "resources" / "i18n"
# Calls whose texts people read, with the arguments that hold them.
_CALLS = {
    **dict.fromkeys(("Message", "ClippanError", "Cancelled", "tr", "line", "log", "pushInfo", "pushWarning"), (0,)),
    **dict.fromkeys(("progress", "Output", "ResultValue", "_accuracy", "_figure"), (1,)),
}
_SHOWN = {"TITLE", "GROUP", "HELP", "missing", "description"}  # attributes of classes that hold such texts


def texts() -> dict[str, list[str]]:
    """Every text to translate, with the files that it is in."""
    found: dict[str, list[str]] = {}

    def add(text: str, place: str) -> None:
        if text.strip(" \n.:;,–…") and any(letter.isalpha() for letter in text):
            places = found.setdefault(text, [])
            if place not in places:
                places.append(place)

    for name, job in JOBS.items():
        place = f"job {name}"
        for text in (job.title, job.summary):
            add(text, place)
        for item in params(job):
            for text in (item.title, item.help, item.unit, *_labels(item.choices)):
                add(text, place)
    for model in json.loads((ROOT / "resources" / "models.json").read_text(encoding="utf-8")).values():
        add(model["notes"], "resources/models.json")
    for preset in json.loads((ROOT / "resources" / "presets.json").read_text(encoding="utf-8")).values():
        add(preset["label"], "resources/presets.json")
    for folder in ("backend/clippan", "clippan_qgis"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for text in _of_code(path):
                add(text, path.relative_to(ROOT).as_posix())
        for path in sorted((ROOT / folder).rglob("*.j2")):
            with path.open("rb") as file:
                options = {"extensions": "jinja2.ext.i18n", "trimmed": "true", "newstyle_gettext": "true"}
                for _, _, text, _ in babel_extract(file, ("_", "gettext"), [], options):
                    add(text if isinstance(text, str) else text[0], path.relative_to(ROOT).as_posix())
    return found


def _labels(choices: dict[str, str]) -> Iterator[str]:
    return (label for value, label in choices.items() if label != value)


def _of_code(path: Path) -> Iterator[str]:
    """The texts of a module: arguments of the calls above, headings of tables, and sentences that stand alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            for number in _CALLS.get(name, ()):
                if len(node.args) > number:
                    yield from _constants(node.args[number])
            if name == "Table" and isinstance(node.args[0], ast.Tuple):
                for cell in node.args[0].elts:
                    yield from _constants(cell)
            if name == "file_lines":
                for pair in node.args:
                    yield from _constants(pair.elts[0]) if isinstance(pair, ast.Tuple) else ()
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in (*_SHOWN, "key"):
                yield from _constants(node.value)
            elif node.targets[0].id == "heading" and isinstance(node.value, ast.Tuple):
                for cell in node.value.elts:
                    yield from _constants(cell)
        elif isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == Choice.__name__ for base in node.bases):
            for item in ast.walk(node):
                if isinstance(item, ast.Assign) and isinstance(item.value, ast.Tuple) and len(item.value.elts) == 2:
                    yield from _constants(item.value.elts[1])
        elif isinstance(node, ast.Constant) and id(node) not in docstrings and _is_sentence(node.value):
            yield node.value


def _constants(node: ast.AST) -> Iterator[str]:
    """The text of a node, or of both sides of a choice between two."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*_constants(node.body), *_constants(node.orelse))


def _is_sentence(value: object) -> bool:
    if not isinstance(value, str) or value.count(" ") < 2:
        return False
    return (value[:1].isupper() or value[:1] == "{") and value.rstrip().endswith(".")


class _Catalogue(Catalog):
    """A catalogue whose header says the language alone: dates, places and versions would make the files stale."""

    def _get_mime_headers(self) -> list[tuple[str, str]]:
        return [("Language", str(self.locale)), ("Content-Type", "text/plain; charset=utf-8")]

    mime_headers = property(_get_mime_headers, Catalog._set_mime_headers)


def languages() -> dict[str, Path]:
    """The catalogue of each language."""
    return {path.parts[-3]: path for path in sorted(CATALOGUES.glob("*/LC_MESSAGES/clippan.po"))}


def updated(path: Path, language: str) -> tuple[bytes, bytes, Catalog]:
    """A language's catalogue brought up to date: as the file for people, as that for programs, and itself."""
    with path.open("rb") as file:
        known = read_po(file, locale=language)
    comment = "# Texts of CLIPPan for QGIS; docs/translating.md says how to translate them."
    catalogue = _Catalogue(locale=language, charset="utf-8", fuzzy=False, header_comment=comment)
    for text in sorted(texts()):
        catalogue.add(text, known[text].string if text in known else "")
    people, programs = io.BytesIO(), io.BytesIO()
    write_po(people, catalogue, width=120, sort_output=True, include_lineno=False, omit_header=False)
    write_mo(programs, catalogue)
    return people.getvalue(), programs.getvalue(), catalogue


def problems(catalogue: Catalog) -> list[str]:
    """What is not translated, or has other placeholders than the English text."""
    found = []
    for message in catalogue:
        if not message.id:
            continue
        if not message.string:
            found.append(f"not translated: {message.id}")
        elif _placeholders(message.id) != _placeholders(message.string):
            found.append(f"other placeholders: {message.id} → {message.string}")
    return found


def _placeholders(text: str) -> list[str]:
    if re.search(r"%\(\w+\)s", text):  # of a template
        return sorted(re.findall(r"%\(\w+\)s", text))
    try:
        return sorted(f"{name}:{form}" for _, name, form, _ in string.Formatter().parse(text) if name)
    except ValueError:  # braces that mean themselves
        return []


def main() -> int:
    """Does what the command line says; 1 if something is left to do."""
    command = sys.argv[1] if len(sys.argv) > 1 else "check"
    left = 0
    for language, path in languages().items():
        people, programs, catalogue = updated(path, language)
        compiled = path.with_suffix(".mo")
        wrong = problems(catalogue)
        if command == "update":
            path.write_bytes(people)
            compiled.write_bytes(programs)
        elif path.read_bytes() != people or not compiled.is_file() or compiled.read_bytes() != programs:
            wrong.append("out of date: run scripts/messages.py update")
        left += len(wrong)
        print(f"{language}: {len(catalogue)} texts, {len(wrong)} problems", *wrong[:20], sep="\n  ")
    return 1 if left and command == "check" else 0


if __name__ == "__main__":
    sys.exit(main())
