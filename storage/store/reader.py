"""Feature rows at a snapshot, as heads read them. Pickles as a small reference.

Where the features fit the memory budget they become resident at the first epoch. Where they do
not, whole chunks are read ahead in a seeded shuffled order and mixed within a window. The order
of rows is the same either way, so that how much memory a machine has changes no training.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from headwater.errors import DataError
from storage.store.buffers import BufferPool
from storage.store.checks import as_float
from storage.store.engine import guard, submit
from storage.store.extractors import Shape
from storage.store.fetch import (
    AHEAD,
    Batch,
    Excerpt,
    ExcerptRef,
    Held,
    copy_rows,
    gather,
    open_excerpt,
    read_ahead,
)
from storage.store.table import sha_names

#: Rows are mixed within windows of about this many stored bytes, of at least `WINDOW_UNITS` runs.
WINDOW_BYTES = 128 * 1024 * 1024
WINDOW_UNITS = 4
#: Most bytes that are kept resident unless told otherwise.
RESIDENT_BYTES = 2 * 1024**3


class FeatureReader:
    """A `heads.contract.FeatureSource` over one or several excerpts of stores.

    Get one from `FeatureStore.reader`. Rows are in the order of the store, excerpts one after the
    other.

    Parameters
    ----------
    excerpts
        References; all must have the same layers and shapes.
    keep
        Row numbers (of the excerpts put end to end) to keep, in this order; all without it.
    memory
        Bytes that may be resident.

    Attributes
    ----------
    snapshot, layers
        Snapshot of the first excerpt, and the layers' names.
    """

    def __init__(
        self,
        excerpts: Sequence[ExcerptRef],
        keep: np.ndarray | None = None,
        memory: int | None = None,
    ) -> None:
        self.excerpts, self.keep, self.memory = tuple(excerpts), keep, memory
        self.snapshot, self.layers = self.excerpts[0].snapshot, self.excerpts[0].layers
        self._opened: list[Excerpt] | None = None
        self._resident: dict[str, Tensor] | None = None
        self._pool = BufferPool()

    def __getstate__(self) -> dict[str, Any]:
        return {"excerpts": self.excerpts, "keep": self.keep, "memory": self.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def open(self) -> list[Excerpt]:
        """Open the excerpts (done by itself when first needed); raises what is wrong with them."""
        if self._opened is None:
            opened = [open_excerpt(e) for e in self.excerpts]
            shapes = [{k: m.shape[1:] for k, m in e.maps.items()} for e in opened]
            if any(s != shapes[0] for s in shapes[1:]):
                raise DataError(
                    f"excerpts of different shapes: {shapes}",
                    expected="the same layers and shapes",
                )
            number = np.concatenate([np.full(len(e.rows), i) for i, e in enumerate(opened)])
            row = np.concatenate([e.rows for e in opened])
            sha = np.concatenate([e.sha for e in opened])
            views = np.concatenate([e.views for e in opened])
            if self.keep is not None:
                number, row, sha, views = (x[self.keep] for x in (number, row, sha, views))
            self._excerpt, self._row = number.astype(np.int64), row.astype(np.int64)
            self._sha, self._views = sha, views
            self._opened = opened
        return self._opened

    # --- what is here ----------------------------------------------------------------------------

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """``{layer name: (channels, height, width)}``."""
        maps = self.open()[0].maps
        return {k: (m.shape[1], m.shape[2], m.shape[3]) for k, m in maps.items()}

    @property
    def ids(self) -> list[str]:
        """SHA-256 of the image behind each row."""
        self.open()
        return sha_names(self._sha)

    @property
    def views(self) -> list[int]:
        """View number of each row."""
        self.open()
        return self._views.tolist()

    @property
    def images(self) -> np.ndarray:
        """Row in the image table behind each row (of the excerpt's own store)."""
        images = np.concatenate([e.images for e in self.open()])
        return images if self.keep is None else images[self.keep]

    @property
    def missing(self) -> list[str]:
        """Paths of selected images that lack a layer and are left out."""
        return [str(p) for e in self.open() for p in e.table.path[e.lacking]]

    def column(self, name: str) -> list[Any]:
        """Return a column of the image table per row: ``path``, ``split``, ``kind``, ``mask``..."""
        values = np.concatenate([e.table.column(name)[e.images] for e in self.open()])
        return (values if self.keep is None else values[self.keep]).tolist()

    def __len__(self) -> int:
        self.open()
        return len(self._row)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as stored, uncompressed."""
        return len(self) * sum(m.row_bytes for m in self.open()[0].maps.values())

    def subset(self, rows: Sequence[int] | np.ndarray | Tensor) -> FeatureReader:
        """Return a reader of these rows, in this order."""
        self.open()
        rows = np.asarray(rows, np.int64)
        keep = rows if self.keep is None else self.keep[rows]
        return FeatureReader(self.excerpts, keep, self.memory)

    @staticmethod
    def concat(readers: Sequence[FeatureReader]) -> FeatureReader:
        """Return the rows of several readers one after the other: plain images and their views."""
        excerpts: list[ExcerptRef] = []
        keep, start = [], 0
        for reader in readers:
            total = sum(len(e.rows) for e in reader.open())
            keep.append(start + (np.arange(total) if reader.keep is None else reader.keep))
            excerpts += [replace(e, layers=readers[0].layers) for e in reader.excerpts]
            start += total
            if set(reader.layers) != set(readers[0].layers):
                raise DataError(
                    f"layers {reader.layers} and {readers[0].layers}", expected="the same layers"
                )
        plain = all(r.keep is None for r in readers)
        joined = None if plain else np.concatenate(keep)
        return FeatureReader(excerpts, joined, readers[0].memory)

    # --- reading ---------------------------------------------------------------------------------

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``start:stop`` in order, each ``[row, C, H, W]`` float32."""
        self.open()
        order = np.arange(len(self))[start:stop]
        with guard("reading features"):
            if self._resident is not None:
                return self._from_resident(order)
            return self._fetch(order, self._batch(len(order))).result()

    def order(self, seed: int | None) -> tuple[np.ndarray, list[int]]:
        """Return the order of rows in an epoch and where its windows end.

        Runs of rows that are whole chunks in every layer are shuffled, then rows within windows of
        some of these runs. It depends on the rows, the layers' chunks and the seed alone.
        """
        opened = self.open()
        n = len(self)
        unit = max(m.rows for e in opened for m in e.maps.values())
        group = self._excerpt * (1 << 40) + self._row // unit
        place = np.arange(n) if seed is None else np.lexsort((self._row, group))
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(group[place])) + 1, [n]])
        row_bytes = sum(m.row_bytes for m in opened[0].maps.values())
        least = max(WINDOW_BYTES // max(1, row_bytes), WINDOW_UNITS * unit)
        if seed is None:
            ends, last = [], 0
            for cut in cuts[1:].tolist():
                if cut - last >= min(least, unit * WINDOW_UNITS) or cut == n:
                    ends.append(cut)
                    last = cut
            return place, ends
        rng = np.random.default_rng(seed)
        pieces = [place[a:b] for a, b in itertools.pairwise(cuts.tolist())]
        result, ends, held, size = [], [], [], 0
        for number, i in enumerate(rng.permutation(len(pieces)).tolist()):
            held.append(pieces[i])
            size += len(pieces[i])
            if size >= least or number == len(pieces) - 1:
                window = np.concatenate(held)
                rng.shuffle(window)
                result.append(window)
                ends.append((ends[-1] if ends else 0) + size)
                held, size = [], 0
        return (np.concatenate(result) if result else place), ends

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Yield batches: in order where `seed` is None, else in the seed's shuffled order.

        Besides the layers a batch carries ``"_rows"``: int64 row numbers.
        """
        self.open()
        order, ends = self.order(seed)
        stop = len(order) // size * size if drop_last else len(order)
        budget = self.memory
        if budget is None:
            budget = min(RESIDENT_BYTES, psutil.virtual_memory().available // 4)
        with guard("reading features"):
            if self._resident is None and self.nbytes <= budget:
                self._load()
            if self._resident is not None:
                for first in range(0, stop, size):
                    rows = order[first : min(first + size, stop)]
                    yield self._finish(self._from_resident(rows), rows)
                return
            if seed is None:
                yield from self._in_order(order, size, stop)
            else:
                yield from read_ahead(self._stream(order, ends, size, stop))

    def release(self) -> None:
        """Let go of the rows that are resident; the next epoch reads them again."""
        self._resident = None
        # The memory went back to the pool, which would keep it.
        self._pool = BufferPool()

    def _finish(self, batch: Batch, rows: np.ndarray) -> Batch:
        batch["_rows"] = torch.from_numpy(np.array(rows, np.int64))
        return batch

    def _in_order(self, order: np.ndarray, size: int, stop: int) -> Iterator[Batch]:
        """Yield batches that were fetched straight into float32, the next ones under way."""
        asked: collections.deque[tuple[np.ndarray, Future[Batch]]] = collections.deque()
        held: Held = {}
        try:
            for first in range(0, stop, size):
                rows = order[first : min(first + size, stop)]
                asked.append((rows, self._fetch(rows, self._batch(len(rows)), held)))
                if len(asked) >= AHEAD:
                    ready, batch = asked.popleft()
                    yield self._finish(batch.result(), ready)
            while asked:
                ready, batch = asked.popleft()
                yield self._finish(batch.result(), ready)
        finally:
            for _, batch in asked:
                batch.cancel()

    def _stream(self, order: np.ndarray, ends: list[int], size: int, stop: int) -> Iterator[Batch]:
        """Yield batches, with the next window under way while this one is used."""
        starts = [0, *ends[:-1]]
        room = max((b - a for a, b in zip(starts, ends, strict=True)), default=0)
        asked: Future[dict[str, Tensor]] | None = None
        windows: list[tuple[int, dict[str, Tensor]]] = []
        taken = 0

        def ask(number: int) -> Future[dict[str, Tensor]] | None:
            if number >= len(ends) or starts[number] >= stop:
                return None
            return self._fetch(order[starts[number] : ends[number]], self._empty(room))

        for first in range(0, stop, size):
            last = min(first + size, stop)
            windows = [w for w in windows if w[0] + len(next(iter(w[1].values()))) > first]
            while taken == 0 or ends[taken - 1] < last:
                asked = asked or ask(taken)
                assert asked is not None
                windows.append((starts[taken], asked.result()))
                taken += 1
                asked = ask(taken)
            yield self._finish(self._from_windows(windows, first, last), order[first:last])

    def _empty(self, rows: int) -> dict[str, Tensor]:
        """Return room for rows in the stored dtype."""
        first = self.open()[0]
        dtype = as_float(np.zeros(1, next(iter(first.maps.values())).dtype), first.encoding).dtype
        return {k: self._pool.take((rows, *s), dtype) for k, s in self.shapes.items()}

    def _batch(self, rows: int) -> Batch:
        """Return room for rows in float32."""
        return {k: self._pool.take((rows, *s)) for k, s in self.shapes.items()}

    def _fetch(
        self, order: np.ndarray, room: dict[str, Tensor], held: Held | None = None
    ) -> Future[dict[str, Tensor]]:
        """Start fetching rows into `room`, which may be larger."""
        room = {k: v[: len(order)] for k, v in room.items()}
        return submit(gather(self.open(), self._excerpt[order], self._row[order], room, held))

    def _from_windows(
        self, windows: Sequence[tuple[int, dict[str, Tensor]]], first: int, last: int
    ) -> Batch:
        """Return places ``first:last`` of the order as float32, from the windows with them."""
        batch = self._batch(last - first)
        for start, window in windows:
            for layer, values in window.items():
                a, b = max(first, start), min(last, start + len(values))
                if a < b:
                    batch[layer][a - first : b - first].copy_(values[a - start : b - start])
        return batch

    def _from_resident(self, rows: np.ndarray) -> Batch:
        assert self._resident is not None
        batch = self._batch(len(rows))
        for layer, out in batch.items():
            copy_rows(out, self._resident[layer], rows)
        return batch

    def _load(self) -> None:
        """Make all rows resident, in the stored dtype."""
        room = self._empty(len(self))
        _, ends = self.order(None)
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            rows = np.arange(first, last)
            self._fetch(rows, {k: v[first:last] for k, v in room.items()}).result()
        self._resident = room
