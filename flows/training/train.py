"""Train one head from the store, evaluate it, register it: a plain function, run by Dask workers.

Nothing here knows of Prefect or of the cluster; `train_head` can be called as it is.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from typing import Any

import torch

from features.images.masks import read_mask
from flows.extraction.regions import regions_of
from flows.runtime.dask import PeakMemory, WorkerProgress, own_device
from flows.runtime.home import working_folder
from flows.training.artifacts import write_artifacts
from flows.training.data import TrainingData
from flows.training.evaluation import Judgement, judge
from flows.training.found import find_trained
from flows.training.results import TrainOutcome
from flows.training.trainings import Training
from heads.catalogue import get_head
from heads.contract import FeatureSource, Head, Shape, TrainOptions
from heads.judging.calibration import Calibration
from heads.training.folds import Folds
from heads.training.out_of_fold import FoldByFold, OutOfFold, leaves_out, sides
from headwater.errors import ConfigError, WeightsError
from headwater.files import write_text
from headwater.spec import TileSpec
from storage.registry.registry import Registry
from storage.registry.runs import Run
from storage.serving.detector import Detector
from storage.serving.save import save_model


class _Work:
    """What a training, or one of its folds, works with."""

    def __init__(self, training: Training, data: TrainingData, key: str) -> None:
        self.training, self.data = training, data
        self.folder, options = training.home.checkpoints / key, training.options
        self.options = TrainOptions(
            device=own_device(options.device),
            precision=options.precision,
            threads=training.threads,
            checkpoint_dir=self.folder,
            epochs=options.epochs,
            early_stop=options.early_stop,
        )
        if training.folds:
            self.source: Any = data.normals()
            head = self.build()
            head.check(self.source)
            rows = range(len(self.source))
            self.train, self.held_out = sides(head, self.source, rows, self.share, self.options)
        else:
            self.train, self.held_out = data.sources()
            self.source = self.train

    @property
    def share(self) -> float:
        """Of the images a head learns from, those that it chooses by, if it does."""
        assert self.training.options.held_out is not None
        return self.training.options.held_out

    def build(self) -> Head:
        """Return the head, not fitted."""
        plan, shapes = self.training.plan, _layer_shapes(self.data, self.source)
        return get_head(plan.head)(plan.make_config(), shapes, plan.spec.input_size)

    @functools.cached_property
    def folds(self) -> FoldByFold:
        """The heads that each have not learnt from one fold; kept as long as the checkpoint is."""
        file = self.folder / "folds.json"
        if file.is_file():
            found = Folds.from_json(json.loads(file.read_text()))
        else:
            found = self.data.folds(self.source)
            write_text(file, json.dumps(found.to_json()))
        return FoldByFold(self.build, self.source, found, share=self.share, keep=self.folder)


def score_fold(training: Training, number: int) -> None:
    """Score one of a training's folds ahead of it; nothing where there is nothing to be done.

    `train_head` needs none of this: it finds what is there and does the rest. So folds can be done
    side by side, and one that fails is told of by `train_head`.
    """
    training.home.prepare_environment()
    torch.set_num_threads(training.threads)
    data = TrainingData(training)
    key = data.key()
    registry = Registry(training.home.root, training.home.tracking_url)
    if find_trained(training, key, registry) is None:
        work = _Work(training, data, key)
        if number < work.folds.folds.count and not leaves_out(work.build(), work.source):
            # Folds go side by side: each has a line of its own.
            name = f"{training.plan.head} {number + 1}/{work.folds.folds.count}"
            work.folds.one(number, work.options, WorkerProgress(name, _unheard))


def _unheard(name: str, value: float, epoch: int) -> None:
    """Take a figure of a fold's epoch, which is nobody's."""


def train_head(training: Training) -> TrainOutcome:
    """Train, calibrate, evaluate and register one head; find it instead where it is done already.

    Idempotent: the key is (samples, head configuration, extractor, options), looked up in MLflow
    first. A broken training goes on from its checkpoint, and folds that were scored stay scored.

    Raises
    ------
    HeadwaterError
        Whatever stops the training; the MLflow run is marked failed.
    """
    home, plan = training.home, training.plan
    home.prepare_environment()
    torch.set_num_threads(training.threads)
    data = TrainingData(training)
    registry = Registry(home.root, home.tracking_url)
    # Again, though the driver has looked: a retried task may find its own first try's work.
    key = data.key()
    if (done := find_trained(training, key, registry)) is not None:
        return done
    work = _Work(training, data, key)
    train, held_out, head = work.train, work.held_out, work.build()
    head.check(train)
    run = registry.start(
        training.image_set,
        plan.head,
        key,
        parent_run=training.parent_run,
        params=_params(training, len(train), _images(held_out)),
        tags=data.tags() | {"extractor_id": plan.extractor_id, "store_extractor": plan.spec.id},
        images=data.all,
        store=home.store,
        summary=f"{head.summary} ({head.paper})" if head.paper else head.summary,
    )
    with run:
        progress = WorkerProgress(plan.head, run.metric)
        with PeakMemory() as memory:
            apart = work.folds.all(work.options, progress) if training.folds else None
            began = time.perf_counter()
            figures = head.fit(train, held_out, work.options, progress)
            seconds = time.perf_counter() - began
        judged = judge(data, head, held_out, apart)
        run.finish(
            metrics={**judged.metrics, **{f"fit_{k}": v for k, v in figures.items()}},
            seconds=seconds,
            peak_mb=memory.peak_mb,
            score_seconds_per_image=judged.score_seconds / max(len(judged.table), 1),
            **_promise(judged.calibration, apart),
        )
        run.tell(judged.notes, threshold=_origin(judged.calibration))
        write_artifacts(data, run, judged, apart)
        version = register(training, run, head, judged, key)
    # Retention must never remove what a registered model was trained on.
    label = f"model-{plan.head}-v{version}"
    try:
        data.keep(label)
    except ConfigError:
        # A tag never moves, but MLflow counts anew where its database was replaced.
        data.keep(f"{label}-{run.run_id[:8]}")
    shutil.rmtree(home.checkpoints / key, ignore_errors=True)
    return TrainOutcome(
        plan.head,
        version,
        run.run_id,
        run.model_name,
        dict(judged.metrics),
        seconds,
        memory.peak_mb,
        pictures=registry.pictures(run.run_id),
        notes=judged.notes,
    )


def _promise(found: Calibration, apart: OutOfFold | None) -> dict[str, float]:
    """Return what thresholds promise and what they took, as figures of a run."""
    if apart is None:
        return {}
    return {
        "promised_false_positive_rate": found.attained_fpr,
        "least_false_positive_rate": found.least_fpr,
        "calibration_seconds": apart.seconds,
    }


def _origin(found: Calibration) -> str:
    """Return a threshold and where it comes from, in words."""
    if found.rule == "fixed":
        return f"{found.threshold:.6g}, fixed: scores are probabilities"
    if found.folds is not None and found.spread is not None:
        low, high = found.spread
        return (
            f"{found.threshold:.6g} from out-of-fold scores of {found.n} normals in "
            f"{found.folds['count']} folds by {found.folds['by']}; new images that are like "
            f"these are false alarms in {found.attained_fpr:.1%} of cases on average of such sets "
            f"of normals, {low:.1%} to {high:.1%} for nine in ten; {found.target_fpr:.1%} were "
            "asked for"
        )
    return (
        f"{found.threshold:.6g} from {found.n} held-out normals, which promise "
        f"{found.attained_fpr:.1%} of false alarms; {found.target_fpr:.1%} were asked for"
    )


def _layer_shapes(data: TrainingData, source: FeatureSource) -> dict[str, Shape]:
    """Return the shapes of the layers that a head reads; a pair's two sides have the same."""
    kind = data.kind
    return {x.name: source.shapes[kind.key(kind.images[0], x.name)] for x in data.layers}


def _images(source: Any) -> int:
    """Return how many samples the rows of a source are of."""
    return len(set(source.ids)) if hasattr(source, "parts") else len(source)


def _tiles(tiles: TileSpec | None) -> dict[str, Any]:
    if tiles is None:
        return {}
    scale = "both" if tiles.scale else "tiles"
    return {"tile": tiles.edge, "overlap": tiles.overlap, "scale": scale}


def _params(training: Training, train: int, held_out: int) -> dict[str, Any]:
    plan = training.plan
    return {
        "head": plan.head,
        "preset": plan.preset,
        **{f"config.{k}": v for k, v in plan.config.items()},
        **{f"training.{k}": v for k, v in training.options_json.items()},
        "backbone": plan.spec.backbone,
        "weights_sha256": plan.spec.weights,
        "layers": ", ".join(x.name for x in plan.layers),
        "input_size": "x".join(map(str, plan.spec.input_size)),
        **_tiles(plan.spec.tiles),
        "extractor_precision": plan.spec.precision,
        "views": plan.view_spec.views.count if plan.view_spec and plan.view_spec.views else 0,
        "train_rows": train,
        "held_out_images": held_out,
        "threads": training.threads,
    }


def register(training: Training, run: Run, head: Head, judged: Judgement, key: str) -> str:
    """Save the self-contained serving model and register it; return its version."""
    plan, backbone = training.plan, None
    if not plan.reads_images:
        assert training.backbone is not None
        backbone = training.backbone.load()
        if backbone.weights_id != plan.spec.weights:
            raise WeightsError(
                f"{training.backbone.weights} is not the weight file the features were made with",
                expected=f"SHA-256 {plan.spec.weights}",
                remedy="put the file back, or extract with the new one",
            )
    whole = regions_of(plan.spec, training.home).whole
    with working_folder(training.home.root / "tmp", "model-") as folder:
        save_model(
            folder / "model",
            Detector(
                backbone,
                head.to("cpu"),
                plan.spec,
                plan.layers,
                judged.calibration,
                region=None if whole is None else read_mask(whole),
            ),
            example=judged.example,
            about={"image_set": training.image_set, "snapshot": training.snapshot, "key": key},
        )
        return run.register(folder / "model")
