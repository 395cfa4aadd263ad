"""Images and masks for heads that look at pixels: decoded and prepared when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.images.masks import read_mask
from features.images.pixels import read_image
from features.images.records import ImageRecord
from headwater.errors import DataError


class PairMasks:
    """The masks of pairs at the network's input size, by the pair's number; can be pickled.

    For `heads.pairs.source.PairSource`.

    Parameters
    ----------
    pairs
        Name and mask file of each; all must have one.
    prepare
        From a mask ``[H, W]`` bool to the input's, for instance
        ``features.images.preprocess.mask_to_input`` with its `spec` filled in.

    Raises
    ------
    DataError
        Where pairs have no mask; names the first.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, Path | None]],
        prepare: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        without = [key for key, mask in pairs if mask is None]
        if without:
            raise DataError(
                f"{len(without)} of {len(pairs)} pairs have no mask, the first {without[0]}",
                expected="a mask for each pair, black where nothing changed",
                remedy="add the masks or leave these pairs out",
            )
        self.paths = [mask for _, mask in pairs if mask is not None]
        self.prepare = prepare

    def __call__(self, number: int) -> np.ndarray:
        """Return ``[h, w]`` bool."""
        return self.prepare(read_mask(self.paths[number]))


class ImageSource:
    """Preprocessed images as a feature source with the one layer ``image``, ``[N, 3, h, w]``.

    For heads that learn their own encoder; images are decoded when they are read. It has the form
    of `heads.contract.FeatureSource`.

    Parameters
    ----------
    records
        Images; their hashes are the rows' ids.
    prepare
        From ``[H, W, 3]`` uint8 to ``[3, h, w]`` float32, for instance
        ``features.images.preprocess.preprocess`` with its `spec` filled in.
    input_size
        ``(h, w)`` in pixels.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        prepare: Callable[[np.ndarray], Tensor],
        input_size: tuple[int, int],
    ) -> None:
        self.records, self.prepare = list(records), prepare
        self.shapes = {"image": (3, *input_size)}
        self.ids, self.views = [r.sha256 for r in self.records], [0] * len(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def _read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        images = [self.prepare(read_image(self.records[r].path)).float() for r in rows]
        return {"image": torch.stack(images) if images else torch.zeros(0, *self.shapes["image"])}

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """Return rows ``start:stop`` in order."""
        return self._read(range(len(self))[start:stop])

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Yield batches, in order or in the order that `seed` decides, with ``_rows``."""
        order = np.arange(len(self))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if drop_last and len(rows) < size:
                return
            yield {**self._read(rows.tolist()), "_rows": torch.from_numpy(rows)}

    def release(self) -> None:
        """Do nothing: images are held no longer than they are used."""
