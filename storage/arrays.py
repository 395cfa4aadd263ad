"""Arrays inside a store: creating them, changing scattered rows, and whole chunks as raw bytes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from headwater.errors import StoreError
from storage.engine import fetch_chunks, put_chunks, submit
from storage.layout import column_codec


def create_column(
    group: zarr.Group,
    name: str,
    dtype: str,
    row_shape: tuple[int, ...],
    dimensions: Sequence[str],
    rows: int,
    fill: Any = None,
    attributes: dict[str, Any] | None = None,
) -> Any:
    """Create an empty array that grows along its first dimension, `rows` per chunk."""
    extra: dict[str, Any] = {} if fill is None else {"fill_value": fill}
    return group.create_array(
        name,
        shape=(0, *row_shape),
        chunks=(rows, *row_shape),
        dtype=dtype,
        compressors=column_codec(),
        dimension_names=list(dimensions),
        attributes=attributes or {},
        config={"write_empty_chunks": True},
        **extra,
    )


def append_rows(*pairs: tuple[Any, Any]) -> None:
    """Append ``values`` to ``array`` for each pair, all at once (safe only inside a transaction).

    Each call into Zarr is a hand-over to another thread and back, so one is made for all.
    """

    async def one(array: Any, values: Any) -> None:
        start, count = array.shape[0], len(values)
        await array.resize((start + count, *array.shape[1:]))
        await array.setitem(slice(start, start + count), values)

    async def every() -> None:
        await asyncio.gather(*(one(a.async_array, v) for a, v in pairs))

    submit(every()).result()


def grow(arrays: Sequence[Any], rows: int) -> None:
    """Lengthen arrays to `rows`; new rows hold the fill value."""
    short = [a.async_array for a in arrays if a.shape[0] < rows]

    async def every() -> None:
        await asyncio.gather(*(a.resize((rows, *a.shape[1:])) for a in short))

    submit(every()).result()


def _strings(values: Any) -> Any:
    """Return numpy's variable-length strings, which fancy assignment needs."""
    array = np.asarray(values)
    return array.astype(np.dtypes.StringDType()) if array.dtype.kind in "UOT" else array


def set_rows(array: Any, rows: np.ndarray, values: Any) -> None:
    """Assign ``array[rows[i]] = values[i]``, touching each chunk once.

    Zarr's own coordinate assignment is far slower and has no answer for variable-length strings.
    """
    if not len(rows):
        return
    rows, values = np.asarray(rows, np.int64), _strings(values)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    if values.ndim:
        values = values[order]
    size, total = array.chunks[0], array.shape[0]
    if rows[-1] - rows[0] + 1 == len(rows):
        array[int(rows[0]) : int(rows[-1]) + 1] = values
        return
    for start, stop in runs(rows // size):
        first = int(rows[start]) // size * size
        last = min(first + size, total)
        block = array[first:last]
        block[rows[start:stop] - first] = values[start:stop] if values.ndim else values
        array[first:last] = block


def runs(keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of each run of equal keys."""
    if not len(keys):
        return
    cuts = np.flatnonzero(np.diff(keys)) + 1
    bounds = [0, *cuts.tolist(), len(keys)]
    yield from itertools.pairwise(bounds)


@dataclass(frozen=True)
class Maps:
    """One array of feature maps and how its chunks become bytes.

    Parameters
    ----------
    path
        Path of the array in the store.
    shape
        ``(rows, channels, height, width)``.
    rows
        Rows per chunk.
    dtype
        Numpy dtype on disk.
    codec
        numcodecs codec of a compressed chunk, or None.
    """

    path: str
    shape: tuple[int, int, int, int]
    rows: int
    dtype: np.dtype[Any]
    codec: Any = None

    @classmethod
    def of(cls, array: Any) -> Maps:
        """Describe an opened Zarr array."""
        codec = None
        for item in array.metadata.codecs:
            kind = item.to_dict()["name"]
            if kind == "blosc":
                from numcodecs import Blosc

                settings = item.to_dict()["configuration"]
                shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[settings["shuffle"]]
                codec = Blosc(settings["cname"], settings["clevel"], shuffle)
            elif kind != "bytes":
                raise StoreError(
                    f"array {array.path}: codec {kind!r}",
                    expected="plain bytes or blosc",
                    remedy="this store was written by a newer version; upgrade headwater",
                )
        return cls(array.path, tuple(array.shape), array.chunks[0], array.dtype, codec)

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's maps, uncompressed."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def key(self, chunk: int) -> str:
        """Return the store key of a chunk."""
        return f"{self.path}/c/{chunk}/0/0/0"

    def decode(self, raw: Any) -> np.ndarray:
        """Return a chunk's rows ``[rows, C, H, W]`` in the disk dtype.

        Raises `StoreError` where the bytes are not a chunk of this array.
        """
        try:
            data = raw if self.codec is None else self.codec.decode(raw)
            return np.frombuffer(data, self.dtype).reshape(self.rows, *self.shape[1:])
        except (ValueError, RuntimeError) as error:
            raise StoreError(f"array {self.path}: a damaged chunk: {error}") from None

    def encode(self, block: np.ndarray) -> Any:
        """Return the bytes of a whole chunk."""
        flat = np.ascontiguousarray(block).reshape(-1)
        return flat.view(np.uint8).data if self.codec is None else self.codec.encode(flat)

    async def fetch(self, store: Any, chunks: Sequence[int]) -> list[np.ndarray | None]:
        """Fetch chunks by number; None stands for one that was never written."""
        raw = await fetch_chunks(store, [self.key(c) for c in chunks])
        if self.codec is None:
            return [None if r is None else self.decode(r) for r in raw]
        work = [_none() if r is None else asyncio.to_thread(self.decode, r) for r in raw]
        return list(await asyncio.gather(*work))

    def chunks(self, store: Any, chunks: Sequence[int]) -> list[np.ndarray | None]:
        """Fetch chunks by number and wait for them."""
        return submit(self.fetch(store, chunks)).result()

    def write(self, store: Any, rows: np.ndarray, data: np.ndarray) -> int:
        """Write ``data[i]`` to row ``rows[i]``; return the bytes that went to the store.

        Chunks that are covered whole are written straight from `data`; of others the rest is
        read first. Nothing is visible before the commit.
        """
        if not len(rows):
            return 0
        if np.any(np.diff(rows) < 0):
            order = np.argsort(rows, kind="stable")
            rows, data = rows[order], data[order]
        ready: dict[str, Any] = {}
        written = 0
        for start, stop in runs(rows // self.rows):
            chunk = int(rows[start]) // self.rows
            if stop - start == self.rows:
                block = data[start:stop]
            else:
                (old,) = self.chunks(store, [chunk])
                shape = (self.rows, *self.shape[1:])
                block = np.zeros(shape, self.dtype) if old is None else np.array(old)
                block[rows[start:stop] - chunk * self.rows] = data[start:stop]
            ready[self.key(chunk)] = self.encode(block)
            written += len(ready[self.key(chunk)])
            if len(ready) >= 32:
                submit(put_chunks(store, ready)).result()
                ready = {}
        submit(put_chunks(store, ready)).result()
        return written


async def _none() -> None:
    return None
