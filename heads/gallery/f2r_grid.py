"""The grid over F²R's alpha and beta (section IV.B): table, heat maps, correlations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from heads.contract import Batch, FeatureSource, Progress
from heads.gallery.f2r import F2R
from heads.gallery.f2r_select import VALUES
from heads.gallery.gallery_head import vectors_of
from heads.judging import metrics
from heads.looking import LOOKED, looking
from heads.training.sources import to_device
from headwater.errors import DataError

POINTS = tuple((a, b) for a in VALUES for b in VALUES)
#: Latents of the scored images are kept from point to point where they are no larger than this.
KEPT_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Correlation:
    """A row of the paper's Table 5: Spearman's (partial) correlation and its p-value."""

    rho: float
    p_value: float


def partial_spearman(x: ArrayLike, y: ArrayLike, given: ArrayLike | None = None) -> Correlation:
    """Return Spearman's correlation of x and y, with the ranks of `given` held fixed.

    The p-value is two-sided, from Student's t with n − 2 (n − 3) degrees of freedom. A constant
    has no correlation: 0 with p-value 1.
    """
    ranks = [stats.rankdata(np.asarray(v)) for v in (x, y)]
    freedom = len(ranks[0]) - 2
    if given is not None:
        third = stats.rankdata(np.asarray(given))
        design = np.stack((np.ones_like(third), third), 1)
        ranks = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks]
        freedom -= 1
    a, b = (r - r.mean() for r in ranks)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    if scale < 1e-9 * len(a) or freedom < 1:
        return Correlation(0.0, 1.0)
    rho = float(np.clip(a @ b / scale, -1, 1))
    if abs(rho) >= 1:
        return Correlation(rho, 0.0)
    t = rho * math.sqrt(freedom / (1 - rho * rho))
    return Correlation(rho, float(2 * stats.t.sf(abs(t), freedom)))


@dataclass(frozen=True)
class GridResult:
    """What `grid` found.

    Parameters
    ----------
    table
        Per point ``alpha, beta, image_auroc, pixel_auroc`` (and ``aupro``).
    """

    table: tuple[dict[str, float], ...]
    #: The test labels, as in the paper. To be shown wherever a chosen point is.
    chosen_on: ClassVar[str] = "oracle"

    def best(self, metric: str) -> tuple[float, float]:
        """Return the point with the largest `metric`.

        Of equals the one nearest to (1, 1), where nothing is altered.
        """

        def rank(row: dict[str, float]) -> tuple[float, float]:
            away = abs(row["alpha"] - 1) + abs(row["beta"] - 1)
            return round(row[metric], 6), -away

        row = max(self.table, key=rank)
        return row["alpha"], row["beta"]

    def heat_map(self, metric: str) -> NDArray[np.float64]:
        """Return ``[alphas, betas]`` of a metric, both ascending; NaN where a point is missing."""
        alphas = sorted({row["alpha"] for row in self.table})
        betas = sorted({row["beta"] for row in self.table})
        out = np.full((len(alphas), len(betas)), np.nan)
        for row in self.table:
            value = row.get(metric, math.nan)
            out[alphas.index(row["alpha"]), betas.index(row["beta"])] = value
        return out

    def correlations(self, metric: str = "pixel_auroc") -> dict[str, Correlation]:
        """Return Table 5's row: alpha and beta, each with the other held fixed, and −|α − β|."""
        alpha, beta, value = (
            np.array([row[k] for row in self.table]) for k in ("alpha", "beta", metric)
        )
        return {
            "alpha": partial_spearman(alpha, value, beta),
            "beta": partial_spearman(beta, value, alpha),
            "-|alpha-beta|": partial_spearman(-np.abs(np.round(alpha - beta, 6)), value),
        }


def grid(
    head: F2R,
    source: FeatureSource,
    labels: Sequence[bool] | NDArray[np.bool_],
    masks: Sequence[NDArray[np.bool_] | None],
    *,
    points: Sequence[tuple[float, float]] = POINTS,
    regallery: Callable[[float, float], Tensor] | None = None,
    progress: Progress | None = None,
    done: Sequence[dict[str, float]] = (),
    told: Callable[[dict[str, float]], None] | None = None,
) -> GridResult:
    """Score a labelled source at every point, by the largest distance (section IV.B).

    Parameters
    ----------
    head
        A fitted head; its alpha, beta and gallery are put back afterwards.
    source, labels, masks
        What is scored: real test images make the result an ``oracle``; masks have the size of the
        head's maps, None where unknown.
    points
        ``(alpha, beta)`` pairs.
    regallery
        ``(alpha, beta) -> vectors [m, C]`` (not reversed): the exact protocol, a coreset chosen
        anew per point. By default the head's members are re-reversed.
    progress, told
        Told of each point; `told` gets its row, to be logged and to resume from.
    done
        Rows of an earlier, broken run: their points are not scored again.

    Raises
    ------
    DataError
        Where the source does not have both normal and anomalous images.
    """
    truth = np.asarray(labels, dtype=bool)
    if truth.all() or not truth.any():
        raise DataError("a grid over images of one kind", expected="normal and anomalous images")
    known = {(row["alpha"], row["beta"]): row for row in done}
    before, members, banded = head.preference.tolist(), head.members, head.banded
    table, latents = [], _Latents(head, source)
    try:
        for number, (alpha, beta) in enumerate(points, 1):
            row = known.get((alpha, beta))
            if row is None:
                if regallery is not None:
                    head.members = regallery(alpha, beta).to(members)
                head.prefer(alpha, beta)
                row = {"alpha": alpha, "beta": beta, **_figures(head, latents, truth, masks)}
                if told is not None:
                    told(row)
            table.append(row)
            if progress is not None:
                progress.step(number, len(points), f"alpha {alpha:g}, beta {beta:g}")
    finally:
        head.members = members
        head.prefer(*before)
        head.banded = banded
    return GridResult(tuple(table))


class _Latents:
    """The latents of a source's images, worked out once where they fit into `KEPT_BYTES`.

    A point's scores need ``T⁻¹`` of the scaled latents: with them at hand it costs half.
    """

    def __init__(self, head: F2R, source: FeatureSource) -> None:
        self.head, self.source = head, source
        channels, height, width = source.shapes[head.layer]
        self.keep = 4 * len(source) * channels * height * width <= KEPT_BYTES
        self.kept: list[tuple[Tensor, Batch]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Batch]]:
        """Yield each image's latents, and what of it is looked at as a batch of one."""
        if self.kept:
            yield from self.kept
            return
        known: list[tuple[Tensor, Batch]] = []
        for batch in self.source.batches(16):
            self.head.check_ready(batch)
            for i, one in enumerate(batch[self.head.layer]):
                where = {LOOKED: batch[LOOKED][i : i + 1]} if LOOKED in batch else {}
                found = self.head.latents(vectors_of(one)), where
                if self.keep:
                    known.append(found)
                yield found
        self.kept = known


def _figures(
    head: F2R,
    latents: _Latents,
    labels: NDArray[np.bool_],
    masks: Sequence[NDArray[np.bool_] | None],
) -> dict[str, float]:
    images, maps = [], []
    alpha, beta = head.preference.tolist()
    with torch.no_grad():
        for z, where in latents:
            with looking(to_device(where, z.device)):
                scores = head.compared(head.reversed_latents(z, alpha, beta), published=True)
            images.append(scores.image[0].cpu())
            maps.append(scores.maps[0].cpu().numpy())
            if LOOKED in where:
                maps[-1] = np.ma.masked_array(maps[-1], ~where[LOOKED][0].numpy())
    found = metrics.evaluate(torch.stack(images).numpy(), maps, labels, masks)
    return {k: found[k] for k in ("image_auroc", "pixel_auroc", "aupro") if k in found}
