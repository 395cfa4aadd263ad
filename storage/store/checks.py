"""What every block of features must be before it may reach the store, and its statistics.

One pass over the block in pieces that stay in the processor's cache.
"""

from __future__ import annotations

import os
import threading
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from headwater.errors import FeatureRangeError
from storage.store.layout import DISK_DTYPE

Key = tuple[str, int]
_PER_ROW = ("mean", "spread", "minimum", "maximum")
#: Bytes of float32 looked at together: with the disk's values they fit a core's own cache.
_PIECE = 1024 * 1024
_THREADS = min(4, os.cpu_count() or 1)
_LIMIT = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38}

with warnings.catch_warnings():
    # The store's bytes are read-only to numpy, of which torch warns once; they are never written.
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"\0\0", np.uint8))


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of each row's maps per channel, float64 ``[rows, channels]``.

    `spread` is the sum of squared deviations from the row's own mean.
    """

    mean: np.ndarray
    spread: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    pixels: int

    def take(self, pick: np.ndarray) -> RowStatistics:
        """Return the statistics of some rows."""
        return replace(self, **{k: getattr(self, k)[pick] for k in _PER_ROW})

    @staticmethod
    def join(pieces: Sequence[RowStatistics]) -> RowStatistics:
        """Return the statistics of the rows of several, one after the other."""
        every: dict[str, Any] = {
            k: np.concatenate([getattr(p, k) for p in pieces]) for k in _PER_ROW
        }
        return replace(pieces[0], **every)

    def block(self) -> np.ndarray:
        """Return float32 ``[4, channels]``: mean, variance, minimum, maximum over rows.

        Means and squared deviations are merged as in Chan, Golub and LeVeque, "Algorithms for
        computing the sample variance" (1983), eq. 2.1, so that large means do no harm.
        """
        mean = self.mean.mean(0)
        total = self.spread.sum(0) + self.pixels * ((self.mean - mean) ** 2).sum(0)
        variance = total / max(1, len(self.mean) * self.pixels)
        return np.stack([mean, variance, self.minimum.min(0), self.maximum.max(0)]).astype("f4")


@dataclass(frozen=True)
class Prepared:
    """One layer's block, checked and in the dtype on disk: ``data`` is ``[n, C, H, W]``."""

    data: np.ndarray
    crc32: np.ndarray
    statistics: RowStatistics

    def take(self, pick: np.ndarray) -> Prepared:
        """Return some rows, ascending; all of them without a copy."""
        if len(pick) == len(self.data):
            return self
        return Prepared(self.data[pick], self.crc32[pick], self.statistics.take(pick))


def as_float(data: np.ndarray, dtype: str) -> torch.Tensor:
    """Return disk values as a tensor of the dtype they stand for, without copying."""
    tensor = torch.from_numpy(data)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def checksums(data: np.ndarray) -> np.ndarray:
    """Return the CRC-32 (zlib's) of each row's bytes, uint32 ``[n]``."""
    flat = np.ascontiguousarray(data).reshape(len(data), -1).view(np.uint8)
    return np.fromiter((zlib.crc32(row.data) for row in flat), np.uint32, len(flat))


def row_statistics(data: np.ndarray, dtype: str, sums: np.ndarray | None = None) -> RowStatistics:
    """Return the statistics of disk values ``[n, C, H, W]``; put rows' CRC-32 into `sums` if given.

    Everything is done to a piece while the processor's cache holds it, and pieces are shared out
    to a few threads: numpy, torch and zlib let go of the interpreter. The result does not depend
    on the number of threads.
    """
    n, channels = data.shape[:2]
    pixels = int(np.prod(data.shape[2:]))
    values = as_float(data, dtype).reshape(n * channels, pixels)
    found = [np.empty(n * channels, np.float64) for _ in range(4)]
    width = max(1, _PIECE // max(1, pixels * 4))  # maps of one channel in a piece
    step = max(1, width // max(1, channels))  # images in a piece
    local = threading.local()

    def survey(start: int) -> None:
        stop = min(start + step, n)
        if sums is not None:
            sums[start:stop] = checksums(data[start:stop])
        if not hasattr(local, "room"):
            local.room = torch.empty(min(width, max(1, n * channels)), pixels)
        for a in range(start * channels, stop * channels, width):
            b = min(a + width, stop * channels)
            piece = local.room[: b - a]
            piece.copy_(values[a:b])
            mean, spread, low, high = (x[a:b] for x in found)
            low[:] = piece.amin(1).numpy()
            high[:] = piece.amax(1).numpy()
            centre = piece.mean(1)
            mean[:] = centre.numpy()
            piece.sub_(centre[:, None])
            flat = piece.numpy()
            spread[:] = np.einsum("cp,cp->c", flat, flat)

    starts = range(0, n, step)
    if data.nbytes < _PIECE:
        for start in starts:
            survey(start)
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(survey, starts))
    mean, spread, low, high = (x.reshape(n, channels) for x in found)
    return RowStatistics(mean, spread, low, high, pixels)


def _disk(maps: Any, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return maps in the disk dtype, and the rows' largest magnitude where they were converted."""
    if isinstance(maps, torch.Tensor):
        maps = maps.detach().cpu()
        if maps.dtype == torch.bfloat16:
            maps = maps.view(torch.uint16) if dtype == "bfloat16" else maps.float()
        maps = maps.numpy()
    want = DISK_DTYPE[dtype]
    if maps.dtype == want:
        return np.ascontiguousarray(maps), None
    if maps.dtype.kind != "f":
        raise TypeError(f"maps of dtype {maps.dtype} cannot be stored as {dtype}")
    flat = maps.reshape(len(maps), -1)
    # max(max, -min) spares the copy that abs makes; NaN and infinity come through.
    largest = np.maximum(flat.max(1), -flat.min(1)).astype(np.float64)
    if dtype == "bfloat16":
        values = torch.from_numpy(np.ascontiguousarray(maps, np.float32))
        return values.bfloat16().view(torch.uint16).numpy(), largest
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(maps.astype(want)), largest


def prepare(
    maps: Mapping[str, Any],
    keys: Sequence[Key],
    dtype: str,
    shapes: Mapping[str, tuple[int, int, int]] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Prepared]:
    """Check a block and bring it into the form on disk.

    Parameters
    ----------
    maps
        ``{layer name: [n, C, H, W]}`` in the stored dtype or float32; row i belongs to ``keys[i]``.
    keys
        ``(sha256, view)`` of each row.
    dtype
        Stored dtype: ``float16``, ``bfloat16`` (as uint16 bits) or ``float32``.
    shapes
        Shapes ``(C, H, W)`` that stored layers have.
    names
        Paths of images, for messages.

    Raises
    ------
    FeatureRangeError
        All that is wrong with the block, together. Its ``failures`` lists
        ``(layer, key, reason)``; what is not in it may be written.
    """
    prepared: dict[str, Prepared] = {}
    failures: list[tuple[str, Key | None, str]] = []
    for layer, given in maps.items():
        want = (shapes or {}).get(layer)
        shape = tuple(given.shape)
        if len(shape) != 4 or shape[0] != len(keys):
            failures.append((layer, None, f"maps of shape {shape} for {len(keys)} images"))
            continue
        if want is not None and shape[1:] != tuple(want):
            failures.append((layer, None, f"maps {shape[1:]}, the layer holds {tuple(want)}"))
            continue
        data, largest = _disk(given, dtype)
        sums = np.empty(len(data), np.uint32)
        statistics = row_statistics(data, dtype, sums)
        low, high = statistics.minimum.min(1), statistics.maximum.max(1)
        top = np.maximum(high, -low) if largest is None else largest
        for i in np.flatnonzero(~(top <= _LIMIT[dtype]) | (low == high)):
            if low[i] == high[i] and np.isfinite(low[i]):
                reason = f"constant: every value is {low[i]:g}"
            elif np.isnan(top[i]):
                reason = "not a number"
            elif np.isinf(top[i]) and dtype != "float16":
                reason = "infinite"
            elif np.isinf(top[i]):
                reason = "infinite or beyond float16's range (65504)"
            else:
                reason = f"value {top[i]:.6g} beyond {dtype}'s range ({_LIMIT[dtype]:g})"
            failures.append((layer, keys[int(i)], reason))
        prepared[layer] = Prepared(data, sums, statistics)
    if failures:
        raise range_error(failures, names or {})
    return prepared


def range_error(
    failures: Sequence[tuple[str, Key | None, str]], names: Mapping[str, str]
) -> FeatureRangeError:
    """Return one error for all failures, naming layer and image of each."""

    def line(layer: str, key: Key | None, reason: str) -> str:
        if key is None:
            return f"layer {layer}: {reason}"
        sha, view = key
        image = f"{names[sha]} ({sha[:12]})" if names.get(sha) else sha[:12]
        return f"layer {layer}, image {image}{f', view {view}' if view else ''}: {reason}"

    shown = [line(*f) for f in failures[:50]]
    if len(failures) > len(shown):
        shown.append(f"and {len(failures) - len(shown)} more")
    beyond = any("beyond" in reason for _, _, reason in failures)
    error = FeatureRangeError(
        f"{len(failures)} feature map{'s' * (len(failures) != 1)} not fit to be stored:\n    "
        + "\n    ".join(shown),
        expected="finite values within the stored dtype's range, the layer's shape, not constant",
        remedy=(
            "store another dtype: `dtype: bfloat16` or `dtype: float32`"
            if beyond
            else "look at the images and at the backbone's weights; the rest can be stored"
        ),
    )
    error.failures = list(failures)  # type: ignore[attr-defined]
    return error
