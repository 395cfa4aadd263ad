"""Train one head from the store, evaluate it, register it: a plain function, run by Dask workers.

Nothing here knows of Prefect or of the cluster; `train_head` can be called as it is.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from features.images.masks import read_mask
from flows.extraction.regions import regions_of
from flows.runtime.dask import PeakMemory, WorkerProgress, own_device
from flows.runtime.home import working_folder
from flows.training.artifacts import write_artifacts, write_keepsake
from flows.training.data import TrainingData
from flows.training.evaluation import Judgement, judge
from flows.training.found import find_trained
from flows.training.known import check_known
from flows.training.record import (
    LINEAGE,
    MEMBERS,
    SAMPLES,
    attained,
    final_figures,
    kinds_of,
    late_params,
    lineage_of,
    params_of,
    params_of_growth,
    params_of_known,
    promise,
    samples_of,
    threshold_in_words,
)
from flows.training.results import TrainOutcome
from flows.training.trainings import Training
from heads.catalogue import get_head
from heads.contract import FeatureSource, Head, Progress, Shape, TrainOptions
from heads.training.folds import Folds
from heads.training.out_of_fold import FoldByFold, OutOfFold, leaves_out, sides
from headwater.errors import ConfigError, WeightsError
from headwater.files import locked, write_text
from storage.registry.registry import Registry
from storage.registry.runs import Run
from storage.serving.detector import Detector
from storage.serving.save import save_model


class Work:
    """What a training, or one of its folds, works with.

    Parameters
    ----------
    training, data
        What is trained on what.
    folder
        For checkpoints and folds.
    folds
        JSON of `Folds` that are to be used; else they are found.
    """

    def __init__(
        self,
        training: Training,
        data: TrainingData,
        folder: Path,
        folds: dict[str, Any] | None = None,
    ) -> None:
        self.training, self.data, self.folder = training, data, folder
        if folds is not None:
            write_text(folder / "folds.json", json.dumps(folds))
        check_known(training, len(data.known), pairs=data.pairs is not None)
        options = training.options
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

    def learn(self, head: Head, progress: Progress) -> Learnt:
        """Score the folds, fit the head, set its thresholds and judge it; register nothing."""
        with PeakMemory() as memory:
            apart = self.folds.all(self.options, progress) if self.training.folds else None
            began = time.perf_counter()
            figures = head.fit(self.train, self.held_out, self.options, progress)
            seconds = time.perf_counter() - began
        judged = judge(self.data, head, self.held_out, apart)
        return Learnt(head, judged.apart, figures, seconds, memory.peak_mb, judged)


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
        work = Work(training, data, training.home.checkpoints / key)
        if number < work.folds.folds.count and not leaves_out(work.build(), work.source):
            # Folds go side by side: each has a line of its own.
            name = f"{training.called} {number + 1}/{work.folds.folds.count}"
            work.folds.one(number, work.options, WorkerProgress(name, _unheard))


def _unheard(name: str, value: float, epoch: int) -> None:
    """Take a figure of a fold's epoch, which is nobody's."""


@dataclass(frozen=True)
class Learnt:
    """What a head has learnt, and how it does.

    Parameters
    ----------
    head
        Fitted.
    apart
        Out-of-fold scores, where they set the thresholds.
    figures
        What the fit tells of itself.
    seconds, peak_mb
        Of the fit, in 10^6 bytes.
    judged
        Thresholds, scores and metrics.
    members
        Of an ensemble: the models that it joins, JSON-ready.
    growth
        Of a head that was grown: from which model, by how many images, JSON-ready.
    """

    head: Head
    apart: OutOfFold | None
    figures: dict[str, float]
    seconds: float
    peak_mb: float
    judged: Judgement
    members: tuple[dict[str, Any], ...] = ()
    growth: dict[str, Any] | None = None


@dataclass(frozen=True)
class Again:
    """A training that repeats the one of a registered model.

    Parameters
    ----------
    of
        The model, ``SET.HEAD/VERSION``.
    data
        As it was then.
    folder
        To work in.
    folds
        JSON of the folds of then.
    """

    of: str
    data: TrainingData
    folder: Path
    folds: dict[str, Any] | None


def train_head(
    training: Training, again: Again | None = None, kind: type[Work] = Work
) -> TrainOutcome:
    """Train, calibrate, evaluate and register one head; find it instead where it is done already.

    Idempotent: the key is (samples, head configuration, extractor, options), looked up in MLflow
    first. A broken training goes on from its checkpoint, and folds that were scored stay scored.

    Parameters
    ----------
    training
        What to train on what.
    again
        A model's training that is repeated, though it is done.
    kind
        How it learns.

    Raises
    ------
    HeadwaterError
        Whatever stops the training; the MLflow run is marked failed.
    """
    home = training.home
    home.prepare_environment()
    torch.set_num_threads(training.threads)
    data = TrainingData(training) if again is None else again.data
    registry = Registry(home.root, home.tracking_url)
    # Again, though the driver has looked: a retried task may find its own first try's work.
    key = data.key()
    if again is not None:
        work = kind(training, data, again.folder, again.folds)
        return _trained(training, work, registry, key, again)
    home.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = home.checkpoints / f"{key}.lock"
    # Whoever is asked for the same at the same time waits, and finds what this one registers.
    with locked(lock, work=f"training of {training.called}"):
        if (done := find_trained(training, key, registry)) is None:
            work = kind(training, data, home.checkpoints / key)
            done = _trained(training, work, registry, key, None)
        lock.unlink(missing_ok=True)  # who waits for it finds a finished training all the same
    return done


def _trained(
    training: Training, work: Work, registry: Registry, key: str, again: Again | None
) -> TrainOutcome:
    """Learn, calibrate, evaluate and register; `train_head` has looked whether it is done."""
    home, plan, data = training.home, training.plan, work.data
    train, held_out, head, device = work.train, work.held_out, work.build(), work.options.device
    head.check(train)
    run = registry.start(
        training.image_set,
        plan.head,
        key,
        parent_run=training.parent_run,
        params=params_of(training, data, train, held_out, device),
        tags={
            **data.tags(),
            "extractor_id": plan.extractor_id,
            "store_extractor": plan.spec.id,
            "headwater.cost": training.cost,
            **({} if again is None else {"reproduces": again.of}),
        },
        images=data.all,
        store=home.store,
        summary=f"{head.summary} ({head.paper})" if head.paper else head.summary,
    )
    with run:
        learnt = work.learn(head, WorkerProgress(training.called, run.metric))
        judged, apart = learnt.judged, learnt.apart
        if learnt.members:
            run.log_json(list(learnt.members), MEMBERS)
            run.log_params({"members": ", ".join(_named(one) for one in learnt.members)})
        run.log_params(late_params(training, learnt.figures, apart, device))
        run.log_params(params_of_known(judged))
        if not plan.members:  # these are joined
            run.log_params(params_of_growth(learnt.growth))
        run.finish(
            metrics={**judged.metrics, **final_figures(learnt.figures)},
            seconds=learnt.seconds,
            peak_mb=learnt.peak_mb,
            score_seconds_per_image=judged.score_seconds / max(len(judged.table), 1),
            **promise(judged.calibration, apart),
            **kinds_of(judged),
        )
        run.tell(
            judged.notes,
            threshold=threshold_in_words(judged.calibration),
            on_the_test_images=attained(judged.metrics),
            chosen_by_known_defects=judged.known.in_words() if judged.known else "",
        )
        known = judged.known.record() if judged.known else None
        more = {"validation": known, "growth": learnt.growth}
        run.log_json(lineage_of(training, data, device) | more, LINEAGE)
        run.log_table(samples_of(data, train, held_out, apart, judged.held_scores), SAMPLES)
        write_artifacts(data, run, judged, apart)
        if apart is not None:  # else it is never grown
            write_keepsake(data, run, learnt.head)
        version = register(training, run, learnt.head, judged, key)
    # Retention must never remove what a registered model was trained on.
    label = f"model-{plan.head}-v{version}"
    try:
        data.keep(label)
    except ConfigError:
        # A tag never moves, but MLflow counts anew where its database was replaced.
        data.keep(f"{label}-{run.run_id[:8]}")
    shutil.rmtree(work.folder, ignore_errors=True)
    return TrainOutcome(
        plan.head,
        version,
        run.run_id,
        run.model_name,
        dict(judged.metrics),
        learnt.seconds,
        learnt.peak_mb,
        joined=bool(plan.members),
        pictures=registry.pictures(run.run_id),
        notes=judged.notes,
        seed=training.seed,
    )


def _named(member: dict[str, Any]) -> str:
    return f"{member['model']}/{member['version']}"


def _layer_shapes(data: TrainingData, source: FeatureSource) -> dict[str, Shape]:
    """Return the shapes of the layers that a head reads; a pair's two sides have the same."""
    kind = data.kind
    return {x.name: source.shapes[kind.key(kind.images[0], x.name)] for x in data.layers}


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
    about: dict[str, Any] = {
        "image_set": training.image_set,
        "snapshot": training.snapshot,
        "key": key,
    }
    if judged.known is not None:
        about |= {"validation": judged.known.record()}
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
            about=about,
        )
        return run.register(folder / "model")
