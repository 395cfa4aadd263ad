"""Giving up what a store holds: of one extractor, or all of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import icechunk
import zarr

from headwater.errors import ConfigError, DataError
from storage.store.engine import commit_lock, is_remote
from storage.store.feature_store import FeatureStore
from storage.store.layout import FEATURES
from storage.store.writing import subgroup


def drop_extractor(store: FeatureStore, extractor: str) -> str:
    """Remove an extractor's features from the newest snapshot; return the new snapshot.

    Snapshots of before still have them; the space is free once those have expired (`gc`).

    Raises
    ------
    DataError
        Where the store has no such extractor.

    Examples
    --------
    >>> (extractor,) = store.extractors()
    >>> _ = drop_extractor(store, extractor.spec.id)
    >>> store.extractors()
    []
    """

    def work(session: icechunk.Session) -> str:
        features = subgroup(zarr.open_group(session.store), FEATURES)
        if extractor not in features:
            known = ", ".join(sorted(name for name, _ in features.groups())) or "none"
            raise DataError(
                f"{store.name} has no extractor {extractor!r}", expected=f"one of {known}"
            )
        del features[extractor]
        return f"drop extractor {extractor}"

    snapshot, _ = store.transact(work)
    return snapshot


def drop_set(location: str, image_set: str) -> None:
    """Delete the whole store of an image set, history and tags included.

    Raises
    ------
    ConfigError
        On S3, where a bucket's own tools do this.
    """
    if is_remote(location):
        raise ConfigError(
            f"the store {location}/{image_set} is on S3",
            expected="a store on a disk",
            remedy="delete the prefix with the bucket's own tools",
        )
    place = Path(location) / image_set
    with commit_lock(location, image_set):
        # Without its references it is no store any more: a killed deletion leaves nothing half.
        shutil.rmtree(place / "refs", ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
