"""Feature rows at a snapshot, as heads read them. Pickles as a small reference.

Where the features fit the memory budget they become resident at the first epoch. Where they do
not, whole chunks are read ahead in a seeded shuffled order and mixed within a window. The order
of rows is the same either way, so that how much memory a machine has changes no training.
"""

from __future__ import annotations

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
from storage.arrays import runs
from storage.buffers import BufferPool
from storage.checks import as_float
from storage.engine import guard, submit
from storage.extractors import Shape
from storage.parts import Batch, Part, PartRef, collect, copy_rows, open_part, read_ahead
from storage.table import sha_names

#: Rows are mixed within windows of about this many stored bytes, of at least `WINDOW_UNITS` runs.
WINDOW_BYTES = 128 * 1024 * 1024
WINDOW_UNITS = 4
#: Most bytes that are kept resident unless told otherwise.
RESIDENT_BYTES = 2 * 1024**3


class FeatureReader:
    """A `heads.base.FeatureSource` over one or several parts of stores.

    Get one from `FeatureStore.reader`. Rows are in the order of the store, parts one after the
    other.

    Parameters
    ----------
    parts
        References; all must have the same layers and shapes.
    keep
        Row numbers (of the parts put end to end) to keep, in this order; all without it.
    memory
        Bytes that may be resident.
    """

    def __init__(
        self, parts: Sequence[PartRef], keep: np.ndarray | None = None, memory: int | None = None
    ) -> None:
        self.parts, self.keep, self.memory = tuple(parts), keep, memory
        self._opened: list[Part] | None = None
        self._resident: dict[str, Tensor] | None = None
        self._pool = BufferPool()

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "keep": self.keep, "memory": self.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def open(self) -> list[Part]:
        """Open the parts (done by itself when first needed); raises what is wrong with them."""
        if self._opened is None:
            opened = [open_part(p) for p in self.parts]
            shapes = [{k: m.shape[1:] for k, m in p.maps.items()} for p in opened]
            if any(s != shapes[0] for s in shapes[1:]):
                raise DataError(
                    f"parts of different shapes: {shapes}", expected="the same layers and shapes"
                )
            part = np.concatenate([np.full(len(p.rows), i) for i, p in enumerate(opened)])
            row = np.concatenate([p.rows for p in opened])
            sha = np.concatenate([p.sha for p in opened])
            views = np.concatenate([p.views for p in opened])
            if self.keep is not None:
                part, row, sha, views = (x[self.keep] for x in (part, row, sha, views))
            self._part, self._row = part.astype(np.int64), row.astype(np.int64)
            self._sha, self._views = sha, views
            self._opened = opened
        return self._opened

    # --- what is here ----------------------------------------------------------------------------

    @property
    def snapshot(self) -> str:
        """Snapshot of the first part."""
        return self.parts[0].snapshot

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names."""
        return self.parts[0].layers

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
        """Row in the image table behind each row (of the part's own store)."""
        images = np.concatenate([p.images for p in self.open()])
        return images if self.keep is None else images[self.keep]

    @property
    def missing(self) -> list[str]:
        """Paths of selected images that lack a layer and are left out."""
        return [str(p) for part in self.open() for p in part.table.path[part.lacking]]

    def column(self, name: str) -> list[Any]:
        """Return a column of the image table per row: ``path``, ``split``, ``kind``, ``mask``..."""
        opened = self.open()
        parts = [p.table.column(name)[p.images] for p in opened]
        values = np.concatenate(parts)
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
        return FeatureReader(self.parts, keep, self.memory)

    @staticmethod
    def concat(readers: Sequence[FeatureReader]) -> FeatureReader:
        """Return the rows of several readers one after the other: plain images and their views."""
        parts: list[PartRef] = []
        keep, start = [], 0
        for reader in readers:
            total = sum(len(p.rows) for p in reader.open())
            keep.append(start + (np.arange(total) if reader.keep is None else reader.keep))
            parts += [replace(p, layers=readers[0].layers) for p in reader.parts]
            start += total
            if set(reader.layers) != set(readers[0].layers):
                raise DataError(
                    f"layers {reader.layers} and {readers[0].layers}", expected="the same layers"
                )
        plain = all(r.keep is None for r in readers)
        joined = None if plain else np.concatenate(keep)
        return FeatureReader(parts, joined, readers[0].memory)

    # --- reading ---------------------------------------------------------------------------------

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``start:stop`` in order, each ``[row, C, H, W]`` float32."""
        self.open()
        order = np.arange(len(self))[start:stop]
        with guard("reading features"):
            if self._resident is not None:
                return self._assemble(order, None)
            return self._assemble(order, collect(self._request(order)))

    def order(self, seed: int | None) -> tuple[np.ndarray, list[int]]:
        """Return the order of rows in an epoch and where its windows end.

        Runs of rows that are whole chunks in every layer are shuffled, then rows within windows of
        some of these runs. It depends on the rows, the layers' chunks and the seed alone.
        """
        opened = self.open()
        n = len(self)
        unit = max(m.rows for p in opened for m in p.maps.values())
        group = self._part * (1 << 40) + self._row // unit
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
                    yield self._finish(self._assemble(rows, None), rows)
                return
            yield from read_ahead(self._stream(order, ends, size, stop))

    def _finish(self, batch: Batch, rows: np.ndarray) -> Batch:
        batch["_rows"] = torch.from_numpy(np.array(rows, np.int64))
        return batch

    def _stream(self, order: np.ndarray, ends: list[int], size: int, stop: int) -> Iterator[Batch]:
        """Yield batches, with the next window's chunks under way while this one's are used."""
        windows = list(zip([0, *ends[:-1]], ends, strict=True))
        asked: list[Any] = []
        ready: list[tuple[int, dict[Any, Any]]] = []

        def ask() -> None:
            if len(asked) < len(windows):
                first, last = windows[len(asked)]
                asked.append(self._request(order[first:last]))

        ask()
        covered, taken = 0, 0
        for first in range(0, stop, size):
            last = min(first + size, stop)
            ready = [(end, chunks) for end, chunks in ready if end > first]
            while covered < last:
                ask()
                ready.append((windows[taken][1], collect(asked[taken])))
                asked[taken] = None
                covered = windows[taken][1]
                taken += 1
                ask()
            chunks = {k: v for _, found in ready for k, v in found.items()}
            rows = order[first:last]
            yield self._finish(self._assemble(rows, chunks), rows)

    def _request(self, order: np.ndarray) -> list[tuple[int, str, list[int], Future[Any]]]:
        """Start fetching all chunks that some rows need."""
        asked = []
        for number, part in enumerate(self.open()):
            rows = self._row[order][self._part[order] == number]
            if not len(rows):
                continue
            for layer, maps in part.maps.items():
                chunks = np.unique(rows // maps.rows).tolist()
                asked.append((number, layer, chunks, submit(maps.fetch(part.store, chunks))))
        return asked

    def _assemble(self, order: np.ndarray, chunks: Mapping[Any, Any] | None) -> Batch:
        """Gather rows, as float32, from fetched chunks or from what is resident."""
        batch: Batch = {}
        part, row = self._part[order], self._row[order]
        for layer, shape in self.shapes.items():
            out = self._pool.take((len(order), *shape))
            batch[layer] = out
            if chunks is None:
                assert self._resident is not None
                copy_rows(out, self._resident[layer], order)
                continue
            rows_per_chunk = self._opened[0].maps[layer].rows  # type: ignore[index]
            many = len({p.maps[layer].rows for p in self.open()}) > 1
            if many:
                per_part = np.array([p.maps[layer].rows for p in self.open()])
                rows_per_chunk = per_part[part]
            number, offset = row // rows_per_chunk, row % rows_per_chunk
            for start, stop in runs(part * (1 << 40) + number):
                chunk = chunks[(int(part[start]), layer, int(number[start]))]
                copy_rows(out[start:stop], chunk, offset[start:stop])
        return batch

    def _load(self) -> None:
        """Make all rows resident, in the stored dtype."""
        opened = self.open()
        resident = {}
        for layer, shape in self.shapes.items():
            dtype = as_float(np.zeros(1, opened[0].maps[layer].dtype), opened[0].encoding).dtype
            resident[layer] = torch.empty((len(self), *shape), dtype=dtype)
        order, ends = self.order(None)
        windows = list(zip([0, *ends[:-1]], ends, strict=True))
        asked = self._request(order[slice(*windows[0])]) if windows else []
        for i, (first, last) in enumerate(windows):
            chunks = collect(asked)
            if i + 1 < len(windows):
                asked = self._request(order[slice(*windows[i + 1])])
            part, row = self._part[first:last], self._row[first:last]
            for layer, out in resident.items():
                rows = np.array([p.maps[layer].rows for p in opened])[part]
                number, offset = row // rows, row % rows
                for a, b in runs(part * (1 << 40) + number):
                    chunk = chunks[(int(part[a]), layer, int(number[a]))]
                    copy_rows(out[first + a : first + b], chunk, offset[a:b])
        self._resident = resident
