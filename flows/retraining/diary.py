"""What retrainings of a set did, whatever became of them: a file a set, written as they end.

`headwater status` and the figures for Prometheus read it. One that began and never ended is in it,
too: whether its process still runs can be asked.
"""

from __future__ import annotations

import contextlib
import resource
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.runtime.home import Home
from flows.runtime.sections import HookSettings
from flows.use.models.hooks import fire
from headwater.addresses import hidden
from headwater.errors import DataError, HeadwaterError
from headwater.records import add_records, read_records
from headwater.samples import HELD
from storage.registry.facts import is_alive, process_tags

if TYPE_CHECKING:
    from flows.retraining.retrain import Retrained
    from flows.runtime.console import Reporter

#: What a retraining did that has not ended, that its end was asked for, that an error ended.
UNDER_WAY, STOPPED, FAILED = "under way", "stopped", "failed"
#: So many are kept of a set.
_KEPT = 50
_STEP = "headwater_step"


@contextmanager
def step(name: str) -> Iterator[None]:
    """Have an error that leaves the block say in which step of a retraining it came."""
    try:
        yield
    except BaseException as error:
        if not hasattr(error, _STEP):
            setattr(error, _STEP, name)
        raise


def entries(home: Home, image_set: str) -> list[dict[str, Any]]:
    """Return what a set's retrainings did, newest first.

    Returns
    -------
    list of dict
        Each with ``start``, ``end`` (ISO 8601, UTC; None where it has not ended), ``seconds``,
        ``cpu_seconds`` (of its process and of those that it started and that had ended), ``what``
        (as of `Retrained`, or `UNDER_WAY`, `STOPPED`, `FAILED`), ``why``, ``remedy``, ``step`` (in
        which an error came), ``champion``, ``status``, ``counts``, ``alive`` (of one under way:
        whether its process runs; None where that cannot be seen from here).

    Raises
    ------
    DataError
        Where the file is damaged: the next retraining puts it by and begins a new one.
    """
    found = read_records(_file(home, image_set), _what(image_set))
    for one in found:
        try:
            one["alive"] = is_alive(one["process"]) if one["what"] == UNDER_WAY else None
        except (KeyError, TypeError) as error:
            raise DataError(f"{_file(home, image_set)}: no record of a retraining") from error
    return found


class Entry:
    """What one retraining does.

    Parameters
    ----------
    home, image_set
        Of what set.
    """

    def __init__(self, home: Home, image_set: str) -> None:
        self.home, self.image_set = home, image_set
        self.id, self._began, self._cpu = uuid.uuid4().hex, time.monotonic(), _cpu()
        self._started = False
        self.kept: dict[str, Any] = {"start": _now()}

    def start(self) -> None:
        """Say that it is under way: from now on its time counts, and it is known if it is killed.

        Before, it waits for another one, or finds that it was asked for something that cannot be.
        """
        self._began, self._cpu, self._started = time.monotonic(), _cpu(), True
        self.kept = {"start": _now(), "what": UNDER_WAY, "process": process_tags()}
        self._write()

    def end(self, what: str, why: str = "", **more: Any) -> None:
        """Say how it ended.

        A mistake in what was asked for is nothing that happened to a set that nobody knows.
        """
        if not self._started and self.image_set not in self.home.named():
            return
        self.kept = {
            "start": self.kept["start"],
            "end": _now(),
            "seconds": round(time.monotonic() - self._began, 3),
            "cpu_seconds": round(_cpu() - self._cpu, 3),
            "what": what,
            "why": hidden(why)[:2000],
            **more,
        }
        self._write()

    def _write(self) -> None:
        file, what = _file(self.home, self.image_set), _what(self.image_set)
        add_records(file, [{"id": self.id, **self.kept}], what, _KEPT)


class Told:
    """Takes what a retraining did; see `noted`."""

    def __init__(self, entry: Entry, reporter: Reporter) -> None:
        self._entry, self._reporter = entry, reporter
        self.done: Retrained | None = None
        self._before: set[str] = set()

    def start(self) -> None:
        """Say that it is under way."""
        self._before = self.waiting()
        self._keep(self._entry.start)

    def waiting(self) -> set[str]:
        """Return the images that wait for a review, and did not as the retraining began.

        Asked of what is kept: what the guard holds is new to it once, and it may be asked twice.
        """
        with contextlib.suppress(OSError, ValueError):  # a damaged file is told by the status
            reviews = self._entry.home.reviews(self._entry.image_set)
            return {sha for sha, one in reviews.items() if one["said"] == HELD} - self._before
        return set()

    def end(self, what: str, why: str = "", **more: Any) -> None:
        """Say how it ended."""
        self._keep(lambda: self._entry.end(what, why, **more))

    def _keep(self, work: Any) -> None:
        try:
            work()
        except (OSError, HeadwaterError) as error:
            # A full disk, say: no reason to lose what the retraining did.
            first = str(error).splitlines()[0]
            self._reporter.line(f"{self._entry.image_set}: its record cannot be kept: {first}")


@contextmanager
def noted(home: Home, image_set: str, hooks: HookSettings, reporter: Reporter) -> Iterator[Told]:
    """Keep what the retraining in the block does, and tell the hooks, whatever becomes of it.

    The block calls `Told.start` as it gets to work, and leaves what it did in `Told.done`.
    """
    told = Told(Entry(home, image_set), reporter)

    def tell(event: str, about: Mapping[str, Any]) -> None:
        fire(home, image_set, hooks, event, about, reporter.line)

    try:
        yield told
    except Exception as error:
        culprit, remedy = _culprit(error)
        where = getattr(error, _STEP, "begin")
        about = {"why": hidden(culprit)[:2000], "remedy": hidden(remedy), "step": where}
        told.end(FAILED, culprit, remedy=hidden(remedy), step=where, status=2)
        if told._entry._started or image_set in home.named():
            tell("failed", about)
        raise
    except BaseException as error:
        told.end(STOPPED, type(error).__name__, step=getattr(error, _STEP, "begin"))
        raise
    done = told.done
    assert done is not None
    held = len(told.waiting())
    about = {"champion": done.champion, "why": done.why, "counts": counts(done, held)}
    told.end(done.what, done.why, **{k: about[k] for k in ("champion", "counts")},
             failures=[list(one) for one in done.failures], status=done.status)  # fmt: skip
    if done.what in ("promoted", "kept", "held"):
        tell(done.what, about)
    if held and done.what != "held":
        tell("held", about)
    if done.failures:
        why = "; ".join(f"{head}: {said.splitlines()[0]}" for head, said in done.failures)
        tell("failed", {**about, "why": why, "step": "train"})


def counts(done: Retrained, held: int) -> dict[str, int]:
    """Return how many of what a retraining saw; `held` wait for a review since it began."""
    return {
        "new": done.guarded.new,
        "flagged": done.guarded.flagged,
        "held": held,
        "waiting": len(done.guarded.waiting),
        "judged": len(done.judged),
        "failed": len(done.failures),
        "set_aside": len(done.set_aside),
    }


def _culprit(error: BaseException) -> tuple[str, str]:
    """Return what is wrong, in a line, and what can be done about it."""
    if isinstance(error, HeadwaterError):
        return " / ".join(str(HeadwaterError(error.culprit)).splitlines()), error.remedy
    said = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {said}", ""


def _what(image_set: str) -> str:
    return f"the retrainings of {image_set}"


def _file(home: Home, image_set: str) -> Path:
    return home.root / "retrained" / f"{image_set}.json"


def _cpu() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
