"""A set's past: its commits, and the tags that give some of them a name and keep them."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass, field
from typing import Any

import icechunk

from headwater.errors import ConfigError, SnapshotError
from storage.store.engine import guard
from storage.store.feature_store import FeatureStore
from storage.store.layout import BRANCH


@dataclass(frozen=True)
class LogEntry:
    """One commit. `written_at` is UTC; `tags` are the names that point here."""

    snapshot: str
    written_at: dt.datetime
    message: str
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


def tags(store: FeatureStore) -> dict[str, str]:
    """Return ``{tag: snapshot}``."""
    with guard(store.name):
        names = sorted(store.repository.list_tags())
        return {name: store.repository.lookup_tag(name) for name in names}


def tag(store: FeatureStore, name: str, snapshot: str | None = None) -> str:
    """Give a snapshot a name that keeps it from expiring; return the snapshot.

    A name is given once and for all; giving it again to the same snapshot does nothing.

    Raises
    ------
    ConfigError
        The name belongs to another snapshot, or did.

    Examples
    --------
    >>> tag(store, "release-1") == store.snapshot == store.resolve("release-1")
    True
    """
    target = store.resolve(snapshot)
    if not name or "/" in name:
        raise ConfigError(f"tag {name!r}", expected="a name without '/'")
    known = tags(store)
    if known.get(name) == target:
        return target
    try:
        store.repository.create_tag(name, target)
    except icechunk.IcechunkError as error:
        if "already exists" not in str(error):
            with guard(store.name):
                raise
        if tags(store).get(name) == target:
            return target
        raise ConfigError(
            f"tag {name!r} of {store.name} is taken"
            + (f" by {known[name]}" if name in known else " (it was deleted)"),
            expected="a new name: a tag never moves",
        ) from error
    return target


def untag(store: FeatureStore, name: str) -> None:
    """Delete a tag; its name cannot be given again. Raises `SnapshotError` where it is unknown."""
    known = tags(store)
    if name not in known:
        raise SnapshotError(
            f"tag {name!r} of {store.name}", expected="one of " + (", ".join(known) or "none")
        )
    with guard(store.name):
        store.repository.delete_tag(name)


def log(store: FeatureStore, limit: int | None = None) -> list[LogEntry]:
    """Return commits, newest first.

    Tagged ones are among them even where a garbage collection took them out of the branch's line.

    >>> [entry.message for entry in log(store)][-2:]
    ['create the image set', 'Repository initialized']
    """
    named: dict[str, list[str]] = {}
    for name, snapshot in tags(store).items():
        named.setdefault(snapshot, []).append(name)
    with guard(store.name):
        line = itertools.islice(store.repository.ancestry(branch=BRANCH), limit)
        found = {info.id: info for info in line}
        for name in {names[0] for snapshot, names in named.items() if snapshot not in found}:
            info = next(iter(store.repository.ancestry(tag=name)))
            found[info.id] = info
    # A commit is never older than its parent; the stable sort keeps the line's own order.
    newest = sorted(found.values(), key=lambda i: i.written_at, reverse=True)[:limit]
    return [
        LogEntry(i.id, i.written_at, i.message, tuple(named.get(i.id, ())), dict(i.metadata))
        for i in newest
    ]
