"""A set in service: who asks waits in a row, one thread answers, another looks for a new champion.

What arrives while the thread is busy is answered together; who is alone waits for nobody. A batch
is answered by one version, whole: a new one is opened beside the old and takes its place between
two batches.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from flows.runtime.home import Home
from flows.runtime.sections import KeepSettings, ServeSettings
from flows.serving.kept import Kept
from flows.serving.version import Asked, OpenVersion, Told
from headwater.errors import HeadwaterError, ModelError, StoreError
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService

#: A champion that cannot be opened is tried again after so many seconds.
_AGAIN = 60.0
#: What was said is given up to be kept after so many seconds: who asks must not wait for long.
_PATIENCE = 2.0


@dataclass(frozen=True)
class Answer:
    """What a version says of a picture, and the number under which that is kept; None if it is not.

    Parameters
    ----------
    told
        What it says.
    number
        See `flows.serving.kept.Said`.
    """

    told: Told
    number: int | None


@dataclass(frozen=True)
class _Waiting:
    asked: Asked
    answer: Future[Answer] = field(default_factory=Future)


class Seat:
    """The place of a set's champion: there is one version in it at any time.

    Parameters
    ----------
    home, image_set
        Whose.
    serve, keep
        How it answers, and what is kept of that.
    tell
        Called with a line for the log.

    Raises
    ------
    ModelError
        Where nothing is in service, what is there is gone or damaged, or it is a set of pairs.
    """

    def __init__(
        self,
        home: Home,
        image_set: str,
        serve: ServeSettings,
        keep: KeepSettings,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.home, self.image_set, self.serve, self._tell = home, image_set, serve, tell
        self.kept = Kept(home, image_set, keep, patience=_PATIENCE)
        self.registry = Registry(home.root, home.tracking_url)
        self.service = InService(self.registry, image_set)
        self.version = self._open_first()
        #: What is wrong with the champion, and with what is kept; empty where nothing is.
        self.about_champion, self.about_kept = "", ""
        #: How many pictures a second are answered, as of late; 0 where none was.
        self.pace = 0.0
        self._failed: tuple[str, float] = ("", 0.0)
        self._row: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"{name} {image_set}", daemon=True)
            for name, work in (("answers", self._answer_all), ("looks", self._look_on))
        ]

    def start(self) -> None:
        """Begin to answer, and to look for new champions."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Answer what waits, then end."""
        self._ending.set()
        self._row.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(10)
        self.kept.close()

    @property
    def lives(self) -> bool:
        """Whether the thread that answers does."""
        return self._threads[0].is_alive()

    @property
    def problems(self) -> list[str]:
        """What is wrong, though it answers."""
        files = self.version.changed()
        gone = f"{files}: {self.version.name} answers from memory, and a restart would not"
        dead = "" if self.lives else "the thread that answers has ended"
        return [p for p in (self.about_champion, gone * bool(files), self.about_kept, dead) if p]

    def ask(self, asked: Asked) -> Future[Answer]:
        """Have a picture answered; the future may be cancelled while it waits."""
        waiting = _Waiting(asked)
        self._row.put(waiting)
        return waiting.answer

    # --- the thread that answers -----------------------------------------------------------------

    def _answer_all(self) -> None:
        ending = False
        while not ending:
            batch: list[_Waiting] = []
            one = self._row.get()
            while one is not None:
                # Who has given up is passed over.
                if one.answer.set_running_or_notify_cancel():
                    batch.append(one)
                if len(batch) >= self.serve.batch:
                    break
                try:
                    one = self._row.get_nowait()
                except queue.Empty:
                    break
            ending = one is None
            try:
                self._answer(batch)
            # No fault may end the thread: whoever waits is told, and the next are answered.
            except Exception as error:
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)

    def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        begin, version = time.monotonic(), self.version
        found: list[Told | Exception] = version.answer([one.asked for one in batch])
        told = [one for one in found if isinstance(one, Told)]
        numbers = iter(self._keep(told))
        for waiting, one in zip(batch, found, strict=True):
            if isinstance(one, Told):
                waiting.answer.set_result(Answer(one, next(numbers)))
            else:
                waiting.answer.set_exception(one)
        now = len(batch) / max(time.monotonic() - begin, 1e-6)
        self.pace = 0.8 * self.pace + 0.2 * now if self.pace else now

    def _keep(self, told: list[Told]) -> list[int | None]:
        """Keep what was said; where that fails, say so: an answer is worth more than its copy."""
        if not told:
            return []
        try:
            numbers = [*self.kept.add([one.new() for one in told])]
        except StoreError as error:
            if not self.about_kept:
                self._tell(f"{self.image_set}: what is said is not kept: {error}")
            self.about_kept = f"what is said is not kept: {error.culprit}; {error.remedy}"
            return [None] * len(told)
        self.about_kept = ""
        return [*numbers]

    # --- the thread that looks -------------------------------------------------------------------

    def _open_first(self) -> OpenVersion:
        if self.home.card(self.image_set).get("pairs"):
            raise ModelError(
                f"{self.image_set} is a set of pairs",
                expected="a set of single images: pairs are not answered over HTTP",
                remedy=f"headwater predict {self.image_set} --pair CURRENT HISTORY",
            )
        row = self.service.champion()
        if row is None:
            raise ModelError(
                f"nothing is in service for {self.image_set}",
                expected="a champion",
                remedy=f"headwater promote {self.image_set} HEAD puts a model in service, "
                f"headwater retrain {self.image_set} trains one and does so",
            )
        try:
            return OpenVersion(row, self.registry)
        except ModelError as error:
            back = f"headwater rollback {self.image_set} puts the one before in service again"
            ways = [back, f"headwater promote {self.image_set} HEAD another", error.remedy]
            raise ModelError(
                f"{row['model']} version {row['version']}, in service for {self.image_set} as "
                f"version {row['service_version']}, cannot be opened: {error.culprit}",
                expected=error.expected,
                remedy="; ".join(filter(None, ways)),
            ) from error

    def _look_on(self) -> None:
        while not self._ending.wait(self.serve.look):
            self.look()

    def look(self) -> None:
        """Look which version is in service; open a new one beside the old, then change."""
        mine, now = str(self.version.row["service_version"]), ""
        try:
            now = self.service.version()
            if now == mine:
                wrong = ""
            elif now and now == self._failed[0] and time.monotonic() < self._failed[1]:
                return
            else:
                row = self.service.champion()
                if row is None:
                    raise ModelError(f"nothing is in service for {self.image_set} any more")
                now = str(row["service_version"])
                if now != mine:
                    before, self.version = self.version, OpenVersion(row, self.registry)
                    self._tell(
                        f"{self.image_set}: {self.version.name} answers, before {before.name}"
                    )
                wrong = ""
        except HeadwaterError as error:
            wrong = error.culprit + (f"; {error.remedy}" if error.remedy else "")
            self._failed = now, time.monotonic() + _AGAIN
        # Whatever else goes wrong must not end the looking: the open version answers on.
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            wrong = f"the champion cannot be taken: {wrong}; {self.version.name} answers on"
        if wrong != self.about_champion:
            self._tell(f"{self.image_set}: {wrong or 'all is as it should be again'}")
        self.about_champion = wrong

    def to_json(self) -> dict[str, Any]:
        """Return what is in service and how it does, JSON-ready."""
        version = self.version
        row, found = version.row, version.detector.calibration
        return {
            "set": self.image_set,
            "model": row["model"],
            "version": str(row["version"]),
            "service_version": str(row["service_version"]),
            "head": row["head"],
            "threshold": found.threshold,
            "promised_false_positive_rate": found.attained_fpr,
            "regions_beside": version.detector.own_regions,
            "problems": self.problems,
        }
