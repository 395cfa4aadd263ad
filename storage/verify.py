"""Finding damage in a store and marking just that to be computed again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import icechunk
import numpy as np
import zarr

from headwater.errors import StoreError
from headwater.spec import ExtractorSpec
from storage.arrays import Maps, set_rows
from storage.checks import RowStatistics, checksums, row_statistics
from storage.engine import fetch_chunks, submit
from storage.extractors import Extractor
from storage.store import FeatureStore
from storage.table import Table, sha_names


@dataclass(frozen=True)
class Damage:
    """One image's maps of one layer that are not what was written."""

    extractor: str
    layer: str
    row: int
    sha256: str
    view: int
    path: str
    reason: str
    unreadable: bool = False

    def __str__(self) -> str:
        view = f", view {self.view}" if self.view else ""
        return f"layer {self.layer}, image {self.path} ({self.sha256[:12]}){view}: {self.reason}"


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
        Maps to compute again.
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
    store
        The store.
    snapshot
        Id or tag; the newest without it.
    progress
        Called with bytes read and bytes in all.
    """
    report = VerifyReport(store.resolve(snapshot))
    try:
        table = Table(store.root(report.snapshot)["images"])  # type: ignore[arg-type]
        report.problems += _table_problems(table)
        extractors = store.extractors(report.snapshot)
    except Exception as error:
        report.problems.append(f"the image table cannot be read: {error}")
        return report
    work: list[tuple[Extractor, str, np.ndarray]] = []
    for extractor in extractors:
        try:
            report.problems += _index_problems(extractor, len(table))
            for layer in extractor.layers:
                work.append((extractor, layer, extractor.block(layer)))
        except Exception as error:
            name = extractor.spec.id
            report.problems.append(f"the index of extractor {name} cannot be read: {error}")
    total = sum(int((b >= 0).sum()) * e.maps(name).row_bytes for e, name, b in work)
    for extractor, layer, block in work:
        bad: dict[int, tuple[str, bool]] = {}
        for row, reason, unreadable in _verify_layer(extractor, layer, block):
            if row < 0:
                report.bytes += int(reason)
                if progress:
                    progress(report.bytes, total)
            else:
                bad.setdefault(row, (reason, unreadable))
        report.rows += int((block >= 0).sum())
        for row, (reason, unreadable) in sorted(bad.items()):
            image, view = int(extractor.image[row]), int(extractor.view[row])
            known = 0 <= image < len(table)
            sha = sha_names(table.sha[image : image + 1])[0] if known else ""
            path = str(table.path[image]) if known else "(no image)"
            identity = (extractor.spec.id, layer, row, sha, view, path)
            report.damage.append(Damage(*identity, reason, unreadable))
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
    for layer in extractor.layers:
        lost = int(((extractor.block(layer) >= 0) & ~assigned).sum())
        if lost:
            yield f"extractor {name}, layer {layer}: {lost} filled rows belong to no image"


def _verify_layer(
    extractor: Extractor, layer: str, block: np.ndarray
) -> Iterator[tuple[int, str, bool]]:
    """Yield ``(row, reason, unreadable)``; ``(-1, bytes, False)`` tells of progress."""
    maps, store = extractor.maps(layer), extractor.group.store
    crc = np.asarray(extractor.array(f"{layer}/crc32")[:])
    statistics = np.asarray(extractor.array(f"{layer}/statistics")[:])
    count = np.asarray(extractor.array(f"{layer}/blocks")[:])[:, 1]
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
            yield from ((int(r), "checksum differs", False) for r in rows[wrong])
            found = row_statistics(part, extractor.spec.dtype)
            for number in np.unique(block[rows]).tolist():
                mine = block[rows] == number
                pieces = open_blocks.setdefault(number, [])
                pieces.append((rows[mine], _take(found, mine)))
                if sum(len(p[0]) for p in pieces) == count[number]:
                    members = np.concatenate([p[0] for p in pieces])
                    again = _join([p[1] for p in pieces]).block()
                    del open_blocks[number]
                    if not _same(again, statistics[number]):
                        text = f"statistics of block {number} differ"
                        yield from ((int(r), text, False) for r in members)
            yield -1, str(part.nbytes), False


def _decode(maps: Maps, raw: Any) -> tuple[np.ndarray | None, str]:
    if raw is None:
        return None, "its chunk is missing"
    if isinstance(raw, BaseException):
        lines = [s.strip() for s in str(raw).splitlines() if s.strip()]
        return None, f"its chunk cannot be read: {lines[0] if lines else type(raw).__name__}"
    try:
        return maps.decode(raw), ""
    except StoreError:
        return None, "its chunk cannot be decoded"


def _take(found: RowStatistics, mine: np.ndarray) -> RowStatistics:
    parts = (found.mean[mine], found.spread[mine], found.minimum[mine], found.maximum[mine])
    return RowStatistics(*parts, pixels=found.pixels)


def _join(parts: Sequence[RowStatistics]) -> RowStatistics:
    return RowStatistics(
        np.concatenate([p.mean for p in parts]),
        np.concatenate([p.spread for p in parts]),
        np.concatenate([p.minimum for p in parts]),
        np.concatenate([p.maximum for p in parts]),
        pixels=parts[0].pixels,
    )


def _same(again: np.ndarray, stored: np.ndarray) -> bool:
    """Whether statistics agree but for the order of float32 sums."""
    scale = np.abs(stored).max(axis=1, keepdims=True) + 1e-30
    return bool(np.all(np.abs(again - stored) <= 1e-4 * scale))


def invalidate(store: FeatureStore, damage: Collection[Damage]) -> str:
    """Mark damaged maps as not stored, so that the next `plan` asks for just them.

    Chunks that cannot be read are dropped, and the statistics of the blocks that lose rows are
    taken anew from the rows they keep. Returns the snapshot.
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
            if extractor is not None and extractor.has(layer):
                _drop(extractor, session.store, layer, items)
        return f"repair: {len(damage)} damaged maps are to be computed again"

    return store.transact(work)[0]


def _drop(extractor: Extractor, store: Any, layer: str, items: Sequence[Damage]) -> None:
    maps, block = extractor.maps(layer), extractor.block(layer)
    rows = np.unique([i.row for i in items])
    touched = np.unique(block[rows][block[rows] >= 0]).tolist()
    unreadable = np.unique([i.row // maps.rows for i in items if i.unreadable]).tolist()
    for chunk in unreadable:
        submit(store.delete(maps.key(int(chunk)))).result()
    block[rows] = -1
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
            value = _join(pieces).block()
        one = np.array([number])
        set_rows(extractor.array(f"{layer}/blocks"), one, np.array([[start, len(left)]]))
        set_rows(extractor.array(f"{layer}/statistics"), one, value[None])


def damaged_keys(
    store: FeatureStore, damage: Collection[Damage]
) -> dict[ExtractorSpec, dict[str, list[tuple[str, int]]]]:
    """Return what a repair must compute: ``{spec: {layer name: [(sha256, view)]}}``."""
    specs = {e.spec.id: e.spec for e in store.extractors()}
    found: dict[ExtractorSpec, dict[str, list[tuple[str, int]]]] = {}
    for item in damage:
        layers = found.setdefault(specs[item.extractor], {})
        layers.setdefault(item.layer, []).append((item.sha256, item.view))
    return found
