"""How a checked block enters a transaction."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import icechunk
import numpy as np
import zarr

from headwater.errors import StoreError
from headwater.spec import ExtractorSpec
from storage.checks import Key, Prepared
from storage.extractors import Extractor
from storage.layout import IMAGES, StoreOptions
from storage.table import ImageRow, Table


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


def assign_images(
    table: Table, keys: Sequence[Key], rows: Mapping[str, ImageRow]
) -> tuple[np.ndarray, int]:
    """Return each key's row in the table, appending images that are new.

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
        at = dict(zip(new, table.append(added, sha, time.time_ns()).tolist(), strict=True))
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
) -> dict[str, Any]:
    """Write into a session what of a checked block is missing there; return the figures."""
    root = zarr.open_group(session.store)
    extractor = Extractor.open(root, spec.id) or Extractor.create(root, spec)
    images, new_images = assign_images(Table(subgroup(root, IMAGES)), keys, rows)
    views = np.array([k[1] for k in keys], np.int64)
    at = extractor.find(images, views)
    fresh = np.flatnonzero(at < 0)
    for layer, part in ready.items():
        if not extractor.has(layer):
            extractor.add_layer(layer, part.data.shape[1:], options)  # type: ignore[arg-type]
    if len(fresh):
        at[fresh] = extractor.append(images[fresh], views[fresh])
    written, count = 0, {}
    todo = np.zeros(len(keys), bool)
    for layer, part in ready.items():
        if extractor.shape(layer) != tuple(part.data.shape[1:]):
            raise StoreError(
                f"layer {layer}: maps {tuple(part.data.shape[1:])}",
                expected=f"{extractor.shape(layer)}, which another process stored meanwhile",
            )
        pick = np.flatnonzero(extractor.block(layer)[at] < 0)
        todo[pick] = True
        count[layer] = len(pick)
        if len(pick):
            written += extractor.fill(session.store, layer, at[pick], part, pick)
    return {
        "rows": len(fresh),
        "maps": count,
        "images": new_images,
        "known": int((~todo).sum()),
        "bytes": written,
    }
