"""A registered model trained again from what its run kept, and whether it comes out the same."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flows.extraction.samples import Sample, digest_of
from flows.runtime.home import Home, working_folder
from flows.training.data import TrainingData
from flows.training.joint import work_of
from flows.training.record import LEFT_OUT, LINEAGE, SAMPLES, machine, told_device, training_from
from flows.training.train import Again, train_head
from flows.use.compare import content_of
from flows.use.models.lineage import find_model
from headwater.errors import DataError, ModelError
from storage.registry.facts import versions
from storage.registry.registry import Registry

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

#: Of the spread of the scores: what they may differ by on another machine or device.
TOLERANCE = 1e-2
#: Versions that do not take part in computing.
_NO_MATTER = {"code", "mlflow.source.git.commit"} | {
    f"version.{name}" for name in ("mlflow", "dask", "prefect", "zarr", "icechunk")
}


@dataclass(frozen=True)
class Reproduced:
    """How a model that was trained again compares with the one registered.

    Parameters
    ----------
    model, version
        The one registered.
    same
        What is the same as then: ``machine`` and ``device``, ``libraries``, ``code``.
    images
        Test images whose scores were compared.
    difference
        Largest difference of their scores, and of those that set the threshold.
    spread
        Standard deviation of the scores, to measure that by.
    threshold
        Before and now.
    verdicts
        Test images whose verdict is another.
    made
        The version that was registered, if any.
    """

    model: str
    version: str
    same: Mapping[str, bool]
    images: int
    difference: float
    spread: float
    threshold: tuple[float, float]
    verdicts: int
    made: str = ""

    @property
    def exact_expected(self) -> bool:
        """Whether nothing that computes has changed: then all scores must be the same."""
        return self.same["machine"] and self.same["device"] and self.same["libraries"]

    @property
    def agree(self) -> bool:
        """Whether it comes out as it must: to the bit, or elsewhere within `TOLERANCE`."""
        if self.difference == 0:
            return True
        exact = self.exact_expected and self.same["code"]
        return not exact and self.difference <= TOLERANCE * self.spread

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        told = {"exact_expected": self.exact_expected, "agree": self.agree}
        return {**dataclasses.asdict(self), **told, "tolerance": TOLERANCE * self.spread}


class _Told:
    """Hands a training's progress to a reporter."""

    def __init__(self, name: str, reporter: Reporter) -> None:
        self.name, self.reporter = name, reporter

    def metric(self, name: str, value: float, epoch: int) -> None:
        """Drop it."""

    def step(self, done: int, total: int, text: str) -> None:
        """Say how far it is."""
        self.reporter.update(self.name, done, total, text)


def reproduce(
    home: Home,
    model: str,
    reporter: Reporter,
    *,
    device: str | None = None,
    register: bool = False,
) -> Reproduced:
    """Train a registered model again from its lineage and compare.

    Parameters
    ----------
    home, model
        As of `flows.use.models.lineage.lineage`.
    device
        Where to train; by default where it was trained, if that is there.
    register
        Whether the new one becomes a version, too; else nothing is kept.

    Raises
    ------
    ModelError
        Where the model was trained before lineages were kept.
    DataError
        Where its images or features are not there any more.
    """
    registry, row = find_model(home, model)
    kept = registry.artifact_json(row["run_id"], LINEAGE)
    samples = registry.artifact_json(row["run_id"], f"tables/{SAMPLES}.json")
    if kept is None or samples is None:
        raise ModelError(
            f"{row['model']} version {row['version']}: its run has no {LINEAGE}",
            expected="a model of a Headwater that keeps it",
            remedy=f"headwater train SET --snapshot model-{row['head']}-v{row['version']} trains "
            "on the same images",
        )
    if grown := kept.get("growth"):
        raise ModelError(
            f"{row['model']} version {row['version']} was grown from {grown['from']} by "
            f"{grown['new']} image(s), {grown['gone']} taken out: it is what all trainings since "
            "the last full one made of it",
            expected="a model that was trained in full",
            remedy=f"headwater train {row['model'].removesuffix('.' + row['head'])} --snapshot "
            f"model-{row['head']}-v{row['version']} trains on the same images in full",
        )
    image_set = row["model"].removesuffix(f".{row['head']}")
    root = Path(home.card(image_set).get("root", ""))
    training = training_from(kept, home, root)
    training = dataclasses.replace(
        training,
        grown_from=None,  # it was to grow and was trained in full instead
        options=training.options.model_copy(
            update={"device": device or _device(kept["machine"]["device"])}
        ),
    )
    torch.set_num_threads(training.threads)
    data = TrainingData(training)
    data.all = list(_as_then(data.all, samples))
    _check(data, samples, kept["data_digest"])
    folds = registry.artifact_json(row["run_id"], "folds.json")
    kind = work_of(training, again=True)
    with working_folder(home.root / "tmp", "reproduce-") as folder:
        again = Again(f"{row['model']}/{row['version']}", data, folder, folds)
        if register:
            outcome = train_head(training, again, kind)
            now, made = _kept_scores(registry, outcome.run_id), outcome.version
        else:
            work = kind(training, data, folder, folds)
            head = work.build()
            head.check(work.train)
            found, made = work.learn(head, _Told(training.called, reporter)), ""
            judged = found.judged
            held = judged.held_scores
            now = _Scores(
                {content_of(r): (r["score"], r["verdict"]) for r in judged.table},
                [] if held is None else sorted(held.tolist()),
                judged.calibration.threshold,
            )
    before = _kept_scores(registry, row["run_id"])
    return _compared(row, kept, training.options.device, before, now, made)


@dataclass(frozen=True)
class _Scores:
    test: Mapping[str, tuple[float, str]]
    calibration: list[float]
    threshold: float


def _kept_scores(registry: Registry, run_id: str) -> _Scores:
    """Return the scores that a run kept."""
    table = registry.sample_table(run_id)
    samples = registry.artifact_json(run_id, f"tables/{SAMPLES}.json") or []
    held = sorted(s for one in samples if (s := one["calibration_score"]) is not None)
    run = registry.client.get_run(run_id)
    test = {content_of(r): (r["score"], r["verdict"]) for r in table or []}
    return _Scores(test, held, run.data.metrics["threshold"])


def _compared(
    row: Mapping[str, Any],
    kept: Mapping[str, Any],
    device: str,
    before: _Scores,
    now: _Scores,
    made: str,
) -> Reproduced:
    if before.test.keys() != now.test.keys() or len(before.calibration) != len(now.calibration):
        raise DataError(
            f"{row['model']} version {row['version']} was judged by other images",
            expected=f"{len(before.test)} test images and {len(before.calibration)} normals",
            remedy="headwater store verify says whether the store is whole",
        )
    test = np.array([[before.test[k][0], now.test[k][0]] for k in before.test]).reshape(-1, 2)
    held = np.array([before.calibration, now.calibration]).T.reshape(-1, 2)
    scores = np.concatenate([test, held])
    then, here = kept["machine"], machine() | {"device": told_device(device)}
    libraries = [
        {k: v for k, v in tags.items() if k not in _NO_MATTER}
        for tags in (kept["versions"], versions())
    ]
    return Reproduced(
        row["model"],
        row["version"],
        {
            "machine": all(then[k] == here[k] for k in here if k != "device"),
            "device": then["device"] == here["device"],
            "libraries": libraries[0] == libraries[1],
            "code": kept["versions"].get("code") == versions()["code"],
        },
        len(test),
        float(np.abs(scores[:, 0] - scores[:, 1]).max(initial=0.0)),
        float(scores[:, 0].std()) if len(scores) else 0.0,
        (before.threshold, now.threshold),
        sum(before.test[k][1] != now.test[k][1] for k in before.test),
        made,
    )


def _device(told: str) -> str:
    """Return the device that a model was trained on, or what there is instead."""
    name = told.split(" ")[0]
    with contextlib.suppress(Exception):
        if told_device(name) == told:
            return name
    return "auto"


def _as_then(samples: Iterable[Sample], kept: list[dict[str, Any]]) -> Iterator[Sample]:
    """Yield samples with the groups and the reviews that they had then."""
    said = {content_of(row): row for row in kept}
    for sample in samples:
        row = said.get("".join(sample.contents), {"group": "", "review": ""})
        yield dataclasses.replace(sample, group=row["group"], review=row["review"])


def _check(data: TrainingData, kept: list[dict[str, Any]], digest: str) -> None:
    """Raise `DataError` where the images or their features are not those of then."""
    lacking = {row.get("path", row.get("key")) for row in kept if row["role"] == LEFT_OUT}
    gone = [key for key in data.lacking if key not in lacking]
    if gone:
        raise DataError(
            f"{len(gone)} {data.kind.name}(s) have no stored features any more, such as {gone[0]}",
            expected="the features that the model was trained on",
            remedy="headwater extract SET computes those of images that are there",
        )
    if digest_of(data.all) != digest:
        raise DataError(
            f"the {data.kind.name}s at its snapshot are not those that the model was trained on",
            expected=f"images and labels of digest {digest}",
            remedy="headwater store verify says whether the store is whole",
        )
