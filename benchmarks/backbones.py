"""Backbones side by side on the real sets of ../shared/data: what each is worth, and what it costs.

    python -m benchmarks.backbones --data ../shared/data [--sets mvtec_leather_sample,...] \
        [--backbones tf_efficientnet_lite0,resnet18] [--heads patchcore,padim] [--seeds 0,1,2] \
        [--most 240] [--out results.jsonl]
    python -m benchmarks.backbones --table results.jsonl

Features are computed once a set and backbone; each head then learns all normal training images and
scores the test images, with exact metrics, preset ``small``. Of a set with more images than
``--most`` a seeded subset is taken, of normal training images, good and defective test images
alike. ``ms`` is the backbone's share alone: the fastest of a few passes of one batch, with the
threads that torch has here, so run it on a quiet machine (``--quick`` measures just that). ``MB``
is what the head's layers take in the store, float16, for a hundred images.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine, tell
from benchmarks.quality import BACKBONES
from benchmarks.sweep import mean_and_spread, options, parsed
from features.backbones.backbone import Backbone, load_backbone
from features.extract import Job, extract
from features.images.depth import Range
from features.images.masks import read_mask
from features.images.preprocess import mask_to_input
from features.images.records import ImageRecord
from features.images.scan import scan_mvtec
from heads.catalogue import get_head, make_config
from heads.contract import NullProgress, TrainOptions
from heads.judging.metrics import evaluate
from heads.training.sources import TensorSource
from headwater.errors import WeightsError
from headwater.spec import LayerSpec

SETS = "mvtec_leather_sample,glassfiber_layup_512,magnetic_tile"
NETS = (
    "tf_efficientnet_lite0,tf_efficientnet_lite1,tf_efficientnet_lite2,"
    "resnet18,mobilenetv2_100,vit_tiny_patch16_224"
)
FIGURES = ("image_auroc", "pixel_auroc", "aupro")
PASSES = 5


def load(name: str, data: Path) -> Backbone:
    """Load a net with the weights of ../shared/data, or of its package."""
    known = BACKBONES.get(name)
    if known is None:
        return load_backbone(name)
    return load_backbone(name, data / "weights" / known["file"], options=known.get("options"))


def some(records: Sequence[ImageRecord], most: int) -> list[ImageRecord]:
    """Return at most `most` images, with the same share of each part of the set."""
    if len(records) <= most:
        return list(records)
    parts: dict[tuple[str, bool], list[ImageRecord]] = {}
    for record in records:
        parts.setdefault((record.split, record.is_normal), []).append(record)
    chosen: list[ImageRecord] = []
    for part in parts.values():
        chosen += random.Random(0).sample(part, max(1, round(len(part) * most / len(records))))
    return chosen


def milliseconds(backbone: Backbone, size: int, layers: tuple[LayerSpec, ...]) -> float:
    """Return the fastest time an image, of a batch for every lane."""
    count = backbone.batch_size((size, size)) * torch.get_num_threads()
    batch = torch.zeros(count, 3, size, size)
    times = []
    for _ in range(PASSES + 1):
        began = time.perf_counter()
        backbone.maps(batch, layers)
        times.append(time.perf_counter() - began)
    return min(times[1:]) / count * 1000


def measure(
    records: list[ImageRecord], backbone: Backbone, size: int, heads: list[str], seeds: list[int],
    value_range: Range | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row a head and seed."""
    spec = replace(backbone.default_spec(size, precision="float32"), value_range=value_range)
    configs = {name: make_config(name, {}, "small") for name in heads}
    layers = {
        name: get_head(name).needs(config, backbone.info, (size, size)).layers
        for name, config in configs.items()
    }
    every = tuple(sorted({layer for own in layers.values() for layer in own}))
    backbone.check_weights(every)
    jobs = [Job(r.sha256, r.path) for r in records]
    blocks = list(extract(jobs, backbone, spec, every))
    assert not any(b.failed for b in blocks)
    maps = {
        layer.name: torch.cat([torch.from_numpy(b.maps[layer.name]) for b in blocks])
        for layer in every
    }
    train = torch.tensor([r.split == "train" for r in records])
    test = [r for r in records if r.split == "test"]
    labels = [not r.is_normal for r in test]
    masks = [
        mask_to_input(read_mask(r.mask), spec) if r.mask
        else np.zeros((size, size), bool) if r.is_normal else None
        for r in test
    ]  # fmt: skip
    ms, rows = milliseconds(backbone, size, every), []
    for name in heads:
        own = {layer.name: maps[layer.name] for layer in layers[name]}
        shapes = {k: tuple(v.shape[1:]) for k, v in own.items()}
        source = TensorSource({k: v[train] for k, v in own.items()})
        # padim has no choice to draw but its channels, which the seed decides, too
        for seed in seeds if name == "patchcore" else seeds[:1]:
            config = make_config(name, {"seed": seed}, "small")
            head = get_head(name)(config, shapes, (size, size))
            head.fit(source, source.subset([]), TrainOptions(device="cpu"), NullProgress())
            scores, found = [], []
            for i in (~train).nonzero().flatten().tolist():
                given = head.score({k: v[i : i + 1].float() for k, v in own.items()})
                scores.append(float(given.image[0]))
                found.append(given.maps[0].numpy())
            figures = evaluate(np.array(scores), np.stack(found), labels, masks)
            rows.append(
                {
                    "head": name, "seed": seed, "size": size, "train": int(train.sum()),
                    "test": len(test), "backbone_ms": round(ms, 1),
                    "mb_per_100": round(sum(np.prod(s) for s in shapes.values()) * 2e-4, 1),
                    **{k: round(float(figures[k]), 4) for k in FIGURES},
                }
            )  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: means over seeds, their spread where there are several."""
    lines = [
        "| set | head | backbone | px | image AUROC | pixel AUROC | AUPRO | MB, 100 images |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["set"], row["head"], row["backbone"]), []).append(row)
    for (image_set, head, backbone), found in sorted(cells.items(), key=lambda c: c[0][:2]):
        written = [mean_and_spread(found, figure) for figure in FIGURES]
        size, mb = found[0]["size"], found[0]["mb_per_100"]
        lines.append(
            f"| `{image_set}` | `{head}` | {backbone} | {size} | {' | '.join(written)} | {mb} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a set, backbone, head and seed."""
    parser = options(__doc__, SETS, NETS, "patchcore,padim")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--most", type=int, default=240, help="images taken of a set")
    parser.add_argument("--quick", action="store_true", help="milliseconds of the backbones alone")
    a = parsed(parser, table)
    about, heads = machine(), a.heads.split(",")
    for image_set in a.sets.split(",")[: 1 if a.quick else None]:
        folder = a.data.resolve() / "images" / image_set
        records = [] if a.quick else some(scan_mvtec(folder).records, a.most)
        for name in a.backbones.split(","):
            try:
                backbone = load(name, a.data.resolve())
            except WeightsError:
                if not a.quick:
                    raise
                backbone = load_backbone(name, untrained_seed=0)  # speed asks for no weights
            size = 224 if name.startswith("vit") else a.size
            if a.quick:
                config = make_config("patchcore", {}, "small")
                needs = get_head("patchcore").needs(config, backbone.info, (size, size))
                ms = round(milliseconds(backbone, size, needs.layers), 1)
                tell({"backbone": name, "size": size, "backbone_ms": ms, **about}, a.out)
                continue
            for row in measure(records, backbone, size, heads, list(map(int, a.seeds.split(",")))):
                tell({"set": image_set, "backbone": name, **row, **about}, a.out)


if __name__ == "__main__":
    main()
