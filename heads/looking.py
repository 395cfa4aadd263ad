"""Where images are looked at: padding and what lies outside a region of interest never count.

A batch of which not everything is looked at carries `LOOKED`, ``[B, H, W]`` bool at the input's
size. Who trains or scores a head says so around it (`looking`); the functions here then leave out
what is not looked at, and do what they always did where all is. So a head that takes its means,
maxima and resized maps from here (and from `heads.parts`, `heads.judging`) has nothing to do; one
that collects vectors itself asks `looked_at`. An image of which all is looked at gets the same
result to the last bit whatever its company.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

#: Entry of a batch: ``[B, H, W]`` bool, true where the image is looked at.
LOOKED = "_looked"

_Positions = dict[tuple[int, int], Tensor]
_NOW: ContextVar[tuple[Tensor, _Positions] | None] = ContextVar("looked", default=None)


@contextmanager
def looking(batch: Mapping[str, Tensor]) -> Iterator[None]:
    """Say what of the images of a batch is looked at, for all that is computed inside."""
    where = batch.get(LOOKED)
    whole = where is None or bool(where.all())
    before = _NOW.set(None if whole or where is None else (where, {}))
    try:
        yield
    finally:
        _NOW.reset(before)


def positions(where: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which positions of maps of `size` are looked at, ``[B, h, w]`` bool.

    Those of whose pixels at least half are; of an image that has none, those with the most.

    Parameters
    ----------
    where
        ``[B, H, W]`` bool.
    size
        ``(h, w)``.

    Examples
    --------
    >>> where = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> where[:, :, :3] = True
    >>> positions(where, (1, 2))
    tensor([[[True, True]]])
    """
    if tuple(where.shape[1:]) == tuple(size):
        return where
    share = F.adaptive_avg_pool2d(where[:, None].float(), size)[:, 0]
    return share >= share.amax((1, 2), keepdim=True).clamp(max=0.5) - 1e-6


def looked_at(size: tuple[int, int]) -> Tensor | None:
    """Return `positions` of the batch at hand at this size, or None where everything is."""
    now = _NOW.get()
    if now is None:
        return None
    where, known = now
    key = (int(size[0]), int(size[1]))
    if key not in known:
        known[key] = positions(where, key)
    return known[key]


def only(x: Tensor, other: float = 0.0) -> Tensor:
    """Return ``[B, ..., h, w]`` maps with `other` where they are not looked at."""
    if x.ndim < 3 or (where := looked_at((x.shape[-2], x.shape[-1]))) is None:
        return x
    return torch.where(where if x.ndim == 3 else where[:, None], x, other)


def places(size: tuple[int, int]) -> Tensor | int:
    """Return how many positions of maps of `size` count: ``[B]``, or a number where all do."""
    where = looked_at(size)
    return size[0] * size[1] if where is None else where.sum((1, 2))


def largest(maps: Tensor) -> Tensor:
    """Return the largest looked-at value of each of ``[B, h, w]`` maps, ``[B]``."""
    return only(maps, -torch.inf).amax((1, 2))


def mean_over(maps: Tensor) -> Tensor:
    """Return the mean of each of ``[B, h, w]`` maps over what is looked at, ``[B]``."""
    if looked_at((maps.shape[1], maps.shape[2])) is None:
        return maps.mean((1, 2))
    return only(maps).sum((1, 2)) / places((maps.shape[1], maps.shape[2]))


def values_of(maps: Tensor) -> list[Tensor]:
    """Return the values of ``[B, h, w]`` maps that are looked at: ``[n, values]`` each.

    One entry where all is, of all maps; else one a map.
    """
    where = looked_at((maps.shape[1], maps.shape[2]))
    if where is None:
        return [maps.flatten(1)]
    return [one[seen][None] for one, seen in zip(maps, where, strict=True)]


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[B, h, w]`` bilinearly to ``[B, *size]``, of what is looked at alone."""
    made = _bilinear(maps, size)
    where = looked_at((maps.shape[1], maps.shape[2]))
    if where is None:
        return made
    share = _bilinear(where.to(maps.dtype), size)
    own = _bilinear(only(maps), size) / share.clamp_min(1e-6)
    return torch.where(where.all(2).all(1)[:, None, None], made, own)


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def seen_of(values: ArrayLike) -> NDArray[np.bool_]:
    """Return which pixels of a map count: where it is a masked array, those not masked."""
    return ~np.ma.getmaskarray(np.ma.asarray(values))


def quiet_outside(maps: Tensor) -> Tensor:
    """Return ``[B, H, W]`` maps with their lowest looked-at value where they are not looked at."""
    where = looked_at((maps.shape[1], maps.shape[2]))
    if where is None:
        return maps
    lowest = only(maps, torch.inf).amin((1, 2), keepdim=True)
    return torch.where(where, maps, lowest)
