"""Folds: which normals a head that has not learnt from them will score.

Consecutive frames of one part look alike. With folds drawn at random a frame is scored by a head
that has learnt from its neighbours, its score is too low, and so is a threshold set by such scores.
Folds are therefore blocks of neighbours, and what is nearly the same image stays in one of them.
Leaving blocks out is what dependent data need: Burman, Chow and Nolan, "A cross-validatory method
for dependent data", Biometrika 81 (1994); Roberts et al., Ecography 40 (2017).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heads.contract import FeatureSource
from headwater.errors import DataError

Floats = NDArray[np.float64]

#: Two images are nearly the same where their looks correlate this much.
SAME = 0.98
#: An order counts as correlated from so many deviations above what shuffled images show.
SHOWS = 3.0
#: A head that leaves images out for nothing leaves blocks out only from this correlation on: what
#: learns from a fifth less than the model scores higher, which then costs more than it mends.
STRONG = 0.3
#: Blocks of neighbours for heads that leave images out at no cost.
ALONE = 20
#: Numbers that the look of an image has at most.
LOOK = 1024


def natural(name: str) -> list[Any]:
    """Return what to sort names by so that frame 10 follows frame 9.

    Examples
    --------
    >>> sorted(["f10.png", "f9.png", "e2.png"], key=natural)
    ['e2.png', 'f9.png', 'f10.png']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(p), p) if i % 2 else p for i, p in enumerate(parts)]


@dataclass(frozen=True)
class Folds:
    """Which fold each normal is in; a pure function of what `assign_folds` is given.

    Parameters
    ----------
    of
        ``{image: fold}``, folds counted from 0.
    by
        What a fold is, in words: ``group``, ``image``, or the name of the order of its block.
    correlation
        How alike neighbours in that order look, -1 to 1; None where there was nothing to look at.
    together
        Images that were kept with another one because they are nearly the same.
    """

    of: Mapping[str, int]
    by: str
    correlation: float | None = None
    together: int = 0

    @property
    def count(self) -> int:
        """Number of folds."""
        return max(self.of.values()) + 1

    def told(self) -> dict[str, Any]:
        """Return what a model says of its folds, JSON-ready: all but the images."""
        found = None if self.correlation is None else round(self.correlation, 4)
        told = {"by": self.by, "count": self.count, "correlation": found}
        return {**told, "together": self.together}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_json` reads it back."""
        return {**self.told(), "of": dict(self.of)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Folds:
        """Rebuild folds from `to_json`'s mapping."""
        return cls(dict(data["of"]), data["by"], data["correlation"], data["together"])


def assign_folds(
    images: Sequence[str],
    orders: Mapping[str, Sequence[Any]],
    *,
    groups: Sequence[str] = (),
    looks: Floats | None = None,
    count: int = 5,
    alone: bool = False,
) -> Folds:
    """Return folds of whole groups, or of neighbours; nothing is drawn.

    Parameters
    ----------
    images
        Name of each image, no two the same.
    orders
        By name, what to sort the images by: capture, file names. Neighbours are those of the order
        in which they look most alike; of the first where none of them shows anything.
    groups
        Group of each image, empty for one of its own. Where there are two groups or more, no order
        matters.
    looks
        ``[images, n]``, what each looks like (`looks_of`); None where that is not known.
    count
        Folds, at most; at least two images or groups fall into two.
    alone
        Leave out each image, or all that is nearly the same, for itself where neither groups nor
        an order say that it is much like others (`STRONG`); where an order does, only a twentieth
        of the images at a time: for heads that do this at no cost. They know each position by as
        many numbers as there are images, and without a fifth of these they are other heads.

    Raises
    ------
    DataError
        Where there are fewer than two images.

    Examples
    --------
    >>> names = [f"{i}.png" for i in range(6)]
    >>> assign_folds(names, {"file order": range(6)}, count=3).of.values()
    dict_values([0, 0, 1, 1, 2, 2])
    """
    n = len(images)
    if n < 2:
        raise DataError(f"{n} normal image(s)", expected="at least 2", remedy="add normal images")
    seen = None if looks is None else _standard(looks)
    named = [g or f"image {i}" for i, g in enumerate(groups)]
    by, correlation = next(iter(orders)), None
    if groups and any(groups) and len(set(named)) > 1:
        by = "group"
    found = {
        name: [i for _, _, i in sorted(zip(keys, images, range(n), strict=True))]
        for name, keys in orders.items()
    }
    if seen is not None:
        strengths = {name: lag_correlation(seen, order) for name, order in found.items()}
        best = max(strengths, key=lambda name: strengths[name][1])
        if by != "group" and strengths[best][1] >= SHOWS:
            by = best
        correlation = None if by == "group" else strengths[by][0]
    order = found[next(iter(found)) if by == "group" else by]
    units = _Units(n)
    if by == "group":
        first = {name: i for i, name in reversed(list(enumerate(named)))}
        for i, name in enumerate(named):
            units.join(first[name], i)
    # What is nearly the same, the most alike first; no unit outgrows a fold that way.
    most, together = max(1, n // max(2, count)), 0
    if alone and by != "group" and seen is not None:
        value, above = strengths[by]
        if above < SHOWS or value < STRONG:
            by, count = "image", n
        else:
            count = max(count, ALONE)
    for i, j in [] if seen is None else _alike(seen):
        if units.root(i) != units.root(j) and units.size(i) + units.size(j) <= most:
            units.join(i, j)
            together += 1
    return Folds(
        dict(zip(images, _cut(order, units, count), strict=True)), by, correlation, together
    )


def _cut(order: Sequence[int], units: _Units, count: int) -> list[int]:
    """Return each image's fold: units in the order of their first, cut where a share is full."""
    n = len(order)
    firsts = list(dict.fromkeys(units.root(i) for i in order))
    parts = max(2, min(count, len(firsts)))
    fold_of: dict[int, int] = {}
    before, fold = 0, 0
    for place, root in enumerate(firsts):
        left = len(firsts) - place
        middle = before + units.size(root) / 2
        # The unit's middle decides; but every fold gets a unit, and one is left for each to come.
        wanted = max(fold, min(math.floor(parts * middle / n), parts - 1))
        wanted = min(max(wanted, parts - left), fold + bool(place))
        fold, before = wanted, before + units.size(root)
        fold_of[root] = fold
    return [fold_of[units.root(i)] for i in range(n)]


class _Units:
    """What stays together: disjoint sets of the numbers below `count`."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._size = [1] * count

    def root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def size(self, i: int) -> int:
        return self._size[self.root(i)]

    def join(self, i: int, j: int) -> None:
        a, b = sorted((self.root(i), self.root(j)))
        if a != b:
            self._parent[b] = a
            self._size[a] += self._size[b]


def lag_correlation(looks: Floats, order: Sequence[int]) -> tuple[float, float]:
    """Return how alike neighbours in an order look, and by how many deviations that is too much.

    Parameters
    ----------
    looks
        ``[n, d]`` rows of length 1.
    order
        The rows' numbers.

    Returns
    -------
    tuple
        Mean product of consecutive rows; how far it is above the mean of all pairs, in standard
        deviations of the same figure over 200 seeded shuffles.
    """
    rows = looks[list(order)]
    n = len(rows)
    value = float(np.einsum("nd,nd->", rows[:-1], rows[1:]) / (n - 1))
    draw, shuffled = np.random.default_rng(0), []
    # All pairs once: a shuffle then only looks numbers up.
    products = rows @ rows.T if n <= 4096 else None
    for _ in range(200):
        p = draw.permutation(n)
        if products is not None:
            shuffled.append(float(products[p[:-1], p[1:]].mean()))
        else:
            shuffled.append(float(np.einsum("nd,nd->", rows[p[:-1]], rows[p[1:]]) / (n - 1)))
    spread = float(np.std(shuffled))
    return value, (value - float(np.mean(shuffled))) / spread if spread > 1e-12 else 0.0


def _alike(looks: Floats) -> list[tuple[int, int]]:
    """Return pairs of images that are nearly the same, the most alike first."""
    found: list[tuple[float, int, int]] = []
    for low in range(0, len(looks), 1024):
        products = looks[low : low + 1024] @ looks.T
        for a, j in zip(*np.nonzero(products >= SAME), strict=True):
            if (i := int(a) + low) < j:
                found.append((-round(float(products[a, j]), 9), i, int(j)))
    return [(i, j) for _, i, j in sorted(found)]


def _standard(looks: Floats) -> Floats:
    """Return looks with every number at mean 0 and deviation 1, and every row of length 1."""
    centred = looks - looks.mean(0)
    spread = centred.std(0)
    centred = centred[:, spread > 1e-9 * (1 + np.abs(looks).mean(0))]
    centred /= np.maximum(centred.std(0), 1e-30)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths > 0, lengths, 1.0)


def looks_of(source: FeatureSource, rows: Sequence[int]) -> Floats:
    """Return what images look like, for `assign_folds`: their features' means over quarters.

    Parameters
    ----------
    source, rows
        Whose, and which of its rows: plain images.

    Returns
    -------
    ndarray
        ``[rows, n]`` with n at most about `LOOK`.
    """
    made: list[Floats] = []
    wanted = set(rows)
    for low in range(0, len(source), 16):
        keep = [i - low for i in range(low, min(low + 16, len(source))) if i in wanted]
        if not keep:
            continue
        batch = source.read(low, min(low + 16, len(source)))
        parts = [
            torch.nn.functional.adaptive_avg_pool2d(batch[layer][keep].float(), 2).flatten(1)
            for layer in sorted(source.shapes)
        ]
        found = torch.cat(parts, 1).cpu().double().numpy()
        made.append(found[:, :: max(1, found.shape[1] // LOOK)])
    place = {row: at for at, row in enumerate(sorted(wanted))}
    return np.concatenate(made)[[place[row] for row in rows]]
