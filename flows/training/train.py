"""Train one head from the store, evaluate it, register it: a plain function, run by Dask workers.

Nothing here knows of Prefect or of the cluster; `train_head` can be called as it is.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from features.backbones.backbone import load_backbone
from features.images.pixels import read_image
from flows.extraction.plan import HeadPlan
from flows.runtime.dask import PeakMemory, WorkerProgress, own_device
from flows.runtime.home import Home, working_folder
from flows.training.artifacts import write_artifacts
from flows.training.evaluation import calibrate_head, evaluate_scores, per_image_rows, score_test
from flows.training.jobs import Judgement, TrainJob, TrainOutcome, Work, key_of
from heads.catalogue import get_head
from heads.contract import FeatureSource, Head, Shape, TrainOptions
from heads.pairs.source import CURRENT
from heads.training.splits import split_held_out
from headwater.errors import ConfigError, DataError, LayerError, WeightsError
from headwater.spec import digest
from storage.registry.registry import Registry
from storage.registry.runs import Run
from storage.serving.detector import Detector
from storage.serving.save import save_model
from storage.store.feature_store import FeatureStore
from storage.store.table import Selection
from storage.upkeep.history import tag

#: Normal images without which nothing is trained: two to learn from, two to hold out.
AT_LEAST = 4


def work_of(job: TrainJob, home: Home) -> Work:
    """Return what a job reads; cheap, but for the image table."""
    if job.pairs is not None:
        from flows.training.pairs import PairWork

        return PairWork(job, home)
    return ImageWork(job, home)


class ImageWork:
    """Normal images to learn from, and test images, of one image set."""

    def __init__(self, job: TrainJob, home: Home) -> None:
        self.job = job
        self.store = FeatureStore.open(home.store, job.image_set, create=False)

    @functools.cached_property
    def lacking(self) -> list[str]:
        """See `without_features`."""
        return without_features(self.job, self.store)

    def key(self) -> str:
        """Two snapshots with the same images and labels give the same key.

        So extracting for another head does not make a finished training look stale.
        """
        table = self.store.table(self.job.snapshot)
        images = table.images(table.rows(Selection(known_by=self.job.known_by)))
        seen = digest(sorted([r.sha256, r.split, r.kind, r.mask] for r in images))
        if self.lacking:
            # The same images with all their features are another training.
            seen = digest([seen, self.lacking])
        return key_of(self.job, seen)

    def sources(self) -> tuple[FeatureSource, FeatureSource]:
        """See `normal_sources`."""
        return normal_sources(self.store, self.job)

    def images(self) -> Sequence[Any]:
        """Return the image table at the snapshot."""
        return self.store.table(self.job.snapshot).images()

    def tags(self) -> dict[str, str]:
        """Return the snapshot."""
        return {"snapshot": self.job.snapshot}

    def judge(self, head: Head, held_out: FeatureSource) -> Judgement:
        """Score the test images against thresholds set on held-out normals."""
        job = self.job
        calibration, held_scores = calibrate_head(head, held_out, job.training["target_fpr"])
        began = time.perf_counter()
        scored = score_test(self.store, job, head)
        seconds = time.perf_counter() - began
        metrics, notes = evaluate_scores(job, scored, calibration)
        notes += calibration.caveats
        if self.lacking:
            notes.append(_left_out(job, self.lacking))
        rows = per_image_rows(scored, calibration.threshold)
        example = None
        for row in scored.table[:1]:
            with contextlib.suppress(OSError, ValueError):
                example = read_image(Path(job.root) / row["path"])

        def draw(run: Run) -> None:
            write_artifacts(job, run, scored, held_scores, calibration, rows)

        return Judgement(calibration, metrics, notes, rows, seconds, draw, example)

    def keep(self, name: str) -> None:
        """Tag the snapshot."""
        tag(self.store, name, self.job.snapshot)


def without_features(job: TrainJob, store: FeatureStore) -> list[str]:
    """Return the paths of images of a training that lack a layer: they are left out of it.

    An extraction was cut off, a file could not be read, or the features of removed images, which
    belong to a view of the past, were purged.
    """
    plan, select = job.plan, Selection(known_by=job.known_by)
    with contextlib.suppress(LayerError):
        reader = store.reader(plan.spec, plan.layers, select, job.snapshot, missing="skip")
        return sorted(reader.missing)
    return []


def find_trained(job: TrainJob, key: str, registry: Registry) -> TrainOutcome | None:
    """Return the outcome of a finished training with this `Work.key`, or None."""
    done = registry.find_finished(job.image_set, job.plan.head, key)
    if done is None:
        return None
    return TrainOutcome(
        job.plan.head,
        done["version"],
        done["run_id"],
        done["model"],
        done["metrics"],
        done["seconds"],
        done["peak_mb"],
        reused=True,
        pictures=registry.pictures(done["run_id"]),
    )


def train_head(job: TrainJob) -> TrainOutcome:
    """Train, calibrate, evaluate and register one head; find it instead where it is done already.

    Idempotent: the key is (images, head configuration, extractor, options), looked up in MLflow
    first. A broken training goes on from its checkpoint.

    Raises
    ------
    HeadwaterError
        Whatever stops the training; the MLflow run is marked failed.
    """
    home = Home(Path(job.home), job.store_url, job.tracking_url)
    home.prepare_environment()
    torch.set_num_threads(job.threads)
    plan = job.plan
    work = work_of(job, home)
    registry = Registry(home.root, home.tracking_url)
    # Again, though the driver has looked: a retried task may find its own first try's work.
    key = work.key()
    if (done := find_trained(job, key, registry)) is not None:
        return done
    train, held_out = work.sources()
    head = get_head(plan.head)(plan.make_config(), layer_shapes(plan, train), plan.spec.input_size)
    head.check(train)
    run = registry.start(
        job.image_set,
        plan.head,
        key,
        parent_run=job.parent_run,
        params=_params(job, len(train), len(held_out)),
        tags=work.tags() | {"extractor_id": plan.extractor_id, "store_extractor": plan.spec.id},
        images=work.images(),
        store=home.store,
    )
    with run:
        progress = WorkerProgress(plan.head, run.metric)
        train_options = TrainOptions(
            device=own_device(job.training["device"]),
            precision=job.training["precision"],
            threads=job.threads,
            checkpoint_dir=home.checkpoints / key,
            epochs=job.training["epochs"],
            early_stop=job.training["early_stop"],
        )
        began = time.perf_counter()
        with PeakMemory() as memory:
            figures = head.fit(train, held_out, train_options, progress)
        seconds = time.perf_counter() - began
        judged = work.judge(head, held_out)
        run.finish(
            metrics={**judged.metrics, **{f"fit_{k}": v for k, v in figures.items()}},
            seconds=seconds,
            peak_mb=memory.peak_mb,
            score_seconds_per_image=judged.score_seconds / max(len(judged.rows), 1),
        )
        judged.draw(run)
        version = register(job, run, head, judged, key)
    # Retention must never remove what a registered model was trained on.
    label = f"model-{plan.head}-v{version}"
    try:
        work.keep(label)
    except ConfigError:
        # A tag never moves, but MLflow counts anew where its database was replaced.
        work.keep(f"{label}-{run.run_id[:8]}")
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


def layer_shapes(plan: HeadPlan, source: FeatureSource) -> dict[str, Shape]:
    """Return the shapes of the layers that a head reads; a pair's two sides have the same."""
    shapes = source.shapes
    prefix = CURRENT if get_head(plan.head).pairs else ""
    return {layer.name: shapes[prefix + layer.name] for layer in plan.layers}


def normal_sources(store: FeatureStore, job: TrainJob) -> tuple[FeatureSource, FeatureSource]:
    """Return the normal images to train on (views included) and those held out (plain only).

    Raises
    ------
    DataError
        With fewer than four normal images: two to learn from, two to hold out.
    """
    plan = job.plan
    select = Selection(split="train", kind="good", known_by=job.known_by)
    plain = store.reader(plan.spec, plan.layers, select, job.snapshot, missing="skip")
    if len(plain) < AT_LEAST:
        when = " that had arrived by then" if job.known_by is not None else ""
        raise DataError(
            f"{job.image_set}: {len(plain)} normal image(s) to train on{when}",
            expected=f"at least {AT_LEAST}",
            remedy="give a later --known-by" if when else "add normal images and run again",
        )
    train_rows, held_rows = split_held_out(plain.ids, job.training["held_out"], 2)
    train = plain.subset(train_rows)
    if plan.view_spec is not None:
        views = store.reader(plan.view_spec, plan.layers, select, job.snapshot, missing="skip")
        kept = {plain.ids[i] for i in train_rows}
        rows = [i for i, sha in enumerate(views.ids) if sha in kept]
        train = train.concat([train, views.subset(rows)])
    return train, plain.subset(held_rows)


def _left_out(job: TrainJob, lacking: list[str]) -> str:
    cure = (
        "--snapshot trains on the store as it was then"
        if job.known_by is not None
        else f"`headwater extract {job.image_set}` computes them"
    )
    return (
        f"{job.plan.head}: {len(lacking)} image(s) without stored features were left out, such as "
        f"{lacking[0]}; {cure}"
    )


def _params(job: TrainJob, train: int, held_out: int) -> dict[str, Any]:
    plan = job.plan
    return {
        "head": plan.head,
        "preset": plan.preset,
        **{f"config.{k}": v for k, v in plan.config.items()},
        **{f"training.{k}": v for k, v in job.training.items()},
        "backbone": plan.spec.backbone,
        "weights_sha256": plan.spec.weights,
        "layers": ", ".join(x.name for x in plan.layers),
        "input_size": "x".join(map(str, plan.spec.input_size)),
        "extractor_precision": plan.spec.precision,
        "views": plan.view_spec.views.count if plan.view_spec and plan.view_spec.views else 0,
        "train_rows": train,
        "held_out_images": held_out,
        "threads": job.threads,
    }


def register(job: TrainJob, run: Run, head: Head, judged: Judgement, key: str) -> str:
    """Save the self-contained serving model and register it; return its version."""
    plan, backbone = job.plan, None
    if not plan.reads_images:
        backbone = load_backbone(
            plan.spec.backbone,
            Path(job.weights) if job.weights else None,
            options=job.backbone["options"],
            untrained_seed=job.untrained_seed,
        )
        if backbone.weights_id != plan.spec.weights:
            raise WeightsError(
                f"{job.weights} is not the weight file the features were made with",
                expected=f"SHA-256 {plan.spec.weights}",
                remedy="put the file back, or extract with the new one",
            )
    with working_folder(Path(job.home) / "tmp", "model-") as folder:
        save_model(
            folder / "model",
            Detector(backbone, head.to("cpu"), plan.spec, plan.layers, judged.calibration),
            example=judged.example,
            about={"image_set": job.image_set, "snapshot": job.snapshot, "key": key},
        )
        return run.register(folder / "model")
