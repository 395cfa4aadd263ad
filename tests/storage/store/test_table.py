"""The table of images: contents found by hash, and chosen by time and kind."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import replace

import pytest

from headwater.errors import ConfigError
from storage.store.table import Selection, ShaIndex, nanoseconds, sha_array
from tests.storage.storekit import contents, extract, image, keys_of


def test_contents_with_the_same_prefix_are_told_apart():
    names = [bytes([1] * 8 + [i] * 24).hex() for i in range(4)] + [bytes([9] * 32).hex()]
    index = ShaIndex(sha_array(names[:3] + names[4:]))
    assert index.find(sha_array(names)).tolist() == [0, 1, 2, -1, 3]
    assert ShaIndex(sha_array([])).find(sha_array(names)).tolist() == [-1] * 5


def test_point_in_time(store):
    early, late = [image(i) for i in range(3)], [image(i) for i in range(3, 6)]
    defect = replace(image(9), split="test", kind="crack")
    extract(store, [*early, defect])
    moment = int(store.table().added_at.max())
    extract(store, [*early, *late, defect])
    extract(store, [*early[1:], *late, defect])  # the first one goes
    normal = Selection(normal=True)
    assert set(contents(store, select=normal)) == set(keys_of([*early[1:], *late]))
    then = Selection(normal=True, known_by=moment)
    assert set(contents(store, select=then)) == set(keys_of(early))
    since = Selection(since=moment)
    assert set(contents(store, select=since)) == set(keys_of(late))
    assert not contents(store, select=Selection(known_by="2001-01-01"))
    with pytest.raises(ConfigError, match="ISO date"):
        nanoseconds("last week")


def test_a_time_that_was_shown_means_what_was_shown_in_every_zone(monkeypatch):
    exact = 1_775_000_000 * 10**9
    for zone in ("UTC", "America/New_York", "Asia/Tokyo"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        shown = dt.datetime.fromtimestamp(exact / 10**9, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
        assert nanoseconds(shown) == nanoseconds(f"{shown} UTC") == exact + 999_999_000
        assert nanoseconds("2026-03-31") == nanoseconds("2026-03-31 23:59:59")
        assert nanoseconds("2026-03-31T23:30:00+02:00") == nanoseconds("2026-03-31 21:30:00")
    monkeypatch.undo()
    time.tzset()
