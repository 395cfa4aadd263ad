"""Whole trainings from the store against a public library's, turn by turn in one call.

    python -m benchmarks.peers --peer-python /path/to/venv/bin/python [--case cs_flow ...] \
        [--data ../shared/data] [--turns 1] [--out FILE]

Both sides train on the same images at the same size, batch and number of epochs, with the same
backbone weights and all cores. Ours: choosing the arithmetic, extraction, commits to a fresh store,
the head's `fit` from that store. Theirs: `Engine.fit`, as `../shared/tools/anomalib_peer.py` runs
it. Neither side counts imports or building the net, and neither holds images out. Every measurement
is a process of its own; peak memory is that process's, for the peer's before it predicts.

One JSON line per case with the medians over the turns and their ratio. Where the peer's environment
or script is missing, ours is measured alone and the line says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, run_apart, tell

HERE = Path(__file__).resolve().parents[1]
WEIGHTS = {"resnet18": "resnet18.in1k_to_layer3.safetensors"}


@dataclass(frozen=True)
class Pairing:
    """A head and its public counterpart.

    Parameters
    ----------
    head, peer
        Names on either side.
    backbone
        timm name; without a weight file it is random on both sides, for timing alone.
    size, batch, images, epochs
        The same on both sides.
    settings
        Over the head's defaults, where the counterpart's differ from the paper's.
    options
        Further arguments of the peer's script.
    """

    head: str
    peer: str
    size: int
    batch: int
    images: int
    epochs: int = 10
    backbone: str = "resnet18"
    settings: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()


PAIRINGS = {
    "cs_flow": Pairing("cs_flow", "csflow", 768, 4, 8, backbone="efficientnet_b5"),
    "fast_flow": Pairing("fast_flow", "fastflow", 256, 8, 24, settings={"image_size": 256}),
    "patchcore": Pairing("patchcore", "patchcore", 256, 8, 30, 1, settings={"ratio": 0.1}),
    "padim": Pairing("padim", "padim", 256, 8, 90, 1),
}


def surroundings(peer: str) -> dict[str, str]:
    """Return what the environment of a counterpart must have.

    Without it the coreset of theirs exhausts the memory (see their script); everything else of
    theirs it slows down by up to two.
    """
    return {"MALLOC_MMAP_THRESHOLD_": "1048576"} if peer == "patchcore" else {}


def our_side(pairing: Pairing, images: Path, weights: Path) -> dict[str, Any]:
    """Extract once, train from the store; return seconds of each and this process's peak memory."""
    from features.backbones.backbone import load_backbone
    from features.extract import Job, extract
    from features.images.scan import scan_mvtec
    from heads.catalogue import get_head, make_config
    from heads.contract import NullProgress, TrainOptions
    from storage.store.feature_store import FeatureStore
    from storage.store.table import ImageRow, Selection

    backbone = load_backbone(pairing.backbone, weights)
    settings: dict[str, Any] = dict(pairing.settings)
    if pairing.epochs > 1:
        settings["batch_size"] = pairing.batch
    config, side = make_config(pairing.head, settings), (pairing.size, pairing.size)
    cls = get_head(pairing.head)
    records = [r for r in scan_mvtec(images).records if r.split == "train"]
    layers = cls.needs(config, backbone.info, side).layers
    head = cls(config, backbone.shapes(layers, side), side)
    with tempfile.TemporaryDirectory() as folder:
        marks = [time.perf_counter()]
        spec = backbone.default_spec(resize=side)
        marks.append(time.perf_counter())
        store = FeatureStore.open(folder, "bench")
        for block in extract([Job(r.sha256, r.path) for r in records], backbone, spec, layers):
            assert not block.failed, block.failed
            rows = [ImageRow(j.sha256, j.path.name, "train") for j in block.jobs]
            store.write(spec, [(j.sha256, j.view) for j in block.jobs], block.maps, images=rows)
        marks.append(time.perf_counter())
        source = store.reader(spec, layers, Selection(split="train"))
        options = TrainOptions(epochs=pairing.epochs)
        head.fit(source, source.subset([]), options, NullProgress())
        marks.append(time.perf_counter())
    choosing, extraction, training = (b - a for a, b in itertools.pairwise(marks))
    return {
        "n_train": len(source), "train_s": round(marks[-1] - marks[0], 2),
        "choosing_s": round(choosing, 2), "extraction_s": round(extraction, 2),
        "fit_s": round(training, 2), "extraction_precision": spec.precision,
        "rss_train_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def random_weights(name: str, images: Path, size: int, out: Path) -> Path:
    """Write random weights whose maps are of order 1: batch statistics from the images themselves.

    A fresh net's own statistics let the maps fade away, and the loss is then 0 from the start.
    """
    import timm
    from safetensors.torch import save_file

    from features.images.pixels import read_image

    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False).train()
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
    paths = sorted((images / "train" / "good").iterdir())[:2]
    batch = torch.stack([torch.from_numpy(read_image(p)).permute(2, 0, 1) for p in paths])
    mean, std = (torch.tensor(net.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    batch = torch.nn.functional.interpolate(batch / 255, size=(size // 2, size // 2))
    batch = (batch - mean) / std
    with torch.no_grad():
        net(batch)
    save_file(net.state_dict(), out)
    return out


def some_images(data: Path, count: int, out: Path) -> Path:
    """Copy `count` normal images, and a test image of each kind for the peer's script."""
    source = data / "images" / "glassfiber_layup_512"
    wanted = {"train/good": count}
    for folder in sorted((source / "test").iterdir()):
        wanted[f"test/{folder.name}"] = 1
    for name, many in wanted.items():
        (out / name).mkdir(parents=True)
        for path in sorted((source / name).iterdir())[:many]:
            shutil.copy(path, out / name / path.name)
    shutil.copytree(source / "ground_truth", out / "ground_truth")
    return out


def compare(name: str, data: Path, python: Path | None, script: Path, turns: int) -> dict[str, Any]:
    """Return both sides' medians and their ratio."""
    pairing, sides = PAIRINGS[name], {"ours": [], "peer": []}  # type: ignore[var-annotated]
    weights = data / "weights" / WEIGHTS[pairing.backbone] if pairing.backbone in WEIGHTS else None
    with tempfile.TemporaryDirectory() as folder:
        images = some_images(data, pairing.images, Path(folder) / "images")
        ours = [sys.executable, "-m", "benchmarks.peers", "--one", name, "--images", str(images)]
        peer = [str(python), str(script), "--model", pairing.peer, "--data", str(images)]
        peer += ["--size", str(pairing.size), "--epochs", str(pairing.epochs)]
        peer += ["--batch", str(pairing.batch), *pairing.options]
        if weights is None:
            made = Path(folder) / "random.safetensors"
            random_weights(pairing.backbone, images, pairing.size, made)
            ours += ["--weights", str(made)]
        else:
            ours += ["--weights", str(weights)]
            peer += ["--backbone", pairing.backbone, "--weights", str(weights)]
        for turn in range(turns):
            for side in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
                if side == "peer" and python is None:
                    continue
                extra = surroundings(pairing.peer) if side == "peer" else {}
                found = run_apart(ours if side == "ours" else peer, HERE, **extra)
                print(f"{name}, {side}: {json.dumps(found)[:600]}", file=sys.stderr, flush=True)
                sides[side].append(found)
    row: dict[str, Any] = {
        "head": name, "peer": pairing.peer, "backbone": pairing.backbone, "size": pairing.size,
        "images": pairing.images, "epochs": pairing.epochs, "batch": pairing.batch,
        "turns": turns,
    }  # fmt: skip
    for side, each in sides.items():
        good = [f for f in each if "failed" not in f]
        row[side] = good[-1] if good else (each or "not measured: no environment of the peer's")
        for key in ("train_s", "rss_train_mb"):
            if good:
                row[f"{side}_{key}"] = statistics.median(f[key] for f in good)
                row[f"{side}_{key}_all"] = [f[key] for f in good]
    if "peer_train_s" in row and "ours_train_s" in row:
        row["ratio"] = round(row["peer_train_s"] / row["ours_train_s"], 2)
        row["ratio_memory"] = round(row["peer_rss_train_mb"] / row["ours_rss_train_mb"], 2)
    return row


def main() -> None:
    """Measure and print one JSON line a case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="+", default=list(PAIRINGS), choices=list(PAIRINGS))
    parser.add_argument("--data", type=Path, default=HERE.parent / "shared" / "data")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(our_side(PAIRINGS[a.one], a.images, a.weights)), flush=True)
        return
    data, about = a.data.resolve(), machine()
    script = data.parent / "tools" / "anomalib_peer.py"
    python = a.peer_python
    if python is None or not python.exists() or not script.exists():
        missing = "--peer-python" if python is None else python if script.exists() else script
        print(f"only our side is measured: {missing} is missing", file=sys.stderr)
        python = None
    for name in a.case:
        tell({**compare(name, data, python, script, a.turns), **about}, a.out)


if __name__ == "__main__":
    main()
