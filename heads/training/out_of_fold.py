"""Out-of-fold scores: every normal scored by a head that has not learnt from it.

K heads are trained, each without one fold, and each scores its fold. What was done is kept in
files, so that folds can be done side by side and a broken calibration goes on. A head that can take
images out of what it has learnt (`LeavesOut`) needs no training more.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from heads.contract import FeatureSource, Head, Progress, Scores, Training, TrainOptions
from heads.looking import LOOKED
from heads.training.folds import Folds
from heads.training.sources import LookedSource
from heads.training.splits import split_held_out
from headwater.files import replacing

#: Map values that are kept for the pixel threshold, over all images: more are thinned out evenly.
#: Maps are smooth over many pixels, so nothing is lost by it.
MAP_VALUES = 1 << 24


@dataclass(frozen=True)
class OutOfFold:
    """Scores of normals by heads that have not learnt from them.

    Parameters
    ----------
    folds
        Which image is in which.
    images
        Names of the N images, in the source's order.
    scores, maps
        ``[N]`` and ``[N, h, w]`` float32, the maps thinned out to every s-th row and column and
        masked where an image is not looked at.
    seconds
        What it took, one fold after the other.
    parts
        ``[N, K]``: what pooled scores are joined of, for the head that learns from all; else None.
    step
        The s of the maps.
    """

    folds: Folds
    images: Sequence[str]
    scores: np.ndarray
    maps: np.ndarray
    seconds: float
    parts: np.ndarray | None = None
    step: int = 1


@runtime_checkable
class LeavesOut(Protocol):
    """A head that can leave images out exactly without learning anew from the others."""

    def left_out(self, training: Training, folds: Sequence[int]) -> Scores:
        """Return the scores of the plain images, each as by a head without its fold."""


def leaves_out(head: Head | type[Head], source: FeatureSource | None = None) -> bool:
    """Whether a head is one of `LeavesOut` and may be on this source: all of it is looked at."""
    return hasattr(head, "left_out") and not isinstance(source, LookedSource)


@torch.no_grad()
def score_source(
    head: Head, source: FeatureSource, batch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(scores [N], maps [N, H, W])`` of a source, float32, in its order.

    The maps are a masked array where the source says what is looked at.
    """
    return scored_source(head, source, batch)[:2]


@torch.no_grad()
def scored_source(
    head: Head, source: FeatureSource, batch: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return what `score_source` does, and what pooled scores are joined of, ``[N, K]``, if any."""
    parts: list[np.ndarray] = []
    scores = np.empty(len(source), np.float32)
    maps = np.empty((len(source), *head.map_size), np.float32)
    outside = np.zeros(maps.shape, bool)
    for start in range(0, len(source), batch):
        stop = min(start + batch, len(source))
        rows = source.read(start, stop)
        if isinstance(rows, Mapping) and LOOKED in rows:
            outside[start:stop] = ~rows[LOOKED].numpy()
        got = head.score(rows)
        scores[start:stop] = got.image.float().cpu().numpy()
        maps[start:stop] = got.maps.float().cpu().numpy()
        parts += _parts_of(got)
    heat = np.ma.masked_array(maps, outside) if outside.any() else maps
    return scores, heat, np.concatenate(parts) if parts else None


def _parts_of(found: Scores) -> list[np.ndarray]:
    """Return what pooled scores are joined of, in a list; an empty one where nothing is pooled."""
    parts = getattr(found, "parts", None)
    return [] if parts is None else [parts.cpu().numpy()]


def sides(
    head: Head, source: Any, rows: Sequence[int], share: float, options: TrainOptions
) -> tuple[Any, Any]:
    """Return what of these rows a head learns from, and what it makes its choices on.

    The second is empty for most: only a head that chooses something by images it has not learnt
    from (an epoch, factors) is given some, and they are never those that set a threshold.

    Parameters
    ----------
    source, rows
        All normals with their views; the rows of it that may be learnt from.
    share
        Of the images, to choose on.
    """
    if not head.chooses(options):
        return source.subset(rows), source.subset([])
    train, held = split_held_out([source.ids[row] for row in rows], share, 2)
    plain = [rows[i] for i in held if source.views[rows[i]] == 0]
    return source.subset([rows[i] for i in train]), source.subset(plain)


class FoldByFold:
    """The heads without a fold, of one training.

    Parameters
    ----------
    build
        Makes the head anew, not fitted.
    source
        All normals, their views included, with ``subset``.
    folds
        Which image is in which; images are the source's ids.
    share
        See `sides`.
    keep
        Folder for what is done: a file a fold, and checkpoints of the one at work. None keeps none.
    """

    def __init__(
        self,
        build: Callable[[], Head],
        source: Any,
        folds: Folds,
        *,
        share: float = 0.1,
        keep: Path | None = None,
    ) -> None:
        self.build, self.source, self.folds = build, source, folds
        self.share, self.keep = share, keep
        self.plain = [row for row, view in enumerate(source.views) if view == 0]

    def one(self, fold: int, options: TrainOptions, progress: Progress) -> dict[str, np.ndarray]:
        """Return a fold's scores, kept ones if any: see `made` for the names."""
        file = None if self.keep is None else self.keep / f"fold-{fold}.safetensors"
        if file is not None and file.is_file():
            return load_file(file)
        began, of = time.perf_counter(), self.folds.of
        ids, head = self.source.ids, self.build()
        rest = [row for row in range(len(ids)) if of[ids[row]] != fold]
        own = [row for row in self.plain if of[ids[row]] == fold]
        train, held_out = sides(head, self.source, rest, self.share, options)
        place = None if self.keep is None else self.keep / f"fold-{fold}"
        options = dataclasses.replace(options, checkpoint_dir=place)
        head.fit(train, held_out, options, _Fold(progress, fold + 1, self.folds.count))
        scores, maps, parts = scored_source(head, self.source.subset(own))
        step = thinning(len(self.plain), head.map_size)
        maps = maps[:, ::step, ::step]
        made = {
            "scores": scores,
            "maps": np.ascontiguousarray(np.ma.getdata(maps)),
            "outside": np.ascontiguousarray(np.ma.getmaskarray(maps)),
            "seconds": np.array(time.perf_counter() - began),
        }
        if parts is not None:
            made["parts"] = parts
        if file is not None:
            with replacing(file) as new:
                save_file(made, new)
        return made

    def all(self, options: TrainOptions, progress: Progress) -> OutOfFold:
        """Return the scores of all normals."""
        images = [self.source.ids[row] for row in self.plain]
        inside = np.array([self.folds.of[image] for image in images])
        head = self.build()
        if leaves_out(head, self.source):
            return self._exactly(head, images, inside, options, progress)
        parts = [self.one(fold, options, progress) for fold in range(self.folds.count)]
        scores = np.empty(len(images), np.float32)
        maps = np.empty((len(images), *parts[0]["maps"].shape[1:]), np.float32)
        outside = np.zeros(maps.shape, bool)
        for fold, part in enumerate(parts):
            at = inside == fold
            scores[at], maps[at], outside[at] = part["scores"], part["maps"], part["outside"]
        joined = None
        if "parts" in parts[0]:
            joined = np.empty((len(images), parts[0]["parts"].shape[1]))
            for fold, part in enumerate(parts):
                joined[inside == fold] = part["parts"]
        return OutOfFold(
            self.folds,
            images,
            _settled(head, scores, joined),
            np.ma.masked_array(maps, outside) if outside.any() else maps,
            float(sum(part["seconds"] for part in parts)),
            joined,
            thinning(len(images), head.map_size),
        )

    def _exactly(
        self,
        head: Head,
        images: list[str],
        inside: np.ndarray,
        options: TrainOptions,
        progress: Progress,
    ) -> OutOfFold:
        """Return the scores of all normals by a head that leaves images out at no cost."""
        began = time.perf_counter()
        training = Training(self.source, self.source.subset([]), options, progress)
        found = cast("LeavesOut", head).left_out(training, inside.tolist())
        maps, parts = found.maps.cpu().numpy(), _parts_of(found)
        step = thinning(len(images), (maps.shape[1], maps.shape[2]))
        maps = maps[:, ::step, ::step]
        joined = parts[0] if parts else None
        scores = _settled(head, found.image.cpu().numpy(), joined)
        took = time.perf_counter() - began
        return OutOfFold(self.folds, images, scores, maps, took, joined, step)


def _settled(head: Any, scores: np.ndarray, parts: np.ndarray | None) -> np.ndarray:
    """Return scores, joined of their parts where they are pooled."""
    return scores if parts is None else head.rule.settle(parts)


def thinning(images: int, size: tuple[int, int], most: int | None = None) -> int:
    """Return s, where every s-th row and column of as many maps are kept.

    So that there are `most` values in all, or `MAP_VALUES`.

    Examples
    --------
    >>> thinning(100, (256, 256)), thinning(1000, (256, 256))
    (1, 2)
    """
    return max(1, math.ceil(math.sqrt(images * size[0] * size[1] / (most or MAP_VALUES))))


class _Fold:
    """Tells of a fold's training under its number; its figures are nobody's curve."""

    def __init__(self, progress: Progress, number: int, count: int) -> None:
        self.progress, self.text = progress, f"fold {number} of {count}: "

    def metric(self, name: str, value: float, epoch: int) -> None:
        """Drop it."""

    def step(self, done: int, total: int, text: str) -> None:
        """Hand it on."""
        self.progress.step(done, total, self.text + text)
