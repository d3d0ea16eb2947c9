"""The command ``clippan``: builds the same requests as everyone, runs them in this process, and prints results.

Exit codes: 0 done; 2 one sentence on stderr says why not (or, for ``doctor``, something does not work); 130 cancelled
with Ctrl-C, or by a scheduler (SIGTERM). On any but 0 nothing is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Callable, NoReturn, Optional

from clippan import __version__
from clippan.core import utf8
from clippan.core.context import Context
from clippan.core.device import sleep_idle_threads
from clippan.core.errors import Cancelled, ClippanError
from clippan.core.json import from_json, to_json
from clippan.core.messages import render
from clippan.handlers import run
from clippan.jobs import JOBS, ClipMethod, DoctorResult, Result, TrainClipResult, TrainFusionResult, parse_bands
from clippan.jobs.param import Param, params

FAILED = 2
INTERRUPTED = 130

_GROUPS = {"pretrain": "Learns without labels.", "train": "Trains a network.", "finetune": "Fine-tunes a model."}
# ``clippan train clip --method patch`` is a job of its own, with options of its own.
_METHOD, _PATCH, _PATCH_COMMAND = "--method", "patch", ("finetune", "clip")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, as all others."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.split())
        missing = re.fullmatch(r"argument (--[\w-]+): expected (one|at least one) argument", message)
        if missing:
            option = missing.group(1)
            message = f"{option} needs a value; write one that begins with a dash as {option}=-…"
        raise ClippanError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")


def parser() -> argparse.ArgumentParser:
    """The command's parser, with one subcommand a job."""
    about = "Search and maps by text, and pansharpening, for satellite and aerial rasters."
    top = _Parser(prog="clippan", description=about)
    top.add_argument("--version", action="version", version=f"clippan {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    groups: dict[str, Any] = {}
    for name, request in JOBS.items():
        *group, word = name.split()  # "train fusion" is the command fusion of the group train
        for title in group:
            if title not in groups:
                member = commands.add_parser(title, help=_GROUPS[title], description=_GROUPS[title])
                groups[title] = member.add_subparsers(
                    dest="member", metavar="WHAT", required=True, parser_class=_Parser
                )
        home = groups[group[0]] if group else commands
        command = home.add_parser(word, help=request.summary, description=request.summary)
        command.set_defaults(job=name)
        for item in params(request):
            _add_option(command, item)
        command.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
        command.add_argument("--debug", action="store_true", help="log to stderr, and show where a failure happened")
    return top


def _add_option(command: argparse.ArgumentParser, item: Param) -> None:
    """Adds the option of a parameter."""
    text = item.help.replace("%", "%%")  # argparse formats it
    metavar = item.kind.metavar or {int: "N", float: "VALUE"}.get(item.type, item.name.upper())
    if item.positional:
        kind, count = (str, "+") if item.many else (item.type, None)
        command.add_argument(item.name, type=kind, nargs=count, metavar=metavar, help=text)
        return
    details: dict[str, Any] = {"required": item.required, "default": None if item.required else item.default}
    if item.type is bool:
        if item.default:
            text = f"Turns this off: {text[:1].lower()}{text[1:]}"
        details = {"action": "store_false" if item.default else "store_true"}
    elif item.many and item.type in (int, float):
        metavar = item.kind.metavar or f"{metavar},{metavar}"
        details |= {"type": _integer_list if item.type is int else _number_list, "metavar": metavar}
        text = _help_with_facts(item, text)
    elif item.many:
        details |= {"nargs": "+", "action": "extend", "metavar": metavar}
        details["default"] = None if item.required else list(item.default)
    elif issubclass(item.type, enum.Enum):
        words = list(item.choices)
        text = f"{text} One of: {', '.join(words)} (default: {item.default.value})."
        # argparse lists the choices in the message of a wrong one, and hides nothing.
        details = {"type": str.lower, "choices": words, "default": item.default.value, "metavar": "NAME"}
    else:
        details |= {"type": item.type, "metavar": metavar}
        text = _help_with_facts(item, text)
    command.add_argument(item.option, dest=item.name, help=text, **details)


def _help_with_facts(item: Param, text: str) -> str:
    """The help of a parameter with its range, the known values and the default, where it has these."""
    facts = [] if item.constraint is None else [f"{item.constraint} {item.unit}".strip()]
    if item.choices:
        facts.append(f"one of {', '.join(item.choices)}")
    if not item.required and item.default not in (None, "", ()):
        default = ",".join(map(str, item.default)) if item.many else item.default
        facts.append(f"default: {default}")
    return f"{text} ({'; '.join(facts)})" if facts else text


def _number_list(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in text.replace(",", " ").split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 10.5,20") from None


def _integer_list(text: str) -> tuple[int, ...]:
    try:
        return parse_bands(text)
    except ClippanError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def _join_dashed_values(arguments: Sequence[str], top: argparse.ArgumentParser) -> list[str]:
    """The arguments with ``--text -forest`` as one word, and likewise ``--nodata -3.4e38``: argparse takes what begins
    with a dash for an option."""
    actions = sorted(_actions(top), key=lambda action: action.nargs == "+")  # what takes several values in one command
    value_counts = {option: action.nargs for action in actions for option in action.option_strings}

    def begins_option(argument: str) -> bool:
        # -output is a slip of the pen; -3 and -forest are values
        slip = argument.startswith("-") and f"-{argument.split('=')[0]}" in value_counts
        return argument in value_counts or argument.startswith("--") or slip

    joined: list[str] = []
    start = 0
    while start < len(arguments):
        option = arguments[start]
        start += 1
        joined.append(option)
        if option == "--":
            return [*joined, *arguments[start:]]
        if value_counts.get(option, 0) == 0:
            continue
        end, limit = start, len(arguments) if value_counts[option] == "+" else start + 1
        while end < min(limit, len(arguments)) and not begins_option(arguments[end]):
            end += 1
        values, start = arguments[start:end], end
        if any(value.startswith("-") for value in values):
            joined[-1:] = [f"{option}={value}" for value in values]
        else:
            joined += values
    return joined


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """What a parser and those of its commands take."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action


def _route_method(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``train clip --method patch`` as the command that does it."""
    words = [word for item in arguments for word in (item.split("=", 1) if item.startswith("--method=") else [item])]
    if words[:2] != ["train", "clip"]:
        return list(arguments)
    for number, (option, value) in enumerate(zip(words, words[1:])):
        if option != _METHOD:
            continue
        known = [*(method.value for method in ClipMethod), _PATCH]
        if value.lower() not in known:
            raise ClippanError("There is no method {name}; choose one of {known}.", name=value, known=", ".join(known))
        if value.lower() == _PATCH:
            return [*_PATCH_COMMAND, *words[2:number], *words[number + 2 :]]
    return list(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs the command and returns its exit code."""
    if arguments is None:
        utf8.restart_in_utf8_mode("clippan.cli")
    sleep_idle_threads()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a Windows console may not know every letter of a path
            stream.reconfigure(errors="replace")
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    if not debug:  # GDAL's other threads print what the one that failed raises
        os.environ.setdefault("CPL_LOG", os.devnull)
    progress = _Progress()
    try:
        top = parser()
        given = _join_dashed_values(_route_method(sys.argv[1:] if arguments is None else arguments), top)
        options = vars(top.parse_args(given))
        job, as_json, debug = JOBS[options.pop("job")], options.pop("json"), options.pop("debug")
        for word in ("command", "member"):
            options.pop(word, None)
        request = from_json(job, options)
        with _cancel_on_signal() as interrupted:
            result = run(request, Context(progress.show, progress.log if debug or job.shows_log else None, interrupted))
    except Cancelled as error:
        return _print_failure(progress, str(error), INTERRUPTED)
    except KeyboardInterrupt:
        return _print_failure(progress, str(Cancelled()), INTERRUPTED)
    except ClippanError as error:
        if debug and error.__cause__:
            raise
        return _print_failure(progress, str(error), FAILED)
    except Exception as error:
        if debug:
            raise
        sentence = f"The engine failed unexpectedly ({type(error).__name__}: {error}); --debug shows where."
        return _print_failure(progress, sentence, FAILED)
    progress.clear()
    # Of the processes that torchrun started, one tells.
    if not isinstance(result, (TrainFusionResult, TrainClipResult)) or os.environ.get("RANK", "0") == "0":
        print(json.dumps(to_json(result), indent=2, ensure_ascii=False) if as_json else _text(result))
    return 0 if not isinstance(result, DoctorResult) or result.ok else FAILED


def _text(result: Result) -> str:
    return "\n".join(render([*result.describe(), *getattr(result, "hints", ())]))


def _print_failure(progress: _Progress, sentence: str, code: int) -> int:
    progress.clear()
    print(" ".join(sentence.split()), file=sys.stderr)
    return code


@contextlib.contextmanager
def _cancel_on_signal() -> Iterator[Callable[[], bool]]:
    """While a job runs, Ctrl-C or SIGTERM asks it to stop and clean up; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def ask(number: int, frame: Optional[FrameType]) -> None:
        asked.set()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """One line on stderr that is rewritten, where stderr is a terminal; else nothing."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._shown = False

    def show(self, percent: float, message: str) -> None:
        """Shows progress, at most ten times a second."""
        if not self._terminal or (time.monotonic() - self._last < 0.1 and percent < 100):
            return
        self._last = time.monotonic()
        self._shown = True
        print(f"\r{percent:3.0f} % {message}\033[K", end="", file=sys.stderr, flush=True)

    def log(self, line: str) -> None:
        """Prints a line of the log."""
        self.clear()
        print(line, file=sys.stderr)

    def clear(self) -> None:
        """Removes the line."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._shown = False


if __name__ == "__main__":
    sys.exit(main())
