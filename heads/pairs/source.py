"""Pairs of images of one place, `current` and `history`: two feature sources joined by a key."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heads.contract import Batch, FeatureSource, Shape
from heads.looking import LOOKED
from heads.training.sources import LookedSource
from heads.training.splits import split_held_out
from headwater.errors import DataError, ShapeError

CURRENT, HISTORY = "current:", "history:"
#: Rows of both sides that are kept in memory, at most, unless told otherwise.
RESIDENT_BYTES = 3 * 1024**3
#: Float32 bytes of a window within which rows are mixed, and consecutive rows read as one run.
WINDOW_BYTES = 512 * 1024**2
RUN_ROWS = 16

Masks = Tensor | Callable[[int], Any]


@dataclass(frozen=True)
class Pair:
    """Two images of one place, joined by a key.

    Parameters
    ----------
    key
        Name of the place or inspection: what the two images have in common.
    current, history
        SHA-256 of each image. An image may be in several pairs: a template, say.
    source
        What several pairs were cut out of; they fall on the same side of the held-out split.
    """

    key: str
    current: str
    history: str
    source: str = ""

    @property
    def id(self) -> str:
        """Content identity of the pair, hexadecimal."""
        return hashlib.sha256(f"{self.current}:{self.history}".encode()).hexdigest()


class PairSource:
    """A `FeatureSource` over pairs; its batches carry ``current:<layer>`` and ``history:<layer>``.

    Where labels are known they also carry ``_mask``, ``[B, 1, H, W]`` float32: 1 where the pair
    shows a change that matters. Only plain rows are joined: the views of two images are seeded by
    each image's own hash and do not show the same rotation.

    Parameters
    ----------
    current, history
        Feature sources with the same layers. They may be the same source.
    pairs
        What to join. A pair of which an image is in neither source is left out and named in
        `missing`.
    masks
        ``[N, H, W]``, or a function from the pair's number to ``[H, W]``; N, and the number,
        count `pairs` as given. None: no labels.
    memory
        Bytes that may be kept in memory; what is more is read anew in every epoch. The order of
        rows is the same either way.

    Attributes
    ----------
    keys, ids, views
        Key and content identity of each pair; zeros, as pairs have no views.
    layers, labelled
        Layer names, as of either side; whether batches carry ``_mask``.

    Raises
    ------
    DataError
        Where no pair has both images.
    ShapeError
        Where the sources' layers or shapes differ, or there are not as many masks as pairs.

    Examples
    --------
    >>> from heads.training.sources import TensorSource
    >>> now, before = (TensorSource({"a": torch.ones(1, 2, 3, 3)}, [name]) for name in ("n", "b"))
    >>> source = PairSource(now, before, [Pair("board 17", "n", "b")])
    >>> sorted(source.read(0, 1))
    ['current:a', 'history:a']
    """

    def __init__(
        self,
        current: FeatureSource,
        history: FeatureSource,
        pairs: Sequence[Pair],
        masks: Masks | None = None,
        *,
        memory: int = RESIDENT_BYTES,
    ) -> None:
        if dict(current.shapes) != dict(history.shapes):
            raise ShapeError(
                f"current features {dict(current.shapes)}, history features {dict(history.shapes)}",
                expected="the same layers and shapes of both",
                remedy="extract both image sets with the same settings",
            )
        if isinstance(masks, Tensor) and len(masks) != len(pairs):
            raise ShapeError(f"{len(masks)} masks for {len(pairs)} pairs", expected="one each")
        self._sources = (current, history)
        self._masks, self._memory = masks, memory
        self.layers, self.labelled = list(current.shapes), masks is not None
        rows = [_rows_by_id(current), _rows_by_id(history)]
        found = [(n, rows[0].get(p.current), rows[1].get(p.history)) for n, p in enumerate(pairs)]
        self.missing = [pairs[n].key for n, a, b in found if a is None or b is None]
        kept = [(n, a, b) for n, a, b in found if a is not None and b is not None]
        if pairs and not kept:
            raise DataError(
                f"none of {len(pairs)} pairs has both images among the features"
                + (f" (the first is {pairs[0].key})" if pairs else ""),
                expected="features of the current and the history image of each pair",
                remedy="extract both image sets, and join them by the same names",
            )
        self._number = [n for n, _, _ in kept]
        self._index = np.array([(a, b) for _, a, b in kept], np.int64).reshape(-1, 2)
        self.pairs = [pairs[n] for n in self._number]
        self.keys, self.ids = [p.key for p in self.pairs], [p.id for p in self.pairs]
        self.views = [0] * len(self.pairs)
        self._all_pairs = list(pairs)
        self._resident: list[dict[str, Tensor]] | None = None
        self._place: list[dict[int, int]] = []
        self._known_masks: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What was read is read again elsewhere: workers open stores themselves.
        return {**self.__dict__, "_resident": None, "_place": [], "_known_masks": {}}

    # --- what is here ----------------------------------------------------------------------------

    @property
    def shapes(self) -> dict[str, Shape]:
        """``{"current:<layer>": (C, H, W), ..., "history:<layer>": (C, H, W)}``."""
        return {
            prefix + k: (v[0], v[1], v[2])
            for prefix, source in zip((CURRENT, HISTORY), self._sources, strict=True)
            for k, v in source.shapes.items()
        }

    def __len__(self) -> int:
        return len(self.pairs)

    def mask(self, row: int) -> Tensor:
        """Return the mask of a row, ``[H, W]`` bool."""
        if self._masks is None:
            raise DataError(
                "pairs without masks", expected="a mask per pair", remedy="give masks, or pair_flow"
            )
        number = self._number[row]
        if number not in self._known_masks:
            given = self._masks(number) if callable(self._masks) else self._masks[number]
            mask = torch.as_tensor(given) != 0
            if mask.ndim != 2:
                raise ShapeError(
                    f"mask of pair {self.pairs[row].key}: {tuple(mask.shape)}", expected="[H, W]"
                )
            self._known_masks[number] = mask
        return self._known_masks[number]

    def looked(self, row: int) -> Tensor:
        """Return what of both images of a row is looked at, ``[H, W]`` bool; one True for all."""
        if not self._partly:
            return torch.tensor(True)
        sides = zip(self._sources, self._index[row].tolist(), strict=True)
        current, history = (source.looked(at) for source, at in sides)  # type: ignore[attr-defined]
        return current & history

    @property
    def _partly(self) -> bool:
        return all(isinstance(source, LookedSource) for source in self._sources)

    def labels_digest(self) -> str:
        """Return a hash of all masks: the part of a training's data that features do not show."""
        text = hashlib.sha256()
        for row in range(len(self)):
            mask = self.mask(row)
            text.update(repr(tuple(mask.shape)).encode() + np.packbits(mask.numpy()).tobytes())
        return text.hexdigest()

    def subset(self, rows: Sequence[int]) -> PairSource:
        """Return a source of these rows, in this order."""
        chosen = [self._number[r] for r in rows]
        masks = self._masks
        if isinstance(masks, Tensor):
            masks = masks[torch.as_tensor(chosen, dtype=torch.int64)]
        elif masks is not None:
            masks = functools.partial(_mask_of, masks, chosen)
        pairs = [self._all_pairs[n] for n in chosen]
        return PairSource(*self._sources, pairs, masks, memory=self._memory)

    def split(self, fraction: float = 0.2, minimum: int = 2) -> tuple[PairSource, PairSource]:
        """Return ``(train, validation)``, 8:2 by default (section IV.A).

        A pair's side follows from its content, that of crops from what they were cut out of.

        Raises
        ------
        DataError
            Where there is nothing to hold out: one pair, or crops of one.
        """
        sources = [p.source or p.id for p in self.pairs]
        if len(set(sources)) < 2 <= len(self):
            raise DataError(
                f"{len(self)} pairs, all of them crops of {sources[0]}",
                expected="crops of at least two pairs: one to learn from and one to hold out",
                remedy="label another pair and cut that as well",
            )
        train, held = split_held_out(sources, fraction, minimum)
        return self.subset(train), self.subset(held)

    # --- reading ---------------------------------------------------------------------------------

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``start:stop`` in order, each ``[row, C, H, W]`` float32, and ``_mask``."""
        rows = np.arange(len(self))[start:stop]
        batch = self._assemble(rows, *self._blocks(rows))
        del batch["_rows"]
        return batch

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Yield batches, in order or in the order that `seed` and the rows alone decide.

        Besides the layers a batch carries ``_rows`` and, where labels are known, ``_mask``.
        """
        if not self.pairs:
            return
        order, ends = self._order(seed)
        stop = len(order) // size * size if drop_last else len(order)
        if self._resident is None and self._bytes() <= self._memory:
            self._resident, self._place = self._blocks(order)
        blocks: tuple[Any, Any] | None = self._blocks(order) if self._resident else None
        held, window = 0, 0
        for first in range(0, stop, size):
            rows = order[first : min(first + size, stop)]
            if self._resident is None and first + len(rows) > held:
                # The rows of this batch that the last window had are read again: at most one batch.
                while held < first + len(rows):
                    held, window = ends[window], window + 1
                blocks = self._blocks(order[first:held])
            assert blocks is not None
            yield self._assemble(rows, *blocks)

    def release(self) -> None:
        """Let go of what is held in memory, here and by the two sides."""
        self._resident, self._place, self._known_masks = None, [], {}
        for source in self._sources:
            source.release()

    def _bytes(self, width: int = 2) -> int:
        row = sum(int(np.prod(s)) for s in self._sources[0].shapes.values()) * width
        return row * sum(len(np.unique(self._index[:, k])) for k in (0, 1))

    def _order(self, seed: int | None) -> tuple[np.ndarray, list[int]]:
        """Return the order of rows and where its windows end: shuffled runs, mixed in windows."""
        count = len(self)
        per_row = max(1, 2 * self._bytes(4) // max(1, count))
        window = max(4 * RUN_ROWS, WINDOW_BYTES // per_row)
        ends = [*range(window, count, window), count]
        if seed is None:
            return np.arange(count), ends
        rng = np.random.default_rng(seed)
        by_place = np.lexsort((self._index[:, 1], self._index[:, 0]))
        runs = [by_place[i : i + RUN_ROWS] for i in range(0, count, RUN_ROWS)]
        order = np.concatenate([runs[i] for i in rng.permutation(len(runs))])
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            rng.shuffle(order[first:last])
        return order, ends

    def _fetch(self, side: int, rows: np.ndarray) -> tuple[dict[str, Tensor], dict[int, int]]:
        """Return a side's distinct rows by layer, and the place of each row there."""
        wanted = np.unique(self._index[rows, side])
        cuts = np.flatnonzero(np.diff(wanted) > 1) + 1
        blocks: dict[str, list[Tensor]] = {}
        for run in np.split(wanted, cuts):
            for start in range(int(run[0]), int(run[-1]) + 1, 64):
                stop = min(start + 64, int(run[-1]) + 1)
                for layer, maps in self._sources[side].read(start, stop).items():
                    if not layer.startswith("_"):
                        blocks.setdefault(layer, []).append(_narrow(maps))
        return (
            {k: torch.cat(v) for k, v in blocks.items()},
            {int(r): i for i, r in enumerate(wanted)},
        )

    def _blocks(self, rows: np.ndarray) -> tuple[Any, Any]:
        if self._resident is not None:
            return self._resident, self._place
        sides = [self._fetch(side, rows) for side in (0, 1)]
        return [s[0] for s in sides], [s[1] for s in sides]

    def _assemble(
        self, rows: np.ndarray, maps: Sequence[dict[str, Tensor]], place: Sequence[dict[int, int]]
    ) -> Batch:
        batch: Batch = {}
        for side, prefix in enumerate((CURRENT, HISTORY)):
            at = torch.tensor([place[side][int(r)] for r in self._index[rows, side]])
            for layer in self.layers:
                batch[prefix + layer] = maps[side][layer][at].float()
        if self._masks is not None:
            batch["_mask"] = torch.stack([self.mask(int(r)) for r in rows])[:, None].float()
        if self._partly:
            batch[LOOKED] = torch.stack([self.looked(int(r)) for r in rows])
        batch["_rows"] = torch.from_numpy(np.array(rows, np.int64))
        return batch


def _mask_of(masks: Callable[[int], Any], numbers: list[int], number: int) -> Any:
    """Return a mask of a subset, by its number there."""
    return masks(numbers[number])


def _rows_by_id(source: FeatureSource) -> dict[str, int]:
    views = source.views
    return {sha: row for row, sha in enumerate(source.ids) if views[row] == 0}


def _narrow(maps: Tensor) -> Tensor:
    """Return the maps as float16 where that loses nothing: stored features mostly are."""
    half = maps.half()
    return half if torch.equal(half.float(), maps) else maps.clone()
