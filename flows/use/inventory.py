"""What is in a home and how large it is."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.errors import HeadwaterError
from headwater.spec import SIDES
from storage.registry.place import local_path
from storage.registry.registry import Registry
from storage.store.engine import is_remote, list_sets
from storage.store.layout import side_name, side_of

if TYPE_CHECKING:
    from flows.runtime.home import Home

#: What the rest of a home's folder is for, by the first name in it.
_PARTS = {
    "mlartifacts": "artifacts of runs",
    "checkpoints": "checkpoints",
    "pictures": "pictures",
    "prefect": "Prefect's own",
    "sets": "cards of sets",
    "groups": "reviews, groups and locked tests",
    "reviews": "reviews, groups and locked tests",
    "locked": "reviews, groups and locked tests",
    "retrained": "records of retrainings and hooks",
    "hooks": "records of retrainings and hooks",
    "pairs": "lists of pairs",
    "mlflow.db": "MLflow's database",
    "tmp": "caches",
    "cache": "caches",
    "files.sqlite": "caches",
}


@dataclass(frozen=True)
class Part:
    """One thing in a home.

    Parameters
    ----------
    what
        ``set``, ``model``, or what a folder is for.
    name
        Of the set or model; empty else.
    count
        Images of a set, versions of a model, files of a folder; None where it cannot be told.
    bytes
        On this disk; None where it is elsewhere.
    note
        More to know: aliases, where it is, why it cannot be read.
    """

    what: str
    name: str
    count: int | None
    bytes: int | None
    note: str = ""


def inventory(home: Home) -> list[Part]:
    """Return what is in a home: its sets and models, then the rest of its folder by purpose."""
    sets = [_set(home, name) for name in known_sets(home)]
    registry = Registry(home.root, home.tracking_url)
    models, mine = _models(registry)
    sizes: Counter[str] = Counter()
    files: Counter[str] = Counter()
    store = Path(home.store)
    for path, size in _files(home.root):
        if path.is_relative_to(store) or any(path.is_relative_to(m) for m in mine):
            continue
        first = path.relative_to(home.root).parts[0]
        name = next((n for n in _PARTS if first == n or first.startswith(f"{n}-")), first)
        name = "mlflow.db" if first.startswith("mlflow.db") else name
        name = "files.sqlite" if first.startswith("files.sqlite") else name
        what = _PARTS.get(name, "other files")
        sizes[what] += size
        files[what] += 1
    order = list(dict.fromkeys([*_PARTS.values(), "other files"]))
    rest = [Part(what, "", files[what], sizes[what]) for what in order if files[what]]
    return [*sets, *models, *rest]


def known_sets(home: Home) -> list[str]:
    """Return the names of the sets that have a store or a card; of pairs without their sides."""
    cards = {path.stem for path in (home.root / "sets").glob("*.json")}
    return sorted({side_of(name)[0] for name in {*list_sets(home.store), *cards}})


def stores_of(home: Home, image_set: str) -> list[str]:
    """Return the names of a set's stores: its own, or those of the two sides of its pairs."""
    there = set(list_sets(home.store))
    names = (image_set, *(side_name(image_set, side) for side in SIDES))
    return [name for name in names if name in there]


def folder_size(folder: Path) -> int:
    """Return the bytes of the files below a folder; 0 where there is none."""
    return sum(size for _, size in _files(folder))


def _files(folder: Path) -> list[tuple[Path, int]]:
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            try:
                found.append((path, path.lstat().st_size))
            except OSError:  # gone meanwhile
                continue
    return found


def _set(home: Home, name: str) -> Part:
    images: int | None = 0
    size: int | None = 0
    notes = []
    from storage.store.feature_store import FeatureStore  # late: torch takes seconds

    for own in stores_of(home, name):
        try:
            table = FeatureStore.open(home.store, own, create=False).table()
            images = (images or 0) + int(np.count_nonzero(table.removed_at == 0))
        except HeadwaterError as error:
            images = None
            notes.append(f"cannot be read: {error.culprit}")
        if is_remote(home.store):
            size = None
        else:
            size = (size or 0) + folder_size(Path(home.store) / own)
    if home.store_url:
        notes.append(f"in {home.store}")
    if home.card(name).get("pairs"):
        notes.append("pairs")
    return Part("set", name, images, size, ", ".join(notes))


def model_place(registry: Registry, row: dict[str, Any]) -> Path | None:
    """Return the folder of a registered model's files; None where they are elsewhere."""
    address = registry.client.get_model_version_download_uri(row["model"], row["version"])
    return local_path(address)


def _models(registry: Registry) -> tuple[list[Part], list[Path]]:
    """Return the registered models, and the folders of their files."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in registry.leaderboard(""):
        found.setdefault(row["model"], []).append(row)
    parts, places = [], []
    for name, rows in sorted(found.items()):
        size: int | None = 0
        for row in rows:
            place = model_place(registry, row)
            if place is None:
                size = None
                continue
            places.append(place)
            size = None if size is None else size + folder_size(place)
        aliases = [f"{a} v{row['version']}" for row in rows for a in row["aliases"]]
        parts.append(Part("model", name, len(rows), size, ", ".join(sorted(aliases))))
    return parts, places
