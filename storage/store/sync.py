"""A scan compared with the table of images: what came, went, moved or was relabelled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.store.table import TEXT, TOGETHER, ImageRow, Table


@dataclass(frozen=True)
class SyncReport:
    """What a scan changed against the table. Names are paths.

    Parameters
    ----------
    added
        New contents, whose features are yet to come; they enter the table with them.
    returned
        Contents that had been removed and are back; their features are still there.
    removed, replaced, relabelled
        Gone; another content under the same path; another split, kind or mask.
    renamed
        ``(old path, new path)`` of the same content.
    unchanged
        How many needed nothing.
    snapshot
        The snapshot after the changes.
    """

    added: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    replaced: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    unchanged: int = 0
    snapshot: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Return the numbers, for a short table."""
        names = ("added", "returned", "removed", "renamed", "replaced", "relabelled")
        return {**{n: len(getattr(self, n)) for n in names}, "unchanged": self.unchanged}


@dataclass(frozen=True)
class Changes:
    """A scan compared with a table: what to do and what to say."""

    report: dict[str, Any]
    remove: np.ndarray
    restore: np.ndarray
    rows: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def any(self) -> bool:
        """Whether the table must change."""
        return bool(len(self.remove) or len(self.restore) or len(self.rows))

    def enter(self, table: Table) -> str:
        """Change a table that may be written; return what was done, for the commit."""
        table.update(self.rows, **self.values)
        table.update(self.restore, removed_at=np.zeros(len(self.restore), np.int64))
        table.update(self.remove, removed_at=np.full(len(self.remove), time.time_ns(), np.int64))
        counts = SyncReport(**self.report).counts
        said = [f"{v} {k}" for k, v in counts.items() if v and k not in ("unchanged", "added")]
        return "sync: " + ", ".join(said)


def compare(table: Table, scan: list[ImageRow]) -> Changes:
    """Compare scanned images with the table, by columns.

    Parameters
    ----------
    table
        The table at the newest snapshot.
    scan
        All images there are; of several with one content the first counts.
    """
    rows, taken = _rows_of(table, scan)
    if not taken.all():
        scan, rows = [scan[i] for i in np.flatnonzero(taken).tolist()], rows[taken]
    known = rows >= 0
    gone = known.copy()
    gone[known] = table.removed_at[rows[known]] != 0
    moved, old_path = _differs(table, scan, rows, "path")
    labelled = np.zeros(len(scan), bool)
    for name in ("split", "kind", "mask"):
        labelled |= _differs(table, scan, rows, name)[0]
    change = np.flatnonzero(moved | labelled)
    changed = [scan[i] for i in change.tolist()]
    values = {name: _texts(changed, name) for name in ("path", "split", "kind", "mask")}
    seen = np.zeros(len(table), bool)
    seen[rows[known]] = True
    remove = np.flatnonzero((table.removed_at == 0) & ~seen)
    gone_paths = table.values("path", remove).tolist()
    added, returned = _paths(scan, ~known), _paths(scan, gone)
    # One path with another content is a replacement, neither an addition nor a removal.
    replaced = set(gone_paths) & {*added, *returned}
    renamed = np.flatnonzero(moved & ~gone)
    before = [old_path[i] for i in renamed.tolist()]
    report = {
        "added": tuple(p for p in added if p not in replaced),
        "returned": tuple(p for p in returned if p not in replaced),
        "removed": tuple(p for p in gone_paths if p not in replaced),
        "replaced": tuple(sorted(replaced)),
        "renamed": tuple(zip(before, (scan[i].path for i in renamed.tolist()), strict=True)),
        "relabelled": tuple(_paths(scan, labelled & ~gone)),
        "unchanged": int((known & ~(moved | labelled | gone)).sum()),
    }
    return Changes(report, remove, rows[gone], rows[change], values)


def _texts(images: Sequence[ImageRow], name: str) -> np.ndarray:
    return np.array([getattr(i, name) for i in images], TEXT)


def _paths(scan: Sequence[ImageRow], which: np.ndarray) -> list[str]:
    return [scan[i].path for i in np.flatnonzero(which).tolist()]


def _rows_of(table: Table, scan: Sequence[ImageRow]) -> tuple[np.ndarray, np.ndarray]:
    """Return the table's row of each image, -1 for a new one, and which are the first of theirs."""
    rows = table.find([i.sha256 for i in scan])
    first = np.zeros(len(scan), bool)
    known = np.flatnonzero(rows >= 0)
    first[known[np.unique(rows[known], return_index=True)[1]]] = True
    new: set[str] = set()
    for i in np.flatnonzero(rows < 0).tolist():
        name = scan[i].sha256.lower()
        first[i] = name not in new
        new.add(name)
    return rows, first


def _differs(
    table: Table, scan: Sequence[ImageRow], rows: np.ndarray, name: str
) -> tuple[np.ndarray, dict[int, str]]:
    """Return which known images have another text in a column, and what they had."""
    column, differs = table.column(name), np.zeros(len(scan), bool)
    old: dict[int, str] = {}
    for a in range(0, len(scan), TOGETHER):
        at = rows[a : a + TOGETHER]
        known = np.flatnonzero(at >= 0)
        was = column[at[known]]
        other = np.flatnonzero(was != _texts(scan[a : a + TOGETHER], name)[known])
        differs[a + known[other]] = True
        old.update(zip((a + known[other]).tolist(), was[other].tolist(), strict=True))
    return differs, old
