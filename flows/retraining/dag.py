"""The Prefect flow of a retraining: extract, guard, train, judge. Import as `flows.dags` says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.dags import FLOW, extract_task, train_all
from flows.extraction.pair_list import Version
from flows.retraining.diary import step
from flows.retraining.gate import Judgement
from flows.retraining.guard import Guarded
from flows.retraining.increments import by_increments
from flows.retraining.retrain import Retrained, closing, decide, images_at, watch_over
from flows.runtime.console import reporter as live_reporter
from flows.runtime.signals import keep_sigterm
from flows.training.results import HeadsFailedError, RunResult, TrainOutcome
from flows.training.trainings import Request


@task(name="guard", cache_policy=NO_CACHE, persist_result=False)
def guard_task(asked: Request, at: Version) -> Guarded:
    """Ask whether new images are like what the champion knows; keep which ones wait."""
    return watch_over(asked.settings, asked.home, images_at(asked, at), live_reporter())


@task(name="gate", cache_policy=NO_CACHE, persist_result=False)
def gate_task(
    asked: Request, outcomes: Sequence[TrainOutcome], again: bool
) -> tuple[str, str, list[Judgement]]:
    """Judge what was trained, and put in service what may go there."""
    return decide(asked.settings, asked.home, outcomes, live_reporter(), again=again)


@flow(name="headwater-retrain", flow_run_name="retrain-{image_set}", **FLOW)
def retrain_flow(image_set: str, request: dict[str, Any], again: bool) -> Retrained:
    """From new images to a champion that is no worse than the one before.

    Parameters
    ----------
    image_set, request
        As of `flows.dags.run_flow`.
    again
        Judge also what was judged before.
    """
    keep_sigterm()
    asked = Request.from_json(request)
    with step("extract"):
        report = extract_task(asked)
    asked = dataclasses.replace(asked, plan=asked.plan.seeing(**report.seen))
    with step("guard"):
        guarded = guard_task(asked, report.version)
    result = RunResult(image_set, report)
    with step("train"):
        asked, trained = by_increments(asked, report.version)
        try:
            train_all(asked, report.version, result)
        except HeadsFailedError:
            if not result.outcomes:
                raise
    with step("gate"):
        decided = gate_task(asked, result.outcomes, again)
    return closing(asked, report, guarded, decided, result.failures, trained)
