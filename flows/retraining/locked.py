"""The locked test of an image set: what champion and challengers are both judged on.

It is a list of images by their contents. What comes to the test folders later is in no lock until
`headwater lock` renews it, so that a model is never judged on easier images than the one before.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.runtime.home import Home
from headwater.errors import DataError
from headwater.files import write_text
from headwater.spec import digest
from storage.registry.facts import user


@dataclass(frozen=True)
class LockedTest:
    """Which images judge.

    Parameters
    ----------
    images
        SHA-256 of each, and its kind: ``good`` or a kind of defect.
    who, when
        Locked it.
    """

    images: Mapping[str, str]
    who: str
    when: str

    @property
    def digest(self) -> str:
        """Of the images and their kinds."""
        return digest(sorted(self.images.items()))

    @property
    def kinds(self) -> dict[str, int]:
        """How many there are of each kind."""
        return dict(sorted(Counter(self.images.values()).items()))


def _file(home: Home, image_set: str) -> Path:
    return home.root / "locked" / f"{image_set}.json"


def locked_test(home: Home, image_set: str) -> LockedTest | None:
    """Return the locked test of a set; None where none was ever locked.

    Raises
    ------
    DataError
        Where what was kept of it is damaged.
    """
    file = _file(home, image_set)
    if not file.exists():
        return None
    try:
        kept = json.loads(file.read_text())
        return LockedTest({str(k): str(v) for k, v in kept["images"].items()}, **_told(kept))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{file}: not what was locked ({type(error).__name__})",
            expected="the images that champion and challengers are judged on",
            remedy=f"restore it from a copy of the home, or headwater lock {image_set} locks anew",
        ) from error


def locked_images(home: Home, image_set: str) -> Mapping[str, str] | None:
    """Return the images of a set's locked test and their kinds; None without, or of a damaged one.

    For what only tells of it: judging asks `locked_test`, which raises.
    """
    with contextlib.suppress(DataError):
        if (found := locked_test(home, image_set)) is not None:
            return found.images
    return None


def _told(kept: Mapping[str, str]) -> dict[str, str]:
    return {"who": str(kept["who"]), "when": str(kept["when"])}


def lock(home: Home, image_set: str, who: str = "") -> tuple[LockedTest, LockedTest | None]:
    """Lock the test images that the set's store has now; return the new lock and the old one.

    Raises
    ------
    DataError
        Where there are none.
    SnapshotError
        Where the set has no store.
    """
    # late: who only reads a lock waits for no torch
    from storage.store.feature_store import FeatureStore
    from storage.store.table import Selection  # late: see above

    store = FeatureStore.open(home.store, image_set, create=False)
    table, before = store.table(), None
    with contextlib.suppress(DataError):  # a damaged one is replaced
        before = locked_test(home, image_set)
    rows = table.images(table.rows(Selection(split="test")))
    if not rows:
        raise DataError(
            f"{image_set} has no test images to lock",
            expected="test images, by which models can be judged",
            remedy="put some into test/good and test/KIND, then headwater extract",
        )
    images = dict(sorted((row.sha256, row.kind) for row in rows))
    when = datetime.now(UTC).isoformat(timespec="seconds")
    made = LockedTest(images, who or user(), when)
    write_text(_file(home, image_set), json.dumps(asdict(made), indent=1))
    return made, before
