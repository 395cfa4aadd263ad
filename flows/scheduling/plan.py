"""Which sets `headwater serve` looks after: what the settings say, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.runtime.home import Home
from flows.runtime.settings import Settings
from headwater.errors import ConfigError, several


@dataclass(frozen=True)
class Scheduled:
    """A set that is retrained by itself.

    Parameters
    ----------
    image_set
        Its name.
    cron, timezone
        When; None: only when its inbox or its store has something new.
    inbox
        Folder whose images are taken into the set's.
    """

    image_set: str
    cron: str | None = None
    timezone: str | None = None
    inbox: Path | None = None

    def in_words(self) -> str:
        """Return when it is retrained, in a line."""
        zone = f" ({self.timezone})" if self.timezone else ""
        return ", ".join(
            [f"at {self.cron}{zone}"] * bool(self.cron)
            + ["when its store has a new snapshot"]
            + [f"when {self.inbox} has images"] * bool(self.inbox)
        )


def scheduled_sets(settings: Settings, home: Home) -> list[Scheduled]:
    """Return the sets of the settings, in order of name.

    Raises
    ------
    ConfigError
        For every mistake at once: no set, one that the home does not have, a time that cron does
        not know, two sets with one inbox, an inbox that holds a set's images or lies among them.
    """
    sets = [
        Scheduled(name, one.cron, one.timezone, one.inbox)
        for name, one in sorted(settings.schedule.sets.items())
    ]
    if not sets:
        raise ConfigError(
            "nothing to serve: no set is scheduled",
            expected="schedule: {sets: {bolts: {cron: '0 2 * * *'}}} in headwater.yaml",
            remedy="headwater init writes one with comments",
        )
    roots = {name: Path(home.card(name).get("root", "")) for name in home.named()}
    wrong: list[str] = []
    inboxes: dict[Path, str] = {}
    for one in sets:
        at = settings.place(f"schedule.sets.{one.image_set}") or f"schedule.sets.{one.image_set}"
        if one.image_set not in roots:
            wrong.append(
                f"{at}: the home has no set {one.image_set!r} (headwater retrain {one.image_set} "
                "--images DIR makes it)"
            )
        elif home.card(one.image_set).get("pairs"):
            wrong.append(f"{at}: {one.image_set} is a set of pairs, which retrain does not do")
        wrong += [f"{at}: {said}" for said in _wrong_times(one)]
        if one.inbox is None:
            continue
        own = one.inbox.resolve()
        if own in inboxes:
            wrong.append(f"{at}: {inboxes[own]} has the same inbox {own}")
        inboxes[own] = one.image_set
        for name, root in roots.items():
            real = root.resolve()
            if root.is_absolute() and (own.is_relative_to(real) or real.is_relative_to(own)):
                wrong.append(f"{at}: inbox {own} and the images of {name}, {real}, are not apart")
    if wrong:
        raise ConfigError(
            several(wrong), expected="sets of this home, times as cron writes them, own inboxes"
        )
    return sets


def _wrong_times(one: Scheduled) -> list[str]:
    from prefect.client.schemas.schedules import CronSchedule  # late: Prefect takes seconds
    from pydantic import ValidationError

    if one.cron is None and one.timezone is not None:
        return ["a timezone without a time (cron)"]
    if one.cron is None:
        return []
    if len(one.cron.split()) != 5 and not one.cron.startswith("@"):
        return [f"cron {one.cron!r}: five fields, as minute hour day month weekday"]
    try:
        CronSchedule(cron=one.cron, timezone=one.timezone)
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, e['loc']))} {e['input']!r}: "
            + str(e["msg"]).removeprefix("Value error, ")
            for e in error.errors()
        ]
    return []
