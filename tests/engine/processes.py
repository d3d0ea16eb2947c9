"""A training in two processes, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import clippan

# What each process has in the end is written beside the model, which only the first writes.
PROCESS = """
import sys, torch
from clippan import cli
from clippan.learn.loop import TrainingLoop

train = TrainingLoop.train

def watched(self):
    losses = train(self)
    torch.save({state}, f"{{sys.argv[-1]}}/rank{{self._rank}}.pt")
    return losses

TrainingLoop.train = watched
sys.exit(cli.main(sys.argv[1:]))
"""


def in_two(folder: Path, state: str, command: Sequence[str]) -> tuple[subprocess.CompletedProcess, list]:
    """Runs a command of ``clippan`` in two processes, with its output in ``folder / "run"``.

    Args:
        folder: for the run and its program.
        state: expression for what is to be known of each run in the end.
        command: without the output.

    Returns:
        How it ended, and the state in either process.
    """
    program, run = folder / "process.py", folder / "run"
    program.write_text(PROCESS.format(state=state), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(clippan.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = subprocess.run(
        [*starter, str(program), *command, "--output", str(run)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done, [torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
