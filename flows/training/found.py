"""Which trainings were finished before: found in MLflow, by what they learn from and how."""

from __future__ import annotations

from flows.extraction.pair_list import Version
from flows.training.data import TrainingData
from flows.training.known import check_known
from flows.training.results import TrainOutcome
from flows.training.trainings import Request, Training
from storage.registry.registry import Registry


def find_trained(training: Training, key: str, registry: Registry) -> TrainOutcome | None:
    """Return the outcome of a finished training with this `TrainingData.key`, or None."""
    done = registry.find_finished(training.image_set, training.plan.head, key)
    if done is None:
        return None
    told = ("head", "version", "run_id", "model", "metrics", "seconds", "peak_mb")
    pictures = registry.pictures(done["run_id"])
    return TrainOutcome(
        **{name: done[name] for name in told},
        reused=True,
        pictures=pictures,
        seed=training.seed,
    )


def look_up(
    asked: Request, at: Version, registry: Registry
) -> tuple[list[TrainOutcome], list[Training]]:
    """Return what was finished before of a request's trainings, and those that are still to do."""
    outcomes: list[TrainOutcome] = []
    to_do: list[Training] = []
    for one in asked.trainings(at):
        data = TrainingData(one)
        check_known(one, len(data.known), pairs=data.pairs is not None)
        done = find_trained(one, data.key(), registry)
        if done is None:
            to_do.append(one)
        else:
            outcomes.append(done)
    return outcomes, to_do
