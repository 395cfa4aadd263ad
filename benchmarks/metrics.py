"""All metrics of a scored test set against a plain exact implementation: time, memory, values.

    python -m benchmarks.metrics [--sizes 100x512,600x256] [--repeats 3]

The plain one is what a user would write: scikit-learn's AUROC and average precision of images and
pixels, and AUPRO from one sort of all pixels per defect, as its definition says (a curve a defect,
averaged over the false-positive rates of the test set). Each runs in a process of its own, for its
peak memory; maps and masks are drawn alike in both.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.machine import machine
from heads.judging.metrics import evaluate

LIMIT = 0.3
Test = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def drawn(count: int, side: int) -> Test:
    """Return scores, maps, labels and masks: half of the images have one to four defects."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, side, side), bool)
    for mask in masks[::2]:
        for _ in range(rng.integers(1, 5)):
            top, left = rng.integers(0, side * 7 // 8, 2)
            height, width = rng.integers(2, side // 8, 2)
            mask[top : top + height, left : left + width] = True
    maps = rng.normal(size=(count, side, side)).astype(np.float32)
    maps = ndimage.gaussian_filter(maps, (0, 2, 2)) + 0.1 * masks
    return maps.max((1, 2)), maps.astype(np.float32), masks.any((1, 2)), masks


def ours(test: Test) -> dict[str, float]:
    """Return the product's figures."""
    scores, maps, labels, masks = test
    return dict(evaluate(scores, maps, labels, list(masks)))


def plain(test: Test) -> dict[str, float]:
    """Return the same figures, spelt out."""
    scores, maps, labels, masks = test
    truth, values = masks.ravel(), maps.ravel()
    normal = np.sort(values[~truth])[::-1]
    # The false-positive rate at each distinct score, and the share of each defect found there.
    thresholds = np.unique(values)[::-1]
    rate = np.searchsorted(-normal, -thresholds, side="right") / len(normal)
    within = int(np.searchsorted(rate, LIMIT, side="right")) + 1
    thresholds, rate = thresholds[:within], rate[:within]
    covered = np.zeros(len(thresholds))
    number = 0
    for heat, mask in zip(maps, masks, strict=True):
        pieces, found = ndimage.label(mask, np.ones((3, 3)))
        for k in range(1, found + 1):
            inside = np.sort(heat[pieces == k])[::-1]
            covered += np.searchsorted(-inside, -thresholds, side="right") / len(inside)
        number += found
    x, y = np.append(0, rate), np.append(0, covered / number)
    end = float(np.interp(LIMIT, x[-2:], y[-2:]))
    x, y = np.append(x[:-1], LIMIT), np.append(y[:-1], end)
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "pixel_auroc": float(roc_auc_score(truth, values)),
        "pixel_ap": float(average_precision_score(truth, values)),
        "aupro": float(np.trapezoid(y, x) / LIMIT),
    }


def main() -> None:
    """Measure and print one JSON line a size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="100x512,600x256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        return _one(a.one)
    about = machine()
    for size in a.sizes.split(","):
        row: dict[str, object] = {"size": size}
        found: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
        for _ in range(a.repeats):
            for side, runs in found.items():
                command = [sys.executable, "-m", "benchmarks.metrics", "--one", f"{side} {size}"]
                runs.append(json.loads(subprocess.check_output(command, text=True)))
        for side, runs in found.items():
            for name in ("seconds", "cpu_seconds", "peak_mb"):
                row[f"{side}_{name}"] = round(statistics.median(r[name] for r in runs), 2)
        shared = [k for k in found["plain"][0] if "_mb" not in k and "seconds" not in k]
        row["largest_difference"] = max(
            abs(found["plain"][0][k] - found["ours"][0][k]) for k in shared
        )
        print(json.dumps(row | about), flush=True)
    return None


def _one(what: str) -> None:
    side, size = what.split()
    count, edge = map(int, size.split("x"))
    test = drawn(count, edge)
    work: Callable[[Test], dict[str, float]] = {"plain": plain, "ours": ours}[side]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    figures = work(test)
    figures["seconds"], figures["cpu_seconds"] = (
        time.perf_counter() - began,
        time.process_time() - cpu,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures["peak_mb"] = (peak - before) / 1024
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
