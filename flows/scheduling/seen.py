"""What is a reason to retrain a set: a snapshot that none saw, or that somebody asked for it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from flows.runtime.home import Home
from headwater.errors import HeadwaterError
from headwater.files import write_text
from storage.store.engine import guard, open_repository
from storage.store.layout import BRANCH


def head_of(home: Home, image_set: str) -> str:
    """Return the newest snapshot of a set's store; empty where there is none to be had."""
    try:
        # Not by a `FeatureStore`, which would bring torch into the process that serves.
        repository = open_repository(home.store, image_set, create=False)
        with guard(image_set):
            return repository.lookup_branch(BRANCH)
    except HeadwaterError:
        return ""


def remember(home: Home, image_set: str) -> None:
    """Keep that the set was retrained, as its store is now."""
    when = datetime.now(UTC).isoformat()
    told = {"snapshot": head_of(home, image_set), "when": when}
    write_text(_file(home, image_set), json.dumps(told))


def unseen(home: Home, image_set: str) -> bool:
    """Whether the store has a snapshot that no scheduled retraining saw."""
    return head_of(home, image_set) not in ("", _last(home, image_set).get("snapshot", ""))


def last_time(home: Home, image_set: str) -> datetime | None:
    """Return when a schedule retrained the set last; None where none did."""
    when = _last(home, image_set).get("when")
    return None if when is None else datetime.fromisoformat(when)


def mark(home: Home, image_set: str) -> None:
    """Keep that the set is to be retrained, whatever happens to this process."""
    _due(home, image_set).touch()


def marked(home: Home, image_set: str) -> bool:
    """Whether it is."""
    return _due(home, image_set).exists()


def unmark(home: Home, image_set: str) -> None:
    """Forget that: the server has been asked."""
    _due(home, image_set).unlink(missing_ok=True)


def _last(home: Home, image_set: str) -> dict[str, str]:
    try:
        return dict(json.loads(_file(home, image_set).read_text()))
    except (OSError, ValueError):  # none yet, or damaged: then one retraining more
        return {}


def _file(home: Home, image_set: str) -> Path:
    return home.root / "scheduled" / f"{image_set}.json"


def _due(home: Home, image_set: str) -> Path:
    return home.root / "scheduled" / f"{image_set}.due"
