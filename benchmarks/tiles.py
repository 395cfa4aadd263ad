"""A small defect in a large image, with and without tiles.

    python -m benchmarks.tiles [--edge 4096] [--defect 20] [--out results.jsonl]

The images are quilted of scikit-image's photographs of gravel, grass or brick; stains of `--defect`
pixels are drawn into half of those that are tested. Each way to see them is extracted, learnt and
judged in a process of its own, and predicted in another, whose peak memory is told. So that ways
can be compared, the maps of all are brought to the size of the joined map and judged there.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, run_apart, tell

#: Ways to see an image, by name: settings of the extraction.
WAYS: dict[str, dict[str, Any]] = {
    "whole-256": {"size": 256},
    "whole-512": {"size": 512},
    "whole-1024": {"size": 1024},
    "tiles-1024-at-512": {"tile": 1024, "size": 512},
    "tiles-512": {"tile": 512},
    "tiles-512-both": {"tile": 512, "scale": "both"},
}
#: Pixels a side of the pieces that a quilt is made of, and how many of them neighbours share.
_PIECE, _SHARED = 384, 64
HERE = Path(__file__).resolve().parents[1]


def quilt(photograph: np.ndarray, edge: int, rng: np.random.Generator) -> np.ndarray:
    """Return a grey picture of `edge` pixels a side, of pieces of a photograph that overlap."""
    total, weight = np.zeros((edge, edge), np.float32), np.zeros((edge, edge), np.float32)
    ramp = np.minimum(np.arange(_PIECE) + 1, _PIECE - np.arange(_PIECE)).clip(max=_SHARED)
    blend = (ramp[:, None] * ramp[None, :]).astype(np.float32)
    for top in range(0, edge, _PIECE - _SHARED):
        for left in range(0, edge, _PIECE - _SHARED):
            y, x = rng.integers(0, np.array(photograph.shape) - _PIECE + 1)
            piece = photograph[y : y + _PIECE, x : x + _PIECE]
            piece = piece[:, ::-1] if rng.integers(2) else piece
            tall, wide = min(_PIECE, edge - top), min(_PIECE, edge - left)
            place = slice(top, top + tall), slice(left, left + wide)
            total[place] += (piece * blend)[:tall, :wide]
            weight[place] += blend[:tall, :wide]
    noise = rng.normal(0, 2, (edge, edge)).astype(np.float32)
    return (total / weight + noise).clip(0, 255).astype(np.uint8)


def stained(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a stain of about `size` pixels into a picture, in place; return its mask."""
    y, x = rng.integers(2 * size, picture.shape[0] - 2 * size, 2)
    around = np.mgrid[-size : size + 1, -size : size + 1]
    angle = np.arctan2(*around)
    waves = sum(rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5))
    inside = np.hypot(*around) < size / 2 * (1 + waves)
    mask = np.zeros(picture.shape, bool)
    mask[y - size : y + size + 1, x - size : x + size + 1] = inside
    # Darker or lighter than any place of that size in the photographs.
    grey = float(rng.choice([15, 240]))
    picture[mask] = (0.15 * picture[mask] + 0.85 * grey).clip(0, 255).astype(np.uint8)
    return mask


def make_images(folder: Path, texture: str, edge: int, defect: int, counts: list[int]) -> None:
    """Write a set in MVTec layout: so many normal images, and good and stained ones to test."""
    from skimage import data

    from features.images.pixels import write_image

    photograph = np.asarray(getattr(data, texture)(), np.uint8)
    for part, count in zip(("train/good", "test/good", "test/stain"), counts, strict=True):
        for number in range(count):
            rng = np.random.default_rng([number, len(part), edge])
            picture = quilt(photograph, edge, rng)
            if part == "test/stain":
                mask = stained(picture, defect, rng)
                write_image(
                    mask.astype(np.uint8) * 255, folder / f"ground_truth/stain/{number}_mask.png"
                )
            write_image(picture, folder / part / f"{number}.png")


def peak_mb() -> float:
    """Return the most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def learn(folder: Path, way: str, limit: int) -> dict[str, Any]:
    """Extract a way and train `patchcore` on it, as a run does; return figures."""
    from dataclasses import replace

    from flows.extraction.extract import bring_up_to_date
    from flows.extraction.plan import plan_job, ready
    from flows.runtime.console import Reporter
    from flows.runtime.home import Home
    from flows.runtime.settings import Settings
    from flows.training.train import train_head
    from flows.training.trainings import Request

    settings = Settings.model_validate(
        {
            "image_set": "large", "images": folder / "images",
            "extraction": {"precision": "float32", **WAYS[way]},
            "heads": {"patchcore": {"ratio": 0.1, "limit": limit}},
            "training": {"preset": "small", "held_out": 0.25},
        }
    )  # fmt: skip
    home = Home.at(folder / "home")
    home.prepare_environment()
    settings = ready(settings, home)
    plan, quiet = plan_job(settings, home), Reporter(quiet=True)
    report = bring_up_to_date(settings, home, quiet, plan)
    (training,) = Request(settings, home, plan.seeing(**report.seen)).trainings(report.version)
    done = train_head(replace(training, threads=2))
    (one,) = report.extracted
    return {
        "rows": one.wanted, "extract_s": round(one.seconds, 1), "fit_s": round(done.seconds, 1),
        "learn_peak_mb": round(peak_mb()),
        **{k: round(done.metrics[k], 4) for k in ("image_auroc", "recall", "false_positive_rate")},
    }  # fmt: skip


def judge(folder: Path) -> dict[str, Any]:
    """Predict the tested images with the model; return seconds, memory and figures of maps."""
    import torch
    import torch.nn.functional as F

    from features.images.masks import read_mask, scaled
    from features.images.pixels import read_image
    from flows.runtime.home import Home
    from flows.use.predict import open_model
    from heads.judging.metrics import evaluate
    from headwater.tiles import joined_size

    home = Home.at(folder / "home")
    home.prepare_environment()
    detector, _ = open_model(home, "large", None, None)
    before, seconds = peak_mb(), []
    scores, maps, masks = [], [], []
    for path in sorted((folder / "images/test").rglob("*.png")):
        began = time.perf_counter()
        image = read_image(path)
        (got,) = detector.predict([image])
        seconds.append(time.perf_counter() - began)
        size = joined_size(*image.shape[:2])
        heat = torch.from_numpy(np.ascontiguousarray(got.map))[None, None]
        maps.append(F.interpolate(heat, size=size, mode="bilinear")[0, 0].numpy())
        truth = folder / f"images/ground_truth/stain/{path.stem}_mask.png"
        bad = path.parent.name == "stain"
        masks.append(scaled(read_mask(truth), size) if bad else np.zeros(size, bool))
        scores.append(got.score)
        peak = peak_mb()  # before the metrics
    found = evaluate(scores, maps, [m.any() for m in masks], masks)
    at_peak = [
        bool(m[np.unravel_index(h.argmax(), h.shape)]) for h, m in zip(maps, masks, strict=True)
    ]
    return {
        "predict_s": round(float(np.median(seconds)), 2),
        "predict_peak_mb": round(peak), "loaded_mb": round(before),
        **{k: round(found[k], 4) for k in ("image_auroc", "pixel_auroc", "aupro", "pixel_ap")},
        "stains_at_the_maximum": sum(at_peak), "stains": sum(bool(m.any()) for m in masks),
    }  # fmt: skip


def main() -> None:
    """Measure and print one JSON line a way."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edge", type=int, default=4096, help="pixels a side of the images")
    parser.add_argument("--defect", type=int, default=20, help="pixels across of a stain")
    parser.add_argument("--texture", default="gravel", choices=("gravel", "grass", "brick"))
    parser.add_argument("--counts", default="8,5,5", help="normal, good to test, stained")
    parser.add_argument("--limit", type=int, default=4000, help="vectors in the gallery")
    parser.add_argument("--ways", default=",".join(WAYS), help="of those told below, by comma")
    parser.add_argument("--images", type=Path, help="keep the images here between calls")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--do", choices=("learn", "judge"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.do:
        done = learn(a.images, a.ways, a.limit) if a.do == "learn" else judge(a.images)
        print(json.dumps(done))
        return
    unknown = [way for way in a.ways.split(",") if way not in WAYS]
    if unknown:
        sys.exit(f"--ways {unknown[0]!r}: one of {', '.join(WAYS)}")
    about = {"texture": a.texture, "edge": a.edge, "defect": a.defect, **machine()}
    with tempfile.TemporaryDirectory(prefix="headwater-tiles-") as temporary:
        images = (a.images or Path(temporary) / "images").resolve()
        if not images.is_dir():
            make_images(images, a.texture, a.edge, a.defect, [int(n) for n in a.counts.split(",")])
        for number, way in enumerate(a.ways.split(",")):
            folder = Path(temporary) / f"way{number}"
            folder.mkdir()
            (folder / "images").symlink_to(images)
            command = [sys.executable, "-m", "benchmarks.tiles", "--images", str(folder)]
            command += ["--ways", way, "--limit", str(a.limit), "--do"]
            row = {"way": way, **run_apart([*command, "learn"], HERE)}
            if "failed" not in row:
                at = ("image_auroc", "recall", "false_positive_rate")
                row["evaluation"] = {k: row.pop(k) for k in at}
                row |= run_apart([*command, "judge"], HERE)
            tell({**row, **about}, a.out)


if __name__ == "__main__":
    main()
