#!/usr/bin/env python3
"""Finds what breaks on Qt 6: enum members taken from a class instead of their enum, and names Qt does not have.

``Qt.AlignLeft`` works with Qt 5 only, ``Qt.AlignmentFlag.AlignLeft`` with both. Names that come from ``qgis`` are
followed in the real QGIS, so nothing has to be listed here; needs QGIS's Python.

Usage: scoped_enums.py FILE_OR_FOLDER...
"""

from __future__ import annotations

import ast
import enum
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

BINDINGS = re.compile(r"^(PyQt|PySide)\d?\b")
# The enum members of a class that are reached through an object (self.FlagAdvanced) look like types: CamelCase,
# and no further name behind them. Constants of our own are UPPER_CASE.
CAMEL = re.compile(r"^[A-Z]\w*[a-z]\w*$")


def imported(tree: ast.AST) -> Iterator[tuple[int, str, Any, Optional[str]]]:
    """Line, local name, object and complaint of every import from qgis, wherever in the file it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                if BINDINGS.match(item.name):
                    yield node.lineno, item.name, None, f"import {item.name} through qgis.PyQt"
                elif item.name.split(".")[0] == "qgis":
                    name = item.asname or "qgis"
                    module = importlib.import_module(item.name)
                    yield node.lineno, name, module if item.asname else sys.modules["qgis"], None
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if BINDINGS.match(node.module):
                yield node.lineno, node.module, None, f"import {node.module} through qgis.PyQt"
            elif node.module.split(".")[0] == "qgis":
                module = importlib.import_module(node.module)
                for item in node.names:
                    if not hasattr(module, item.name):
                        # A submodule is an attribute only once it has been imported.
                        try:
                            importlib.import_module(f"{node.module}.{item.name}")
                        except ImportError:
                            yield node.lineno, item.name, None, f"{node.module} has no {item.name}"
                            continue
                    yield node.lineno, item.asname or item.name, getattr(module, item.name), None


def chain(node: ast.Attribute) -> tuple[Optional[str], list[str]]:
    """The name at the root of ``a.b.c`` (None where it is an expression) and the attributes behind it."""
    names = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    return inner.id if isinstance(inner, ast.Name) else None, names[::-1]


def is_enum(kind: type) -> bool:
    """Whether the class is an enum: Python's own (Qt 6, newer QGIS) or sip's."""
    return issubclass(kind, enum.Enum) or type(kind).__name__ == "enumtype"


def follow(root: Any, names: list[str]) -> Optional[str]:
    """What is wrong with ``root.names[0].names[1]...``, or None."""
    value = root
    for position, name in enumerate(names):
        parent = value
        if not hasattr(parent, name):
            # Attributes of objects are known only at run time; those of modules and classes are known here.
            known = isinstance(parent, type) or type(parent).__name__ == "module"
            return f"{getattr(parent, '__name__', parent)} has no {name}" if known else None
        value = getattr(parent, name)
        if is_enum(type(value)) and parent is not type(value):
            if isinstance(parent, type) and is_enum(parent):
                return None  # an enum that QGIS keeps under a second name
            return f"write {type(value).__qualname__}.{'.'.join(names[position:])}"
    return None


def complaints(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every finding in a Python source."""
    tree = ast.parse(source)
    roots: dict[str, Any] = {}
    modules = {
        (item.asname or item.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for item in node.names
    }
    for line, name, value, complaint in imported(tree):
        if complaint:
            yield line, complaint
        else:
            roots[name] = value
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        root, names = chain(node)
        if root in roots:
            complaint = follow(roots[root], names)
            if complaint:
                yield node.lineno, complaint
        elif root is None or root in modules or id(node) in called:
            continue
        elif root[0].islower() and len(names) == 1 and CAMEL.match(names[0]):
            yield node.lineno, f"{root}.{names[0]} looks like an enum member; take it from its enum"


def main(paths: list[str]) -> int:
    """Prints the findings in the files and folders; 1 if there are any."""
    found = 0
    for path in map(Path, paths):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for line, complaint in sorted(complaints(file.read_text(encoding="utf-8"))):
                print(f"{file}:{line}: {complaint}")
                found += 1
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
