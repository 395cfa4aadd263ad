"""How F²R picks alpha and beta without labels: held-out normals against synthetic defects.

The paper leaves the choice open and takes the best point on the test labels. Here a point is judged
by how well it tells synthetic defects (`heads.synthetic`) from the held-out normal maps that they
were made of. What a defect leaves alone scores as in its normal, so only the altered positions are
computed beside a draw of the normal ones, and the latents once for all points.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from heads import metrics
from heads.base import FeatureSource
from heads.f2r_grid import VALUES, GridResult
from heads.neighbours import Gallery
from heads.synthetic import KINDS, synthetic_defects

if TYPE_CHECKING:
    from heads.f2r import F2R
    from heads.trainer import Progress

Point = tuple[float, float]
#: Gallery members, held-out images and positions of each that decide.
PICK_GALLERY, PICK_IMAGES, PICK_POSITIONS = 500, 8, 256


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
    """

    def __init__(self, head: F2R, normal: Tensor, seed: int) -> None:
        self.head = head
        made = synthetic_defects(normal, seed)
        count, channels = len(normal), normal.shape[1]
        generator = torch.Generator().manual_seed(seed)
        vectors = made.maps.flatten(2).transpose(1, 2)
        places = vectors.shape[1]
        drawn = [torch.randperm(places, generator=generator)[:PICK_POSITIONS] for _ in normal]
        parts = [head.members[:PICK_GALLERY].cpu()]
        parts += [vectors[i, rows] for i, rows in enumerate(drawn)]
        #: Per defect: its normal, which drawn positions it leaves alone, how many it alters.
        self.defects: list[tuple[int, Tensor, int]] = []
        for k, mask in enumerate(made.masks[count:].flatten(1)):
            parts.append(vectors[count + k, mask])
            self.defects.append((k // len(KINDS), ~mask[drawn[k // len(KINDS)]], int(mask.sum())))
        self.sizes = [len(p) for p in parts]
        self.normals = count
        self.latents = head.latents(torch.cat(parts))
        self.gallery = Gallery(channels).to(self.latents.device)

    def figures(self, alpha: float, beta: float) -> dict[str, float]:
        """Return the point's ``image_auroc`` and, over positions, ``pixel_auroc``."""
        turned = self.head.reversed_latents(self.latents, alpha, beta)
        members = self.sizes[0]
        self.gallery.set(turned[:members])
        far = self.gallery.nearest(turned[members:])[0].cpu().split(self.sizes[1:])
        normal, altered = far[: self.normals], far[self.normals :]
        scores = [d.max() for d in normal]
        for (image, kept, _), own in zip(self.defects, altered, strict=True):
            scores.append(torch.cat([own, normal[image][kept]]).max())
        labels = np.arange(len(scores)) >= self.normals
        pixels = torch.cat([*normal, *altered]).numpy()
        defective = np.arange(len(pixels)) >= sum(len(d) for d in normal)
        return {
            "alpha": alpha,
            "beta": beta,
            "image_auroc": metrics.auroc(torch.stack(scores).numpy(), labels),
            "pixel_auroc": metrics.auroc(pixels, defective),
        }


def select_synthetic(
    head: F2R,
    held_out: FeatureSource,
    seed: int,
    progress: Progress,
    asked: tuple[float | None, float | None] = (None, None),
) -> Point:
    """Return the point that tells held-out normals from synthetic defects best; no label is used.

    Parameters
    ----------
    head
        Trained, with its members.
    held_out
        Normal images that it was not trained on; with none nothing can be told: (1, 1).
    seed
        Decides the defects.
    progress
        Told of each point.
    asked
        Alpha and beta where they are given; only the other is looked for.
    """
    if not len(held_out):
        return head.given(1.0)
    # Every third value and (1, 1) first, then the best point's neighbours: 34 points, not 169.
    alphas, betas = (VALUES[::3] if v is None else (float(v),) for v in asked)
    coarse = [(a, b) for a in alphas for b in betas] + [head.given(1.0)]
    plain = [i for i, view in enumerate(held_out.views) if view == 0][:PICK_IMAGES]
    normal = torch.cat([held_out.read(i, i + 1)[head.layer] for i in plain]).cpu()
    trial = _Trial(head, normal, seed)
    table: dict[Point, dict[str, float]] = {}

    def tried(points: Iterable[Point]) -> Point:
        for point in points:
            if point not in table:
                table[point] = trial.figures(*point)
                total = len(coarse) + 8
                progress.step(len(table), total, "alpha {:g}, beta {:g}".format(*point))
        return GridResult(tuple(table.values()), "synthetic").best()

    alpha, beta = tried(coarse)
    alphas, betas = (VALUES if v is None else (float(v),) for v in asked)
    return tried((a, b) for a in alphas for b in betas if max(abs(a - alpha), abs(b - beta)) < 0.15)
