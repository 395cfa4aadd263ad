"""The maps that a run keeps to be looked at: small, of eight bits, in the colours' own scale.

A sheet shows a dozen maps; a page shows all. Kept small they take a few kilobytes a hundred images
and make every later look at a model a matter of reading: nothing is scored again.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.pictures.panels import heat_scale
from headwater.geometry import place
from headwater.spec import ExtractorSpec

#: The artifact of a run.
FILE = "small-maps.npz"
#: Longer side of a small map at most, positions.
SIDE = 64
#: Left, top, width and height as shares of the whole image.
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class SmallMap:
    """A map made small.

    Parameters
    ----------
    values
        ``[h, w]`` uint8: 1 up to where colour begins, 255 where it is full, 0 what is not looked
        at. Each is the largest of the values it stands for, so that no small peak is lost.
    box
        The part of the image that it lies on: a centre crop leaves a margin.
    """

    values: NDArray[np.uint8]
    box: Box = WHOLE


def small_maps(
    found: Iterable[tuple[str, Any, tuple[int, int]]],
    spec: ExtractorSpec,
    cut: float | None,
    *,
    probabilities: bool = False,
    scale: tuple[float, float] | None = None,
) -> tuple[dict[str, SmallMap], tuple[float, float]]:
    """Make maps small; they are taken one by one, so that not all need be in memory.

    Parameters
    ----------
    found
        Of each sample its name, its map ``[H, W]`` (masked where it is not looked at), at the
        input's size or a whole fraction of it, and height and width of its image, pixels.
    spec
        How the images became inputs.
    cut, probabilities
        What colours go by: see `flows.pictures.panels.heat_scale`; probabilities go from 0 to 1.
    scale
        Instead: the values at which colour begins and is full.

    Returns
    -------
    tuple
        The small maps by name, and the scale.
    """
    kept: dict[str, tuple[np.ma.MaskedArray, Box]] = {}
    pixels = []
    for name, heat, size in found:
        heat, box = _on_image(heat, size, spec)
        pixels.append(np.ma.getdata(heat).ravel()[::7])
        kept[name] = (_largest(heat), box)
    if scale is None:
        scale = (0.0, 1.0) if probabilities or not pixels else heat_scale(pixels, cut)
    low, high = scale
    made = {}
    for name, (heat, box) in kept.items():
        part = np.clip((np.ma.getdata(heat) - low) / (high - low), 0, 1)
        values = np.rint(1 + 254 * part).astype(np.uint8)
        made[name] = SmallMap(np.where(np.ma.getmaskarray(heat), 0, values).astype(np.uint8), box)
    return made, scale


def _on_image(heat: Any, size: tuple[int, int], spec: ExtractorSpec) -> tuple[Any, Box]:
    """Return a map without padding, and the part of the image that it lies on."""
    if spec.tiles is not None:
        return heat, WHOLE
    where = place(*size, spec)
    # Out-of-fold maps may be thinned out to every s-th row and column.
    steps = [-(-whole // own) for whole, own in zip(spec.input_size, heat.shape, strict=True)]
    rows, columns = (
        slice(-(-cut.start // step), max(-(-cut.stop // step), -(-cut.start // step) + 1))
        for cut, step in zip(where.filled, steps, strict=True)
    )
    (down, across), (height, width) = where.shown, where.scaled
    box = (
        across.start / width,
        down.start / height,
        (across.stop - across.start) / width,
        (down.stop - down.start) / height,
    )
    return heat[rows, columns], box


def _largest(heat: Any) -> np.ma.MaskedArray:
    """Return the largest value of each block, of as few blocks as have at most `SIDE` a side."""
    counts = [min(SIDE, side) for side in heat.shape]
    if heat.shape[0] != heat.shape[1]:
        factor = min(1.0, SIDE / max(heat.shape))
        counts = [max(1, round(side * factor)) for side in heat.shape]
    values = np.where(np.ma.getmaskarray(heat), -np.inf, np.ma.getdata(heat))
    for axis, count in enumerate(counts):
        starts = np.arange(count) * values.shape[axis] // count
        values = np.maximum.reduceat(values, starts, axis=axis)
    return np.ma.masked_array(np.where(np.isneginf(values), 0, values), np.isneginf(values))


def save(path: Path, groups: Mapping[str, Mapping[str, SmallMap]]) -> Path:
    """Write groups of small maps, as of test images and of normals, to one file; return it."""
    order = [(group, name) for group, maps in groups.items() for name in maps]
    maps = [groups[group][name] for group, name in order]
    index = json.dumps(order).encode()
    flat = [m.values.ravel() for m in maps]
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            index=np.frombuffer(index, np.uint8),
            shapes=np.array([m.values.shape for m in maps], np.int32).reshape(-1, 2),
            boxes=np.array([m.box for m in maps], np.float64).reshape(-1, 4),
            values=np.concatenate(flat) if flat else np.empty(0, np.uint8),
        )
    return path


def load(path: Path) -> dict[str, dict[str, SmallMap]]:
    """Return what `save` wrote; nothing where the file is damaged: maps can be made again."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            order = json.loads(bytes(kept["index"]))
            shapes, boxes, values = kept["shapes"], kept["boxes"], kept["values"]
            stops = np.cumsum(shapes.prod(axis=1, dtype=np.int64))
            groups: dict[str, dict[str, SmallMap]] = {}
            for i, (group, name) in enumerate(order):
                flat = values[(stops[i - 1] if i else 0) : stops[i]]
                left, top, width, height = (float(x) for x in boxes[i])
                made = SmallMap(flat.reshape(shapes[i]), (left, top, width, height))
                groups.setdefault(group, {})[name] = made
            return groups
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return {}
