"""The training loop and the folder of a run: ``recipe.json``, ``curves.csv`` (the loss terms) and ``checkpoint.pt``.

The same command resumes an interrupted run. ``torchrun`` may start one process per device; only the first one writes.
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
from clippan.core.outputs import exclusive_lock, write_error, write_output

CHECKPOINT, CURVES, RECIPE = "checkpoint.pt", "curves.csv", "recipe.json"


@contextlib.contextmanager
def distributed(device: torch.device) -> Iterator[tuple[torch.device, int, int]]:
    """Device, rank and number of processes; joins the group if ``torchrun`` started several."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield device, 0, 1
        return
    if device.type == "cuda":
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ClippanError(
                "There are more processes than GPUs ({gpus}); start one process per GPU, or add --device cpu.",
                gpus=gpus,
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device, torch.distributed.get_rank(), world_size
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def run_folder(folder: Path, recipe: Mapping[str, Any], results: Sequence[str], rank: int = 0) -> Iterator[None]:
    """Creates and locks the folder of a run, or one that holds an interrupted run of the same recipe; rank 0 does all.

    A run that fails before it has a checkpoint, curves or one of its ``results`` leaves nothing: its recipe or data are
    wrong.

    Raises:
        ClippanError: the folder holds a run of another recipe, is locked by another run, or cannot be written to.
    """
    if rank:
        yield
        return
    path = folder / RECIPE
    undo = [remove for item, remove in ((path, path.unlink), (folder, folder.rmdir)) if not item.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != recipe:
            raise ClippanError("{folder} holds a run of another recipe; choose an empty folder.", folder=folder)
        path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    except OSError as error:
        raise write_error(path, error) from error
    except ValueError as error:
        raise ClippanError(
            "The folder {folder} cannot be used ({reason}); choose an empty one.", folder=folder, reason=one_line(error)
        ) from error
    locked = Message(
        "Another process is training in {folder}; wait until it is done, or choose another folder.", folder=folder
    )
    try:
        with exclusive_lock(folder / ".clippan-lock", locked):
            yield
    except Exception:
        if not any((folder / name).exists() for name in (CHECKPOINT, CURVES, *results)):
            with contextlib.suppress(OSError):  # a folder with other files stays
                for remove in undo:
                    remove()
        raise


def format_figures(values: Mapping[str, float]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


class TrainingLoop:
    """Steps, curves, checkpoints and resumption; subclasses say what a step is and what a checkpoint holds.

    A row of the curves averages the loss terms of ``log_every`` steps.

    Attributes:
        terms: names of all loss terms, where not every step has all of them.
        stage_ends: steps after which a row of the curves always ends.
    """

    terms: tuple[str, ...] = ()
    stage_ends: tuple[int, ...] = ()

    def __init__(
        self, folder: Path, steps: int, rank: int, context: Context, log_every: int, checkpoint_every: int
    ) -> None:
        self._folder, self._steps, self._rank, self._context = folder, steps, rank, context
        self._log_every, self._checkpoint_every = log_every, checkpoint_every
        self._done = 0
        self._sums: dict[str, float] = {}  # of the loss terms since the last row of the curves

    def sample_batch(self, step: int) -> Any:
        """The batch of a step, determined by the step number alone. Runs in its own thread, one step ahead."""
        raise NotImplementedError

    def train_step(self, step: int, batch: Any) -> Mapping[str, Tensor]:
        """Takes a step and returns the loss terms by name."""
        raise NotImplementedError

    def checkpointed(self) -> Mapping[str, Any]:
        """What a checkpoint holds the ``state_dict`` of, by name: networks, the optimiser and the scheduler."""
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores all that is ``checkpointed``."""
        for name, item in self.checkpointed().items():
            item.load_state_dict(state[name])

    def train(self) -> dict[str, float]:
        """Trains to the last step and returns the loss terms, averaged over the last row of the curves.

        Raises:
            Cancelled: the run was cancelled; a checkpoint of the last step is kept.
        """
        steps = self._steps
        last: dict[str, float] = {}
        with ThreadPoolExecutor(1) as pool:
            # The next batch is sampled during the current step.
            upcoming = pool.submit(self.sample_batch, self._done) if self._done < steps else None
            for step in range(self._done, steps):
                assert upcoming is not None
                batch = upcoming.result()
                upcoming = pool.submit(self.sample_batch, step + 1) if step + 1 < steps else None
                terms = self.train_step(step, batch)
                self._done = step + 1
                for name, value in terms.items():
                    self._sums[name] = self._sums.get(name, 0.0) + float(value)
                if self._done % self._log_every == 0 or self._done in self.stage_ends or self._done == steps:
                    row_ends = [(self._done - 1) // self._log_every * self._log_every, *self.stage_ends]
                    count = self._done - max(end for end in row_ends if end < self._done)
                    last = {name: value / count for name, value in self._sums.items()}
                    self._sums = {}
                    self._write_curves(last)
                if self._done % self._checkpoint_every == 0 or self._done == steps:
                    self._save_checkpoint()
                try:
                    self._context.progress(
                        100 * self._done / steps, Message("Step {step} of {steps}", step=self._done, steps=steps)
                    )
                except Cancelled:
                    self._save_checkpoint()
                    raise Cancelled(
                        Message("Cancelled after step {step}; run the same command to resume.", step=self._done)
                    ) from None
        return last

    def _write_curves(self, terms: Mapping[str, float]) -> None:
        if self._rank:
            return
        path = self._folder / CURVES
        is_new, names = not path.exists(), self.terms or tuple(terms)
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(["step", *names])
                writer.writerow([self._done, *(f"{terms[name]:.6g}" if name in terms else "" for name in names)])
        except OSError as error:
            raise write_error(path, error) from error
        self._context.log(Message("Step {step}: {losses}", step=self._done, losses=format_figures(terms)))

    def _save_checkpoint(self) -> None:
        if self._rank:
            return
        with write_output(str(self._folder / CHECKPOINT)) as part:
            states = {name: item.state_dict() for name, item in self.checkpointed().items()}
            torch.save({"done": self._done, "sums": self._sums, **states}, part)

    def resume(self, device: torch.device) -> None:
        """Resumes from the folder's checkpoint, if there is one.

        Raises:
            ClippanError: the checkpoint is damaged.
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
            self._truncate_curves()
            if path.exists():
                self._context.log(Message("Resuming after step {step}.", step=self._done))

    def _truncate_curves(self) -> None:
        """Removes the rows after the checkpoint, whose steps will be repeated."""
        path = self._folder / CURVES
        if not path.exists():
            return
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        # A kill may have cut the last row, or the first.
        kept = [row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= self._done]
        if not kept:
            path.unlink()
            return
        with write_output(str(path)) as part, part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *kept])
