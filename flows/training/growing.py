"""A training that grows a registered model by what is new, and takes out what is gone.

Of what it has learnt from no feature is read again, but where a head has to: see
`heads.training.growing`. Its thresholds are set by scores that nobody had learnt from when they
were made: the out-of-fold scores that the model's run kept and, of the new images, the model's own.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flows.extraction.pair_list import Version
from flows.runtime.dask import PeakMemory
from flows.training.artifacts import KEEPSAKE
from flows.training.data import TrainingData
from flows.training.evaluation import judge
from flows.training.record import HELD_OUT, SAMPLES, TRAIN
from flows.training.train import Learnt, Work
from flows.training.trainings import GrownFrom
from heads.contract import Head, Progress
from heads.training.folds import Folds
from heads.training.growing import Growth, grow
from heads.training.kept import KEPT, kept
from heads.training.out_of_fold import OutOfFold, score_source
from headwater.errors import DataError, GrowthError
from storage.registry.registry import Registry
from storage.serving.detector import Detector


def learnt_by(registry: Registry, run_id: str) -> set[str] | None:
    """Return the images that a training learnt from; None where its run kept no list."""
    table = registry.artifact_json(run_id, f"tables/{SAMPLES}.json")
    if table is None:
        return None
    return {row.get("sha256", "") for row in table if row["role"] in (TRAIN, HELD_OUT)}


class Grown(Work):
    """What a training works with that grows a model; it learns from all where it cannot."""

    def learn(self, head: Head, progress: Progress) -> Learnt:
        """Grow the model and judge it; in full, with a note, where the head says that it cannot."""
        assert self.training.grown_from is not None
        try:
            return self._grown(head, self.training.grown_from, progress)
        except GrowthError as error:
            learnt = super().learn(self.build(), progress)
            learnt.judged.notes.append(
                f"{head.name}: trained in full instead of grown from {self.training.grown_from}: "
                f"{error.culprit}"
            )
            return learnt

    def _grown(self, head: Head, of: GrownFrom, progress: Progress) -> Learnt:
        with PeakMemory() as memory:
            apart, figures = self.taken_in(head, of, progress)
        judged = judge(self.data, head, self.held_out, apart)
        new, gone = (int(figures.pop(name)) for name in ("images_new", "images_gone"))
        judged.notes.append(
            f"{head.name}: grown from {of} by {new} image(s) that it had not learnt from"
            + (f", and {gone} taken out" if gone else "")
            + "; its thresholds are by that model's scores of the new ones and the out-of-fold "
            "scores that its run kept"
            + (", some of them by heads that had learnt from what is taken out" if gone else "")
        )
        growth = {
            "from": f"{of.model}/{of.version}",
            "run_id": of.run_id,
            "growths": of.growths,
            "new": new,
            "gone": gone,
        }
        seconds = figures.pop("fit_seconds")
        return Learnt(head, judged.apart, figures, seconds, memory.peak_mb, judged, growth=growth)

    def taken_in(
        self, head: Head, of: GrownFrom, progress: Progress
    ) -> tuple[OutOfFold, dict[str, float]]:
        """Make `head` the model grown; return scores to calibrate it by, and `grow`'s figures.

        Raises
        ------
        GrowthError
            Where it cannot grow.
        """
        registry = Registry(self.training.home.root, self.training.home.tracking_url)
        model = Detector.load(of.uri, registry, self.options.device).head
        before, ids = learnt_by(registry, of.run_id) or set(), self.source.ids
        new = self.source.subset([i for i, image in enumerate(ids) if image not in before])
        gone = self._gone(of, before - set(ids))
        apart = self._apart(registry, of, model, new)
        head.load_state_dict(model.state_dict())
        kept = _keepsake(registry, of)
        given = Growth(kept, new, gone, self.source, self.options, progress, of.share)
        figures = grow(head, given)
        head.eval()
        return apart, figures

    def _gone(self, of: GrownFrom, images: set[str]) -> Any:
        """Return a source of images that the model has learnt from, as they were then."""
        if not images:
            return self.source.subset([])
        then = TrainingData(
            dataclasses.replace(self.training, at=Version((of.snapshot,)), known_by=None)
        )
        samples = [s for s in then.readable if s.id in images]
        if len(samples) < len(images):
            raise GrowthError(
                f"{len(images) - len(samples)} of {len(images)} images that are to be taken out "
                "have no stored features any more",
                remedy="train it in full",
            )
        return then.source(samples)

    def _apart(self, registry: Registry, of: GrownFrom, model: Head, new: Any) -> OutOfFold:
        """Return scores of all normals by heads that had not learnt from them."""
        file, began = registry.artifact(of.run_id, KEPT), time.perf_counter()
        try:
            old = None if file is None else kept(file)
        except DataError as error:
            raise GrowthError(error.culprit, remedy="train it in full") from error
        now = set(self.source.ids)
        if old is None or now - set(new.ids) - set(old.images):
            raise GrowthError(f"the run of {of} kept no out-of-fold scores of all its images")
        stay = [i for i, image in enumerate(old.images) if image in now]
        scores, heat = score_source(model, new)
        heat = heat[:, :: old.step, :: old.step]
        images = [old.images[i] for i in stay]
        # What is new is a fold of its own: the heads of the others know nothing of it.
        fold = dict.fromkeys(new.ids, old.folds.count)
        folds = Folds(
            {image: old.folds.of[image] for image in images} | fold,
            old.folds.by,
            old.folds.correlation,
            old.folds.together,
        )
        masked = np.ma.isMaskedArray(heat) or np.ma.isMaskedArray(old.maps)
        join = np.ma.concatenate if masked else np.concatenate
        return OutOfFold(
            folds,
            [*images, *new.ids],
            np.concatenate([old.scores[stay], scores]).astype(np.float32),
            join([old.maps[stay], heat]),
            time.perf_counter() - began,
            None,
            old.step,
        )


def _keepsake(registry: Registry, of: GrownFrom) -> dict[str, Tensor]:
    """Return what the run of a model kept for growing; nothing where it kept nothing."""
    file = registry.artifact(of.run_id, KEEPSAKE)
    try:
        return {} if file is None else load_file(file)
    except (OSError, SafetensorError) as error:
        raise GrowthError(
            f"{KEEPSAKE} of the run of {of} is not whole", remedy="train it in full"
        ) from error
