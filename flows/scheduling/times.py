"""When sets are retrained next: told by the process that serves, for whoever asks how they fare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.runtime.home import Home
from headwater.files import write_text

#: Seconds between two times that it is told.
EVERY = 60.0
#: A process that has not told for so many of them is gone.
_GONE = 5


@dataclass(frozen=True)
class Told:
    """What the process that serves told last.

    Parameters
    ----------
    when
        ISO 8601, UTC.
    alive
        Whether it is there, by that time. One that was told to end takes back what it told.
    next
        When each set that it serves is retrained next, ISO 8601; empty of one without a time.
    """

    when: str
    alive: bool
    next: dict[str, str] = field(default_factory=dict)


def tell(home: Home, times: Mapping[str, str]) -> None:
    """Keep when the sets that are served are retrained next."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(_file(home), json.dumps({"when": when, "next": dict(times)}))


def take_back(home: Home) -> None:
    """Nothing is served any more."""
    _file(home).unlink(missing_ok=True)


def told(home: Home, now: datetime) -> Told | None:
    """Return what was told last; None where nothing is to be served.

    Parameters
    ----------
    now
        Aware of its zone.
    """
    try:
        kept = json.loads(_file(home).read_text())
        age = now - datetime.fromisoformat(kept["when"])
        return Told(kept["when"], age < timedelta(seconds=_GONE * EVERY), dict(kept["next"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):  # damaged: it is told anew in a minute
        return None


def _file(home: Home) -> Path:
    # No set's name begins with a dot.
    return home.root / "scheduled" / ".next.json"
