"""Writes docs/reference/, a page for each job, from what the jobs declare: ``python scripts/reference.py [FOLDER]``."""

from __future__ import annotations

import enum
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "backend"))

from clippan.jobs import JOBS, Request  # noqa: E402
from clippan.jobs.param import Param, params  # noqa: E402

_NOTE = "<!-- Made by scripts/reference.py from the declarations in backend/clippan/jobs/; do not edit. -->\n\n"


def pages() -> dict[str, str]:
    """The text of each page, by file name."""
    rows = "".join(
        f"| [{job.title}]({_file(job)}) | `clippan {name}` | {job.summary} |\n" for name, job in JOBS.items()
    )
    index = f"{_NOTE}# Reference\n\n| Job | Command | |\n|---|---|---|\n{rows}"
    return {"README.md": index, **{_file(job): _page(job) for job in JOBS.values()}}


def _file(job: type[Request]) -> str:
    return f"{job.name.replace(' ', '_')}.md"


def _page(job: type[Request]) -> str:
    rows = "".join(_row(item) for item in params(job))
    table = f"| Parameter | Option | Value | |\n|---|---|---|---|\n{rows}" if rows else "It has no parameters.\n"
    return f"{_NOTE}# {job.title}\n\n`clippan {job.name}`\n\n{job.summary}\n\n{table}"


def _row(item: Param) -> str:
    text = f"{item.help}{' *(advanced)*' if item.advanced else ''}"
    return f"| {item.label} | `{item.option}` | {'; '.join(_value(item))} | {text} |\n"


def _value(item: Param) -> list[str]:
    """What a value has to be, and the default."""
    facts = ["required"] if item.required else []
    if item.choices:
        facts.append(", ".join(f"`{word}`" for word in item.choices))
    if item.constraint is not None:
        facts.append(str(item.constraint))
    default = item.default.value if isinstance(item.default, enum.Enum) else item.default
    if not item.required and default not in (None, "", ()):
        default = ",".join(map(str, default)) if item.many else default
        facts.append(f"default {'on' if default is True else 'off' if default is False else default}")
    return facts


def main() -> None:
    """Writes the pages."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.md"):
        path.unlink()
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
