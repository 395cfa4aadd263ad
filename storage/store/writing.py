"""How a checked block enters a transaction."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import icechunk
import numpy as np
import zarr

from headwater.errors import StoreError
from headwater.spec import ExtractorSpec
from headwater.version import __version__
from storage.store.arrays import Later
from storage.store.checks import Key, Prepared
from storage.store.extractors import Extractor
from storage.store.layout import BRANCH, FEATURES, FORMAT, IMAGES, StoreOptions
from storage.store.table import ImageRow, Table, create_table


class NothingToDoError(Exception):
    """Raised inside a transaction to leave it without a commit."""


@dataclass(frozen=True)
class WriteReport:
    """What a `write` stored, and the `snapshot` that holds it.

    Parameters
    ----------
    rows, images
        New feature rows, and images that entered the table.
    maps
        Per layer, rows written (new or filled in).
    known
        Keys that were there completely.
    bytes
        Bytes of maps given to the disk.
    retries
        Times the commit was tried again because another came first.
    """

    snapshot: str
    rows: int = 0
    maps: dict[str, int] | None = None
    images: int = 0
    known: int = 0
    bytes: int = 0
    retries: int = 0


def subgroup(root: zarr.Group, name: str) -> zarr.Group:
    """Return a group below `root`."""
    group = root[name]
    assert isinstance(group, zarr.Group)
    return group


def unique_keys(keys: Sequence[Key]) -> tuple[list[Key], np.ndarray | None]:
    """Return the keys without repetitions, and which rows they are where any was dropped."""
    first: dict[Key, int] = {}
    for i, (sha, view) in enumerate(keys):
        first.setdefault((sha, int(view)), i)
    if len(first) == len(keys):
        return list(first), None
    return list(first), np.fromiter(first.values(), np.int64)


def describe(spec: ExtractorSpec, report: Mapping[str, Any]) -> str:
    """Return the message of a block's commit."""
    layers = ", ".join(f"{k} ({n})" for k, n in report["maps"].items() if n)
    text = f"extract {spec.backbone} {spec.id}: {layers}"
    return text + (f"; {report['images']} new images" if report["images"] else "")


def is_empty(repository: icechunk.Repository, name: str) -> bool:
    """Return whether a repository is still empty.

    Raises `StoreError` where it is not one that this version reads.
    """
    try:
        root = zarr.open_group(repository.readonly_session(BRANCH).store, mode="r")
    except FileNotFoundError:
        return True
    found = root.attrs.get("headwater_format", "unknown")
    if not isinstance(found, int):
        raise StoreError(
            f"{name}: not a Headwater store",
            expected="an image set, or a name that is free",
            remedy="choose another folder: this is an Icechunk repository of something else",
        )
    if found > FORMAT:
        raise StoreError(
            f"{name}: format {found}",
            expected=f"format {FORMAT} or older",
            remedy="upgrade headwater: a newer version wrote this store",
        )
    return False


def create_set(session: icechunk.Session, image_set: str) -> str:
    """Create the empty table and groups, unless another process has just done so."""
    with contextlib.suppress(FileNotFoundError):
        zarr.open_group(session.store, mode="r")
        raise NothingToDoError
    attributes = {
        "headwater_format": FORMAT,
        "image_set": image_set,
        "headwater": __version__,
    }
    root = zarr.create_group(session.store, attributes=attributes)
    create_table(root)
    root.create_group(FEATURES)
    return "create the image set"


def assign_images(
    table: Table, keys: Sequence[Key], rows: Mapping[str, ImageRow], later: Later
) -> tuple[np.ndarray, int]:
    """Return each key's row in the table; images that are new are appended when `later` runs.

    Raises `StoreError` for a key that is neither in the table nor in `rows`.
    """
    found = table.find([k[0] for k in keys])
    new = list(dict.fromkeys(keys[i][0] for i in np.flatnonzero(found < 0).tolist()))
    unknown = [s for s in new if s not in rows]
    if unknown:
        raise StoreError(
            f"{len(unknown)} keys of images that are not in the table, such as {unknown[0][:12]}",
            expected="their ImageRows in `images`",
        )
    if new:
        added = [rows[s] for s in new]
        sha = np.frombuffer(bytes.fromhex("".join(new)), np.uint8).reshape(-1, 32)
        at = dict(zip(new, table.append(added, sha, time.time_ns(), later).tolist(), strict=True))
        for i in np.flatnonzero(found < 0).tolist():
            found[i] = at[keys[i][0]]
    return found, len(new)


def put_block(
    session: icechunk.Session,
    spec: ExtractorSpec,
    keys: Sequence[Key],
    ready: Mapping[str, Prepared],
    rows: Mapping[str, ImageRow],
    options: StoreOptions,
    parallel: int,
) -> dict[str, Any]:
    """Write into a session what of a checked block is missing there; return the figures."""
    root = zarr.open_group(session.store)
    extractor = Extractor.open(root, spec.id) or Extractor.create(root, spec)
    later = Later()
    images, new_images = assign_images(Table(subgroup(root, IMAGES)), keys, rows, later)
    for layer, block in ready.items():
        if not extractor.has(layer):
            extractor.add_layer(layer, block.data.shape[1:], options)  # type: ignore[arg-type]
    extractor.load(ready)
    views = np.array([k[1] for k in keys], np.int64)
    at = extractor.find(images, views)
    fresh = np.flatnonzero(at < 0)
    if len(fresh):
        at[fresh] = extractor.append(images[fresh], views[fresh])
    count = {}
    todo = np.zeros(len(keys), bool)
    for layer, block in ready.items():
        if extractor.shape(layer) != tuple(block.data.shape[1:]):
            raise StoreError(
                f"layer {layer}: maps {tuple(block.data.shape[1:])}",
                expected=f"{extractor.shape(layer)}, which another process stored meanwhile",
            )
        pick = np.flatnonzero(extractor.block(layer)[at] < 0)
        todo[pick] = True
        count[layer] = len(pick)
        if len(pick):
            extractor.fill(session.store, layer, at[pick], block.take(pick), later, parallel)
    written = sum(n for n in later.run() if n)
    return {
        "rows": len(fresh),
        "maps": count,
        "images": new_images,
        "known": int((~todo).sum()),
        "bytes": written,
    }
