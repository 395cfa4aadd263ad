"""A retraining that grows the model in service against one in full: time, and how far apart.

    python -m benchmarks.growing --data ../shared/data --set glassfiber_layup_512 --new 20 \
        [--backbone resnet18] [--heads subspace,padim,patchcore,fast_flow] [--turns 3] \
        [--most 300] [--tested 60] [--epochs 20] [--out results.jsonl]

A model of all normals but the last by name is trained and registered in a temporary home; then the
others come. In turns, all that fitting and calibrating takes is done in full (folds, fit) and grown
(open the model and what its run kept, score what is new, grow); judging is the same and is left
out. Both heads then score the test images; a gallery's covering radius is that of all normals.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine, tell
from benchmarks.quality import BACKBONES
from flows.extraction.extract import extract_set
from flows.extraction.plan import plan_job, ready
from flows.retraining.increments import by_increments
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.training.data import TrainingData
from flows.training.growing import Grown
from flows.training.train import Work, train_head
from flows.training.trainings import Request, Training
from heads.contract import Head, NullProgress
from heads.gallery.neighbours import vectors_in
from heads.gallery.patchcore import PatchCore
from heads.judging.metrics import auroc
from heads.judging.rules import rule_of
from heads.training.growing import GrowingHead
from heads.training.out_of_fold import score_source
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService

QUIET = Reporter(quiet=True)
NAME = "lines"


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what work returns, and its wall and CPU seconds."""
    wall, spent = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - spent


def put(files: Sequence[Path], images: Path, source: Path) -> None:
    """Link files of a data set into a set's folder, below what they are below there."""
    for file in files:
        to = images / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(file.resolve())


class Set:
    """A set of images in a home of its own, whose normals come in two goes."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.home, self.images, self.given = Home.at(folder / "home"), folder / "images", given
        self.home.prepare_environment()
        source = given.data / "images" / given.set
        normals = sorted((source / "train/good").iterdir())[: given.most or None]
        kinds = [sorted(kind.iterdir()) for kind in sorted((source / "test").iterdir())]
        self.first, self.late = normals[: -given.new], normals[-given.new :]
        self.source = source
        put(self.first, self.images, source)
        for kind in kinds:
            put(kind[: given.tested or None], self.images, source)

    def settings(self, head: str) -> Settings:
        """Return the settings of one head's training."""
        given, chosen = self.given, BACKBONES[self.given.backbone]
        own = {"epochs": given.epochs} if "flow" in head and given.epochs else {}
        return Settings.model_validate(
            {
                "image_set": NAME,
                "images": self.images,
                "links": "anywhere",
                "backbone": {
                    "name": given.backbone,
                    "weights": given.data / "weights" / chosen["file"],
                    "options": chosen.get("options", {}),
                },
                "extraction": {"size": given.size},
                "heads": {head: own},
                "training": {"preset": "small", "device": "cpu"},
                "retrain": {"increments": "all"},
            }
        )

    def asked(self, head: str) -> tuple[Request, Any]:
        """Extract what is new; return what is to be trained, and at what."""
        settings = ready(self.settings(head), self.home)
        at = extract_set(settings, self.home, QUIET).version
        return Request(settings, self.home, plan_job(settings, self.home)), at


def tested(head: Head, data: TrainingData) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the image AUROC over the test images, their scores, and each map's largest value."""
    scores, maps = score_source(head.eval(), data.source(data.test))
    labels = np.array([bool(s.defective) for s in data.test])
    return auroc(scores, labels), scores, maps.max((1, 2))


def radius(head: Head, source: Any) -> float | None:
    """Return how far the farthest position of all normals lies from a gallery."""
    if not isinstance(head, PatchCore):
        return None
    far = 0.0
    for vectors, _ in vectors_in(source, head.layer):
        far = max(far, float(head.gallery.nearest(head.whitening(vectors))[0].max()))
    return far


def measured(made: Set, one: Training, grown: Training, turns: int, folder: Path) -> dict[str, Any]:
    """Return the figures of a head: in full and grown, in turns."""
    told: dict[str, list[float]] = {}
    for turn in range(turns):
        full = Work(one, TrainingData(one), folder / f"full-{turn}")
        head = full.build()

        def anew(full: Work = full, head: Head = head) -> None:
            apart = full.folds.all(full.options, NullProgress())
            head.fit(full.train, full.held_out, full.options, NullProgress())
            if apart.parts is not None:  # what a judgement does first
                rule_of(head).settle(apart.parts)

        _, wall, spent = timed(anew)
        work = Grown(grown, TrainingData(grown), folder / f"grown-{turn}")
        other, of = work.build(), grown.grown_from
        assert of is not None
        grow = partial(work.taken_in, other, of, NullProgress())
        (_, figures), less, least = timed(grow)
        new = {"full_s": wall, "full_cpu_s": spent, "grown_s": less, "grown_cpu_s": least}
        for name, value in new.items():
            told.setdefault(name, []).append(value)
    (a, x, hot), (b, y, warm) = (tested(h, full.data) for h in (head, other))
    row: dict[str, Any] = {k: round(statistics.median(v), 3) for k, v in told.items()}
    row |= {"all_turns": {k: [round(s, 3) for s in v] for k, v in told.items()}}
    row |= {"full_auroc": round(a, 4), "grown_auroc": round(b, 4)}
    # Scores are pooled on a scale that normals set: the grown head has the first one's.
    row |= {"scores_apart": float(np.abs(x - y).max() / x.std())}
    row |= {"maps_apart": float(np.abs(hot - warm).max() / hot.std())}
    row |= {"state_mb": sum(v.nbytes for v in other.state_dict().values()) / 1e6}
    kept = other.keepsake() if isinstance(other, GrowingHead) else {}
    row |= {"keepsake_mb": sum(v.nbytes for v in kept.values()) / 1e6}
    row |= {"times_cpu": round(row["full_cpu_s"] / row["grown_cpu_s"], 1)}
    row |= {"times_wall": round(row["full_s"] / row["grown_s"], 1)}
    if isinstance(head, PatchCore) and isinstance(other, PatchCore):
        row |= {
            "full_radius": radius(head, full.source),
            "grown_radius": radius(other, full.source),
        }
        row |= {"full_gallery": len(head.gallery), "grown_gallery": len(other.gallery)}
        row |= {"first_radius": figures["coreset_radius"]}
    return row


def main() -> None:
    """Measure by the arguments; print, and append, a row a head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="glassfiber_layup_512")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--heads", default="subspace,padim,patchcore,fast_flow")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--most", type=int, default=0, help="normals at most, 0 for all")
    parser.add_argument("--tested", type=int, default=0, help="test images a kind at most")
    parser.add_argument("--epochs", type=int, default=0, help="of flow heads; 0 for the preset's")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    about = {"set": given.set, "backbone": given.backbone, "size": given.size, "new": given.new}
    tell({"machine": machine(), "threads": torch.get_num_threads(), **about}, given.out)
    for head in given.heads.split(","):
        folder = Path(tempfile.mkdtemp(prefix="headwater-growing-"))
        try:
            made = Set(folder, given)
            asked, at = made.asked(head)
            (one,) = asked.trainings(at)
            done = train_head(one)
            registry = Registry(made.home.root)
            row = registry.get_model(NAME, head, done.version)
            InService(registry, NAME).promote(row, "", "benchmark")
            put(made.late, made.images, made.source)
            asked, at = made.asked(head)
            (one,), (growing, said) = asked.trainings(at), by_increments(asked, at)
            (grown,) = growing.trainings(at)
            if grown.grown_from is None:
                raise SystemExit(f"{head}: not grown: {said}")
            figures = measured(made, one, grown, given.turns, folder)
            tell(
                {**about, "normals": len(made.first) + given.new, "head": head, **figures},
                given.out,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
