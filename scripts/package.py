#!/usr/bin/env python3
"""Builds the plugin's zip, ``dist/clippan_qgis-VERSION.zip``; the same files give the same bytes.

The zip holds one folder: the plugin, and beside it what the plugin finds beside itself in the repository: the
engine in ``backend/`` and ``resources/``. Needs nothing but Python, so that any machine can build it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "clippan_qgis"
PLACES = {"clippan_qgis": "", "backend/clippan": "backend/clippan", "resources": "resources"}
PAGES = ("LICENSE", "README.md", "CHANGELOG.md")
TOO_BIG = 25_000_000  # bytes, the plugin portal's limit
REFUSED = (".so", ".dll", ".dylib", ".exe", ".pyd", ".bat", ".sh", ".jar", ".pyc", ".a", ".o")  # there too


def version() -> str:
    """The one version that metadata.txt, pyproject.toml and the engine have to agree on."""
    found = {}
    for name in ("metadata.txt", "pyproject.toml", "backend/clippan/__init__.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        match = re.search(r"^(?:__)?version(?:__)? *= *\"?([^\"\s]+)", text, re.MULTILINE)
        found[name] = match.group(1) if match else "none"
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} has {value}" for name, value in found.items())
        raise SystemExit(f"The versions differ: {listed}. Write the same one in each.")
    return found["metadata.txt"]


def metadata(release: str) -> str:
    """metadata.txt with the changelog of this release, as the plugin manager shows it."""
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    match = re.search(rf"^## {re.escape(release)}\b.*?\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL)
    if not match or not match.group(1).strip():
        raise SystemExit(f"CHANGELOG.md has no entry for {release}; write one under '## {release}'.")
    # Continued lines of an ini value are indented; '%' starts an interpolation in Python's parser.
    lines = [line.replace("%", "%%") for line in match.group(1).strip().splitlines() if line.strip()]
    text = (ROOT / "metadata.txt").read_text(encoding="utf-8").rstrip("\n")
    return text + f"\nchangelog={release}\n" + "".join(f"  {line}\n" for line in lines)


def wanted(folder: Path) -> Iterator[Path]:
    """The folder's files that belong in a release: what git holds or could add; without git, all."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", str(folder)]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        listed = run.stdout.decode().split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        paths = list(folder.rglob("*"))
    for path in sorted(set(paths)):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def contents(release: str) -> Iterator[tuple[str, bytes]]:
    """Names inside the zip and what they hold."""
    yield "metadata.txt", metadata(release).encode()
    for page in PAGES:
        yield page, (ROOT / page).read_bytes()
    for source, target in PLACES.items():
        folder = ROOT / source
        for path in wanted(folder):
            name = (Path(target) / path.relative_to(folder)).as_posix()
            if path.suffix in REFUSED:
                raise SystemExit(f"The plugin portal refuses binaries and scripts; take out {path}.")
            yield name, path.read_bytes()


def build(folder: Path) -> Path:
    """Writes the zip into the folder and returns its path."""
    release = version()
    target = folder / f"{NAME}-{release}.zip"
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted(contents(release)):
            entry = zipfile.ZipInfo(f"{NAME}/{name}", date_time=(2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    size = part.stat().st_size
    if size > TOO_BIG:
        part.unlink()
        raise SystemExit(f"The zip has {size / 1e6:.1f} MB; the plugin portal takes {TOO_BIG / 1e6:.0f} MB.")
    part.replace(target)
    return target


def main() -> int:
    """Builds into ``dist/``, or the folder that is named."""
    parser = argparse.ArgumentParser(description="Build the plugin's zip.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    path = build(parser.parse_args().folder)
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
