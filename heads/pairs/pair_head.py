"""What the heads over pairs have in common: differences (AnoDFDNet, eq. 2) and the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from heads.contract import Batch, FeatureSource, Head, Shape
from heads.pairs.source import CURRENT, HISTORY
from headwater.errors import ShapeError


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
        self.ids, self.views = source.ids, source.views

    @property
    def shapes(self) -> dict[str, Shape]:
        """``{layer: (C, H, W)}``."""
        return {
            k.removeprefix(CURRENT): v
            for k, v in self.source.shapes.items()
            if k.startswith(CURRENT)
        }

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

    @property
    def batch_shapes(self) -> dict[str, Shape]:
        """Shape of each entry of a batch that is read: of each layer on both sides."""
        sides = (CURRENT, HISTORY)
        return {side + layer: shape for side in sides for layer, shape in self.shapes.items()}

    def without(self, name: str) -> ShapeError:
        """Return the error of a batch that has no entry `name`."""
        return ShapeError(
            f"{self.name}: {name!r} is not in the batch",
            expected="pairs: current:<layer> and history:<layer> of " + ", ".join(self.shapes),
            remedy="join two image sets to a PairSource",
        )
