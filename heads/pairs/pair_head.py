"""What the heads over pairs have in common: differences (AnoDFDNet, eq. 2) and the checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from heads.contract import Batch, FeatureSource, Head, Shape, check_finite
from heads.pairs.source import CURRENT, HISTORY
from headwater.errors import NotFittedError, ShapeError


def differences(batch: Mapping[str, Tensor], root: bool = False) -> Batch:
    """Return ``{layer: |F_c - F_h|}`` of a pair batch (eq. 2), or its root, and ``_`` entries."""
    out = {k: v for k, v in batch.items() if k.startswith("_")}
    for name, current in batch.items():
        if name.startswith(CURRENT):
            layer = name.removeprefix(CURRENT)
            out[layer] = (current - batch[HISTORY + layer]).abs()
            if root:
                out[layer] = out[layer].sqrt()
    return out


class DifferenceSource:
    """A `FeatureSource` of the layers' absolute differences over a `PairSource`.

    Parameters
    ----------
    source
        The pairs.
    root
        Take the square roots of the differences.
    """

    def __init__(self, source: FeatureSource, root: bool = False) -> None:
        self.source, self.root = source, root

    @property
    def shapes(self) -> dict[str, Shape]:
        """``{layer: (C, H, W)}``."""
        return {
            k.removeprefix(CURRENT): v
            for k, v in self.source.shapes.items()
            if k.startswith(CURRENT)
        }

    @property
    def ids(self) -> list[str]:
        """Content identity of each pair."""
        return self.source.ids

    @property
    def views(self) -> list[int]:
        """View number of each row."""
        return self.source.views

    def __len__(self) -> int:
        return len(self.source)

    def read(self, start: int, stop: int) -> Batch:
        """Return the differences of rows ``start:stop``."""
        return differences(self.source.read(start, stop), self.root)

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Yield the differences of the pairs' batches."""
        for batch in self.source.batches(size, seed=seed, drop_last=drop_last):
            yield differences(batch, self.root)

    def release(self) -> None:
        """Let go of what the pairs hold."""
        self.source.release()


class PairHead(Head):
    """A head that reads pairs: `fit` takes `PairSource`s, `score` their batches.

    `shapes` holds the plain layer names of `needs`; batches carry each for both sides.
    """

    pairs: ClassVar[bool] = True
    fitted: Tensor

    def check(self, batch: Mapping[str, Tensor] | FeatureSource) -> None:
        """Raise `ShapeError` where a side's maps are not those this head was built for."""
        found = (
            {k: tuple(v.shape[1:]) for k, v in batch.items() if not k.startswith("_")}
            if isinstance(batch, Mapping)
            else dict(batch.shapes)
        )
        for layer, want in self.shapes.items():
            for name in (CURRENT + layer, HISTORY + layer):
                if name not in found:
                    raise ShapeError(
                        f"{self.name}: {name!r} is not in the batch",
                        expected="pairs: current:<layer> and history:<layer> of "
                        + ", ".join(self.shapes),
                        remedy="join two image sets to a PairSource",
                    )
                if tuple(found[name]) != tuple(want):
                    raise ShapeError(
                        f"{self.name}: {name!r} has maps of shape {tuple(found[name])}",
                        expected=f"{tuple(want)}, what the head was built for",
                        remedy="use the extractor settings that the head was trained with",
                    )

    def check_ready(self, batch: Batch) -> None:
        """Raise where the head is not fitted, the maps are of another shape or not finite.

        Raises
        ------
        NotFittedError, ShapeError, FeatureRangeError
        """
        if not bool(self.fitted):
            raise NotFittedError.of(self.name)
        self.check(batch)
        names = [prefix + layer for prefix in (CURRENT, HISTORY) for layer in self.shapes]
        check_finite({k: batch[k] for k in names}, self.name)
