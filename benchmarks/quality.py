"""Quality, seconds and peak memory of heads on the real images of ../shared/data.

    python -m benchmarks.quality --data ../shared/data --sets glassfiber_layup_512,magnetic_tile \
        --backbones resnet18,resnet50 --heads patchcore,f2r,cs_flow [--seeds 0,1,2] \
        [--set patchcore.ratio=0.1] [--out results.jsonl]
    python -m benchmarks.quality --table results.jsonl

Runs the product's own pipeline (scan, extract, store, train, evaluate, MLflow) in a temporary home,
one head at a time with all cores, so that seconds and memory belong to one head. Last epoch.
The table gives mean and deviation over seeds, and marks a head's figures that beat the gallery's
(`patchcore`, same set and backbone).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, tell
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.runtime.settings import Settings

#: What timm must be told for each weight file of ../shared/data to mean what it says.
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {"file": "resnet18.in1k_to_layer3.safetensors"},
    "resnet50": {
        "file": "resnet50.in1k_v1_to_layer3.safetensors",
        "options": {"stride_in_1x1": True},
    },
    "mobilenetv2_100": {
        "file": "mobilenetv2_100.in1k_dequantised.safetensors",
        "options": {
            "num_classes": 1001, "pad_type": "same", "bn_eps": 1e-3, "mean": 0.5, "std": 0.5,
        },
    },
    "vit_tiny_patch16_224": {
        "file": "vit_tiny_patch16_224.tinyimagenet.safetensors",
        "options": {"num_classes": 200, "mean": 0.5, "std": 0.5},
    },
}  # fmt: skip


def run(
    data: Path, image_set: str, backbone: str, heads: dict[str, dict[str, Any]], seed: int,
    size: int, home: Path, training: Mapping[str, Any], images: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run the pipeline once, with settings of the training's own, and return a row a head.

    ``images`` is the set's folder where it is not the one in ``data``.
    """
    chosen = BACKBONES[backbone]
    settings = Settings.model_validate(
        {
            "image_set": image_set,
            "images": images or data / "images" / image_set,
            "backbone": {
                "name": backbone,
                "weights": data / "weights" / chosen["file"],
                "options": chosen.get("options", {}),
            },
            "extraction": {"size": 224 if backbone.startswith("vit") else size},
            "heads": heads,
            "training": {"seed": seed, "workers": 1, **training},
        }
    )
    place = Home.at(home)
    place.prepare_environment()
    from flows.pipeline import run_pipeline

    began = time.perf_counter()
    with Reporter(every=30).live() as reporter:
        result = run_pipeline(settings, place, reporter)
    total = time.perf_counter() - began
    rows = []
    for outcome in result.outcomes:
        rows.append(
            {
                "set": image_set,
                "backbone": backbone,
                "head": outcome.head,
                "settings": heads[outcome.head],
                "seed": seed,
                "size": settings.extraction.size,
                **{k: round(v, 4) for k, v in outcome.metrics.items()},
                "fit_s": round(outcome.seconds, 2),
                "peak_mb": round(outcome.peak_mb),
                "extraction_s": round(sum(e.seconds for e in result.extraction.extracted), 2)
                if result.extraction
                else None,
                "run_s": round(total, 1),
            }
        )
    for head, error in result.failures:
        print(json.dumps({"set": image_set, "backbone": backbone, "head": head,
                          "error": str(error)}))  # fmt: skip
    return rows


FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the Markdown table of rows as `run` gives them; of two with one key the last counts.

    A figure in bold is above the mean of `patchcore` on the same set and backbone.
    """
    cells: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["set"], row["backbone"], row["head"]), {})[row["seed"]] = row
    lines = [
        "| set, backbone | head | seeds | image AUROC | pixel AUROC | AUPRO | beats the gallery |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    before: tuple[str, str] | None = None
    for (image_set, backbone, head), seeds in sorted(
        cells.items(), key=lambda c: (*c[0][:2], c[0][2] != "patchcore", c[0][2])
    ):
        found = list(seeds.values())
        gallery = list(cells.get((image_set, backbone, "patchcore"), {}).values())
        written, better = [], []
        for figure, name in FIGURES.items():
            values = [row[figure] for row in found]
            mean = statistics.mean(values)
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            floor = statistics.mean(row[figure] for row in gallery) if gallery else None
            over = head != "patchcore" and floor is not None and mean > floor
            better += [name] if over else []
            written.append(f"**{mean:.3f}**{spread}" if over else f"{mean:.3f}{spread}")
        where = f"`{image_set}`, {backbone}" if (image_set, backbone) != before else ""
        before = (image_set, backbone)
        said = "" if head == "patchcore" else (", ".join(better) or "no")
        cell = " | ".join(written)
        lines.append(f"| {where} | `{head}` | {len(found)} | {cell} | {said} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print one JSON line a head."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--held-out", type=float, default=0.1)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", default="glassfiber_layup_512")
    parser.add_argument("--backbones", default="resnet18")
    parser.add_argument("--heads", default="patchcore,f2r,cs_flow")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], metavar="HEAD.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--home", type=Path, help="keep features between calls")
    parser.add_argument("--table", type=Path, help="print the table of results, measure nothing")
    a = parser.parse_args()
    if a.table:
        print(table(json.loads(line) for line in a.table.read_text().splitlines()))
        return
    heads: dict[str, dict[str, Any]] = {name: {} for name in a.heads.split(",")}
    for item in a.set:
        key, value = item.split("=", 1)
        head, name = key.split(".", 1)
        heads[head][name] = json.loads(value)
    about = machine()
    training = {"preset": "small", "held_out": a.held_out}
    with tempfile.TemporaryDirectory(prefix="headwater-quality-") as temporary:
        home = a.home or Path(temporary)
        for image_set in a.sets.split(","):
            for backbone in a.backbones.split(","):
                for seed in map(int, a.seeds.split(",")):
                    args = (a.data.resolve(), image_set, backbone, heads, seed, a.size, home)
                    for row in run(*args, training):
                        tell({**row, **about}, a.out)


if __name__ == "__main__":
    main()
