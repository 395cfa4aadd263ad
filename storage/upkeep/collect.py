"""Garbage collection: old snapshots expire, and what only they held is freed."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import icechunk

from headwater.errors import ConfigError
from storage.store.engine import commit_lock, guard, is_remote
from storage.store.feature_store import FeatureStore
from storage.store.layout import BRANCH
from storage.upkeep.history import tags

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class GcReport:
    """What a garbage collection removed or, as a `dry_run` that changes nothing, would remove.

    Parameters
    ----------
    expired
        Snapshots that are (would be) gone.
    kept
        Snapshots that stay though they are old enough: newest, tagged, protected, or in use.
    bytes, chunks
        Freed; in a dry run on S3 only what is unreachable already.
    """

    dry_run: bool
    expired: list[str]
    kept: list[str]
    bytes: int
    chunks: int


def gc(
    store: FeatureStore,
    *,
    older_than: dt.datetime | dt.timedelta = 30 * _DAY,
    grace: dt.timedelta = _DAY,
    protect: Collection[str] = (),
    in_use: Collection[str] = (),
    dry_run: bool = True,
) -> GcReport:
    """Expire old snapshots and free what only they hold.

    Parameters
    ----------
    older_than
        Snapshots older than this (or written before it) expire, but never the newest, tagged
        ones and those in `protect`.
    grace
        Objects younger than this stay even if unreachable: a writer may be about to commit them.
        Writers on a local folder are kept out meanwhile, workers with tickets are not; on S3 nobody
        can be, so it must be an hour or more there.
    protect
        Snapshots that registered models refer to. They are tagged ``keep-<id>`` first.
    in_use
        Snapshots that trainings under way read: nothing from the oldest of them on expires.
    dry_run
        Only say what would happen.

    Raises
    ------
    ConfigError
        `grace` is too short for S3.

    Examples
    --------
    >>> report = gc(store, older_than=dt.timedelta(days=30))
    >>> report.dry_run, report.expired
    (True, [])
    """
    check_grace(store, grace)
    now = dt.datetime.now(dt.UTC)
    limit = (now - older_than if isinstance(older_than, dt.timedelta) else older_than).astimezone(
        dt.UTC
    )
    with guard(store.name), commit_lock(store.location, store.image_set):
        repository = store.repository
        history = {i.id: i for i in repository.ancestry(branch=BRANCH)}
        root = list(history)[-1]
        named = tags(store)
        for name in named:
            history |= {i.id: i for i in repository.ancestry(tag=name)}
        held = {store.snapshot, root, *named.values(), *(p for p in protect if p in history)}
        old = [i for i, info in history.items() if info.written_at < limit]
        limit = min([limit, *(history[i].written_at for i in in_use if i in history)])
        held |= {i for i, info in history.items() if info.written_at >= limit}
        expired = [i for i in old if i not in held]
        kept = [i for i in old if i in held and i != root]
        if dry_run and not is_remote(store.location):
            return GcReport(True, expired, kept, *_rehearse(store, limit, now - grace, protect))
        if dry_run:
            summary = repository.garbage_collect(now - grace, dry_run=True)
            return GcReport(True, expired, kept, summary.bytes_deleted, summary.chunks_deleted)
        freed = _collect(repository, limit, now - grace, protect)
        left = {i.id for i in repository.ancestry(branch=BRANCH)} | set(tags(store).values())
        return GcReport(False, [i for i in expired if i not in left], kept, *freed)


def check_grace(store: FeatureStore, grace: dt.timedelta) -> None:
    """Raise `ConfigError` for a grace that is too short where writers cannot be kept out."""
    if is_remote(store.location) and grace < dt.timedelta(hours=1):
        raise ConfigError(f"grace of {grace}", expected="an hour or more on S3")


def _collect(
    repository: icechunk.Repository,
    limit: dt.datetime,
    objects: dt.datetime,
    protect: Collection[str],
) -> tuple[int, int]:
    named = {repository.lookup_tag(t) for t in repository.list_tags()}
    known = {i.id for i in repository.ancestry(branch=BRANCH)}
    for snapshot in protect:
        if snapshot not in named and snapshot in known:
            repository.create_tag(f"keep-{snapshot}", snapshot)
    # What is garbage already goes first: on a full disk expiring has no room to write.
    first = repository.garbage_collect(objects)
    repository.expire_snapshots(limit)
    second = repository.garbage_collect(objects)
    return (
        first.bytes_deleted + second.bytes_deleted,
        first.chunks_deleted + second.chunks_deleted,
    )


def _rehearse(
    store: FeatureStore, limit: dt.datetime, objects: dt.datetime, protect: Collection[str]
) -> tuple[int, int]:
    """Collect garbage in a copy made of hard links: the same figures, nothing touched."""
    source = Path(store.location) / store.image_set
    with tempfile.TemporaryDirectory(prefix=".gc-", dir=store.location) as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(source, copy, copy_function=os.link)
        storage = icechunk.local_filesystem_storage(str(copy))
        return _collect(icechunk.Repository.open(storage), limit, objects, protect)
