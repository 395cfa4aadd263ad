"""The Prefect flow of a retraining that a schedule asks for, its deployments, and their runner.

Import as `flows.dags` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.states import Cancelled, Completed, Crashed, State

from flows.runtime.console import Reporter, err, out
from flows.runtime.given import Given
from flows.runtime.home import Home
from flows.runtime.signals import asked_by
from flows.scheduling.plan import Scheduled
from flows.scheduling.seen import remember
from headwater.errors import ConfigError, HeadwaterError

NAME = "headwater-scheduled"
#: Seconds that what is under way may take to end.
_PATIENCE = 30
#: States of a run that is under way, or about to be.
_BEGUN = (StateType.PENDING, StateType.RUNNING)


@flow(name=NAME, flow_run_name="{image_set}", validate_parameters=False, persist_result=False)
def scheduled_retrain(
    image_set: str, home: str, config: str | None = None, host: str = ""
) -> State[Any]:
    """Retrain a set, in the process that the runner starts for it; the state says what came of it.

    Parameters
    ----------
    image_set, home, config
        As the command has them; addresses and secrets come by the environment.
    host
        The machine that serves it.
    """
    from flows.retraining.run import retrain  # late: the process that serves needs no torch

    values = {"image_set": image_set, "home": home}
    try:
        settings, place = Given(values, config=Path(config) if config else None).open()
        with Reporter().live() as reporter:
            done = retrain(settings, place, reporter)
    except HeadwaterError as error:
        err.print(f"error: {image_set}: {error}", markup=False)
        raise
    finally:
        # What this one committed, or could not, is no reason for another.
        remember(Home.at(home, write=False), image_set)
    said = f"{image_set}: {done.what}" + (f": {done.why}" if done.why else "")
    if done.champion:
        said += f"; {done.champion} is in service"
    if done.guarded.waiting:
        said += f"; {len(done.guarded.waiting)} images wait (headwater review {image_set})"
    out.print(said, markup=False)
    return Completed(message=said[:2000], name=done.what.title().replace(" ", ""))


class Deployments:
    """The deployments of scheduled sets on a Prefect server.

    Parameters
    ----------
    sets
        Which.
    home
        Their home, absolute.
    config
        Settings file, if there is one.
    """

    def __init__(self, sets: Sequence[Scheduled], home: Path, config: Path | None) -> None:
        self.sets, self.home = list(sets), str(home)
        self.config = None if config is None else str(config.absolute())
        self.host = socket.gethostname()
        self.client: SyncPrefectClient = get_client(sync_client=True)
        self.ids: dict[str, Any] = {}

    def register(self, at_once: int) -> Runner:
        """Tell the server of them; return the runner that will do their runs.

        Raises
        ------
        ConfigError
            Where the server has a set of this name that another home or machine serves.
        """
        runner = Runner(name=f"headwater-{self.host}", limit=at_once, pause_on_shutdown=True)
        for one in self.sets:
            self._check_own(one.image_set)
            self.ids[one.image_set] = runner.add_deployment(self._deployment(one))
        return runner

    def _deployment(self, one: Scheduled) -> RunnerDeployment:
        parameters = {
            "image_set": one.image_set,
            "home": self.home,
            "config": self.config,
            "host": self.host,
        }
        made = scheduled_retrain.to_deployment(
            one.image_set,
            schedule=_schedule(one),
            parameters=parameters,
            tags=["headwater"],
            description=f"headwater retrain {one.image_set}, {one.in_words()}",
            entrypoint_type=EntrypointType.MODULE_PATH,
            enforce_parameter_schema=False,
        )
        assert isinstance(made, RunnerDeployment)  # no coroutine: nothing runs asynchronously here
        return made

    def _check_own(self, image_set: str) -> None:
        try:
            there = self.client.read_deployment_by_name(f"{NAME}/{image_set}")
        except ObjectNotFound:
            return
        other = (there.parameters.get("home"), there.parameters.get("host"))
        if other != (self.home, self.host):
            raise ConfigError(
                f"{image_set}: the Prefect server has it as served by {other[1]} for {other[0]}",
                expected=f"a set of this home, {self.home} on {self.host}",
                remedy=f"prefect deployment delete {NAME}/{image_set}, if nothing serves it there",
            )

    def clear(self) -> list[str]:
        """Put an end to what was left by one that was killed; return the sets that had begun.

        Runs that were under way are over, whatever the server says; those whose time came
        meanwhile would all be done one after the other.
        """
        begun = []
        for image_set, key in self.ids.items():
            for one in self._runs(key, _BEGUN):
                self.client.set_flow_run_state(
                    one.id, Crashed(message="headwater serve ended"), force=True
                )
                begun.append(image_set)
            for one in self._runs(key, (StateType.SCHEDULED,), past=True):
                self.client.set_flow_run_state(
                    one.id, Cancelled(message="its time passed unserved"), force=True
                )
                begun.append(image_set)
        return sorted(set(begun))

    def busy(self, image_set: str) -> bool:
        """Whether a run of the set is under way or due."""
        key = self.ids[image_set]
        return bool(self._runs(key, _BEGUN) or self._runs(key, (StateType.SCHEDULED,), past=True))

    def next(self, one: Scheduled) -> str:
        """Return when a set's time comes next, ISO 8601; empty where it has none."""
        return "" if one.cron is None else _times(one, None)[0].isoformat(timespec="seconds")

    def start(self, image_set: str) -> None:
        """Have the set retrained as soon as there is room."""
        self.client.create_flow_run_from_deployment(self.ids[image_set], name=image_set)

    def _runs(self, key: Any, states: Sequence[StateType], *, past: bool = False) -> list[Any]:
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5)
        return list(
            self.client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[key])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))),
                    expected_start_time=FlowRunFilterExpectedStartTime(before_=soon)
                    if past
                    else None,
                ),
            )
        )


def _schedule(one: Scheduled) -> Any:
    from prefect.schedules import Cron

    return Cron(one.cron, timezone=one.timezone) if one.cron else None


def missed(one: Scheduled, last: dt.datetime | None) -> bool:
    """Whether a set's time came since it was retrained last; a set that never was is new."""
    if one.cron is None or last is None:
        return False
    return any(time <= dt.datetime.now(dt.UTC) for time in _times(one, last))


def _times(one: Scheduled, after: dt.datetime | None) -> list[dt.datetime]:
    """Return the first time of a set after another, or after now."""
    from prefect.server.schemas.schedules import CronSchedule

    schedule = CronSchedule(cron=one.cron, timezone=one.timezone or "UTC")
    found = asyncio.run(schedule.get_dates(n=1, start=after))
    return [dt.datetime.fromisoformat(time.isoformat()).astimezone(dt.UTC) for time in found]


def run(runner: Runner) -> NoReturn:
    """Do what comes due until the process is told to end, then end what is under way in order.

    Raises
    ------
    KeyboardInterrupt
        When it was told to end, by SIGTERM or Ctrl-C.
    """
    asyncio.run(_until_told(runner))
    raise KeyboardInterrupt


async def _until_told(runner: Runner) -> None:
    working = asyncio.create_task(runner.start())
    while not runner.started and not working.done():
        await asyncio.sleep(0.05)
    # After the runner's own, which leaves its processes and its schedules as they are.
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _tell, number, working)
    with contextlib.suppress(asyncio.CancelledError):
        await working


def _tell(number: int, working: asyncio.Task[None]) -> None:
    asked_by(number)
    ending = asyncio.ensure_future(_end(working))
    # Told a second time, it waits for nobody.
    for other in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(other, working.cancel)
    working.add_done_callback(lambda _: ending.cancel())


async def _end(working: asyncio.Task[None]) -> None:
    """Have what is under way end as a command does that is told to; the runner would kill it."""
    under_way = [child for child in psutil.Process().children() if _is_run(child)]
    for one in under_way:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    for _ in range(round(_PATIENCE / 0.2)):
        if not any(map(_is_run, under_way)):
            break
        await asyncio.sleep(0.2)
    working.cancel()


def _is_run(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and "prefect.engine" in process.cmdline()
    return False
