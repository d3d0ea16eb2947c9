"""A training in a folder: ``recipe.json``, ``curves.csv`` (the terms of the loss) and ``checkpoint.pt``.

The same command goes on with a run that was stopped. ``torchrun`` may start several processes, one a device; the first
of them writes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clippan.core.context import Context
from clippan.core.errors import Cancelled, ClippanError, one_line
from clippan.core.messages import Message
from clippan.core.outputs import held, making, unwritten

CHECKPOINT, CURVES, RECIPE = "checkpoint.pt", "curves.csv", "recipe.json"


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[tuple[torch.device, int, int]]:
    """This process's device, its number and how many there are; joins those that ``torchrun`` started."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield device, 0, 1
        return
    if device.type == "cuda":
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise ClippanError(
                "There are more processes than GPUs ({there}); start one for each, or add --device cpu.", there=there
            )
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device, torch.distributed.get_rank(), count
    finally:
        torch.distributed.destroy_process_group()


def prepare(folder: Path, wanted: Mapping[str, Any]) -> list[Path]:
    """Makes the folder, or finds that it holds a run of the same recipe; what it made.

    Args:
        folder: of the run.
        wanted: the recipe as JSON values.

    Raises:
        ClippanError: it holds another run, or cannot be written to.
    """
    known = folder / RECIPE
    made = [path for path in (known, folder) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if known.exists() and json.loads(known.read_text(encoding="utf-8")) != wanted:
            raise ClippanError("{folder} holds a run of another recipe; choose an empty folder.", folder=folder)
        known.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    except OSError as error:
        raise unwritten("recipe", known, error, "choose another folder") from error
    except ValueError as error:
        raise ClippanError(
            "The folder {folder} cannot be used ({reason}); choose an empty one.", folder=folder, reason=one_line(error)
        ) from error
    return made


def alone(folder: Path, rank: int = 0) -> contextlib.AbstractContextManager[None]:
    """Holds the folder of a run, so that no other run trains in it.

    Args:
        folder: of the run.
        rank: this process's number; the first holds it for all.

    Raises:
        ClippanError: another run does.
    """
    if rank:
        return contextlib.nullcontext()
    sentence = Message(
        "Another process is training in {folder}; wait until it is done, or choose another folder.", folder=folder
    )
    return held(folder / ".clippan-lock", "folder", sentence)


def tidy(folder: Path, made: Sequence[Path], results: Sequence[str]) -> None:
    """Removes what was made for a run that could not begin, as its recipe or its data are wrong.

    Args:
        folder: of the run.
        made: what ``prepare`` made.
        results: names of the files that show, beside a checkpoint and curves, that it did begin.
    """
    with contextlib.suppress(OSError):
        if any((folder / name).exists() for name in (CHECKPOINT, CURVES, *results)):
            return
        for path in made:
            if path == folder:
                path.rmdir()  # if it is empty
            else:
                path.unlink()


class Training:
    """A training under way. What a step is, and what has to be kept, says who inherits.

    Args:
        folder: of the run.
        steps: of the whole run.
        rank: this process's number.
        context: hears of progress, and may cancel.
        logged: steps that a row of the curves is the mean of.
        kept: steps between checkpoints.

    Attributes:
        terms: the names of all terms, where not every step has each of them.
        ends: steps after which a row of the curves ends in any case.
    """

    terms: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()

    def __init__(self, folder: Path, steps: int, rank: int, context: Context, logged: int, kept: int) -> None:
        self._folder, self._steps, self._rank, self._context = folder, steps, rank, context
        self._logged, self._kept = logged, kept
        self._done = 0
        self._sums: dict[str, float] = {}  # of the terms since the last row of the curves

    def draw(self, step: int) -> Any:
        """The batch of a step, which the step's number alone decides. Runs in a thread of its own, one step ahead."""
        raise NotImplementedError

    def learn(self, step: int, batch: Any) -> Mapping[str, Tensor]:
        """Takes a step; the terms of the loss by name."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint kept."""
        raise NotImplementedError

    def go(self) -> dict[str, float]:
        """Trains to the last step; the terms of the last steps.

        Raises:
            Cancelled: the run can be resumed from where it stopped.
        """
        steps = self._steps
        last: dict[str, float] = {}
        with ThreadPoolExecutor(1) as pool:
            # The next batch is drawn while this one is worked on.
            coming = pool.submit(self.draw, self._done) if self._done < steps else None
            for step in range(self._done, steps):
                assert coming is not None
                batch = coming.result()
                coming = pool.submit(self.draw, step + 1) if step + 1 < steps else None
                terms = self.learn(step, batch)
                self._done = step + 1
                for name, value in terms.items():
                    self._sums[name] = self._sums.get(name, 0.0) + float(value)
                if self._done % self._logged == 0 or self._done in self.ends or self._done == steps:
                    before = [(self._done - 1) // self._logged * self._logged, *self.ends]  # rows that ended
                    number = self._done - max(place for place in before if place < self._done)
                    last = {name: value / number for name, value in self._sums.items()}
                    self._sums = {}
                    self._record(last)
                if self._done % self._kept == 0 or self._done == steps:
                    self._keep()
                try:
                    self._context.progress(
                        100 * self._done / steps, Message("Step {_done} of {steps}", _done=self._done, steps=steps)
                    )
                except Cancelled:
                    self._keep()
                    sentence = Message(
                        "Cancelled after step {_done}; the same command goes on from there.", _done=self._done
                    )
                    raise Cancelled(sentence) from None
        return last

    def _record(self, terms: Mapping[str, float]) -> None:
        if self._rank:
            return
        path = self._folder / CURVES
        new, names = not path.exists(), self.terms or tuple(terms)
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["step", *names])
                writer.writerow([self._done, *(f"{terms[name]:.6g}" if name in terms else "" for name in names)])
        except OSError as error:
            raise unwritten("table", path, error) from error
        words = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
        self._context.log(Message("Step {_done}: {words}", _done=self._done, words=words))

    def _keep(self) -> None:
        if self._rank:
            return
        with making(str(self._folder / CHECKPOINT), "checkpoint") as part:
            torch.save({"done": self._done, "sums": self._sums, **self.state()}, part)

    def resume(self, device: torch.device) -> None:
        """Goes on from the folder's checkpoint, if there is one.

        Raises:
            ClippanError: it is damaged.
        """
        path = self._folder / CHECKPOINT
        if path.exists():
            try:
                state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
                if "scheduler" not in state:
                    raise ValueError("an older version of CLIPPan wrote it")
                self._done, self._sums = state["done"], state.get("sums", {})
                self.restore(state)
            except Exception as error:
                raise ClippanError(
                    "The checkpoint {path} cannot be read ({reason}); remove it to start from the first step.",
                    path=path,
                    reason=one_line(error),
                ) from error
        if self._rank == 0:
            self._drop_rows()
            if path.exists():
                self._context.log(Message("Going on after step {_done}.", _done=self._done))

    def _drop_rows(self) -> None:
        """Rows of the curves after the checkpoint, which will come again."""
        path = self._folder / CURVES
        if not path.exists():
            return
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        # A kill may have cut the last row, or the first.
        kept = [row for row in rows if len(row) == len(head) and row[0].isdigit() and int(row[0]) <= self._done]
        if not kept:
            path.unlink()
            return
        with making(str(path), "table") as part, part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *kept])
