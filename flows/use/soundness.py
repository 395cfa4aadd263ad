"""What is broken in a home, each with what can be done about it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.runtime.resolve import FOLDERS
from flows.use.inventory import folder_size, known_sets, stores_of
from headwater.errors import HeadwaterError
from headwater.samples import IMAGE, PAIR
from storage.registry.registry import Registry
from storage.registry.removal import remains
from storage.store.layout import side_name

if TYPE_CHECKING:
    from flows.runtime.home import Home
    from storage.store.feature_store import FeatureStore


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Parameters
    ----------
    what
        ``database``, ``store``, ``model``, ``snapshot``, ``images`` or ``leftover``.
    name
        Whose.
    said
        What is wrong.
    remedy
        What can be done.
    broken
        Whether something does not work for it; leftovers only take space.
    """

    what: str
    name: str
    said: str
    remedy: str
    broken: bool = True


def check(home: Home) -> list[Finding]:
    """Look at all that a home refers to; nothing is changed.

    The database is checked by SQLite, every registered model's files against their hashes, every
    store by opening it, the cards' folders by looking, and snapshots of models by asking for them.
    Features are not read: that is what ``headwater store verify`` does.
    """
    found = list(_database(home))
    readable = not found
    stores: dict[str, FeatureStore] = {}
    found += _stores(home, stores)
    found += cards(home, known_sets(home))
    if readable:
        found += _models(home, stores)
    return [*found, *_leftovers(home)]


def _database(home: Home) -> Iterator[Finding]:
    registry = Registry(home.root, home.tracking_url)
    place = str(registry.database) if registry.local else registry.place
    remedy = "restore it from a copy (mlflow.db.*.bak beside it are some)"
    try:
        if registry.local and registry.database.exists():
            uri = f"{registry.database.as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=20)) as db:
                (said,) = db.execute("PRAGMA quick_check").fetchone()
            if said != "ok":
                yield Finding("database", place, said, remedy)
                return
        registry.leaderboard("")
    except sqlite3.Error as error:
        yield Finding("database", place, str(error), remedy)
    except HeadwaterError as error:
        yield Finding("database", place, error.culprit, error.remedy or remedy)


def _stores(home: Home, opened: dict[str, FeatureStore]) -> Iterator[Finding]:
    from storage.store.feature_store import FeatureStore  # late: torch takes seconds

    for name in known_sets(home):
        for own in stores_of(home, name):
            try:
                store = FeatureStore.open(home.store, own, create=False)
                store.table()
                store.extractors()
                opened[own] = store
            except HeadwaterError as error:
                remedy = error.remedy or f"restore its folder, or headwater delete {name}"
                yield Finding("store", own, error.culprit, remedy)


def cards(home: Home, sets: Iterable[str]) -> Iterator[Finding]:
    """Yield what is wrong with what sets remember: a damaged card, folders that are not there."""
    for name in sets:
        try:
            card = home.card(name)
        except ValueError as error:
            yield Finding(
                "images", name, f"its card is no JSON: {error}", "delete sets/NAME.json; run again"
            )
            continue
        for key in FOLDERS:
            # A list of images is a file.
            if card.get(key) and not Path(card[key]).exists():
                option = {"list_root": "root"}.get(key, key.replace("_", "-"))
                yield Finding(
                    "images",
                    name,
                    f"{key}: {card[key]} is not there",
                    f"headwater extract {name} --{option} DIR, with where they are now",
                )


def _models(home: Home, stores: dict[str, FeatureStore]) -> Iterator[Finding]:
    from storage.serving.files import read_files  # late: torch takes seconds

    registry = Registry(home.root, home.tracking_url)
    for image_set in registry.experiments():
        for row in remains(registry, image_set):
            yield Finding(
                "leftover",
                f"{row['model']} v{row['version']}",
                "deleted in MLflow: its files are left",
                f"headwater delete {row['model']}/{row['version']}",
                broken=False,
            )
    for row in registry.leaderboard(""):
        name = f"{row['model']} v{row['version']}"
        target = f"{row['model']}/{row['version']}"
        gone = f"restore it from a copy of the home, or headwater delete {target}"
        try:
            read_files(registry.download(row["uri"]))
        except HeadwaterError as error:
            yield Finding("model", name, error.culprit, gone)
        image_set = row["model"].removesuffix(f".{row['head']}")
        kind = PAIR if row["history_snapshot"] else IMAGE
        sides = zip(kind.images, ("snapshot", "history_snapshot"), strict=False)
        for side, key in sides:
            own = side_name(image_set, side) if kind.paired else image_set
            if not row[key] or own not in stores:
                continue
            try:
                stores[own].resolve(row[key])
            except HeadwaterError:
                yield Finding(
                    "snapshot",
                    name,
                    f"{own} has no snapshot {row[key]}: the model answers, its training cannot be "
                    "repeated",
                    f"restore the store from a copy, or train again: headwater train {image_set}",
                )


def _leftovers(home: Home) -> Iterator[Finding]:
    """Yield what killed processes left."""
    for path in sorted((home.root / "tmp").glob("*")):
        yield _left(path, "of a process that was killed, if none is at work")
    for path in sorted(home.root.glob(".*.tmp")) + sorted(home.root.glob("sets/.*.tmp")):
        yield _left(path, "half written")
    for path in sorted(home.checkpoints.glob("*")):
        if re.fullmatch(r"[0-9a-f]{16,}", path.name):
            yield _left(path, "checkpoint of a training that did not end; the same command goes on")


def _left(path: Path, why: str) -> Finding:
    size = folder_size(path) if path.is_dir() else path.lstat().st_size
    return Finding("leftover", str(path), f"{size:,} bytes, {why}", "delete it", broken=False)
