"""What a training is asked for, and what comes of it: plain data, sent to Dask workers and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flows.extraction.plan import HeadPlan, training_key

if TYPE_CHECKING:
    from heads.contract import FeatureSource, Head
    from heads.judging.calibration import Calibration
    from storage.registry.runs import Run

#: Training settings that do not change what is learnt.
_NO_MATTER = ("workers", "device")


@dataclass(frozen=True)
class PairsRef:
    """Which pairs a training sees: the digest of their list, and the history side's snapshot."""

    digest: str
    history: str


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
        Store version to train and evaluate on; of a set of pairs, that of the current side.
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
    pairs
        Of a set of pairs: which ones, and the snapshot of the other side.
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
    pairs: PairsRef | None = None


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


def key_of(job: TrainJob, seen: str) -> str:
    """Return the idempotency key of a training that sees data of this digest."""
    options = {k: v for k, v in job.training.items() if k not in _NO_MATTER}
    return training_key(job.plan, seen, options)


@dataclass
class Judgement:
    """What a fitted head gives on data it has not learnt from.

    Parameters
    ----------
    calibration
        Thresholds.
    metrics, notes
        Final figures, and what could not be computed.
    rows
        A table of what was scored, worst mistakes first.
    score_seconds
        Time of scoring alone.
    draw
        Writes pictures and tables to the run.
    example
        For the served model's input example, or None.
    """

    calibration: Calibration
    metrics: dict[str, float]
    notes: list[str]
    rows: list[dict[str, Any]]
    score_seconds: float
    draw: Callable[[Run], None]
    example: Any = None


class Work(Protocol):
    """What one training reads and how it is judged: `ImageWork`, or that of a set of pairs."""

    def key(self) -> str:
        """Return the idempotency key; see `flows.extraction.plan.training_key`."""

    def sources(self) -> tuple[FeatureSource, FeatureSource]:
        """Return what to train on and what to hold out."""

    def images(self) -> Sequence[Any]:
        """Return what there is, each with ``split`` and ``kind``."""

    def tags(self) -> dict[str, str]:
        """Return the run's tags that say what was read."""

    def judge(self, head: Head, held_out: FeatureSource) -> Judgement:
        """Set thresholds on held-out data, score the test data."""

    def keep(self, name: str) -> None:
        """Tag the snapshots: retention must never remove what a registered model refers to."""
