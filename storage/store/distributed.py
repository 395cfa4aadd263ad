"""Writing from many processes at once: the driver allots rows, workers write, the driver commits.

Plain picklable functions; what runs them is somebody else's business. A worker gets a `Ticket`,
computes the features of its images and calls `write_block`, which puts whole chunks into the
store without committing. The driver hands what comes back to `commit_blocks`. A lost worker's
ticket is simply given out again: nothing that it wrote was visible.

Rows are reserved in a commit of their own, with image -1, at chunk boundaries, so that no two
workers share a chunk. A driver that dies leaves reserved rows behind; they hold no image and no
reader sees them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import icechunk
import numpy as np
import zarr

from headwater.errors import StoreError
from headwater.spec import ExtractorSpec, LayerSpec
from storage.store.arrays import Later, set_rows
from storage.store.checks import Key, Prepared, RowStatistics, prepare
from storage.store.extractors import Extractor, Shape
from storage.store.feature_store import FeatureStore
from storage.store.layout import BRANCH, DISK_DTYPE, IMAGES, StoreOptions, chunk_rows
from storage.store.table import ImageRow, Table
from storage.store.writing import NothingToDoError, WriteReport, assign_images, describe, subgroup


@dataclass(frozen=True)
class Ticket:
    """One block of work for a worker.

    Parameters
    ----------
    number
        Counts from 0.
    spec
        The extractor.
    layers
        What to compute.
    keys
        ``(sha256, view)`` of the images.
    rows
        The feature row of each.
    fork
        The engine's forked session, pickled.
    names
        Paths, for messages.
    """

    number: int
    spec: ExtractorSpec
    layers: tuple[LayerSpec, ...]
    keys: tuple[Key, ...]
    rows: np.ndarray
    fork: bytes
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What a worker wrote for a ticket: small enough to send, the maps are in the store."""

    number: int
    spec: ExtractorSpec
    keys: tuple[Key, ...]
    rows: np.ndarray
    crc32: dict[str, np.ndarray]
    statistics: dict[str, RowStatistics]
    fork: bytes
    bytes: int


def block_rows(
    spec: ExtractorSpec, shapes: Mapping[str, Shape], about_bytes: int, options: StoreOptions
) -> int:
    """Return rows per block: about so many bytes, and whole chunks in every layer."""
    item = DISK_DTYPE[spec.dtype].itemsize
    sizes = [int(np.prod(s)) * item for s in shapes.values()]
    unit = max(chunk_rows(s, options.chunk_bytes) for s in sizes)
    return unit * max(1, about_bytes // (unit * sum(sizes)))


def allocate(
    store: FeatureStore,
    spec: ExtractorSpec,
    shapes: Mapping[str, Shape],
    keys: Sequence[Key],
    *,
    about_bytes: int = 64 * 1024 * 1024,
    names: Mapping[str, str] | None = None,
) -> list[Ticket]:
    """Reserve rows for new images, find those of known ones, and cut the work into tickets.

    Parameters
    ----------
    spec
        The extractor.
    shapes
        ``{layer name: (C, H, W)}`` of the layers to compute (a plan's task: all keys miss them).
    keys
        ``(sha256, view)``, each once.
    about_bytes
        Bytes of maps per ticket.
    names
        Paths by sha256, for messages.
    """
    size = block_rows(spec, shapes, about_bytes, store.options)
    blocks: list[tuple[np.ndarray, np.ndarray]] = []

    def reserve(session: icechunk.Session) -> str:
        blocks.clear()
        root = zarr.open_group(session.store)
        extractor = Extractor.open(root, spec.id) or Extractor.create(root, spec)
        for layer, shape in shapes.items():
            if not extractor.has(layer):
                extractor.add_layer(layer, shape, store.options)
        unit = max(extractor.maps(layer).rows for layer in shapes)
        found = Table(subgroup(root, IMAGES)).find([k[0] for k in keys])
        at = extractor.find(found, np.array([k[1] for k in keys], np.int64))
        old = np.flatnonzero(at >= 0)
        # Chunks of known rows go to one ticket each, as two workers may not share one.
        old = old[np.argsort(at[old], kind="stable")]
        groups = at[old] // (-(-size // unit) * unit)
        for group in np.unique(groups):
            pick = old[groups == group]
            blocks.append((pick, at[pick]))
        start = -(-len(extractor) // unit) * unit
        fresh = np.flatnonzero(at < 0)
        for first in range(0, len(fresh), size):
            pick = fresh[first : first + size]
            blocks.append((pick, start + np.arange(len(pick), dtype=np.int64)))
            start += -(-len(pick) // unit) * unit
        if len(fresh):
            extractor.lengthen(start)
        if not session.has_uncommitted_changes:
            raise NothingToDoError
        return f"reserve rows for {len(fresh)} images in {len(blocks)} blocks"

    store.transact(reserve)
    fork = pickle.dumps(store.repository.writable_session(BRANCH).fork())
    layers = tuple(LayerSpec.parse(name) for name in shapes)
    tickets = []
    for number, (pick, rows) in enumerate(blocks):
        mine = tuple(keys[i] for i in pick.tolist())
        paths = tuple((names or {}).get(k[0], "") for k in mine)
        tickets.append(Ticket(number, spec, layers, mine, rows, fork, paths))
    return tickets


def write_block(ticket: Ticket, keys: Sequence[Key], maps: Mapping[str, Any]) -> Written:
    """Check a ticket's features and put them into the store; run by a worker.

    Parameters
    ----------
    ticket
        What was asked for.
    keys
        The images that could be read, all or some of the ticket's.
    maps
        ``{layer name: [n, C, H, W]}``.

    Raises
    ------
    FeatureRangeError
        Naming all maps that are not fit to be stored.
    """
    place = {k: i for i, k in enumerate(ticket.keys)}
    rows = ticket.rows[[place[k] for k in keys]]
    fork = pickle.loads(ticket.fork)
    extractor = Extractor.open(zarr.open_group(fork.store), ticket.spec.id)
    assert extractor is not None
    shapes = {layer: extractor.shape(layer) for layer in maps}
    named = {k[0]: n for k, n in zip(ticket.keys, ticket.names, strict=False)}
    ready = prepare(maps, keys, ticket.spec.dtype, shapes, named)
    written = 0
    for layer, block in ready.items():
        written += extractor.maps(layer).write(fork.store, rows, block.data)
    return Written(
        number=ticket.number,
        spec=ticket.spec,
        keys=tuple(keys),
        rows=rows,
        crc32={k: v.crc32 for k, v in ready.items()},
        statistics={k: v.statistics for k, v in ready.items()},
        fork=pickle.dumps(fork),
        bytes=written,
    )


def commit_blocks(
    store: FeatureStore, blocks: Sequence[Written], images: Iterable[ImageRow] = ()
) -> WriteReport:
    """Commit what workers wrote, together with its images; run by the driver.

    The forks are merged into the newest state. Where others have appended rows or touched a chunk
    meanwhile, the maps are copied out of the fork and written as an ordinary block would be.
    """
    known = {i.sha256: i for i in images}
    report: dict[str, Any] = {}

    def work(session: icechunk.Session) -> str:
        report.clear()
        report.update(rows=0, maps={}, images=0, known=0, bytes=0)
        tables = _Merge(session, known, report)
        # Merging comes first: a session takes forks only while it has no changes of its own.
        plans = [tables.look(b) for b in blocks]
        forks = [pickle.loads(b.fork) for b, p in zip(blocks, plans, strict=True) if p]
        if forks:
            session.merge(*forks)
        for block, merged in zip(blocks, plans, strict=True):
            tables.enter(block, merged)
        if not any(report["maps"].values()):
            raise NothingToDoError
        return describe(blocks[0].spec, report)

    if not blocks:
        return WriteReport(store.snapshot)
    snapshot, retries = store.transact(work)
    return WriteReport(snapshot, retries=retries, **report)


@dataclass(frozen=True)
class _Merge:
    """Bringing written blocks into one session."""

    session: icechunk.Session
    known: Mapping[str, ImageRow]
    report: dict[str, Any]

    def _open(self, spec: ExtractorSpec) -> tuple[zarr.Group, Extractor]:
        root = zarr.open_group(self.session.store)
        extractor = Extractor.open(root, spec.id)
        if extractor is None:
            raise StoreError(f"extractor {spec.id} is gone from the store")
        return root, extractor

    def look(self, block: Written) -> bool:
        """Return whether a block's chunks can be taken over as they are.

        They can where every row is still ours (reserved, or known and not filled), no other row
        of these chunks was filled since, and the arrays are as long as they were: a fork that is
        merged into a session where its array has grown makes the engine (1.1.21) drop, at the
        commit and without a word, the chunks behind the old end.
        """
        _, now = self._open(block.spec)
        base = Extractor.open(zarr.open_group(pickle.loads(block.fork).store), block.spec.id)
        assert base is not None
        for layer in block.crc32:
            maps = now.maps(layer)
            if base.maps(layer).shape != maps.shape:
                return False
            mine = np.isin(np.arange(len(now)) // maps.rows, block.rows // maps.rows)
            was = np.full(len(now), -1, np.int32)
            before = base.block(layer)
            was[: len(before)] = before
            if np.any(was[mine] != now.block(layer)[mine]):
                return False
        return True

    def enter(self, block: Written, merged: bool) -> None:
        """Note a block's rows in the index, with checksums and statistics."""
        root, extractor = self._open(block.spec)
        later = Later()
        images, new = assign_images(Table(subgroup(root, IMAGES)), block.keys, self.known, later)
        extractor.load(block.crc32)
        views = np.array([k[1] for k in block.keys], np.int64)
        at = extractor.find(images, views)
        fresh = at < 0
        rows = block.rows[fresh]
        set_rows(extractor.array("image"), rows, images[fresh])
        set_rows(extractor.array("view"), rows, views[fresh].astype(np.int16))
        at[fresh] = rows
        report, touched = self.report, np.zeros(len(at), bool)
        for layer in block.crc32:
            empty = extractor.block(layer)[at] < 0
            touched |= empty
            ours = np.flatnonzero(empty & (at == block.rows) & merged)
            if len(ours):
                statistics = block.statistics[layer].take(ours).block()
                extractor.record(layer, at[ours], block.crc32[layer][ours], statistics, later)
                later.run()  # a layer's other rows below need to know of these
            others = np.flatnonzero(empty & ~((at == block.rows) & merged))
            if len(others):
                copied = _reread(block, layer, others)
                extractor.fill(self.session.store, layer, at[others], copied, later)
            report["maps"][layer] = report["maps"].get(layer, 0) + int(empty.sum())
        later.run()
        report["rows"] += int(fresh.sum())
        report["images"] += new
        report["known"] += int((~touched).sum())
        report["bytes"] += block.bytes


def _reread(block: Written, layer: str, pick: np.ndarray) -> Prepared:
    """Fetch maps that a worker wrote, from its fork."""
    store = pickle.loads(block.fork).store
    extractor = Extractor.open(zarr.open_group(store), block.spec.id)
    assert extractor is not None
    maps, rows = extractor.maps(layer), block.rows[pick]
    out = np.empty((len(rows), *maps.shape[1:]), maps.dtype)
    chunks = np.unique(rows // maps.rows).tolist()
    for chunk, data in zip(chunks, maps.chunks(store, chunks), strict=True):
        mine = rows // maps.rows == chunk
        if data is None:
            raise StoreError(f"array {maps.path}: chunk {chunk} is missing")
        out[mine] = data[rows[mine] - chunk * maps.rows]
    return Prepared(out, block.crc32[layer][pick], block.statistics[layer].take(pick))
