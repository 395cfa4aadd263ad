"""How the sets of a home fare in service, and what of it needs a person.

Everything is asked of what is kept; nothing is loaded, trained or scored. A set that is damaged, or
a server that does not answer, is told and hides no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.retraining.diary import entries
from flows.scheduling.times import Told, told
from flows.use.inventory import known_sets
from flows.watching.served import Service, look
from flows.watching.wrong import (
    Wrong,
    asked,
    champion_files,
    disks,
    of_error,
    of_removed,
    of_retraining,
    of_set,
    waiting,
)
from headwater.errors import DataError, HeadwaterError, ModelError
from headwater.text import one_of
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService

if TYPE_CHECKING:
    from flows.runtime.home import Home

#: Of an entry of the diary, what is told of the last retraining.
_TOLD = ("start", "end", "seconds", "cpu_seconds", "what", "why", "champion", "counts", "step")


@dataclass(frozen=True)
class SetStatus:
    """How one set fares.

    Parameters
    ----------
    image_set
        Its name.
    champion
        Of the model in service ``model, version, service_version, head, since, by, why``; None
        where none is, or it is gone.
    retrained
        What the last retraining did, as of `flows.retraining.diary.entries`; None where there was
        none.
    waiting
        Images that wait for a review; None where that cannot be told.
    service
        What the model said in service, beside its promise; None where it was never asked.
    wrong
        What needs a person.
    next
        When `headwater serve` retrains it next, ISO 8601; None where no process does at a time.
    """

    image_set: str
    champion: dict[str, Any] | None = None
    retrained: dict[str, Any] | None = None
    waiting: int | None = 0
    service: Service | None = None
    wrong: list[Wrong] = field(default_factory=list)
    next: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        own = {
            k: getattr(self, k) for k in ("image_set", "champion", "retrained", "next", "waiting")
        }
        service = None if self.service is None else self.service.to_json()
        return {**own, "service": service, "wrong": [asdict(one) for one in self.wrong]}


@dataclass(frozen=True)
class Status:
    """How a home fares.

    Parameters
    ----------
    home
        Its folder.
    when
        ISO 8601, UTC.
    sets
        By name.
    wrong
        What is wrong with the home as a whole.
    """

    home: str
    when: str
    sets: list[SetStatus]
    wrong: list[Wrong]

    @property
    def status(self) -> int:
        """Exit status: 3 where something needs a person."""
        return 3 if self.wrong or any(one.wrong for one in self.sets) else 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "home": self.home,
            "when": self.when,
            "status": self.status,
            "wrong": [asdict(one) for one in self.wrong],
            "sets": [one.to_json() for one in self.sets],
        }


def status_of(home: Home, sets: Iterable[str] = (), *, now: datetime | None = None) -> Status:
    """Return how sets fare; all of the home where none is named.

    Raises
    ------
    DataError
        Where a set that is named is not in the home.
    """
    now = now or datetime.now(UTC)
    wrong = disks(home)
    try:
        known = known_sets(home)
    except HeadwaterError as error:  # a bucket that does not answer
        known = home.named()
        wrong.append(of_error("store", error))
    chosen = list(dict.fromkeys(sets)) or known
    for name in chosen:
        if name not in known:
            raise DataError(
                f"{home.root} has no set {name!r}",
                expected=one_of(known, name) or "a set that was extracted",
                remedy=f"headwater run {name} --images DIR",
            )
    registry: Registry | None = Registry(home.root, home.tracking_url)
    try:
        assert registry is not None
        if chosen and not (registry.local and not registry.database.exists()):
            _ = registry.client
    except HeadwaterError as error:
        wrong.append(of_error("registry", error))
        registry = None
    served = told(home, now)
    if served is not None and not served.alive:
        wrong.append(_unserved(served))
        served = None
    times = {} if served is None else served.next
    if not chosen and not (home.root / "sets").is_dir():
        wrong.append(
            Wrong(
                "home",
                f"{home.root} has nothing of a home in it",
                "check --home or HEADWATER_HOME; the first headwater run makes one",
            )
        )
    made = [
        replace(_set(home, registry, name, now), next=times.get(name) or None) for name in chosen
    ]
    return Status(str(home.root), now.isoformat(timespec="seconds"), made, wrong)


def _unserved(served: Told) -> Wrong:
    sets = len(served.next)
    return Wrong(
        "serve",
        f"headwater serve, which retrains {sets} set{'s' * (sets != 1)}, has not been heard of "
        f"since {served.when}",
        "start it again: it takes up what was left undone",
    )


def _set(home: Home, registry: Registry | None, name: str, now: datetime) -> SetStatus:
    wrong: list[Wrong] = []
    champion: dict[str, Any] | None = None
    manifest: Mapping[str, Any] | None = None
    run_id = ""

    def of_champion(registry: Registry) -> list[Wrong]:
        nonlocal champion, manifest, run_id
        service = InService(registry, name)
        try:
            row = service.champion()
        except ModelError as error:
            return [of_error("champion", error)]
        if row is None:
            return []
        champion, run_id = _told(row, service.events()), row["run_id"]
        manifest, found = champion_files(registry, name, row)
        return [*found, *of_removed(home, registry, name, row)]

    if registry is not None:
        there = registry
        wrong += asked("champion", lambda: of_champion(there), f"headwater history {name}")
    retrained: dict[str, Any] | None = None

    def of_last() -> list[Wrong]:
        nonlocal retrained
        retrained = next(iter(entries(home, name)), None)
        return list(of_retraining(name, retrained))

    wrong += asked("retrain", of_last, f"headwater retrain {name}")
    wrong += of_set(home, name)
    service: Service | None = None

    def of_service() -> list[Wrong]:
        nonlocal service
        service, found = look(home, name, champion, manifest, normals, now)
        return found

    def normals() -> list[float]:
        kept = None if registry is None else registry.sample_table(run_id)
        return [one["score"] for one in kept or () if one.get("kind") == "good"]

    wrong += asked("served", of_service, f"move {home.root}/served/{name}.sqlite away")
    if retrained is not None:
        retrained = {k: retrained[k] for k in (*_TOLD, "alive") if k in retrained}
    return SetStatus(name, champion, retrained, waiting(home, name), service, wrong)


def _told(row: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is told of the model in service: which it is, since when, who put it there."""
    own = {k: row[k] for k in ("model", "version", "service_version", "head")}
    for event in events:  # newest first
        if event["what"] == "keep":
            continue
        if event["to"] == row["service_version"]:
            return {**own, "since": event["when"], "by": event["who"], "why": event["why"]}
        break
    # Set by other means, or its change broke off before it was kept.
    return {**own, "since": None, "by": None, "why": "set without a record"}
