"""`headwater serve`: sets are retrained when their time comes, or when something new came in."""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.scheduling.inbox import Inbox, Put, Taken
from flows.scheduling.plan import Scheduled, scheduled_sets
from flows.scheduling.seen import last_time, mark, marked, unmark, unseen
from flows.scheduling.times import EVERY, take_back, tell
from headwater.addresses import whole
from headwater.errors import StoreError
from headwater.files import locked
from headwater.text import shown

if TYPE_CHECKING:
    from flows.runtime.console import Reporter
    from flows.scheduling.dag import Deployments

#: Seconds between two looks at the inboxes and stores.
_LOOK = 5.0


def serve(settings: Settings, home: Home, config: Path | None, reporter: Reporter) -> NoReturn:
    """Retrain the sets of the settings by themselves, until the process is told to end.

    Their runs are Prefect's: on your server where one is configured, else on one of this process.
    One process serves a home. What was under way when it was killed is taken up again.

    Raises
    ------
    ConfigError
        As of `flows.scheduling.plan.scheduled_sets`, or where the server has a set of another home.
    StoreError
        Where another process serves this home, or no Prefect server answers.
    """
    sets = scheduled_sets(settings, home)
    folder = home.root / "scheduled"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / "serve.lock", 0.5, work="serving"))
        except StoreError:
            raise StoreError(
                f"another `headwater serve` looks after {home.root}",
                expected="one for a home",
                remedy=f"see which it is: fuser {folder / 'serve.lock'}",
            ) from None
        _hand_on(home)
        _serve(settings, sets, home, config, reporter)


def _hand_on(home: Home) -> None:
    """Tell processes that are started what this one was told: secrets go by the environment."""
    os.environ["HEADWATER_HOME"] = str(home.root)
    if home.store_url:
        os.environ["HEADWATER_STORE"] = home.store_url
    if home.tracking_url:
        os.environ["HEADWATER_TRACKING"] = whole(home.tracking_url)


def _serve(
    settings: Settings,
    sets: list[Scheduled],
    home: Home,
    config: Path | None,
    reporter: Reporter,
) -> NoReturn:
    reporter.line("starting Prefect")
    from flows.runtime.server import prefect_server  # late: Prefect takes seconds

    with prefect_server(schedules=True):
        # late: Prefect reads its settings then
        from flows.scheduling.dag import Deployments, missed, run

        deployments = Deployments(sets, home.root, config)
        runner = deployments.register(settings.schedule.at_once)
        left = deployments.clear()
        looking = Looking(settings, sets, home, deployments, reporter)
        for one in sets:
            name, again = one.image_set, ""
            if name in left or missed(one, last_time(home, name)):
                again = "; what was left undone comes first"
                mark(home, name)
            reporter.line(f"{name}: retrained {one.in_words()}{again}")
        looking.start()
        try:
            run(runner)
        finally:
            looking.stop()
            take_back(home)


class Looking:
    """Looks at inboxes and stores every few seconds, and asks for a retraining where one is due.

    Parameters
    ----------
    settings, sets, home
        What is served.
    deployments
        Where a retraining is asked for.
    reporter
        Told of what is taken and refused.
    """

    def __init__(
        self,
        settings: Settings,
        sets: list[Scheduled],
        home: Home,
        deployments: Deployments,
        reporter: Reporter,
    ) -> None:
        self.sets, self.home, self.deployments, self.reporter = sets, home, deployments, reporter
        own = settings.schedule
        self.inboxes = {
            one.image_set: Inbox(
                one.inbox,
                putter(home, one.image_set),
                settle=own.settle,
                max_mb=own.max_mb,
            )
            for one in sets
            if one.inbox is not None
        }
        for name, inbox in self.inboxes.items():
            if inbox.made:
                reporter.line(
                    f"{name}: made its inbox {inbox.folder}; who writes to it needs rights"
                )
        self._said: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inboxes", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; a file that is being taken is taken."""
        self._ended.set()
        self._thread.join(30)

    def once(self) -> None:
        """Look once."""
        for one in self.sets:
            name = one.image_set
            try:
                if name in self.inboxes:
                    self._tell(name, self.inboxes[name].look())
                wanted = marked(self.home, name) or unseen(self.home, name)
                if wanted and not self.deployments.busy(name):
                    self.deployments.start(name)
                    unmark(self.home, name)
            except Exception as error:  # one set's trouble is not another's
                self._say(name, str(error) or type(error).__name__)
            else:
                self._said.pop(name, None)

    def _run(self) -> None:
        told = -math.inf
        while not self._ended.wait(_LOOK):
            self.once()
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                tell(self.home, {one.image_set: self.deployments.next(one) for one in self.sets})

    def _tell(self, name: str, taken: Taken) -> None:
        for file, why in taken.refused:
            self.reporter.line(f"{name}: refused {shown(file)}: {why}")
        if taken.new or taken.known:
            known = f", {taken.known} were there already" if taken.known else ""
            self.reporter.line(f"{name}: took {len(taken.new)} from its inbox{known}")
        if taken.trouble:
            file, why = taken.trouble[0]
            raise StoreError(
                f"{len(taken.trouble)} files of the inbox stay there: {shown(file)}: {why}"
            )

    def _say(self, name: str, text: str) -> None:
        """Say what is wrong, once for as long as it lasts."""
        if self._said.get(name) != text:
            self._said[name] = text
            self.reporter.line(f"error: {name}: {text}")


def putter(home: Home, image_set: str) -> Put:
    """Return what puts an image among those that a set learns from, and has it retrained."""
    from flows.serving import intake  # late: reads images

    def put(content: bytes, first: str) -> tuple[Path, bool]:
        # Before: an image that is in and of which nobody knows would wait for the next.
        mark(home, image_set)
        place = intake.place_of(home, image_set, content, "train", first=first)
        intake.put(place, content)
        return place.path, not place.there

    return put
