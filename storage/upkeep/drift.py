"""Whether new images look like the reference, layer by layer.

Maps are averaged over pixels, and over the tiles of an image; where channels are many, a seeded
Gaussian random projection keeps distances (Johnson and Lindenstrauss, 1984) and makes covariances
estimable from few images.
Distances alone mean little, so each comes with what chance gives: the same distance between
random splits of all images into groups of the same sizes (a permutation test).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from headwater.errors import DataError
from headwater.spec import LayerSpec
from storage.store.extractors import Extractor
from storage.store.feature_store import FeatureStore
from storage.store.reader import FeatureReader
from storage.store.table import Selection


@dataclass(frozen=True)
class LayerDrift:
    """Distances of one layer of an extractor, of `reference` images and `new` ones.

    Parameters
    ----------
    channels, dimensions
        Channels of the layer, and dimensions after the projection.
    mean_distance
        Euclidean distance of the means over the root of the reference's total variance: 1 is a
        shift as large as the spread of the reference.
    frechet
        Squared Fréchet distance of the two Gaussians, ``|m1-m2|² + tr(C1 + C2 - 2 (C1 C2)^½)``
        (Dowson and Landau 1982, eq. 4), over the reference's total variance.
    mean_chance, frechet_chance
        The 95 % quantile of both under random splits.
    mean_p, frechet_p
        Share of random splits that are as far apart, the observed one counted.
    nearest_reference
        Distance of each reference image to the nearest other one, float32 ``[reference]``.
    nearest_new
        Distance of each new image to the nearest reference image, float32 ``[new]``.
    nearest_ratio
        Median of the latter over median of the former.
    nearest_ks
        Largest difference of their distribution functions (Kolmogorov-Smirnov statistic).
    """

    extractor: str
    layer: str
    reference: int
    new: int
    channels: int
    dimensions: int
    mean_distance: float
    frechet: float
    mean_chance: float
    frechet_chance: float
    mean_p: float
    frechet_p: float
    nearest_reference: np.ndarray
    nearest_new: np.ndarray
    nearest_ratio: float
    nearest_ks: float

    @property
    def drifted(self) -> bool:
        """Whether means or covariances differ by more than 1 in 100 random splits do."""
        return min(self.mean_p, self.frechet_p) <= 0.01

    def to_json(self) -> dict[str, object]:
        """Return the numbers; of the distributions, quartiles and 95 % quantiles."""
        numbers = {k: v for k, v in self.__dict__.items() if not isinstance(v, np.ndarray)}
        for name in ("nearest_reference", "nearest_new"):
            marks = np.quantile(getattr(self, name), [0.25, 0.5, 0.75, 0.95])
            numbers[name] = [float(x) for x in marks]
        return {**numbers, "drifted": self.drifted}


def drift(
    store: FeatureStore,
    since: str,
    *,
    select: Selection | None = None,
    dimensions: int = 64,
    splits: int = 199,
) -> list[LayerDrift]:
    """Compare images that came after a snapshot with those that were there, in every layer.

    Projection, splits and samples are the same at every call.

    Parameters
    ----------
    since
        Snapshot or tag: what was present there is the reference, also if it was removed since, but
        not what is known by now to be no part of `select`.
    select
        Which images count; normal ones without it.
    dimensions
        More channels than this are projected down to it.
    splits
        Random splits.

    Raises
    ------
    DataError
        Fewer than two images on either side.

    Examples
    --------
    >>> found = drift(store, "before", select=Selection(), splits=19)
    >>> [(x.layer, x.reference, x.new, x.drifted) for x in found]
    [('layer1+layer2@0.5~mean3', 8, 2, False), ('layer2', 8, 2, False)]
    """
    now, then = store.snapshot, store.resolve(since)
    select = select or Selection(normal=True)
    results = []
    for extractor in store.extractors(now):
        if extractor.spec.views is not None:
            continue
        for layer in extractor.layers:
            rng = np.random.default_rng(0)
            sides = [
                side.subset(_sample(side, rng))
                for side in _sides(store, extractor, layer, select, then, now)
            ]
            counts = [len(np.unique(side.images)) for side in sides]
            if min(counts) < 2:
                raise DataError(
                    f"drift of layer {layer}: {counts[0]} reference images and "
                    f"{counts[1]} new ones",
                    expected="two or more on either side",
                    remedy="choose another --since snapshot (`headwater store log`)",
                )
            before, after = (pooled(side) for side in sides)
            name = extractor.spec.id
            found = compare_groups(
                before, after, name, layer, rng, dimensions=dimensions, splits=splits
            )
            results.append(found)
    return results


def _sides(
    store: FeatureStore, extractor: Extractor, layer: str, select: Selection, then: str, now: str
) -> tuple[FeatureReader, FeatureReader]:
    """Return readers of the reference and of the new images."""
    layers = (LayerSpec.parse(layer),)
    later = store.reader(extractor.spec, layers, select, now, missing="skip")
    table, was = store.table(now), store.table(then)
    old = np.isin(later.images, np.flatnonzero(was.removed_at == 0))
    new, reference = later.subset(np.flatnonzero(~old)), later.subset(np.flatnonzero(old))
    before = store.extractor(extractor.spec, then)
    if before is not None and before.has(layer):
        earlier = store.reader(extractor.spec, layers, select, then, missing="skip")
        other = np.flatnonzero((table.removed_at == 0) & ~select.mask(table))
        earlier = earlier.subset(np.flatnonzero(~np.isin(earlier.images, other)))
        # A layer that came later is filled in only for the images that were still there.
        reference = max(earlier, reference, key=len)
    return reference, new


def _sample(reader: FeatureReader, rng: np.random.Generator) -> np.ndarray:
    """Return the numbers of the rows of at most 20,000 images, ascending."""
    images = np.unique(reader.images)
    if len(images) <= 20_000:
        return np.arange(len(reader))
    return np.flatnonzero(np.isin(reader.images, rng.choice(images, 20_000, replace=False)))


def pooled(reader: FeatureReader) -> np.ndarray:
    """Return the maps of a one-layer reader averaged over pixels, float64 ``[images, channels]``.

    In the reader's order; of an image seen in tiles the mean over these.
    """
    (layer,) = reader.layers
    streamed = FeatureReader(reader.excerpts, reader.keep, memory=0)
    means = [b[layer].mean((2, 3), dtype=torch.float64).numpy() for b in streamed.batches(64)]
    rows = np.concatenate(means)
    _, first, image, tiles = np.unique(
        reader.images, return_index=True, return_inverse=True, return_counts=True
    )
    if (tiles == 1).all():
        return rows
    sums = np.zeros((len(first), rows.shape[1]))
    np.add.at(sums, image, rows)
    return (sums / tiles[:, None])[np.argsort(first)]


def compare_groups(
    reference: np.ndarray,
    new: np.ndarray,
    extractor: str,
    layer: str,
    rng: np.random.Generator,
    *,
    dimensions: int = 64,
    splits: int = 199,
) -> LayerDrift:
    """Compare two groups of vectors ``[n, channels]``."""
    channels = reference.shape[1]
    if channels > dimensions:
        matrix = rng.standard_normal((channels, dimensions)) / np.sqrt(dimensions)
        reference, new = reference @ matrix, new @ matrix
    everything = np.concatenate([reference, new])
    n = len(reference)
    scale = max(float(reference.var(0, ddof=1).sum()), 1e-30)
    mean, frechet = _distances(reference, new, scale)
    chance = []
    for _ in range(splits):
        mixed = everything[rng.permutation(len(everything))]
        chance.append(_distances(mixed[:n], mixed[n:], scale))
    by_chance = np.array(chance).reshape(-1, 2)
    near_reference, near_new = _nearest(reference, None), _nearest(new, reference)
    middle = max(float(np.median(near_reference)), 1e-30)
    return LayerDrift(
        extractor=extractor,
        layer=layer,
        reference=n,
        new=len(new),
        channels=channels,
        dimensions=reference.shape[1],
        mean_distance=mean,
        frechet=frechet,
        mean_chance=float(np.quantile(by_chance[:, 0], 0.95)),
        frechet_chance=float(np.quantile(by_chance[:, 1], 0.95)),
        mean_p=float((1 + (by_chance[:, 0] >= mean).sum()) / (1 + splits)),
        frechet_p=float((1 + (by_chance[:, 1] >= frechet).sum()) / (1 + splits)),
        nearest_reference=near_reference,
        nearest_new=near_new,
        nearest_ratio=float(np.median(near_new)) / middle,
        nearest_ks=_ks(near_reference, near_new),
    )


def _distances(a: np.ndarray, b: np.ndarray, scale: float) -> tuple[float, float]:
    """Return the distance of means and the Fréchet distance, relative to `scale`."""
    gap = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    one, two = np.atleast_2d(one), np.atleast_2d(two)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    # tr (C1 C2)^½ = tr (C1^½ C2 C1^½)^½, and the latter matrix is symmetric.
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ two @ root), 0, None)).sum()
    spread = float(np.trace(one) + np.trace(two) - 2 * cross)
    return float(np.sqrt(gap / scale)), (gap + max(0.0, spread)) / scale


def _nearest(points: np.ndarray, others: np.ndarray | None) -> np.ndarray:
    """Return each point's distance to the nearest of `others`, or of the other points."""
    a = torch.from_numpy(np.ascontiguousarray(points))
    b = a if others is None else torch.from_numpy(np.ascontiguousarray(others))
    found = []
    for start in range(0, len(a), 512):
        d = torch.cdist(a[start : start + 512], b)
        if others is None:
            rows = torch.arange(len(d))
            d[rows, rows + start] = torch.inf
        found.append(d.amin(1))
    return torch.cat(found).float().numpy()


def _ks(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference of two empirical distribution functions."""
    both = np.sort(np.concatenate([a, b]))
    one = np.searchsorted(np.sort(a), both, side="right") / len(a)
    two = np.searchsorted(np.sort(b), both, side="right") / len(b)
    return float(np.abs(one - two).max())
