"""The grid over F²R's alpha and beta on real images against a plain loop: seconds and values.

    python -m benchmarks.grid --data ../shared/data [--cache DIR] [--points 13] [--plain 3] \
        [--sets glassfiber_layup_512] [--backbones tf_efficientnet_lite0] [--out results.jsonl]

One fitted `f2r` (preset ``small``) scores the test images at points of the 169, drawn by the seed.
The plain loop is what the paper's procedure says, spelt out: at each point the gallery and every
image go through the net and back again, each image's positions are compared with the whole gallery,
and scikit-learn and a curve a defect give the figures (`benchmarks.metrics`). Both in one process,
one after the other, on the same fitted head; seconds are the process's own CPU seconds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from benchmarks import verdicts
from benchmarks.ensembles import masks_of
from benchmarks.machine import machine, tell
from benchmarks.metrics import plain as plain_figures
from benchmarks.scoring import OPTIONS, PART
from benchmarks.sweep import options, parsed
from heads.catalogue import get_head, make_config
from heads.contract import NullProgress
from heads.gallery.f2r import F2R
from heads.gallery.f2r_grid import POINTS, grid
from heads.gallery.gallery_head import vectors_of
from heads.training.sources import TensorSource

FIGURES = ("image_auroc", "pixel_auroc", "aupro")


@torch.no_grad()
def plain(
    head: F2R, source: TensorSource, labels: np.ndarray, masks: Sequence[Any], at: Sequence[float]
) -> dict[str, float]:
    """Return a point's figures, spelt out."""
    half = head.channels // 2
    scale = torch.tensor([at[0]] * half + [at[1]] * (head.channels - half))

    def reversed_(vectors: torch.Tensor) -> torch.Tensor:
        return head.net(head.net(vectors.float())[0] * scale, rev=True)[0]

    gallery, scores, maps = reversed_(head.members), [], []
    for row in range(len(source)):
        one = source.read(row, row + 1)[head.layer][0]
        far = torch.cdist(reversed_(vectors_of(one)), gallery).min(1).values
        scores.append(float(far.max()))
        maps.append(head.heat([far.reshape(1, *head.feature_size)])[0].numpy())
    return plain_figures((np.array(scores), np.stack(maps), labels, np.stack(masks)))


def measure(
    images: verdicts.Images, masks: Sequence[Any], seed: int, side: int, points: int, few: int
) -> dict[str, Any]:
    """Return the row of a set, backbone and seed."""
    normals = images.source("f2r", np.flatnonzero(images.train).tolist())
    test = images.source("f2r", np.flatnonzero(~images.train).tolist())
    truth = images.defective[~images.train]
    config = make_config("f2r", {"seed": seed, "factorize": "always", "score": "max"}, "small")
    head = cast("F2R", get_head("f2r")(config, normals.shapes, (side, side)))
    head.fit(normals, normals.subset([]), OPTIONS, NullProgress())
    head.eval()
    drawn = random.Random(seed).sample(POINTS, points)
    began = time.process_time()
    ours = grid(head, test, truth, masks, points=drawn)
    middle = time.process_time()
    theirs = [plain(head, test, truth, masks, point) for point in drawn[:few]]
    ended = time.process_time()
    apart = max(abs(a[k] - b[k]) for a, b in zip(ours.table, theirs, strict=False) for k in FIGURES)
    own, other = (middle - began) / points, (ended - middle) / few
    return {
        "head": "f2r", "seed": seed, "test": len(truth), "gallery": len(head.members),
        "channels": head.channels, "points": points, "plain_points": few,
        "cpu_s_a_point": round(own, 3), "plain_cpu_s_a_point": round(other, 3),
        "ratio": round(other / own, 1), "apart": apart,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| set, backbone | test images | gallery | CPU s a point, ours | plain | ratio | "
        "figures apart by at most |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| `{r['set']}`, {r['backbone']} | {r['test']} | {r['gallery']} | "
            f"{r['cpu_s_a_point']:.2f} | {r['plain_cpu_s_a_point']:.1f} | {r['ratio']:.1f} | "
            f"{r['apart']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a set, backbone and seed."""
    parser = options(__doc__ or "", "glassfiber_layup_512", "tf_efficientnet_lite0", "f2r")
    parser.set_defaults(seeds="0")
    parser.add_argument("--points", type=int, default=13, help="of the 169, for ours")
    parser.add_argument("--plain", type=int, default=3, help="of these, for the plain loop")
    parser.add_argument("--cache", type=verdicts.Path, help="keep features between calls")
    a = parsed(parser, table)
    about, data = machine(), a.data.resolve()
    for image_set in a.sets.split(","):
        for backbone in a.backbones.split(","):
            side = 224 if backbone.startswith("vit") else 256
            images = verdicts.load_images(
                data, image_set, backbone, ["f2r"], a.cache, (side, side), PART
            )
            masks = masks_of(data, image_set, backbone, side)
            for seed in map(int, a.seeds.split(",")):
                row = measure(images, masks, seed, side, a.points, a.plain)
                tell({"set": image_set, "backbone": backbone, **row, **about}, a.out)


if __name__ == "__main__":
    main()
