"""Looking after a set's store where the registry has a say: what models refer to must stay."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from flows.runtime.home import Home
from headwater.errors import DataError
from storage.registry.registry import Registry
from storage.store.feature_store import FeatureStore
from storage.store.layout import side_of
from storage.upkeep.collect import GcReport, check_grace, gc
from storage.upkeep.purge import PurgeReport, purge


@dataclass(frozen=True)
class Collected:
    """What was freed, or would be: snapshots, and features of removed images where asked for."""

    snapshots: GcReport
    purged: PurgeReport | None = None


def collect(
    home: Home,
    store: FeatureStore,
    *,
    older_than: dt.timedelta,
    grace: dt.timedelta,
    purge_removed: bool = False,
    delete: bool = False,
) -> Collected:
    """Expire old snapshots; never those that a tag, a registered model or a training refers to.

    Parameters
    ----------
    home, store
        Where the registry is, and the set's store.
    older_than
        Age of what expires.
    grace
        Unreachable data younger than this stays: a writer may need it.
    purge_removed
        Whether features of images removed longer ago than `older_than` are given up, too.
    delete
        Whether it is done; otherwise it is only said.

    Raises
    ------
    ConfigError
        Where `grace` is too short for S3.
    """
    check_grace(store, grace)  # before anything is given up
    registry = Registry(home.root, home.tracking_url)
    # A model over pairs is of the pair's set, and refers to a snapshot of either side.
    base, side = side_of(store.image_set)
    which = "history_snapshot" if side == "history" else "snapshot"
    models = {row[which] for row in registry.leaderboard(base)} - {""}
    purged = purge(store, older_than=older_than, dry_run=not delete) if purge_removed else None
    report = gc(
        store,
        older_than=older_than,
        grace=grace,
        protect=models,
        in_use=registry.in_use(base, which),
        dry_run=not delete,
    )
    return Collected(report, purged)


def parse_age(text: str) -> dt.timedelta:
    """Return the age that ``30d``, ``12h``, ``15m`` or ``0`` says; `DataError` otherwise.

    Examples
    --------
    >>> parse_age("12h")
    datetime.timedelta(seconds=43200)
    """
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    # A bare number would be seconds to one and days to another; 0 is 0.
    number, unit = (str(text)[:-1], str(text)[-1:]) if text != "0" else ("0", "s")
    try:
        age = dt.timedelta(seconds=float(number) * units[unit])
        if age >= dt.timedelta(0):
            return age
    except (KeyError, ValueError, OverflowError):
        pass
    raise DataError(f"age {text!r}", expected="a number and d, h, m or s, such as 30d")
