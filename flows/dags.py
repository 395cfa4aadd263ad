"""The Prefect flows: what runs when. Tasks are thin and pass references, never arrays.

Training is submitted to Dask from Prefect tasks that wait for it; see docs/architecture.md for
why Prefect tasks do not run inside the workers. `Home.prepare_environment` must have been called
before this module is imported: Prefect reads its settings then.
"""

from __future__ import annotations

import dataclasses
from threading import Event
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.extraction.backbone import forget
from flows.extraction.extract import bring_up_to_date
from flows.extraction.pair_list import Version
from flows.extraction.report import ExtractionReport
from flows.extraction.samples import AT_LEAST
from flows.runtime.console import reporter as live_reporter
from flows.runtime.dask import (
    TOPIC,
    cores,
    dask_client,
    needs_gpu,
    training_workers,
)
from flows.runtime.signals import keep_sigterm
from flows.training.found import look_up
from flows.training.joint import work_of
from flows.training.results import RunResult, TrainOutcome
from flows.training.train import score_fold, train_head
from flows.training.trainings import Request, Training
from storage.registry.registry import Registry

if TYPE_CHECKING:
    from distributed import Client


#: Of both flows. Their tasks only wait for Dask, so there may be many.
FLOW: dict[str, Any] = {
    "validate_parameters": False,
    "persist_result": False,
    "task_runner": ThreadPoolTaskRunner(max_workers=32),
}


@task(name="extract", cache_policy=NO_CACHE, persist_result=False)
def extract_task(asked: Request) -> ExtractionReport:
    """Bring the stores up to date. Not cached by Prefect: a store knows what is missing."""
    return bring_up_to_date(
        asked.settings,
        asked.home,
        live_reporter(),
        asked.plan,
        already_read=asked.already_read,
        at_least=AT_LEAST,
    )


@task(name="train", task_run_name="train-{name}", cache_policy=NO_CACHE, persist_result=False)
def train_task(
    client: Client, name: str, training: Training, before: Event | None, done: Event
) -> TrainOutcome:
    """Submit one training to Dask and wait. A lost worker's training is started again by Dask.

    Its folds come first, side by side; what fails there fails again, and is told, in the training.

    Parameters
    ----------
    client, name, training
        What to train where, and what it is called.
    before
        Set when the head's training with the seed before this one has ended: what comes then is
        this one, so that versions are numbered in the order of the seeds. None for the first.
    done
        To be set when this one has.
    """
    try:
        resources = needs_gpu(client, training.options.device)
        folds = [
            client.submit(score_fold, training, n, pure=False, retries=0, resources=resources)
            for n in range(training.own_folds)
        ]
        client.gather(folds, errors="skip")
        if before is not None:
            before.wait()
        work = (training, None, work_of(training))
        future = client.submit(train_head, *work, pure=False, retries=0, resources=resources)
        return future.result()
    finally:
        done.set()


@flow(name="headwater-run", flow_run_name="run-{image_set}", **FLOW)
def run_flow(image_set: str, request: dict[str, Any]) -> RunResult:
    """Images to registered models: extract what is missing, then train the heads in parallel.

    Parameters
    ----------
    image_set
        Name of the set.
    request
        JSON of a `Request`.
    """
    keep_sigterm()
    asked = Request.from_json(request)
    report = extract_task(asked)
    asked = dataclasses.replace(asked, plan=asked.plan.seeing(**report.seen))
    return train_all(asked, report.version, RunResult(image_set, report))


@flow(name="headwater-train", flow_run_name="train-{image_set}", **FLOW)
def train_flow(image_set: str, request: dict[str, Any]) -> RunResult:
    """Train heads from stored features, as `run_flow` does; raises where some are not stored."""
    keep_sigterm()
    asked = Request.from_json(request)
    assert asked.at is not None
    return train_all(asked, asked.at, RunResult(image_set))


def train_all(asked: Request, at: Version, result: RunResult) -> RunResult:
    """Train the heads in parallel; one that fails does not take the others with it.

    Raises
    ------
    HeadsFailedError
        After all have ended, where some failed.
    """
    show = live_reporter()
    # The workers load what they need themselves: two backbones need not be in memory.
    forget()
    # Created and migrated once, here, before the workers all want it.
    registry = Registry(asked.home.root, asked.home.tracking_url)
    found, trainings = look_up(asked, at, registry)
    result.outcomes += found
    if not trainings:
        return result
    wanted = asked.settings.training
    jobs = sum(max(1, one.own_folds) for one in trainings)
    workers = training_workers(jobs, wanted.device, wanted.workers)
    threads = max(1, cores() // workers)
    with (
        registry.parent(result.image_set, trainings[0].snapshot) as parent_run,
        dask_client(workers, asked.settings.dask.scheduler, asked.home.scratch) as client,
    ):

        def on_progress(event: tuple[float, dict[str, Any]]) -> None:
            message = event[1]
            show.update(message["name"], message["done"], message["total"], message["text"])

        client.subscribe_topic(TOPIC, on_progress)
        last: dict[str, Event] = {}
        # What joins heads comes after these.
        for some in (
            [one for one in trainings if not one.members],
            [one for one in trainings if one.members],
        ):
            waiting = []
            for one in some:
                prepared = dataclasses.replace(one, parent_run=parent_run, threads=threads)
                before, done = last.get(one.plan.head), Event()
                last[one.plan.head] = done
                task_run = train_task.submit(client, one.called, prepared, before, done)
                waiting.append((one.called, task_run))
            for head, future in waiting:
                future.wait()
                got = future.result(raise_on_failure=False)
                if isinstance(got, BaseException):
                    result.failures.append((head, got))
                else:
                    result.outcomes.append(got)
    return result.or_raise()
