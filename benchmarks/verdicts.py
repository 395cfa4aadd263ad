"""What thresholds keep of their promise on the real sets of ../shared/data, old way and new.

    python -m benchmarks.verdicts --data ../shared/data \
        [--sets glassfiber_layup_512,magnetic_tile] [--backbones resnet18,mobilenetv2_100] \
        [--heads patchcore,fast_flow] [--seeds 0,1,2] \
        [--numbers 10,20,50,100,300] [--spoiled 0,1,3] [--score auto] [--cache DIR] \
        [--out results.jsonl]
    python -m benchmarks.verdicts --table results.jsonl

Features are computed once a set and backbone (``--cache`` keeps them). Each head, preset ``small``,
learns from the normal training images and calls the test images at thresholds that were promised a
false-positive rate of 5 %:

- ``held-out``: a tenth of the normals is held out and sets the threshold (``calibrate: quick``);
- ``random``: out-of-fold scores of five folds drawn at random;
- ``blocks``: out-of-fold scores of five folds as the product makes them (``calibrate: folds``);
- ``oracle``: the threshold that is best on the test labels, by Youden's index: the ceiling.

``--numbers`` takes so many of the normals, drawn by the seed; 0 takes all (of ``magnetic_tile``
320, and 96 of its defects). ``--spoiled`` puts so many of the defective test images among the
normals to learn from (and takes them out of the test).
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.backbones import load
from benchmarks.machine import machine, tell
from benchmarks.sweep import options, parsed
from features.extract import Job, extract
from features.images.records import ImageRecord
from features.images.scan import scan_mvtec
from heads.catalogue import get_head, make_config
from heads.contract import Head, NullProgress, TrainOptions
from heads.judging.calibration import Calibration, calibrate, calibrate_out_of_fold
from heads.judging.metrics import auroc, oracle_threshold
from heads.judging.rules import rule_of
from heads.training.folds import Folds, assign_folds, looks_of, natural
from heads.training.out_of_fold import FoldByFold, leaves_out, score_source, scored_source
from heads.training.sources import TensorSource
from heads.training.splits import split_held_out

SIZE = (256, 256)
PROMISED = 0.05
#: Images taken of a large set: normals to learn from, defects to test.
MOST_NORMALS, MOST_DEFECTS = 320, 96
OPTIONS = TrainOptions(device="cpu")


@dataclass(frozen=True)
class Images:
    """A set's images and their features.

    Parameters
    ----------
    names, train, defective
        Of each image: its path, whether it is for training, whether it is defective.
    maps
        By layer, ``[images, C, H, W]`` float16.
    layers
        By head, what it reads.
    """

    names: list[str]
    train: np.ndarray
    defective: np.ndarray
    maps: dict[str, torch.Tensor]
    layers: dict[str, list[str]]

    def source(self, head: str, rows: Sequence[int]) -> TensorSource:
        """Return what a head reads of these images."""
        at = torch.as_tensor(list(rows), dtype=torch.int64)
        names = [self.names[row] for row in rows]
        return TensorSource({x: self.maps[x][at] for x in self.layers[head]}, names)


def chosen(
    records: Sequence[ImageRecord],
    normals: int = MOST_NORMALS,
    defects: int = MOST_DEFECTS,
    good: int | None = None,
) -> list[ImageRecord]:
    """Return the images of a set that are looked at: of a large one a seeded part.

    So many normals to learn from, defective and good test images at most (None: all).
    """
    parts: dict[tuple[str, bool], list[ImageRecord]] = {}
    for record in sorted(records, key=lambda r: natural(str(r.path))):
        parts.setdefault((record.split, record.is_normal), []).append(record)
    draw = random.Random(0)
    limits = (("train", True), normals, draw), (("test", False), defects, draw)
    for key, most, own in (*limits, (("test", True), good, random.Random(0))):
        if most is not None and len(parts[key]) > most:
            kept = set(own.sample(range(len(parts[key])), most))
            parts[key] = [r for i, r in enumerate(parts[key]) if i in kept]
    return [r for key in (("train", True), ("test", True), ("test", False)) for r in parts[key]]


def load_images(
    data: Path,
    image_set: str,
    backbone: str,
    heads: Sequence[str],
    cache: Path | None,
    size: tuple[int, int] = SIZE,
    part: Mapping[str, int] = {},
) -> Images:
    """Return a set's features, from the cache where they are there."""
    net = load(backbone, data)
    spec = net.default_spec(size[0], precision="float32")
    needed = {
        head: get_head(head).needs(make_config(head, {}, "small"), net.info, size).layers
        for head in heads
    }
    records = chosen(scan_mvtec(data / "images" / image_set).records, **part)
    every = sorted({x for layers in needed.values() for x in layers})
    place = cache or Path("/nowhere")
    files = {x.name: place / f"{image_set}-{backbone}-{len(records)}-{x.name}.pt" for x in every}
    maps = {
        name: torch.load(file, weights_only=True) for name, file in files.items() if file.is_file()
    }
    if missing := tuple(x for x in every if x.name not in maps):
        blocks = list(extract([Job(r.sha256, r.path) for r in records], net, spec, missing))
        assert not any(b.failed for b in blocks)
        for name in (x.name for x in missing):
            maps[name] = torch.cat([torch.from_numpy(b.maps[name]) for b in blocks])
            if cache is not None:
                cache.mkdir(parents=True, exist_ok=True)
                torch.save(maps[name], files[name])
    root = data / "images" / image_set
    return Images(
        # Below the set: which images are held out is drawn by these names.
        [r.path.relative_to(root).as_posix() for r in records],
        np.array([r.split == "train" for r in records]),
        np.array([not r.is_normal for r in records]),
        maps,
        {head: [x.name for x in layers] for head, layers in needed.items()},
    )


def folds_of(source: TensorSource, head: str) -> Folds:
    """Return the folds as a training makes them."""
    orders = {"file order": [natural(name) for name in source.ids]}
    looks, alone = looks_of(source, range(len(source))), leaves_out(get_head(head))
    return assign_folds(source.ids, orders, looks=looks, alone=alone)


def random_folds(source: TensorSource, seed: int) -> Folds:
    """Return five folds drawn at random."""
    draw = np.random.default_rng(seed).permutation(len(source)) % 5
    return Folds(dict(zip(source.ids, draw.tolist(), strict=True)), "random")


def measure(
    images: Images, name: str, seed: int, number: int = 0, spoiled: int = 0, ways: str = "",
    score: str = "auto",
) -> Iterable[dict[str, Any]]:  # fmt: skip
    """Yield a row a way of setting the threshold."""
    draw = random.Random(1000 * number + seed)
    normals = np.flatnonzero(images.train).tolist()
    if number:
        normals = sorted(draw.sample(normals, number))
    bad = draw.sample(np.flatnonzero(images.defective).tolist(), spoiled)
    if spoiled:  # anywhere among the others
        for row in bad:
            normals.insert(draw.randrange(len(normals) + 1), row)
    test = [i for i in np.flatnonzero(~images.train).tolist() if i not in set(bad)]
    truth = images.defective[test]
    source, judged = images.source(name, normals), images.source(name, test)
    config = make_config(name, {"seed": seed, "score": score}, "small")

    def build() -> Head:
        return get_head(name)(config, source.shapes, SIZE)

    def fitted(train: Any, held: Any) -> tuple[Head, float]:
        head, began = build(), time.perf_counter()
        head.fit(train, held, OPTIONS, NullProgress())
        return head, time.perf_counter() - began

    def row(
        way: str, scores: np.ndarray, found: Calibration | float, **more: Any
    ) -> dict[str, Any]:
        at = found if isinstance(found, float) else found.threshold
        false, recall = (float((scores[truth == t] > at).mean()) for t in (False, True))
        told = (
            {} if isinstance(found, float) else {"promised": found.attained_fpr, "odd": found.odd}
        )
        return {
            "head": name, "seed": seed, "score": score, "normals": len(normals) - spoiled,
            "spoiled": spoiled, "way": way, "image_auroc": auroc(scores, truth),
            "false_positives": false, "recall": recall,
            "balanced": (1 - false + recall) / 2, **told, **more,
        }  # fmt: skip

    if "held-out" in ways:
        left, held = (source.subset(rows) for rows in split_held_out(source.ids))
        head, _ = fitted(left, held)
        own, _, parts = scored_source(head, held)
        if parts is not None:  # as a training does it: pooled scores learn their scale first
            own = rule_of(head).settle(parts)
        found = calibrate(own, target_fpr=PROMISED, upper=head.score_limit)
        yield row("held-out", score_source(head, judged)[0], found, held=len(own))
    head, took = fitted(source, source.subset([]))
    scores, _, parts = scored_source(head, judged)
    for way in ("random", "blocks"):
        if way not in ways:
            continue
        folds = random_folds(source, seed) if way == "random" else folds_of(source, name)
        out = FoldByFold(build, source, folds).all(OPTIONS, NullProgress())
        if parts is not None and out.parts is not None:
            rule = rule_of(head)
            rule.settle(out.parts)
            scores = rule.joined(torch.from_numpy(parts)).numpy()
        found = calibrate_out_of_fold(out.scores, None, folds.told(), target_fpr=PROMISED)
        # Where spoiled ones are when normals are sorted by their scores, as `review` lists them.
        names = [out.images[i] for i in np.argsort(-out.scores, kind="stable")]
        at = sorted(names.index(images.names[i]) + 1 for i in bad)
        times = {"fit_s": took, "calibration_s": out.seconds}
        yield row(way, scores, found, spoiled_at=at, **times)
    yield row("oracle", scores, float(oracle_threshold(scores, truth)))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: means over seeds, the range of realised rates and recalls.

    A line is a set, backbone, head, number of normals and of spoiled ones; the ways stand side by
    side. Of ``oracle`` there is the balanced accuracy alone.
    """
    ways = [w for w in dict.fromkeys(row["way"] for row in rows) if w != "oracle"]
    told = [f"{w}: promised | realised | recall | balanced" for w in ways]
    lines = [
        f"| set, backbone | head | normals | spoiled | seeds | {' | '.join(told)} | oracle |",
        "|---|---|---:|---:|---:|" + "---:|" * (4 * len(ways) + 1),
    ]
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    keys = ("set", "backbone", "head", "normals", "spoiled")
    for row in rows:
        key = (*(row[k] for k in keys), row.get("score", "auto"))
        cells.setdefault(key, []).append(row)
    for key, every in sorted(cells.items()):
        rule = "" if key[5] == "auto" else f", `{key[5]}`"
        written = [f"`{key[0]}`, {key[1]}", f"`{key[2]}`{rule}", str(key[3]), str(key[4])]
        written.append(str(len({row["seed"] for row in every})))
        for way in ways:
            found = [row for row in every if row["way"] == way]

            def spread(figure: str, found: list[dict[str, Any]] = found) -> str:
                values = [row[figure] for row in found]
                if not values:
                    return ""
                near = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
                return f"{statistics.mean(values):.3f}{near}"

            written.append(spread("promised").split(" ")[0])
            written += [spread("false_positives"), spread("recall")]
            written.append(spread("balanced").split(" ")[0])
        oracle = [row["balanced"] for row in every if row["way"] == "oracle"]
        written.append(f"{statistics.mean(oracle):.3f}")
        lines.append(f"| {' | '.join(written)} |")
    lines += ["", "Mean balanced accuracy over all rows:", ""]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row["balanced"] for row in rows if row["way"] == way]
        lines.append(f"- {way}: {statistics.mean(own):.3f} ({len(own)} rows)")
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a set, backbone, head, seed, number and way."""
    parser = options(
        __doc__,
        "glassfiber_layup_512,magnetic_tile",
        "resnet18,mobilenetv2_100",
        "patchcore,fast_flow",
    )
    parser.add_argument("--numbers", default="0", help="of normals to learn from; 0: all")
    parser.add_argument("--spoiled", default="0", help="defective images among them")
    parser.add_argument("--ways", default="held-out,random,blocks")
    parser.add_argument("--score", default="auto", help="the rule of image scores")
    parser.add_argument("--cache", type=Path, help="keep features between calls")
    a = parsed(parser, table)
    about, heads = machine(), a.heads.split(",")
    for image_set in a.sets.split(","):
        for backbone in a.backbones.split(","):
            images = load_images(a.data.resolve(), image_set, backbone, heads, a.cache)
            for number in map(int, a.numbers.split(",")):
                for spoiled in map(int, a.spoiled.split(",")):
                    for head in heads:
                        for seed in map(int, a.seeds.split(",")):
                            for row in measure(
                                images, head, seed, number, spoiled, a.ways, a.score
                            ):
                                rounded = {
                                    k: round(v, 4) if isinstance(v, float) else v
                                    for k, v in row.items()
                                }
                                said = {"set": image_set, "backbone": backbone, **rounded}
                                tell({**said, **about}, a.out)


if __name__ == "__main__":
    main()
