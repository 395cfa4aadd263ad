"""How F²R picks alpha and beta without labels: held-out normals against synthetic defects.

The paper leaves the choice open and takes the best point on the test labels. Here a point is judged
by how well it tells synthetic defects (`synthetic`) from the held-out normal maps that they
were made of. What a defect leaves alone scores as in its normal, so only the altered positions are
computed beside a draw of the normal ones, and the latents once for all points.

Made defects are not the real ones, so the plain gallery, (1, 1), is left for a reason only. A kind
that no point tells from normal is left out, or chance alone would choose: normal content at another
place is in the gallery, and no scaling of its parts takes it out. A point that is worse than the
plain gallery on any kind that is left is not taken, and the gain must be worth the name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.contract import FeatureSource, Progress
from heads.gallery.neighbours import Gallery
from heads.gallery.synthetic import KINDS, synthetic_defects
from heads.judging import metrics
from heads.looking import LOOKED, positions

Point = tuple[float, float]
#: What alpha and beta are tried at (section IV.B).
VALUES = tuple(round(0.1 * k, 1) for k in range(13))
#: Gallery members, held-out images and positions of each that decide.
PICK_GALLERY, PICK_IMAGES, PICK_POSITIONS = 500, 8, 256
#: A kind whose figure (the mean of the AUROC over images and over positions) is nowhere as large is
#: left out; a point that loses more than `LOSS` to (1, 1) on one that is not, too; and points whose
#: figures differ by less than `GAIN` are as good as each other. The bar is high since made defects
#: are a poor guide: a gain of 0.04 on them has cost as much on real ones (docs/benchmarks.md).
TOLD, LOSS, GAIN = 0.65, 0.02, 0.05


class Factorizing(Protocol):
    """What is asked of the head: its layer, the gallery's members, its net both ways."""

    layer: str
    members: Tensor

    def latents(self, vectors: Tensor) -> Tensor:
        """Return z of ``[n, C]`` vectors."""

    def reversed_latents(self, z: Tensor, alpha: float, beta: float) -> Tensor:
        """Return the features of ``[n, C]`` latents at a point."""


class _Trial:
    """What is scored at each point: members, drawn normal positions, altered positions.

    Parameters
    ----------
    head
        With its members.
    normal
        ``[N, C, H, W]`` held-out normal maps.
    seed
        Decides defects and draws.
    where
        ``[N, H, W]`` bool, which positions are looked at; all where None.
    """

    def __init__(
        self, head: Factorizing, normal: Tensor, seed: int, where: Tensor | None = None
    ) -> None:
        self.head, self.normals = head, len(normal)
        made = synthetic_defects(normal, seed)
        generator = torch.Generator().manual_seed(seed)
        vectors = made.maps.flatten(2).transpose(1, 2)
        places = vectors.shape[1]
        seen = normal.new_ones(len(normal), places, dtype=torch.bool)
        seen = seen if where is None else where.flatten(1)
        orders = [torch.randperm(places, generator=generator) for _ in normal]
        drawn = [o[own[o]][:PICK_POSITIONS] for o, own in zip(orders, seen, strict=True)]
        looked_at = [head.members[:PICK_GALLERY].cpu()]
        looked_at += [vectors[i, rows] for i, rows in enumerate(drawn)]
        #: Per defect: its normal, its kind, and which drawn positions it leaves alone.
        self.defects: list[tuple[int, int, Tensor]] = []
        for k, mask in enumerate(made.masks[self.normals :].flatten(1)):
            image, kind = divmod(k, len(KINDS))
            if (mask & seen[image]).any():
                mask = mask & seen[image]
            looked_at.append(vectors[self.normals + k, mask])
            self.defects.append((image, kind, ~mask[drawn[image]]))
        self.sizes = [len(p) for p in looked_at]
        self.latents = head.latents(torch.cat(looked_at))
        self.gallery = Gallery(normal.shape[1]).to(self.latents.device)

    def distances(self, alpha: float, beta: float) -> tuple[list[Tensor], list[Tensor]]:
        """Return the nearest distances of each image's normal and of each defect's positions."""
        turned = self.head.reversed_latents(self.latents, alpha, beta)
        members = self.sizes[0]
        self.gallery.set(turned[:members])
        far = self.gallery.nearest(turned[members:])[0].cpu().split(self.sizes[1:])
        return list(far[: self.normals]), list(far[self.normals :])

    def judged(self, alpha: float, beta: float) -> NDArray[np.float64]:
        """Return per kind the mean of both, of all images and with each left out in turn.

        ``[kinds, 1 + N]``, of a single image ``[kinds, 1]``.
        """
        normal, altered = self.distances(alpha, beta)
        every = set(range(self.normals))
        groups = [every, *(every - {i} for i in range(self.normals) if self.normals > 1)]
        return np.stack([self.figures(normal, altered, g).mean(1) for g in groups], 1)

    def figures(
        self, normal: list[Tensor], altered: list[Tensor], images: Collection[int]
    ) -> NDArray[np.float64]:
        """Return each kind's AUROC over images and over positions, ``[kinds, 2]``."""
        plain = [normal[i] for i in images]
        found = []
        for number in range(len(KINDS)):
            scores, defective = [d.max() for d in plain], []
            for (image, kind, kept), own in zip(self.defects, altered, strict=True):
                if image in images and kind == number:
                    scores.append(torch.cat([own, normal[image][kept]]).max())
                    defective.append(own)
            labels = np.arange(len(scores)) >= len(plain)
            pixels = torch.cat([*plain, *defective]).numpy()
            bad = np.arange(len(pixels)) >= sum(len(d) for d in plain)
            by_image = metrics.auroc(torch.stack(scores).numpy(), labels)
            found.append((by_image, metrics.auroc(pixels, bad)))
        return np.array(found)


def not_worse(
    table: Mapping[Point, NDArray[np.float64]], plain: Point
) -> dict[Point, NDArray[np.float64]]:
    """Return the points that lose `LOSS` to `plain` on no kind of defect that any point tells.

    Parameters
    ----------
    table
        Per point what `_Trial.judged` returns, ``[kinds, 1 + N]``.
    plain
        The point to be compared with, one of the table's.

    Returns
    -------
    dict
        Per point the mean over these kinds, ``[1 + N]``; `plain` alone where nothing is told.
    """
    told = np.max([rows[:, 0] for rows in table.values()], 0) >= TOLD
    if not told.any():
        return {plain: table[plain].mean(0)}
    floor = table[plain][told, 0] - LOSS
    return {p: r[told].mean(0) for p, r in table.items() if (r[told, 0] >= floor).all()}


def least_altered(table: Mapping[Point, NDArray[np.float64]]) -> Point:
    """Return the point nearest to (1, 1) that is as good as the best, within an error or `GAIN`.

    Few held-out images tell points apart by chance, too, and (1, 1), the plain gallery, is right
    without any choice. The error is the jackknife's, of the difference to the best point.

    Parameters
    ----------
    table
        Per point its figure and, behind it, the figures with one image left out in turn.
    """

    def away(point: Point) -> float:
        return round(abs(point[0] - 1) + abs(point[1] - 1), 6)

    best = table[max(table, key=lambda p: (round(float(table[p][0]), 6), -away(p)))]

    def close(point: Point) -> bool:
        lost = best - table[point]
        count = len(lost) - 1
        error = np.sqrt((count - 1) * lost[1:].var()) if count else 0.0
        return bool(lost[0] <= max(error, GAIN) + 1e-6)

    return min((p for p in table if close(p)), key=lambda p: (away(p), -float(table[p][0])))


def select_synthetic(
    head: Factorizing,
    held_out: FeatureSource,
    seed: int,
    progress: Progress,
    asked: tuple[float | None, float | None] = (None, None),
) -> Point:
    """Return a point that tells held-out normals from synthetic defects; no label is used.

    Of the points that lose to (1, 1) on no kind of defect (`not_worse`), and of these the ones as
    good as the best, it is the one nearest to (1, 1) (`least_altered`).

    Parameters
    ----------
    head
        Trained, with its members.
    held_out
        Normal images that it was not trained on; with less than two nothing can be told: (1, 1).
    seed
        Decides the defects.
    progress
        Told of each point.
    asked
        Alpha and beta where they are given; only the other is looked for.
    """
    images = [i for i, view in enumerate(held_out.views) if view == 0][:PICK_IMAGES]
    alpha, beta = (1.0 if v is None else float(v) for v in asked)
    plain = (alpha, beta)
    if len(images) < 2:
        return plain
    # Every third value and (1, 1); where that is not enough the best point's neighbours, too.
    alphas, betas = (VALUES[::3] if v is None else (float(v),) for v in asked)
    # At (0, 0) all features are one, and nothing is ever found.
    coarse = [(a, b) for a in alphas for b in betas if a or b] + [plain]
    read = [held_out.read(i, i + 1) for i in images]
    normal = torch.cat([one[head.layer] for one in read]).cpu()
    where = None
    if LOOKED in read[0]:
        size = (normal.shape[2], normal.shape[3])
        where = torch.cat([positions(one[LOOKED], size) for one in read]).cpu()
    trial = _Trial(head, normal, seed, where)
    table: dict[Point, NDArray[np.float64]] = {}

    def tried(points: Iterable[Point]) -> dict[Point, NDArray[np.float64]]:
        for point in points:
            if point not in table:
                table[point] = trial.judged(*point)
                total = len(coarse) + 8
                text = "picking alpha, beta: {:g}, {:g}".format(*point)
                progress.step(len(table), total, text)
        return not_worse(table, plain)

    kept = tried(coarse)
    if least_altered(kept) == plain:
        return plain
    alpha, beta = max(kept, key=lambda p: float(kept[p][0]))
    alphas, betas = (VALUES if v is None else (float(v),) for v in asked)
    near = [(a, b) for a in alphas for b in betas if max(abs(a - alpha), abs(b - beta)) < 0.15]
    return least_altered(tried(p for p in near if any(p)))
