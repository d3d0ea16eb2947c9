"""pip's own settings, from its configuration files and variables: which of them hold here, and which one stands in
the way of an installation."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from clippan.core.messages import Message

# Where pip fetches from, and which releases it may take, is the user's business and the site's, and stays; where it
# would put things, and for which other Python, is ours.
_HONOURED = (
    *("cache-dir", "cert", "client-cert", "constraint", "default-timeout", "extra-index-url", "find-links"),
    *("index-url", "keyring-provider", "no-binary", "no-index", "only-binary", "pre", "prefer-binary", "proxy"),
    *("require-hashes", "retries", "timeout", "trusted-host", "uploaded-prior-to", "use-deprecated", "use-feature"),
)
VARIABLES = tuple(f"PIP_{name.upper().replace('-', '_')}" for name in _HONOURED)
_HIDING_RELEASES = ("no-index", "no-binary", "only-binary")  # with these pip does not see releases that are there
_OFF_VALUES = ("", "0", "false", "no", "off", ":none:")
# The order in which pip lets one kind of file overrule another.
_FILE_KINDS = ("global", "user", "site", "env")


@dataclass(frozen=True)
class Setting:
    """A setting of pip: its name as in pip's configuration files, its value, and the file or variable it stands in."""

    name: str
    value: str
    place: str

    @property
    def variable(self) -> str:
        return VARIABLES[_HONOURED.index(self.name)]

    @property
    def described(self) -> Message:
        if self.place == self.variable:
            return Message("the variable {variable}", variable=self.place)
        return Message("“{name}” in {file}", name=self.name, file=self.place)


def config_files(lines: Iterable[str]) -> list[str]:
    """pip's configuration files that exist, those that overrule others last, from what ``pip config debug`` says."""
    found: dict[str, list[str]] = {kind: [] for kind in _FILE_KINDS}
    kind = ""
    for line in lines:
        heading = re.fullmatch(r"(\w+):", line)
        file = re.fullmatch(r"  (\S.*), exists: True", line)
        if heading:
            kind = heading.group(1)
        elif file and kind in found:
            found[kind].append(file.group(1))
    return [name for names in found.values() for name in names]


def settings_in_force(files: Iterable[str], variables: Mapping[str, str]) -> list[Setting]:
    """The settings that hold for an installation, of those that are not ours to make.

    Files that overrule others come last; pip's variables overrule all files.
    """
    found: dict[str, Setting] = {}
    parsers = [(file, _read_config(file)) for file in files]
    for section in ("global", "install"):
        for file, parser in parsers:
            for name, value in parser.items(section) if parser.has_section(section) else ():
                name = name.lower().replace("_", "-").lstrip("-")
                if name in _HONOURED and value:
                    found[name] = Setting(name, value, file)
    for name, variable in zip(_HONOURED, VARIABLES):
        if variables.get(variable):
            found[name] = Setting(name, variables[variable], variable)
    return list(found.values())


def find_faulty_setting(
    lines: Sequence[str], settings: Iterable[Setting], own: Iterable[str]
) -> Optional[tuple[str, Message]]:
    """Which of the settings made pip fail, as a cause and a remedy to stand in a sentence; None if none did.

    ``lines`` are what pip said, and ``own`` requirements that we made ourselves.
    """
    by_name = {setting.name: setting for setting in settings}
    constraint = by_name.get("constraint")
    said = [match.group(1) for match in (re.search(r"\(constraint\) (\S+)", line) for line in lines) if match]
    specs = [spec for spec in said if spec not in own]
    if constraint and specs:
        names = constraint.value.split()
        file = next((name for name in names if _project_name(specs[0]) in _constrained_projects(name)), names[0])
        reason = Message("{file} allows only {requirement}", file=file, requirement=specs[0])
        return reason, Message("change that file, which {setting} names", setting=constraint.described)
    errors = "\n".join(line for line in lines if re.match("ERROR|An error occurred|WARNING: Retrying", line))
    for setting in by_name.values():
        named = re.search(rf"(--|option ){setting.name}\b", errors)
        if named or any(os.sep in value and value in errors for value in setting.value.split()):
            return error_line(lines), Message("correct {setting}", setting=setting.described)
    if "(from versions: none)" in errors and not network_errors(lines):
        hiding = next(
            (item for name, item in by_name.items() if name in _HIDING_RELEASES and item.value not in _OFF_VALUES), None
        )
        if hiding:
            return error_line(lines), Message("remove {setting}, which hides releases", setting=hiding.described)
    return None


def network_errors(lines: Sequence[str]) -> list[str]:
    """The lines that tell of a network that does not work."""
    return [line for line in lines if re.search(r"SSL|Proxy|Connection|name resolution|timed out", line)]


def error_line(lines: Sequence[str]) -> str:
    """The line that says why a program failed: pip's last error, else the last line."""
    errors = [line for line in lines if line.startswith("ERROR:") and "ResolutionImpossible" not in line]
    line = next((item for item in (*errors[-1:], *reversed(lines)) if item.strip()), Message("no reason was given"))
    # pip ends with "No matching distribution" when the network was the cause, told further up.
    if network_errors(lines) and "No matching distribution" in line:
        line = network_errors(lines)[-1]
    line = re.sub(r"^(ERROR|WARNING):\s*", "", line.strip())
    return line[:200].rstrip(" .;:")


def _read_config(file: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(Path(file).read_text(encoding="utf-8", errors="replace"))
    except (OSError, configparser.Error):  # pip itself will say so
        return configparser.RawConfigParser()
    return parser


def _constrained_projects(file: str) -> set[str]:
    """The projects that a file of constraints names; none of a file that cannot be read, as those on the web."""
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {_project_name(line.strip()) for line in lines}


def _project_name(requirement: str) -> str:
    """The name of a requirement's project, in the spelling that all spellings share."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()
