"""Where a reader's rows are, and moving them from fetched chunks into batches."""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from headwater.errors import StoreError
from storage.store.arrays import Maps, runs
from storage.store.checks import as_float
from storage.store.chunk_files import READERS, Place, Reading, in_a_row, locate, read_rows, readers
from storage.store.engine import LOCAL_PARALLEL, PARALLEL, guard, is_remote, shared_repository
from storage.store.extractors import Extractor
from storage.store.layout import IMAGES
from storage.store.table import Selection, Table

Batch = dict[str, Tensor]
#: Batches made ready ahead of the consumer.
AHEAD = 3


@dataclass(frozen=True)
class ExcerptRef:
    """Some images' rows of one extractor at one snapshot, so that any process finds them again."""

    location: str
    image_set: str
    snapshot: str
    spec_id: str
    layers: tuple[str, ...]
    select: Selection
    missing: str = "error"


@dataclass
class Excerpt:
    """An opened `ExcerptRef`: the feature rows it holds, ascending, and where they are."""

    store: Any
    maps: dict[str, Maps]
    encoding: str
    rows: np.ndarray
    sha: np.ndarray
    views: np.ndarray
    lacking: np.ndarray
    table: Table
    images: np.ndarray
    parallel: int
    files: dict[str, dict[int, Place]]


def open_excerpt(ref: ExcerptRef) -> Excerpt:
    """Find an excerpt's rows at its snapshot; raises what is wrong with it."""
    where = f"store {ref.location}/{ref.image_set}"
    with guard(where):
        repository = shared_repository(ref.location, ref.image_set)
        store = repository.readonly_session(snapshot_id=ref.snapshot).store
        root = zarr.open_group(store, mode="r")
        table = Table(root[IMAGES])  # type: ignore[arg-type]
        extractor = Extractor.open(root, ref.spec_id)
        if extractor is None:
            raise StoreError(
                f"{where}: no features of extractor {ref.spec_id} at snapshot {ref.snapshot}",
                expected="an extractor that `headwater store inspect` lists",
                remedy="extract first",
            )
        wanted = ref.select.mask(table)
        here = extractor.image >= 0
        here[here] = wanted[extractor.image[here]]
        maps, filled = {}, here.copy()
        for layer in ref.layers:
            maps[layer] = extractor.maps(layer)
            filled &= extractor.block(layer) >= 0
        rows = np.flatnonzero(filled)
        present = np.zeros(len(table), bool)
        present[extractor.image[rows]] = True
        lacking = np.flatnonzero(wanted & ~present)
        half = np.unique(extractor.image[here & ~filled])
        lacking = np.union1d(lacking, half)
        if len(lacking) and ref.missing == "error":
            name = str(table.path[lacking[0]])
            raise StoreError(
                f"{where}: {len(lacking)} of {int(wanted.sum())} selected images lack a layer of "
                f"{', '.join(ref.layers)} at snapshot {ref.snapshot}, such as {name}",
                expected="features of all selected images",
                remedy="extract again with these layers, or skip what is missing",
            )
        return Excerpt(
            store=store,
            maps=maps,
            encoding=extractor.spec.dtype,
            rows=rows,
            sha=table.sha[extractor.image[rows]],
            views=extractor.view[rows].astype(np.int64),
            lacking=lacking,
            table=table,
            images=extractor.image[rows],
            parallel=PARALLEL if is_remote(ref.location) else LOCAL_PARALLEL,
            files={k: _files(ref, m) for k, m in maps.items()},
        )


def _files(ref: ExcerptRef, maps: Maps) -> dict[int, Place]:
    """Return the files of chunks that can be read without the engine."""
    if is_remote(ref.location) or maps.codec is not None:
        return {}
    folder = str(Path(ref.location) / ref.image_set)
    return locate(folder, ref.snapshot, maps.path, maps.rows * maps.row_bytes)


def _bits(values: Tensor) -> np.ndarray:
    """Return a tensor in the stored dtype as numpy has it on disk."""
    same = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
    return same.numpy()


#: Fetches of chunks of which a later batch needs more rows, by (excerpt, layer, chunk).
Held = dict[tuple[int, str, int], "asyncio.Task[np.ndarray]"]


async def gather(
    excerpts: Sequence[Excerpt],
    excerpt: np.ndarray,
    row: np.ndarray,
    out: dict[str, Tensor],
    held: Held | None = None,
) -> dict[str, Tensor]:
    """Fetch rows into `out`: row ``row[i]`` of ``excerpts[excerpt[i]]`` becomes ``out[layer][i]``.

    Each chunk is moved to where its rows belong as soon as it is there, and few are under way at
    once: its memory, still in the processor's cache, then serves the next one. Keeping the
    chunks of a window instead costs a page fault per 4 KB. `out` is in the stored dtype or in
    float32; `held` carries the last chunk of each layer from one call to the next.
    """
    gate = asyncio.Semaphore(max(e.parallel for e in excerpts))

    async def fetch(source: Excerpt, layer: str, chunk: int) -> np.ndarray:
        (data,) = await source.maps[layer].fetch(source.store, [chunk])
        if data is None:
            raise StoreError(
                f"layer {layer}: chunk {chunk} is missing from the store",
                remedy="`headwater store verify --repair` computes it again",
            )
        return data

    async def one(
        source: Excerpt, layer: str, chunk: int, place: np.ndarray, at: np.ndarray, key: Any
    ) -> None:
        async with gate:
            got = await (fetch(source, layer, chunk) if key is None else last[key])
            place_rows(out[layer], place, as_float(got, source.encoding), at)

    def from_files(numbers: Sequence[int]) -> list[int]:
        return [n for n in numbers if not read_rows(*direct[n])]

    work, last = [], Held()
    direct: list[Reading] = []
    behind: list[Any] = []
    for number, source in enumerate(excerpts):
        mine = np.flatnonzero(excerpt == number)
        # Chunks in the order in which their first rows are wanted do nobody harm: sort by row.
        mine = mine[np.argsort(row[mine], kind="stable")]
        for layer, maps in source.maps.items():
            stored = as_float(np.zeros(1, maps.dtype), source.encoding).dtype
            chunks, offsets = row[mine] // maps.rows, row[mine] % maps.rows
            for start, stop in runs(chunks):
                place, at, chunk = mine[start:stop], offsets[start:stop], int(chunks[start])
                key = None
                file = source.files[layer].get(chunk)
                if file is not None:
                    direct.append((file, out[layer], place, at, stored))
                    behind.append((source, layer, chunk, place, at, None))
                    continue
                again = (number, layer, chunk)
                shared = stop == len(mine) or again in (held or ())
                if held is not None and shared:
                    key = again
                    found = held.get(key)
                    last[key] = found or asyncio.ensure_future(fetch(source, layer, chunk))
                work.append(one(source, layer, chunk, place, at, key))
    if held is not None:
        held.clear()
        held.update(last)
    # A hand-over to another thread costs as much as reading half a megabyte: one a thread.
    loop, pool = asyncio.get_running_loop(), readers()
    shares = [range(i, len(direct), READERS) for i in range(READERS)]
    files = [loop.run_in_executor(pool, from_files, share) for share in shares if share]
    for left in await asyncio.gather(*files):
        work += [one(*behind[n]) for n in left]
    await asyncio.gather(*work)
    return out


def place_rows(out: Tensor, place: np.ndarray, source: Tensor, rows: np.ndarray) -> None:
    """``out[place[i]] = source[rows[i]]``, with conversion where the dtypes differ."""
    if in_a_row(place):
        copy_rows(out[int(place[0]) : int(place[-1]) + 1], source, rows)
    elif out.dtype != source.dtype:
        out[torch.from_numpy(place)] = source[torch.from_numpy(rows)].to(out.dtype)
    else:
        # numpy's assignment is several times faster here than torch's index_copy_.
        data = _bits(source)
        _bits(out)[place] = data if len(rows) == len(source) and in_a_row(rows) else data[rows]


def copy_rows(out: Tensor, source: Tensor, rows: np.ndarray) -> None:
    """``out[i] = source[rows[i]]`` with conversion, consecutive rows at once."""
    steps = np.flatnonzero(np.diff(rows) != 1) + 1
    bounds = [0, *steps.tolist(), len(rows)]
    if len(bounds) > 64 and out[0].numel() < 16384:
        out.copy_(source.index_select(0, torch.from_numpy(np.ascontiguousarray(rows))))
        return
    for a, b in itertools.pairwise(bounds):
        first = int(rows[a])
        out[a:b].copy_(source[first : first + b - a])


def read_ahead(source: Iterator[Batch]) -> Iterator[Batch]:
    """Run an iterator in a thread, a few items ahead."""
    thread = ThreadPoolExecutor(1, "headwater-read-ahead")
    try:
        asked = collections.deque(thread.submit(next, source, None) for _ in range(AHEAD))
        while (item := asked.popleft().result()) is not None:
            asked.append(thread.submit(next, source, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
