"""A set that is retrained in this process, without Prefect and Dask; and one that dies on the way.

As a script: ``python -m tests.flows.retraining.kit FOLDER WEIGHTS POINT`` retrains the set in a
folder and is gone, as by kill -9, when it comes to the point.
"""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from flows.retraining import guard, run
from flows.retraining.judging import Bench
from flows.runtime.settings import Settings
from flows.training.found import look_up
from flows.training.joint import work_of
from flows.training.train import train_head
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService
from tests.flows.setkit import QUIET, SmallSet

#: Where a retraining may die: a function that it never gets beyond, or never comes back from.
POINTS = {
    "before what waits is kept": (guard, "keep", "before"),
    "after what waits is kept": (guard, "keep", "after"),
    "in a training": ("flows.training.train", "write_artifacts", "before"),
    "before the gate": (run, "decide", "before"),
    "in the gate": (Bench, "judge", "after"),
    "before the version in service is made": (InService, "_copy", "before"),
    "before it answers": (InService, "_alias", "before"),
    "before its history is kept": (InService, "_keep", "before"),
    "at the end": (InService, "_keep", "after"),
}


class Retrained(SmallSet):
    """A set of 14 normals, and 4 good and 3 bad to test."""

    def __init__(self, folder, weights):
        super().__init__(folder)
        self.weights, self.trained = weights, []

    def fill(self):
        """Draw its images; return it."""
        for part, numbers in (("train/good", range(14)), ("test/good", range(20, 24))):
            for number in numbers:
                self.draw(number, part)
        for number in range(30, 33):
            self.spoil(number, "test/x")
        return self

    def spoil(self, number, part="train/good"):
        """Make an image that is nothing like the others."""
        pixels = np.full((48, 48, 3), [255, 40, number], np.uint8)
        Image.fromarray(pixels).save(self.draw(number, part))

    @property
    def service(self):
        return InService(Registry(self.home.root), "s")

    def flow(self, start, reporter):
        """What the flow does, without Prefect and Dask: train what is to be, then go on."""
        cells = dict(zip(start.__code__.co_freevars, start.__closure__, strict=True))
        asked, again = cells["asked"].cell_contents, cells["again"].cell_contents
        done = run._without_prefect(asked, QUIET, again)
        if done is None:
            asked, report = run.extracted(asked, QUIET)
            asked, _ = run.by_increments(asked, report.version)
            _, to_do = look_up(asked, report.version, Registry(self.home.root))
            self.trained += [train_head(one, None, work_of(one)) for one in to_do]
            done = run._without_prefect(asked, QUIET, again)
        return done

    def retrain(self, **more):
        """Retrain it; the flow must run as `flow` does."""
        settings = self.settings().model_dump(exclude_unset=True)
        settings["backbone"] = {"name": "resnet18", "weights": self.weights}
        settings["training"]["folds"] = 2
        settings = Settings.model_validate({**settings, **more})
        return run.retrain(settings, self.home, QUIET)


def dying(point):
    """Have this process die at a point."""
    owner, name, when = POINTS[point]
    owner = sys.modules[owner] if isinstance(owner, str) else owner
    real = getattr(owner, name)

    def last(*args, **more):
        if when == "after":
            real(*args, **more)
        os.kill(os.getpid(), 9)

    setattr(owner, name, last)


if __name__ == "__main__":
    one = Retrained(Path(sys.argv[1]), Path(sys.argv[2]))
    one.home.prepare_environment()
    run.on_prefect = one.flow
    dying(sys.argv[3])
    one.retrain()
