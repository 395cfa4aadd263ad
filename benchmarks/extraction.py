"""Extraction from files against the bare backbone on tensors in memory; bfloat16 against float32.

    python -m benchmarks.extraction --backbone resnet18 --weights ../shared/data/weights \
        [--data ../shared/data/images/glassfiber_layup_512] [--layers layer2,layer3] [--size 256] \
        [--options '{"stride_in_1x1": true}'] [--images 64] [--repeats 5] [--out results.jsonl]

All ways are run in turn, `--repeats` times; ratios are medians over the turns, so that what else
the machine does hits them alike:

- ``pipeline``: image files to blocks of float16 features (`features.extract.extract`);
- ``bare``: the same batches in the same lanes, on preprocessed tensors in memory;
- ``plain``: the net as one would call it, batches of 16 with all threads of torch.

``cpu_ratio`` compares processor seconds of pipeline and bare, which neighbours disturb less. Prints
one JSON line and a row for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine
from features.backbones.backbone import Backbone, load_backbone
from features.extract import Job, extract
from features.images.pixels import read_image
from features.images.preprocess import preprocess
from features.images.scan import scan_mvtec
from headwater.spec import LayerSpec, Precision

DATA = Path("../shared/data/images/glassfiber_layup_512")
PRECISIONS: tuple[Precision, Precision] = ("float32", "bfloat16")


def run_plain(
    backbone: Backbone, images: Tensor, layers: tuple[LayerSpec, ...], bf16: bool
) -> None:
    """Run the net in batches of 16 with torch's own threads, up to the last node."""
    nodes = {n for x in layers for n in x.nodes}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for part in images.split(16):
            backbone._nodes.run(part.contiguous(memory_format=torch.channels_last), nodes)


def similarity(backbone: Backbone, images: Tensor, layers: tuple[LayerSpec, ...]) -> dict[str, Any]:
    """Return cosine similarities of the two precisions' features, position by position."""
    exact, rough = (backbone.maps(images, layers, p) for p in PRECISIONS)
    result = {}
    for name, maps in exact.items():
        cosine = F.cosine_similarity(maps, rough[name], dim=1).flatten()
        worst = cosine.kthvalue(max(1, len(cosine) // 1000)).values
        result[name] = {
            "mean": round(float(cosine.mean()), 6),
            "worst_of_1000": round(float(worst), 6),
            "min": round(float(cosine.min()), 6),
        }
    return result


def company(backbone: Backbone, image: Tensor, layers: tuple[LayerSpec, ...]) -> dict[str, float]:
    """Return how far one image's features move with the batch size, relative to their maximum."""
    result = {}
    for precision in PRECISIONS:
        alone = backbone.maps(image[None], layers, precision)
        fixed = backbone.maps(torch.stack([image] * 7), layers, precision)
        result[f"maps_{precision}"] = max(
            float((fixed[k] - v).abs().max() / v.abs().max()) for k, v in alone.items()
        )
        nodes = {n for x in layers for n in x.nodes}
        raw = []
        with torch.no_grad(), torch.autocast(
            "cpu", torch.bfloat16, enabled=precision == "bfloat16"
        ):  # fmt: skip
            for count in (1, 2, 16):
                x = torch.stack([image] * count).contiguous(memory_format=torch.channels_last)
                raw.append({k: v[:1] for k, v in backbone._nodes.run(x, nodes).items()})
        result[f"plain_{precision}"] = max(
            float((other[k] - v).abs().max() / v.abs().max())
            for other in raw[1:]
            for k, v in raw[0].items()
        )
    return result


def ratio(over: list[float], under: list[float]) -> float:
    """Return the median over the turns of one way's time by another's."""
    return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 3)


def measure(
    data: Path,
    name: str,
    weights: Path,
    options: dict[str, Any],
    layers: tuple[LayerSpec, ...],
    size: int,
    count: int,
    repeats: int,
) -> dict[str, Any]:
    """Measure one backbone; see the module's text."""
    before = machine()
    backbone = load_backbone(name, weights, options=options)
    backbone.check_weights(layers)
    records = scan_mvtec(data).records[:count]
    jobs = [Job(r.sha256, r.path) for r in records]
    spec = {p: backbone.default_spec(size, precision=p) for p in PRECISIONS}
    images = torch.stack([preprocess(read_image(r.path), spec["float32"]) for r in records])
    ways: dict[str, Callable[[Precision], object]] = {
        "pipeline": lambda p: sum(len(b.jobs) for b in extract(jobs, backbone, spec[p], layers)),
        "bare": lambda p: backbone.maps(images, layers, p),
        "plain": lambda p: run_plain(backbone, images, layers, p == "bfloat16"),
    }
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        for precision in PRECISIONS:
            # To and fro, so that none always follows the same other.
            for way in sorted(ways, reverse=bool(turn % 2)):
                work = ways[way]
                start, used = time.perf_counter(), time.process_time()
                work(precision)
                if turn:  # the first warms up
                    wall.setdefault(f"{way}_{precision}", []).append(time.perf_counter() - start)
                    cpu.setdefault(f"{way}_{precision}", []).append(time.process_time() - used)
    took = {k: statistics.median(v) for k, v in wall.items()}
    used_cpu = {k: statistics.median(v) for k, v in cpu.items()}
    result: dict[str, Any] = {
        "benchmark": "extraction",
        "backbone": name,
        "set": data.name,
        "images": len(jobs),
        "size": size,
        "layers": [x.name for x in layers],
        "threads": torch.get_num_threads(),
        "images_per_second": {k: round(len(jobs) / v, 2) for k, v in took.items()},
        "cpu_ms_per_image": {k: round(1e3 * v / len(jobs), 2) for k, v in used_cpu.items()},
    }
    for p in PRECISIONS:
        bare = [min(*x) for x in zip(wall[f"bare_{p}"], wall[f"plain_{p}"], strict=True)]
        result[f"ratio_{p}"] = ratio(bare, wall[f"pipeline_{p}"])
        result[f"ratio_to_plain_{p}"] = ratio(wall[f"plain_{p}"], wall[f"pipeline_{p}"])
        result[f"cpu_ratio_{p}"] = ratio(cpu[f"bare_{p}"], cpu[f"pipeline_{p}"])
    result["bfloat16_speedup"] = ratio(wall["bare_float32"], wall["bare_bfloat16"])
    result["cosine"] = similarity(backbone, images[:16], layers)
    result["batch_company"] = company(backbone, images[0], layers)
    return {**result, **before}


def row(result: dict[str, Any]) -> str:
    """Return the markdown row of a result."""
    speed = result["images_per_second"]
    cells = [result["backbone"], f"{result['size']} px"]
    for p in PRECISIONS:
        cells += [
            f"{speed[f'pipeline_{p}']:.1f}",
            f"{speed[f'bare_{p}']:.1f}",
            f"{speed[f'plain_{p}']:.1f}",
            f"{100 * result[f'ratio_{p}']:.0f} %",
            f"{100 * result[f'cpu_ratio_{p}']:.0f} %",
        ]
    worst = min(x["worst_of_1000"] for x in result["cosine"].values())
    return "| " + " | ".join([*cells, f"{result['bfloat16_speedup']}", f"{worst:.4f}"]) + " |"


HEAD = (
    "| backbone | size | "
    + " | ".join(
        f"{p} {what}"
        for p in PRECISIONS
        for what in ("pipeline img/s", "bare", "plain torch", "pipeline / best bare", "by cpu time")
    )
    + " | bf16 / fp32 speed | cosine, worst of 1000 |"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", type=Path, default=Path("../shared/data/weights"))
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--layers", default="layer2,layer3")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    layers = tuple(LayerSpec.parse(x) for x in a.layers.split(","))
    result = measure(a.data, a.backbone, a.weights, a.options, layers, a.size, a.images, a.repeats)
    line = json.dumps(result)
    print(line)
    print(HEAD)
    print("|" + "---|" * (HEAD.count("|") - 1))
    print(row(result))
    if a.out:
        with a.out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
