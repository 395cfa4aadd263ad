"""Train one head from the store, evaluate it, register it: a plain function, run by Dask workers.

Nothing here knows of Prefect or of the cluster; `train_head` can be called as it is.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from features.backbones import load_backbone
from features.images import read_image
from flows.artifacts import write_artifacts
from flows.evaluation import (
    ScoredImages,
    calibrate_head,
    evaluate_scores,
    per_image_rows,
    score_test,
)
from flows.home import Home, working_folder
from flows.planner import HeadPlan, training_key
from flows.runtime import PeakMemory, WorkerProgress
from heads.base import FeatureSource, Head, get_head
from heads.calibrate import Calibration
from heads.data import split_held_out
from heads.trainer import TrainOptions
from headwater.errors import ConfigError, DataError, LayerError, WeightsError
from headwater.spec import digest
from storage.maintenance import tag
from storage.registry import Registry
from storage.registry_run import Run
from storage.serving import save_model
from storage.store import FeatureStore
from storage.table import Selection


@dataclass(frozen=True)
class TrainJob:
    """All a training needs, by reference: picklable, small, no arrays.

    Parameters
    ----------
    plan
        The head and what it reads.
    image_set, home, store_url, tracking_url
        Where things are.
    snapshot
        Store version to train and evaluate on.
    root
        Folder that image and mask paths are relative to.
    backbone
        Backbone settings, for the serving model.
    training
        Training settings.
    weights
        Resolved weight file, None for the demo's untrained net.
    untrained_seed
        Of the demo's net.
    known_by
        Train only on images that had arrived by then, nanoseconds UTC.
    parent_run
        MLflow run that this one is nested under.
    threads
        Torch threads.
    """

    plan: HeadPlan
    image_set: str
    home: str
    snapshot: str
    root: str
    backbone: dict[str, Any]
    training: dict[str, Any]
    store_url: str | None = None
    tracking_url: str | None = None
    weights: str | None = None
    untrained_seed: int | None = None
    known_by: int | None = None
    parent_run: str | None = None
    threads: int = 1


@dataclass
class TrainOutcome:
    """What came of a training.

    Parameters
    ----------
    head, version, run_id, model
        Where to find it in MLflow.
    metrics
        Final figures on the test images.
    seconds, peak_mb
        Time of the fit and peak memory of the process that did it.
    reused
        Whether a finished training with the same key was found instead.
    pictures
        Files written for people to look at.
    notes
        Things to know, such as metrics that could not be computed.
    """

    head: str
    version: str = ""
    run_id: str = ""
    model: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: float = 0.0
    reused: bool = False
    pictures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


#: Normal images without which nothing is trained: two to learn from, two to hold out.
AT_LEAST = 4
#: Training settings that do not change what is learnt.
_NO_MATTER = ("workers", "device")


def images_digest(store: FeatureStore, snapshot: str, known_by: int | None) -> str:
    """Return a digest of the images and labels at a snapshot: what a training's key depends on.

    Two snapshots with the same images give the same digest, so that extracting for another head
    does not make a finished training look stale.
    """
    table = store.table(snapshot)
    images = table.images(table.rows(Selection(known_by=known_by)))
    return digest(sorted([r.sha256, r.split, r.kind, r.mask] for r in images))


def key_of(job: TrainJob, store: FeatureStore) -> str:
    """Return the idempotency key of a training; see `flows.planner.training_key`."""
    options = {k: v for k, v in job.training.items() if k not in _NO_MATTER}
    images = images_digest(store, job.snapshot, job.known_by)
    if lacking := without_features(job, store):
        # The same images with all their features are another training.
        images = digest([images, lacking])
    return training_key(job.plan, images, options)


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


def find_trained(job: TrainJob, store: FeatureStore, registry: Registry) -> TrainOutcome | None:
    """Return the outcome of a finished training with the same key, or None."""
    done = registry.find_finished(job.image_set, job.plan.head, key_of(job, store))
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
    store = FeatureStore.open(home.store, job.image_set, create=False)
    registry = Registry(home.root, home.tracking_url)
    # Again, though the driver has looked: a retried task may find its own first try's work.
    if (done := find_trained(job, store, registry)) is not None:
        return done
    key = key_of(job, store)
    train, held_out = normal_sources(store, job)
    head = get_head(plan.head)(plan.make_config(), train.shapes, plan.spec.input_size)
    head.check(train)
    run = registry.start(
        job.image_set,
        plan.head,
        key,
        parent_run=job.parent_run,
        params=_params(job, len(train), len(held_out)),
        tags={"snapshot": job.snapshot, "extractor_id": plan.extractor_id},
        images=store.table(job.snapshot).images(),
        store=home.store,
    )
    with run:
        progress = WorkerProgress(plan.head, run.metric)
        train_options = TrainOptions(
            device=job.training["device"],
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
        calibration, held_scores = calibrate_head(head, held_out, job.training["target_fpr"])
        began = time.perf_counter()
        scored = score_test(store, job, head)
        score_seconds = time.perf_counter() - began
        metrics, notes = evaluate_scores(job, scored, calibration)
        if lacking := without_features(job, store):
            notes = [*notes, _left_out(job, lacking)]
        rows = per_image_rows(scored, calibration.threshold)
        run.finish(
            metrics={**metrics, **{f"fit_{k}": v for k, v in figures.items()}},
            seconds=seconds,
            peak_mb=memory.peak_mb,
            score_seconds_per_image=score_seconds / max(len(rows), 1),
        )
        write_artifacts(job, run, scored, held_scores, calibration, rows)
        version = register(job, run, head, calibration, scored, key)
    # Retention must never remove what a registered model was trained on.
    label = f"model-{plan.head}-v{version}"
    try:
        tag(store, label, job.snapshot)
    except ConfigError:
        # A tag never moves, but MLflow counts anew where its database was replaced.
        tag(store, f"{label}-{run.run_id[:8]}", job.snapshot)
    shutil.rmtree(home.checkpoints / key, ignore_errors=True)
    return TrainOutcome(
        plan.head,
        version,
        run.run_id,
        run.model_name,
        dict(metrics),
        seconds,
        memory.peak_mb,
        pictures=registry.pictures(run.run_id),
        notes=notes,
    )


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


def register(
    job: TrainJob, run: Run, head: Head, calibration: Calibration, scored: ScoredImages, key: str
) -> str:
    """Save the self-contained serving model and register it; return its version."""
    plan = job.plan
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
    example = None
    for row in scored.table[:1]:
        with contextlib.suppress(OSError, ValueError):
            example = read_image(Path(job.root) / row["path"])
    with working_folder(Path(job.home) / "tmp", "model-") as folder:
        save_model(
            folder / "model",
            head=head.to("cpu"),
            backbone=backbone,
            spec=plan.spec,
            layers=plan.layers,
            calibration=calibration,
            example=example,
            about={"image_set": job.image_set, "snapshot": job.snapshot, "key": key},
        )
        return run.register(folder / "model")
