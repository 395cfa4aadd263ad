"""Pictures of 10 bits in 16-bit files against the same in 8 bits: what the range found is worth.

    python -m benchmarks.depth --data ../shared/data [--sets mvtec_leather_sample,...] \
        [--backbones tf_efficientnet_lite0,resnet18] [--heads patchcore] [--seeds 0,1,2] \
        [--size 256] [--most 120] [--out results.jsonl]
    python -m benchmarks.depth --table results.jsonl

A set is read as grey of 8 bits, and written four times as bright into 16-bit files, which loses
nothing. These are seen by the range that is found on the training normals, by the camera's own
(0 to 1023), and as versions before there were ranges did (65535 is white, in steps of 8 bits).
``--sets FOLDER`` takes any folder of MVTec's layout, of odd_sets.py say.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.backbones import FIGURES, load, measure, some
from benchmarks.machine import machine, tell
from benchmarks.sweep import mean_and_spread, options, parsed
from features.images.depth import Depth, find_range
from features.images.pixels import read_image
from features.images.records import ImageRecord
from features.images.scan import scan_mvtec

WAYS = ("8 bits", "range found", "0:1023", "65535 is white")


def written(records: Sequence[ImageRecord], folder: Path, factor: int) -> list[ImageRecord]:
    """Write images as grey PNGs: of 8 bits with factor 1, else of 16; return their records."""
    folder.mkdir()
    made = []
    for number, record in enumerate(records):
        with Image.open(record.path) as image:
            assert not image.mode.startswith(("I", "F")), f"{record.path} has more than 8 bits"
            pixels = np.asarray(image.convert("L"))
        path = folder / f"{number}.png"
        Image.fromarray(pixels if factor == 1 else pixels.astype(np.uint16) * factor).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(replace(record, path=path, sha256=sha256))
    return made


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: means over seeds."""
    lines = [
        "| set | backbone | read as | image AUROC | pixel AUROC | AUPRO |",
        "|---|---|---|---:|---:|---:|",
    ]
    cells: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["set"], row["backbone"], row["head"], row["way"]), []).append(row)
    for (image_set, backbone, _, way), found in cells.items():
        figures = " | ".join(mean_and_spread(found, figure) for figure in FIGURES)
        lines.append(f"| `{image_set}` | {backbone} | {way} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a set, backbone, way, head and seed."""
    sets = "mvtec_leather_sample,glassfiber_layup_512"
    parser = options(__doc__, sets, "tf_efficientnet_lite0,resnet18", "patchcore")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--most", type=int, default=120, help="images taken of a set")
    a = parsed(parser, table)
    about, heads, seeds = machine(), a.heads.split(","), list(map(int, a.seeds.split(",")))
    for image_set in a.sets.split(","):
        # An absolute folder stands for itself.
        records = some(scan_mvtec(a.data.resolve() / "images" / image_set).records, a.most)
        with tempfile.TemporaryDirectory() as work:
            flat, deep = (written(records, Path(work) / str(factor), factor) for factor in (1, 4))
            normal = [r.path for r in deep if r.split == "train" and r.is_normal]
            found = find_range(Depth.of(read_image(path)) for path in normal)
            ranges = (None, found, (0.0, 1023.0), None)
            for name in a.backbones.split(","):
                backbone = load(name, a.data.resolve())
                for way, value_range in zip(WAYS, ranges, strict=True):
                    images = flat if way == WAYS[0] else deep
                    for row in measure(images, backbone, a.size, heads, seeds, value_range):
                        one = {"set": Path(image_set).name, "backbone": name, "way": way}
                        tell({**one, "range": value_range, **row, **about}, a.out)


if __name__ == "__main__":
    main()
