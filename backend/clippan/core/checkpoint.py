"""Files of trained weights: safetensors, with what they are in the header."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Optional

from safetensors.torch import save
from torch import Tensor

from clippan.core.outputs import Outputs, write_output

_SMALL_NETWORK = 64  # a size up to which a network is small


def write(
    path: Path, weights: Mapping[str, Tensor], header: Mapping[str, str], outputs: Optional[Outputs] = None
) -> None:
    """Writes weights and their description as safetensors, whole or not at all; the same values give the same bytes.
    Raises ClippanError if the file cannot be written."""
    content = _with_sorted_metadata(save(dict(weights), dict(header)))
    with write_output(str(path), outputs) as part:
        part.write_bytes(content)


def _with_sorted_metadata(content: bytes) -> bytes:
    """The file with its metadata sorted: the library writes them in a random order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors lie on multiples of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file."""
    return dict(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {})


def check_sizes(sizes: Iterable[int], weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError if ``sizes`` of a network (widths, depths) exceed every dimension and the number of its
    weights: a damaged description must not allocate a huge network."""
    most = max(_SMALL_NETWORK, len(weights), *(size for value in weights.values() for size in value.shape))
    if max(sizes, default=0) > most:
        raise ValueError("it describes a larger network than it has weights for")
