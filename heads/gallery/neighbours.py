"""A gallery of normal vectors, the exact nearest distance to it, and maps of such distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from heads.contract import FeatureSource, Size, check_finite
from heads.looking import LOOKED, looked_at, positions
from headwater.errors import NotFittedError

_CHUNK = 4096


def vectors_in(source: FeatureSource, layer: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the vectors of some plain images at a time, ``[n, C]`` float32, and whose they are.

    Positions that are not looked at and rows that are views are left out. The second is ``[n]``
    int32, the number of each vector's image among the plain ones.
    """
    channels, height, width = source.shapes[layer]
    plain = [i for i, view in enumerate(source.views) if view == 0]
    done = 0
    for low in range(0, len(source), 16):
        keep = [i - low for i in plain[done:] if i < low + 16]
        if not keep:
            continue
        batch = source.read(low, min(low + 16, len(source)))
        maps = batch[layer].cpu()[keep]
        rows = torch.tensor([low + k for k in keep])
        check_finite({layer: maps, "_rows": rows}, "reading features", source.ids)
        vectors = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        numbers = torch.arange(done, done + len(keep), dtype=torch.int32)
        owners = numbers.repeat_interleave(height * width)
        if LOOKED in batch:
            seen = positions(batch[LOOKED][keep], (height, width)).flatten()
            vectors, owners = vectors[seen], owners[seen]
        done += len(keep)
        yield vectors, owners


def collect_owned(
    source: FeatureSource, layer: str, progress: Callable[[int, int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the vectors of all positions of all plain images, ``[n, C]``, and whose they are.

    As of `vectors_in`. The first is float16 where that loses nothing (features stored in float16),
    else float32; it is the one large thing that is held.
    """
    channels, height, width = source.shapes[layer]
    plain = sum(view == 0 for view in source.views)
    out = torch.empty(plain * height * width, channels, dtype=torch.float16)
    whose = torch.empty(len(out), dtype=torch.int32)
    filled = 0
    for vectors, owners in vectors_in(source, layer):
        if out.dtype == torch.float16 and not torch.equal(vectors.half().float(), vectors):
            out = out.float()
        to = slice(filled, filled + len(vectors))
        out[to], whose[to] = vectors.to(out.dtype), owners
        filled += len(vectors)
        if progress is not None and len(owners):
            progress(int(owners[-1]) + 1, plain)
    return out[:filled], whose[:filled]


def collect_vectors(
    source: FeatureSource, layer: str, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Return the vectors of all positions of all plain images, as of `collect_owned`."""
    return collect_owned(source, layer, progress)[0]


class Growing(nn.Module):
    """A module that is loaded with as many rows of its buffers in `growing` as were saved."""

    growing: ClassVar[tuple[str, ...]] = ()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in (n for n in self.growing if n in self._buffers):
            found, own = state_dict.get(prefix + name), self.get_buffer(name)
            if found is not None and found.shape[1:] == own.shape[1:]:
                setattr(self, name, torch.empty_like(found, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[arg-type]


class Gallery(Growing):
    """Vectors to compare with; saved and loaded whatever their number.

    Distances are found as |a|² + |b|² − 2ab by matrix products, and the winner's is worked out
    again from the difference, so that it has float32's accuracy. Vectors are shifted to the
    gallery's mean first: what is subtracted is then of the size of the distances.

    A query's result must not depend on its company, but a matrix product may round differently in
    another shape. So a call is one image: its positions against the gallery in chunks of one size.
    """

    growing = ("vectors",)
    vectors: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.empty(0, dim))
        self._ready: tuple[Tensor, ...] = (torch.empty(0),)

    def set(self, vectors: Tensor) -> None:
        """Take over ``[m, dim]`` vectors as float32."""
        self.vectors = vectors.float().contiguous().to(self.vectors.device)
        self._ready = (torch.empty(0),)

    def __len__(self) -> int:
        return len(self.vectors)

    def _prepared(self) -> tuple[Tensor, ...]:
        """Return mean, shifted vectors and their squared norms."""
        if not len(self):
            raise NotFittedError(
                "the gallery is empty", expected="a fitted head", remedy="call fit first"
            )
        if self._ready[0] is not self.vectors:  # set, loaded or moved since
            mean = self.vectors.double().mean(0).float()
            shifted = self.vectors - mean
            self._ready = self.vectors, mean, shifted, shifted.square().sum(1)
        return self._ready[1:]

    @torch.no_grad()
    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Euclidean distance ``[q]`` to the nearest vector, and its row ``[q]``."""
        mean, shifted, norms = self._prepared()
        moved = (queries.to(shifted).float() - mean) * -2.0
        best = torch.full((len(moved),), torch.inf, device=moved.device)
        rows = torch.zeros(len(moved), dtype=torch.int64, device=moved.device)
        with torch.autocast(moved.device.type, enabled=False):
            for low in range(0, len(shifted), _CHUNK):
                part = torch.addmm(norms[low : low + _CHUNK], moved, shifted[low : low + _CHUNK].T)
                value, at = part.min(1)
                closer = value < best
                best = torch.where(closer, value, best)
                rows = torch.where(closer, at + low, rows)
        distance = (queries.to(self.vectors).float() - self.vectors[rows]).square().sum(1).sqrt()
        return distance, rows

    @torch.no_grad()
    def around(self, row: int, count: int) -> Tensor:
        """Return the rows of the `count` vectors nearest to vector `row`, itself the first."""
        distances = (self.vectors - self.vectors[row]).square().sum(1)
        return distances.topk(min(count, len(self)), largest=False).indices


def _resampling(source: int, target: int, positions: float) -> Tensor:
    """Return ``[target, source]``: bilinear resizing, then Gaussian smoothing, along one axis."""
    sigma = positions * target / source
    # float64 throughout: the matrix is made once and must be the same everywhere
    at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(target), high), at - low)
    if sigma > 0:
        offset = np.arange(target)[:, None] - np.arange(target)[None]
        kernel = np.exp(-0.5 * (offset / sigma) ** 2) * (np.abs(offset) <= 4 * sigma)
        matrix = kernel / kernel.sum(1, keepdims=True) @ matrix
    return torch.from_numpy(matrix).float()


class MapMaker(nn.Module):
    """Distance per position to map at image size: bilinear, then Gaussian smoothing.

    Both are linear and separable, so they are one matrix per axis. Beyond the border, and beyond
    what is looked at, the Gaussian is cut off and its weights are rescaled, so that a constant map
    stays constant.

    Parameters
    ----------
    source, target
        ``(height, width)`` of the distances and of the maps.
    sigma
        Standard deviation of the Gaussian in positions of the distances; 0 for none.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: Size, target: Size, sigma: float) -> None:
        super().__init__()
        self.register_buffer("rows", _resampling(source[0], target[0], sigma), persistent=False)
        self.register_buffer("columns", _resampling(source[1], target[1], sigma), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """Map one image's ``[h, w]`` to ``[H, W]``."""
        with torch.autocast(distances.device.type, enabled=False):
            where = looked_at((distances.shape[0], distances.shape[1]))
            if where is None:
                return self.rows @ distances.float() @ self.columns.T
            seen = where[0].float()
            weight = self.rows @ seen @ self.columns.T
            return self.rows @ (distances.float() * seen) @ self.columns.T / weight.clamp_min(1e-6)
