"""The Prefect flows: what runs when. Tasks are thin and pass references, never arrays.

Training is submitted to Dask from Prefect tasks that wait for it; see docs/architecture.md for
why Prefect tasks do not run inside the workers. `Home.prepare_environment` must have been called
before this module is imported: Prefect reads its settings then.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from features.backbones.backbone import Backbone
from flows.extraction.extract import ExtractionReport, extract_with, plan_all
from flows.extraction.pair_list import PairVersion, version_at
from flows.extraction.pairs import PairsReport, extract_pairs
from flows.extraction.plan import HeadPlan, check_heads, check_kind
from flows.runtime.console import reporter as live_reporter
from flows.runtime.dask import TOPIC, cores, dask_client, needs_gpu, training_workers
from flows.runtime.home import Home
from flows.runtime.resolve import require_set, resolve
from flows.runtime.server import watch_server
from flows.runtime.settings import Settings
from flows.runtime.signals import keep_sigterm
from flows.training.jobs import PairsRef, TrainJob, TrainOutcome
from flows.training.train import AT_LEAST, find_trained, train_head, work_of
from headwater.errors import HeadwaterError
from storage.registry.registry import Registry
from storage.store.feature_store import FeatureStore
from storage.store.table import nanoseconds

if TYPE_CHECKING:
    from distributed import Client

    from flows.runtime.console import Reporter


#: Tasks only wait for Dask, so there may be many.
RUNNER: Any = ThreadPoolTaskRunner(max_workers=32)


@dataclass
class RunResult:
    """What a run did.

    Parameters
    ----------
    image_set
        Name of the set.
    extraction
        None for `train` alone.
    outcomes
        One a head that was trained or found.
    failures
        ``(head, error)`` of the heads that failed; the others are unaffected.
    """

    image_set: str
    extraction: ExtractionReport | PairsReport | None = None
    outcomes: list[TrainOutcome] = field(default_factory=list)
    failures: list[tuple[str, BaseException]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status: 1 or 2 where nothing was trained, 3 where something was left out."""
        if self.failures and not self.outcomes:
            return 2 if all(isinstance(e, HeadwaterError) for _, e in self.failures) else 1
        return 3 if self.set_aside else 0

    @property
    def set_aside(self) -> bool:
        """Whether something was left out and the exit status must say so."""
        return bool(self.failures or (self.extraction and self.extraction.set_aside))


class HeadsFailedError(HeadwaterError, RuntimeError):
    """Some heads failed; `result` holds what the others gave."""

    result: RunResult


@task(name="extract", cache_policy=NO_CACHE, persist_result=False)
def extract_task(
    settings: Settings, home: Home, backbone: Backbone | None, plans: list[HeadPlan], rehash: bool
) -> ExtractionReport | PairsReport:
    """Bring the store up to date. Not cached by Prefect: the store knows what is missing."""
    if settings.pairs is not None:
        return extract_pairs(
            settings, home, live_reporter(), backbone=backbone, plans=plans, rehash=rehash
        )
    assert backbone is not None
    return extract_with(
        settings, home, live_reporter(), backbone, plans, rehash=rehash, at_least=AT_LEAST
    )


@task(name="train", task_run_name="train-{name}", cache_policy=NO_CACHE, persist_result=False)
def train_task(client: Client, name: str, job: TrainJob) -> TrainOutcome:
    """Submit one training to Dask and wait. A lost worker's training is started again by Dask."""
    resources = needs_gpu(client, job.training["device"])
    future = client.submit(train_head, job, pure=False, retries=0, resources=resources)
    return future.result()


@flow(
    name="headwater-run",
    flow_run_name="run-{image_set}",
    validate_parameters=False,
    persist_result=False,
    task_runner=RUNNER,
)
def run_flow(image_set: str, request: dict[str, Any]) -> RunResult:
    """Images to registered models: extract what is missing, then train the heads in parallel.

    Parameters
    ----------
    image_set
        Name of the set.
    request
        JSON-ready: ``settings``, ``home``, ``rehash``, ``untrained_seed``.
    """
    keep_sigterm()
    settings = Settings.model_validate(request["settings"])
    home = Home.at(request["home"], settings.store, settings.tracking, settings.artifacts)
    backbone, plans = plan_all(settings, home, request["untrained_seed"])
    extraction = extract_task(settings, home, backbone, plans, request["rehash"])
    at = extraction.version if isinstance(extraction, PairsReport) else extraction.snapshot
    jobs = make_jobs(
        settings,
        home,
        plans,
        at,
        weights=_weights(backbone),
        untrained_seed=request["untrained_seed"],
    )
    # The workers load what they need from the store: two backbones need not be in memory.
    del backbone
    return train_all(settings, home, jobs, RunResult(image_set, extraction))


@flow(
    name="headwater-train",
    flow_run_name="train-{image_set}",
    validate_parameters=False,
    persist_result=False,
    task_runner=RUNNER,
)
def train_flow(image_set: str, request: dict[str, Any]) -> RunResult:
    """Train heads at a snapshot from stored features; raises where some are not stored."""
    keep_sigterm()
    settings = Settings.model_validate(request["settings"])
    home = Home.at(request["home"], settings.store, settings.tracking, settings.artifacts)
    at = train_at(settings, home, request["snapshot"])
    backbone, plans = plan_all(settings, home, request["untrained_seed"])
    jobs = make_jobs(
        settings,
        home,
        plans,
        at,
        weights=_weights(backbone),
        untrained_seed=request["untrained_seed"],
        known_by=request["known_by"],
    )
    return train_all(settings, home, jobs, RunResult(image_set))


def _weights(backbone: Backbone | None) -> str | None:
    return str(backbone.weights_path) if backbone and backbone.weights_path else None


def train_at(settings: Settings, home: Home, snapshot: str | None) -> str | PairVersion:
    """Return what to train on: a snapshot, of a set of pairs the list and both sides' snapshots."""
    image_set = require_set(settings)
    if settings.pairs is not None:
        return version_at(home, image_set, snapshot)
    return FeatureStore.open(home.store, image_set, create=False).resolve(snapshot)


def make_jobs(
    settings: Settings,
    home: Home,
    plans: list[HeadPlan],
    at: str | PairVersion,
    *,
    weights: str | None,
    untrained_seed: int | None = None,
    known_by: int | None = None,
) -> list[TrainJob]:
    """Return one job a head, all by reference.

    `at` is a snapshot, or a version of a set of pairs.
    """
    image_set = require_set(settings)
    options = settings.training.model_dump(mode="json", exclude={"preset"})
    pairs = isinstance(at, PairVersion)
    if options["held_out"] is None:
        # AnoDFDNet splits its pairs 8:2.
        options["held_out"] = 0.2 if pairs else 0.1

    def seen(plan: HeadPlan) -> tuple[str, PairsRef | None]:
        if isinstance(at, str):
            return at, None
        if plan.reads_images:
            return "", PairsRef(at.pairs, "")
        return at.current, PairsRef(at.pairs, at.history)

    return [
        TrainJob(
            plan=plan,
            image_set=image_set,
            home=str(home.root),
            snapshot=seen(plan)[0],
            pairs=seen(plan)[1],
            root=home.card(image_set).get("root", ""),
            backbone=settings.backbone.model_dump(mode="json"),
            training=options,
            store_url=home.store_url,
            tracking_url=home.tracking_url,
            weights=weights,
            untrained_seed=untrained_seed,
            known_by=known_by,
        )
        for plan in plans
    ]


def train_all(settings: Settings, home: Home, jobs: list[TrainJob], result: RunResult) -> RunResult:
    """Train the heads in parallel; one that fails does not take the others with it.

    Raises
    ------
    HeadsFailedError
        After all have ended, where some failed.
    """
    show = live_reporter()
    # Created and migrated once, here, before the workers all want it.
    registry = Registry(home.root, home.tracking_url)
    found = {job.plan.head: find_trained(job, work_of(job, home).key(), registry) for job in jobs}
    result.outcomes += [outcome for outcome in found.values() if outcome is not None]
    jobs = [job for job in jobs if found[job.plan.head] is None]
    if not jobs:
        return result
    wanted = settings.training
    workers = training_workers(len(jobs), wanted.device, wanted.workers)
    threads = max(1, cores() // workers)
    with (
        registry.parent(result.image_set, jobs[0].snapshot) as parent_run,
        dask_client(workers, settings.dask.scheduler) as client,
    ):

        def on_progress(event: tuple[float, dict[str, Any]]) -> None:
            message = event[1]
            show.update(message["name"], message["done"], message["total"], message["text"])

        client.subscribe_topic(TOPIC, on_progress)
        waiting = []
        for job in jobs:
            ready = dataclasses.replace(job, parent_run=parent_run, threads=threads)
            waiting.append((job.plan.head, train_task.submit(client, job.plan.head, ready)))
        for head, future in waiting:
            future.wait()
            got = future.result(raise_on_failure=False)
            if isinstance(got, BaseException):
                result.failures.append((head, got))
            else:
                result.outcomes.append(got)
    if result.failures:
        error = HeadsFailedError(f"failed: {', '.join(head for head, _ in result.failures)}")
        error.result = result
        raise error
    return result


def run_pipeline(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    *,
    rehash: bool = False,
    untrained_seed: int | None = None,
) -> RunResult:
    """Run the whole job; what can be checked beforehand is checked before Prefect is started.

    Raises
    ------
    HeadwaterError
        For mistakes in the settings, images or weights. Heads that fail are in the result.
    """
    check_heads(settings)
    settings = resolve(settings, home)
    check_kind(settings)
    plan_all(settings, home, untrained_seed)
    request = {
        "settings": settings.model_dump(mode="json"),
        "home": str(home.root),
        "rehash": rehash,
        "untrained_seed": untrained_seed,
    }
    reporter.update("starting", 0, 1, "Prefect")
    watch_server()
    try:
        result = run_flow(require_set(settings), request)
    except HeadsFailedError as error:
        result = error.result
    return result


def train_pipeline(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    *,
    snapshot: str | None = None,
    known_by: str | None = None,
    untrained_seed: int | None = None,
) -> RunResult:
    """Train from what is stored.

    Parameters
    ----------
    snapshot
        Snapshot id or tag; the newest by default.
    known_by
        ISO 8601 date or time; only images that had arrived by then.

    Raises
    ------
    SnapshotError
        Where the set or the snapshot does not exist.
    """
    check_heads(settings)
    image_set = require_set(settings)
    settings = resolve(settings, home, images=False)
    check_kind(settings)
    train_at(settings, home, snapshot)
    request = {
        "settings": settings.model_dump(mode="json"),
        "home": str(home.root),
        "snapshot": snapshot,
        "known_by": None if known_by is None else nanoseconds(known_by),
        "untrained_seed": untrained_seed,
    }
    watch_server()
    try:
        return train_flow(image_set, request)
    except HeadsFailedError as error:
        return error.result
