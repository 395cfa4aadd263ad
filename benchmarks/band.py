"""Whether F²R is better over a band of (alpha, beta) than at (1, 1), where it trains no net.

    python -m benchmarks.band --data ../shared/data [--cache DIR] [--out results.jsonl] \
        [--sets glassfiber_layup_512,magnetic_tile] [--backbones tf_efficientnet_lite0,resnet18] \
        [--seeds 0,1,2]
    python -m benchmarks.band --table results.jsonl

`f2r`, preset ``small`` and ``select: band``, learns from the normals without one block of
neighbours (the one with the seed's number), whose images scale `pooled`, as `benchmarks.scoring`
does; of ``magnetic_tile`` from the same seeded part. Both ways score the same test images with the
same gallery and the same net: the band, and (1, 1) alone, which needs no net. A row is a set,
backbone, seed and way.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from benchmarks import verdicts
from benchmarks.ensembles import masks_of
from benchmarks.machine import machine, tell
from benchmarks.scoring import OPTIONS, PART, by_rules, maps_of, split
from benchmarks.sweep import mean_and_spread, options, parsed
from heads.catalogue import get_head, make_config
from heads.contract import NullProgress
from heads.gallery.f2r import F2R
from heads.judging.metrics import auroc, evaluate
from heads.training.out_of_fold import score_source

#: Rules of image scores that are told.
SHOWN = ("max", "top", "pooled")
FIGURES = {
    **{f"image_auroc_{rule}": f"image AUROC, `{rule}`" for rule in SHOWN},
    "pixel_auroc": "pixel AUROC", "aupro": "AUPRO",
}  # fmt: skip


def measure(
    images: verdicts.Images, masks: Sequence[Any], seed: int, side: int
) -> Iterable[dict[str, Any]]:
    """Yield a row a way."""
    normals = images.source("f2r", np.flatnonzero(images.train).tolist())
    test = images.source("f2r", np.flatnonzero(~images.train).tolist())
    truth = images.defective[~images.train]
    left, held = split(normals, seed, 0)
    told = {"seed": seed, "select": "band", "score": "max"}
    config = make_config("f2r", told, "small")
    head = cast("F2R", get_head("f2r")(config, normals.shapes, (side, side)))
    head.fit(normals.subset(left), normals.subset([]), OPTIONS, NullProgress())
    head.eval()
    for way in ("band", "(1, 1)"):
        if way != "band":
            head.prefer(1.0, 1.0)
        published, heat = score_source(head, test)
        maps = maps_of(head, test), maps_of(head, normals.subset(held))
        found = by_rules(*maps, published, head.config.top_share)
        figures = evaluate(published, heat, truth, masks)
        yield {
            "head": "f2r", "seed": seed, "way": way, "learnt": len(left), "test": len(truth),
            **{f"image_auroc_{rule}": round(auroc(found[rule], truth), 4) for rule in SHOWN},
            **{k: round(float(figures[k]), 4) for k in ("pixel_auroc", "aupro")},
        }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: means over seeds, and by how much the band is above."""
    lines = [
        "| set | backbone | way | seeds | " + " | ".join(FIGURES.values()) + " |",
        "|---|---|---|---:|" + "---:|" * len(FIGURES),
    ]
    above: dict[str, list[float]] = {figure: [] for figure in FIGURES}
    for place in sorted({(r["set"], r["backbone"]) for r in rows}):
        by_way: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if (row["set"], row["backbone"]) == place:
                by_way.setdefault(row["way"], []).append(row)
        for way, found in by_way.items():
            told = " | ".join(mean_and_spread(found, figure) for figure in FIGURES)
            lines.append(f"| `{place[0]}` | {place[1]} | {way} | {len(found)} | {told} |")
        for figure, each in above.items():
            means = [statistics.mean(r[figure] for r in found) for found in by_way.values()]
            each.append(means[0] - means[1])
    for what, how in (("mean", statistics.mean), ("at worst", min)):
        told = " | ".join(f"{how(each):+.3f}" for each in above.values())
        lines.append(f"| the band above (1, 1), {what} | | | | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a set, backbone, seed and way."""
    parser = options(
        __doc__, "glassfiber_layup_512,magnetic_tile", "tf_efficientnet_lite0,resnet18", "f2r"
    )
    parser.add_argument("--cache", type=verdicts.Path, help="keep features between calls")
    a = parsed(parser, table)
    about, data = machine(), a.data.resolve()
    for seed in map(int, a.seeds.split(",")):
        for backbone in a.backbones.split(","):
            side = 224 if backbone.startswith("vit") else 256
            for image_set in a.sets.split(","):
                where = {"set": image_set, "backbone": backbone}
                images = verdicts.load_images(
                    data, image_set, backbone, ["f2r"], a.cache, (side, side), PART
                )
                for row in measure(images, masks_of(data, image_set, backbone, side), seed, side):
                    tell({**where, **row, **about}, a.out)


if __name__ == "__main__":
    main()
