"""Trained heads joined to one model: found as they were trained, nothing is learnt anew."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from flows.runtime.dask import PeakMemory
from flows.training.data import TrainingData
from flows.training.evaluation import judge
from flows.training.found import find_trained
from flows.training.growing import Grown
from flows.training.train import Learnt, Work
from flows.training.trainings import Training
from heads.contract import Head, Progress
from heads.ensemble import Ensemble, EnsembleConfig, join_out_of_fold, telling
from heads.training.kept import KEPT, kept, rounded
from heads.training.out_of_fold import OutOfFold
from headwater.errors import DataError
from storage.registry.registry import Registry
from storage.serving.detector import Detector


class Member(NamedTuple):
    """One of the heads that an ensemble joins: fitted, with what its calibration gave."""

    head: Head
    #: None where held-out images set the thresholds.
    apart: OutOfFold | None
    #: ``head``, ``model``, ``version`` and ``run_id``, JSON-ready; empty for one that is trained
    #: again and registered nowhere.
    model: dict[str, Any]


class Joint(Work):
    """What an ensemble works with: the models of its members, and how these were calibrated.

    Out-of-fold scores are those that the members' runs kept. Of runs from before they kept any the
    folds are scored again; the model is not trained again.
    """

    @functools.cached_property
    def registry(self) -> Registry:
        """Where the members are."""
        return Registry(self.training.home.root, self.training.home.tracking_url)

    def learn(self, head: Head, progress: Progress) -> Learnt:
        """Find the members, put them on one scale, set the thresholds and judge.

        Raises
        ------
        DataError
            Where a member is not trained or was calibrated by other images; where fewer than two
            tell normal images apart.
        """
        assert isinstance(head, Ensemble)
        trainings = self.training.members
        with PeakMemory() as memory:
            began, members = time.perf_counter(), []
            for at, one in enumerate(trainings):
                progress.step(at, len(trainings), f"joining {one.plan.head}")
                members.append(self.member(one, self._data_of(one), progress))
            head, members, apart = self._joined(head, members)
            head.eval()
            seconds = time.perf_counter() - began
        judged = judge(self.data, head, self.held_out, apart)
        if left := [x.plan.head for x in trainings if x.plan.head not in _names(members)]:
            judged.notes.append(
                f"{', '.join(left)} gives most normal images one score and is no part of the "
                "ensemble"
            )
        models = tuple(one.model for one in members if one.model)
        return Learnt(head, judged.apart, {}, seconds, memory.peak_mb, judged, models)

    def _data_of(self, training: Training) -> TrainingData:
        """Return what a member was trained on; `DataError` where that is other than the others'."""
        data = TrainingData(training)
        data.all = self.data.all
        other = {s.id for s in data.learnt} ^ {s.id for s in self.data.learnt}
        if other:
            raise DataError(
                f"{len(other)} normal images have features for {training.plan.head} and not for "
                "all members of the ensemble",
                expected="every layer of every image",
                remedy=f"headwater extract {training.image_set} computes what is missing",
            )
        return data

    def member(self, training: Training, data: TrainingData, progress: Progress) -> Member:
        """Return a member as it was trained."""
        plan = training.plan
        done = find_trained(training, data.key(), self.registry)
        if done is None:
            raise DataError(
                f"{plan.head}, a member of the ensemble, is not trained",
                expected="a registered model of the same images and settings",
                remedy="see why its training failed, and run again: what is trained is found",
            )
        uri = f"models:/{done.model}/{done.version}"
        head = Detector.load(uri, self.registry, self.options.device).head
        model = {k: getattr(done, k) for k in ("head", "model", "version", "run_id")}
        return Member(head, self._apart(training, data, done.run_id, progress), model)

    def _apart(
        self, training: Training, data: TrainingData, run_id: str, progress: Progress
    ) -> OutOfFold | None:
        """Return a member's out-of-fold scores."""
        if not training.folds:
            return None
        if (file := self.registry.artifact(run_id, KEPT)) is not None:
            return kept(file)
        folds = self.registry.artifact_json(run_id, "folds.json")
        work = Work(training, data, self.folder / training.plan.head, folds)
        return rounded(work.folds.all(work.options, progress))

    def _joined(
        self, head: Ensemble, members: Sequence[Member]
    ) -> tuple[Ensemble, list[Member], OutOfFold | None]:
        """Return the ensemble of the members that normal images say something of, settled."""
        head.adopt([one.head for one in members])
        apart = [one.apart for one in members if one.apart is not None]
        if apart:
            scores = [one.scores for one in apart]
        else:
            scores = list(head.settle_by(self.held_out).T)
        good = telling(_names(members), scores)
        if len(good) < len(members):
            head, members = _of(head, good), [members[at] for at in good]
            head.adopt([one.head for one in members])
            apart = [apart[at] for at in good] if apart else []
            if not apart:
                head.settle_by(self.held_out)
        return head, list(members), join_out_of_fold(head, apart) if apart else None


class JointAgain(Joint):
    """An ensemble whose members are trained again, each from its own lineage."""

    def member(self, training: Training, data: TrainingData, progress: Progress) -> Member:
        """Return a member, trained anew and registered nowhere."""
        work = Work(training, data, self.folder / training.plan.head)
        head = work.build()
        learnt = work.learn(head, progress)
        apart = None if learnt.apart is None else rounded(learnt.apart)
        return Member(learnt.head.eval(), apart, {})


def work_of(training: Training, *, again: bool = False) -> type[Work]:
    """Return how a training is done: learnt, grown, or joined of what was."""
    if not training.plan.members:
        return Work if training.grown_from is None else Grown
    return JointAgain if again else Joint


def _names(members: Sequence[Member]) -> list[str]:
    return [one.head.name for one in members]


def _of(head: Ensemble, chosen: Sequence[int]) -> Ensemble:
    """Return an ensemble of some of the members alone."""
    members = tuple(head.config.members[at] for at in chosen)
    config: EnsembleConfig = dataclasses.replace(head.config, members=members)
    layers = {name for member in members for name in member["layers"]}
    shapes = {name: shape for name, shape in head.shapes.items() if name in layers}
    return Ensemble(config, shapes, head.map_size)
