"""The store against the bare disk: ``python -m benchmarks.store [--mb N] [--json FILE]``.

Everything is a ratio of measurements taken in turns within one run; medians are printed. Three
sides do the same: a raw memmap, the store, and the engine alone (the same chunks put or fetched,
nothing checked, nothing converted), which is the ceiling of what the store can reach.

- Reading gives float32 tensors in batches of 32, into memory that is used again on both sides. The
  memmap converts straight from the mapped file, row by row where the order is shuffled.
- Before every write a file of the same size is written and deleted, so that each side finds pages
  that the machine has in memory: on a virtual machine the first use of a page costs several times
  the write itself, whoever comes first. What was written is deleted after each turn.
- A flushed write has every file synced to the disk, on both sides.

"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.store_scale import SPEC, images, show, timed
from headwater.spec import LayerSpec
from storage.store.engine import LOCAL_PARALLEL, fetch_chunks, put_chunk, submit
from storage.store.feature_store import FeatureStore
from storage.store.layout import chunk_rows
from storage.store.reader import FeatureReader

SHAPES: dict[str, dict[str, tuple[int, int, int]]] = {
    "512x28x28": {"layer2": (512, 28, 28)},
    "304x(24+12+6)^2": {
        "layer2": (304, 24, 24),
        "layer2@0.5": (304, 12, 12),
        "layer2@0.25": (304, 6, 6),
    },
    "64x56x56": {"layer1": (64, 56, 56)},
}
BATCH = 32
EPOCHS = 5


def warm_pages(folder: Path, size: int) -> None:
    """Write and delete a file, so that the next writer finds pages that are in memory."""
    piece = bytes(2**22)
    with (folder / "filler").open("wb", buffering=0) as file:
        for _ in range(-(-size // len(piece))):
            file.write(piece)
    (folder / "filler").unlink()


def sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def few_at_a_time(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run chunk traffic as the store does on a local disk."""

    async def every() -> None:
        gate = asyncio.Semaphore(LOCAL_PARALLEL)

        async def one(piece: Coroutine[Any, Any, Any]) -> None:
            async with gate:
                await piece

        await asyncio.gather(*(one(w) for w in work))

    submit(every()).result()


class Throughput:
    """One set of layers, written and read by memmap, store and bare engine."""

    def __init__(self, folder: Path, name: str, megabytes: int, block: int) -> None:
        self.folder, self.shapes = folder, SHAPES[name]
        self.layers = tuple(LayerSpec.parse(k) for k in self.shapes)
        row = sum(int(np.prod(s)) * 2 for s in self.shapes.values())
        self.n = max(BATCH * 2, megabytes * 2**20 // row // 256 * 256)
        rng = np.random.default_rng(0)
        self.maps = {
            k: rng.standard_normal((self.n, *s), dtype=np.float32).astype(np.float16)
            for k, s in self.shapes.items()
        }
        self.bytes = sum(v.nbytes for v in self.maps.values())
        self.rows = images(self.n)
        # Blocks as an extraction makes them: so many MB, a round number of rows.
        self.block = max(64, block * 2**20 // row // 64 * 64)
        self.found: dict[str, list[float]] = {}

    def note(self, what: str, work: Callable[[], object]) -> None:
        """Time one piece of work, in GB/s of stored bytes and CPU seconds per GB."""
        seconds, cpu = timed(work)
        self.found.setdefault(what, []).append(self.bytes / 1e9 / seconds)
        self.found.setdefault(f"{what}, CPU s/GB", []).append(cpu / self.bytes * 1e9)

    def write_memmap(self, flush: bool) -> None:
        """Write raw files, the yardstick."""
        for i, v in enumerate(self.maps.values()):
            out = np.memmap(self.folder / f"{i}.raw", np.float16, "w+", shape=v.shape)
            out[:] = v
            if flush:
                out.flush()

    def write_store(self, store: FeatureStore, flush: bool) -> None:
        """Write and commit block by block."""
        keys = [(r.sha256, 0) for r in self.rows]
        for a in range(0, self.n, self.block):
            part = {k: v[a : a + self.block] for k, v in self.maps.items()}
            store.write(SPEC, keys[a : a + self.block], part, self.rows[a : a + self.block])
        if flush:
            sync_files(self.folder / "store")

    def write_engine(self, store: FeatureStore) -> None:
        """Put the same bytes in the same chunks, uncommitted."""
        session = store.repository.writable_session("main")
        for k, v in self.maps.items():
            rows = chunk_rows(v[0].nbytes)
            path = f"features/{SPEC.id}/{k}/maps/c"
            few_at_a_time(
                put_chunk(
                    session.store,
                    f"{path}/{i}/0/0/0",
                    v[a : a + rows].reshape(-1).view(np.uint8).data,
                )
                for i, a in enumerate(range(0, len(v) // rows * rows, rows))
            )

    def writes(self, rounds: int) -> None:
        """Time all ways of writing, turn by turn."""
        for _ in range(rounds):
            for flush in (False, True):
                said = ", flushed" if flush else ""
                warm_pages(self.folder, self.bytes)
                self.note(f"write memmap{said}", partial(self.write_memmap, flush))
                for i in range(len(self.shapes)):
                    (self.folder / f"{i}.raw").unlink()
                shutil.rmtree(self.folder / "store", ignore_errors=True)
                store = FeatureStore.open(self.folder / "store", "set")
                warm_pages(self.folder, self.bytes)
                self.note(f"write store{said}", partial(self.write_store, store, flush))
            warm_pages(self.folder, self.bytes)
            self.note("write engine", partial(self.write_engine, store))

    def reads(self, rounds: int) -> None:
        """Time all ways of reading, turn by turn."""
        shutil.rmtree(self.folder / "store")
        store = FeatureStore.open(self.folder / "store", "set")
        self.write_store(store, False)
        self.write_memmap(False)
        self.maps.clear()
        n, batch = self.n, BATCH
        mapped = {
            k: torch.from_numpy(np.memmap(self.folder / f"{i}.raw", np.float16, "c", shape=(n, *s)))
            for i, (k, s) in enumerate(self.shapes.items())
        }
        room = [{k: torch.empty(batch, *s) for k, s in self.shapes.items()} for _ in range(2)]

        def memmap_in_order() -> None:
            for i, a in enumerate(range(0, n, batch)):
                for k, v in mapped.items():
                    room[i % 2][k][: min(batch, n - a)].copy_(v[a : a + batch])

        order = np.random.default_rng(1).permutation(n).tolist()

        def memmap_shuffled() -> None:
            for i, a in enumerate(range(0, n, batch)):
                for k, v in mapped.items():
                    out = room[i % 2][k]
                    for place, row in enumerate(order[a : a + batch]):
                        out[place].copy_(v[row])

        reader = store.reader(SPEC, self.layers, memory=0)
        excerpt = reader.open()[0]

        def engine() -> None:
            """Fetch all chunks and look at none."""
            keys = [m.key(c) for m in excerpt.maps.values() for c in range(-(-n // m.rows))]
            few_at_a_time(fetch_chunks(excerpt.store, [k]) for k in keys)

        def epoch(source: FeatureReader, seed: int | None) -> None:
            assert sum(len(b["_rows"]) for b in source.batches(batch, seed=seed)) == n

        self.found_before = dict(self.found)
        for turn in range(rounds + 1):  # the first warms the page cache for all
            if turn == 1:
                self.found = dict(self.found_before)
            self.note("sequential memmap", memmap_in_order)
            self.note("sequential store", partial(epoch, reader, None))
            self.note("read engine", engine)
            self.note("shuffled memmap", memmap_shuffled)
            self.note("shuffled store", partial(epoch, reader, turn))
        # As a training uses it: the default memory, a new reader, its first epoch counted.
        for _ in range(rounds):
            fresh = store.reader(SPEC, self.layers)
            every = sum(timed(partial(epoch, fresh, t))[0] for t in range(EPOCHS))
            rate = EPOCHS * self.bytes / 1e9 / every
            self.found.setdefault(f"trainer's shuffled, {EPOCHS} epochs", []).append(rate)

    def result(self) -> dict[str, float]:
        """Return medians and ratios."""
        mid = {k: statistics.median(v) for k, v in self.found.items()}
        trainer = mid[f"trainer's shuffled, {EPOCHS} epochs"]
        return {
            "MB": round(self.bytes / 1e6),
            **{k if "CPU" in k else f"{k}, GB/s": v for k, v in mid.items()},
            "write / memmap": mid["write store"] / mid["write memmap"],
            "write / memmap, both flushed": mid["write store, flushed"]
            / mid["write memmap, flushed"],
            "engine's write / memmap": mid["write engine"] / mid["write memmap"],
            "sequential / memmap": mid["sequential store"] / mid["sequential memmap"],
            "engine's read / sequential memmap": mid["read engine"] / mid["sequential memmap"],
            "shuffled from disk / memmap": mid["shuffled store"] / mid["shuffled memmap"],
            "engine's read / shuffled memmap": mid["read engine"] / mid["shuffled memmap"],
            "shuffled, as the trainer / memmap": trainer / mid["shuffled memmap"],
        }


def throughput(
    folder: Path, name: str, megabytes: int, rounds: int, block: int
) -> dict[str, float]:
    """Measure one set of layers."""
    work = Throughput(folder, name, megabytes, block)
    work.writes(rounds)
    work.reads(rounds)
    return work.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mb", type=int, default=512, help="megabytes per shape")
    parser.add_argument("--block-mb", type=int, default=64, help="megabytes a commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--folder", type=Path, help="where to write")
    parser.add_argument("--shape", choices=tuple(SHAPES), action="append", help="only these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, dict[str, Any]] = {"machine": machine()}
    for name in options.shape or SHAPES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            result[name] = throughput(
                Path(folder), name, options.mb, options.rounds, options.block_mb
            )
    show(result, options.json)


if __name__ == "__main__":
    main()
