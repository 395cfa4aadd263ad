"""The coreset against plain greedy: the same choice, the same radius, seconds side by side.

    python -m benchmarks.coreset --data ../shared/data/images/glassfiber_layup_512 \
        --weights ../shared/data/weights/resnet18.in1k_to_layer3.safetensors \
        [--backbone resnet18] [--ratio 0.1] [--plain 200] [--threads 2] [--out results.jsonl]

Features are those of `patchcore` on all normal training images at 256 px. Plain greedy (one pass
over all vectors per choice, by matrix products over norms worked out once) makes the first
``--plain`` choices and its time for all of them is scaled up from there; ``--plain 0`` makes all,
and then its covering radius is compared too. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine
from features.backbones.backbone import load_backbone
from features.extract import Job, extract
from features.images.scan import scan_mvtec
from heads.gallery.coreset import coreset_size, k_center
from heads.gallery.patchcore import PatchCore, PatchCoreConfig


def normal_vectors(data: Path, backbone_name: str, weights: Path) -> Tensor:
    """Return the float16 vectors of all positions of all normal training images."""
    backbone = load_backbone(backbone_name, weights)
    spec = backbone.default_spec((256, 256))
    layers = PatchCore.needs(PatchCoreConfig(), backbone.info, (256, 256)).layers
    images = [r for r in scan_mvtec(data).records if r.split == "train" and r.is_normal]
    channels, height, width = backbone.shapes(layers, (256, 256))[layers[0].name]
    out = torch.empty(len(images) * height * width, channels, dtype=torch.float16)
    done = 0
    for block in extract([Job(r.sha256, r.path) for r in images], backbone, spec, layers):
        maps = torch.from_numpy(block.maps[layers[0].name])
        part = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        out[done : done + len(part)] = part
        done += len(part)
    return out[:done]


def plain_greedy(x: Tensor, count: int, start: int) -> tuple[list[int], float, float]:
    """Return ``(rows, covering radius, seconds)`` of `count` choices the plain way."""
    x = x.float() - x[start].float()
    norms = x.square().sum(1)
    began = time.perf_counter()
    chosen, far = [start], norms.clone()
    while len(chosen) < count:
        row = int(far.argmax())
        chosen.append(row)
        torch.minimum(far, torch.addmv(norms, x, x[row], alpha=-2.0).add_(norms[row]), out=far)
    return chosen, max(0.0, float(far.max())) ** 0.5, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--plain", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    about = machine()
    vectors = normal_vectors(args.data, args.backbone, args.weights)
    count = coreset_size(len(vectors), args.ratio)

    def tell(done: int, total: int) -> None:
        print(f"{done}/{total} after {time.perf_counter() - began:.0f} s", file=sys.stderr)

    began, cpu = time.perf_counter(), time.process_time()
    ours = k_center(vectors, count, seed=args.seed, progress=tell)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    steps = min(count, args.plain or count)
    rows, radius, plain_seconds = plain_greedy(vectors, steps, int(ours.indices[0]))
    scaled = plain_seconds / steps * count
    row: dict[str, Any] = {
        "data": args.data.name,
        "backbone": args.backbone,
        "vectors": list(vectors.shape),
        "chosen": len(ours.indices),
        "radius": round(ours.radius, 5),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "ms_per_choice": round(1e3 * seconds / count, 3),
        "peak_mb": round(peak),
        "threads": torch.get_num_threads(),
        "plain_choices": steps,
        "plain_ms_per_choice": round(1e3 * plain_seconds / steps, 3),
        "plain_seconds_for_all": round(scaled, 1),
        "times_faster": round(scaled / seconds, 1),
        "same_first_choices": rows == ours.indices[:steps].tolist(),
        "plain_radius": round(radius, 5) if steps == count else None,
        "machine": about,
    }
    tell(row, args.out)


if __name__ == "__main__":
    main()
