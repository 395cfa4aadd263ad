"""Arrays inside a store: creating them, changing scattered rows, and whole chunks as raw bytes."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
import zarr.api.asynchronous
from numcodecs import Blosc

from headwater.errors import StoreError
from storage.store.engine import PARALLEL, fetch_chunks, put_chunk, submit
from storage.store.layout import column_codec


def create_column(
    group: zarr.Group,
    name: str,
    dtype: str,
    row_shape: tuple[int, ...],
    dimensions: Sequence[str],
    rows: int,
    fill: Any = None,
    attributes: dict[str, Any] | None = None,
    count: int = 0,
) -> Any:
    """Create an array of `count` unfilled rows that can grow, `rows` per chunk."""
    extra: dict[str, Any] = {} if fill is None else {"fill_value": fill}
    return group.create_array(
        name,
        shape=(count, *row_shape),
        chunks=(rows, *row_shape),
        dtype=dtype,
        compressors=column_codec(),
        dimension_names=list(dimensions),
        attributes=attributes or {},
        config={"write_empty_chunks": True},
        **extra,
    )


class Later:
    """Work on arrays that is collected and then run all at once.

    Each call into Zarr is a hand-over to another thread and back (half a millisecond), and what
    waits for the disk need not wait for its neighbour. Safe only inside a transaction.
    """

    def __init__(self) -> None:
        self._work: list[Callable[[], Coroutine[Any, Any, Any]]] = []

    def add(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        """Note ``function(*arguments)`` for `run`."""
        self._work.append(functools.partial(function, *arguments))

    def run(self) -> list[Any]:
        """Run what was noted side by side; return the results, or raise the first error."""
        work, self._work = self._work, []

        async def every() -> list[Any]:
            return list(await asyncio.gather(*(w() for w in work), return_exceptions=True))

        # All have ended when an error is raised: nothing goes on writing behind a failed commit.
        results = submit(every()).result() if work else []
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


class Arrays:
    """The arrays below a group, each opened once."""

    def __init__(self, group: zarr.Group) -> None:
        self.group = group
        self._arrays: dict[str, Any] = {}

    def array(self, name: str) -> Any:
        """Return an array by its path below the group."""
        if name not in self._arrays:
            self._arrays[name] = self.group[name]
        return self._arrays[name]

    def open_all(self, names: Iterable[str]) -> None:
        """Open several arrays at once."""
        new = [n for n in names if n not in self._arrays]
        base, store = self.group.path, self.group.store

        async def every() -> list[Any]:
            paths = [f"{base}/{n}" if base else n for n in new]
            work = (zarr.api.asynchronous.open_array(store=store, path=p) for p in paths)
            return list(await asyncio.gather(*work))

        opened = submit(every()).result() if new else []
        self._arrays.update({n: zarr.Array(a) for n, a in zip(new, opened, strict=True)})


async def append(array: Any, values: Any) -> None:
    """Append ``values`` to an array."""
    target = array.async_array
    start, count = target.shape[0], len(values)
    await target.resize((start + count, *target.shape[1:]))
    await target.setitem(slice(start, start + count), values)


async def lengthen(array: Any, rows: int) -> None:
    """Give an array at least `rows` rows; new ones hold the fill value."""
    target = array.async_array
    if target.shape[0] < rows:
        await target.resize((rows, *target.shape[1:]))


def _strings(values: Any) -> Any:
    """Return numpy's variable-length strings, which fancy assignment needs."""
    array = np.asarray(values)
    return array.astype(np.dtypes.StringDType()) if array.dtype.kind in "UOT" else array


async def assign(array: Any, rows: np.ndarray, values: Any) -> None:
    """``array[rows[i]] = values[i]``, touching each chunk once.

    Zarr's own coordinate assignment is far slower and has no answer for variable-length strings.
    """
    if not len(rows):
        return
    target = array.async_array
    rows, values = np.asarray(rows, np.int64), _strings(values)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    if values.ndim:
        values = values[order]
    size, total = target.chunks[0], target.shape[0]
    if rows[-1] - rows[0] + 1 == len(rows):
        await target.setitem(slice(int(rows[0]), int(rows[-1]) + 1), values)
        return
    for start, stop in runs(rows // size):
        first = int(rows[start]) // size * size
        last = min(first + size, total)
        block = await target.getitem(slice(first, last))
        block[rows[start:stop] - first] = values[start:stop] if values.ndim else values
        await target.setitem(slice(first, last), block)


def set_rows(array: Any, rows: np.ndarray, values: Any) -> None:
    """Run `assign` and wait for it."""
    submit(assign(array, rows, values)).result()


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

        def one(data: Any) -> np.ndarray | None:
            return None if data is None else self.decode(data)

        if self.codec is None:
            return list(map(one, raw))
        return list(await asyncio.gather(*(asyncio.to_thread(one, data) for data in raw)))

    def chunks(self, store: Any, chunks: Sequence[int]) -> list[np.ndarray | None]:
        """Fetch chunks by number and wait for them."""
        return submit(self.fetch(store, chunks)).result()

    def write(self, store: Any, rows: np.ndarray, data: np.ndarray) -> int:
        """Run `put` and wait for it."""
        return int(submit(self.put(store, rows, data)).result())

    async def put(
        self, store: Any, rows: np.ndarray, data: np.ndarray, parallel: int = PARALLEL
    ) -> int:
        """Write ``data[i]`` to row ``rows[i]``; return the bytes that went to the store.

        Chunks that are covered whole are written straight from `data`; of others the rest is
        read first. Nothing is visible before the commit.
        """
        if np.any(np.diff(rows) < 0):
            order = np.argsort(rows, kind="stable")
            rows, data = rows[order], data[order]
        gate = asyncio.Semaphore(parallel)

        async def one(start: int, stop: int) -> int:
            chunk = int(rows[start]) // self.rows
            async with gate:
                block = data[start:stop]
                if stop - start < self.rows:
                    (old,) = await self.fetch(store, [chunk])
                    shape = (self.rows, *self.shape[1:])
                    block = np.zeros(shape, self.dtype) if old is None else np.array(old)
                    block[rows[start:stop] - chunk * self.rows] = data[start:stop]
                # Compressing takes long enough for another thread.
                plain = self.codec is None
                raw = self.encode(block) if plain else await asyncio.to_thread(self.encode, block)
                await put_chunk(store, self.key(chunk), raw)
                return len(raw)

        return sum(await asyncio.gather(*(one(a, b) for a, b in runs(rows // self.rows))))
