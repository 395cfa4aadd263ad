"""The table of images: one row per content, append-only, never moving.

Everything that is done with many rows is done with whole columns.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from headwater.errors import ConfigError, DataError
from storage.arrays import Later, append, create_column, open_arrays, set_rows
from storage.layout import COLUMN_ROWS, COLUMNS, IMAGES

_TEXT = np.dtypes.StringDType()


@dataclass(frozen=True)
class ImageRow:
    """What the store knows of an image.

    Parameters
    ----------
    sha256
        Hexadecimal SHA-256 of the file's bytes: the identity.
    path
        Where it was last seen.
    split
        ``train`` or ``test``.
    kind
        ``good`` or the kind of defect.
    mask
        Path of the defect mask, or nothing.
    width, height
        Pixels.
    """

    sha256: str
    path: str
    split: str = "train"
    kind: str = "good"
    mask: str = ""
    width: int = 0
    height: int = 0


def sha_array(names: Sequence[str]) -> np.ndarray:
    """Return hexadecimal names as uint8 ``[n, 32]``; raises `DataError` for anything else."""
    try:
        raw = bytes.fromhex("".join(names))
        if len(raw) != 32 * len(names):
            raise ValueError("length")
    except ValueError:
        bad = next((n for n in names if len(n) != 64 or not _is_hex(n)), "?")
        raise DataError(
            f"image identity {bad!r}", expected="64 hexadecimal digits (SHA-256 of the file)"
        ) from None
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


def _is_hex(text: str) -> bool:
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True


def sha_names(array: np.ndarray) -> list[str]:
    """Return ``[n, 32]`` uint8 as hexadecimal names."""
    text = np.ascontiguousarray(array).tobytes().hex()
    return [text[i : i + 64] for i in range(0, len(text), 64)]


class ShaIndex:
    """Finds the row of a content; vectorised over sorted 64-bit prefixes."""

    def __init__(self, sha: np.ndarray) -> None:
        self.sha = np.ascontiguousarray(sha)
        self._by_prefix = True
        key = self._key(self.sha)
        order = np.argsort(key, kind="stable")
        if len(key) > 1 and bool(np.any(np.diff(key[order]) == 0)):
            # Two contents share 64 bits: astronomically rare by chance, so only be correct.
            self._by_prefix = False
            key = self._key(self.sha)
            order = np.argsort(key, kind="stable")
        self._order, self._sorted = order, key[order]

    def _key(self, sha: np.ndarray) -> np.ndarray:
        if self._by_prefix:
            return np.ascontiguousarray(sha[:, :8]).view(np.uint64).reshape(-1)
        return np.ascontiguousarray(sha).view("S32").reshape(-1)

    def find(self, sha: np.ndarray) -> np.ndarray:
        """Return the int64 row of each content, -1 where it is unknown."""
        if not len(self.sha) or not len(sha):
            return np.full(len(sha), -1, np.int64)
        key = self._key(sha)
        place = np.minimum(np.searchsorted(self._sorted, key), len(self._sorted) - 1)
        rows = self._order[place]
        return np.where((self.sha[rows] == sha).all(1), rows, -1).astype(np.int64)


@dataclass(frozen=True)
class Selection:
    """Which images a view of the store holds. Everything given must be true of an image.

    Parameters
    ----------
    split
        ``train`` or ``test``.
    kind
        ``good`` or a kind of defect.
    normal
        True: only normal images; False: only defective ones.
    known_by
        A point in time (``datetime``, ISO text, or ns since 1970 UTC): images that had arrived by
        then and had not been removed by then. Without it, the images that are there at the
        snapshot. An image that left and came back counts from its first arrival on.
    since
        Images that arrived after this point in time.
    sha256
        Only these.
    """

    split: str | None = None
    kind: str | None = None
    normal: bool | None = None
    known_by: dt.datetime | str | int | None = None
    since: dt.datetime | str | int | None = None
    sha256: tuple[str, ...] | None = None

    def mask(self, table: Table) -> np.ndarray:
        """Return a bool per row of the table."""
        if self.known_by is None:
            keep = table.removed_at == 0
        else:
            moment = nanoseconds(self.known_by)
            removed = table.removed_at
            keep = (table.added_at <= moment) & ((removed == 0) | (removed > moment))
        if self.since is not None:
            keep &= table.added_at > nanoseconds(self.since)
        if self.split is not None:
            keep &= table.split == self.split
        if self.kind is not None:
            keep &= table.kind == self.kind
        if self.normal is not None:
            keep &= (table.kind == "good") == self.normal
        if self.sha256 is not None:
            rows = table.find(self.sha256)
            only = np.zeros(len(table), bool)
            only[rows[rows >= 0]] = True
            keep &= only
        return keep


def nanoseconds(moment: dt.datetime | str | int) -> int:
    """Return ns since 1970 UTC; a date or time without a zone is local time.

    A bare date means its end: "known by 2026-05-01" includes that day.
    """
    if isinstance(moment, int):
        return moment
    if isinstance(moment, str):
        try:
            bare = len(moment.strip()) == 10
            moment = dt.datetime.fromisoformat(moment.strip())
        except ValueError:
            raise ConfigError(
                f"date {moment!r}", expected="an ISO date such as 2026-05-01 or 2026-05-01T12:00Z"
            ) from None
        if bare:
            moment += dt.timedelta(days=1, microseconds=-1)
    delta = moment.astimezone(dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (delta.days * 86_400 + delta.seconds) * 10**9 + delta.microseconds * 1000


class Table:
    """The image table at one snapshot. Columns are read when first asked for.

    Parameters
    ----------
    group
        The opened ``images`` group.
    """

    def __init__(self, group: zarr.Group) -> None:
        self._group = group
        self._arrays: dict[str, Any] = {}

    def __len__(self) -> int:
        return int(self.array("sha256").shape[0])

    def array(self, name: str) -> Any:
        """Return the Zarr array behind a column."""
        if name not in self._arrays:
            self._arrays[name] = self._group[name]
        return self._arrays[name]

    def load(self, names: Sequence[str]) -> None:
        """Open the arrays behind several columns at once."""
        new = [n for n in names if n not in self._arrays]
        self._arrays.update(open_arrays(self._group, new))

    def column(self, name: str) -> np.ndarray:
        """Return a whole column."""
        values = np.asarray(self.array(name)[:])
        return values.astype(_TEXT) if COLUMNS[name][0] == "string" else values

    sha = functools.cached_property(lambda self: self.column("sha256"))
    path = functools.cached_property(lambda self: self.column("path"))
    split = functools.cached_property(lambda self: self.column("split"))
    kind = functools.cached_property(lambda self: self.column("kind"))
    masks = functools.cached_property(lambda self: self.column("mask"))
    width = functools.cached_property(lambda self: self.column("width"))
    height = functools.cached_property(lambda self: self.column("height"))
    added_at = functools.cached_property(lambda self: self.column("added_at"))
    removed_at = functools.cached_property(lambda self: self.column("removed_at"))
    index = functools.cached_property(lambda self: ShaIndex(self.sha))

    def find(self, names: Sequence[str]) -> np.ndarray:
        """Return the row of each SHA-256, -1 where unknown."""
        return self.index.find(sha_array(names))

    def rows(self, select: Selection | None = None) -> np.ndarray:
        """Return the row numbers of a selection, ascending."""
        return np.flatnonzero((select or Selection()).mask(self))

    def images(self, rows: np.ndarray | None = None) -> list[ImageRow]:
        """Return rows as `ImageRow`s (a Python object each: for output, not for work)."""
        rows = self.rows() if rows is None else rows
        columns = [
            sha_names(self.sha[rows]),
            *(c[rows].tolist() for c in (self.path, self.split, self.kind, self.masks)),
            *(c[rows].tolist() for c in (self.width, self.height)),
        ]
        return [ImageRow(*values) for values in zip(*columns, strict=True)]

    def append(
        self, images: Sequence[ImageRow], sha: np.ndarray, now: int, later: Later
    ) -> np.ndarray:
        """Append images (new contents only) when `later` runs; return their row numbers."""
        start = len(self)
        values: dict[str, Any] = {
            "sha256": sha,
            "added_at": np.full(len(images), now, np.int64),
            "removed_at": np.zeros(len(images), np.int64),
        }
        for name in ("path", "split", "kind", "mask"):
            values[name] = np.array([getattr(i, name) for i in images], _TEXT)
        for name in ("width", "height"):
            values[name] = np.array([getattr(i, name) for i in images], np.int32)
        self.load(tuple(COLUMNS))
        for name in COLUMNS:
            later.add(append, self.array(name), values[name])
        return np.arange(start, start + len(images), dtype=np.int64)

    def update(self, rows: np.ndarray, **columns: Any) -> None:
        """Change columns at `rows`. Needs a writable session."""
        for name, values in columns.items():
            set_rows(self.array(name), rows, values)


def create_table(root: zarr.Group) -> None:
    """Create the empty image table."""
    group = root.create_group(IMAGES, attributes={"description": "one row per image content"})
    for name, (dtype, shape, dimensions) in COLUMNS.items():
        create_column(group, name, dtype, shape, dimensions, COLUMN_ROWS)


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


@dataclass
class Changes:
    """A scan compared with a table: what to do and what to say."""

    report: dict[str, Any] = field(default_factory=dict)
    remove: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    restore: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    values: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether the table must change."""
        return bool(len(self.remove) or len(self.restore) or len(self.rows))


def compare(table: Table, images: Iterable[ImageRow], *, complete: bool) -> Changes:
    """Compare scanned images with the table, by columns.

    Parameters
    ----------
    table
        The table at the newest snapshot.
    images
        What was scanned; of several with one content the first counts.
    complete
        Whether `images` is all there is, so that what it lacks was removed.
    """
    scan = list(images)
    sha = sha_array([i.sha256 for i in scan])
    if len(scan):
        _, first = np.unique(sha.view("S32").reshape(-1), return_index=True)
        if len(first) < len(scan):
            keep = np.sort(first)
            scan, sha = [scan[i] for i in keep], sha[keep]
    rows = table.index.find(sha)
    known = rows >= 0
    at = rows[known]
    new = {
        "path": np.array([i.path for i in scan], _TEXT),
        "split": np.array([i.split for i in scan], _TEXT),
        "kind": np.array([i.kind for i in scan], _TEXT),
        "mask": np.array([i.mask for i in scan], _TEXT),
    }
    old_path, now = table.path[at], {k: v[known] for k, v in new.items()}
    gone = table.removed_at[at] != 0
    moved = now["path"] != old_path
    labelled = (
        (now["split"] != table.split[at])
        | (now["kind"] != table.kind[at])
        | (now["mask"] != table.masks[at])
    )
    change = moved | labelled
    result = Changes(restore=at[gone], rows=at[change])
    result.values = {k: v[change] for k, v in now.items()}
    removed = np.zeros(0, np.int64)
    if complete:
        seen = np.zeros(len(table), bool)
        seen[at] = True
        removed = np.flatnonzero((table.removed_at == 0) & ~seen)
    added = new["path"][~known]
    fresh = np.concatenate([added, now["path"][gone]])
    if not complete and len(fresh) and len(table):
        # A path that has other content now has lost its old one, whatever else was not looked at.
        taken = set(fresh.tolist())
        here = np.fromiter((p in taken for p in table.path.tolist()), bool, len(table))
        here[at] = False
        removed = np.flatnonzero(here & (table.removed_at == 0))
    result.remove = removed
    gone_paths = table.path[removed]
    # One path with another content is a replacement, neither an addition nor a removal.
    replaced = set(gone_paths.tolist()) & set(fresh.tolist()) if len(removed) else set()
    result.report = {
        "added": tuple(p for p in added.tolist() if p not in replaced),
        "returned": tuple(p for p in now["path"][gone].tolist() if p not in replaced),
        "removed": tuple(p for p in gone_paths.tolist() if p not in replaced),
        "replaced": tuple(sorted(replaced)),
        "renamed": tuple(
            zip(old_path[moved & ~gone].tolist(), now["path"][moved & ~gone].tolist(), strict=True)
        ),
        "relabelled": tuple(now["path"][labelled & ~gone].tolist()),
        "unchanged": int((~(change | gone)).sum()),
    }
    return result
