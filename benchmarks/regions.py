"""How well regions lie on defects, by how tight they are drawn, on the real sets of ../shared/data.

    python -m benchmarks.regions --data ../shared/data \
        [--sets glassfiber_layup_512,magnetic_tile,mvtec_leather_sample] \
        [--backbones resnet18,tf_efficientnet_lite0] [--heads patchcore,padim,fast_flow] \
        [--seeds 0] [--shares 0,0.1,0.2,0.25,0.3,0.4,0.5,0.7] [--cache DIR] [--out results.jsonl]
    python -m benchmarks.regions --table results.jsonl

A head, preset ``small``, learns from the normal training images and is calibrated by their
out-of-fold maps as in the product; then the regions of the defective test images are told as
`predict` tells them, at every share of the way from the pixel threshold to a peak
(`heads.judging.regions.SHARE`; 0 is all that is connected above the threshold). Of the set
``magnetic_tile`` it is a seeded part of 120 normals and 96 defects; a flow head learns from 64
normals. ``--cache`` keeps features and maps between calls.

A row is a set, backbone, head, seed and share, over the defective images that have a mask:

- ``shown``: share of them that show a region, and ``alarms``, of the normal test images; both are
  the same at all shares;
- ``box_iou``: of those, the overlap of what lies in the regions' boxes with what lies in the boxes
  of the mask's parts;
- ``found``: share of the parts of all masks that a region's box touches, mean over images;
- ``inside``: share of the images shown whose highest peak lies in the box of a part;
- ``wide``: share of them with a region whose box covers more than a quarter of the picture;
- ``regions``: how many they show.

The table has the means over backbones, heads and seeds, by set, and over the sets alike.
"""

from __future__ import annotations

import functools
import json
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks import verdicts
from benchmarks.machine import machine, tell
from benchmarks.sweep import options, parsed
from features.images.masks import read_mask
from features.images.scan import scan_mvtec
from heads.catalogue import get_head, make_config
from heads.contract import Head, NullProgress, TrainOptions
from heads.judging.calibration import Calibration, calibrate_out_of_fold
from heads.judging.metrics import EIGHT
from heads.judging.regions import Piece, pieces
from heads.training.out_of_fold import FoldByFold, score_source
from headwater.geometry import frame_of
from headwater.spec import ExtractorSpec
from headwater.tiles import Box
from storage.serving.prediction import WIDE

OPTIONS = TrainOptions(device="cpu")
PART = {"normals": 120, "defects": 96, "good": 60}
#: Normals that a flow head learns from.
MOST = 64
FIGURES = ("box_iou", "found", "inside", "wide", "regions")


def fitted(
    images: verdicts.Images, name: str, seed: int, side: int
) -> tuple[NDArray[np.float32], Calibration]:
    """Return the maps of the test images and what the normals' out-of-fold maps set."""
    rows = np.flatnonzero(images.train).tolist()
    if "flow" in name and len(rows) > MOST:
        rows = sorted(random.Random(seed).sample(rows, MOST))
    normals = images.source(name, rows)
    test = images.source(name, np.flatnonzero(~images.train).tolist())
    config = make_config(name, {"seed": seed}, "small")

    def build() -> Head:
        return get_head(name)(config, normals.shapes, (side, side))

    folds = verdicts.folds_of(normals, name)
    apart = FoldByFold(build, normals, folds).all(OPTIONS, NullProgress())
    head = build()
    head.fit(normals, normals.subset([]), OPTIONS, NullProgress())
    found = calibrate_out_of_fold(apart.scores, apart.maps, folds.told())
    return score_source(head, test)[1], found


def kept(
    file: Path | None, load: Callable[[], verdicts.Images], name: str, seed: int, side: int
) -> tuple[NDArray[np.float32], Calibration]:
    """Return what `fitted` does of the images that are loaded, from a file where it is there."""
    if file is not None and file.is_file():
        known = np.load(file)
        return known["maps"], Calibration.from_json(json.loads(str(known["calibration"])))
    maps, found = fitted(load(), name, seed, side)
    if file is not None:
        np.savez(file, maps=maps, calibration=json.dumps(found.to_json()))
    return maps, found


def filled(boxes: Iterable[Box], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels that lie in one of the boxes, ``[H, W]`` bool."""
    made = np.zeros(size, bool)
    for box in boxes:
        made[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return made


def regions(heat: NDArray[np.float32], found: Calibration, share: float) -> list[Piece]:
    """Return the regions of a map, in its pixels."""
    assert found.pixel_threshold is not None
    assert found.volume_threshold is not None
    return pieces(heat, found.pixel_threshold, found.volume_threshold, share, volume=True)


def judged(
    heat: NDArray[np.float32], mask: NDArray[np.bool_], found: Calibration, share: float, side: int
) -> dict[str, float]:
    """Return the figures of one image; ``found`` alone where no region is shown."""
    size = (mask.shape[0], mask.shape[1])
    frame = frame_of(*size, ExtractorSpec("net", "untrained:0", resize=(side, side)))
    if not (told := regions(heat, found, share)):
        return {"found": 0.0}
    numbers, count = ndimage.label(mask, EIGHT)
    parts = [
        Box(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        for rows, columns in ndimage.find_objects(numbers)
    ]
    places = [frame.box(piece.rows, piece.columns) for piece in told]
    boxes, truth = filled(places, size), filled(parts, size)
    highest = max(told, key=lambda piece: piece.peak)
    return {
        "box_iou": float((boxes & truth).sum() / (boxes | truth).sum()),
        "found": len(np.unique(numbers[boxes & mask])) / count,
        "inside": float(truth[frame.point(*highest.at)]),
        "wide": float(any(box.width * box.height > WIDE * mask.size for box in places)),
        "regions": float(len(places)),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: a line a share, overlap by set and all figures over all."""
    sets = sorted({row["set"] for row in rows})

    def mean(figure: str, share: float, image_set: str) -> float:
        own = (r for r in rows if (r["share"], r["set"]) == (share, image_set))
        return statistics.mean(r[figure] for r in own if r[figure] is not None)

    names = [f"overlap, `{name}`" for name in sets]
    columns = ["share", *names, "overlap", "parts found", "peak inside", "wide", "regions"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---:|" * len(columns)]
    for share in sorted({row["share"] for row in rows}):
        own = [f"{mean('box_iou', share, name):.3f}" for name in sets]
        over = [f"{statistics.mean(mean(f, share, n) for n in sets):.3f}" for f in FIGURES]
        lines.append("| " + " | ".join([f"{share:g}", *own, *over]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a set, backbone, head, seed and share."""
    parser = options(
        __doc__,
        "glassfiber_layup_512,magnetic_tile,mvtec_leather_sample",
        "resnet18,tf_efficientnet_lite0",
        "patchcore,padim,fast_flow",
    )
    parser.set_defaults(seeds="0")
    parser.add_argument("--shares", default="0,0.1,0.2,0.25,0.3,0.4,0.5,0.7")
    parser.add_argument("--cache", type=Path, help="keep features and maps between calls")
    a = parsed(parser, table)
    about, heads = machine(), a.heads.split(",")
    for image_set in a.sets.split(","):
        records = scan_mvtec(a.data.resolve() / "images" / image_set).records
        tested = [r for r in verdicts.chosen(records, **PART) if r.split != "train"]
        for net in a.backbones.split(","):
            side = 224 if net.startswith("vit") else 256
            load = functools.lru_cache(
                functools.partial(
                    verdicts.load_images,
                    a.data.resolve(), image_set, net, heads, a.cache, (side, side), PART,
                )
            )  # fmt: skip
            for name in heads:
                for seed in map(int, a.seeds.split(",")):
                    file = a.cache and a.cache / f"{image_set}-{net}-{name}-{seed}.npz"
                    maps, found = kept(file, load, name, seed, side)
                    both = list(zip(maps, tested, strict=True))
                    pairs = [(heat, read_mask(r.mask)) for heat, r in both if r.mask]
                    good = [bool(regions(heat, found, 0)) for heat, r in both if r.is_normal]
                    for share in map(float, a.shares.split(",")):
                        each = [judged(h, m, found, share, side) for h, m in pairs if m.any()]
                        shown = [one for one in each if len(one) > 1]
                        row: dict[str, Any] = {"shown": round(len(shown) / len(each), 4)}
                        row["alarms"] = round(statistics.mean(good), 4)
                        for figure in FIGURES:
                            own = [one[figure] for one in (each if figure == "found" else shown)]
                            row[figure] = round(statistics.mean(own), 4) if own else None
                        said = {"set": image_set, "backbone": net, "head": name, "seed": seed}
                        tell({**said, "share": share, **row, **about}, a.out)


if __name__ == "__main__":
    main()
