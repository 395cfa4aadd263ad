"""What a store holds, and how two of its versions differ."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.tiles import parts
from storage.store.engine import guard
from storage.store.extractors import Extractor
from storage.store.feature_store import FeatureStore
from storage.store.layout import COLUMN_ROWS
from storage.store.table import Table
from storage.upkeep.history import tags


def inspect(store: FeatureStore, snapshot: str | None = None) -> dict[str, Any]:
    """Return what a store holds, ready for JSON.

    ``images`` is the number of images present; ``extractors`` lists how each was made and per
    layer shape, dtype, rows, coverage of the present images, bytes of their maps, what the
    snapshot's chunks take on the disk (``stored_bytes``), and the ratio of the two: below 1 where
    uncompressed chunks are not full.

    >>> facts = inspect(store)
    >>> facts["kinds"], [x["name"] for x in facts["extractors"][0]["layers"]]
    ({'test/dent': 2, 'train/good': 8}, ['layer1+layer2@0.5~mean3', 'layer2'])
    """
    snapshot = store.resolve(snapshot)
    table = store.table(snapshot)
    here = table.removed_at == 0
    split, kind = table.split[here], table.kind[here]
    kinds = collections.Counter(zip(split.tolist(), kind.tolist(), strict=True))
    with guard(store.name):
        written = store.repository.lookup_snapshot(snapshot).written_at
    sides = table.height[here].tolist(), table.width[here].tolist()
    sizes = collections.Counter(zip(*sides, strict=True))
    extractors = [_describe(e, here, sizes) for e in store.extractors(snapshot)]
    return {
        "image_set": store.image_set,
        "location": store.location,
        "snapshot": snapshot,
        "written_at": written.isoformat(timespec="seconds"),
        "tags": sorted(n for n, s in tags(store).items() if s == snapshot),
        "images": int(here.sum()),
        "removed": int(len(table) - here.sum()),
        "kinds": {f"{s}/{k}": n for (s, k), n in sorted(kinds.items())},
        "extractors": extractors,
        "bytes": sum(x["bytes"] for e in extractors for x in e["layers"]),
        "stored_bytes": sum(x["stored_bytes"] for e in extractors for x in e["layers"]),
    }


def _describe(
    extractor: Extractor, here: np.ndarray, sizes: Mapping[tuple[int, int], int]
) -> dict[str, Any]:
    spec = extractor.spec
    assigned = extractor.image >= 0
    present = assigned.copy()
    present[assigned] = here[extractor.image[assigned]]
    views = spec.views.count if spec.views else 1
    wanted = views * sum(len(parts(*size, spec.tiles)) * n for size, n in sizes.items())
    if spec.tiles is not None and spec.region:
        # Which tiles lie outside of the region a store cannot tell: what is there is all of it.
        wanted = int(present.sum())
    layers = []
    for name in extractor.layers:
        maps = extractor.maps(name)
        filled = extractor.block(name) >= 0
        rows = int(filled.sum())
        chunks = len(np.unique(np.flatnonzero(filled) // maps.rows))
        array = extractor.array(f"{name}/maps")
        compression = str(array.attrs.get("compression", "none"))
        full = chunks * maps.rows * maps.row_bytes
        # Of compressed chunks the sizes are looked at, not the bytes.
        stored = full if maps.codec is None else int(array.nbytes_stored())
        layers.append(
            {
                "name": name,
                "shape": list(maps.shape[1:]),
                "dtype": spec.dtype,
                "rows": rows,
                "coverage": round(int((filled & present).sum()) / wanted, 6) if wanted else 1.0,
                "chunk_rows": maps.rows,
                "bytes": rows * maps.row_bytes,
                "stored_bytes": stored,
                "compression": compression,
                "ratio": round(rows * maps.row_bytes / stored, 3) if stored else 1.0,
            }
        )
    return {
        "id": spec.id,
        "extractor": spec.to_json(),
        "headwater": extractor.group.attrs.get("headwater"),
        "created": extractor.group.attrs.get("created"),
        "rows": int(assigned.sum()),
        "views": views if spec.views else 0,
        "layers": layers,
    }


@dataclass(frozen=True)
class StoreDiff:
    """What changed from one snapshot to another. Images are named by path.

    `layers_added` and `layers_removed` name ``"<extractor id>/<layer>"``; `rows` counts the
    feature rows that each layer gained (or lost).
    """

    old: str
    new: str
    added: list[str]
    removed: list[str]
    renamed: list[tuple[str, str]]
    relabelled: list[str]
    layers_added: list[str]
    layers_removed: list[str]
    rows: dict[str, int]


def diff(store: FeatureStore, old: str, new: str | None = None) -> StoreDiff:
    """Compare two snapshots (ids or tags) of a set; `new` is the newest without it.

    Rows of the table never move, so the tables are compared column by column, and of a column
    only the chunks whose stored bytes differ are decoded.

    >>> diff(store, "before").added
    ['test/dent/8.png', 'test/dent/9.png']
    """
    before, after = store.resolve(old), store.resolve(new)
    one, two = store.table(before), store.table(after)
    n = max(len(one), len(two))
    was, now = _present(one, n), _present(two, n)
    both = was & now
    _, old_paths, new_paths = _changed(one, two, "path", both)
    renamed = list(zip(old_paths, new_paths, strict=True))
    other = [_changed(one, two, name, both)[0] for name in ("split", "kind", "mask")]
    relabelled = two.values("path", np.unique(np.concatenate(other))).tolist()
    added, removed = np.flatnonzero(now & ~was), np.flatnonzero(was & ~now)
    rows_before, rows_after = _filled(store, before), _filled(store, after)
    changes = collections.Counter(rows_after)
    changes.subtract(rows_before)
    return StoreDiff(
        old=before,
        new=after,
        added=two.values("path", added).tolist(),
        removed=one.values("path", removed).tolist(),
        renamed=renamed,
        relabelled=relabelled,
        layers_added=sorted(set(rows_after) - set(rows_before)),
        layers_removed=sorted(set(rows_before) - set(rows_after)),
        rows={k: v for k, v in sorted(changes.items()) if v},
    )


def _changed(
    one: Table, two: Table, name: str, both: np.ndarray
) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the rows of `both` whose text in a column differs, with the old and the new one."""
    old, new = one.raw(name), two.raw(name)
    rows: list[np.ndarray] = [np.zeros(0, np.int64)]
    texts: tuple[list[str], list[str]] = ([], [])
    for chunk, (a, b) in enumerate(zip(old, new, strict=False)):
        if a is not None and b is not None and np.array_equal(a, b):
            continue
        mine = chunk * COLUMN_ROWS + np.flatnonzero(both[chunk * COLUMN_ROWS :][:COLUMN_ROWS])
        was, now = one.values(name, mine), two.values(name, mine)
        differs = was != now
        rows.append(mine[differs])
        texts[0].extend(was[differs].tolist())
        texts[1].extend(now[differs].tolist())
    return np.concatenate(rows), *texts


def _present(table: Table, n: int) -> np.ndarray:
    mask = np.zeros(n, bool)
    mask[: len(table)] = table.removed_at == 0
    return mask


def _filled(store: FeatureStore, snapshot: str) -> dict[str, int]:
    found = {}
    for extractor in store.extractors(snapshot):
        for layer in extractor.layers:
            name = f"{extractor.spec.id}/{layer}"
            found[name] = int((extractor.block(layer) >= 0).sum())
    return found
