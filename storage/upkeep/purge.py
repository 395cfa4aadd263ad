"""Giving up the features of images that were removed long ago.

A removed image keeps its row in the table and, until it is purged, its features: older snapshots
show it, and it may come back. Purging marks its maps as not filled and deletes the chunks in
which nothing else is left. That is a commit like any other: snapshots before it, and so whatever a
tag or a registered model refers to, still have the features, and their space is freed when the
last such snapshot expires. No row moves, and nothing that is kept is written anew.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import icechunk
import numpy as np
import zarr

from storage.store.extractors import Extractor
from storage.store.feature_store import FeatureStore
from storage.store.layout import FEATURES, IMAGES
from storage.store.table import Table, nanoseconds
from storage.store.writing import NothingToDoError, subgroup
from storage.upkeep.verify import drop_rows


@dataclass(frozen=True)
class PurgeReport:
    """What a purge gave up or, as a `dry_run` that changes nothing, would give up.

    Parameters
    ----------
    images, maps
        Removed images that lose features, and their maps of all layers and views.
    bytes
        Bytes of chunks that go with them, before compression.
    shared_bytes
        Bytes of maps that are given up but stay on the disk, in chunks shared with other images.
    snapshot
        The newest snapshot afterwards.
    """

    dry_run: bool
    images: int
    maps: int
    bytes: int
    shared_bytes: int
    snapshot: str


def purge(
    store: FeatureStore, *, older_than: dt.datetime | dt.timedelta, dry_run: bool = True
) -> PurgeReport:
    """Give up the features of images that were removed before a point in time.

    Parameters
    ----------
    older_than
        Images removed before it, or longer ago than it, lose their features.
    dry_run
        Only say what would happen.

    Examples
    --------
    >>> purge(store, older_than=dt.timedelta(days=30)).images
    0
    """
    now = dt.datetime.now(dt.UTC)
    limit = nanoseconds(now - older_than if isinstance(older_than, dt.timedelta) else older_than)
    if dry_run:
        snapshot = store.snapshot
        found = [(e, store.table(snapshot)) for e in store.extractors(snapshot)]
        return _summary(True, [_gone(e, t, limit) for e, t in found], snapshot)
    facts: list[_Gone] = []

    def work(session: icechunk.Session) -> str:
        facts.clear()
        root = zarr.open_group(session.store)
        table = Table(subgroup(root, IMAGES))
        for _, group in sorted(subgroup(root, FEATURES).groups()):
            extractor = Extractor(group)
            gone = _gone(extractor, table, limit)
            facts.append(gone)
            for layer, rows in gone.layers.items():
                drop_rows(extractor, session.store, layer, rows)
        maps = sum(len(r) for g in facts for r in g.layers.values())
        if not maps:
            raise NothingToDoError
        return f"purge: {maps} maps of removed images"

    snapshot, _ = store.transact(work)
    return _summary(False, facts, snapshot)


@dataclass(frozen=True)
class _Gone:
    """Of one extractor: images that lose features, their filled rows by layer, and bytes."""

    images: np.ndarray
    layers: dict[str, np.ndarray]
    bytes: int
    shared: int


def _gone(extractor: Extractor, table: Table, limit: int) -> _Gone:
    old = (table.removed_at != 0) & (table.removed_at < limit)
    image = extractor.image
    mine = (image >= 0) & old[image] if len(table) else np.zeros(len(image), bool)
    layers: dict[str, np.ndarray] = {}
    freed = shared = 0
    for layer in extractor.layers:
        block, maps = extractor.block(layer), extractor.maps(layer)
        rows = np.flatnonzero(mine & (block >= 0))
        if not len(rows):
            continue
        layers[layer] = rows
        still = np.flatnonzero(~mine & (block >= 0)) // maps.rows
        freed += len(np.setdiff1d(rows // maps.rows, still)) * maps.rows * maps.row_bytes
        shared += int(np.isin(rows // maps.rows, still).sum()) * maps.row_bytes
    rows = np.unique(np.concatenate([np.zeros(0, np.int64), *layers.values()]))
    return _Gone(np.unique(image[rows]), layers, freed, shared)


def _summary(dry_run: bool, found: list[_Gone], snapshot: str) -> PurgeReport:
    images = np.unique(np.concatenate([np.zeros(0, np.int64), *(g.images for g in found)]))
    return PurgeReport(
        dry_run=dry_run,
        images=len(images),
        maps=sum(len(r) for g in found for r in g.layers.values()),
        bytes=sum(g.bytes for g in found),
        shared_bytes=sum(g.shared for g in found),
        snapshot=snapshot,
    )
