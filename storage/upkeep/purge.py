"""Giving up the features of images that were removed long ago.

A removed image keeps its row in the table and, until it is purged, its features: older snapshots
show it, and it may come back. Purging marks its maps as not filled and deletes the chunks in
which nothing else is left. That is a commit like any other: snapshots before it, and so whatever a
tag or a registered model refers to, still have the features, and their space is freed when the
last such snapshot expires. No row moves, and nothing that is kept is written anew.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
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
        _, facts = _gone(store.extractors(snapshot), store.table(snapshot), limit)
        return PurgeReport(True, **facts, snapshot=snapshot)
    facts = {}

    def work(session: icechunk.Session) -> str:
        nonlocal facts
        root = zarr.open_group(session.store)
        extractors = [Extractor(group) for _, group in sorted(subgroup(root, FEATURES).groups())]
        found, facts = _gone(extractors, Table(subgroup(root, IMAGES)), limit)
        if not found:
            raise NothingToDoError
        for extractor, layer, rows in found:
            drop_rows(extractor, session.store, layer, rows)
        return f"purge: {facts['maps']} maps of removed images"

    snapshot, _ = store.transact(work)
    return PurgeReport(False, **facts, snapshot=snapshot)


def _gone(
    extractors: Sequence[Extractor], table: Table, limit: int
) -> tuple[list[tuple[Extractor, str, np.ndarray]], dict[str, int]]:
    """Return the filled rows of each layer that images removed before `limit` lose, and figures."""
    old = (table.removed_at != 0) & (table.removed_at < limit)
    found, images = [], [np.zeros(0, np.int64)]
    freed = shared = 0
    for extractor in extractors:
        image = extractor.image
        mine = (image >= 0) & old[image] if len(table) else np.zeros(len(image), bool)
        for layer in extractor.layers:
            block, maps = extractor.block(layer), extractor.maps(layer)
            rows = np.flatnonzero(mine & (block >= 0))
            if not len(rows):
                continue
            found.append((extractor, layer, rows))
            images.append(image[rows])
            still = np.flatnonzero(~mine & (block >= 0)) // maps.rows
            freed += len(np.setdiff1d(rows // maps.rows, still)) * maps.rows * maps.row_bytes
            shared += int(np.isin(rows // maps.rows, still).sum()) * maps.row_bytes
    return found, {
        "images": len(np.unique(np.concatenate(images))),
        "maps": sum(len(rows) for _, _, rows in found),
        "bytes": freed,
        "shared_bytes": shared,
    }
