"""The table of images: one row per content, append-only, never moving.

Everything that is done with many rows is done with whole columns.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from headwater.errors import ConfigError, DataError
from headwater.text import restored, storable
from storage.store.arrays import Arrays, Later, append, create_column, runs, set_rows
from storage.store.engine import fetch_chunks, read_whole, submit
from storage.store.layout import COLUMN_ROWS, COLUMNS, IMAGES

TEXT = np.dtypes.StringDType()
#: Images of a scan that are looked at together: bounds the memory of a comparison.
TOGETHER = 8192


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
        bad = next((n for n in names if not re.fullmatch("[0-9a-fA-F]{64}", n)), "?")
        raise DataError(
            f"image identity {bad!r}", expected="64 hexadecimal digits (SHA-256 of the file)"
        ) from None
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


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

    Examples
    --------
    >>> table = store.table()
    >>> [i.path for i in table.images(table.rows(Selection(normal=False)))]
    ['test/dent/8.png', 'test/dent/9.png']
    >>> len(table.rows(Selection(split="train", known_by="2001-01-01")))
    0
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
    """Return ns since 1970 UTC; a text without a zone is UTC, as all times that are shown are.

    A bare date means its end: "known by 2026-05-01" includes that day. A text to the second means
    the whole of that second, as times are shown: given back, they mean what was shown.
    """
    if isinstance(moment, int):
        return moment
    if isinstance(moment, str):
        try:
            text = moment.strip().removesuffix(" UTC")
            bare, whole = len(text) == 10, "." not in text
            moment = dt.datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(
                f"date {moment!r}", expected="an ISO date such as 2026-05-01 or 2026-05-01T12:00Z"
            ) from None
        if bare:
            moment += dt.timedelta(days=1, microseconds=-1)
        elif whole:
            moment = moment.replace(microsecond=999_999)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
    delta = moment.astimezone(dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (delta.days * 86_400 + delta.seconds) * 10**9 + delta.microseconds * 1000


def moment_of(nanoseconds: int) -> str:
    """Return ns since 1970 UTC as the text that means the same, to the microsecond.

    Examples
    --------
    >>> moment_of(nanoseconds("2026-05-01"))
    '2026-05-01T23:59:59.999999+00:00'
    >>> nanoseconds(moment_of(nanoseconds("2026-05-01"))) == nanoseconds("2026-05-01")
    True
    """
    since = dt.timedelta(microseconds=nanoseconds // 1000)
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + since).isoformat(timespec="microseconds")


class Table(Arrays):
    """The image table, the group ``images``, at one snapshot; columns are read when asked for."""

    def __len__(self) -> int:
        return int(self.array("sha256").shape[0])

    def column(self, name: str) -> np.ndarray:
        """Return a whole column."""
        array = self.array(name)
        text = COLUMNS[name][0] == "string"
        values = np.empty(array.shape, TEXT if text else array.dtype)
        # A few chunks at a time: decoding makes a Python object of every string.
        for a in range(0, len(values), 4 * COLUMN_ROWS):
            part = slice(a, a + 4 * COLUMN_ROWS)
            values[part] = read_whole(array, part)
        return values

    def values(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return a column at ascending `rows`, reading only the chunks that hold them."""
        array = self.array(name)
        found = np.empty(len(rows), TEXT if COLUMNS[name][0] == "string" else array.dtype)
        for start, stop in runs(rows // COLUMN_ROWS):
            first = int(rows[start]) // COLUMN_ROWS * COLUMN_ROWS
            chunk = read_whole(array, slice(first, first + COLUMN_ROWS))
            found[start:stop] = chunk[rows[start:stop] - first]
        return found

    def raw(self, name: str) -> list[Any]:
        """Return a one-dimensional column's chunks as they are stored, undecoded."""
        array = self.array(name)
        keys = [f"{array.path}/c/{i}" for i in range(-(-array.shape[0] // COLUMN_ROWS))]
        return submit(fetch_chunks(array.store, keys)).result()

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
        found = np.empty(len(names), np.int64)
        for a in range(0, len(names), TOGETHER):
            found[a : a + TOGETHER] = self.index.find(sha_array(names[a : a + TOGETHER]))
        return found

    def rows(self, select: Selection | None = None) -> np.ndarray:
        """Return the row numbers of a selection, ascending."""
        return np.flatnonzero((select or Selection()).mask(self))

    def images(self, rows: np.ndarray | None = None) -> list[ImageRow]:
        """Return rows as `ImageRow`s (a Python object each: for output, not for work)."""
        rows = self.rows() if rows is None else rows
        columns = [
            sha_names(self.sha[rows]),
            *(
                list(map(restored, c[rows].tolist()))
                for c in (self.path, self.split, self.kind, self.masks)
            ),
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
            values[name] = np.array([storable(getattr(i, name)) for i in images], TEXT)
        for name in ("width", "height"):
            values[name] = np.array([getattr(i, name) for i in images], np.int32)
        self.open_all(COLUMNS)
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
