"""Finding damage in a store and marking just that to be computed again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import icechunk
import numpy as np
import zarr

from headwater.errors import HeadwaterError, StoreError
from headwater.spec import ExtractorSpec
from storage.store.arrays import Maps, set_rows
from storage.store.checks import RowStatistics, checksums, row_statistics
from storage.store.engine import cause, fetch_chunks, read_whole, submit
from storage.store.extractors import Extractor
from storage.store.feature_store import FeatureStore
from storage.store.table import Table, sha_names

#: `Damage.row` of a layer whose own columns are damaged, so that none of its maps can be trusted.
EVERY_ROW = -1


@dataclass(frozen=True)
class Damage:
    """Maps that are not what was written: one image's of one layer, or all of a layer.

    `row` is the feature row, or `EVERY_ROW`; `unreadable` says that the chunk cannot be read, and
    `removed` that the image is in the set no more, so that nothing can or need be computed again.
    """

    extractor: str
    layer: str
    row: int
    sha256: str
    view: int
    path: str
    reason: str
    unreadable: bool = False
    removed: bool = False

    def __str__(self) -> str:
        if self.row == EVERY_ROW:
            return f"layer {self.layer} of extractor {self.extractor}, all images: {self.reason}"
        view = f", view {self.view}" if self.view else ""
        image = "removed image" if self.removed else "image"
        return f"layer {self.layer}, {image} {self.path} ({self.sha256[:12]}){view}: {self.reason}"


@dataclass
class VerifyReport:
    """Result of `verify`.

    Parameters
    ----------
    snapshot
        What was verified.
    rows, bytes
        Maps read.
    damage
        Maps to compute again, or to give up where their image was removed.
    problems
        What recomputing features cannot mend: an inconsistent table or index.
    """

    snapshot: str
    rows: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damage and not self.problems


def verify(
    store: FeatureStore,
    snapshot: str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every map again and compare checksums and block statistics.

    Parameters
    ----------
    snapshot
        Id or tag; the newest without it.
    progress
        Called with bytes read and bytes in all.

    Examples
    --------
    >>> verify(store).ok
    True
    """
    report = VerifyReport(store.resolve(snapshot))
    try:
        table = Table(store.root(report.snapshot)["images"])  # type: ignore[arg-type]
        report.problems += _table_problems(table)
        extractors = store.extractors(report.snapshot)
    except Exception as error:
        report.problems.append(f"the image table cannot be read: {_said(error)}")
        return report
    work: list[tuple[Extractor, str, _Columns]] = []
    for extractor in extractors:
        name = extractor.spec.id
        try:
            report.problems += _index_problems(extractor, len(table))
        except Exception as error:
            report.problems.append(f"the index of extractor {name} cannot be read: {_said(error)}")
            continue
        for layer in extractor.layers:
            try:
                columns = _Columns.of(extractor, layer)
            except Exception as error:
                lost = Damage(name, layer, EVERY_ROW, "", 0, "", _said(error), True)
                report.damage.append(lost)
                continue
            work.append((extractor, layer, columns))
            stray = int(((columns.block >= 0) & (extractor.image < 0)).sum())
            if stray:
                report.problems.append(
                    f"extractor {name}, layer {layer}: {stray} filled rows belong to no image"
                )
    total = sum(int((c.block >= 0).sum()) * e.maps(name).row_bytes for e, name, c in work)

    def read(size: int) -> None:
        report.bytes += size
        if progress:
            progress(report.bytes, total)

    for extractor, layer, columns in work:
        bad: dict[int, tuple[str, bool]] = {}
        for row, reason, unreadable in _verify_layer(extractor, layer, columns, read):
            bad.setdefault(row, (reason, unreadable))
        report.rows += int((columns.block >= 0).sum())
        for row, (reason, unreadable) in sorted(bad.items()):
            image, view = int(extractor.image[row]), int(extractor.view[row])
            known = 0 <= image < len(table)
            sha = sha_names(table.sha[image : image + 1])[0] if known else ""
            path = str(table.path[image]) if known else "(no image)"
            identity = (extractor.spec.id, layer, row, sha, view, path)
            removed = known and bool(table.removed_at[image] != 0)
            report.damage.append(Damage(*identity, reason, unreadable, removed))
    return report


def _table_problems(table: Table) -> Iterator[str]:
    lengths = {name: table.array(name).shape[0] for name in ("sha256", "path", "removed_at")}
    if len(set(lengths.values())) > 1:
        yield f"columns of the image table differ in length: {lengths}"
    if len(table):
        same = len(table) - len(np.unique(table.sha.view("S32")))
        if same:
            yield f"{same} contents are in the image table twice"
    for name in ("path", "split", "kind", "mask", "width", "height", "added_at"):
        table.column(name)


def _index_problems(extractor: Extractor, images: int) -> Iterator[str]:
    name, assigned = extractor.spec.id, extractor.image >= 0
    beyond = int((extractor.image >= images).sum())
    if beyond:
        yield f"extractor {name}: {beyond} rows point behind the image table"
    pairs = np.stack([extractor.image[assigned], extractor.view[assigned].astype(np.int64)], 1)
    twice = len(pairs) - len(np.unique(pairs, axis=0))
    if twice:
        yield f"extractor {name}: {twice} images are there twice"


def _said(error: Exception) -> str:
    return error.culprit if isinstance(error, HeadwaterError) else cause(error)


@dataclass(frozen=True)
class _Columns:
    """What a layer says of its maps: block number and checksum per row, statistics per block."""

    block: np.ndarray
    crc32: np.ndarray
    statistics: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, extractor: Extractor, layer: str) -> _Columns:
        names = ("block", "crc32", "statistics", "blocks")
        block, crc, statistics, blocks = (
            read_whole(extractor.array(f"{layer}/{name}")) for name in names
        )
        return cls(block, crc, statistics, blocks[:, 1])


def _verify_layer(
    extractor: Extractor, layer: str, columns: _Columns, read: Callable[[int], None]
) -> Iterator[tuple[int, str, bool]]:
    """Yield ``(row, reason, unreadable)``; `read` is told of bytes."""
    maps, store = extractor.maps(layer), extractor.group.store
    block, crc = columns.block, columns.crc32
    statistics, count = columns.statistics, columns.count
    spoilt: set[int] = set()
    open_blocks: dict[int, list[tuple[np.ndarray, RowStatistics]]] = {}
    filled = np.flatnonzero(block >= 0)
    chunks = np.unique(filled // maps.rows).tolist()
    for start in range(0, len(chunks), 16):
        batch = chunks[start : start + 16]
        got = submit(fetch_chunks(store, [maps.key(c) for c in batch], errors=True)).result()
        for chunk, raw in zip(batch, got, strict=True):
            first = chunk * maps.rows
            rows = filled[(filled >= first) & (filled < first + maps.rows)]
            data, reason = _decode(maps, raw)
            if data is None:
                yield from ((int(r), reason, True) for r in rows)
                continue
            part = np.ascontiguousarray(data[rows - first])
            wrong = checksums(part) != crc[rows]
            # Where a map is damaged, its block's statistics must differ: that accuses no other.
            spoilt.update(np.unique(block[rows[wrong]]).tolist())
            yield from ((int(r), "checksum differs", False) for r in rows[wrong])
            found = row_statistics(part, extractor.spec.dtype)
            for number in np.unique(block[rows]).tolist():
                mine = block[rows] == number
                pieces = open_blocks.setdefault(number, [])
                pieces.append((rows[mine], found.take(mine)))
                if sum(len(p[0]) for p in pieces) == count[number]:
                    members = np.concatenate([p[0] for p in pieces])
                    again = RowStatistics.join([p[1] for p in pieces]).block()
                    del open_blocks[number]
                    if number not in spoilt and not _same(again, statistics[number]):
                        text = f"statistics of block {number} differ"
                        yield from ((int(r), text, False) for r in members)
            read(part.nbytes)


def _decode(maps: Maps, raw: Any) -> tuple[np.ndarray | None, str]:
    if raw is None:
        return None, "its chunk is missing"
    if isinstance(raw, BaseException):
        return None, f"its chunk cannot be read: {cause(raw)}"
    try:
        return maps.decode(raw), ""
    except StoreError:
        return None, "its chunk cannot be decoded"


def _same(again: np.ndarray, stored: np.ndarray) -> bool:
    """Whether statistics agree but for the order of float32 sums."""
    scale = np.abs(stored).max(axis=1, keepdims=True) + 1e-30
    return bool(np.all(np.abs(again - stored) <= 1e-4 * scale))


def invalidate(store: FeatureStore, damage: Collection[Damage]) -> str:
    """Mark damaged maps as not stored, so that the next `plan` asks for just them.

    Chunks that cannot be read are dropped, and the statistics of the blocks that lose rows are
    taken anew from the rows they keep. A layer whose own columns are damaged is dropped whole.
    Returns the snapshot.
    """
    if not damage:
        return store.snapshot
    groups: dict[tuple[str, str], list[Damage]] = {}
    for item in damage:
        groups.setdefault((item.extractor, item.layer), []).append(item)

    def work(session: icechunk.Session) -> str:
        root = zarr.open_group(session.store)
        for (spec_id, layer), items in groups.items():
            extractor = Extractor.open(root, spec_id)
            if extractor is None or not extractor.has(layer):
                continue
            if any(i.row == EVERY_ROW for i in items):
                del extractor.group[layer]
                continue
            rows = np.unique([i.row for i in items])
            size = extractor.maps(layer).rows
            unreadable = {i.row // size for i in items if i.unreadable}
            drop_rows(extractor, session.store, layer, rows, unreadable)
        layers = sum(any(i.row == EVERY_ROW for i in items) for items in groups.values())
        maps = sum(i.row != EVERY_ROW for i in damage)
        said = [f"{maps} damaged map{'s' * (maps != 1)}"] if maps else []
        said += [f"{layers} damaged layer{'s' * (layers != 1)}"] if layers else []
        return f"repair: gave up {' and '.join(said)}"

    return store.transact(work)[0]


def drop_rows(
    extractor: Extractor,
    store: Any,
    layer: str,
    rows: np.ndarray,
    unreadable: Collection[int] = (),
) -> None:
    """Mark rows of a layer as not filled. Needs a writable session's extractor and store.

    Chunks in `unreadable`, and those in which no row is filled any more, are deleted; the
    statistics of blocks that lose rows are taken anew from the rows they keep.
    """
    maps, block = extractor.maps(layer), extractor.block(layer)
    touched = np.unique(block[rows][block[rows] >= 0]).tolist()
    block[rows] = -1
    emptied = np.setdiff1d(rows // maps.rows, np.flatnonzero(block >= 0) // maps.rows)
    for chunk in sorted({*unreadable, *emptied.tolist()}):
        submit(store.delete(maps.key(int(chunk)))).result()
    set_rows(extractor.array(f"{layer}/block"), rows, np.full(len(rows), -1, np.int32))
    set_rows(extractor.array(f"{layer}/crc32"), rows, np.zeros(len(rows), np.uint32))
    for number in touched:
        left = np.flatnonzero(block == number)
        start, value = 0, np.zeros((4, maps.shape[1]), np.float32)
        if len(left):
            start = int(left[0])
            chunks = np.unique(left // maps.rows).tolist()
            pieces = []
            for chunk, data in zip(chunks, maps.chunks(store, chunks), strict=True):
                mine = left[left // maps.rows == chunk] - chunk * maps.rows
                if data is not None:
                    part = np.ascontiguousarray(data[mine])
                    pieces.append(row_statistics(part, extractor.spec.dtype))
            value = RowStatistics.join(pieces).block()
        one = np.array([number])
        set_rows(extractor.array(f"{layer}/blocks"), one, np.array([[start, len(left)]]))
        set_rows(extractor.array(f"{layer}/statistics"), one, value[None])


def damaged_keys(
    store: FeatureStore, damage: Collection[Damage]
) -> dict[ExtractorSpec, dict[str, list[tuple[str, int]]]]:
    """Return what a repair must compute: ``{spec: {layer name: [(sha256, view)]}}``.

    Of a layer that is lost whole these are the images (and views) that are there; removed images
    are not computed again.
    """
    known = {e.spec.id: e for e in store.extractors()}
    table = store.table()
    found: dict[ExtractorSpec, dict[str, list[tuple[str, int]]]] = {}
    for item in (i for i in damage if not i.removed):
        extractor = known[item.extractor]
        keys = found.setdefault(extractor.spec, {}).setdefault(item.layer, [])
        if item.row != EVERY_ROW:
            keys.append((item.sha256, item.view))
            continue
        image = extractor.image
        rows = np.flatnonzero((image >= 0) & (table.removed_at[image] == 0))
        views = extractor.view[rows].tolist()
        keys += zip(sha_names(table.sha[image[rows]]), views, strict=True)
    return found
