"""The pair heads on the printed circuits of ../shared/data: metrics, seconds, peak memory.

    python -m benchmarks.pairs --data ../shared/data --heads pair_diff,pair_flow \
        [--train 300] [--test 200] [--size 256] [--backbone resnet18] [--seeds 0,1,2] \
        [--set pair_diff.layers=0] [--cache scan.sqlite] [--out results.jsonl]

Features of both sides are computed once per image with the product's extraction and held in
memory. `pair_diff` learns from labelled training pairs (8:2 by hash). `pair_flow` learns from
crops of them in which nothing changed, and is tested on the test pairs cut into tiles of the same
size: all pixels of the test pairs at the same scale. `difference` is no head: the mean over layers
and channels of |F_c - F_h|, as a floor. Last epoch; nothing is chosen on the test pairs.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import machine
from benchmarks.quality import BACKBONES
from features.backbones import Backbone, load_backbone
from features.extract import Job, extract
from features.images import ImageRecord, read_image, read_mask
from features.pair_crops import cut_normal_pairs
from features.pairs import ImageSource, PairMasks, PairRecord, scan_pairs
from features.preprocess import mask_to_input, preprocess
from heads.base import Head, get_head, make_config
from heads.calibrate import threshold_for
from heads.data import TensorSource
from heads.pair_metrics import pair_metrics
from heads.pairs import Pair, PairSource
from heads.parts.pair_head import DifferenceSource
from heads.scoring import upsample
from heads.trainer import NullProgress, TrainOptions
from headwater.spec import ExtractorSpec, LayerSpec


def subset(pairs: Sequence[PairRecord], split: str, count: int) -> list[PairRecord]:
    """Return `count` pairs of a split, chosen by the hash of their key."""
    chosen = [p for p in pairs if p.split == split]
    chosen.sort(key=lambda p: hashlib.sha256(p.key.encode()).digest())
    return sorted(chosen[:count], key=lambda p: p.key)


def cut_tiles(pairs: Sequence[PairRecord], out: Path, tile: int) -> list[PairRecord]:
    """Cut pairs and masks into a grid of tiles below `out`, and return these as pairs."""
    for pair in pairs:
        assert pair.mask is not None
        arrays = {
            "current": read_image(pair.current.path),
            "history": read_image(pair.history.path),
            "mask": read_mask(pair.mask).astype(np.uint8) * 255,
        }
        for side, pixels in arrays.items():
            (out / "test" / side).mkdir(parents=True, exist_ok=True)
            for top in range(0, pixels.shape[0] - tile + 1, tile):
                for left in range(0, pixels.shape[1] - tile + 1, tile):
                    name = f"{pair.current.path.stem}_{top}_{left}.png"
                    cut = pixels[top : top + tile, left : left + tile]
                    Image.fromarray(cut).save(out / "test" / side / name)
    return scan_pairs(out).pairs


def features(
    records: Sequence[ImageRecord], backbone: Backbone, spec: ExtractorSpec,
    layers: Sequence[LayerSpec],
) -> TensorSource:  # fmt: skip
    """Extract once per image; rows in memory as stored, float16."""
    maps: dict[str, list[torch.Tensor]] = {}
    ids: list[str] = []
    for block in extract([Job(r.sha256, r.path) for r in records], backbone, spec, layers):
        assert not block.failed, block.failed
        ids += [job.sha256 for job in block.jobs]
        for name, values in block.maps.items():
            maps.setdefault(name, []).append(torch.from_numpy(values))
    return TensorSource({k: torch.cat(v) for k, v in maps.items()}, ids)


def join(
    pairs: Sequence[PairRecord], source: Any, spec: ExtractorSpec, labelled: bool = True
) -> PairSource:
    """Return the pairs over one source of both sides' images."""
    keyed = [Pair(p.key, p.current.sha256, p.history.sha256) for p in pairs]
    masks = PairMasks(pairs, functools.partial(mask_to_input, spec=spec)) if labelled else None
    return PairSource(source, source, keyed, masks)


def images_of(*groups: Sequence[PairRecord]) -> list[ImageRecord]:
    """Return the distinct images of both sides."""
    found = {r.sha256: r for g in groups for p in g for r in (p.current, p.history)}
    return list(found.values())


def test_head(head: Head, test: PairSource, threshold: float) -> dict[str, float]:
    """Score the test pairs and return the metrics at `threshold`, and milliseconds per pair."""
    maps, masks, began = [], [], time.perf_counter()
    seconds = 0.0
    for batch in test.batches(16):
        began = time.perf_counter()
        maps += list(head.score(batch).maps.cpu().numpy())
        seconds += time.perf_counter() - began
        masks += list(batch["_mask"][:, 0].numpy() > 0)
    return {**pair_metrics(maps, masks, threshold=threshold), "score_ms": 1e3 * seconds / len(test)}


def difference_floor(test: PairSource, size: tuple[int, int]) -> dict[str, float]:
    """Return AUC and EER of the plain feature difference."""
    maps, masks = [], []
    for batch in DifferenceSource(test).batches(16):
        layers = [batch[k].mean(1) for k in batch if not k.startswith("_")]
        maps += list(torch.stack([upsample(x, size) for x in layers]).mean(0).numpy())
        masks += list(batch["_mask"][:, 0].numpy() > 0)
    found = pair_metrics(maps, masks)
    return {k: found[k] for k in ("auc", "eer")}


def main() -> None:
    """Measure and print one JSON line a head and seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--heads", default="pair_diff,pair_flow")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--size", type=int, default=256, help="pixels of a whole pair's input")
    parser.add_argument("--tile", type=int, default=320, help="pixels of pair_flow's crops")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="HEAD.KEY=VALUE")
    parser.add_argument("--cache", type=Path, help="file cache of the scan, kept between calls")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    settings: dict[str, dict[str, Any]] = {name: {} for name in a.heads.split(",")}
    for item in a.set:
        key, value = item.split("=", 1)
        head, name = key.split(".", 1)
        settings[head][name] = json.loads(value)
    about = {"backbone": a.backbone, "train": a.train, "test": a.test, **machine()}

    def tell(row: dict[str, Any]) -> None:
        short = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        line = json.dumps({**short, **about})
        print(line, flush=True)
        if a.out:
            with a.out.open("a") as file:
                file.write(line + "\n")

    chosen = BACKBONES[a.backbone]
    backbone = load_backbone(
        a.backbone, a.data / "weights" / chosen["file"], options=chosen.get("options", {})
    )
    with tempfile.TemporaryDirectory(prefix="headwater-pairs-") as place:
        root = a.data / "images" / "deeppcb_pairs"
        pairs = scan_pairs(root, cache=a.cache).pairs
        train, test = subset(pairs, "train", a.train), subset(pairs, "test", a.test)
        for name, values in settings.items():
            run_head(name, values, a, backbone, train, test, Path(place), tell)


def run_head(
    name: str, values: dict[str, Any], a: argparse.Namespace, backbone: Backbone,
    train: list[PairRecord], test: list[PairRecord], place: Path, tell: Any,
) -> None:  # fmt: skip
    """Prepare the head's features and train and test it per seed."""
    cls, size, began = get_head(name), a.size, time.perf_counter()
    flow = name == "pair_flow"
    if flow:
        size = a.size * a.tile // 640
        cut_normal_pairs(train, place / "normal", a.tile, per_pair=4)
        train = scan_pairs(place / "normal").pairs
        test = cut_tiles(test, place / "tiles", a.tile)
    config = make_config(name, values, a.preset)
    spec = backbone.default_spec(resize=size)
    layers = cls.needs(config, backbone.info, (size, size)).layers
    if getattr(config, "encoder", "") == "trained":
        prepare = functools.partial(preprocess, spec=spec)
        source: Any = ImageSource(images_of(train, test), prepare, (size, size))
    else:
        source = features(images_of(train, test), backbone, spec, layers)
    seconds = time.perf_counter() - began
    tested = join(test, source, spec)
    if flow:
        tell({"head": "difference", "tile": a.tile, **difference_floor(tested, (size, size))})
    learning, held = join(train, source, spec, labelled=not flow).split(0.2)
    for seed in map(int, a.seeds.split(",")):
        config = make_config(name, {**values, "seed": seed}, a.preset)
        head = cls(config, source.shapes, (size, size))
        began = time.perf_counter()
        figures = head.fit(learning, held, TrainOptions(device=a.device), NullProgress())
        fit_seconds, threshold = time.perf_counter() - began, 0.5
        if flow:
            # No probabilities: the threshold is held-out normal pixels' at a rate of 1 %.
            maps = [head.score(b).maps.flatten() for b in held.batches(16)]
            threshold = threshold_for(torch.cat(maps).cpu().numpy(), 0.01)[0]
        tell(
            {
                "head": name, "settings": values, "seed": seed, "size": size, "pairs": len(train),
                **test_head(head, tested, threshold),
                "threshold": threshold,
                **{k: v for k, v in figures.items() if k.startswith("held_out")},
                "parameters": head.parameters_count(),
                "features_s": seconds, "fit_s": fit_seconds,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )  # fmt: skip


if __name__ == "__main__":
    main()
