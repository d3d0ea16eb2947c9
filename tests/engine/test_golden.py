"""What every job computes is what is pinned in ``tests/golden/``, on any machine, whose last bits may differ.

Where a change is meant to change results: ``python tests/engine/golden.py pin --jobs segment`` writes them anew, and
the change says why. Facts and arrays that are new need no pin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest

pytest.importorskip("open_clip")
pytest.importorskip("sklearn")

from golden import PINNED, Description, describe
from golden_jobs import CASES, Bench

SAMPLE, FEW = 600, 16  # values of an array that are kept, and of one of many
# Facts that depend on versions of libraries, or say again what others say.
LEFT_OUT = (
    "sha256",
    "SHA256",
    "/text",
    "/blocks",
    "/crs",
    "checkpoint.pt",
    "COLOR_PROFILE",
    "STATISTICS_",
    "ENGINE",
    "OGR_",
)


# Calibration's optimiser ends elsewhere from other last bits, the further the worse the model is.
UNSURE = ("answer 1/", "other.json", "/vector", "/after/", "/offset", "/logit_scale", "report.html/")


def pin(cases: Iterable[tuple[str, Description]]) -> None:
    """Writes what is to be computed from now on."""
    PINNED.mkdir(exist_ok=True)
    for name, found in cases:
        samples = {place: _sampled(array, len(found.arrays)) for place, array in _arrays(name, found)}
        about = {
            "facts": _facts(name, found),
            "count": len(found.arrays),
            "arrays": [[place, array.dtype.name, found.arrays[place].shape] for place, array in samples.items()],
        }
        text = json.dumps(about, ensure_ascii=False, separators=(",", ":"))
        together = {
            kind: np.concatenate([array for array in samples.values() if array.dtype.name == kind])
            for kind in {array.dtype.name for array in samples.values()}
        }
        np.savez_compressed(_pinned(name), about=np.frombuffer(text.encode(), np.uint8), **together)


def _pinned(name: str) -> Path:
    return PINNED / f"{name.replace(' ', '-')}.npz"


def _facts(name: str, found: Description) -> dict[str, Any]:
    facts = {place: value for place, value in found.facts.items() if not any(word in place for word in LEFT_OUT)}
    if name == "calibrate":
        facts = {place: value for place, value in facts.items() if not any(word in place for word in UNSURE)}
    if name == "doctor":  # what a machine has is its own
        facts = {place: value for place, value in facts.items() if not place.startswith("answer 0/checks/")}
    return {
        place: float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value
        for place, value in facts.items()
        if value != "…"
    }


def _arrays(name: str, found: Description) -> Iterator[tuple[str, np.ndarray]]:
    left_out = ("checkpoint.pt", "/drawing", "/overview", *(UNSURE if name == "calibrate" else ()))
    for place, array in found.arrays.items():
        if not any(word in place for word in left_out):
            yield place, array


def _sampled(array: np.ndarray, count: int) -> np.ndarray:
    flat = array.reshape(-1)
    sample = flat[:: max(1, len(flat) // (SAMPLE if count < 40 else FEW))]
    return sample.astype(np.float32) if sample.dtype == np.float64 and np.abs(sample).max(initial=0) < 1e5 else sample


def differences(name: str, found: Description) -> list[str]:
    """What is not as it is pinned."""
    with np.load(_pinned(name)) as kept:
        about, samples = json.loads(bytes(kept["about"])), {kind: kept[kind] for kind in kept.files}
    before, after = about["facts"], json.loads(json.dumps(_facts(name, found)))
    wrong = [
        f"{place}: {value!r} became {after.get(place)!r}"
        for place, value in before.items()
        if place not in after or not _alike(value, after[place])
    ]
    arrays = dict(_arrays(name, found))
    for place, kind, shape in about["arrays"]:
        count = len(_sampled(np.broadcast_to(np.zeros((), kind), shape), about["count"]))
        kept, samples[kind] = samples[kind][:count], samples[kind][count:]
        if place not in arrays:
            wrong.append(f"{place}: is missing")
        elif list(arrays[place].shape) != shape:
            wrong.append(f"{place}: {shape} became {arrays[place].shape}")
        else:
            what = _gap(place, kept, _sampled(arrays[place], about["count"]))
            wrong += [f"{place}: {what}"] if what else []
    return wrong


def _alike(before: Any, after: Any) -> bool:
    numbers = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in (before, after))
    if not numbers or (isinstance(before, int) and abs(before) < 1000):
        return bool(before == after)
    return math.isclose(before, after, rel_tol=3e-3, abs_tol=1e-4)


def _gap(place: str, before: np.ndarray, after: np.ndarray) -> Optional[str]:
    """What is wrong with an array, or None."""
    if before.dtype != after.dtype:
        return f"{before.dtype} became {after.dtype}"
    if not before.size:
        return None
    first, second = before.astype(np.float64), after.astype(np.float64)
    gap = np.where(np.isnan(first) & np.isnan(second), 0, np.abs(first - second))
    gap[np.isnan(gap)] = np.inf
    if before.dtype.kind in "iub":
        coloured = "map.tif" in place or "picture" in place  # a class is another one, not the next
        far, near = (gap > 1).mean(), (gap > 0).mean()
        bad = near > 0.005 if "map.tif" in place else near > 0.01 or far > (0.005 if coloured else 0)
    else:
        # Steps of an optimiser may tip over where a gradient is almost nothing.
        far = (gap > 1e-3 * np.abs(first) + 1e-3 * np.nanmax(np.abs(first))).mean()
        bad = far > (0.15 if ".safetensors" in place else 0.01)
    return f"{far:.1%} of the values are too far off, by {gap.max():.3g} at most" if bad else None


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CLIPPAN_CACHE", "CLIPPAN_OFFLINE"):
            patch.setenv(name, "")  # so that it is restored
        yield Bench(tmp_path_factory.mktemp("golden"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_job_computes_what_it_did(bench: Bench, name: str) -> None:
    found = describe(bench, name)
    wrong = differences(name, found)
    assert not wrong, "\n".join(wrong[:40])


def test_all_jobs_are_pinned() -> None:
    from clippan.jobs import JOBS

    assert {job for job, _ in CASES.values()} == set(JOBS)
    assert {path.name for path in PINNED.glob("*.npz")} == {_pinned(name).name for name in CASES}
    assert sum(path.stat().st_size for path in PINNED.iterdir()) < 400_000


@pytest.fixture(scope="module")
def sharpened(bench: Bench) -> Description:
    return describe(bench, "pansharpen bt-h")


def _changed(found: Description, array: Optional[np.ndarray] = None, **facts: Any) -> list[str]:
    arrays = found.arrays if array is None else {**found.arrays, "sharp.tif/band 2": array}
    return differences("pansharpen bt-h", Description({**found.facts, **facts}, arrays, found.words))


def test_a_change_is_seen(sharpened: Description) -> None:
    """What a real change does: some pixels, a tag, a number, another type; and what a machine may do."""
    pixels = sharpened.arrays["sharp.tif/band 2"]
    some = np.random.default_rng(0).uniform(size=pixels.shape)
    assert not _changed(sharpened)
    assert not _changed(sharpened, np.where(some < 0.002, pixels + 1, pixels).astype(pixels.dtype))
    assert _changed(sharpened, np.where(some < 0.05, pixels + 1, pixels).astype(pixels.dtype))
    assert _changed(sharpened, np.where(some < 0.02, pixels + 2, pixels).astype(pixels.dtype))
    assert _changed(sharpened, pixels.astype("int32"))
    assert _changed(sharpened, pixels[:-1])
    assert _changed(sharpened, **{"sharp.tif/tags/CLIPPAN_METHOD": "gsa"})
    assert _changed(sharpened, **{"answer 0/width": 193})
    gone = Description({}, {}, [])
    assert len(differences("pansharpen bt-h", gone)) > 20
