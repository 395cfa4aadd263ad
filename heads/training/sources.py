"""Feature sources in memory, the held-out split and the check that features are numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from heads.contract import Batch, FeatureSource, Shape
from heads.looking import LOOKED
from headwater.errors import ShapeError


class TensorSource:
    """A `FeatureSource` over tensors in memory.

    Parameters
    ----------
    maps
        ``{layer name: [N, C, H, W]}``; any floating dtype, given out as float32.
    ids
        SHA-256 (or any stable name) of the image behind each row; by default the hash of the row.
    views
        View number of each row; zeros by default.

    Raises
    ------
    ShapeError
        Where the layers, `ids` and `views` disagree about the number of rows.

    Examples
    --------
    >>> source = TensorSource({"layer3": torch.arange(6.0).view(3, 1, 1, 2)}, ["a", "b", "c"])
    >>> len(source), source.shapes
    (3, {'layer3': (1, 1, 2)})
    >>> [batch["_rows"].tolist() for batch in source.batches(2)]
    [[0, 1], [2]]
    """

    def __init__(
        self,
        maps: Mapping[str, Tensor],
        ids: Sequence[str] | None = None,
        views: Sequence[int] | None = None,
    ) -> None:
        counts = {name: len(x) for name, x in maps.items()}
        if not counts or len(set(counts.values())) != 1:
            raise ShapeError(f"rows per layer {counts}", expected="the same number in each layer")
        self._maps = dict(maps)
        self._count = next(iter(counts.values()))
        self.ids = list(ids) if ids is not None else [self._row_hash(i) for i in range(len(self))]
        self.views = list(views) if views is not None else [0] * len(self)
        if not len(self.ids) == len(self.views) == len(self):
            raise ShapeError(
                f"{len(self.ids)} ids and {len(self.views)} views for {len(self)} rows",
                expected="one of each per row",
            )

    @property
    def shapes(self) -> dict[str, Shape]:
        """``{layer name: (channels, height, width)}``."""
        return {k: (x.shape[1], x.shape[2], x.shape[3]) for k, x in self._maps.items()}

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``start:stop`` in order, float32."""
        return {k: x[start:stop].float() for k, x in self._maps.items()}

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Yield batches in order, or in the order that `seed` alone decides."""
        order = torch.arange(self._count)
        if seed is not None:
            order = torch.randperm(self._count, generator=torch.Generator().manual_seed(seed))
        for start in range(0, self._count, size):
            rows = order[start : start + size]
            if drop_last and len(rows) < size:
                return
            batch = {k: x[rows].float() for k, x in self._maps.items()}
            batch["_rows"] = rows
            yield batch

    def release(self) -> None:
        """Do nothing: the tensors are all there is."""

    def subset(self, rows: Sequence[int]) -> TensorSource:
        """Return a source of these rows, in this order."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        return TensorSource(
            {k: x[index] for k, x in self._maps.items()},
            [self.ids[i] for i in rows],
            [self.views[i] for i in rows],
        )

    def _row_hash(self, row: int) -> str:
        held = [x[row].float().contiguous().cpu().numpy().tobytes() for x in self._maps.values()]
        return hashlib.sha256(b"".join(held)).hexdigest()


class LookedSource:
    """A `FeatureSource` whose batches say what of each image is looked at (`heads.looking`).

    Parameters
    ----------
    source
        Where the maps are; what else it has (`subset`, say) is had from it.
    where
        From an image's id and a view's number to ``[H, W]`` bool, at the input's size; the same
        array again for what looks alike.
    """

    def __init__(self, source: FeatureSource, where: Callable[[str, int], np.ndarray]) -> None:
        self.source, self.where = source, where
        self.shapes, self.ids, self.views = source.shapes, source.ids, source.views

    def __len__(self) -> int:
        return len(self.source)

    def looked(self, row: int) -> Tensor:
        """Return what of a row's image is looked at, ``[H, W]`` bool."""
        return torch.from_numpy(self.where(self.ids[row], self.views[row]))

    def _with(self, batch: Batch, rows: Iterable[int]) -> Batch:
        return {**batch, LOOKED: torch.stack([self.looked(row) for row in rows])}

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``start:stop`` in order."""
        rows = range(len(self))[start:stop]
        batch = self.source.read(start, stop)
        return self._with(batch, rows) if rows else batch

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Yield the source's batches."""
        for batch in self.source.batches(size, seed=seed, drop_last=drop_last):
            yield self._with(batch, batch["_rows"].tolist())

    def release(self) -> None:
        """Let go of what the source holds."""
        self.source.release()

    def subset(self, rows: Sequence[int]) -> LookedSource:
        """Return a source of these rows, in this order."""
        return LookedSource(self.source.subset(rows), self.where)  # type: ignore[attr-defined]

    def concat(self, sources: Sequence[LookedSource]) -> LookedSource:
        """Return the rows of several sources one after the other."""
        joined = self.source.concat([s.source for s in sources])  # type: ignore[attr-defined]
        return LookedSource(joined, self.where)


class TileSource:
    """A `FeatureSource` of images seen in tiles: to a head each is an image of its own.

    So a tile is a plain row, whatever its number, and a head has nothing to do; all tiles of an
    image have its id, so that what is shared out by ids is not torn apart.

    Parameters
    ----------
    source
        Where the maps are.
    rows
        Of each row the part of its image, 0 for the whole, 1, 2, ... for tiles, and the view of
        that, 0 for the part itself.
    """

    def __init__(self, source: FeatureSource, rows: Sequence[tuple[int, int]]) -> None:
        self.source, self._rows = source, list(rows)
        self.shapes, self.ids = source.shapes, source.ids
        self.parts, self.views = [part for part, _ in rows], [view for _, view in rows]

    def __len__(self) -> int:
        return len(self.source)

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``start:stop`` in order."""
        return self.source.read(start, stop)

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Yield the source's batches."""
        return self.source.batches(size, seed=seed, drop_last=drop_last)

    def release(self) -> None:
        """Let go of what the source holds."""
        self.source.release()

    def subset(self, rows: Sequence[int]) -> TileSource:
        """Return a source of these rows, in this order."""
        inner = self.source.subset(rows)  # type: ignore[attr-defined]
        return TileSource(inner, [self._rows[row] for row in rows])

    def concat(self, sources: Sequence[TileSource]) -> TileSource:
        """Return the rows of several sources one after the other."""
        joined = self.source.concat([s.source for s in sources])  # type: ignore[attr-defined]
        return TileSource(joined, [row for s in sources for row in s._rows])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its maps on `device`; row numbers stay where they are."""
    # Only towards a GPU: a copy from one to the processor would be read before it is whole.
    later = device.type == "cuda"
    return {
        k: x if k.startswith("_") and k != LOOKED else x.to(device, non_blocking=later)
        for k, x in batch.items()
    }


def source_fingerprint(source: FeatureSource) -> str:
    """Return a hash of a source's ids, views, shapes and its first and last row.

    Reading two rows is cheap and tells another extractor's features of the same images apart.
    """
    text = hashlib.sha256(repr((source.ids, source.views, sorted(source.shapes.items()))).encode())
    for row in (0, len(source) - 1) if len(source) else ():
        for layer, maps in sorted(source.read(row, row + 1).items()):
            if not layer.startswith("_"):
                text.update(maps.contiguous().cpu().numpy().tobytes())
    return text.hexdigest()
