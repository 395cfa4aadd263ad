"""Figures of days in service, in MLflow: a run a set, a step a day, so that its page draws them."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from flows.watching.served import QUANTILES
from storage.registry.client import told
from storage.registry.registry import Registry

if TYPE_CHECKING:
    from flows.runtime.home import Home
    from flows.watching.served import Day
    from flows.watching.status import Status

#: Tag of the run: the last day that was logged.
LAST = "headwater.day"
#: Steps are days since this one.
FIRST = date(2020, 1, 1)


def log_days(home: Home, status: Status) -> dict[str, int]:
    """Log the days that are over and were not logged yet; return how many of each set.

    Raises
    ------
    StoreError
        Where MLflow refuses.
    """
    registry, today = Registry(home.root, home.tracking_url), status.when[:10]
    logged = {}
    for one in status.sets:
        days = [] if one.service is None else [d for d in one.service.days if d.day < today]
        if not days:
            continue
        run = registry.watched(one.image_set)
        facts = registry.facts(run.run_id)
        last = "" if facts is None else facts[1].get(LAST, "")
        new = sorted((day for day in days if day.day > last), key=lambda day: day.day)
        with told():
            for name in {name for day in new for name in figures(day)}:
                values = {_step(d.day): v for d in new if (v := figures(d).get(name)) is not None}
                run.log_curve(name, values)
            if new:
                registry.client.set_tag(run.run_id, LAST, new[-1].day)
        logged[one.image_set] = len(new)
    return logged


def figures(day: Day) -> dict[str, float]:
    """Return the figures of a day by their names in MLflow; what is not known is left out."""
    made = {"answers": float(day.answers), "flagged_share": day.share}
    if day.mean_p is not None:
        made["mean_p_value"] = day.mean_p
    made |= {f"score_q{100 * q:02.0f}": v for q, v in zip(QUANTILES, day.scores, strict=True)}
    if day.drift is not None:
        made["drift_distance"] = day.drift.distance
    return made


def _step(day: str) -> int:
    return (date.fromisoformat(day) - FIRST).days
