"""Small images and features for the store's tests: content decides everything.

The maps of an image are a function of its identity, layer and view, so any store can be compared
with what it ought to hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from headwater.spec import ExtractorSpec, LayerSpec, ViewSpec
from storage.store.distributed import Ticket, Written, allocate, write_block
from storage.store.feature_store import FeatureStore
from storage.store.layout import StoreOptions
from storage.store.table import ImageRow, Selection
from storage.store.writing import WriteReport

SPEC = ExtractorSpec("resnet18", "0" * 64, resize=(64, 64))
VIEWS = ExtractorSpec("resnet18", "0" * 64, resize=(64, 64), views=ViewSpec(2, 30.0))
LAYERS = tuple(LayerSpec.parse(t) for t in ("layer2", "layer1+layer2@0.5~mean3"))
NAMES = tuple(x.name for x in LAYERS)
SHAPES = {"layer2": (6, 8, 8), "layer1+layer2@0.5~mean3": (4, 5, 3), "layer3": (3, 2, 2)}
#: Chunks of 4 and 32 rows: few images fill several chunks.
OPTIONS = StoreOptions(chunk_bytes=3000)


def image(i: int | str, path: str | None = None, **more: object) -> ImageRow:
    """Return image `i`."""
    sha = hashlib.sha256(f"image {i}".encode()).hexdigest()
    return ImageRow(sha, path or f"train/good/{i}.png", width=32, height=24, **more)  # type: ignore[arg-type]


def maps_of(
    keys: Iterable[tuple[str, int]], layers: Sequence[str] = NAMES, dtype: str = "float16"
) -> dict[str, np.ndarray]:
    """Return the maps an extractor would give."""
    keys = list(keys)
    out = {}
    for layer in layers:
        rows = []
        for sha, view in keys:
            seed = hashlib.sha256(f"{sha} {view} {layer}".encode()).digest()
            rng = np.random.default_rng(np.frombuffer(seed, np.uint32))
            rows.append(rng.standard_normal(SHAPES[layer], dtype=np.float32))
        stacked = np.stack(rows) if rows else np.zeros((0, *SHAPES[layer]), np.float32)
        out[layer] = stacked.astype(dtype)
    return out


def keys_of(images: Iterable[ImageRow], view: int = 0) -> list[tuple[str, int]]:
    """Return the keys of images at a view."""
    return [(i.sha256, view) for i in images]


def write(
    store: FeatureStore, images: Sequence[ImageRow], layers: Sequence[str] = NAMES
) -> WriteReport:
    """Write the plain features of images as one block."""
    keys = keys_of(images)
    return store.write(SPEC, keys, maps_of(keys, layers), images)


def allot(
    store: FeatureStore, images: Sequence[ImageRow], layers: Sequence[str] = NAMES, **more: Any
) -> list[Ticket]:
    """Cut the extraction of images into tickets, as many as there are chunks."""
    shapes = {name: SHAPES[name] for name in layers}
    return allocate(store, SPEC, shapes, keys_of(images), about_bytes=1, **more)


def work(ticket: Ticket) -> Written:
    """Do what a worker does with a ticket."""
    return write_block(ticket, ticket.keys, maps_of(ticket.keys, [x.name for x in ticket.layers]))


def extract(
    store: FeatureStore,
    images: Sequence[ImageRow],
    layers: Sequence[LayerSpec] = LAYERS,
    *,
    spec: ExtractorSpec = SPEC,
    block: int = 5,
    complete: bool = True,
) -> int:
    """Sync, plan, and write what is missing in blocks; return the number of maps computed.

    Where `images` is not `complete` but only some of the set, there is nothing to sync.
    """
    if complete:
        store.sync(images)
    views = range(1, spec.views.count + 1) if spec.views else [0]
    wanted = [(i.sha256, v) for i in images for v in views]
    computed = 0
    for task in store.plan(spec, layers, wanted).tasks:
        names = [x.name for x in task.layers]
        for start in range(0, len(task.keys), block):
            keys = task.keys[start : start + block]
            computed += len(keys) * len(names)
            store.write(spec, keys, maps_of(keys, names), images)
    return computed


def contents(
    store: FeatureStore,
    layers: Sequence[LayerSpec] = LAYERS,
    *,
    spec: ExtractorSpec = SPEC,
    snapshot: str | None = None,
    select: Selection | None = None,
) -> dict[tuple[str, int], dict[str, bytes]]:
    """Return all features by key, as bytes; fails where a key is there twice."""
    reader = store.reader(spec, layers, select, snapshot, missing="skip")
    batch = reader.read(0, len(reader))
    found: dict[tuple[str, int], dict[str, bytes]] = {}
    for row, key in enumerate(zip(reader.ids, reader.views, strict=True)):
        assert key not in found
        found[key] = {x.name: batch[x.name][row].numpy().tobytes() for x in layers}
    return found


def expected(
    images: Iterable[ImageRow], layers: Sequence[LayerSpec] = LAYERS, views: Sequence[int] = (0,)
) -> dict[tuple[str, int], dict[str, bytes]]:
    """Return what `contents` must be."""
    keys = [(i.sha256, v) for i in images for v in views]
    maps = maps_of(keys, [x.name for x in layers])
    return {
        key: {name: values[row].astype(np.float32).tobytes() for name, values in maps.items()}
        for row, key in enumerate(keys)
    }
