"""One extractor's features in a store: which row is which image, and the layers' arrays."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from headwater.errors import LayerError
from headwater.spec import ExtractorSpec, LayerSpec
from headwater.version import __version__
from storage.store.arrays import Arrays, Later, Maps, append, assign, create_column, lengthen
from storage.store.checks import Prepared
from storage.store.engine import PARALLEL, read_whole
from storage.store.layout import (
    BLOCK_ROWS,
    COLUMN_ROWS,
    DISK_DTYPE,
    FEATURES,
    STATISTICS,
    StoreOptions,
    chunk_rows,
    compressors,
)

Shape = tuple[int, int, int]
_VIEWS = 1 << 16


def combine(images: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Return one int64 per (image row, view)."""
    return images.astype(np.int64) * _VIEWS + views.astype(np.int64)


def _made() -> dict[str, str]:
    """Return what a group says of its making."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return {"headwater": __version__, "created": now}


class Extractor(Arrays):
    """The group ``features/<spec.id>`` at one snapshot; index arrays are read when first needed."""

    def __init__(self, group: zarr.Group) -> None:
        super().__init__(group)
        self.spec = ExtractorSpec.from_json(dict(group.attrs["extractor"]))  # type: ignore[arg-type]

    @classmethod
    def open(cls, root: zarr.Group, spec_id: str) -> Extractor | None:
        """Return the extractor, or None where it has no features yet."""
        try:
            return cls(root[f"{FEATURES}/{spec_id}"])  # type: ignore[arg-type]
        except KeyError:
            return None

    @classmethod
    def create(cls, root: zarr.Group, spec: ExtractorSpec) -> Extractor:
        """Create the group and its empty index."""
        group = root.create_group(
            f"{FEATURES}/{spec.id}",
            attributes={"extractor": spec.to_json(), **_made()},
        )
        create_column(group, "image", "int64", (), ("row",), COLUMN_ROWS, fill=-1)
        create_column(group, "view", "int16", (), ("row",), COLUMN_ROWS)
        return cls(group)

    def __len__(self) -> int:
        return int(self.array("image").shape[0])

    @functools.cached_property
    def image(self) -> np.ndarray:
        """Row of the image table behind each feature row, -1 where none is assigned."""
        return read_whole(self.array("image"))

    @functools.cached_property
    def view(self) -> np.ndarray:
        """View number of each feature row."""
        return read_whole(self.array("view"))

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        assigned = np.flatnonzero(self.image >= 0)
        key = combine(self.image[assigned], self.view[assigned])
        order = np.argsort(key, kind="stable")
        return key[order], assigned[order]

    def find(self, images: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return the feature row of each (image row, view), -1 where there is none."""
        keys, rows = self._sorted
        if not len(keys):
            return np.full(len(images), -1, np.int64)
        want = combine(images, views)
        place = np.minimum(np.searchsorted(keys, want), len(keys) - 1)
        return np.where((keys[place] == want) & (images >= 0), rows[place], -1).astype(np.int64)

    @functools.cached_property
    def layers(self) -> dict[str, LayerSpec]:
        """Stored layers by name."""
        return {name: LayerSpec.parse(name) for name in sorted(self.group.group_keys())}

    def has(self, layer: str) -> bool:
        """Return whether a layer is stored."""
        return layer in self.layers

    def maps(self, layer: str) -> Maps:
        """Return a layer's map array; raises `LayerError` with the stored ones."""
        if not self.has(layer):
            raise LayerError(
                f"layer {layer!r} is not stored for {self.spec.backbone} ({self.spec.id})",
                expected="one of " + (", ".join(self.layers) or "none yet"),
                remedy="extract with this layer",
            )
        return Maps.of(self.array(f"{layer}/maps"))

    def shape(self, layer: str) -> Shape:
        """Return ``(C, H, W)`` of a stored layer."""
        _, c, h, w = self.maps(layer).shape
        return c, h, w

    def block(self, layer: str) -> np.ndarray:
        """Return the number of the statistics block of each row, -1 where the row is not filled."""
        return read_whole(self.array(f"{layer}/block"))

    def add_layer(self, layer: str, shape: Shape, options: StoreOptions) -> None:
        """Create a layer's arrays, as long as the index. Needs a writable session."""
        dtype = DISK_DTYPE[self.spec.dtype]
        row_bytes = int(np.prod(shape)) * dtype.itemsize
        rows = chunk_rows(row_bytes, options.chunk_bytes)
        spec = LayerSpec.parse(layer)
        about = {n: getattr(spec, n) for n in ("scale", "pool", "fuse")}
        attributes = {"layer": {"nodes": list(spec.nodes), **about}, **_made()}
        group = self.group.create_group(layer, attributes=attributes)
        group.create_array(
            "maps",
            shape=(len(self), *shape),
            chunks=(rows, *shape),
            dtype=dtype,
            compressors=compressors(options.compression, dtype.itemsize),
            dimension_names=["row", "channel", "height", "width"],
            attributes={
                "encoding": self.spec.dtype,
                "compression": options.compression,
                "row_bytes": row_bytes,
            },
            config={"write_empty_chunks": True},
        )
        count = len(self)
        create_column(group, "crc32", "uint32", (), ("row",), COLUMN_ROWS, count=count)
        create_column(group, "block", "int32", (), ("row",), COLUMN_ROWS, fill=-1, count=count)
        create_column(group, "blocks", "int64", (2,), ("block", "extent"), COLUMN_ROWS)
        names = {"statistics": list(STATISTICS)}
        dims = ("block", "statistic", "channel")
        size = (len(STATISTICS), shape[0])
        create_column(group, "statistics", "float32", size, dims, BLOCK_ROWS, attributes=names)
        self.__dict__.pop("layers", None)

    def load(self, layers: Iterable[str]) -> None:
        """Open the index and all arrays that a block of these layers touches, at once."""
        names = ["image", "view"]
        names += [f"{x}/{n}" for x in self.layers for n in ("maps", "crc32", "block")]
        names += [f"{x}/{n}" for x in layers for n in ("blocks", "statistics")]
        self.open_all(names)

    def append(self, images: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Append rows to the index and lengthen every layer; return the new row numbers."""
        start, later = len(self), Later()
        later.add(append, self.array("image"), images.astype(np.int64))
        later.add(append, self.array("view"), views.astype(np.int16))
        self._lengthen(start + len(images), later)
        later.run()
        return np.arange(start, start + len(images), dtype=np.int64)

    def _lengthen(self, rows: int, later: Later) -> None:
        for layer in self.layers:
            for name in ("maps", "crc32", "block"):
                later.add(lengthen, self.array(f"{layer}/{name}"), rows)

    def lengthen(self, rows: int) -> None:
        """Give all arrays `rows` rows; new ones are unassigned and unfilled."""
        later = Later()
        for name in ("image", "view"):
            later.add(lengthen, self.array(name), rows)
        self._lengthen(rows, later)
        later.run()

    def fill(
        self,
        store: Any,
        layer: str,
        rows: np.ndarray,
        ready: Prepared,
        later: Later,
        parallel: int = PARALLEL,
    ) -> None:
        """Write maps to feature rows `rows` when `later` runs.

        Of what `later` returns, the numbers are the bytes stored.
        """
        later.add(self.maps(layer).put, store, rows, ready.data, parallel)
        self.record(layer, rows, ready.crc32, ready.statistics.block(), later)

    def record(
        self,
        layer: str,
        rows: np.ndarray,
        crc32: np.ndarray,
        statistics: np.ndarray,
        later: Later,
    ) -> None:
        """Note a written block when `later` runs: checksums, members, statistics."""
        number = self.array(f"{layer}/blocks").shape[0]
        extent = np.array([[rows.min(), len(rows)]], np.int64)
        later.add(append, self.array(f"{layer}/blocks"), extent)
        later.add(append, self.array(f"{layer}/statistics"), statistics[None])
        later.add(assign, self.array(f"{layer}/crc32"), rows, crc32)
        members = np.full(len(rows), number, np.int32)
        later.add(assign, self.array(f"{layer}/block"), rows, members)


@dataclass(frozen=True)
class PlanTask:
    """Images that miss the same layers: ``(sha256, view)`` keys, in the order asked for."""

    layers: tuple[LayerSpec, ...]
    keys: list[tuple[str, int]]


@dataclass(frozen=True)
class Plan:
    """What is missing for some layers of an extractor.

    Parameters
    ----------
    wanted, missing
        Number of keys asked for, and per layer name how many of them it lacks.
    tasks
        The work, grouped so that nothing that is stored is computed again.
    """

    wanted: int
    missing: dict[str, int]
    tasks: list[PlanTask]

    @property
    def todo(self) -> int:
        """Keys that miss at least one layer."""
        return sum(len(t.keys) for t in self.tasks)


def make_plan(
    layers: Sequence[LayerSpec],
    keys: Sequence[tuple[str, int]],
    filled: Mapping[str, np.ndarray],
) -> Plan:
    """Group keys by the layers they miss.

    Parameters
    ----------
    layers
        Layers asked for.
    keys
        ``(sha256, view)``.
    filled
        Per layer name, a bool per key: stored already.
    """
    names = [x.name for x in layers]
    pattern = np.zeros(len(keys), np.int64)
    for bit, name in enumerate(names):
        pattern |= (~filled[name]).astype(np.int64) << bit
    tasks = []
    for value in np.unique(pattern[pattern > 0]).tolist():
        chosen = tuple(x for bit, x in enumerate(layers) if value >> bit & 1)
        tasks.append(PlanTask(chosen, [keys[i] for i in np.flatnonzero(pattern == value).tolist()]))
    return Plan(len(keys), {n: int((~filled[n]).sum()) for n in names}, tasks)
