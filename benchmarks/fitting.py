"""Squash, fit and crop side by side on a real set whose images have other aspects than the net.

    python -m benchmarks.fitting --data ../shared/data [--sets magnetic_tile] [--seeds 0,1,2]
        [--backbones tf_efficientnet_lite0,resnet18] [--heads patchcore,padim] [--most 300]
        [--out results.jsonl]
    python -m benchmarks.fitting --table results.jsonl

Each is a run of the whole job through `headwater.open`, in a home of its own, so that padding and
what is cropped away count as they do for a user. A seed draws the images (`--most` of them, normal
for training, good and defective to test alike) and is the head's. ``lost`` are the defective test
images of which a crop leaves no defect; they are in the image figures all the same.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import headwater
from benchmarks.backbones import FIGURES
from benchmarks.machine import machine, tell
from benchmarks.quality import BACKBONES
from benchmarks.sweep import mean_and_spread, options, parsed
from features.images.masks import read_mask
from features.images.preprocess import mask_to_input
from features.images.scan import scan_mvtec
from headwater.spec import ExtractorSpec

WAYS = ("squash", "fit", "crop")


def subset(data: Path, image_set: str, most: int, seed: int, target: Path) -> None:
    """Make a folder with a seeded share of a set."""
    parts: dict[tuple[str, str], list[Any]] = {}
    folder = data / "images" / image_set
    records = scan_mvtec(folder).records
    for record in records:
        parts.setdefault((record.split, record.kind), []).append(record)
    for (split, kind), found in sorted(parts.items()):
        count = min(len(found), max(1, round(len(found) * most / len(records))))
        for record in random.Random(seed).sample(found, count):
            path = target / split / kind / record.path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.path, path)
            if record.mask:
                mask = target / "ground_truth" / kind / record.mask.name
                mask.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(record.mask, mask)


def lost(images: Path, way: str, size: int) -> int:
    """Return the number of defective test images whose whole mask is not seen."""
    spec = ExtractorSpec("none", "none", resize=(size, size), fitting=way)  # type: ignore[arg-type]
    masks = (r.mask for r in scan_mvtec(images).records if r.mask)
    return sum(not mask_to_input(np.asarray(read_mask(m)), spec).any() for m in masks)


def measure(
    data: Path, image_set: str, net: str, heads: list[str], seed: int, most: int, size: int
) -> list[dict[str, Any]]:
    """Return a row a way and head."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        subset(data, image_set, most, seed, images)
        weights = data / "weights" / BACKBONES[net]["file"] if net in BACKBONES else None
        for way in WAYS:
            home = headwater.open(Path(place) / way)
            home.run(
                "s", images=images, heads=heads, size=size, resize=way, seed=seed,
                backbone=net, weights=weights, preset="small", precision="float32",
            )  # fmt: skip
            for model in home.leaderboard("s").to_dict("records"):
                figures = {name: round(float(model[name]), 4) for name in FIGURES}
                about = {"resize": way, "head": model["head"], "seed": seed, "size": size}
                rows.append({**about, **figures, "lost": lost(images, way, size)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: means over seeds and their spread."""
    lines = [
        "| set | head | backbone | resize | image AUROC | pixel AUROC | AUPRO | lost |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    cells: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        named = (row["set"], row["head"], row["backbone"], row["resize"])
        cells.setdefault(named, []).append(row)
    for named, found in cells.items():
        written = [mean_and_spread(found, figure) for figure in FIGURES]
        gone = statistics.mean(row["lost"] for row in found)
        lines.append(
            f"| {' | '.join(f'`{n}`' for n in named)} | {' | '.join(written)} | {gone:g} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a way, head and seed."""
    parser = options(__doc__, "magnetic_tile", "tf_efficientnet_lite0,resnet18", "patchcore,padim")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--most", type=int, default=300, help="images taken of a set")
    a = parsed(parser, table)
    about = machine()
    for image_set in a.sets.split(","):
        for net in a.backbones.split(","):
            for seed in map(int, a.seeds.split(",")):
                data, heads = a.data.resolve(), a.heads.split(",")
                for row in measure(data, image_set, net, heads, seed, a.most, a.size):
                    tell({"set": image_set, "backbone": net, **row, **about}, a.out)


if __name__ == "__main__":
    main()
