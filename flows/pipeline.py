"""The job from its settings to its result: what can be known beforehand is, then Prefect runs it.

Where every feature is stored and every training is found, and no Prefect of yours is to hear of it,
Prefect is not started: it and its server are most of the time that a run with nothing to do takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from flows.extraction.extract import bring_up_to_date
from flows.extraction.plan import JobPlan, plan_job, ready
from flows.extraction.report import ExtractionReport
from flows.extraction.samples import AT_LEAST
from flows.runtime.dask import check_device
from flows.runtime.home import Home, prefect_is_configured
from flows.runtime.resolve import require_set
from flows.runtime.settings import Settings
from flows.runtime.signals import ctrl_c_ends_flow
from flows.training.found import look_up
from flows.training.record import known_by_of
from flows.training.results import HeadsFailedError, RunResult
from flows.training.trainings import GrownFrom, Request, Training, stored_version
from flows.use.forecast import forecast
from storage.registry.registry import Registry
from storage.store.table import moment_of, nanoseconds

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

T = TypeVar("T")


def run_pipeline(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    *,
    rehash: bool = False,
) -> RunResult:
    """Run the whole job; what can be checked beforehand is checked before Prefect is started.

    Parameters are those of `flows.extraction.extract.extract_set`.

    Raises
    ------
    HeadwaterError
        For mistakes in the settings, images or weights. Heads that fail are in the result.
    """
    asked, idle = foreseen(ready(settings, home), home, reporter, rehash=rehash)
    if idle:
        result, to_do = _looked_after(asked, reporter)
        if not to_do:
            return result
    return _through_prefect("run_flow", asked, reporter)


def foreseen(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    *,
    rehash: bool = False,
    grown: Mapping[str, GrownFrom] | None = None,
) -> tuple[Request, bool]:
    """Return what a flow is asked, told and checked, and whether it can be done without Prefect.

    `settings` are those of `ready`, `grown` as of `Request`; the rest, and the errors, as of
    `run_pipeline`.
    """
    check_device(settings.training.device, settings.dask.scheduler)
    plan = plan_job(settings, home)
    # What it reads the cache knows: the flow reads no file again to learn what it is.
    ahead = forecast(settings, home, plan, reporter, rehash=rehash, grown=grown)
    reporter.line(ahead.line())
    _tell(plan, reporter)
    ahead.check()
    asked = Request(settings, home, plan, already_read=ahead.read, grown=grown or {})
    return asked, ahead.nothing_to_do and not prefect_is_configured()


def train_pipeline(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    *,
    snapshot: str | None = None,
    known_by: str | None = None,
) -> RunResult:
    """Train from what is stored.

    Other parameters are those of `flows.extraction.extract.extract_set`.

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
    settings = ready(settings, home, images=False)
    pairs = settings.pairs is not None
    at = stored_version(home, require_set(settings), snapshot, pairs=pairs)
    moment = None if known_by is None else nanoseconds(known_by)
    if moment is None and snapshot is not None:
        registry = Registry(home.root, home.tracking_url)
        moment = known_by_of(registry, require_set(settings), snapshot, at.snapshots[0])
        if moment is not None:
            reporter.line(
                f"snapshot {snapshot}: models learnt from the images known by {moment_of(moment)}, "
                "and so do these (--known-by says otherwise)"
            )
    check_device(settings.training.device, settings.dask.scheduler)
    plan = plan_job(settings, home)
    _tell(plan, reporter)
    asked = Request(settings, home, plan, at, moment)
    if not prefect_is_configured():
        found, to_do = look_up(asked, at, Registry(home.root, home.tracking_url))
        if not to_do:
            return RunResult(require_set(settings), outcomes=found)
    return _through_prefect("train_flow", asked, reporter)


def _tell(plan: JobPlan, reporter: Reporter) -> None:
    for note in plan.notes:
        reporter.line(f"note: {note}")


def _looked_after(asked: Request, reporter: Reporter) -> tuple[RunResult, list[Training]]:
    """Do what `run_flow` does where all is done already; return what is to be trained after all.

    The table of images may have changed all the same: a file's name, a label.
    """
    asked, report = extracted(asked, reporter)
    registry = Registry(asked.home.root, asked.home.tracking_url)
    found, to_do = look_up(asked, report.version, registry)
    return RunResult(require_set(asked.settings), report, found), to_do


def extracted(asked: Request, reporter: Reporter) -> tuple[Request, ExtractionReport]:
    """Bring the stores up to date in this process; return the request as the images now have it."""
    report = bring_up_to_date(
        asked.settings,
        asked.home,
        reporter,
        asked.plan,
        already_read=asked.already_read,
        at_least=AT_LEAST,
    )
    return dataclasses.replace(asked, plan=asked.plan.seeing(**report.seen)), report


def _through_prefect(name: str, asked: Request, reporter: Reporter) -> RunResult:
    """Run a flow of `flows.dags` in this process; heads that fail are in the result."""

    def start() -> RunResult:
        from flows import dags  # late: Prefect takes seconds

        done: RunResult = getattr(dags, name)(require_set(asked.settings), asked.to_json())
        return done

    try:
        return on_prefect(start, reporter)
    except HeadsFailedError as error:
        return error.result


def on_prefect(start: Callable[[], T], reporter: Reporter) -> T:
    """Return what a function that starts a flow returns, with a Prefect server to run it on."""
    reporter.update("starting", 0, 1, "Prefect")
    from flows.runtime.server import prefect_server  # late: Prefect takes seconds

    with prefect_server(), ctrl_c_ends_flow():
        return start()
