"""The pair heads on the printed circuits of ../shared/data: metrics, seconds, peak memory.

    python -m benchmarks.pairs --data ../shared/data --heads pair_diff,pair_flow \
        [--train 300] [--test 200] [--size 256] [--backbone resnet18] [--seeds 0,1,2] \
        [--set pair_diff.layers=0] [--cache scan.sqlite] [--out results.jsonl]

Features of both sides are computed once per image with the product's extraction and held in
memory. `pair_diff` learns from labelled training pairs (8:2 by hash). `pair_flow` learns from
crops of them in which nothing changed, and is tested on the test pairs cut into tiles of the same
size: all pixels of the test pairs at the same scale. `difference` is no head but the floor: the
mean over layers and channels of |F_c - F_h|, on the tiles of `pair_flow`
(``--set difference.strides=[2,4]``; ``difference.standardise=true`` divides each channel by its
root mean square over normal crops). Where there are no probabilities the threshold is that which
a share `--rate` of held-out normal pixels exceeds. Last epoch; nothing is chosen on the test pairs.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.machine import tell as write
from benchmarks.quality import BACKBONES
from features.backbones.backbone import Backbone, load_backbone
from features.extract import Job, extract
from features.images.crops import cut_normal_pairs, cut_tiles, source_of
from features.images.pairs import PairRecord, scan_pairs
from features.images.preprocess import mask_to_input, preprocess
from features.images.records import ImageRecord
from features.images.sources import ImageSource, PairMasks
from heads.catalogue import get_head, make_config
from heads.contract import Batch, NullProgress, Scores, TrainOptions
from heads.judging.calibration import threshold_for
from heads.judging.pair_metrics import pair_metrics
from heads.judging.scores import upsample
from heads.pairs.pair_head import DifferenceSource, differences
from heads.pairs.source import RESIDENT_BYTES, Pair, PairSource
from heads.parts.elementary import channel_statistics, floored
from heads.training.sources import TensorSource
from headwater.spec import ExtractorSpec, LayerSpec

METRICS = ("precision", "recall", "overall_accuracy", "f1", "iou", "auc", "eer")


def subset(pairs: Sequence[PairRecord], split: str, count: int) -> list[PairRecord]:
    """Return `count` pairs of a split, chosen by the hash of their key."""
    chosen = [p for p in pairs if p.split == split]
    chosen.sort(key=lambda p: hashlib.sha256(p.key.encode()).digest())
    return sorted(chosen[:count], key=lambda p: p.key)


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
    pairs: Sequence[PairRecord], source: Any, spec: ExtractorSpec, labelled: bool = True,
    memory: int = RESIDENT_BYTES,
) -> PairSource:  # fmt: skip
    """Return the pairs over one source of both sides' images."""
    keyed = [Pair(p.key, p.current.sha256, p.history.sha256, source_of(p.key)) for p in pairs]
    named, prepare = [(p.key, p.mask) for p in pairs], functools.partial(mask_to_input, spec=spec)
    masks = PairMasks(named, prepare) if labelled else None
    return PairSource(source, source, keyed, masks, memory=memory)


def images_of(*groups: Sequence[PairRecord]) -> list[ImageRecord]:
    """Return the distinct images of both sides."""
    found = {r.sha256: r for g in groups for p in g for r in (p.current, p.history)}
    return list(found.values())


def test_head(head: Any, test: PairSource, threshold: float) -> dict[str, float]:
    """Score the test pairs and return the metrics at `threshold`, and milliseconds per pair."""
    maps, masks, began = [], [], time.perf_counter()
    seconds = 0.0
    for batch in test.batches(16):
        began = time.perf_counter()
        maps += list(head.score(batch).maps.cpu().numpy())
        seconds += time.perf_counter() - began
        masks += list(batch["_mask"][:, 0].numpy() > 0)
    return {**pair_metrics(maps, masks, threshold=threshold), "score_ms": 1e3 * seconds / len(test)}


class Difference:
    """The floor: the plain difference of features, with the face of a head."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int, int]], size: tuple[int, int], standardise: bool
    ) -> None:
        self.size, self.standardise = size, standardise
        self.scale = {k: torch.ones(s[0]) for k, s in shapes.items()}

    def fit(self, normal: PairSource) -> None:
        """Measure the channels' root mean squares, where they are asked for."""
        if self.standardise:
            found = channel_statistics(DifferenceSource(normal), list(self.scale))
            rms = {k: (m.square() + s.square()).sqrt().float() for k, (m, s) in found.items()}
            self.scale = {k: floored(x, 0.0) for k, x in rms.items()}

    def score(self, batch: Batch) -> Scores:
        """Return the mean difference over channels, up-sampled, over layers."""
        found = differences(batch)
        layers = [(found[k] / s[:, None, None]).mean(1) for k, s in self.scale.items()]
        maps = torch.stack([upsample(x, self.size) for x in layers]).mean(0)
        return Scores(image=maps.amax((1, 2)), maps=maps)


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
    parser.add_argument("--rate", type=float, default=0.001, help="of normal pixels called changed")
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
        write({**short, **about}, a.out)

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
    """Prepare the head's features, then train and test it per seed."""
    size, began, labelled = a.size, time.perf_counter(), name == "pair_diff"
    if not labelled:
        size = a.size * a.tile // 640
        if not (place / "tiles").exists():
            cut_normal_pairs(train, place / "normal", a.tile, per_pair=4)
            cut_tiles(test, place / "tiles" / "test", a.tile)
        train, test = scan_pairs(place / "normal").pairs, scan_pairs(place / "tiles").pairs
    floor = name == "difference"
    cls = get_head("pair_flow" if floor else name)
    known = {k: v for k, v in values.items() if k == "strides"} if floor else values
    config = make_config(cls.name, known, a.preset)
    spec = backbone.default_spec(resize=size)
    layers = cls.needs(config, backbone.info, (size, size)).layers
    if getattr(config, "encoder", "") == "trained":
        prepare = functools.partial(preprocess, spec=spec)
        source: Any = ImageSource(images_of(train, test), prepare, (size, size))
    else:
        source = features(images_of(train, test), backbone, spec, layers)
    seconds = time.perf_counter() - began
    tested = join(test, source, spec, memory=0)  # in memory as they are: no second copy
    learning, held = join(train, source, spec, labelled=labelled).split(0.2)
    rows = []
    for seed in [0] if floor else map(int, a.seeds.split(",")):
        began, cpu = time.perf_counter(), time.process_time()
        figures: dict[str, float] = {}
        head: Any
        if floor:
            head = Difference(source.shapes, (size, size), bool(values.get("standardise")))
            head.fit(learning)
        else:
            config = make_config(name, {**values, "seed": seed}, a.preset)
            head = cls(config, source.shapes, (size, size))
            figures = head.fit(learning, held, TrainOptions(device=a.device), NullProgress())
            figures["parameters"] = head.parameters_count()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        threshold = 0.5
        if not labelled:
            maps = [head.score(b).maps.flatten() for b in held.batches(16)]
            threshold = threshold_for(torch.cat(maps).cpu().numpy(), a.rate)[0]
        measured = test_head(head, tested, threshold)
        rows.append(measured)
        tell(
            {
                "head": name, "settings": values, "seed": seed, "size": size,
                "layers": list(source.shapes), "learning": len(learning), "tested": len(tested),
                **measured,
                "threshold": threshold,
                **{k: v for k, v in figures.items() if k.startswith(("held_out", "parameters"))},
                "features_s": seconds, "fit_s": took, "fit_cpu_s": cpu,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )  # fmt: skip
    if len(rows) > 1:
        columns = {k: np.array([r[k] for r in rows if k in r]) for k in METRICS}
        tell(
            {
                "head": name, "settings": values, "seeds": len(rows),
                **{k: f"{x.mean():.4f} +- {x.std(ddof=1):.4f}" for k, x in columns.items()},
            }
        )  # fmt: skip


if __name__ == "__main__":
    main()
